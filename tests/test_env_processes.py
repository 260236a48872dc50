"""Environments in worker processes: placement, death, faults, and the end of everything."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gymrl.envs import Action, Environment, EnvironmentFault, TaskSpec, register
from gymrl.envs.blame import where
from gymrl.envs.deadlines import within
from gymrl.envs.processes import ProcessPool
from gymrl.envs.workers import EnvPool

TOYS = """
import asyncio, os, signal, sys, time
from gymrl.envs import Environment

class Unpicklable(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")

class Toy(Environment):
    runs = "process"
    max_turns = 100
    def __init__(self, word="hello"):
        self.word = word
    def reset(self):
        self.steps = 0
        if self.word == "slow":
            time.sleep(0.3)
        return f"{self.word} {self.rng.randrange(10**9)}"
    def step(self, action):
        self.steps += 1
        match action.text:
            case "where":
                return f"{os.getpid()} {self.steps}", 0.0, False
            case "modules":
                return " ".join(sorted({name.split(".")[0] for name in sys.modules})), 0.0, False
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "interrupt":
                os.kill(os.getpid(), signal.SIGINT)
            case "hang":
                while True:
                    pass
            case "value":
                raise KeyError("broken world")
            case "odd":
                raise Unpicklable("this", "that")
            case "lambda":
                return "x", 0.0, False, {"f": lambda: 0}
            case "big":
                return "x" * 5_000_000, 0.0, False
        return action.text, 0.5, action.text == "end"
    def oracle(self):
        return "end"
    def random_action(self, rng):
        return str(rng.randrange(10**9))

class AsyncToy(Toy):
    async def reset(self):
        await asyncio.sleep(0)
        return "async"
    async def step(self, action):
        await asyncio.sleep(3600 if action.text == "wait" else 0)
        return action.text, 1.0, True
"""


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Registers a toy environment in a module that only sys.path of this process leads to."""
    name = f"gymrl_toys_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(TOYS)
    monkeypatch.syspath_prepend(str(tmp_path))
    register("test/Toy-v0", f"{name}:Toy", source="test")
    register("test/AsyncToy-v0", f"{name}:AsyncToy", source="test")
    return "test/Toy-v0"


def task(index: int = 0, env_id: str = "test/Toy-v0", **params: str) -> TaskSpec:
    return TaskSpec.make(env_id, "1", "train", index, params)


async def test_worlds_stay_in_the_process_they_were_opened_in(toys: str) -> None:
    pool = ProcessPool(2)
    handles = [await pool.open(toys, {"word": f"w{i}"}) for i in range(4)]
    firsts = [await handle.reset(task(i, word=f"w{i}")) for i, handle in enumerate(handles)]
    assert [first[0].text.split()[0] for first in firsts] == ["w0", "w1", "w2", "w3"]
    seen = []
    for _ in range(2):
        results = await asyncio.gather(*(handle.step(Action("where")) for handle in handles))
        seen.append([result.observation.text.split() for result in results])
    pids = [pid for pid, _ in seen[0]]
    assert [pid for pid, _ in seen[1]] == pids
    assert [steps for _, steps in seen[1]] == ["2"] * 4
    assert sorted(pids.count(pid) for pid in set(pids)) == [2, 2]
    assert str(os.getpid()) not in pids
    assert (await handles[0].oracle()).text == "end"
    assert await handles[0].random_action(7) == await handles[1].random_action(7)
    assert (await handles[0].step(Action("end"))).terminated
    await pool.aclose()
    assert all(_gone(int(pid)) for pid in pids)


async def test_the_same_task_is_the_same_world_in_both_processes(toys: str) -> None:
    pool = ProcessPool(2)
    one, two = await pool.open(toys, {}), await pool.open(toys, {})
    assert one.worker is not two.worker
    assert await one.reset(task(3)) == await two.reset(task(3))
    assert await one.reset(task(3)) != await two.reset(task(4))
    await pool.aclose()


async def test_a_dead_worker_fails_its_calls_and_is_replaced(toys: str) -> None:
    pool = ProcessPool(1)
    dying, beside = await pool.open(toys, {}), await pool.open(toys, {})
    await dying.reset(task())
    await beside.reset(task())
    with pytest.raises(
        EnvironmentFault, match=r"test/Toy-v0\.step: the worker process \d+ died \(killed by SIGKILL\)"
    ):
        await dying.step(Action("die"))
    for handle in (dying, beside):
        with pytest.raises(EnvironmentFault, match="SIGKILL"):
            await handle.step(Action("x"))
        with pytest.raises(EnvironmentFault, match="SIGKILL"):
            await handle.reset(task())
        await handle.close()
        await handle.close()
    fresh = await pool.open(toys, {})
    await fresh.reset(task())
    assert (await fresh.step(Action("still here"))).observation.text == "still here"
    await pool.aclose()
    with pytest.raises(RuntimeError, match="closed"):
        await pool.open(toys, {})


async def test_a_worker_killed_from_outside_fails_the_calls_in_flight(toys: str) -> None:
    pool = ProcessPool(1)
    handle = await pool.open("test/AsyncToy-v0", {})
    await handle.reset(task(env_id="test/AsyncToy-v0"))
    call = asyncio.create_task(handle.step(Action("wait")))
    await asyncio.sleep(0.1)
    os.kill(handle.worker.pid, signal.SIGKILL)
    with pytest.raises(EnvironmentFault, match="SIGKILL"):
        await call
    await pool.aclose()


async def test_a_world_that_hangs_is_killed_and_the_loop_never_waits(toys: str) -> None:
    pool = ProcessPool(1, stall_seconds=0.5)
    handle = await pool.open(toys, {})
    await handle.reset(task())
    turns = 0
    call = asyncio.create_task(handle.step(Action("hang")))
    while not call.done():
        await asyncio.sleep(0.01)
        turns += 1
    with pytest.raises(EnvironmentFault, match="said nothing"):
        await call
    assert turns > 10
    await pool.aclose()


async def test_a_call_beyond_its_deadline_ends_a_silent_worker_soon_and_no_other_world_meets_it(toys: str) -> None:
    pool = ProcessPool(1)
    hung = await pool.open(toys, {})
    await hung.reset(task())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await hung.step(Action("hang"))
    other = await pool.open(toys, {})  # at once, in a process of its own
    assert other.worker is not hung.worker
    await other.reset(task())
    async with asyncio.timeout(20):
        await hung.close()
    assert "beyond a call's deadline" in hung.dead and not other.dead
    await other.close()
    await pool.aclose()


async def test_a_world_that_awaits_is_not_taken_for_one_that_hangs(toys: str) -> None:
    pool = ProcessPool(1, stall_seconds=3.0)
    waiting, beside = await pool.open("test/AsyncToy-v0", {}), await pool.open("test/AsyncToy-v0", {})
    await waiting.reset(task(env_id="test/AsyncToy-v0"))
    await beside.reset(task(env_id="test/AsyncToy-v0"))
    call = asyncio.create_task(waiting.step(Action("wait")))
    assert (await beside.step(Action("quick"))).terminated, "one world's wait must not hold another"
    await asyncio.sleep(4.5)
    assert not call.done()
    await waiting.close()
    with pytest.raises(EnvironmentFault, match="closed during the call"):
        await call
    await pool.aclose()


async def test_a_deadline_does_not_run_while_others_in_the_worker_are_reset(toys: str) -> None:
    pool = ProcessPool(1)
    handles = [await pool.open(toys, {"word": "slow"}) for _ in range(12)]

    async def reset(number: int) -> None:
        async with within(2.0):
            await handles[number].reset(task(number, word="slow"))

    await asyncio.gather(*map(reset, range(12)))  # 3.6 s in all
    with pytest.raises(TimeoutError):
        async with within(0.1):
            await handles[0].reset(task(word="slow"))
    await pool.aclose()


async def test_messages_larger_than_the_pipe_keep_their_order(toys: str) -> None:
    pool = ProcessPool(1)
    handles = [await pool.open("test/Toy-v0", {}) for _ in range(6)]
    await asyncio.gather(*(handle.reset(task()) for handle in handles))
    texts = [
        letter * size
        for letter, size in zip("abcdef", (3_000_000, 5, 2_000_000, 70_000, 1, 400_000), strict=True)
    ]
    for _ in range(2):
        found = await asyncio.gather(
            *(handle.step(Action(text)) for handle, text in zip(handles, texts, strict=True))
        )
        assert [result.observation.text for result in found] == texts
    await pool.aclose()


def test_any_loop_plays_and_one_that_has_ended_or_stands_still_holds_nobody_up(toys: str) -> None:
    pool = ProcessPool(1)

    async def play(text: str) -> str:
        handle = await pool.open(toys, {})
        await handle.reset(task())
        return (await handle.step(Action(text))).observation.text

    assert asyncio.run(play("first")) == "first"
    assert asyncio.run(play("second")) == "second"
    waits, goes_on = threading.Event(), threading.Event()

    async def stands_still() -> str:
        handle = await pool.open(toys, {})
        await handle.reset(task())
        call = asyncio.create_task(handle.step(Action("kept")))
        await asyncio.sleep(0)
        waits.set()
        goes_on.wait()  # the loop does not turn meanwhile
        return (await call).observation.text

    with ThreadPoolExecutor(1) as threads:
        still = threads.submit(asyncio.run, stands_still())
        waits.wait()
        assert asyncio.run(play("beside")) == "beside"
        big = "x" * 5_000_000
        assert asyncio.run(play(big)) == big
        goes_on.set()
        assert still.result() == "kept"
    asyncio.run(pool.aclose())


async def test_a_loop_that_stands_still_is_no_reason_to_kill_the_worker(toys: str) -> None:
    pool = ProcessPool(1, stall_seconds=0.5)
    handle = await pool.open(toys, {})
    await handle.reset(task())
    call = asyncio.create_task(handle.step(Action("said meanwhile")))
    await asyncio.sleep(0)
    time.sleep(3.0)  # noqa: ASYNC251 - such as a long update of the learner's
    assert (await call).observation.text == "said meanwhile"
    await pool.aclose()


async def test_descriptors_and_threads_end_with_the_pool(toys: str) -> None:
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(3):
        pool = ProcessPool(2)
        handles = [await pool.open(toys, {}) for _ in range(2)]
        await asyncio.gather(*(handle.reset(task()) for handle in handles))
        with pytest.raises(EnvironmentFault):
            await handles[0].step(Action("die"))
        await pool.aclose()
    helpers = 2  # asyncio's own threads, which stop the workers
    assert len(os.listdir("/proc/self/fd")) == before[0]
    assert threading.active_count() <= before[1] + helpers


async def test_exceptions_travel_with_their_traceback(toys: str) -> None:
    pool = ProcessPool(1)
    handle = await pool.open(toys, {})
    await handle.reset(task())
    with pytest.raises(KeyError, match="broken world") as caught:
        await handle.step(Action("value"))
    assert "in step" in caught.value.__notes__[0]
    assert re.fullmatch(r"\w+\.py:\d+ in step", where(caught.value))
    with pytest.raises(EnvironmentFault, match="Unpicklable: this and that"):
        await handle.step(Action("odd"))
    with pytest.raises(EnvironmentFault, match="use plain data"):
        await handle.step(Action("lambda"))
    assert (await handle.step(Action("alive"))).reward == 0.5
    assert len((await handle.step(Action("big"))).observation.text) == 5_000_000
    with pytest.raises(ValueError, match="did you mean 'word'"):
        await pool.open(toys, {"wrod": "x"})
    await pool.aclose()


async def test_workers_ignore_ctrl_c_and_do_not_import_torch(toys: str) -> None:
    pool = ProcessPool(1)
    handle = await pool.open(toys, {})
    await handle.reset(task())
    assert (await handle.step(Action("interrupt"))).observation.text == "interrupt"
    modules = (await handle.step(Action("modules"))).observation.text.split()
    assert "gymrl" in modules
    assert not {"torch", "transformers"} & set(modules)
    await pool.aclose()


async def test_a_class_that_no_process_can_import_is_named() -> None:
    class Local(Environment):
        runs = "process"

    register("test/Local-v0", Local, source="test")
    pool = ProcessPool(1)
    with pytest.raises(EnvironmentFault, match=r"cannot import .*Local from a function: move the class"):
        await pool.open("test/Local-v0", {})
    Local.__qualname__, Local.__module__ = "Local", "no_such_module_anywhere"
    with pytest.raises(
        EnvironmentFault, match=r"cannot import no_such_module_anywhere:Local .*installed module"
    ):
        await pool.open("test/Local-v0", {})
    await pool.aclose()


async def test_env_pool_counts_and_closes_process_handles(toys: str) -> None:
    pool = EnvPool(toys, {"word": "hi"}, workers=2)
    handles = [await pool.open() for _ in range(3)]
    observation, _ = await handles[0].reset(pool.task("test", 5))
    assert observation.text.startswith("hi ")
    await pool.release(handles[0])
    await pool.aclose()
    assert (pool.opened, pool.closed) == (3, 3)


async def test_handles_that_were_given_back_to_a_worker_that_died_are_not_lent_again(toys: str) -> None:
    pool = EnvPool(toys, {}, workers=2)
    handles = [await pool.take() for _ in range(4)]
    for handle in handles:
        pool.give(handle)
    dead = handles[3].worker  # type: ignore[attr-defined]
    os.kill(dead.pid, signal.SIGKILL)
    dead.thread.join()
    lent = [await pool.take() for _ in range(4)]
    for handle in lent:
        await handle.reset(pool.task("train", 0))
    await pool.aclose()
    assert pool.opened == pool.closed == 6


def test_workers_die_with_a_parent_that_is_killed(toys: str, tmp_path: Path) -> None:
    module = next(tmp_path.glob("gymrl_toys_*.py")).stem
    script = textwrap.dedent(f"""
        import asyncio, sys
        sys.path.insert(0, {str(tmp_path)!r})
        from gymrl.envs import register, Action, TaskSpec
        from gymrl.envs.processes import ProcessPool
        register("test/Toy-v0", "{module}:Toy")
        async def main():
            pool = ProcessPool(2)
            handles = [await pool.open("test/Toy-v0", {{}}) for _ in range(2)]
            for handle in handles:
                await handle.reset(TaskSpec.make("test/Toy-v0", "1", "train", 0))
                print((await handle.step(Action("where"))).observation.text.split()[0], flush=True)
            calls = [asyncio.create_task(handle.step(Action("hang"))) for handle in handles]
            await asyncio.sleep(3600)
        asyncio.run(main())
    """)
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(parent.stdout.readline()) for _ in range(2)]
    assert not any(_gone(pid) for pid in pids)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while not all(_gone(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all(_gone(pid) for pid in pids)


def _gone(pid: int) -> Any:
    """Whether a process has ended (or is only waiting to be reaped by whoever adopted it)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True
