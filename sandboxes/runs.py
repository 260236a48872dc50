"""Programs on their way through a pool, short ones without a change of threads.

A run is begun and read on the event loop that asked for it; one that takes longer is given to a thread, which can wait
and read what it prints. Between threads Python's lock goes back and forth, and while a loop has work for many episodes
at hand, a thread that waits for the lock leaves its worker idle.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from gymrl.sandboxes import worker as workers
from gymrl.sandboxes.base import Limits, Result
from gymrl.sandboxes.exchange import SHORT
from gymrl.sandboxes.inside import protocol
from gymrl.sandboxes.seats import Seats
from gymrl.sandboxes.worker import Stream, Worker

QUICK = 0.02
"""Seconds that a run may take before a thread is given to it."""


class Pool(Protocol):
    """What has workers. Any thread may call it.

    seats: as many as programs may run at once. watched: the runs that an event loop waits for, no more than seats.
    """

    backend: str
    seats: Seats
    threads: ThreadPoolExecutor
    watched: set[Run]

    def at_hand(self) -> Worker | None:
        """A worker that waits for a run; None: one has to be waited for, or made."""

    def take(self) -> Worker:
        """A worker, after a while perhaps. Raises SandboxFault."""

    def give(self, worker: Worker) -> None: ...


class Run:
    """One program, from the caller's event loop to its result in `seen`. Cancelling that does not end the program."""

    _started: Started
    _ear: int
    _timer: asyncio.TimerHandle

    def __init__(self, pool: Pool, source: bytes, timeout: float, limits: Limits) -> None:
        self.pool, self.source, self.timeout, self.limits = pool, source, timeout, limits
        self.loop = asyncio.get_running_loop()
        self.seen: asyncio.Future[Result] = self.loop.create_future()

    def begin(self) -> bool:
        if self.seen.done():
            return False
        worker = self.pool.at_hand() if len(self.source) <= SHORT else None
        if worker is None:
            self._in_thread(lambda: self._start(self.pool.take()).end(ready=False))
            return True
        try:
            self._started = self._start(worker)
        except BaseException as error:
            self.seen.set_exception(error)
            return False
        self._ear = worker.control.fileno()  # a number: of an object the loop first writes what it is, in full
        self.loop.add_reader(self._ear, self._look)
        self._timer = self.loop.call_later(QUICK, self.hand_over)
        self.pool.watched.add(self)
        return True

    def hand_over(self) -> None:
        """Where the event loop waits for the program, have a thread do it. Another thread may call it once that loop
        does not run."""
        if self._unwatch():
            self._in_thread(lambda: self._started.end(ready=False))

    def _start(self, worker: Worker) -> Started:
        return Started(self.pool, worker, self.source, self.timeout, self.limits)

    def _unwatch(self) -> bool:
        """Whether the event loop was waiting until now: true for one caller."""
        try:
            self.pool.watched.remove(self)
        except KeyError:
            return False
        self._timer.cancel()
        if not self.loop.is_closed():
            self.loop.remove_reader(self._ear)
        return True

    def _look(self) -> None:
        """There is something to be read."""
        if not self._unwatch():
            return
        try:
            result, error = self._started.end(ready=True), None
        except BaseException as raised:
            result, error = None, raised
        self.pool.seats.leave()  # first: the next one's program runs while this one's result is seen to
        self._settle(result, error)

    def _settle(self, result: Result | None, error: BaseException | None) -> None:
        if self.seen.done():
            return  # cancelled
        if error is not None:
            self.seen.set_exception(error)
        elif result is not None:
            self.seen.set_result(result)

    def _in_thread(self, work: Callable[[], Result]) -> None:
        self.pool.threads.submit(self._wait, work)

    def _wait(self, work: Callable[[], Result]) -> None:
        ended: tuple[Any, ...]
        try:
            ended = work(), None
        except BaseException as raised:
            ended = None, raised
        self.pool.seats.leave()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self.loop.call_soon_threadsafe(self._settle, *ended)


class Started:
    """A program that a worker has been told to run. The worker goes back to its pool with the end of it."""

    def __init__(self, pool: Pool, worker: Worker, source: bytes, timeout: float, limits: Limits) -> None:
        """Raises SandboxFault, and OSError where there are no more descriptors to be had."""
        self.pool, self.worker = pool, worker
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
        return Result(out, err, "", end.exit, end.seconds, reason, self.pool.backend)

    def _fail(self) -> None:
        """Whatever the worker has to say yet is no answer to the next one."""
        self.worker.close()
        self._close()

    def _close(self) -> None:
        for stream in self.streams:
            stream.close()
        self.pool.give(self.worker)
