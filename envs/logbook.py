"""Which calls a worker process has under way, in memory that outlives it: so that one which died can still tell.

The process notes a call when its work begins, and which one it works on at this moment; the program reads. A death, or
a silence, is then laid to the call that was being worked on, and not to those that waited behind it.
"""

from __future__ import annotations

import mmap
import os
import signal
import tempfile
import threading
import time
from collections.abc import Coroutine, Generator
from dataclasses import dataclass
from typing import Any

from gymrl.envs.gym import EnvironmentFault

SLOTS = 1024
"""Calls that can be under way at once; one beyond is taken for one that waits."""
_FIRST = 4
_SIZE = 8 * (_FIRST + 2 * SLOTS)
_OWN_FAULTS = {"SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGABRT", "SIGSYS", "SIGTRAP"}
"""Signals that come of what a process itself does; all others may come from anywhere."""


class ProcessLost(EnvironmentFault):
    """The process that an environment ran in is gone, and it cannot be told to be this environment's doing.

    suspect: a call of it was under way, and so were others: it may have been any of them.
    """

    def __init__(self, text: str, suspect: bool = False) -> None:
        super().__init__(text)
        self.suspect = suspect


@dataclass(frozen=True)
class Found:
    """What stood in a logbook. working: the call that was being worked on, 0 for none, since the time `since`; begun:
    all that had begun, with their times; threads: whether the process had threads of the environments'."""

    working: int
    since: float
    begun: dict[int, float]
    threads: bool


@dataclass(frozen=True)
class Verdict:
    """Who ended a process: the one call that did it, or those of which any may have done it."""

    guilty: int = 0
    suspects: frozenset[int] = frozenset()


def judge(found: Found, hung: bool, code: int) -> Verdict:
    """Lay the end of a process, which hung and was killed or else ended by itself with that exit code, to calls."""
    begun = frozenset(found.begun)
    own = code >= 0 or -code in {getattr(signal, name, 0) for name in _OWN_FAULTS}
    if len(begun) == 1:
        return Verdict(guilty=next(iter(begun)))
    # A kill from outside, as of a system without memory, may be due to any of them, and so may a fault of a thread.
    if found.working and (hung or (own and not found.threads)):
        return Verdict(guilty=found.working)
    return Verdict(suspects=begun)


class Logbook:
    """Shared memory of one writer, the process, and one reader, the program that started it. It holds words of eight
    bytes: the call being worked on, since when, whether there are threads; and a pair (call, when it began) for each
    call that has begun and waits for something."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._memory = mmap.mmap(fd, _SIZE)
        self._whole = memoryview(self._memory)
        self._numbers: memoryview[int] = self._whole.cast("Q")
        self._times: memoryview[float] = self._whole.cast("d")
        self._free = [_FIRST + 2 * slot for slot in reversed(range(SLOTS))]
        self._threads = threading.active_count()

    @classmethod
    def new(cls) -> Logbook:
        """An empty one; a process is given its `fd`, which is closed here by `sent`."""
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("gymrl-logbook")
        else:
            with tempfile.TemporaryFile() as file:
                fd = os.dup(file.fileno())
        try:
            os.truncate(fd, _SIZE)
            return cls(fd)
        except BaseException:
            os.close(fd)
            raise

    def sent(self) -> None:
        """The descriptor is needed no longer; the memory stays."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def close(self) -> None:
        self.sent()
        for view in (self._numbers, self._times, self._whole):
            view.release()
        self._memory.close()

    # -- the process -------------------------------------------------------------------------------------

    def work(self, number: int) -> None:
        """The call is being worked on from now on, until `rest`."""
        self._times[1] = time.monotonic()
        self._numbers[2] = threading.active_count() > self._threads
        self._numbers[0] = number  # the last, so that whoever reads it finds its time there

    def rest(self) -> None:
        self._numbers[0] = 0

    def begin(self, number: int) -> int:
        """The call has begun; gives the place that `end` takes."""
        if not self._free:
            return 0
        place = self._free.pop()
        self._times[place + 1] = time.monotonic()
        self._numbers[place] = number
        return place

    def end(self, place: int) -> None:
        if place:
            self._numbers[place] = 0
            self._free.append(place)

    # -- the program -------------------------------------------------------------------------------------

    def read(self) -> Found:
        working = self._numbers[0]
        since = self._times[1]
        pairs = zip(self._numbers[_FIRST::2], self._times[_FIRST + 1 :: 2], strict=True)
        begun = {number: when for number, when in pairs if number}
        if working:
            begun.setdefault(working, since)
        return Found(working, since, begun, bool(self._numbers[2]))


class Noted:
    """Awaits a coroutine as the work of one call: the logbook says when it begins and when it is worked on."""

    def __init__(self, book: Logbook, number: int, work: Coroutine[Any, Any, Any]) -> None:
        self._book, self._number, self._work = book, number, work

    def __await__(self) -> Generator[Any, None, Any]:
        book, number, work = self._book, self._number, self._work
        error: BaseException | None = None
        place = book.begin(number)
        try:
            while True:
                book.work(number)
                try:
                    awaited = work.send(None) if error is None else work.throw(error)
                except StopIteration as end:
                    return end.value
                finally:
                    book.rest()
                error = None
                try:
                    yield awaited
                except BaseException as raised:  # such as a cancellation: it is the work's to meet
                    error = raised
        finally:
            book.end(place)
