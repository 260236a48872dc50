"""`close` frees all that was opened: descriptors, threads, processes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from gymrl.envs.check import play
from gymrl.envs.check.laws.growth import level
from gymrl.envs.check.records import Broke, Fault, Settings, Subject
from gymrl.envs.gym import GymEnv
from gymrl.envs.workers import EnvPool

CLAIM = "close frees all"

COUNTED = ("the number of threads", "the number of open descriptors", "the number of processes")
CYCLES = 8
PATIENCE = 3.0
"""Seconds that a thread or process may take to end after close."""


async def check(subject: Subject, settings: Settings) -> tuple[str, Sequence[Fault]]:
    for number in range(2):  # what all environments of a process share is opened once and stays
        await _cycle(subject, number)
    cycles, left = await _cycles(subject, settings)
    if left:  # also what is shared may have been opened only now; what is not freed is there again after the next ones
        cycles, again = await _cycles(subject, settings)
        left = {name: more for name, more in again.items() if name in left}
    faults = [
        Fault(
            f"{name} is {more} higher after {cycles} environments were opened, played and closed", "train", 0
        )
        for name, more in left.items()
    ]
    pool = EnvPool(subject.env_id, dict(subject.params), workers=1)
    before = level()
    handle = await pool.open()
    await handle.reset(pool.task("train", 0))
    await handle.close()
    await pool.aclose()
    faults += [
        Fault(f"{name} is {more} higher after a pool of it was closed", "train", 0)
        for name, more in (await _left(before)).items()
        if more > (name == "the number of threads")  # the loop's own helper thread
    ]
    return f"{cycles} environments and a pool opened, played and closed", faults


async def _cycles(subject: Subject, settings: Settings) -> tuple[int, dict[str, int]]:
    """How many were made, and by how much each count stays above what it was."""
    before = level()
    cycles = 0
    for number in play.within(range(CYCLES), settings.seconds, 3):
        await _cycle(subject, number)
        cycles += 1
    return cycles, await _left(before)


async def _cycle(subject: Subject, number: int) -> None:
    """Open two, play one of them half-way and close both."""
    env, unused = subject.make(), subject.make()
    try:
        await play.play(env, env.task_spec(number % env.world.sizes["train"]), play.at_random, limit=1)
    finally:
        await _close(env)
        await _close(unused)


async def _close(env: GymEnv) -> None:
    try:
        await env.aclose()
    except Exception as error:
        raise Broke(Fault(f"close() raised {type(error).__name__}: {error}")) from error


async def _left(before: dict[str, int]) -> dict[str, int]:
    """By how much each count stays above what it was."""
    patience = time.monotonic() + PATIENCE
    while True:
        now = level()
        more = {
            name: now[name] - before[name] for name in COUNTED if name in now and now[name] > before[name]
        }
        if not more or time.monotonic() > patience:
            return more
        await asyncio.sleep(0.1)
