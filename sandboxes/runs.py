"""Programs on their way through a pool: who is next, and short ones without a change of threads.

A run is begun and read on the event loop that asked for it; one that takes longer is given to a thread, which can wait
and read what it prints. Between threads Python's lock goes back and forth, and while a loop has work for many episodes
at hand, a thread that waits for the lock leaves its worker idle.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from gymrl.sandboxes import worker as workers
from gymrl.sandboxes.base import Limits, Result
from gymrl.sandboxes.exchange import SHORT
from gymrl.sandboxes.inside import protocol
from gymrl.sandboxes.worker import Stream, Worker

QUICK = 0.02
"""Seconds that a run may take before a thread is given to it."""


class Waiting(Protocol):
    """Somebody who asks for a seat, on an event loop of its own."""

    loop: asyncio.AbstractEventLoop

    def begin(self) -> bool:
        """Take the seat, on that loop. False: it is not wanted any more."""


class Seats:
    """So many at once, the others in the order in which they asked; from any thread and any event loop."""

    def __init__(self, size: int) -> None:
        self._lock, self._free = threading.Lock(), size
        self._waiting: deque[Waiting] = deque()

    def ask(self, who: Waiting) -> None:
        """Let somebody begin, now or later; call it on their event loop."""
        with self._lock:
            if not self._free:
                self._waiting.append(who)
                return
            self._free -= 1
        if not who.begin():
            self.leave()

    def leave(self) -> None:
        """A seat is free: whoever waits longest takes it, at once where that is possible."""
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        while True:
            with self._lock:
                if not self._waiting:
                    self._free += 1
                    return
                who = self._waiting.popleft()
            if who.loop is here:
                if who.begin():
                    return
            else:
                with contextlib.suppress(RuntimeError):  # closed: nobody waits there any more
                    who.loop.call_soon_threadsafe(self._offer, who)
                    return

    def _offer(self, who: Waiting) -> None:
        if not who.begin():
            self.leave()

    async def enter(self) -> None:
        """Take a seat, in turn."""
        claim = _Claim()
        self.ask(claim)
        try:
            await claim.given
        except BaseException:
            if claim.given.done() and not claim.given.cancelled():
                self.leave()
            raise


class _Claim:
    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.given: asyncio.Future[None] = self.loop.create_future()

    def begin(self) -> bool:
        if self.given.done():
            return False
        self.given.set_result(None)
        return True


class Lender(Protocol):
    """What has workers. Any thread may call it."""

    def at_hand(self) -> Worker | None:
        """A worker that waits for a run; None: one has to be waited for, or made."""

    def take(self) -> Worker:
        """A worker, after a while perhaps. Raises SandboxFault."""

    def give(self, worker: Worker) -> None: ...


class Run:
    """One program, from the caller's event loop to its result in `seen`. Cancelling that does not end the program."""

    def __init__(
        self,
        lender: Lender,
        seats: Seats,
        threads: ThreadPoolExecutor,
        source: bytes,
        timeout: float,
        limits: Limits,
        backend: str,
    ) -> None:
        self.lender, self.seats, self.threads = lender, seats, threads
        self.source, self.timeout, self.limits, self.backend = source, timeout, limits, backend
        self.loop = asyncio.get_running_loop()
        self.seen: asyncio.Future[Result] = self.loop.create_future()
        self._watched: tuple[Started, asyncio.TimerHandle] | None = None

    def begin(self) -> bool:
        if self.seen.done():
            return False
        worker = self.lender.at_hand() if len(self.source) <= SHORT else None
        if worker is None:
            self._in_thread(lambda: self._started(self.lender.take()).end(ready=False))
            return True
        try:
            started = self._started(worker)
        except BaseException as error:
            self.seen.set_exception(error)
            return False
        self.loop.add_reader(worker.control, self._look)
        self._watched = started, self.loop.call_later(QUICK, self.hand_over)
        return True

    def hand_over(self) -> None:
        """Where the event loop waits for the program, have a thread do it."""
        if (started := self._unwatch()) is not None:
            self._in_thread(lambda: started.end(ready=False))

    def _started(self, worker: Worker) -> Started:
        return Started(self.lender, worker, self.source, self.timeout, self.limits, self.backend)

    def _unwatch(self) -> Started | None:
        if self._watched is None:
            return None
        (started, timer), self._watched = self._watched, None
        timer.cancel()
        if not self.loop.is_closed():
            self.loop.remove_reader(started.worker.control)
        return started

    def _look(self) -> None:
        """There is something to be read."""
        started = self._unwatch()
        if started is None:
            return
        try:
            result, error = started.end(ready=True), None
        except BaseException as raised:
            result, error = None, raised
        self.seats.leave()  # first: the next one's program runs while this one's result is seen to
        self._settle(result, error)

    def _settle(self, result: Result | None, error: BaseException | None) -> None:
        if self.seen.done():
            return  # cancelled
        if error is not None:
            self.seen.set_exception(error)
        elif result is not None:
            self.seen.set_result(result)

    def _in_thread(self, work: Callable[[], Result]) -> None:
        self.threads.submit(self._wait, work)

    def _wait(self, work: Callable[[], Result]) -> None:
        ended: tuple[Any, ...]
        try:
            ended = work(), None
        except BaseException as raised:
            ended = None, raised
        self.seats.leave()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self.loop.call_soon_threadsafe(self._settle, *ended)


class Started:
    """A program that a worker has been told to run. The worker goes back to its lender with the end of it."""

    def __init__(
        self, lender: Lender, worker: Worker, source: bytes, timeout: float, limits: Limits, backend: str
    ) -> None:
        """Raises SandboxFault, and OSError where there are no more descriptors to be had."""
        self.lender, self.worker, self.backend = lender, worker, backend
        self.streams: list[Stream] = []
        try:
            for _ in range(2):
                self.streams.append(Stream(limits.output))
            writers = [stream.writer for stream in self.streams]
            self.nonce = worker.begin(protocol.RUN, writers, source, timeout, limits)
        except BaseException:
            self._fail()
            raise
        for stream in self.streams:
            stream.close_writer()
        self.deadline = time.monotonic() + timeout + workers.GRACE

    def end(self, ready: bool) -> Result:
        """What it came to; `ready`: that can be read without waiting. Raises SandboxFault."""
        try:
            end, reason = workers.attend(self.worker, self.streams, self.nonce, self.deadline, ready)
            out, err = (stream.take() for stream in self.streams)
        except BaseException:
            self._fail()
            raise
        self._close()
        return Result(out, err, "", end.exit, end.seconds, reason, self.backend)

    def _fail(self) -> None:
        """Whatever the worker has to say yet is no answer to the next one."""
        self.worker.close()
        self._close()

    def _close(self) -> None:
        for stream in self.streams:
            stream.close()
        self.lender.give(self.worker)
