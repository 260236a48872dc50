"""The local sandbox: programs in limited processes of this machine, fast, and without a jail.

What it does: each run is a fresh process forked from a clean interpreter, with an empty environment, no standard
input, an empty working folder that is wiped afterwards, rlimits (memory and CPU per process, file size, open files,
no core dumps), a cap on processes and output, and a wall-clock time-out that kills everything the run started.
The exit status comes from the operating system, not from the program.

What it does not do: it is no jail. A program runs as you. It reads and writes your files, reaches the network, sees
and can signal your other processes, this one included. Use it for code that is clumsy, not for code that is hostile;
for that, run gymrl itself inside a container or a virtual machine. A session's replies come from the process
that runs the program, so a program that tries can forge them: reward nothing that only a session's `value` shows.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import queue
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from gymrl.sandboxes import zygote
from gymrl.sandboxes.base import KilledBy, Limits, Result, Sandbox, SandboxFault, Session
from gymrl.sandboxes.worker import GRACE, Status, Stream, Worker, pump

T = TypeVar("T")
BACKEND = "local"


class LocalSandbox(Sandbox):
    """A pool of workers, one run at a time on each; any number of event loops and threads may share it.

    `workers` is how many programs run at once (as many as there are CPUs, by default). Workers start when they are
    needed; one that dies is replaced: the call in flight raises SandboxFault, the next one works.
    """

    backend = BACKEND

    def __init__(self, workers: int | None = None) -> None:
        self.size = max(1, workers or os.cpu_count() or 1)
        self._start()

    def _start(self) -> None:
        self._owner, self._closed = os.getpid(), False
        self._threads = ThreadPoolExecutor(self.size, "gymrl-sandbox")
        self._idle: queue.LifoQueue[Worker] = queue.LifoQueue()

    def _pool(self) -> ThreadPoolExecutor:
        if self._closed:
            raise SandboxFault("this sandbox is closed: open another with open_sandbox()")
        if self._owner != os.getpid():  # a fork took neither threads nor workers along
            self._start()
        return self._threads

    async def run(self, code: str, timeout: float = 5.0, limits: Limits | None = None) -> Result:
        """Run a Python program in a process of its own. Raises SandboxFault, and ValueError for a bad time-out."""
        _check_timeout(timeout)
        return await _in_thread(self._pool(), lambda: self._run(code, timeout, limits or Limits()))

    def _run(self, code: str, timeout: float, limits: Limits) -> Result:
        try:
            worker = self._idle.get_nowait()
        except queue.Empty:
            worker = Worker()
        if not worker.alive:
            worker.close()
            worker = Worker()
        try:
            return run_program(worker, code, timeout, limits)
        finally:
            if self._closed or not worker.alive:
                worker.close()
            else:
                self._idle.put(worker)

    async def session(self) -> LocalSession:
        """A session; its process starts with its first run."""
        self._pool()
        return LocalSession()

    async def close(self) -> None:
        """End the workers once the runs in flight are over. Sessions are closed by whoever opened them."""
        if not self._closed and self._owner == os.getpid():
            self._closed = True
            await asyncio.get_running_loop().run_in_executor(None, self._close)

    def _close(self) -> None:
        self._threads.shutdown(wait=True)
        with contextlib.suppress(queue.Empty):
            while True:
                self._idle.get_nowait().close()


def run_program(worker: Worker, code: str, timeout: float, limits: Limits) -> Result:
    """Run a program on an idle worker, blocking. Raises SandboxFault."""
    out, err = Stream(limits.output), Stream(limits.output)
    reason: KilledBy = ""
    try:
        worker.begin(
            zygote.RUN, [out.writer, err.writer], code.encode("utf-8", "surrogatepass"), timeout, limits
        )
        out.close_writer()
        err.close_writer()
        deadline = time.monotonic() + timeout + GRACE
        end = pump(worker, [out, err], None, deadline)
        if end == "output":
            reason = "output"
            end = _end(worker, [out, err])
        if not isinstance(end, Status):  # the worker did not keep the time-out: it hangs or was stopped
            worker.process.kill()
            raise worker.fault()
        return Result(out.take(), err.take(), "", end.exit, end.seconds, reason or end.killed_by, BACKEND)
    finally:
        out.close()
        err.close()


class LocalSession(Session):
    """A Python process whose variables live on from run to run. One run at a time.

    A run that is killed, or that ends the process, loses the variables: its Result says so on stderr, and the next
    run starts afresh. `sys.exit(n)` ends the run only. The memory, file and process limits of the first run after a
    start hold until the process ends.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(1, "gymrl-session")
        self._worker: Worker | None = None
        self._streams: list[Stream] = []
        self._turns = -1
        self._closed = False

    async def run(self, code: str, timeout: float = 5.0, limits: Limits | None = None) -> Result:
        """Run code in the session. Raises SandboxFault, and ValueError for a bad time-out."""
        _check_timeout(timeout)
        if self._closed:
            raise SandboxFault("this session is closed: open another with sandbox.session()")
        return await _in_thread(self._threads, lambda: self._run(code, timeout, limits or Limits()))

    async def reset(self) -> None:
        """Forget every variable and file."""
        if not self._closed:
            await _in_thread(self._threads, self._stop)

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await _in_thread(self._threads, self._stop)
            self._threads.shutdown(wait=False)

    def _start(self, limits: Limits) -> Worker:
        worker = self._worker = Worker()
        out, err, reply = self._streams = [Stream(limits.output) for _ in range(3)]
        reader, self._turns = os.pipe()
        try:
            worker.begin(zygote.SESSION, [out.writer, err.writer, reader, reply.writer], b"", 0.0, limits)
        finally:
            os.close(reader)
            for stream in self._streams:
                stream.close_writer()
        return worker

    def _stop(self) -> None:
        if self._turns >= 0:
            os.close(self._turns)
        for stream in self._streams:
            stream.close()
        if self._worker is not None:
            self._worker.close()
        self._turns, self._streams, self._worker = -1, [], None

    def _run(self, code: str, timeout: float, limits: Limits) -> Result:
        worker = self._worker
        if worker is None or not worker.alive:
            self._stop()
            worker = self._start(limits)
        out, err, reply = self._streams
        out.limit = err.limit = limits.output
        reply.limit = limits.output + zygote.REPLY.size
        reply.take()
        source = code.encode("utf-8", "surrogatepass")
        start = time.monotonic()
        try:
            _write(self._turns, zygote.TURN.pack(math.ceil(timeout), len(source)) + source, start + timeout)
            end = pump(worker, [out, err], reply, start + timeout)
            if end == "reply":
                status, size = zygote.REPLY.unpack_from(reply.kept)
                value = reply.kept[zygote.REPLY.size :][:size].decode("utf-8", "replace")
                return Result(out.take(), err.take(), value, status, time.monotonic() - start, "", BACKEND)
            reason: KilledBy = "output" if end == "output" else "timeout"
            if isinstance(end, Status):
                reason = end.killed_by
            else:
                end = _end(worker, [out, err])
            result = Result(out.take(), err.take(), "", end.exit, time.monotonic() - start, reason, BACKEND)
        except BaseException:
            self._stop()
            raise
        self._stop()
        return replace(result, stderr=f"{result.stderr}{_epitaph(result, timeout)}\n")


def _epitaph(result: Result, timeout: float) -> str:
    why = {
        "timeout": f"the run took more than {timeout:g} s and was stopped",
        "output": "the run printed too much and was stopped",
        "processes": "the run started too many processes and was stopped",
        "signal": f"the interpreter was ended by signal {-result.exit}",
    }.get(result.killed_by, f"the interpreter ended with status {result.exit}")
    return f"[session] {why}: its variables are lost, the next run starts afresh"


def _end(worker: Worker, streams: list[Stream]) -> Status:
    """Have what runs killed, reading on meanwhile; how it ended. Raises SandboxFault if the worker does not answer."""
    worker.cancel()
    deadline = time.monotonic() + GRACE
    while time.monotonic() < deadline:
        end = pump(worker, streams, None, deadline)
        if isinstance(end, Status):
            return end
    worker.process.kill()
    raise worker.fault()


def _write(fd: int, data: bytes, deadline: float) -> None:
    """Hand a turn to the session's process, which reads it at once unless the program blocked its pipe."""
    import select

    os.set_blocking(fd, False)
    view = memoryview(data)
    while view and time.monotonic() < deadline:
        select.select([], [fd], [], max(0.0, deadline - time.monotonic()))
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            continue
        except BrokenPipeError:  # it ended between two runs; its status follows
            return


async def _in_thread(pool: ThreadPoolExecutor, call: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, call)


def _check_timeout(timeout: float) -> None:
    if not (math.isfinite(timeout) and timeout > 0):
        raise ValueError(f"a time-out is a positive number of seconds, not {timeout!r}")
