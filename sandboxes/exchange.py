"""One worker that serves one session: its calls one after the other, the short ones without a change of threads."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from gymrl.sandboxes.seats import Seats
from gymrl.sandboxes.worker import Stream, Worker

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
QUICK = 0.004
"""Seconds that a turn may take before a thread is given to it, which can wait and read what it prints."""
SHORT = 2**14
"""Bytes of a request that a socket takes at once."""


class Turn(Protocol[T_co]):
    """A turn that was begun. source: what can be read once there is something to say about it; it may change then."""

    @property
    def source(self) -> socket.socket: ...

    def quick(self) -> T_co | None:
        """What it came to, now that `source` can be read, without waiting; None where there is more to wait for."""

    def slow(self) -> T_co:
        """What it came to, blocking."""


class Exchange:
    """The worker of one session, its output streams, and who may talk to it now."""

    def __init__(self, name: str) -> None:
        self._turnstile, self._threads = Seats(1), ThreadPoolExecutor(1, name)
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

    async def turn(self, begin: Callable[[], Turn[T]], size: int) -> T:
        """The result of a turn. begin: sends a request of so many bytes."""
        await self._turnstile.enter()
        if size > SHORT or self.worker is None:  # one that has died is a fault at once
            return await self._in_thread(lambda: begin().slow())
        try:
            turn = begin()
        except BaseException:
            self._turnstile.leave()
            raise
        seen = self._look.begin(turn)
        try:
            result = await seen
        except BaseException as error:
            if seen.done() and not seen.cancelled() and not isinstance(seen.exception(), Late):
                self._turnstile.leave()
                raise
            self._look.leave()
            if isinstance(error, Late):
                return await self._in_thread(turn.slow)
            self._threads.submit(self._whole, turn.slow)  # cancelled: it goes on to its end all the same
            raise
        self._turnstile.leave()
        return result

    def begin(self, limit: int) -> Worker:
        """The worker for a turn whose output is cut after so many bytes."""
        assert self.worker is not None
        for stream in self.streams:
            stream.limit = limit
        return self.worker

    def stop(self) -> None:
        """End the worker."""
        self._look.leave()
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


class Late(Exception):
    """Nothing was there in time."""


class Look:
    """Waits a short time for what a turn comes to. The socket stays in the event loop's list from one turn to the next,
    and a timer serves many turns that are over sooner than it rings."""

    def __init__(self) -> None:
        self._turn: Turn[Any] | None = None
        self._seen: asyncio.Future[Any] | None = None
        self._timer: asyncio.AbstractEventLoop | None = None  # whose timer runs
        self._end = 0.0
        self._source: socket.socket | None = None
        self._listed: tuple[asyncio.AbstractEventLoop, socket.socket] | None = None  # a copy of the source

    def begin(self, turn: Turn[T]) -> asyncio.Future[T]:
        """What the turn comes to, or Late. For one caller at a time."""
        loop = asyncio.get_running_loop()
        seen: asyncio.Future[T] = loop.create_future()
        self._turn, self._seen = turn, seen
        self._end = loop.time() + QUICK
        if self._timer is not loop:
            self._timer = loop
            loop.call_later(QUICK, self._ring, loop)
        self._enlist(loop, turn.source)
        return seen

    def _enlist(self, loop: asyncio.AbstractEventLoop, source: socket.socket) -> None:
        if self._listed is not None and self._listed[0] is loop and self._source is source:
            return
        self.leave()
        copy = socket.socket(fileno=os.dup(source.fileno()))
        self._source, self._listed = source, (loop, copy)
        loop.add_reader(copy, self._tell, loop, copy)

    def leave(self) -> None:
        """Take the socket out of the event loop's list; from any thread."""
        listed, self._source, self._listed = self._listed, None, None
        if listed is None:
            return
        loop, copy = listed
        try:
            here = asyncio.get_running_loop() is loop
        except RuntimeError:
            here = False
        if here or loop.is_closed():
            _strike(loop, copy)
        else:
            with contextlib.suppress(RuntimeError):  # closed meanwhile
                loop.call_soon_threadsafe(_strike, loop, copy)

    def _tell(self, loop: asyncio.AbstractEventLoop, copy: socket.socket) -> None:
        if self._listed is None or self._listed[1] is not copy:
            return _strike(loop, copy)
        turn, seen = self._turn, self._seen
        if turn is None or seen is None or seen.done():  # nobody waits: it would be told again and again
            return self.leave()
        try:
            result = turn.quick()
        except BaseException as error:
            seen.set_exception(error)
        else:
            if result is None:
                return self._enlist(loop, turn.source)
            seen.set_result(result)
        self._turn = self._seen = None

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not loop:  # another loop has its own timer now
            return
        if self._seen is None or self._seen.done():
            self._timer = None
        elif (left := self._end - loop.time()) > 0:
            loop.call_later(left, self._ring, loop)
        else:
            self._timer = None
            self._seen.set_exception(Late())
            self._turn = self._seen = None


def _strike(loop: asyncio.AbstractEventLoop, copy: socket.socket) -> None:
    if not loop.is_closed():
        loop.remove_reader(copy)
    copy.close()
