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

from gymrl.envs.gym import EnvironmentFault, GymEnv, StepResult
from gymrl.envs.logbook import Logbook, Noted
from gymrl.envs.registry import make, register
from gymrl.envs.wire import PART, frame, take_frames

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve until the parent says so or is gone. The arguments are (sys.path, parent's pid, socket, logbook)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the program says when to end, whoever else is told to
    signal.signal(signal.SIGTERM, lambda *_: None)  # not SIG_IGN, which programs started from here would inherit
    parent, fd, log = map(int, sys.argv[2:5])
    _die_with(parent)
    book = Logbook(log)
    book.sent()
    os.dup2(2, 1)  # what an environment prints must not get into the parent's tables
    asyncio.run(_serve(socket.socket(fileno=fd), book))
    sys.stderr.flush()
    os._exit(0)  # threads of an environment do not keep the process


async def _serve(sock: socket.socket, book: Logbook) -> None:
    await _Server(sock, book).serve()


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
    def __init__(self, sock: socket.socket, book: Logbook) -> None:
        sock.setblocking(False)
        self.socket, self.book = sock, book
        self.loop = asyncio.get_running_loop()
        self.envs: dict[int, GymEnv] = {}
        self.running: dict[int, asyncio.Task[Any]] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.ended = asyncio.Event()
        self.heard, self.unsaid = bytearray(), bytearray()

    async def serve(self) -> None:
        self.loop.add_reader(self.socket.fileno(), self.hear)
        beat = asyncio.create_task(self.beat())
        await self.ended.wait()
        self.loop.remove_reader(self.socket.fileno())
        beat.cancel()
        for key in list(self.envs):
            with contextlib.suppress(Exception):
                await asyncio.wait_for(self.close(key), 2.0)
        self.loop.remove_writer(self.socket.fileno())
        self.socket.close()

    async def beat(self) -> None:
        """Tell the parent that the loop turns, so that a world that awaits is not taken for one that hangs."""
        while True:
            await asyncio.sleep(1.0)
            if self.running:
                self.say(frame((0, True, None)))

    def hear(self) -> None:
        try:
            part = self.socket.recv(PART if len(self.heard) < PART else 2**20)
        except BlockingIOError:
            return
        except ConnectionError:
            part = b""
        if not part:
            self.ended.set()
        self.heard += part
        for number, method, args in take_frames(self.heard):
            if method == "exit":
                self.ended.set()
            elif not self.ended.is_set():
                self.begin(number, method, args)

    def say(self, message: bytes) -> None:
        """Send a message: now, as far as the pipe takes it, and the rest when it has room again."""
        if not self.unsaid:
            try:
                message = message[self.socket.send(message) :]
            except BlockingIOError:
                pass
            except OSError:  # the parent is gone
                return
            if not message:
                return
            self.loop.add_writer(self.socket.fileno(), self.say_rest)
        self.unsaid += message

    def say_rest(self) -> None:
        try:
            with memoryview(self.unsaid) as rest:
                sent = self.socket.send(rest)
            del self.unsaid[:sent]
        except BlockingIOError:
            return
        except OSError:
            self.unsaid.clear()
        if not self.unsaid:
            self.loop.remove_writer(self.socket.fileno())

    def begin(self, number: int, method: str, args: tuple[Any, ...]) -> None:
        """Answer a call: a step of a world that is not asynchronous at once, all else in a task."""
        work: Any
        if method == "step" and args[0] not in self.running:
            self.book.work(number)
            try:
                work = self.envs[args[0]].begin_step(args[1])
                if isinstance(work, StepResult):
                    self.say(_told(number, method, work))
                    return
            except Exception as error:
                self.say(frame((number, False, _words(error))))
                return
            finally:
                self.book.rest()
            work = self.run(args[0], work)
        else:
            work = getattr(self, method)(*args)
        task = asyncio.create_task(self.answer(number, method, work))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def answer(self, number: int, method: str, work: Any) -> None:
        try:
            message = _told(number, method, await Noted(self.book, number, work))
        except (Exception, asyncio.CancelledError) as error:
            message = frame((number, False, _words(error)))
        self.say(message)

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
        return await self.run(key, self.envs[key].astep(action))  # refused, as another call is under way

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


def _told(number: int, method: str, value: Any) -> bytes:
    try:
        return frame((number, True, value))
    except Exception as error:
        raise EnvironmentFault(
            f"{method}() returned what cannot be sent between processes ({error}): use plain data"
        ) from None


def _words(error: BaseException) -> tuple[bytes | None, str, str, str]:
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
