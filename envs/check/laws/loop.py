"""Nobody blocks the event loop: played as it says it runs, an environment leaves the loop to others."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Sequence
from typing import TypeVar

from gymrl.envs.check import play
from gymrl.envs.check.records import Broke, Fault, Settings, Subject
from gymrl.envs.records import Action, stable_hash
from gymrl.envs.workers import EnvPool

CLAIM = "the event loop is not blocked"

T = TypeVar("T")


async def check(subject: Subject, settings: Settings) -> tuple[str, Sequence[Fault]]:
    pool = EnvPool(subject.env_id, dict(subject.params), workers=1)
    gaps: dict[str, list[float]] = {"reset": [], "step": []}
    try:
        handle = await pool.open()
        size = pool.template.world.sizes["train"]
        for index in play.within(range(16), settings.seconds, 4):
            task = pool.task("train", index % size)
            play.leave_crumb(task)
            try:
                _, gap = await _watched(handle.reset(task))
                if index:  # the first one may load what all of them need
                    gaps["reset"].append(gap)
                for turn in range(4):
                    seed = stable_hash("random", task.seed, turn)
                    action = await handle.random_action(seed) if turn != 1 else Action("")
                    result, gap = await _watched(handle.step(action))
                    if index:
                        gaps["step"].append(gap)
                    if result.terminated or result.truncated:
                        break
            except Exception as error:
                what = f"in a pool it raised {type(error).__name__}: {error}"[:300]
                raise Broke(Fault(what, task.split, task.index)) from error
    finally:
        await pool.aclose()
    faults = []
    for name, seen in gaps.items():
        if statistics.median(seen) > settings.loop_seconds:
            mend = "let it wait without blocking, or set runs = 'process' (or 'thread', if it only waits)"
            held = f"{statistics.median(seen):.3f} s"
            what = f"{name}() holds up the event loop for {held} as runs = {pool.runs!r}: {mend}"
            faults.append(Fault(what, "train", 1))
    shown = ", ".join(f"{name} {1e3 * statistics.median(seen):.1f} ms" for name, seen in gaps.items())
    return f"as runs = {pool.runs!r} the loop was held up for: {shown} (medians)", faults


async def _watched(call: Awaitable[T]) -> tuple[T, float]:
    """The call's result, and the longest time (s) for which another task on the loop was not served meanwhile."""
    longest, last = 0.0, time.perf_counter()

    async def beat() -> None:
        nonlocal longest, last
        while True:
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now

    beating = asyncio.create_task(beat())
    try:
        await asyncio.sleep(0)
        last = time.perf_counter()
        result = await call
        longest = max(longest, time.perf_counter() - last)
    finally:
        beating.cancel()
    return result, longest
