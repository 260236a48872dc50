"""The parent's side of one local worker: start it, hand it programs, read what they print, end it."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from dataclasses import dataclass
from pathlib import Path

from gymrl.sandboxes import zygote
from gymrl.sandboxes.base import KilledBy, Limits, SandboxFault, SandboxUnavailable

GRACE = 10.0
"""Seconds beyond a run's time-out after which the worker itself is given up."""
FLOOD = 16
"""A run that prints more than this many times `limits.output` is killed; up to there the rest is thrown away."""


@dataclass(frozen=True, slots=True)
class Status:
    """How a run's process ended: `exit` is negative for a signal."""

    cause: bytes
    exit: int
    seconds: float

    @property
    def killed_by(self) -> KilledBy:
        """Why it was ended; a worker that was asked to end it leaves the reason to whoever asked."""
        if self.cause == zygote.TIMEOUT or self.exit == -24:  # SIGXCPU
            return "timeout"
        if self.cause == zygote.PROCESSES:
            return "processes"
        return "signal" if self.exit < 0 else ""


class Stream:
    """One output pipe of a run: the first `limit` bytes are kept, the rest is read and counted."""

    def __init__(self, limit: int) -> None:
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)
        self.limit, self.total, self.kept = limit, 0, bytearray()

    def read(self) -> bool:
        """Take what is there; False at the end."""
        try:
            data = os.read(self.reader, 65536)
        except BlockingIOError:
            return True
        self.total += len(data)
        if len(self.kept) < self.limit:
            self.kept += data[: self.limit - len(self.kept)]
        return bool(data)

    def drain(self) -> None:
        """Take what is left in the pipe, which is bounded: no writer is alive, or a turn is over."""
        for _ in range(64):
            before = self.total
            if not self.read() or self.total == before:
                return

    def take(self) -> str:
        """The text kept so far; the next turn starts empty."""
        text = self.kept.decode("utf-8", "replace")
        self.kept, self.total = bytearray(), 0
        return text

    @property
    def flooded(self) -> bool:
        return self.total > FLOOD * max(self.limit, 4096)

    def close_writer(self) -> None:
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1

    def close(self) -> None:
        self.close_writer()
        if self.reader >= 0:
            os.close(self.reader)
            self.reader = -1


class Worker:
    """One zygote process and its control socket. Not safe for two threads at once.

    Raises SandboxUnavailable if it cannot be started.
    """

    def __init__(self) -> None:
        if not sys.platform.startswith("linux"):
            raise SandboxUnavailable("the local sandbox needs Linux: run gymrl in a Linux container here")
        self.owner = os.getpid()
        self.folder = folder = tempfile.mkdtemp(prefix="gymrl-sandbox-")
        self.control, theirs = socket.socketpair()
        log = Path(folder, "log")
        with theirs, log.open("wb") as errors:
            # Not -I but what it stands for: the environment is ours anyway, and a fixed hash seed makes a
            # program that prints a set print the same in every run and every worker.
            command = [sys.executable, "-s", "-S", "-P", "-X", "utf8", zygote.__file__, folder]
            self.process = subprocess.Popen(
                [*command, str(theirs.fileno()), str(self.owner)],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, cwd=folder,
                env={"PYTHONHASHSEED": "0"}, pass_fds=(theirs.fileno(),), start_new_session=True,
            )  # fmt: skip
        self._finalizer = weakref.finalize(self, _end, self.owner, self.process, self.control, folder)
        self.control.settimeout(30.0)
        try:
            ready = self.control.recv(1)
        except OSError:
            ready = b""
        if ready != zygote.READY:
            reason = log.read_text(errors="replace").strip().splitlines()[-1:] or ["no reply in 30 s"]
            self.close()
            raise SandboxUnavailable(
                f"the local sandbox's worker does not start ({reason[0]}): see docs/sandboxes.md"
            )
        self.control.settimeout(GRACE)

    @property
    def alive(self) -> bool:
        return self._finalizer.alive and os.getpid() == self.owner and self.process.poll() is None

    def begin(self, kind: bytes, fds: list[int], source: bytes, timeout: float, limits: Limits) -> None:
        """Start a program or a session. Raises SandboxFault if the worker is dead."""
        header = zygote.REQUEST.pack(
            timeout, limits.memory, limits.file_size, limits.processes, limits.output, len(source)
        )
        try:
            socket.send_fds(self.control, [kind], fds)
            self.control.sendall(header + source)
        except OSError:
            raise self.fault() from None

    def cancel(self) -> None:
        """Ask for the death of what runs; its status follows."""
        with contextlib.suppress(OSError):
            self.control.sendall(zygote.KILL)

    def status(self) -> Status:
        """Read the status that is there. Raises SandboxFault if the worker died instead."""
        try:
            data = self.control.recv(zygote.STATUS.size, socket.MSG_WAITALL)
        except OSError:
            data = b""
        if len(data) < zygote.STATUS.size:
            raise self.fault()
        cause, status, seconds = zygote.STATUS.unpack(data)
        return Status(cause, os.waitstatus_to_exitcode(status), seconds)

    def fault(self) -> SandboxFault:
        """End the worker; the error to raise for the call in flight."""
        code = self.process.poll()
        self.close()
        return SandboxFault(
            f"a worker of the local sandbox died (exit status {code}); the next call gets a new one"
        )

    def close(self) -> None:
        self._finalizer()


def _end(owner: int, process: subprocess.Popen[bytes], control: socket.socket, folder: str) -> None:
    control.close()
    if os.getpid() != owner:  # a forked copy: the worker is another's
        return
    try:
        process.wait(1.0)  # it sees the end of the socket, kills what runs and goes
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    shutil.rmtree(folder, ignore_errors=True)


def pump(worker: Worker, streams: list[Stream], reply: Stream | None, deadline: float) -> Status | str:
    """Read the streams until something is to be decided.

    Returns the status of a process that ended, or "reply" (a turn answered, all of it is in `reply`), "timeout"
    (the deadline passed) or "output" (a stream flooded). Raises SandboxFault.
    """
    poller = select.poll()
    by_fd = {stream.reader: stream for stream in streams}
    if reply is not None:
        by_fd[reply.reader] = reply
    for fd in (*by_fd, worker.control.fileno()):
        poller.register(fd, select.POLLIN)
    while (left := deadline - time.monotonic()) > 0:
        for fd, _ in poller.poll(left * 1000 + 1):
            stream = by_fd.get(fd)
            if stream is None:
                status = worker.status()
                for stream in by_fd.values():
                    stream.drain()
                return status
            if not stream.read():
                poller.unregister(fd)
        if reply is not None and answered(reply):
            for stream in streams:
                stream.drain()
            return "reply"
        if any(stream.flooded for stream in streams):
            return "output"
    return "timeout"


def answered(reply: Stream) -> bool:
    """Whether the reply to a turn is complete; one that claims more than fits is cut."""
    if len(reply.kept) < zygote.REPLY.size:
        return False
    size: int = zygote.REPLY.unpack_from(reply.kept)[1]
    return len(reply.kept) >= min(zygote.REPLY.size + size, reply.limit)
