"""The worker: it never runs a program itself, it forks a child for each and says how that ended.

It holds the only reference to the control socket: a child closes its copy before the program starts, so what a run
came to is known from `waitpid` here alone. Sessions are in `turns`.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from collections.abc import Callable, Collection
from typing import NamedTuple, NoReturn

from gymrl.sandboxes.inside import files, protocol, questions
from gymrl.sandboxes.inside import syscalls as sc
from gymrl.sandboxes.inside.program import confine, harden, program, session
from gymrl.sandboxes.inside.protocol import Passing, Socket, receive_fds
from gymrl.sandboxes.inside.tiers import Tier
from gymrl.sandboxes.inside.watch import LOCKS, Watch

INSPECT_EVERY = 0.04
"""Seconds between looks at the processes, the memory and the files of a run."""
DISK = 64 * 2**20


class Request(NamedTuple):
    kind: bytes
    fds: list[int]
    timeout: float
    memory: int
    file_size: int
    disk: int
    processes: int
    output: int
    code: bytearray
    """To be forgotten once it is where it belongs: the next program is a copy of this process."""


class Outcome(NamedTuple):
    """status: the exit status, negative for a signal."""

    cause: bytes
    status: int
    lost: bool = False
    value: bytes | Passing = b""


class Zygote:
    """Serves one control socket until its other end is closed. parent: the caller's process id (0: it is not seen).
    kills: a descriptor of what counts the processes that the kernel killed for memory (-1: no cgroup)."""

    def __init__(self, control: Socket, tier: Tier, parent: int, kills: int = -1) -> None:
        self.control, self.tier, self.parent = control, tier, parent
        self.watch = Watch(tier.proc, tier.alone, kills, tier.name == "namespaces")
        self.score, self.usual = -1, b""
        if kills >= 0:
            self.score = tier.score()
            self.usual = os.pread(self.score, 16, 0).strip()
        self.listening = select.poll()
        self.listening.register(control, select.POLLIN)
        self.alarm, self.armed = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def ready(self) -> None:
        self.tier.prepare(DISK)
        self.surroundings()
        self.control.sendall(protocol.READY)

    def surroundings(self) -> None:
        """What programs see as their environment, all of it."""
        os.environ.clear()
        os.environ.update(
            HOME=self.tier.work, TMPDIR=self.tier.temporary, PATH="/usr/bin:/bin", LANG="C.UTF-8"
        )

    def request(self, idle: Callable[[], bool] | None = None) -> Request:
        """Wait for the next one; the nonce stays unread. idle: what to do while nothing is asked, again and again until
        it says that it need not be done any more."""
        poller = self.listening
        while True:
            while idle is not None and not poller.poll(INSPECT_EVERY * 1000):
                if not idle():
                    idle = None
            while self.parent and not poller.poll(2000):
                self.check_parent()
            data, fds = receive_fds(self.control, 1 + protocol.REQUEST.size, 8)
            if not data:
                self.leave()
            data = data.lstrip(protocol.KILL)  # one that came after its run had ended
            if data:
                break
        data += self.exactly(1 + protocol.REQUEST.size - len(data))
        timeout, memory, file_size, disk, processes, output, size = protocol.REQUEST.unpack_from(data, 1)
        kind, code = data[:1], bytearray(size)
        if not protocol.receive_into(self.control, code):
            self.leave()
        return Request(kind, fds, timeout, memory, file_size, disk, processes, output, code)

    def answer(self, outcome: Outcome, nonce: bytes, start: float, give: Socket | None = None) -> None:
        """give: a copy of a socket for the caller, which is closed here."""
        head = protocol.OUTCOME.pack(
            outcome.cause, outcome.status, time.monotonic() - start, outcome.lost, len(outcome.value), nonce
        )
        try:
            notes = [] if give is None else [protocol.note([give.fileno()])]
            sent = self.control.sendmsg([head, outcome.value], notes)
        finally:
            if give is not None:
                give.close()
        if sent < len(head) + len(outcome.value):
            self.control.sendall(head[sent:])
            with memoryview(outcome.value)[max(0, sent - len(head)) :] as rest:
                self.control.sendall(rest)

    def exactly(self, size: int) -> bytes:
        data = protocol.receive(self.control, size)
        if len(data) < size:
            self.leave()
        return data

    def check_parent(self) -> None:
        """Another process may hold a copy of the socket: then its end is never seen."""
        if self.parent and os.getppid() != self.parent:
            self.leave()

    def leave(self) -> NoReturn:
        """The caller is gone: nothing is left behind."""
        self.watch.end()
        os.chdir("/")
        if self.tier.folder and not self.tier.alone:
            with contextlib.suppress(OSError):
                files.wipe(self.tier.folder)
                os.rmdir(self.tier.folder)
        os._exit(0)

    def spawn(
        self, request: Request, fds: list[int], keeps: int = 0, work: Callable[[], object] | None = None
    ) -> int:
        """Fork the child that runs the request's program, or a session's interpreter where `keeps` is not 0, or does
        `work`."""
        bounds = self.tier.confinement(
            request.memory,
            request.file_size,
            request.processes,
            int(request.timeout) + 2 if request.timeout else 0,
            keeps,
        )
        if self.score >= 0:  # the kernel is to kill the program, not the worker, where memory runs out
            os.pwrite(self.score, b"1000", 0)
        pid = os.fork()
        if pid:
            if self.score >= 0:
                os.pwrite(self.score, self.usual, 0)
            return pid
        try:
            listener = confine(bounds, fds)
        except BaseException as error:  # the sandbox failed, not the program: no result but a dead worker
            with contextlib.suppress(OSError):
                os.write(self.armed, f"{type(error).__name__}: {error}".encode()[:500])
            os._exit(1)
        try:
            if work is not None:
                work()
            session(listener) if keeps else program(request.code)
        finally:
            os._exit(1)

    def check_child(self) -> None:
        """Exit if a child could not be confined."""
        with contextlib.suppress(BlockingIOError):
            sys.exit(os.read(self.alarm, 500).decode("utf-8", "replace"))

    def run(self, request: Request) -> None:
        """One program from start to end."""
        self.tier.prepare(request.disk)
        self.tier.begin()
        start = time.monotonic()
        pid = self.spawn(request, request.fds)
        protocol.forget(request.code)
        nonce = self.exactly(protocol.NONCE)
        for fd in request.fds:
            os.close(fd)
        handle = os.pidfd_open(pid)
        try:
            cause = self.attend(handle, start + request.timeout, request)
            if cause != protocol.ENDED:
                self.strike(pid)
                select.select([handle], [], [])
        finally:
            os.close(handle)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        self.watch.end()
        if status:
            self.check_child()
        if self.watch.struck() and cause == protocol.ENDED:
            cause = protocol.MEMORY
        self.answer(Outcome(cause, status), nonce, start)
        self.tier.over()
        self.tier.prepare(request.disk)

    def strike(self, pid: int) -> None:
        """Kill a run that is not yet reaped, with its whole process group."""
        for call in (os.kill, os.killpg):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                call(pid, sc.SIGKILL)

    def attend(
        self,
        handle: int,
        end: float,
        request: Request,
        keep: Collection[int] = (),
        asked: questions.Questions | None = None,
        also: int = -1,
    ) -> bytes:
        """Wait until the handle (or the other one) can be read (ENDED), a limit is passed, or the caller asks for the
        end: the cause."""
        poller = select.poll()
        poller.register(handle, select.POLLIN)
        if also >= 0:
            poller.register(also, select.POLLIN)
        poller.register(self.control, select.POLLIN)
        if asked is not None:
            poller.register(asked.listener, select.POLLIN)
        looked = time.monotonic()
        while True:
            now = time.monotonic()
            wait = max(0.0, min(looked + INSPECT_EVERY, end) - now)
            ready = {fd for fd, _ in poller.poll(wait * 1000 + 1)}
            if handle in ready or also in ready:
                return protocol.ENDED
            if self.control.fileno() in ready:
                if self.control.recv(1) == b"":
                    self.leave()
                return protocol.ASKED
            if asked is not None and asked.listener in ready:
                asked.answer(allow=False)
            now = time.monotonic()
            if now >= end:
                return protocol.TIMEOUT
            if now >= looked + INSPECT_EVERY:
                looked = now
                self.check_parent()
                cause = self.inspect(request, keep)
                if cause:
                    return cause

    def inspect(self, request: Request, keep: Collection[int]) -> bytes:
        """The limit that the run has passed, or nothing."""
        pids = [pid for pid in self.watch.processes() if pid not in keep]
        if len(pids) > request.processes:
            return protocol.PROCESSES
        if self.watch.struck() or self.watch.used(pids) > request.memory or self.watch.locks(pids) > LOCKS:
            return protocol.MEMORY
        if self.tier.filled(self.watch, pids) > request.disk:
            return protocol.DISK
        return b""

    def serve(self) -> NoReturn:
        """Carry out requests until the caller goes."""
        from gymrl.sandboxes.inside.shells import Shell
        from gymrl.sandboxes.inside.turns import Turns

        harden()
        self.ready()
        turns: Turns | Shell = Turns(self)
        while True:
            request = self.request(turns.idle if turns.watching else None)
            if request.kind == protocol.RUN:
                self.run(request)
            else:
                if request.kind == protocol.SHELL:
                    turns = Shell(self)
                start = time.monotonic()
                outcome, nonce = turns.carry_out(request)
                self.answer(outcome, nonce, start, turns.gift())
                turns.tidy()
