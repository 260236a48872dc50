"""Between the turns of a session nothing of it runs, and quick turns go past the worker with every limit in force."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from gymrl.sandboxes import Limits, Sandbox, SandboxFault, SandboxUnavailable, open_sandbox

PAUSE = 1.5
COUNT = """
import threading, time
ticks = 0
def count():
    global ticks
    while True:
        ticks += 1
        time.sleep(0.002)
threading.Thread(target=count, daemon=True).start()
"""
FORGED_END = """
import os, struct
os.write(3, struct.pack("<ciQ", b"d", 0, 0))
ticks = 0
while True:
    ticks += 1
    open("ticks", "w").write(str(ticks))
"""
HOOK = """
import os, time
def hold():
    for number in range(6):
        if os.fork() == 0:
            data = bytearray(b"x" * (100 << 20))
            time.sleep(0.5)
            open(str(number), "w").close()
            time.sleep(60)
    time.sleep(3)
os.register_at_fork(after_in_child=lambda: hold() if os.getppid() == first else None)
first = os.getpid()
"""


@pytest.fixture(params=["namespaces", "confined", "none"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def with_box(backend: str, work: Callable[[Sandbox], Awaitable[None]]) -> None:
    try:
        sandbox = open_sandbox(backend, workers=1)
    except SandboxUnavailable as unavailable:
        pytest.skip(str(unavailable))

    async def main() -> None:
        try:
            await work(sandbox)
        finally:
            await sandbox.close()

    asyncio.run(main())


def test_threads_stand_still_between_turns(backend: str) -> None:
    async def work(box: Sandbox) -> None:
        session = await box.session(checkpoint=False)
        await session.run(COUNT)
        await asyncio.sleep(PAUSE)
        seen = int((await session.run("ticks")).value)
        assert seen < PAUSE / 0.002 / 3  # and not for the whole pause
        result = await session.run("time.sleep(0.3); ticks")
        assert int(result.value) > seen  # it goes on with the next turn
        await session.close()

    with_box(backend, work)


def test_a_turn_that_says_it_is_over_and_runs_on_is_stopped(backend: str) -> None:
    async def work(box: Sandbox) -> None:
        session = await box.session(checkpoint=False)
        before = await session.snapshot()
        assert (await session.run(FORGED_END)).ok
        await asyncio.sleep(PAUSE)
        late = await session.run("ticks", timeout=0.5)
        assert late.killed_by == "timeout"
        await session.restore(before)
        assert (await session.run("1 + 1")).value == "2"
        await session.close()

    with_box(backend, work)


def test_limits_hold_while_the_caller_is_held_up(backend: str) -> None:
    async def work(box: Sandbox) -> None:
        session = await box.session(checkpoint=False)
        for _ in range(20):
            assert (await session.run("1 + 1")).value == "2"
        call = asyncio.ensure_future(session.run("while True: open('alive', 'w').close()", timeout=0.3))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        time.sleep(PAUSE)  # noqa: ASYNC251  (nobody listens meanwhile)
        result = await call
        assert result.killed_by == "timeout" and "variables are lost" in result.stderr
        assert (await session.run("2 + 2")).value == "4"
        await session.close()

    with_box(backend, work)


def test_what_is_called_at_a_fork_has_limits(backend: str) -> None:
    """A program has the checkpoint's fork start processes that take more than they should."""

    async def work(box: Sandbox) -> None:
        session = await box.session()
        limits = Limits(memory=256 * 2**20)
        await session.run(HOOK, limits=limits)
        results = [await session.run("1 + 1", limits=limits) for _ in range(3)]
        assert any(result.value == "2" for result in results)
        assert (await session.run("import os; os.listdir('.')", limits=limits)).value == "[]"
        await session.close()

    with_box(backend, work)


def test_what_a_quick_turn_starts_ends_with_it(backend: str) -> None:
    async def work(box: Sandbox) -> None:
        session = await box.session(checkpoint=False)
        for _ in range(5):
            await session.run("1 + 1")
        started = await session.run("import subprocess; p = subprocess.Popen(['sleep', '60'])")
        if box.backend == "confined":
            assert "PermissionError" in started.stderr
        else:
            assert (await session.run("p.wait(5)")).value == "-9"
        await session.close()

    with_box(backend, work)


def test_quick_turns_of_many_kinds(backend: str) -> None:
    """Values, output, exceptions, exits, long values, from one event loop and another, over pauses and snapshots."""

    async def work(box: Sandbox) -> None:
        session = await box.session(checkpoint=False)
        for number in range(30):
            assert (await session.run(f"x = {number}")).ok
            assert (await session.run("x * 2")).value == str(2 * number)
            assert (await session.run("print('a' * 1000)")).stdout == "a" * 1000 + "\n"
        assert "ZeroDivisionError" in (await session.run("1 / 0")).stderr
        assert (await session.run("'b' * 100_000", limits=Limits(output=2**20))).value == repr("b" * 100_000)
        assert (await session.run("'b' * 100", limits=Limits(output=10))).value == "'bbbbbbbbb"
        branch = await session.snapshot()
        await asyncio.sleep(0.3)
        assert (await session.run("x = 1; x")).value == "1"
        await session.restore(branch)
        assert (await session.run("x")).value == "29"
        other = await asyncio.to_thread(lambda: asyncio.run(session.run("x + 1")))
        assert other.value == "30" and (await session.run("x")).value == "29"
        left = await session.run("import sys; sys.exit(3)")
        assert left.exit == 3
        calls = [asyncio.ensure_future(session.run("x")) for _ in range(8)]
        await asyncio.sleep(0)
        calls[0].cancel()
        calls[3].cancel()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [r.value for r in results if not isinstance(r, BaseException)] == ["29"] * 6
        await session.close()
        with pytest.raises(SandboxFault, match="closed"):
            await session.run("1")

    with_box(backend, work)


def test_a_worker_that_dies_between_quick_turns_is_a_fault(backend: str) -> None:
    async def work(box: Sandbox) -> None:
        session = await box.session(checkpoint=False)
        for _ in range(5):
            await session.run("1 + 1")
        session._worker.process.kill()  # type: ignore[attr-defined]
        session._worker.process.wait()  # type: ignore[attr-defined]
        with pytest.raises(SandboxFault):
            await session.run("1 + 1")
        assert (await session.run("1 + 1")).value == "2"
        await session.close()

    with_box(backend, work)
