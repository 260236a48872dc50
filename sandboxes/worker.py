"""The caller's side of one worker process: start it, hand it programs, read what they print, end it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from gymrl.sandboxes import cgroup
from gymrl.sandboxes.base import KilledBy, Limits, SandboxFault, SandboxUnavailable
from gymrl.sandboxes.inside import protocol

GRACE = 10.0
"""Seconds beyond a run's time-out after which the worker itself is given up."""
START = 30.0
"""Seconds for a worker to start."""
FLOOD = 16
"""A run that prints more than this many times `limits.output` is killed; up to there the rest is thrown away."""
NOTHING = bytes(4)
"""The number of bytes that wait in a pipe, as the kernel says it, where there are none."""
HOUSE = Path(__file__).resolve().parent

_CAUSES: dict[bytes, KilledBy] = {
    protocol.TIMEOUT: "timeout",
    protocol.PROCESSES: "processes",
    protocol.MEMORY: "memory",
    protocol.DISK: "disk",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a request ended: `exit` is negative for a signal; `lost`: a session is not what it was; `value`: bytes."""

    cause: bytes
    exit: int
    seconds: float
    lost: bool
    value: bytes

    @property
    def killed_by(self) -> KilledBy:
        """Why it was ended; a worker that was asked to end it leaves the reason to whoever asked."""
        if self.cause in _CAUSES:
            return _CAUSES[self.cause]
        if self.cause in (protocol.DONE, protocol.LEFT):
            return ""
        if self.exit == -signal.SIGXCPU:
            return "timeout"
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
            if fcntl.ioctl(self.reader, termios.FIONREAD, NOTHING) == NOTHING:
                return
            self.read()

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
    """One worker process of a tier and its control socket. Not safe for two threads at once.

    preload: modules that it imports before any program, from the folders `packages`. tree: bytes of the working tree
    that it will hold. Raises SandboxUnavailable if it cannot be started.
    """

    process: Any
    """The worker's process, or what looks like one."""
    log: IO[bytes]
    folder: str
    group: cgroup.Cgroup | None = None
    """What bounds the memory of the worker and all that runs in it; None: only the worker's own look at it does."""
    gives = False
    """Whether a socket may come along with an outcome."""
    given: socket.socket | None = None
    """The one that came last."""
    _finalizer: weakref.finalize[..., Any]

    def __init__(
        self, tier: str, preload: tuple[str, ...] = (), packages: tuple[str, ...] = (), tree: int = 0
    ) -> None:
        if not sys.platform.startswith("linux"):
            raise SandboxUnavailable(f"the sandbox {tier!r} needs Linux: run gymrl in a Linux container here")
        self.tier, self.owner = tier, os.getpid()
        self.control, theirs = socket.socketpair()
        self.folder = "" if tier == "namespaces" else tempfile.mkdtemp(prefix="gymrl-sandbox-")
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  (closed by _end)
        self.group = cgroup.make() if tier == "namespaces" else None
        doors = (self.group.door(), self.group.counter()) if self.group else ()
        config = {
            "tier": tier, "folder": self.folder, "control": theirs.fileno(), "packages": packages, "preload": preload,
            "parent": 0 if tier == "namespaces" else self.owner, "house": str(HOUSE), "cgroup": doors,
            "bytecode": not sys.dont_write_bytecode,
        }  # fmt: skip
        with theirs:
            # Not -I but what it stands for: the environment is ours anyway, and a fixed hash seed makes a
            # program that prints a set print the same in every run and every worker.
            command = [
                sys.executable,
                "-s",
                "-S",
                "-P",
                "-B",
                "-X",
                "utf8",
                str(HOUSE / "inside" / "start.py"),
            ]
            try:
                self.process = subprocess.Popen(
                    [*command, json.dumps(config)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                    stderr=self.log, cwd="/", env=protocol.ENVIRONMENT, pass_fds=(theirs.fileno(), *doors),
                    start_new_session=True,
                )  # fmt: skip
            except BaseException:
                if self.group is not None:
                    self.group.remove()
                raise
            finally:
                for door in doors:
                    os.close(door)
        self._finalizer = weakref.finalize(
            self, _end, self.owner, self.process, self.control, self.log, self.folder, self.group
        )
        self._await_ready()
        if self.group is not None:
            self.ceiling, self.bounded = cgroup.Ceiling(self.group.used(), tree), 0

    def _await_ready(self) -> None:
        self.control.settimeout(START)
        try:
            ready = self.control.recv(1)
        except OSError:
            ready = b""
        if ready != protocol.READY:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(1.0)
            reason = self.last_words() or f"no reply in {START:g} s"
            self.close()
            raise SandboxUnavailable(f"the sandbox {self.tier!r} cannot be built here: {reason}")
        self.control.settimeout(GRACE)

    @property
    def alive(self) -> bool:
        return self._finalizer.alive and os.getpid() == self.owner and self.process.poll() is None

    def last_words(self) -> str:
        """The last line that the worker wrote on stderr."""
        if not self._finalizer.alive:
            return ""
        self.log.seek(0)
        lines = self.log.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else ""

    def begin(self, kind: bytes, fds: list[int], code: bytes, timeout: float, limits: Limits) -> bytes:
        """Send a request; the nonce that its outcome must bear. Raises SandboxFault if the worker is dead."""
        self.bound(kind, limits, len(code))
        nonce = os.urandom(protocol.NONCE)
        head = protocol.REQUEST.pack(
            timeout, limits.memory, limits.file_size, limits.disk, limits.processes, limits.output, len(code)
        )
        try:
            whole = kind + head + code + nonce  # at once: every message wakes the worker
            sent = socket.send_fds(self.control, [whole], fds) if fds else 0
            if sent < len(whole):
                self.control.sendall(whole[sent:])
        except OSError:
            raise self.fault() from None
        return nonce

    def bound(self, kind: bytes, limits: Limits, size: int) -> None:
        """Set the ceiling on memory for a request with `size` bytes of code. Raises SandboxFault."""
        if self.group is not None:
            self._bound(self.group, self.ceiling.above(kind, limits, size))

    def _bound(self, group: cgroup.Cgroup, size: int) -> None:
        """Set the ceiling on memory, where it is not what it was."""
        if size == self.bounded:
            return
        try:
            if size < self.bounded and group.used() > size:
                return  # what the last run left is still on its way out: the next request tries again
            group.bound(size)
            self.bounded = size
        except OSError:
            if size > self.bounded:  # programs would be stopped too early
                raise self.fault() from None

    def ask(
        self, kind: bytes, code: bytes = b"", fds: tuple[int, ...] = (), limits: Limits | None = None
    ) -> Outcome:
        """A request that runs no program. Raises SandboxFault."""
        nonce = self.begin(kind, list(fds), code, 0.0, limits or Limits())
        return self.outcome(nonce, 2 * GRACE)

    def cancel(self) -> None:
        """Ask for the death of what runs; its outcome follows."""
        with contextlib.suppress(OSError):
            self.control.sendall(protocol.KILL)

    def outcome(self, nonce: bytes, patience: float = GRACE) -> Outcome:
        """Read an outcome. Raises SandboxFault if the worker died instead, or says what it was not asked."""
        if self.control.gettimeout() != patience:
            self.control.settimeout(patience)
        head = protocol.OUTCOME.size
        try:
            data = self._hear() if self.gives else self.control.recv(2**16)  # nothing follows an outcome
            data += protocol.receive(self.control, max(0, head - len(data))) if data else b""
            if len(data) < head:
                raise self.fault()
            cause, status, seconds, lost, size, echo = protocol.OUTCOME.unpack(data[:head])
            value = data[head:] + protocol.receive(self.control, max(0, size - len(data) + head))
        except OSError:
            raise self.fault() from None
        if echo != nonce or len(value) != size:
            raise self.fault()
        return Outcome(cause, status, seconds, lost, value)

    def _hear(self) -> bytes:
        """Receive, and keep a socket that comes along."""
        data, notes, _, _ = self.control.recvmsg(2**16, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
        for _, _, note in notes:
            if self.given is not None:
                self.given.close()
            self.given = socket.socket(fileno=int.from_bytes(note[:4], sys.byteorder))
        return data

    def fault(self) -> SandboxFault:
        """End the worker; the error to raise for the call in flight."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(0.2)
        code, words = self.process.poll(), self.last_words()
        self.process.kill()
        self.close()
        said = f": {words}" if words else ""
        return SandboxFault(
            f"a worker of the sandbox {self.tier!r} died (exit status {code}{said}); the next call gets a new one"
        )

    def close(self) -> None:
        if self.given is not None:
            self.given.close()
        self._finalizer()


def _end(
    owner: int,
    process: subprocess.Popen[bytes],
    control: socket.socket,
    log: IO[bytes],
    folder: str,
    group: cgroup.Cgroup | None,
) -> None:
    if os.getpid() == owner:
        with contextlib.suppress(OSError):
            control.shutdown(socket.SHUT_RDWR)  # an event loop may have a copy yet
    control.close()
    log.close()
    if os.getpid() != owner:  # a forked copy: the worker is another's
        return
    try:
        process.wait(2.0)  # it sees the end of the socket, kills what runs and goes
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if group is not None:
        group.remove()
    if folder:
        shutil.rmtree(folder, ignore_errors=True)


def pump(worker: Worker, streams: list[Stream], nonce: bytes, deadline: float) -> Outcome | str:
    """Read the streams until something is to be decided: the outcome, or "timeout" (the deadline passed) or "output" (a
    stream flooded). Raises SandboxFault."""
    poller = select.poll()
    by_fd = {stream.reader: stream for stream in streams}
    for fd in (*by_fd, worker.control.fileno()):
        poller.register(fd, select.POLLIN)
    while (left := deadline - time.monotonic()) > 0:
        for fd, _ in poller.poll(left * 1000 + 1):
            stream = by_fd.get(fd)
            if stream is None:
                outcome = worker.outcome(nonce)
                for stream in by_fd.values():
                    stream.drain()
                return outcome
            if not stream.read():
                poller.unregister(fd)
        if any(stream.flooded for stream in streams):
            return "output"
    return "timeout"


def attend(
    worker: Worker, streams: list[Stream], nonce: bytes, deadline: float, ready: bool = False
) -> tuple[Outcome, KilledBy]:
    """Read the streams until the outcome is there, ending a run that floods. `ready`: the outcome can be read now.
    Raises SandboxFault for a worker that does not keep the deadline itself."""
    if ready:
        outcome = worker.outcome(nonce)
        for stream in streams:
            stream.drain()
        return outcome, outcome.killed_by
    end = pump(worker, streams, nonce, deadline)
    if end == "output":
        worker.cancel()
        deadline = time.monotonic() + GRACE
        while end == "output" and time.monotonic() < deadline:
            end = pump(worker, streams, nonce, deadline)
        if isinstance(end, Outcome):
            return end, "output"
    if not isinstance(end, Outcome):  # it hangs or was stopped
        worker.process.kill()
        raise worker.fault()
    return end, end.killed_by
