"""A session between its turns: the processes that hold its state are stopped, so that nothing of it runs.

That is done once no turn has come for a moment. Until then this process is on watch, and the caller may begin turns
of a session without checkpoints past it (`gymrl.sandboxes.direct`): they are over before anybody would look, or the
caller asks for them to be attended to. A caller that is held up and does neither has them attended to all the same.
"""

from __future__ import annotations

import _socket
import contextlib
import os
import select
import struct
import time
from typing import NamedTuple

from gymrl.sandboxes.inside import files, protocol
from gymrl.sandboxes.inside import syscalls as sc
from gymrl.sandboxes.inside.protocol import Socket
from gymrl.sandboxes.inside.questions import Questions
from gymrl.sandboxes.inside.zygote import Request, Zygote

LOOK = 40
"""Milliseconds between looks at a turn that nobody asked to attend to."""


class Held(NamedTuple):
    """A process that holds a session's state, waiting. questions: where it asks whether it may fork (None: it need
    not); files: the folders' contents that belong to it."""

    pid: int
    channel: Socket
    questions: Questions | None = None
    files: tuple[files.Tree, files.Tree] = (files.Tree({}), files.Tree({}))


class Between:
    """The processes of one worker's session.

    only: the first one, where nothing else was there when it was started. spare: the fork for the next turn. stopped:
    by their ids. page: shared with a caller that may begin turns; open: it may now; seen: how many it had begun and was
    done with at the last look; given: the channel that it has a copy of. cause: why a turn was ended unasked.
    """

    def __init__(self, zygote: Zygote) -> None:
        self.zygote, self.tier, self.watch = zygote, zygote.tier, zygote.watch
        self.current: Held | None = None
        self.snapshots: dict[int, Held] = {}
        self.spare: Held | None = None
        self.only = 0
        self.untidy = False
        self.stopped: set[int] = set()
        self.watching = False
        self.page, self.open, self.seen = -1, False, (0, 0)
        self.given: Socket | None = None
        self.cause = b""

    def nothing_new(self) -> bool:
        """Whether there has never been more than the session's first process, with one thread."""
        return bool(self.only) and self.current is not None and self.watch.none_since(self.only)

    def gift(self) -> Socket | None:
        """A copy of the channel for a caller that may begin turns and does not have it."""
        if self.page < 0 or self.current is None or self.current.channel is self.given:
            return None
        self.given = self.current.channel
        return Socket(fileno=_socket.dup(self.given.fileno()))

    def shut(self, shut: bool = True) -> None:
        """Let the caller begin no turn past this process, or let it."""
        if self.page >= 0:
            os.pwrite(self.page, struct.pack("=Q", shut), protocol.SHUT)
            self.open = not shut

    def begun(self) -> tuple[int, int]:
        """How many turns the caller has begun and how many it is done with, where it may begin any."""
        if not self.open:
            return 0, 0
        started, done = struct.unpack("=QQ", os.pread(self.page, 16, protocol.STARTED))
        return started, done

    def idle(self) -> bool:
        """What is to be done while no turn is asked for; whether to go on with that. What the session still runs is
        stopped."""
        before, self.seen = self.seen, self.begun()
        if self.open and self.seen != before:
            return True
        if self.seen[0] != self.seen[1]:
            return self.attend_unasked()
        open, begun = self.open, self.seen
        self.halt()
        if open:
            self.shut()
            self.open = True
            if self.begun() != begun:  # just now
                self.shut(False)
                for pid in tuple(self.stopped):
                    self.thaw(pid)
                return True
            self.open = False
        if not self.nothing_new():
            self.end()
        return False

    def attend_unasked(self) -> bool:
        """The caller has begun a turn that takes long and does not say so, being held up. The turn's limits hold all
        the same. Whether to go on being idle."""
        assert self.current is not None
        head = os.pread(self.page, protocol.REQUEST.size, protocol.HEAD)
        timeout, memory, file_size, disk, processes, output, _ = protocol.REQUEST.unpack(head)
        request = Request(protocol.TURN, [], timeout, memory, file_size, disk, processes, output, bytearray())
        poller = select.poll()
        poller.register(self.current.channel, select.POLLIN)
        poller.register(self.zygote.control, select.POLLIN)
        end, cause = time.monotonic() + timeout, b""
        while not cause:
            ready = {fd for fd, _ in poller.poll(LOOK)}
            if self.zygote.control.fileno() in ready:
                return True
            if ready:  # it is over, and the caller has not heard that yet
                self.halt()
                break
            late = time.monotonic() >= end
            cause = protocol.TIMEOUT if late else self.zygote.inspect(request, self.snapshot_pids())
        self.shut()
        if cause:
            self.cause = cause
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.current.pid, sc.SIGKILL)
            self.end()
        return False

    def halt(self) -> None:
        """Stop every process that holds a state."""
        held = self.kept() - self.stopped
        for pid in held if self.tier.alone else held.intersection(self.watch.processes()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sc.SIGSTOP)
                self.stopped.add(pid)

    def thaw(self, pid: int) -> None:
        if pid in self.stopped:
            self.stopped.discard(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sc.SIGCONT)

    def snapshot_pids(self) -> set[int]:
        return {held.pid for held in self.snapshots.values()}

    def kept(self) -> set[int]:
        """The processes that hold a state."""
        held = [*self.snapshots.values(), self.current, self.spare]
        return {one.pid for one in held if one is not None}

    def end(self) -> None:
        """End every process but those that hold a state."""
        self.untidy = False
        self.stopped &= self.kept()
        self.watch.end(self.kept())
