"""The caller's side of a session: one worker that keeps an interpreter going."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from gymrl.sandboxes import worker as workers
from gymrl.sandboxes.base import KilledBy, Limits, Result, SandboxFault, Session
from gymrl.sandboxes.direct import Direct
from gymrl.sandboxes.exchange import Exchange
from gymrl.sandboxes.inside import protocol
from gymrl.sandboxes.pool import check_timeout
from gymrl.sandboxes.worker import Outcome, Stream, Worker

USUAL = Limits()


class PoolSession(Session):
    """One run at a time. The memory, file and disk limits of the first run after a start hold until the next start.

    `sys.exit(n)` ends a run as a crash does; an exception does not: what the run did before it stays.
    """

    def __init__(self, open_worker: Callable[[], Worker], backend: str, checkpoint: bool) -> None:
        self._open, self.backend, self.checkpoint = open_worker, backend, checkpoint
        self._exchange = Exchange("gymrl-session")
        self._known: set[int] = set()
        self._direct: Direct | None = None
        self._closed = False

    @property
    def _worker(self) -> Worker | None:
        return self._exchange.worker

    async def run(self, code: str, timeout: float = 5.0, limits: Limits | None = None) -> Result:
        """Run code in the session. Raises SandboxFault, and ValueError for a bad time-out."""
        check_timeout(timeout)
        self._check()
        source = (b"c" if self.checkpoint else b"-") + code.encode("utf-8", "surrogatepass")
        bounds = limits or USUAL
        return await self._exchange.turn(lambda: self._begin(source, timeout, bounds), len(source))

    async def reset(self) -> None:
        if not self._closed:
            await self._exchange.call(self._reset)

    async def snapshot(self) -> int:
        self._check()
        outcome = await self._exchange.call(lambda: self._ask(protocol.SNAPSHOT))
        if outcome.cause == protocol.ASKED:
            raise ValueError("this session has 64 snapshots: forget() one first")
        if outcome.lost:
            raise SandboxFault(
                "the session's process cannot be copied: its state is lost, the next run starts afresh"
            )
        number = int(outcome.value)
        self._known.add(number)
        return number

    async def restore(self, snapshot: int) -> None:
        self._check()
        if snapshot not in self._known:
            raise ValueError(
                f"this session has no snapshot {snapshot!r}: it has {sorted(self._known) or 'none'}"
            )
        outcome = await self._exchange.call(lambda: self._ask(protocol.RESTORE, str(snapshot).encode()))
        if outcome.lost:
            raise SandboxFault("the snapshot's process cannot be copied: the next run starts afresh")

    async def forget(self, snapshot: int) -> None:
        """Drop a snapshot, which holds a process."""
        self._check()
        self._known.discard(snapshot)
        await self._exchange.call(lambda: self._ask(protocol.FORGET, str(snapshot).encode()))

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await self._exchange.call(self._stop)
            await self._exchange.close()

    def _check(self) -> None:
        if self._closed:
            raise SandboxFault("this session is closed: open another with sandbox.session()")

    def _start(self, limits: Limits) -> Worker:
        if self._exchange.alive:
            return self._exchange.begin(limits.output)
        had = self._exchange.worker is not None
        self._stop()
        if had:
            raise SandboxFault(
                "a session's worker died, and its variables with it; the next run starts afresh"
            )
        direct = self._prepare_direct()
        worker = self._exchange.worker = self._open()
        streams = self._exchange.streams = [Stream(limits.output) for _ in range(2)]
        fds = tuple(stream.writer for stream in streams)
        if direct is not None and direct.works:
            self._direct, worker.gives = direct, True
            fds = (*fds, direct.page)
        elif direct is not None:
            direct.close()
        try:
            outcome = worker.ask(protocol.SESSION, fds=fds, limits=limits)
        finally:
            for stream in streams:
                stream.close_writer()
        if outcome.lost:
            raise worker.fault()
        return worker

    def _reset(self) -> None:
        if self._exchange.alive:
            self._ask(protocol.RESTORE, b"0")
        else:
            self._stop()

    def _prepare_direct(self) -> Direct | None:
        """The short way for turns, where there is one: without checkpoints, in a jail on this machine."""
        if self.checkpoint or self.backend != "namespaces":
            return None
        try:
            return Direct()
        except OSError:
            return None

    def _stop(self) -> None:
        self._exchange.stop()
        if self._direct is not None:
            self._direct.close()
            self._direct = None
        self._known.clear()

    def _ask(self, kind: bytes, argument: bytes = b"") -> Outcome:
        worker = self._start(Limits())
        try:
            return worker.ask(kind, argument)
        except BaseException:
            self._stop()
            raise

    def _begin(self, source: bytes, timeout: float, limits: Limits) -> SessionTurn:
        worker, direct = self._start(limits), self._direct
        turn = SessionTurn(self, worker, direct, timeout, limits)
        try:
            if direct is None or not direct.begin(worker, source[1:], timeout, limits):
                turn.nonce = worker.begin(protocol.TURN, [], source, timeout, limits)
        except BaseException:
            self._stop()
            raise
        return turn

    def _result(self, turn: SessionTurn, end: Outcome, reason: KilledBy) -> Result:
        out, err = (stream.take() for stream in self._exchange.streams)
        if end.cause != protocol.DONE:
            err += _epitaph(end, reason, turn.timeout)
        value = end.value.decode("utf-8", "replace")
        return Result(out, err, value, end.exit, time.monotonic() - turn.start, reason, self.backend)


class SessionTurn:
    """A turn that was begun: by way of the worker, whose outcome bears the nonce, or past it (no nonce yet)."""

    def __init__(
        self, session: PoolSession, worker: Worker, direct: Direct | None, timeout: float, limits: Limits
    ) -> None:
        self.session, self.worker, self.direct, self.nonce = session, worker, direct, b""
        self.timeout, self.limits, self.start = timeout, limits, time.monotonic()

    @property
    def source(self) -> socket.socket:
        if self.nonce or self.direct is None or self.direct.channel is None:
            return self.worker.control
        return self.direct.channel

    def quick(self) -> Result | None:
        """What it came to, now that `source` can be read. Raises SandboxFault."""
        if self.nonce:
            return self._attended(True)
        try:
            end = self.direct.end(self.limits.output) if self.direct else None
            if end is None:
                self._hand_over()
                return None
            for stream in self.session._exchange.streams:
                stream.drain()
        except BaseException:
            self.session._stop()
            raise
        return self.session._result(self, end, "")

    def slow(self) -> Result:
        """The same, blocking."""
        if not self.nonce:
            try:
                self._hand_over()
            except BaseException:
                self.session._stop()
                raise
        return self._attended(False)

    def _hand_over(self) -> None:
        left = max(0.001, self.start + self.timeout - time.monotonic())
        self.nonce = self.worker.begin(protocol.ATTEND, [], b"", left, self.limits)

    def _attended(self, ready: bool) -> Result:
        try:
            deadline = self.start + self.timeout + workers.GRACE
            streams = self.session._exchange.streams
            end, reason = workers.attend(self.worker, streams, self.nonce, deadline, ready)
            if self.direct is not None:
                self.direct.over()
        except BaseException:
            self.session._stop()
            raise
        return self.session._result(self, end, reason)


def _epitaph(end: Outcome, reason: str, timeout: float) -> str:
    why = {
        "timeout": f"the run took more than {timeout:g} s and was stopped",
        "output": "the run printed too much and was stopped",
        "processes": "the run started too many processes and was stopped",
        "memory": "the run used too much memory and was stopped",
        "disk": "the run filled its folder and was stopped",
        "signal": f"the interpreter was ended by signal {-end.exit}",
    }.get(reason, f"the run exited with status {end.exit}")
    then = (
        "its variables are lost, the next run starts afresh"
        if end.lost
        else "the session is as it was before this run"
    )
    return f"[session] {why}: {then}\n"
