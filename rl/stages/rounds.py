"""Stages that sample with the policy and then train on what came of it, in rounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gymrl.agents.episodes import read_jsonl
from gymrl.agents.evaluation import summarise
from gymrl.agents.players import Job
from gymrl.agents.records import Episode
from gymrl.agents.rollout import rollout
from gymrl.envs.records import stable_hash
from gymrl.rl.trainers.online import check_engine
from gymrl.rl.workshop import Workshop


class RoundsStage:
    """Round r begins at step r * steps: the policy is served and plays, its episodes are written to the run folder, and
    `begin` makes of them what the round's steps learn from. A run that goes on inside a round reads them back."""

    name = ""

    def __init__(self, workshop: Workshop, rounds: int, steps: int, tasks: int, samples: int) -> None:
        self.workshop, self.steps, self.tasks, self.samples = workshop, steps, tasks, samples
        self.total = rounds * steps
        self.first = workshop.recipe.sft.demonstrations if "sft" in workshop.recipe.stages else 0
        self.ready = -1
        """The round whose data is at hand."""

    def begin(self, episodes: Sequence[Episode], fresh: bool) -> None:
        """Make the round's data of its episodes; `fresh` says that the weights are those that sampled them."""
        raise NotImplementedError

    def train(self, number: int) -> dict[str, Any]:
        """One optimiser step on the round's data."""
        raise NotImplementedError

    def step(self, number: int) -> tuple[dict[str, Any], list[Episode]]:
        round_, place = divmod(number, self.steps)
        played: list[Episode] = []
        found: dict[str, Any] = {}
        if round_ != self.ready:
            name = f"{self.name}/{round_ * self.steps:06d}"
            if place == 0:
                played = self.sample(round_)
                if played:
                    self.workshop.folder.write_episodes(name, played)
                    count = summarise(played)
                    found = {"reward": count.reward, "success": count.success, "void_turns": count.void_turns}
            else:
                path = self.workshop.folder.path / "episodes" / f"{name}.jsonl"
                played = list(read_jsonl(path)) if path.exists() else []
            self.begin(played, place == 0)
            self.ready = round_
        return self.train(number) | found, played if place == 0 else []

    def sample(self, round_: int) -> list[Episode]:
        """The round's episodes: its own training tasks, each `samples` times."""
        shop = self.workshop
        shop.serve()
        size = shop.pool.template.world.sizes["train"]
        jobs = []
        for number in range(self.tasks):
            task = shop.pool.task("train", (self.first + round_ * self.tasks + number) % size)
            for sample in range(self.samples):
                seed = stable_hash(self.name, shop.recipe.seed, round_, number, sample)
                jobs.append(Job(task, number, sample, seed))
        episodes = shop.loop.run(rollout(jobs, shop.agent, shop.pool, shop.rollouts))
        check_engine(episodes)
        return episodes

    def facts(self, metrics: dict[str, Any]) -> dict[str, float]:
        return {"loss": metrics["loss"]}
