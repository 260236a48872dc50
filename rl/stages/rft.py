"""Rejection-sampling fine-tuning: sample, keep the successes, supervised steps on them, again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gymrl.agents.records import Episode
from gymrl.rl.batches import TokenSequence, sequences_of
from gymrl.rl.groups import group_by_task
from gymrl.rl.recipes.models import SftSchedule, SftSection
from gymrl.rl.stages.rounds import RoundsStage
from gymrl.rl.trainers.sft import sft_step
from gymrl.rl.workshop import Workshop


class RftStage(RoundsStage):
    title, name = "rejection sampling", "rft"

    def __init__(self, workshop: Workshop) -> None:
        r = workshop.recipe.rft
        assert r is not None  # the recipe fills in the table of a stage that it names
        super().__init__(workshop, r.rounds, r.steps, r.tasks, r.samples)
        self.keep = r.keep
        flat = SftSchedule(name="constant", warmup=0)
        self.sft = SftSection(steps=r.steps * r.rounds, batch=r.batch, lr=r.lr, schedule=flat)
        self.kept: list[list[TokenSequence]] = []

    def begin(self, episodes: Sequence[Episode], fresh: bool) -> None:
        self.kept = [sequences_of(episode) for episode in kept(episodes, self.keep)]

    def train(self, number: int) -> dict[str, Any]:
        shop = self.workshop
        if not self.kept:
            shop.learner.troubles.append(
                "no episode of the round succeeded (sample more tasks, or warm up for longer)"
            )
            return {"loss": 0.0, "skipped": 1, "kept": 0}
        temperature = shop.recipe.sampling.temperature
        metrics = sft_step(shop.learner, self.kept, self.sft, number, shop.recipe.seed, temperature)
        return metrics | {"kept": len(self.kept)}

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None: ...


def kept(episodes: Sequence[Episode], most: int) -> list[Episode]:
    """Of every task at most `most` of its successes, the shortest (in sampled tokens) first, equal ones once."""
    found = []
    for group in group_by_task(episodes):
        wins = [e for e in group.episodes if e.valid and e.success and e.tokens]
        distinct = {tuple(turn.completion_ids for turn in e.turns): e for e in reversed(wins)}
        found += sorted(distinct.values(), key=lambda e: (e.tokens, e.sample))[:most]
    return found
