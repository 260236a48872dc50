"""The frozen records of a check: what is checked, how thoroughly, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gymrl.envs.environment import Environment
from gymrl.envs.gym import GymEnv
from gymrl.envs.intervals import wilson
from gymrl.envs.registry import entry, make

Status = Literal["holds", "fault", "unchecked"]


@dataclass(frozen=True)
class Settings:
    """How thorough a check is.

    `seconds` is what one measurement of a law may take before it is content with less than was asked for (a few
    tasks are always played). `tasks` are played by each player, `split_tasks` drawn from each split. `resets` are
    watched for growth, `garbage` answers given to each task family. `random_limit` is the share of tasks that the
    random player may win; `loop_seconds` how long the event loop may be held up by one call. `stall_seconds`: a
    check that comes no further for so long is ended and is a fault.
    """

    seconds: float = 20.0
    tasks: int = 64
    split_tasks: int = 2000
    resets: int = 200
    garbage: int = 1000
    random_limit: float = 0.5
    loop_seconds: float = 0.05
    step_seconds: float = 10.0
    stall_seconds: float = 300.0

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if getattr(self, name) <= 0:
                raise ValueError(f"a check's {name} is more than 0, not {getattr(self, name)}")


@dataclass(frozen=True)
class Fault:
    """One way in which a law is broken. `split` and `index` name the task that shows it, `action` what was said."""

    what: str
    split: str | None = None
    index: int | None = None
    action: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """The task in words, such as `test 17`; '' where the fault is not one task's."""
        return "" if self.split is None else f"{self.split} {self.index}"


@dataclass(frozen=True)
class Verdict:
    """What came of one law: `measured` says what was seen, also where the law holds."""

    law: str
    claim: str
    status: Status
    measured: str
    faults: tuple[Fault, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class Report:
    """The verdicts on one environment."""

    env_id: str
    params: Mapping[str, Any]
    verdicts: tuple[Verdict, ...]

    @property
    def sound(self) -> bool:
        """Whether no law is broken."""
        return not any(verdict.status == "fault" for verdict in self.verdicts)

    def verdict(self, law: str) -> Verdict:
        return next(verdict for verdict in self.verdicts if verdict.law == law)


@dataclass(frozen=True)
class Subject:
    """The environment that is checked: its id and parameters."""

    env_id: str
    params: Mapping[str, Any] = field(default_factory=dict)

    def make(self, split: str = "train", **over: Any) -> GymEnv:
        """A fresh environment, with the parameters `over` the subject's own."""
        return make(self.env_id, split=split, **{**self.params, **over})

    def make_held_out(self, split: str) -> GymEnv:
        """One in that split, or in train where that one has no task."""
        env = self.make(split)
        return env if env.world.sizes[split] else self.make()

    def cls(self) -> type[Environment]:
        return entry(self.env_id).cls()


class Broke(Exception):
    """The environment raised, or answered what the contract does not allow."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.what)
        self.fault = fault


def rate(wins: int, total: int) -> str:
    """A share with its 95 % interval, in words."""
    low, high = wilson(wins, total)
    return f"{wins} of {total} ({low:.2f} to {high:.2f})"
