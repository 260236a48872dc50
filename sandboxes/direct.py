"""The short way of a session's turn: from the caller to the program's process and back, past the worker.

Waking the worker twice is half of what a turn costs. So the caller begins a turn itself while the worker is on watch,
and ends it itself if it is over at once and no process or thread was started anywhere meanwhile. Else the worker is
asked to attend to it, as to any other; and it does so unasked if the caller is held up. What the program says here is
its word, as everything is that a session says.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket

from gymrl.sandboxes.base import Limits
from gymrl.sandboxes.inside import protocol
from gymrl.sandboxes.worker import Outcome, Worker

_PAGE = mmap.PAGESIZE
_WORD = 8
_STARTED, _DONE, _SHUT = (place // _WORD for place in (protocol.STARTED, protocol.DONE_WITH, protocol.SHUT))

_SEND, _PEEK, _TAKE = (
    int(flags)
    for flags in (
        socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL,
        socket.MSG_DONTWAIT | socket.MSG_PEEK,
        socket.MSG_DONTWAIT,
    )
)


class Direct:
    """Of one session's worker. Raises OSError where this machine has not what it takes."""

    def __init__(self) -> None:
        self._births = Births()
        try:
            self.page = os.memfd_create("gymrl-session")
        except BaseException:
            self._births.close()
            raise
        os.ftruncate(self.page, _PAGE)
        self._memory = mmap.mmap(self.page, _PAGE)
        self._words = memoryview(self._memory).cast("Q")
        self._words[_SHUT] = 1
        self._head = b""
        self._born, self._first = "", self._births.last()
        self.channel: socket.socket | None = None

    @property
    def works(self) -> bool:
        """Whether the start of a worker, since this was made, has been seen."""
        return self._births.last() != self._first

    def begin(self, worker: Worker, code: bytes, timeout: float, limits: Limits) -> bool:
        """Begin a turn; whether that was done."""
        if worker.given is not None:
            self._take(worker)
        words = self._words
        if self.channel is None or not self._born or words[_SHUT]:
            return False
        head = protocol.REQUEST.pack(
            timeout, limits.memory, limits.file_size, limits.disk, limits.processes, limits.output, len(code)
        )
        if head != self._head:
            self._memory[protocol.HEAD : protocol.HEAD + len(head)] = self._head = head
        worker.bound(protocol.TURN, limits, len(code))
        words[_STARTED] += 1
        order = protocol.ORDER.pack(protocol.RUN, len(code)) + code
        with contextlib.suppress(OSError):  # it does not read: the worker finds out
            self.channel.send(order, _SEND)
        return True

    @property
    def shut(self) -> bool:
        """Whether the worker has gone off watch, perhaps just as a turn was begun."""
        return bool(self._words[_SHUT])

    def end(self, most: int) -> Outcome | None:
        """What a turn came to, its value cut after so many bytes; None where the worker is to see to it."""
        assert self.channel is not None
        try:
            data = self.channel.recv(protocol.DIRECT, _PEEK)
        except OSError:
            return None
        length = protocol.REPLY.size
        if len(data) < length:
            return None
        kind, status, size = protocol.REPLY.unpack_from(data)
        if (
            kind != protocol.DONE
            or length + size != len(data)
            or self._births.last() != self._born
            or self.shut
        ):
            return None
        self.channel.recv(len(data), _TAKE)
        self._words[_DONE] = self._words[_STARTED]
        return Outcome(kind, status, 0.0, False, data[length : length + min(size, most)])

    def over(self) -> None:
        """A turn is over that the worker has attended to: nothing that it started lives, or it goes off watch."""
        self._words[_DONE] = self._words[_STARTED]
        self._born = self._births.last()

    def _take(self, worker: Worker) -> None:
        """The program's process is another one: this is what it is spoken to by."""
        if self.channel is not None:
            self.channel.close()
        self.channel, worker.given = worker.given, None

    def close(self) -> None:
        if self.channel is not None:
            self.channel.close()
        self._births.close()
        self._words.release()
        self._memory.close()
        os.close(self.page)


class Births:
    """Tells whether a process or a thread was started: anywhere on the machine, those of jails included."""

    def __init__(self) -> None:
        self._fd = os.open("/proc/loadavg", os.O_RDONLY | os.O_CLOEXEC)

    def last(self) -> str:
        """Changes with every start."""
        return os.pread(self._fd, 128, 0).rpartition(b" ")[2].decode()

    def close(self) -> None:
        os.close(self._fd)
