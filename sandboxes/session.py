"""The caller's side of a session: one worker that keeps an interpreter going."""

from __future__ import annotations

import time
from collections.abc import Callable

from gymrl.sandboxes import worker as workers
from gymrl.sandboxes.base import Limits, Result, SandboxFault, Session
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
        worker = self._exchange.worker = self._open()
        streams = self._exchange.streams = [Stream(limits.output) for _ in range(2)]
        try:
            outcome = worker.ask(protocol.SESSION, fds=tuple(s.writer for s in streams), limits=limits)
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

    def _stop(self) -> None:
        self._exchange.stop()
        self._known.clear()

    def _ask(self, kind: bytes, argument: bytes = b"") -> Outcome:
        worker = self._start(Limits())
        try:
            return worker.ask(kind, argument)
        except BaseException:
            self._stop()
            raise

    def _begin(self, source: bytes, timeout: float, limits: Limits) -> Callable[[bool], Result]:
        worker = self._start(limits)
        start = time.monotonic()
        try:
            nonce = worker.begin(protocol.TURN, [], source, timeout, limits)
        except BaseException:
            self._stop()
            raise
        return lambda ready: self._finish(worker, nonce, start, timeout, ready)

    def _finish(self, worker: Worker, nonce: bytes, start: float, timeout: float, ready: bool) -> Result:
        try:
            deadline = start + timeout + workers.GRACE
            end, reason = workers.attend(worker, self._exchange.streams, nonce, deadline, ready)
        except BaseException:
            self._stop()
            raise
        out, err = (stream.take() for stream in self._exchange.streams)
        if end.cause != protocol.DONE:
            err += _epitaph(end, reason, timeout)
        value = end.value.decode("utf-8", "replace")
        return Result(out, err, value, end.exit, time.monotonic() - start, reason, self.backend)


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
