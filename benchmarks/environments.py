"""Each family of environments beside the package it is made of:
`python benchmarks/environments.py [FAMILY ...] [--quick]`.

One table: steps/s through gymrl (a pool and a handle, one episode at a time) over the package used bare with the same
actions, in one process, taking turns; seconds from the start of a fresh process to the first observation; memory of an
open episode, of every process it has; and steps/s, resets included, of many episodes at once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bare

from gymrl.envs import Action
from gymrl.envs.records import TaskSpec
from gymrl.envs.registry import MissingExtra, entry
from gymrl.envs.workers import EnvHandle, EnvPool

CLICKS = tuple(Action(f"click({x}, {y})") for x, y in ((20, 20), (60, 25), (100, 30), (140, 35), (80, 10)))
"""On the head of a MiniWoB++ page, where the task is written: they never end an episode."""


@dataclass(frozen=True)
class Family:
    """What is measured. `episodes` are recorded, `at_once` are open together, `open` when memory is weighed."""

    env_id: str
    bare: Callable[[], bare.Bare]
    params: dict[str, Any] = field(default_factory=dict)
    actions: tuple[Action, ...] | None = None
    """Instead of the oracle's."""
    episodes: int = 64
    at_once: tuple[int, ...] = (1, 8, 64, 512)
    open: int = 64


FAMILIES = {
    "code_interpreter": Family("gymrl/CodeInterpreter-v0", bare.Sandbox, open=512),
    "math_tools": Family("gymrl/MathTools-v0", bare.Maths, open=512),
    "tool_calling": Family("gymrl/ToolCalling-v0", bare.Bfcl, open=256),
    "mcp": Family("gymrl/Mcp-v0", bare.Mcp, open=16),
    "textworld": Family("gymrl/TextWorld-v0", bare.TextWorld, episodes=32, open=64),
    "miniwob": Family(
        "gymrl/MiniWoB-v0", bare.Pages, {"tasks": "click-checkboxes"}, CLICKS, 8, (1, 8, 64), 16
    ),
    "gui_navigation": Family("gymrl/GuiNavigation-v0", bare.Gui, at_once=(1, 8, 64, 512, 4096), open=512),
    "gymnasium": Family("gymrl/Gymnasium-v0", bare.Lakes, at_once=(1, 8, 64, 512, 4096), open=256),
}


@dataclass(frozen=True)
class Recorded:
    """One episode: its task, what is said, and what the package alone needs for it."""

    task: TaskSpec
    actions: tuple[Action, ...]
    data: Any


async def record(family: Family, pool: EnvPool, count: int, player: bare.Bare | None) -> list[Recorded]:
    env, found = pool.template, []
    for index in range(count):
        task = pool.task("train", index)
        await env.areset(task)
        data = player.data(env.world) if player else None
        said: list[Action] = []
        ended = False
        while not ended and (family.actions is None or len(said) < len(family.actions)):
            said.append(family.actions[len(said)] if family.actions else await env.aoracle())
            result = await env.astep(said[-1])
            ended = result.terminated or result.truncated
        found.append(Recorded(task, tuple(said), data))
    return found


async def through(handle: EnvHandle, episode: Recorded) -> float:
    """Seconds of the steps of an episode through gymrl."""
    await handle.reset(episode.task)
    began = time.perf_counter()
    for action in episode.actions:
        await handle.step(action)
    return time.perf_counter() - began


async def alone(player: bare.Bare, episode: Recorded) -> float:
    """Seconds of the same steps of the package alone."""
    await player.reset(episode.data)
    began = time.perf_counter()
    for action in episode.actions:
        await player.step(action)
    return time.perf_counter() - began


async def speeds(family: Family, quick: bool) -> dict[str, Any]:
    """Ratios of rounds in which each episode is played on both sides, and steps/s of many episodes at once."""
    pool, player = EnvPool(family.env_id, family.params), family.bare()
    try:
        episodes = await record(family, pool, min(8, family.episodes) if quick else family.episodes, player)
        steps = sum(len(episode.actions) for episode in episodes)
        handle = await pool.open()
        one, other = await through(handle, episodes[0]), await alone(player, episodes[0])  # warm
        began, ratios, bares = time.perf_counter(), [], []
        while len(ratios) < (2 if quick else 5) or (time.perf_counter() - began < 5 and not quick):
            ours = bares_ = 0.0
            for episode in episodes:
                one, other = await through(handle, episode), await alone(player, episode)
                ours, bares_ = ours + one, bares_ + other
            ratios.append(bares_ / ours)
            bares.append(bares_ / steps)
        await pool.release(handle)
        speed, found = 0.0, {}
        for many in family.at_once[: 2 if quick else None]:
            speed = found[many] = await together(pool, episodes, many, speed, 0.3 if quick else 2.0)
        return {
            "ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios),
            "bare_ms": 1e3 * statistics.median(bares), "at_once": found,
        }  # fmt: skip
    finally:
        await player.close()
        await pool.aclose()


async def together(pool: EnvPool, episodes: list[Recorded], many: int, speed: float, seconds: float) -> float:
    """Steps/s of `many` open episodes, each followed by others for about `seconds`, resets included."""
    handles = await asyncio.gather(*(pool.open() for _ in range(many)))
    each = sum(len(episode.actions) for episode in episodes) / len(episodes)
    rounds = max(1, round(speed * seconds / each / many)) if speed else len(episodes)

    async def play(number: int) -> int:
        steps = 0
        for count in range(rounds):
            episode = episodes[(number + count) % len(episodes)]
            await through(handles[number], episode)
            steps += len(episode.actions)
        return steps

    try:
        await asyncio.gather(
            *(handle.reset(episodes[n % len(episodes)].task) for n, handle in enumerate(handles))
        )
        began = time.perf_counter()
        done = await asyncio.gather(*map(play, range(many)))
        return sum(done) / (time.perf_counter() - began)
    finally:
        await asyncio.gather(*map(pool.release, handles))


async def memory(family: Family, quick: bool) -> float:
    """MB of an open episode that has had one turn, beyond what the first eight took."""
    pool = EnvPool(family.env_id, family.params)
    count = 8 if quick else family.open

    async def begin(index: int) -> None:
        handle = await pool.open()
        await handle.reset(pool.task("train", index % family.episodes))
        await handle.step(family.actions[0] if family.actions else await handle.oracle())

    try:
        for index in range(8):
            await begin(index)
        before = resident()
        for index in range(8, 8 + count):
            await begin(index)
        return (resident() - before) / count / 2**20
    finally:
        await pool.aclose()


def resident() -> int:
    """Bytes of memory of this process and its descendants; a page that several share counts once."""
    total, waiting = 0, [os.getpid()]
    while waiting:
        folder = Path(f"/proc/{waiting.pop()}")
        try:
            for line in (folder / "smaps_rollup").read_text().splitlines():
                total += 1024 * int(line.split()[1]) if line.startswith("Pss:") else 0
            for task in (folder / "task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        except OSError:  # it has ended
            continue
    return total


async def start(family: Family) -> None:
    """One observation, and a line that says so."""
    pool = EnvPool(family.env_id, family.params)
    handle = await pool.open()
    await handle.reset(pool.task("train", 0))
    print("ready", flush=True)
    await pool.aclose()


# -- the processes of a measurement ------------------------------------------------------------------------------


def child(part: str, name: str, quick: bool) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, name, "--part", part, *(["--quick"] if quick else [])]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def told(part: str, name: str, quick: bool) -> Any:
    """What a process of its own says. Raises RuntimeError where it fails."""
    with child(part, name, quick) as process:
        assert process.stdout
        text = process.stdout.read()
    if process.returncode:
        raise RuntimeError(f"{name}: the measurement of {part} failed, see above")
    return json.loads(text.splitlines()[-1])


def start_up(name: str, quick: bool) -> float:
    """Seconds until a fresh process has its first observation; the median of three."""
    found = []
    for _ in range(1 if quick else 3):
        began = time.perf_counter()
        with child("start", name, quick) as process:
            assert process.stdout
            for line in process.stdout:
                if line == "ready\n":
                    found.append(time.perf_counter() - began)
        if process.returncode:
            raise RuntimeError(f"{name}: the start failed, see above")
    return statistics.median(found)


def measure(name: str, quick: bool) -> dict[str, Any]:
    found: dict[str, Any] = told("speeds", name, quick)
    return {
        "family": name, **found, "start_up": start_up(name, quick), "memory": told("memory", name, quick)
    }  # fmt: skip


def goal(found: dict[str, Any]) -> float:
    return 0.9 if found["bare_ms"] > 1 else 0.5


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    counts = sorted({int(many) for row in rows for many in row["at_once"]})
    head = ["family", "bare step, ms", "gymrl / bare", "goal", "start-up, s", "MB an episode"]
    lines = [[*head, *(f"{many} at once" for many in counts)]]
    lines.append(["---"] * len(lines[0]))
    for row in rows:
        shown = f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
        if row["ratio"] < goal(row):
            shown = f"**{shown}**"
        speed = [row["at_once"].get(str(many)) for many in counts]
        lines.append(
            [row["family"], f"{row['bare_ms']:.3f}", shown, f"{goal(row)}", f"{row['start_up']:.1f}",
             f"{row['memory']:.2f}", *("-" if s is None else f"{s:,.0f}" for s in speed)]
        )  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "families", nargs="*", metavar="FAMILY", help=f"of {', '.join(FAMILIES)}; all by default"
    )
    parser.add_argument("--quick", action="store_true", help="a few episodes: whether it runs, not how fast")
    parser.add_argument("--part", choices=("speeds", "memory", "start"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if unknown := set(given.families) - set(FAMILIES):
        parser.error(f"there is no family {min(unknown)}: take {', '.join(FAMILIES)}")
    if given.part:
        family = FAMILIES[given.families[0]]
        found = asyncio.run(
            start(family) if given.part == "start" else
            (speeds if given.part == "speeds" else memory)(family, given.quick)
        )  # fmt: skip
        print(json.dumps(found))
        return
    rows = []
    for name in given.families or FAMILIES:
        try:
            entry(FAMILIES[name].env_id).cls()
        except MissingExtra as missing:
            print(f"{name} is left out: {missing}", flush=True)
            continue
        print(f"measuring {name} ...", flush=True)
        rows.append(measure(name, given.quick))
    print(table(rows))


if __name__ == "__main__":
    main()
