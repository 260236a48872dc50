"""Nothing grows: memory, descriptors, threads and processes over many resets, observations over an episode."""

from __future__ import annotations

import gc
import itertools
import os
import sys
import threading
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

from gymrl.envs.check import play
from gymrl.envs.check.records import Fault, Settings, Subject
from gymrl.envs.gym import GymEnv

CLAIM = "no growth over many resets"

WINDOWS = 4
BYTES, RESIDENT = 512, 16_384
"""Bytes a reset may leave behind, as Python counts its own objects and as the system counts the process."""
GAMES = 6
"""Tasks that the random player plays in search of observations that grow: a game may end too early to show it."""
SLACK = 32
"""Resets of a window whose bytes are not told from those of caches, which hold now longer and now shorter things."""


async def check(subject: Subject, settings: Settings) -> tuple[str, Sequence[Fault]]:
    env = subject.make()
    faults = await _observations(env, settings)
    began = time.monotonic()
    await _resets(
        env, range(1000, 1004)
    )  # tasks that nobody has seen, as a world that keeps them on disk is slow once
    each = (time.monotonic() - began) / 4
    tasks = settings.resets if each < 0.05 else 8
    await _resets(env, range(min(tasks, 8)))
    began = time.monotonic()
    await _resets(env, range(min(tasks, 8)))
    each = (time.monotonic() - began) / 8
    many = int(min(settings.resets, max(24, settings.seconds * 3 / max(each, 1e-6))))
    window = many // WINDOWS
    await _resets(env, [number % tasks for number in range(window)])  # caches fill, pools start
    tracemalloc.start()
    try:
        rows = [level()]
        for number in range(WINDOWS):
            await _resets(env, [(number * window + count) % tasks for count in range(window)])
            rows.append(level())
    finally:
        tracemalloc.stop()
    await play.closed(env)
    grown = {
        name: min(after[name] - before[name] for before, after in itertools.pairwise(rows)) / window
        for name in rows[0]
    }
    few = max(1.0, SLACK / window)
    limits = {"Python's memory": BYTES * few, "resident memory": RESIDENT * few}
    for name, growth in grown.items():
        if growth > limits.get(name, 0):
            unit = " bytes" if name in limits else ""
            faults.append(Fault(f"{name} grows by {growth:.4g}{unit} with every reset", env.split, 0))
    memory = max(0.0, grown["Python's memory"])
    return f"{many} resets of {tasks} tasks; Python's memory grew by {memory:.0f} bytes a reset", faults


async def _resets(env: GymEnv, indices: Sequence[int]) -> None:
    """Begin these tasks, and take two turns of each."""
    size = env.world.sizes[env.split]
    for index in indices:
        await play.play(env, env.task_spec(index % size), play.at_random, limit=2)


async def _observations(env: GymEnv, settings: Settings) -> list[Fault]:
    """Whether every observation repeats the one before and adds to it, as one that holds the whole history does."""
    tried = [
        (0, play.null),
        *((index % env.world.sizes[env.split], play.at_random) for index in range(GAMES)),
    ]
    for index, choose in play.within(tried, settings.seconds / 4, 2):
        task = env.task_spec(index)
        done = await play.play(env, task, choose, limit=12)
        texts = [observation.text for observation in done.observations[1:]]
        longer = [
            len(before) > 0 and len(after) > len(before) and before in after
            for before, after in itertools.pairwise(texts)
        ]
        if len(longer) >= 3 and all(longer):
            sizes = f"{len(texts[0])} characters, then {len(texts[-1])}"
            what = f"each observation repeats the last one and adds to it ({sizes}): send what is new"
            return [Fault(what, task.split, task.index)]
    task = env.task_spec(0)
    first = (await play.reset(env, task)).text
    for index in play.within(range(1, 11), settings.seconds / 4, 4):
        await play.play(env, env.task_spec(index % env.world.sizes[env.split]), play.at_random, limit=4)
    again = (await play.reset(env, task)).text
    if len(again) > len(first):
        what = f"the first observation has {len(first)} characters, and {len(again)} after ten other episodes"
        return [Fault(what, task.split, task.index)]
    return []


def level() -> dict[str, int]:
    """What this process holds now, after a collection; what the system does not tell is left out."""
    gc.collect()
    found = {"the number of threads": threading.active_count()}
    if tracemalloc.is_tracing():
        found["Python's memory"] = tracemalloc.get_traced_memory()[0]
    if sys.platform == "linux":
        found["the number of open descriptors"] = len(os.listdir("/proc/self/fd"))
        found["the number of processes"] = len(children())
        found["resident memory"] = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf(
            "SC_PAGE_SIZE"
        )
    return found


def children() -> list[int]:
    """The processes that this one has started and not collected (Linux)."""
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        try:
            found += map(int, (task / "children").read_text().split())
        except OSError:  # the thread has ended, or the kernel does not say
            continue
    return found
