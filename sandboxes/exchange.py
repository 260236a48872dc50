"""One worker that serves one session: its calls one after the other, the short ones without a change of threads."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from gymrl.sandboxes.worker import Stream, Worker

T = TypeVar("T")
QUICK = 0.002
"""Seconds that a turn may take before a thread is given to it, which can wait and read what it prints."""
SHORT = 2**14
"""Bytes of a request that a socket takes at once."""


class Turnstile:
    """Lets one call through at a time, in order, from any thread and any event loop."""

    def __init__(self) -> None:
        self._lock, self._busy = threading.Lock(), False
        self._waiting: deque[Future[None]] = deque()

    async def enter(self) -> None:
        with self._lock:
            if not self._busy:
                self._busy = True
                return
            turn: Future[None] = Future()
            self._waiting.append(turn)
        try:
            await asyncio.wrap_future(turn)
        except asyncio.CancelledError:
            if not turn.cancelled():
                self.leave()  # it was this call's turn already
            raise

    def leave(self) -> None:
        with self._lock:
            while self._waiting:
                turn = self._waiting.popleft()
                if turn.set_running_or_notify_cancel():
                    turn.set_result(None)
                    return
            self._busy = False


class Exchange:
    """The worker of one session, its output streams, and who may talk to it now."""

    def __init__(self, name: str) -> None:
        self._turnstile, self._threads = Turnstile(), ThreadPoolExecutor(1, name)
        self._look = Look()
        self.worker: Worker | None = None
        self.streams: list[Stream] = []

    @property
    def alive(self) -> bool:
        return self.worker is not None and self.worker.alive

    async def call(self, work: Callable[[], T]) -> T:
        """Do blocking work in the session's thread when nobody else talks to the worker."""
        await self._turnstile.enter()
        return await self._in_thread(work)

    async def turn(self, begin: Callable[[], Callable[[bool], T]], size: int) -> T:
        """The result of a turn. begin: sends a request of so many bytes, and returns what waits for the outcome and is
        told whether that is there."""
        await self._turnstile.enter()
        if size > SHORT or self.worker is None:  # one that has died is a fault at once
            return await self._in_thread(lambda: begin()(False))
        try:
            finish = begin()
        except BaseException:
            self._turnstile.leave()
            raise
        assert self.worker is not None
        try:
            quick = await self._look.readable(self.worker.control.fileno(), QUICK)
        except BaseException:  # cancelled: the turn goes on to its end all the same
            self._threads.submit(self._whole, lambda: finish(False))
            raise
        if not quick:
            return await self._in_thread(lambda: finish(False))
        try:
            return finish(True)
        finally:
            self._turnstile.leave()

    def begin(self, limit: int) -> Worker:
        """The worker for a turn whose output is cut after so many bytes."""
        assert self.worker is not None
        for stream in self.streams:
            stream.limit = limit
        return self.worker

    def stop(self) -> None:
        """End the worker."""
        for stream in self.streams:
            stream.close()
        if self.worker is not None:
            self.worker.close()
        self.streams, self.worker = [], None

    async def close(self) -> None:
        await self.call(self.stop)
        self._threads.shutdown(wait=False)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Not undone by cancelling: the turnstile is left when the work is over, whether anybody waits or not."""
        return await asyncio.shield(asyncio.wrap_future(self._threads.submit(self._whole, work)))

    def _whole(self, work: Callable[[], T]) -> T:
        try:
            return work()
        finally:
            self._turnstile.leave()


class Look:
    """Waits a short time for a descriptor. A timer serves many waits that are over sooner than it rings."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._seen: asyncio.Future[bool] | None = None
        self._timer, self._end = False, 0.0

    async def readable(self, fd: int, seconds: float) -> bool:
        """Whether the descriptor can be read, within so many seconds. For one caller at a time."""
        loop = asyncio.get_running_loop()
        seen: asyncio.Future[bool] = loop.create_future()
        self._seen = seen
        self._end = loop.time() + seconds
        if not self._timer or self._loop is not loop:
            self._loop, self._timer = loop, True
            loop.call_later(seconds, self._ring, loop)
        loop.add_reader(fd, _tell, seen)
        try:
            return await seen
        finally:
            loop.remove_reader(fd)
            self._seen = None

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is not loop:  # another loop has its own timer now
            return
        if self._seen is None or self._seen.done():
            self._timer = False
        elif (left := self._end - loop.time()) > 0:
            loop.call_later(left, self._ring, loop)
        else:
            self._timer = False
            self._seen.set_result(False)


def _tell(seen: asyncio.Future[bool]) -> None:
    if not seen.done():
        seen.set_result(True)
