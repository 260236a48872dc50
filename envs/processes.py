"""Worker processes for environments that compute for long or are not safe in threads.

A worker is a fresh Python process (no fork: the parent may hold torch's threads) that keeps many environments. Its
answers are read by the event loops that wait for them, so that a step costs no thread's wake-up; a thread of the
parent starts the process, watches it, reads what no loop finds the time to, and clears up when it is gone. Neither a
slow worker nor a full pipe ever blocks an event loop, and handles work from any loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import time
from typing import Any

from gymrl.envs.deadlines import limit_of_call
from gymrl.envs.gym import EnvironmentFault, StepResult
from gymrl.envs.logbook import Logbook, ProcessLost, Verdict, judge
from gymrl.envs.records import Action, Observation, TaskSpec
from gymrl.envs.registry import entry
from gymrl.envs.wire import Wire, frame

LATE_SECONDS = 5.0
"""How long a process may say nothing once a call in it has missed its deadline."""
START_SECONDS = 120.0
"""How long a process may take until its first answer, on a machine that is busy."""
BOOT = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from gymrl.envs.process_worker import main; main()"


class Worker:
    """One worker process as its parent sees it. `load` counts the environments it keeps."""

    def __init__(self, stall_seconds: float) -> None:
        self.load = 0
        self.pid = 0
        self.dead = ""
        """Why the process is gone; '' while it is there."""
        self._stall_seconds = stall_seconds
        self._ids = itertools.count(1)
        self._waiting: dict[int, tuple[asyncio.Future[Any], str]] = {}
        self._lock = threading.Lock()
        self._wire = Wire(self._answered, self._failed)
        self._book = Logbook.new()
        self._verdict: Verdict | None = None
        """Who ended the process; None while it is there, and where it was closed or never came up."""
        self._heard, self._limit = time.monotonic(), max(START_SECONDS, stall_seconds)
        self.late = False
        """Whether a call has missed its deadline and nothing was heard since: it takes no more environments."""
        self._kill_reason = ""
        self._up = self._hung = self._closing = False
        self._process: subprocess.Popen[bytes] | None = None
        self.thread = threading.Thread(target=self._live, name="gymrl-env-worker", daemon=True)
        self.thread.start()

    async def call(self, what: str, method: str, *args: Any) -> Any:
        """Run `method` in the process; `what` names it in the reason if the process dies over it. Raises what it raises
        there, EnvironmentFault if the process dies of it, and ProcessLost if it dies otherwise."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        number = next(self._ids)
        message = frame((number, method, args))
        with self._lock:
            if self.dead:
                raise self._fault(what)
            self._waiting[number] = (future, what)
        self._wire.listen(loop)
        self._wire.send(message)
        if (limit := limit_of_call()) is not None:
            limit.ask = functools.partial(self._left, number)
        try:
            return await future
        except asyncio.CancelledError:  # mostly by a deadline
            self.late = self._up  # else it is starting yet
            raise
        finally:
            if limit is not None:
                limit.ask = None

    def stop(self, grace: float) -> None:
        """Ask the process to close its environments and go; kill it after `grace` seconds. Blocks."""
        self._closing = True
        self._wire.send(frame((0, "exit", ())))
        self.thread.join(grace)
        if self.thread.is_alive():
            self.kill("was stopped")
            self.thread.join()

    def kill(self, reason: str) -> None:
        self._kill_reason = self._kill_reason or reason
        if self._process is not None:
            self._process.kill()

    # -- the thread ----------------------------------------------------------------------------------------

    def _live(self) -> None:
        """Start the process, watch it, and clear up when it is gone.

        This thread starts the process and outlives it, because the kernel's parent-death signal is bound to the
        thread, not the process, that started it.
        """
        reason = ""
        try:
            with self._wire.theirs as theirs:
                self._process = self._start(theirs.fileno(), self._book.fd)
            self._book.sent()
            self.pid = self._process.pid
            self._watch()
        except Exception as error:  # whatever it was, nobody may wait for this worker for ever
            reason = f"the worker process failed ({type(error).__name__}: {error})"
            self.kill(reason)
        finally:
            self._bury(reason)

    def _start(self, *fds: int) -> subprocess.Popen[bytes]:
        paths = json.dumps([path for path in sys.path if isinstance(path, str)])
        command = [sys.executable, "-c", BOOT, paths, str(os.getpid()), *map(str, fds)]
        environ = {"OMP_NUM_THREADS": "1", **os.environ}
        # A process group of its own: Ctrl-C in the terminal is the trainer's to handle.
        return subprocess.Popen(
            command, env=environ, stdin=subprocess.DEVNULL, pass_fds=fds, process_group=0
        )  # fmt: skip

    def _watch(self) -> None:
        """Until the process is gone: once a second, read what no loop has read, and see whether it says anything."""
        poll = select.poll()
        poll.register(self._wire.socket, 0)  # a hang-up is always told, and nothing else wakes this thread
        while not poll.poll(1000):
            self._wire.read()
            if not self._waiting:
                self._heard = time.monotonic()
            elif (silent := time.monotonic() - self._heard) > (LATE_SECONDS if self.late else self._limit):
                late = ", beyond a call's deadline," if self.late else ""
                self._hung = True
                self.kill(f"said nothing for {silent:.0f} s{late} and was killed")
        self._wire.read()

    def _answered(self, message: tuple[int, bool, Any]) -> None:
        """A message of the process, on whatever thread has read it."""
        number, ok, value = message
        self._heard, self._limit, self.late, self._up = time.monotonic(), self._stall_seconds, False, True
        with self._lock:
            future, _ = self._waiting.pop(number, (None, ""))
        if future is not None:
            _settle(future, value if ok else None, None if ok else _error(*value))

    def _failed(self, error: Exception) -> None:
        self.kill(f"sent what cannot be read ({type(error).__name__}: {error}) and was killed")

    def _left(self, number: int, seconds: float) -> tuple[float, bool]:
        """How much a call has left of its seconds, and whether it waits. They begin with its own work, and stand still
        while another's holds the process up; but a silence of that length is enough for those that wait, too."""
        now = time.monotonic()
        with self._lock:
            if self.dead:
                return 0.05, True  # its future is told at any moment
            found = self._book.read()
        silence = self._heard + seconds - now
        began = found.begun.get(number)
        if began is None:
            return silence, True
        if found.working in (0, number):
            return began + seconds - now, False
        left = seconds - (found.since - began)
        return (min(silence, max(left, 0.05)), True) if left > 0 else (left, False)

    def _fault(self, what: str, number: int = 0) -> EnvironmentFault:
        """What a call on the dead process raises."""
        text = f"{what}: {self.dead}"
        if self._verdict is None or number == self._verdict.guilty != 0:
            return EnvironmentFault(text)
        return ProcessLost(text, number in self._verdict.suspects)

    def _bury(self, reason: str) -> None:
        code = 0
        if self._process is not None:
            code = self._process.wait()
            how = self._kill_reason or ("was closed" if self._closing else _exit_words(code))
            reason = reason or f"the worker process {self.pid} {how}"
        with self._lock:
            found = self._book.read()
            if not self._closing and (self._up or found.begun):  # else another try would come to the same
                self._verdict = judge(found, self._hung, -signal.SIGKILL if self._kill_reason else code)
            self.dead = reason or "the worker process is gone"
            waiting, self._waiting = self._waiting, {}
            self._book.close()
        self._wire.close()
        for number, (future, what) in waiting.items():
            _settle(future, None, self._fault(what, number))


def _settle(future: asyncio.Future[Any], value: Any, error: Exception | None) -> None:
    """Give a future its result, from any thread."""
    loop = future.get_loop()
    if asyncio._get_running_loop() is not loop:
        with contextlib.suppress(RuntimeError):  # the loop is closed already
            loop.call_soon_threadsafe(_settle, future, value, error)
    elif future.done():
        pass  # nobody waits any more
    elif error is not None:
        future.set_exception(error)
    else:
        future.set_result(value)


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
    """One environment in a worker. After the worker's death every method but `close` raises EnvironmentFault.

    The worker has other environments, and no deadline (`gymrl.envs.deadlines`) runs while they hold it up."""

    def __init__(self, worker: Worker, env_id: str, key: int) -> None:
        self.worker, self.env_id, self.key = worker, env_id, key
        self._closed = False

    @property
    def dead(self) -> str:
        """Why its process is gone; '' while it is there."""
        return self.worker.dead

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
    calls it was serving with EnvironmentFault (ProcessLost where it was another's doing, or may have been) and is
    replaced at the next `open`. One that says nothing for `stall_seconds` while calls wait (an endless loop in an
    environment) is killed, and much sooner once a call in it has missed its deadline; a world that awaits is not
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
            fit = [worker for worker in self.workers if not worker.late]
            least = min(fit, key=lambda worker: worker.load, default=None)
            if least is None or (least.load > 0 and len(fit) < self.size):
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
