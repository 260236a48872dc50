"""Rejection-sampling fine-tuning: sample, keep the successes (NAT: and failures, told apart by notes), supervised steps
on them, again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gymrl.agents.records import Episode
from gymrl.rl.batches import TokenSequence, sequences_of
from gymrl.rl.groups import group_by_task
from gymrl.rl.pairs import usable
from gymrl.rl.recipes.models import SftSchedule, SftSection
from gymrl.rl.stages.rounds import RoundsStage
from gymrl.rl.supervised.notes import noted
from gymrl.rl.trainers.sft import sft_step
from gymrl.rl.workshop import Workshop


class RftStage(RoundsStage):
    title, name = "rejection sampling", "rft"

    def __init__(self, workshop: Workshop) -> None:
        r = workshop.recipe.rft
        assert r is not None  # the recipe fills in the table of a stage that it names
        super().__init__(workshop, r.rounds, r.steps, r.tasks, r.samples)
        self.keep, self.notes = r.keep, r.notes
        flat = SftSchedule(name="constant", warmup=0)
        self.sft = SftSection(steps=r.steps * r.rounds, batch=r.batch, lr=r.lr, schedule=flat)
        self.kept: list[list[TokenSequence]] = []

    def begin(self, episodes: Sequence[Episode], fresh: bool) -> None:
        chosen = kept(episodes, self.keep)
        if self.notes is not None:
            renderer, lost = self.workshop.renderer, kept(episodes, self.notes.keep, failures=True)
            # The successes were sampled with their note; episodes that are read back, or were not, get it here.
            chosen = [noted(e, self.notes.success, renderer) for e in chosen]
            chosen += [noted(e, self.notes.failure, renderer) for e in lost]
        self.kept = [sequences_of(episode) for episode in chosen]

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


def kept(episodes: Sequence[Episode], most: int, failures: bool = False) -> list[Episode]:
    """Of every task at most `most` of its successes, the shortest (in sampled tokens) first, equal ones once; or of its
    usable failures (no void turn, none cut short)."""
    found = []
    for group in group_by_task(episodes):
        wins = [e for e in group.episodes if e.valid and e.success and e.tokens]
        if failures:
            wins = [e for e in group.episodes if usable(e, None) and not e.success]
        distinct = {tuple(turn.completion_ids for turn in e.turns): e for e in reversed(wins)}
        found += sorted(distinct.values(), key=lambda e: (e.tokens, e.sample))[:most]
    return found
