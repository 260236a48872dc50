"""Where environments run: on the event loop, in threads, or in worker processes, behind one async handle."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import random
import threading
import warnings
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

from gymrl.envs.blame import told
from gymrl.envs.gym import GymEnv, StepResult, run_sync
from gymrl.envs.records import Action, Observation, TaskSpec
from gymrl.envs.registry import make


class EnvHandle(Protocol):
    """One environment as a rollout sees it. Every method may raise what the environment raises."""

    async def reset(self, task: TaskSpec) -> tuple[Observation, dict[str, Any]]: ...

    async def step(self, action: Action) -> StepResult: ...

    async def oracle(self) -> Action: ...

    async def random_action(self, seed: int) -> Action: ...

    async def close(self) -> None: ...


class InlineHandle:
    """Runs on the event loop: for worlds that are quick, or async themselves."""

    def __init__(self, env: GymEnv) -> None:
        self.env = env

    async def reset(self, task: TaskSpec) -> tuple[Observation, dict[str, Any]]:
        return await self.env.areset(task)

    async def step(self, action: Action) -> StepResult:
        return await self.env.astep(action)

    async def oracle(self) -> Action:
        return await self.env.aoracle()

    async def random_action(self, seed: int) -> Action:
        return await self.env.arandom(random.Random(seed))

    async def close(self) -> None:
        await self.env.aclose()


class _Hand:
    """A daemon thread with an event loop, which does one piece of work after another and then waits for the next."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[asyncio.Runner], Callable[[], None]] | None]
        self._work = queue.SimpleQueue()
        self._ended: Callable[[], None] = lambda: None
        threading.Thread(target=self._live, name="gymrl-env", daemon=True).start()

    def do(self, work: Callable[[asyncio.Runner], Callable[[], None]]) -> None:
        """What `work` returns is called as soon as this thread can be had again."""
        self._work.put(work)

    async def end(self) -> None:
        """End an idle one, and wait until its descriptors are closed."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        self._ended = lambda: _soon(loop, ended.set)
        self._work.put(None)
        await ended.wait()

    def _live(self) -> None:
        self._serve()
        self._ended()

    def _serve(self) -> None:
        with asyncio.Runner() as runner:
            while (work := self._work.get()) is not None:
                tell = work(runner)
                with _IDLE_LOCK:
                    enough = len(_IDLE) >= MOST_IDLE or not ThreadHandle.open
                    if not enough:
                        _IDLE.append(self)
                tell()
                del tell  # it holds the result
                if enough:
                    return


def _soon(loop: asyncio.AbstractEventLoop, callback: Callable[..., None], *args: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed already
        loop.call_soon_threadsafe(callback, *args)


MOST_IDLE = 32
"""Threads that are kept for the next call, while a handle is open; each loop has three descriptors."""
_IDLE: list[_Hand] = []
_IDLE_LOCK = threading.Lock()


def _hand() -> _Hand:
    with _IDLE_LOCK:
        if _IDLE:
            return _IDLE.pop()
    return _Hand()


def _forget_threads() -> None:
    """After a fork: the threads are the parent's."""
    global _IDLE_LOCK
    _IDLE.clear()
    _IDLE_LOCK = threading.Lock()


os.register_at_fork(after_in_child=_forget_threads)


class ThreadHandle:
    """Runs in threads: for worlds that wait.

    Every call under way has a daemon thread to itself, so that one which never comes back holds up neither the others
    nor the end of the program. Threads whose call is over serve the next one, of any handle.
    """

    open = 0
    """Handles that are not closed."""

    def __init__(self, env: GymEnv) -> None:
        self.env, self._closed = env, False
        with _IDLE_LOCK:
            ThreadHandle.open += 1

    async def _call(self, make_coroutine: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> Any:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def settle(result: Any, error: BaseException | None) -> None:
            if future.done():
                return  # nobody waits any more: the deadline passed
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        def work(runner: asyncio.Runner) -> Callable[[], None]:
            result, error = None, None
            try:
                result = runner.run(make_coroutine(*args))
            except BaseException as raised:
                error = raised

            return lambda: _soon(loop, settle, result, error)

        _hand().do(work)
        return await future

    async def reset(self, task: TaskSpec) -> tuple[Observation, dict[str, Any]]:
        return await self._call(self.env.areset, task)  # type: ignore[no-any-return]

    async def step(self, action: Action) -> StepResult:
        return await self._call(self.env.astep, action)  # type: ignore[no-any-return]

    async def oracle(self) -> Action:
        return await self._call(self.env.aoracle)  # type: ignore[no-any-return]

    async def random_action(self, seed: int) -> Action:
        return await self._call(self.env.arandom, random.Random(seed))  # type: ignore[no-any-return]

    async def close(self) -> None:
        try:
            await self._call(self.env.aclose)
        finally:
            last: list[_Hand] = []
            with _IDLE_LOCK:
                ThreadHandle.open -= not self._closed
                self._closed = True
                if not ThreadHandle.open:
                    last, _IDLE[:] = list(_IDLE), []
            for hand in last:
                await hand.end()


class CloseWarning(UserWarning):
    """An environment of a pool could not be closed."""


class EnvPool:
    """Opens handles on one environment, as many as are asked for, and closes all of them.

    `opened` and `closed` count handles; after `aclose` they are equal.
    """

    def __init__(self, env_id: str, params: dict[str, Any] | None = None, workers: int = 2) -> None:
        self.env_id, self.params, self.workers = env_id, dict(params or {}), max(1, workers)
        self.template = make(env_id, **self.params)
        self.runs = self.template.world.runs
        self.opened = self.closed = 0
        self._live: set[EnvHandle] = set()
        self._idle: list[EnvHandle] = []
        self._processes: Any = None

    @property
    def max_turns(self) -> int:
        return self.template.world.max_turns

    @property
    def success_reward(self) -> float:
        return self.template.world.success_reward

    def task(self, split: str, index: int) -> TaskSpec:
        return self.template.task_spec(index, split)

    async def open(self) -> EnvHandle:
        """A handle on a fresh environment."""
        handle: EnvHandle
        if self.runs == "process":
            from gymrl.envs.processes import ProcessPool

            self._processes = self._processes or ProcessPool(self.workers)
            handle = await self._processes.open(self.env_id, self.params)
        elif self.runs == "thread":
            handle = ThreadHandle(make(self.env_id, **self.params))
        else:
            handle = InlineHandle(make(self.env_id, **self.params))
        self.opened += 1
        self._live.add(handle)
        return handle

    async def take(self) -> EnvHandle:
        """A handle that was given back, and whose process still lives, else a fresh one."""
        while self._idle:
            handle = self._idle.pop()
            if not getattr(handle, "dead", ""):
                return handle
            await self.release(handle)
        return await self.open()

    def give(self, handle: EnvHandle) -> None:
        """Keep a handle for the next `take`; its environment is reset before it is used again."""
        if handle in self._live:
            self._idle.append(handle)

    async def release(self, handle: EnvHandle) -> None:
        """Close one handle; closing it twice does nothing."""
        if handle in self._live:
            self._live.discard(handle)
            self.closed += 1
            await handle.close()

    async def aclose(self) -> None:
        """Close everything. What a world's `close` raises is a warning, as it shall cost nobody their results."""
        self._idle.clear()
        failed: list[str] = []

        async def tried(closing: Awaitable[None]) -> None:
            try:
                await closing
            except Exception as error:
                failed.append(told(error))

        try:
            for handle in list(self._live):
                await tried(self.release(handle))
            await tried(self.template.aclose())
        finally:
            if self._processes:
                await self._processes.aclose()
        if failed:
            more = f" in {len(failed)} environments" if len(failed) > 1 else ""
            text = f"{self.env_id}: close() raised {failed[0]}{more}: mend it, as what it holds may stay open"
            warnings.warn(text, CloseWarning, stacklevel=2)

    def close(self) -> None:
        """`aclose` for synchronous callers."""
        run_sync(self.aclose())
