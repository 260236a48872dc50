"""The caller's side of a shell: one worker that keeps a bash going in a working tree."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from gymrl.sandboxes import worker as workers
from gymrl.sandboxes.base import Limits, Result, SandboxFault, SandboxUnavailable, ShellSession
from gymrl.sandboxes.exchange import Exchange
from gymrl.sandboxes.inside import protocol
from gymrl.sandboxes.pool import check_timeout
from gymrl.sandboxes.tree import WorkingTree, working_tree
from gymrl.sandboxes.worker import Outcome, Stream, Worker

PACE = 4 * 2**20
"""Bytes/s at which a working tree arrives at the least."""
FILES = 10.0
"""Seconds for reading or writing a file."""


class PoolShell(ShellSession):
    """One command at a time."""

    def __init__(
        self,
        open_worker: Callable[[int, int], Worker],
        backend: str,
        tree: str | os.PathLike[str],
        limits: Limits,
    ) -> None:
        self._open_worker, self.backend, self.tree, self.limits = (
            open_worker,
            backend,
            os.fspath(tree),
            limits,
        )
        self._exchange = Exchange("gymrl-shell")
        self._closed = False

    async def open(self) -> None:
        """Start the bash. Raises ValueError, SandboxUnavailable and SandboxFault."""
        try:
            await self._exchange.call(self._start)
        except BaseException:
            await self.close()
            raise

    async def exec(self, command: str, timeout: float = 10.0, limits: Limits | None = None) -> Result:
        check_timeout(timeout)
        self._check()
        text, bounds = command.encode("utf-8", "surrogatepass"), limits or self.limits
        if b"\0" in text:
            return Result("", "[shell] a command cannot hold a NUL byte\n", "", 2, 0.0, "", self.backend)
        return await self._exchange.turn(lambda: self._begin(text, timeout, bounds), len(text))

    async def read_file(self, path: str, most: int = 16 * 2**20) -> bytes:
        self._check()
        return await self._exchange.call(lambda: self._read(path, most))

    async def write_file(self, path: str, data: bytes | str) -> None:
        self._check()
        content = data.encode() if isinstance(data, str) else bytes(data)
        await self._exchange.call(lambda: self._write(path, content))

    async def reset(self) -> None:
        if not self._closed:
            await self._exchange.call(self._reset)

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await self._exchange.close()

    def _check(self) -> None:
        if self._closed:
            raise SandboxFault("this shell is closed: open another with sandbox.shell()")

    def _start(self) -> Worker:
        """The worker; a new one has the working tree as the folder holds it now."""
        if self._exchange.alive:
            return self._exchange.begin(self.limits.output)
        had = self._exchange.worker is not None
        self._exchange.stop()
        if had:
            raise SandboxFault("a shell's worker died, and its files with it; the next command starts afresh")
        tree = working_tree(self.tree)
        worker = self._exchange.worker = self._open_worker(tree.size, len(tree.items))
        try:
            self._hand_over(worker, tree)
        except BaseException:
            self._exchange.stop()
            raise
        return worker

    def _hand_over(self, worker: Worker, tree: WorkingTree) -> None:
        streams = self._exchange.streams = [Stream(self.limits.output) for _ in range(2)]
        reader, writer = os.pipe()
        failures: list[OSError] = []
        sender = threading.Thread(target=_send, args=(tree, writer, failures), daemon=True)
        try:
            code = struct.pack("<QQ", tree.size, len(tree.items))
            fds = (*(stream.writer for stream in streams), reader)
            nonce = worker.begin(protocol.SHELL, list(fds), code, 0.0, self.limits)
        except BaseException:
            os.close(writer)
            raise
        finally:
            os.close(reader)
            for stream in streams:
                stream.close_writer()
        sender.start()
        try:
            outcome = worker.outcome(nonce, 2 * workers.GRACE + tree.size / PACE)
        finally:
            sender.join(workers.GRACE)
        if outcome.cause == protocol.DONE:
            return
        if failures:
            raise ValueError(
                f"the working tree {self.tree!r} cannot be read ({failures[0]}): give a folder that can"
            )
        if outcome.exit == errno.ENOENT:
            raise SandboxUnavailable(
                f"the sandbox {self.backend!r} has no bash: install it, or take an image that has one"
            )
        raise ValueError(
            f"the working tree {self.tree!r} cannot be copied into the sandbox ({os.strerror(outcome.exit)}): "
            "give a smaller one"
        )

    def _ask(
        self, kind: bytes, code: bytes = b"", fds: tuple[int, ...] = (), limits: Limits | None = None
    ) -> Outcome:
        worker = self._start()
        try:
            nonce = worker.begin(kind, list(fds), code, FILES, limits or self.limits)
            return worker.outcome(nonce, FILES + 2 * workers.GRACE)
        except BaseException:
            self._exchange.stop()
            raise

    def _reset(self) -> None:
        if self._exchange.alive:
            self._ask(protocol.WIPE)
            for stream in self._exchange.streams:
                stream.drain()
                stream.take()
        else:
            self._exchange.stop()

    def _begin(self, text: bytes, timeout: float, limits: Limits) -> ShellTurn:
        worker = self._start()
        self._exchange.begin(limits.output)
        start = time.monotonic()
        try:
            nonce = worker.begin(protocol.EXEC, [], text, timeout, limits)
        except BaseException:
            self._exchange.stop()
            raise
        return ShellTurn(self, worker, nonce, start, timeout)

    def _read(self, path: str, most: int) -> bytes:
        worker = self._start()
        stream = Stream(most)
        limits = Limits(memory=self.limits.memory, file_size=most)
        try:
            name = os.fsencode(path)
            nonce = worker.begin(
                protocol.GET, [stream.writer], protocol.PATH.pack(len(name)) + name, FILES, limits
            )
            stream.close_writer()
            end, _ = workers.attend(worker, [stream], nonce, time.monotonic() + FILES + workers.GRACE)
            _check_visit(end, path)
            return bytes(stream.kept)
        except SandboxFault:
            self._exchange.stop()
            raise
        finally:
            stream.close()

    def _write(self, path: str, data: bytes) -> None:
        name = os.fsencode(path)
        _check_visit(self._ask(protocol.PUT, protocol.PATH.pack(len(name)) + name + data), path)


@dataclass(frozen=True, slots=True)
class ShellTurn:
    """A command that was sent to the worker."""

    shell: PoolShell
    worker: Worker
    nonce: bytes
    start: float
    timeout: float

    @property
    def source(self) -> socket.socket:
        return self.worker.control

    def quick(self) -> Result:
        return self._finish(True)

    def slow(self) -> Result:
        return self._finish(False)

    def _finish(self, ready: bool) -> Result:
        exchange = self.shell._exchange
        try:
            deadline = self.start + self.timeout + workers.GRACE
            end, reason = workers.attend(self.worker, exchange.streams, self.nonce, deadline, ready)
        except BaseException:
            exchange.stop()
            raise
        out, err = (stream.take() for stream in exchange.streams)
        if end.cause != protocol.DONE:
            err += _epitaph(end, reason, self.timeout)
        return Result(out, err, "", end.exit, time.monotonic() - self.start, reason, self.shell.backend)


def _send(tree: WorkingTree, writer: int, failures: list[OSError]) -> None:
    """Write the tree to a pipe, which is closed. A reader that goes away is told of by the worker."""
    try:
        with open(writer, "wb", buffering=2**16) as pipe:
            for part in tree.stream():
                pipe.write(part)
    except BrokenPipeError:
        pass
    except OSError as error:
        failures.append(error)


def _check_visit(end: Outcome, path: str) -> None:
    if end.cause == protocol.TIMEOUT:
        raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT), path)
    if end.exit < 0 or end.cause != protocol.ENDED:
        raise OSError(errno.EIO, "what read or wrote it was stopped", path)
    if end.exit:
        raise OSError(end.exit, os.strerror(end.exit), path)


def _epitaph(end: Outcome, reason: str, timeout: float) -> str:
    why = {
        "timeout": f"the command took more than {timeout:g} s and was stopped",
        "output": "the command printed too much and was stopped",
        "processes": "the command started too many processes and was stopped",
        "memory": "the command used too much memory and was stopped",
        "disk": "the command filled its folder and was stopped",
        "signal": f"the shell was ended by signal {-end.exit}",
    }.get(reason, f"the shell exited with status {end.exit}")
    where = (
        "at the top of the working tree"
        if end.lost
        else "in the folder and with the exported variables of before"
    )
    return f"[shell] {why}: a new one goes on {where}; files stay as they are\n"
