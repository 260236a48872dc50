"""Online policy optimisation, with the reference and the critic that the recipe asks for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from gymrl.agents.episodes import jsonl_line
from gymrl.agents.evaluation import evaluation_jobs, summarise
from gymrl.agents.players import ScriptedAgent
from gymrl.agents.records import Episode, episode_from_json
from gymrl.agents.rollout import RolloutSettings, rollout
from gymrl.envs.records import stable_hash
from gymrl.envs.workers import EnvPool
from gymrl.rl.batches import TokenSequence
from gymrl.rl.critic import Critic, CriticSettings
from gymrl.rl.curricula import Curriculum, by_potential
from gymrl.rl.demonstrations import DemonstrationFault, tokenise
from gymrl.rl.merging import check_alike, check_vocabularies, read_weights, soup, write_weights
from gymrl.rl.policy import PolicyFault
from gymrl.rl.recipes.models import CurriculumSection, PrefixSection
from gymrl.rl.reference import Reference, WithoutAdapter
from gymrl.rl.supervised.agent import GuidedAgent
from gymrl.rl.supervised.prefix import guided, prefix_of, share_of
from gymrl.rl.trainers.online import Ahead, Played, check_engine, jobs_of_step, online_step, play_step
from gymrl.rl.trainers.sft import chosen, weighed
from gymrl.rl.trainers.update import Helpers
from gymrl.rl.workshop import Workshop


class OnlineStage:
    title = "RL"

    def __init__(self, workshop: Workshop) -> None:
        self.workshop = workshop
        recipe = workshop.recipe
        self.total = recipe.rl.steps
        taught = "sft" in recipe.stages or recipe.rl.sft_weight > 0
        self.first = recipe.sft.demonstrations if taught else 0
        self.helpers = Helpers(_reference(workshop), _critic(workshop), recipe.log.insight_every)
        self.curriculum = Curriculum(recipe.rl.curriculum) if recipe.rl.curriculum is not None else None
        self.played: dict[int, Played] = {}
        """Rollouts of steps to come (`rl.overlap`)."""
        self.executor = ThreadPoolExecutor(1, "gymrl-learner")
        workshop.serve()

    def step(self, number: int) -> tuple[dict[str, Any], list[Episode]]:
        shop, recipe, c = self.workshop, self.workshop.recipe, self.curriculum
        ready, ahead = None, None
        if recipe.rl.prefix is not None:
            ready = partial(guided, shop.learner, recipe.rl.prefix.entropy, recipe.sampling.temperature)
        if recipe.rl.overlap and number + 1 < self.total:
            ahead = Ahead(partial(self._play, number + 1), self.executor)

        async def play() -> Played:
            return self.played.pop(number, None) or await self._play(number)

        done = shop.loop.run(
            online_step(
                shop.learner, shop.agent.engine, play, recipe.rl, recipe.sampling.temperature, number, self.helpers,
                self._shown(number), ready, ahead,
            )
        )  # fmt: skip
        if done.ahead is not None:
            shop.check_whole(done.ahead.episodes)
            self.played[number + 1] = done.ahead
        if number % recipe.log.episodes_every == 0:
            shop.folder.write_episodes(f"rl/{number:06d}", done.episodes)
        if c is not None:
            done.metrics["curriculum"] = c.stage(number)
            if c.looks(number):
                pool, rollouts = self._world(number)
                done.metrics["validation"] = shop.loop.run(self._look(c.settings, pool, rollouts))
                c.looked(done.metrics["validation"])
            elif not c.settings.validate_on:
                c.saw(done.metrics["success"])
        return done.metrics, done.episodes

    def _world(self, number: int) -> tuple[EnvPool, RolloutSettings]:
        """What a step is played on, and how."""
        shop, c = self.workshop, self.curriculum
        if c is None:
            return shop.pool, shop.rollouts
        longest = c.max_turns(number) or shop.rollouts.max_turns
        return shop.pool_with(c.params(number)), replace(shop.rollouts, max_turns=longest)

    async def _play(self, number: int) -> Played:
        """The rollouts of a step, with the weights that the engine has."""
        shop, recipe, c = self.workshop, self.workshop.recipe, self.curriculum
        if c is not None and c.settings.kind == "difficulty" and not c.order:
            c.order = await self._rank(c.settings)
        pool, rollouts = self._world(number)
        among = c.tasks(number) if c is not None else None
        agent = shop.agent
        if recipe.rl.prefix is not None:
            agent = await self._prefixed(recipe.rl.prefix, number, pool, rollouts, among)
        return await play_step(agent, pool, rollouts, recipe.rl, number, recipe.seed, self.first, among)

    def _shown(self, number: int) -> list[TokenSequence]:
        """The demonstrations of a step, where the recipe mixes the two losses."""
        recipe, demonstrations = self.workshop.recipe, self.workshop.demonstrations
        if not recipe.rl.sft_weight:
            return []
        picked = chosen(number, len(demonstrations), recipe.sft.batch, stable_hash("beside", recipe.seed))
        shown = [sequence for i in picked for sequence in demonstrations[i]]
        temperature = recipe.sampling.temperature
        return weighed(self.workshop.learner, shown, recipe.sft, temperature, recipe.seed, "beside", number)

    async def _prefixed(
        self, settings: PrefixSection, number: int, pool: EnvPool, rollouts: RolloutSettings,
        among: Sequence[int] | None,
    ) -> GuidedAgent:  # fmt: skip
        """The policy, whose first rollout of each of the step's groups begins as the oracle's; where the oracle does
        not win, nothing is told."""
        shop, rl = self.workshop, self.workshop.recipe.rl
        jobs = jobs_of_step(pool, rl, number, shop.recipe.seed, self.first, among=among)
        firsts = [job for job in jobs if job.sample == 0]
        share = share_of(number, self.total, settings.first, settings.last)
        prefixes = {}
        played = await rollout(firsts, ScriptedAgent("oracle"), pool, rollouts)
        if any("has no oracle()" in episode.reason for episode in played):
            raise DemonstrationFault(
                f"{pool.env_id} has no oracle() to begin rollouts with: write one, or leave rl.prefix out"
            )
        for episode in played:
            if episode.valid and episode.success:
                told = tokenise(episode, shop.renderer)
                answers = tuple(turn.completion_ids for turn in told.turns)
                prefixes[episode.group, episode.sample] = prefix_of(answers, share)
        return shop.agent.told(prefixes)

    async def _look(self, settings: CurriculumSection, pool: EnvPool, rollouts: RolloutSettings) -> float:
        """Success on held-out tasks, played as the stage's training tasks are."""
        count = min(settings.validate_on, pool.template.world.sizes["val"])
        jobs = evaluation_jobs([pool.task("val", index) for index in range(count)], 1, self.workshop.recipe.seed)
        episodes = await rollout(jobs, self.workshop.agent, pool, rollouts)
        check_engine(episodes)
        return summarise(episodes).success

    async def _rank(self, settings: CurriculumSection) -> list[int]:
        """The first training tasks by the potential that the policy has on them now."""
        shop = self.workshop
        size = shop.pool.template.world.sizes["train"]
        indices = sorted({(self.first + n) % size for n in range(settings.tasks)})
        tasks = [shop.pool.task("train", index) for index in indices]
        jobs = evaluation_jobs(tasks, settings.samples, stable_hash("difficulty", shop.recipe.seed))
        episodes = await rollout(jobs, shop.agent, shop.pool, shop.rollouts)
        check_engine(episodes)
        return by_potential(episodes)

    def facts(self, metrics: dict[str, Any]) -> dict[str, float]:
        facts = {"reward": metrics["reward"], "void": metrics["void_turns"]}
        if "entropy" in metrics:  # a step whose groups are all flat has none
            facts["entropy"] = metrics["entropy"]
        return facts

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = {}
        if self.helpers.reference is not None:
            state |= self.helpers.reference.state()
        if self.helpers.critic is not None:
            state["critic"] = self.helpers.critic.state()
        if self.curriculum is not None:
            state["curriculum"] = self.curriculum.state()
        if self.played:
            state["played"] = {
                number: {
                    "episodes": [jsonl_line(episode) for episode in played.episodes],
                    "seconds": [played.seconds, played.generating],
                }
                for number, played in self.played.items()
            }
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        if self.helpers.reference is not None:
            self.helpers.reference.load_state(state)
        if self.helpers.critic is not None:
            self.helpers.critic.load_state(state["critic"])
        if self.curriculum is not None:
            self.curriculum.load_state(state["curriculum"])
        for number, kept in state.get("played", {}).items():
            episodes = [episode_from_json(json.loads(line)) for line in kept["episodes"]]
            self.played[number] = Played(episodes, *kept["seconds"])


def _reference(shop: Workshop) -> Reference | None:
    kl = shop.recipe.rl.kl
    if kl is None:
        return None
    if kl.ref == "base" and shop.learner.settings.adapter is not None:
        return WithoutAdapter(shop.learner)
    sources = {"start": shop.started, "average": shop.started, "base": shop.base}
    source = sources.get(kl.ref, Path(kl.ref))
    if kl.ref.startswith("soup(") and kl.ref.endswith(")"):
        named = [part.strip() for part in kl.ref[5:-1].split(",")]
        source = _soup(shop, [sources.get(name, Path(name)) for name in named])
    if not source.is_dir():
        raise PolicyFault(
            f"rl.kl.ref = {kl.ref!r} is no folder: take start, base, average, a checkpoint's "
            "folder, or soup(FOLDER, FOLDER)"
        )
    decay = kl.decay if kl.ref == "average" else None
    return Reference(source, shop.learner_settings(), shop.accelerator, decay)


def _soup(shop: Workshop, folders: list[Path]) -> Path:
    """The mean of several checkpoints as a reference (SALSA), kept in the run folder."""
    out = shop.folder.checkpoint_path("reference")
    if not out.exists():
        models = [read_weights(folder) for folder in folders]
        check_alike([read_weights(shop.started), *models], ["the policy", *map(str, folders)])
        check_vocabularies([shop.started, *folders])
        write_weights(soup(models), shop.started, out)
    return out


def _critic(shop: Workshop) -> Critic | None:
    if shop.recipe.rl.critic is None:
        return None
    s = shop.recipe.learner
    return Critic(shop.started, CriticSettings(s.token_budget, s.grad_clip), shop.accelerator)
