"""Evolution strategies on the policy that is served."""

from __future__ import annotations

import math
import time
from typing import Any

from gymrl.agents.evaluation import evaluation_jobs, summarise
from gymrl.agents.records import Episode
from gymrl.agents.rollout import rollout
from gymrl.rl.trainers.es import es_step
from gymrl.rl.trainers.online import check_engine
from gymrl.rl.workshop import Workshop


class EsStage:
    title = "ES"

    def __init__(self, workshop: Workshop) -> None:
        settings = workshop.recipe.es
        assert settings is not None  # the recipe fills in the table of a stage that it names
        self.workshop, self.settings = workshop, settings
        self.total = self.settings.steps
        self.first = workshop.recipe.sft.demonstrations if "sft" in workshop.recipe.stages else 0

    def step(self, number: int) -> tuple[dict[str, Any], list[Episode]]:
        shop, s = self.workshop, self.settings
        began = time.perf_counter()
        size = shop.pool.template.world.sizes["train"]
        tasks = [shop.pool.task("train", (self.first + number * s.tasks + n) % size) for n in range(s.tasks)]
        jobs = evaluation_jobs(tasks, 1, shop.recipe.seed, greedy=True)
        played: list[Episode] = []

        def play(member: int) -> float:
            shop.serve()
            episodes = shop.loop.run(rollout(jobs, shop.agent, shop.pool, shop.rollouts))
            check_engine(episodes)
            played.extend(episodes)
            rewards = [episode.reward for episode in episodes if episode.valid]
            return sum(rewards) / len(rewards) if rewards else math.nan

        rewards = es_step(shop.learner.trained(), play, s.population, s.sigma, s.alpha, shop.recipe.seed, number)
        shop.learner.updates += 1
        if number % shop.recipe.log.episodes_every == 0:
            shop.folder.write_episodes(f"es/{number:06d}", played)
        count = summarise(played)
        known = [reward for reward in rewards if not math.isnan(reward)]
        if not known:
            shop.learner.troubles.append("no member of the population had a valid episode")
        spread = max(known) - min(known) if known else 0.0
        return {
            "reward": count.reward, "success": count.success, "void_turns": count.void_turns,
            "reward_spread": spread, "invalid": sum(count.invalid.values()), "skipped": int(spread == 0),
            "time/step": time.perf_counter() - began,
        }, played  # fmt: skip

    def facts(self, metrics: dict[str, Any]) -> dict[str, float]:
        return {"reward": metrics["reward"], "spread": metrics["reward_spread"]}

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None: ...
