"""How fast it is, and what one environment weighs; only what no trainer could wait for is a fault."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence

from gymrl.envs.check import play
from gymrl.envs.check.laws.growth import level
from gymrl.envs.check.records import Fault, Settings, Subject

CLAIM = "it is fast enough to play"

ENVS = 16


async def check(subject: Subject, settings: Settings) -> tuple[str, Sequence[Fault]]:
    began = time.perf_counter()
    env = subject.make()
    size = env.world.sizes["train"]
    await play.reset(env, env.task_spec(0))
    start = time.perf_counter() - began
    resets, steps = [], []
    for number in play.within(range(300), settings.seconds / 4, 4):
        began = time.perf_counter()
        await play.reset(env, env.task_spec(number % min(size, 50)))
        resets.append(time.perf_counter() - began)
        for turn in range(8):
            action = await play.at_random(env, turn)
            began = time.perf_counter()
            result = await play.step(env, action)
            steps.append(time.perf_counter() - began)
            if result.terminated or result.truncated:
                break
    await play.closed(env)
    reset, step = statistics.median(resets), statistics.median(steps)
    faults = [
        Fault(f"{name}() takes {seconds:.1f} s, the limit is {settings.step_seconds:g} s", "train", 0)
        for name, seconds in (("reset", reset), ("step", step))
        if seconds > settings.step_seconds
    ]
    shown = f"start {start:.2f} s, reset {1e3 * reset:.2f} ms, step {1e3 * step:.3f} ms (medians)"
    if sys.platform == "linux":
        shown += f", {await _weight(subject) / 1024:.0f} KiB an environment"
    return shown, faults


async def _weight(subject: Subject) -> float:
    """Resident bytes of one more environment with an episode under way."""
    envs = []
    before = level()["resident memory"]
    for number in range(ENVS):
        env = subject.make()
        envs.append(env)
        await play.reset(env, env.task_spec(number % min(8, env.world.sizes["train"])))
    weight = (level()["resident memory"] - before) / ENVS
    for env in envs:
        await play.closed(env)
    return max(0.0, weight)
