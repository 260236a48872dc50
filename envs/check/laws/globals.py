"""No global random state is touched, from the import on."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from gymrl.envs.check import play
from gymrl.envs.check.records import Fault, Settings, Subject

CLAIM = "no global random state touched"

BEFORE_IMPORT: list[dict[str, Any]] = []
"""The state before the environment was imported, where the process knows it."""


def state() -> dict[str, Any]:
    """The global random state of Python, numpy and, where it is loaded, torch."""
    numpy: Any = np.random.get_state(legacy=False)
    keys = numpy["state"]["key"].tobytes()
    found: dict[str, Any] = {"random": random.getstate()}
    found["numpy.random"] = (keys, numpy["state"]["pos"], numpy["gauss"])
    if "torch" in sys.modules:
        found["torch"] = sys.modules["torch"].get_rng_state().numpy().tobytes()
    return found


async def check(subject: Subject, settings: Settings) -> tuple[str, Sequence[Fault]]:
    faults: list[Fault] = []
    if BEFORE_IMPORT:
        before = BEFORE_IMPORT.pop()
        now = state()
        for name in sorted(key for key in before if before[key] != now[key]):
            faults.append(Fault(f"importing or making the environment changes {name}'s global generator"))
    env, episodes = subject.make(), 0
    for index in play.within(range(min(8, env.world.sizes["train"])), settings.seconds, 3):
        for choose in play.PLAYERS.values():
            task = env.task_spec(index)
            before = state()
            with contextlib.suppress(play.NoOracle):  # the task was begun all the same
                await play.play(env, task, choose)
                episodes += 1
            now = state()
            changed = sorted(key for key in before if before[key] != now[key])
            if changed:
                what = f"an episode of the {choose.__name__} player changes {' and '.join(changed)}'s global generator"
                faults.append(Fault(what, task.split, task.index))
                await play.closed(env)
                return f"{episodes} episodes", faults
    before = state()
    await play.closed(env)
    if before != state():
        faults.append(Fault("close() changes the global random state"))
    return f"{episodes} episodes", faults
