"""The worker side of `gymrl.envs.processes`: keeps environments and answers calls on them."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import importlib
import os
import pickle
import random
import signal
import socket
import sys
import threading
import time
import traceback
from typing import Any

from gymrl.envs.gym import EnvironmentFault, GymEnv
from gymrl.envs.processes import HEADER, frame
from gymrl.envs.registry import make, register

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve until the parent says so or is gone. The arguments are (sys.path, socket's number, parent's pid)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    fd, parent = int(sys.argv[2]), int(sys.argv[3])
    _die_with(parent)
    os.dup2(2, 1)  # what an environment prints must not get into the parent's tables
    asyncio.run(_Server().serve(socket.socket(fileno=fd)))
    sys.stderr.flush()
    os._exit(0)  # threads of an environment do not keep the process


def _die_with(parent: int) -> None:
    """Leave when the parent does: by the kernel's signal on Linux, and by looking, everywhere."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, name="gymrl-parent-watch", daemon=True).start()


class _Server:
    def __init__(self) -> None:
        self.envs: dict[int, GymEnv] = {}
        self.running: dict[int, asyncio.Task[Any]] = {}
        self.tasks: set[asyncio.Task[None]] = set()

    async def serve(self, sock: socket.socket) -> None:
        reader, self.writer = await asyncio.open_connection(sock=sock)
        beat = asyncio.create_task(self.beat())
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                (size,) = HEADER.unpack(await reader.readexactly(HEADER.size))
                number, method, args = pickle.loads(await reader.readexactly(size))
                if method == "exit":
                    break
                task = asyncio.create_task(self.answer(number, method, args))
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)
        beat.cancel()
        for key in list(self.envs):
            with contextlib.suppress(Exception):
                await asyncio.wait_for(self.close(key), 2.0)
        self.writer.close()

    async def beat(self) -> None:
        """Tell the parent that the loop turns, so that a world that awaits is not taken for one that hangs."""
        while True:
            await asyncio.sleep(1.0)
            if self.running:
                self.writer.write(frame((0, True, None)))

    async def answer(self, number: int, method: str, args: tuple[Any, ...]) -> None:
        try:
            value = await getattr(self, method)(*args)
            try:
                message = frame((number, True, value))
            except Exception as error:
                raise EnvironmentFault(
                    f"{method}() returned what cannot be sent between processes ({error}): use plain data"
                ) from None
        except (Exception, asyncio.CancelledError) as error:
            message = frame((number, False, _told(error)))
        self.writer.write(message)
        with contextlib.suppress(ConnectionError):
            await self.writer.drain()

    async def open(
        self, key: int, env_id: str, target: str, defaults: dict[str, Any], params: dict[str, Any]
    ) -> None:
        try:
            module, _, name = target.partition(":")
            cls = functools.reduce(getattr, name.split("."), importlib.import_module(module))
        except (ImportError, AttributeError) as error:
            raise EnvironmentFault(
                f"{env_id} runs in worker processes, which cannot import {target} ({error}): "
                "move the class to an installed module, or set runs = 'thread'"
            ) from None
        register(env_id, cls, defaults=defaults)  # type: ignore[arg-type]
        self.envs[key] = make(env_id, **params)

    async def reset(self, key: int, task: Any) -> Any:
        return await self.run(key, self.envs[key].areset(task))

    async def step(self, key: int, action: Any) -> Any:
        return await self.run(key, self.envs[key].astep(action))

    async def oracle(self, key: int) -> Any:
        return await self.run(key, self.envs[key].aoracle())

    async def random_action(self, key: int, seed: int) -> Any:
        return await self.run(key, self.envs[key].arandom(random.Random(seed)))

    async def run(self, key: int, coroutine: Any) -> Any:
        """Run a call of one environment, noted as the one that `close` cuts short."""
        if key in self.running:
            coroutine.close()
            raise EnvironmentFault("an environment plays one call at a time: await the last one first")
        task = asyncio.current_task()
        assert task is not None
        self.running[key] = task
        try:
            return await coroutine
        finally:
            del self.running[key]

    async def close(self, key: int) -> None:
        if running := self.running.get(key):
            running.cancel()
            await asyncio.wait([running])
        if env := self.envs.pop(key, None):
            await env.aclose()


def _told(error: BaseException) -> tuple[bytes | None, str, str, str]:
    trace = "".join(traceback.format_exception(error))
    if isinstance(error, asyncio.CancelledError):
        error = EnvironmentFault("the environment was closed during the call")
    pickled: bytes | None
    try:
        pickled = pickle.dumps(error)
        pickle.loads(pickled)
    except Exception:  # an exception that holds what cannot travel, or cannot be made again
        pickled = None
    return pickled, type(error).__name__, str(error), trace
