"""Worker processes for environments that compute for long or are not safe in threads.

A worker is a fresh Python process (no fork: the parent may hold torch's threads) that keeps many environments and
speaks in length-prefixed pickles over a socket pair. Two threads of the parent serve each worker, so that neither
a slow worker nor a full pipe ever blocks the event loop, and so that handles work from any loop.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import pickle
import queue
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from typing import Any

from gymrl.envs.gym import EnvironmentFault, StepResult
from gymrl.envs.records import Action, Observation, TaskSpec
from gymrl.envs.registry import entry

HEADER = struct.Struct(">Q")
START_SECONDS = 120.0
"""How long a process may take until its first answer, on a machine that is busy."""
BOOT = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from gymrl.envs.process_worker import main; main()"


def frame(message: Any) -> bytes:
    """A message on the wire: its length in 8 bytes, then its pickle. Raises whatever pickle raises."""
    body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return HEADER.pack(len(body)) + body


class Worker:
    """One worker process as its parent sees it. `load` counts the environments it keeps."""

    def __init__(self, stall_seconds: float) -> None:
        self.load = 0
        self.pid = 0
        self.dead = ""
        """Why the process is gone; '' while it is there."""
        self._stall_seconds = stall_seconds
        self._ids = itertools.count(1)
        self._waiting: dict[int, tuple[Future[Any], str]] = {}
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._queued = 0
        """Messages in the outbox that are not yet sent."""
        self._kill_reason = ""
        self._closing = False
        self._process: subprocess.Popen[bytes] | None = None
        self.thread = threading.Thread(target=self._live, name="gymrl-env-worker", daemon=True)
        self.thread.start()

    async def call(self, what: str, method: str, *args: Any) -> Any:
        """Run `method` in the process. Raises what it raises there, or EnvironmentFault if the process dies."""
        return await asyncio.wrap_future(self.send(what, method, *args))

    def send(self, what: str, method: str, *args: Any) -> Future[Any]:
        """Queue a call; `what` names it in the reason if the process dies over it."""
        future: Future[Any] = Future()
        number = next(self._ids)
        message = frame((number, method, args))
        with self._lock:
            if self.dead:
                raise EnvironmentFault(f"{what}: {self.dead}")
            self._waiting[number] = (future, what)
            self._post(message)
        return future

    def stop(self, grace: float) -> None:
        """Ask the process to close its environments and go; kill it after `grace` seconds. Blocks."""
        self._closing = True
        with self._lock:
            self._post(frame((0, "exit", ())))
        self.thread.join(grace)
        if self.thread.is_alive():
            self.kill("was stopped")
            self.thread.join()

    def kill(self, reason: str) -> None:
        self._kill_reason = self._kill_reason or reason
        if self._process is not None:
            self._process.kill()

    def _post(self, message: bytes) -> None:
        """Send a message, with the lock held: at once, as far as the pipe takes it and nothing waits before it (a
        thread less to wake); the rest is the writer's."""
        if self._socket is not None and not self._queued:
            try:
                message = message[self._socket.send(message, socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                pass
            except OSError:  # the process is gone, as the reader will find
                return
        if message:
            self._queued += 1
            self._outbox.put(message)

    # -- the threads -------------------------------------------------------------------------------------

    def _live(self) -> None:
        """Start the process, read its answers, and clear up when it is gone.

        This thread starts the process and outlives it, because the kernel's parent-death signal is bound to the
        thread, not the process, that started it.
        """
        ours, theirs = socket.socketpair()
        writer = threading.Thread(target=self._write, args=(ours,), name="gymrl-env-writer", daemon=True)
        reason = ""
        try:
            with theirs:
                self._process = self._start(theirs.fileno())
            self.pid = self._process.pid
            with self._lock:
                self._socket = ours
            writer.start()
            self._read(ours)
        except Exception as error:  # whatever it was, nobody may wait for this worker for ever
            reason = f"the worker process failed ({type(error).__name__}: {error})"
            self.kill(reason)
        finally:
            self._bury(reason)
            self._outbox.put(None)
            if writer.ident is not None:
                writer.join()
            ours.close()

    def _start(self, fd: int) -> subprocess.Popen[bytes]:
        paths = json.dumps([path for path in sys.path if isinstance(path, str)])
        command = [sys.executable, "-c", BOOT, paths, str(fd), str(os.getpid())]
        environ = {"OMP_NUM_THREADS": "1", **os.environ}
        # A process group of its own: Ctrl-C in the terminal is the trainer's to handle.
        return subprocess.Popen(
            command, env=environ, stdin=subprocess.DEVNULL, pass_fds=(fd,), process_group=0
        )  # fmt: skip

    def _write(self, sock: socket.socket) -> None:
        while (message := self._outbox.get()) is not None:
            try:
                sock.sendall(message)
            except OSError:
                return
            with self._lock:
                self._queued -= 1

    def _read(self, sock: socket.socket) -> None:
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        heard, limit = time.monotonic(), max(START_SECONDS, self._stall_seconds)
        buffer = bytearray()
        while True:
            if not poll.poll(1000):
                if not self._waiting:
                    heard = time.monotonic()
                elif time.monotonic() - heard > limit:
                    self.kill(f"said nothing for {limit:g} s and was killed")
                continue
            try:
                part = sock.recv(2**18)
            except ConnectionError:
                return
            if not part:
                return
            heard, limit = time.monotonic(), self._stall_seconds
            buffer += part
            while (message := _take_frame(buffer)) is not None:
                self._answered(*message)

    def _answered(self, number: int, ok: bool, value: Any) -> None:
        with self._lock:
            future, _ = self._waiting.pop(number, (None, ""))
        if future is None or not future.set_running_or_notify_cancel():
            return
        if ok:
            future.set_result(value)
        else:
            future.set_exception(_error(*value))

    def _bury(self, reason: str) -> None:
        if self._process is not None:
            code = self._process.wait()
            how = self._kill_reason or ("was closed" if self._closing else _exit_words(code))
            reason = reason or f"the worker process {self.pid} {how}"
        with self._lock:
            self.dead, self._socket = reason or "the worker process is gone", None
            waiting, self._waiting = self._waiting, {}
        for future, what in waiting.values():
            if future.set_running_or_notify_cancel():
                future.set_exception(EnvironmentFault(f"{what}: {self.dead}"))


def _take_frame(buffer: bytearray) -> Any:
    """Cut the first whole message off the buffer; None where there is none yet."""
    if len(buffer) < HEADER.size:
        return None
    end = HEADER.size + HEADER.unpack_from(buffer)[0]
    if len(buffer) < end:
        return None
    message = pickle.loads(buffer[HEADER.size : end])
    del buffer[:end]
    return message


def _exit_words(code: int) -> str:
    if code >= 0:
        return f"died (exit status {code})"
    try:
        return f"died (killed by {signal.Signals(-code).name})"
    except ValueError:
        return f"died (killed by signal {-code})"


def _error(pickled: bytes | None, kind: str, text: str, trace: str) -> Exception:
    """The exception as it was raised, if it can travel, else an EnvironmentFault; its note is the traceback."""
    error: Exception | None = None
    if pickled is not None:
        try:
            value = pickle.loads(pickled)
            error = value if isinstance(value, Exception) else None
        except Exception:  # an exception whose class does not come back
            error = None
    error = error or EnvironmentFault(f"{kind}: {text}")
    error.add_note(f"In the worker process:\n{trace}")
    return error


class ProcessHandle:
    """One environment in a worker. After the worker's death every method but `close` raises EnvironmentFault."""

    def __init__(self, worker: Worker, env_id: str, key: int) -> None:
        self.worker, self.env_id, self.key = worker, env_id, key
        self._closed = False

    async def _call(self, method: str, *args: Any) -> Any:
        return await self.worker.call(f"{self.env_id}.{method}", method, self.key, *args)

    async def reset(self, task: TaskSpec) -> tuple[Observation, dict[str, Any]]:
        return await self._call("reset", task)  # type: ignore[no-any-return]

    async def step(self, action: Action) -> StepResult:
        return await self._call("step", action)  # type: ignore[no-any-return]

    async def oracle(self) -> Action:
        return await self._call("oracle")  # type: ignore[no-any-return]

    async def random_action(self, seed: int) -> Action:
        return await self._call("random_action", seed)  # type: ignore[no-any-return]

    async def close(self) -> None:
        """Close the environment, whatever call of it is under way. Nothing is left to close in a dead worker."""
        if self._closed:
            return
        self._closed = True
        self.worker.load -= 1
        if not self.worker.dead:
            # A worker that dies meanwhile has nothing left to close either.
            try:
                await self._call("close")
            except EnvironmentFault:
                if not self.worker.dead:
                    raise


class ProcessPool:
    """Environments in up to `workers` processes, which are started as they are needed.

    A new environment goes to the process that keeps the fewest, and stays there. A process that dies fails the
    calls it was serving with EnvironmentFault and is replaced at the next `open`. One that says nothing for
    `stall_seconds` while calls wait (an endless loop in an environment) is killed; a world that awaits is not
    silent.
    """

    def __init__(self, workers: int, stall_seconds: float = 300.0) -> None:
        if workers < 1:
            raise ValueError(f"a process pool has 1 worker or more, not {workers}")
        self.size, self.stall_seconds = workers, stall_seconds
        self.workers: list[Worker] = []
        self._keys = itertools.count(1)
        self._lock = threading.Lock()
        self._closed = False

    async def open(self, env_id: str, params: dict[str, Any]) -> ProcessHandle:
        """A handle on a fresh environment. Raises EnvironmentFault if the worker cannot import its class."""
        target = import_path(env_id)
        defaults = entry(env_id).defaults
        worker = self._take()
        handle = ProcessHandle(worker, env_id, next(self._keys))
        try:
            await worker.call(f"{env_id}.open", "open", handle.key, env_id, target, defaults, dict(params))
        except BaseException:
            await asyncio.shield(handle.close())
            raise
        return handle

    async def aclose(self) -> None:
        """Close every environment and end every process."""
        with self._lock:
            self._closed = True
            workers, self.workers = self.workers, []
        await asyncio.gather(*(asyncio.to_thread(worker.stop, 5.0) for worker in workers))

    def _take(self) -> Worker:
        with self._lock:
            if self._closed:
                raise RuntimeError("the process pool is closed")
            self.workers = [worker for worker in self.workers if not worker.dead]
            least = min(self.workers, key=lambda worker: worker.load, default=None)
            if least is None or (least.load > 0 and len(self.workers) < self.size):
                least = Worker(self.stall_seconds)
                self.workers.append(least)
            least.load += 1
            return least


def import_path(env_id: str) -> str:
    """The `module:Class` under which another process finds an environment.

    Raises EnvironmentFault for a class that no other process can import.
    """
    cls = entry(env_id).cls()
    if cls.__module__ == "__main__" or "<locals>" in cls.__qualname__:
        where = "the script that was started" if cls.__module__ == "__main__" else "a function"
        raise EnvironmentFault(
            f"{env_id} runs in worker processes, which cannot import {cls.__qualname__} from {where}: "
            "move the class to a module of its own, or set runs = 'thread'"
        )
    return f"{cls.__module__}:{cls.__qualname__}"
