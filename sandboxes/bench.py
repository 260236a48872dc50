"""How fast the sandboxes are: ratios to `subprocess python3 -I -S` on this machine, measured side by side."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gymrl.sandboxes import Sandbox, SandboxUnavailable, ShellSession, open_sandbox
from gymrl.sandboxes.container import DockerSandbox

PROGRAM = "print(1 + 1)"
BARE = [sys.executable, "-I", "-S", "-c", PROGRAM]
Call = Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Row:
    """ratio: to the subprocess, of the median latency (less is better) or of the executions/s (more is better)."""

    name: str
    measure: str
    ratio: float
    goal: str
    value: float
    """Milliseconds, or executions/s."""


async def _process(command: list[str]) -> None:
    process = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await process.communicate()
    if process.returncode or out != b"2\n":
        raise RuntimeError(f"{command[0]} failed: {err.decode()[-200:]}")


async def _latencies(calls: dict[str, Call], rounds: int) -> dict[str, float]:
    """Median seconds of each call, taken in turns so that all see the same machine; each is timed right after one more
    of its kind, so that none finds the processor's caches filled by another."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 3):
        for name, call in calls.items():
            if name.startswith("docker ") and number % 10:  # far slower than the rest: a tenth will do
                continue
            await call()
            start = time.perf_counter()
            await call()
            if number >= 3 or name.startswith("docker "):
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


async def _rates(calls: dict[str, list[Call]], span: float, turns: int = 3) -> dict[str, float]:
    """Median executions/s of each pair of calls, which are made over and over side by side."""
    rates: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, pair in calls.items():
            start, done = time.perf_counter(), 0

            async def work(call: Call, start: float = start) -> int:
                count = 0
                while time.perf_counter() - start < span:
                    await call()
                    count += 1
                return count

            done = sum(await asyncio.gather(*map(work, pair)))
            rates[name].append(done / (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in rates.items()}


def _peers(boxes: dict[str, Sandbox]) -> dict[str, list[str]]:
    """Other ways to run a program apart, where they are installed."""
    peers = {}
    docker, box = shutil.which("docker"), boxes.get("docker")
    if docker and isinstance(box, DockerSandbox):
        bare = ["python3", *BARE[1:]]
        peers["docker exec"] = [docker, "exec", box.containers()[0], *bare]
        peers["docker run"] = [docker, "run", "--rm", "--network=none", box.image, *bare]
    if bwrap := shutil.which("bwrap"):
        peers["bubblewrap"] = [bwrap, "--ro-bind", "/", "/", "--unshare-all", "--die-with-parent", *BARE]
    return peers


async def measure(rounds: int = 100, span: float = 1.0) -> list[Row]:
    """The table, for what can be built here. Takes about half a minute."""
    boxes: dict[str, Sandbox] = {}
    for name in ("namespaces", "confined", "docker"):
        try:
            boxes[name] = await asyncio.to_thread(open_sandbox, name, workers=2)
        except SandboxUnavailable as unavailable:
            print(f"left out: {unavailable}", file=sys.stderr)
    if not boxes:
        raise SandboxUnavailable("there is nothing to measure: no sandbox that isolates can be built here")
    first = next(iter(boxes.values()))
    plain = [await first.session(checkpoint=False) for _ in range(2)]
    kept = [await first.session() for _ in range(2)]
    shells = [shell for shell in (await _shell(boxes), await _shell(boxes)) if shell is not None]
    pairs: dict[str, list[Call]] = {"subprocess": [lambda: _process(BARE)] * 2}
    pairs |= {name: [partial(box.run, PROGRAM)] * 2 for name, box in boxes.items()}
    pairs["session turn"] = [partial(session.run, "1 + 1") for session in plain]
    pairs["checkpointed session turn"] = [partial(session.run, "1 + 1") for session in kept]
    if shells:
        pairs["shell turn"] = [partial(shell.exec, "echo 2") for shell in shells]
    calls = {name: pair[0] for name, pair in pairs.items()}
    if shells:
        calls["shell reset"] = shells[0].reset
    calls |= {name: partial(_process, command) for name, command in _peers(boxes).items()}
    try:
        seconds = await _latencies(calls, rounds)
        rates = await _rates(pairs, span)
        rows = [
            Row(
                name,
                "latency",
                seconds[name] / seconds["subprocess"],
                GOALS.get(name, ("", ""))[0],
                seconds[name] * 1e3,
            )
            for name in calls
        ]
        rows += [
            Row(
                name,
                "executions/s",
                rates[name] / rates["subprocess"],
                GOALS.get(name, ("", ""))[1],
                rates[name],
            )
            for name in pairs
        ]
        rows += await _preloaded(max(3, rounds // 10))
    finally:
        for session in (*plain, *kept):
            await session.close()
        for shell in shells:
            await shell.close()
        for box in boxes.values():
            await box.close()
    return rows


async def _shell(boxes: dict[str, Sandbox]) -> ShellSession | None:
    """A shell in a working tree, in the first sandbox that has shells."""
    for box in boxes.values():
        with contextlib.suppress(SandboxUnavailable):
            return await box.shell(Path(__file__).parent)
    return None


async def _preloaded(rounds: int) -> list[Row]:
    """sympy imported beforehand, against a fresh Python that imports it."""
    code = "import sympy; print(sympy.Integer(1) + 1)"
    try:
        box = await asyncio.to_thread(open_sandbox, workers=1, preload=("sympy",))
    except SandboxUnavailable as unavailable:
        print(f"left out: {unavailable}", file=sys.stderr)
        return []
    bare: Call = lambda: _process([sys.executable, "-c", code])  # noqa: E731
    try:
        seconds = await _latencies({"bare": bare, "preloaded": lambda: box.run(code)}, rounds)
    finally:
        await box.close()
    ratio = seconds["preloaded"] / seconds["bare"]
    return [
        Row(
            "sympy preloaded",
            "latency to subprocess + import sympy",
            ratio,
            "<= 0.1",
            seconds["preloaded"] * 1e3,
        )
    ]


GOALS = {
    "namespaces": ("<= 0.6", ">= 1.8"),
    "confined": ("<= 0.6", ">= 1.8"),
    "docker": ("<= 0.7", ">= 1.8"),
    "session turn": ("<= 0.04", ">= 40"),
    "checkpointed session turn": ("<= 0.3", ">= 3"),
    "shell turn": ("<= 0.05", ""),
}
"""Of the latency's ratio and of the rate's."""


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| what | measure | ratio to subprocess | goal | here |", "|---|---|---|---|---|"]
    for row in rows:
        unit = "/s" if row.measure == "executions/s" else " ms"
        lines.append(f"| {row.name} | {row.measure} | {row.ratio:.3g} | {row.goal} | {row.value:.4g}{unit} |")
    return "\n".join(lines)
