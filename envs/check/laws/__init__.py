"""The laws, one module each: `CLAIM` says what is claimed, `check(subject, settings)` tries it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from gymrl.envs.check.laws import (
    close,
    endings,
    garbage,
    globals,
    growth,
    gymnasium,
    loop,
    players,
    rewards,
    speed,
    splits,
    worlds,
)
from gymrl.envs.check.records import Broke, Fault, Settings, Status, Subject, Verdict

Found = tuple[str, Sequence[Fault]]
"""What was measured, in words, and the faults."""


@dataclass(frozen=True)
class Law:
    """A law by name. `check` raises Broke where the environment cannot be played."""

    name: str
    claim: str
    check: Callable[[Subject, Settings], Coroutine[Any, Any, Found]]


def _law(module: Any) -> Law:
    return Law(module.__name__.rpartition(".")[2], module.CLAIM, module.check)


LAWS: dict[str, Law] = {
    law.name: law
    for law in map(
        _law,
        (globals, worlds, splits, players, rewards, garbage, endings, growth, close, loop, gymnasium, speed),
    )
}
"""Every law by name, in the order in which they are tried: `globals` first, as it wants to see the first use."""


def run_law(law: Law, subject: Subject, settings: Settings) -> Verdict:
    """Try one law in this process."""
    began = time.monotonic()
    measured: str
    faults: Sequence[Fault]
    try:
        measured, faults = asyncio.run(law.check(subject, settings))
    except Broke as broke:
        measured, faults = "the environment broke", (broke.fault,)
    status: Status = "fault" if faults else "holds"
    return Verdict(law.name, law.claim, status, measured, tuple(faults), time.monotonic() - began)
