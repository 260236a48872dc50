"""Curricula: which stage of difficulty a step of RL is played at, and what that changes.

`horizon` (ScalingInter-RL) bounds the turns of an episode, `difficulty` (R1-Code-Interpreter) the tasks that are
played, `staged` (Environment Tuning) sets environment parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from gymrl.agents.records import Episode
from gymrl.rl.recipes.models import CurriculumSection

QUARTERS = 4


class Curriculum:
    """Where a run stands in its curriculum. Advancing by step is a pure function of the step; advancing on a plateau
    has a state, which checkpoints hold."""

    def __init__(self, settings: CurriculumSection) -> None:
        self.settings = settings
        self.last = (QUARTERS if settings.kind == "difficulty" else len(settings.stages)) - 1
        self.reached = 0
        self.before: float | None = None
        self.seen: list[float] = []
        self.order: list[int] = []
        """Training tasks, those with the highest potential first (difficulty)."""

    def stage(self, step: int) -> int:
        """The stage of a step: min(step // every, last), or the one reached on plateaus."""
        if self.settings.advance == "step":
            return min(step // self.settings.every, self.last)
        return self.reached

    def saw(self, success: float) -> None:
        """Note the success of a step. On a plateau (the mean of `every` steps is not `gain` above that of the `every`
        before them) the next stage begins."""
        if self.settings.advance != "plateau" or self.reached == self.last:
            return
        self.seen.append(success)
        if len(self.seen) < self.settings.every:
            return
        now, self.seen = fmean(self.seen), []
        self.looked(now)

    def looks(self, step: int) -> bool:
        """Whether held-out tasks are played after a step to see if success still rises."""
        s = self.settings
        due = s.advance == "plateau" and self.reached < self.last and (step + 1) % s.every == 0
        return due and s.validate_on > 0

    def looked(self, now: float) -> None:
        """Note the success of a look: where it is not `gain` above that of the look before, the next stage begins."""
        if self.before is not None and now - self.before < self.settings.gain:
            self.reached, self.before = self.reached + 1, None
        else:
            self.before = now

    def max_turns(self, step: int) -> int | None:
        """The horizon of a step; None where this curriculum sets none."""
        if self.settings.kind != "horizon":
            return None
        found = self.settings.stages[self.stage(step)]
        return found if isinstance(found, int) else None

    def params(self, step: int) -> dict[str, Any]:
        """The environment parameters of a step, over the recipe's."""
        found = self.settings.stages[self.stage(step)] if self.settings.kind == "staged" else {}
        return dict(found) if isinstance(found, dict) else {}

    def tasks(self, step: int) -> list[int] | None:
        """The training tasks that are played, by index; None where all are."""
        if self.settings.kind != "difficulty":
            return None
        share = (self.stage(step) + 1) / QUARTERS
        return self.order[: max(1, round(len(self.order) * share))]

    def state(self) -> dict[str, Any]:
        return {
            "reached": self.reached,
            "before": self.before,
            "seen": list(self.seen),
            "order": list(self.order),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.reached, self.before = state["reached"], state["before"]
        self.seen, self.order = list(state["seen"]), list(state["order"])


def potential(successes: int, samples: int) -> float:
    """4p(1 - p) of the success rate p: 1 where half of the samples succeed, 0 where all or none do."""
    p = successes / samples if samples else 0.0
    return 4 * p * (1 - p)


def by_potential(episodes: Sequence[Episode]) -> list[int]:
    """Indices of the episodes' tasks, those of the highest potential first, equal ones by index. Invalid episodes are
    no samples."""
    counts: dict[int, tuple[int, int]] = {}
    for episode in episodes:
        won, many = counts.get(episode.task.index, (0, 0))
        counts[episode.task.index] = (won + (episode.valid and episode.success), many + episode.valid)
    return sorted(counts, key=lambda index: (-potential(*counts[index]), index))
