"""The same task is the same world: in another order, loop, thread and process, and under another PYTHONHASHSEED."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from gymrl.envs.check import play
from gymrl.envs.check.records import Broke, Fault, Settings, Subject
from gymrl.envs.gym import EnvironmentFault
from gymrl.envs.records import TaskSpec
from gymrl.envs.workers import EnvPool

if TYPE_CHECKING:
    from collections.abc import Iterator

CLAIM = "same task, same world: other order, threads, processes, PYTHONHASHSEED"

Traces = dict[TaskSpec, play.Trace]
THREADS = 4


async def check(subject: Subject, settings: Settings) -> tuple[str, Sequence[Fault]]:
    env = subject.make()
    wanted = [env.task_spec(index, split) for index in range(settings.tasks) for split in env.world.sizes
              if index < env.world.sizes[split]][: settings.tasks]  # fmt: skip
    reference: Traces = {}
    for task in play.within(wanted, settings.seconds / 4, 4):
        reference[task] = await play.trace(env, task)
    await play.closed(env)
    tasks = list(reference)

    ways = ["another order"]
    faults = _compare(reference, await _another_order(subject, tasks), ways[0])
    if env.world.runs == "process":
        ways.append("two worker processes")
        first = {task: trace[:1] for task, trace in reference.items()}
        faults += _compare(first, await _pooled(subject, tasks[:16]), ways[-1])
    else:
        ways.append("many episodes on one loop")
        faults += _compare(reference, await _interleaved(subject, tasks), ways[-1])
        world = env.world
        if not inspect.iscoroutinefunction(world.reset) and not inspect.iscoroutinefunction(world.step):
            ways.append(f"{THREADS} threads")
            faults += _compare(reference, await asyncio.to_thread(_threaded, subject, tasks), ways[-1])
    try:
        faults += await _other_processes(subject, reference, settings)
        ways.append("other processes and hash seeds")
    except EnvironmentFault as fault:
        ways.append(f"not other processes ({fault})")
    return f"{len(tasks)} tasks in {', '.join(ways)}", faults


def _compare(reference: Traces, traces: Traces, way: str) -> list[Fault]:
    """One fault at most: the first task that differs, and how many do."""
    differing = [
        (task, name)
        for task, found in traces.items()
        if (name := play.difference(reference[task], found)) is not None
    ]
    if not differing:
        return []
    task, name = differing[0]
    what = f"in {way} {len(differing)} of {len(traces)} tasks are other worlds; here {name} differs"
    return [Fault(what, task.split, task.index)]


async def _another_order(subject: Subject, tasks: list[TaskSpec]) -> Traces:
    """Backwards, each after an episode of another task that was left in the middle, with other global seeds."""
    env, found = subject.make(), {}
    with _other_global_seeds():
        for number, task in enumerate(reversed(tasks)):
            await play.reset(env, tasks[number])
            await play.step(env, await play.null(env, 0))
            found[task] = await play.trace(env, task)
    await play.closed(env)
    return found


async def _interleaved(subject: Subject, tasks: list[TaskSpec]) -> Traces:
    """All at once on one event loop, eight environments taking turns."""
    waiting, found = iter(tasks), {}

    async def work() -> None:
        env = subject.make()
        for task in waiting:
            await asyncio.sleep(0)
            found[task] = await play.trace(env, task)
        await play.closed(env)

    await asyncio.gather(*(work() for _ in range(min(8, len(tasks)))))
    return found


def _threaded(subject: Subject, tasks: list[TaskSpec]) -> Traces:
    """Every thread plays all tasks, from another one on; a trace that differs from another thread's is kept."""
    found: Traces = {}
    failed: list[BaseException] = []
    lock, together = threading.Lock(), threading.Barrier(THREADS)

    def work(number: int) -> None:
        async def all_of_them() -> None:
            env = subject.make()
            together.wait()  # else the first may be through before the last has begun
            start = number * len(tasks) // THREADS
            for task in tasks[start:] + tasks[:start]:
                trace = await play.trace(env, task)
                with lock:
                    if found.setdefault(task, trace) != trace:
                        found[task] = [("what another thread saw", number)]
            await play.closed(env)

        try:
            asyncio.run(all_of_them())
        except BaseException as error:
            failed.append(error)
            together.abort()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads that can disturb each other will
    try:
        threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    if failed:
        if isinstance(failed[0], Broke):
            fault = failed[0].fault
            raise Broke(Fault(f"in {THREADS} threads: {fault.what}", fault.split, fault.index, fault.action))
        raise failed[0]
    return found


async def _pooled(subject: Subject, tasks: list[TaskSpec]) -> Traces:
    """First observations only, from two worker processes; the rest is compared by the processes below."""
    pool = EnvPool(subject.env_id, dict(subject.params), workers=2)
    waiting, found = iter(tasks), {}

    async def work() -> None:
        handle = await pool.open()
        for task in waiting:
            play.leave_crumb(task)
            found[task] = [("the first observation", play.digest((await handle.reset(task))[0]))]

    try:
        await asyncio.gather(work(), work())
    finally:
        await pool.aclose()
    return found


async def _other_processes(subject: Subject, reference: Traces, settings: Settings) -> list[Fault]:
    """Two processes with a PYTHONHASHSEED of their own and an empty cache; one plays backwards."""
    from gymrl.envs.check.probe import job_of

    job = {**job_of(subject), "kind": "traces", "seconds": settings.seconds / 2}
    tasks = [[task.split, task.index] for task in reference]
    one, other = await asyncio.gather(_child(job, tasks, "0"), _child(job, tasks[::-1], "4242"))
    by_name = {(task.split, task.index): task for task in reference}
    found = []
    for traces, way in ((one, "another process"), (other, "a process with another PYTHONHASHSEED")):
        known = {by_name[split, index]: [tuple(step) for step in steps] for split, index, steps in traces}
        found += _compare(reference, known, way)
    if len(found) == 2:  # is it every process, or the hash seed that each of the three has of its own?
        again = await _child(job, tasks, "0")
        alike = dict(zip([(split, index) for split, index, _ in one], one, strict=True))
        steady = all(
            alike[split, index][2] == steps for split, index, steps in again if (split, index) in alike
        )
        return found[1:] if steady else found[:1]
    return found


async def _child(job: dict[str, Any], tasks: list[Any], hash_seed: str) -> list[Any]:
    from gymrl.envs.check.probe import command

    with tempfile.TemporaryDirectory(prefix="gymrl-check-") as cache:
        ours, theirs = os.pipe()
        environ = {**os.environ, "PYTHONHASHSEED": hash_seed, "GYMRL_CACHE": cache}
        try:
            process = await asyncio.create_subprocess_exec(
                *command({**job, "tasks": tasks, "fd": theirs}), env=environ, pass_fds=(theirs,),
                stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
        finally:
            os.close(theirs)
        try:
            text, (_, errors) = await asyncio.gather(asyncio.to_thread(_read, ours), process.communicate())
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    message: dict[str, Any] = (
        json.loads(text) if text else {"error": errors.decode(errors="replace").strip()[-300:]}
    )
    if "traces" not in message:
        raise Broke(Fault(f"in a process with PYTHONHASHSEED={hash_seed}: {message['error']}"))
    return message["traces"]  # type: ignore[no-any-return]


def _read(fd: int) -> str:
    with os.fdopen(fd, encoding="utf-8") as file:
        return file.read()


@contextmanager
def _other_global_seeds() -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    random.seed(time.time_ns())
    np.random.seed(time.time_ns() % 2**32)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
