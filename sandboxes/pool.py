"""Sandboxes made of worker processes: a pool that runs programs, and the sessions beside it."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import queue
import sysconfig
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from gymrl.sandboxes import cgroup
from gymrl.sandboxes.base import (
    Limits,
    Result,
    Sandbox,
    SandboxFault,
    SandboxUnavailable,
    Session,
    ShellSession,
)
from gymrl.sandboxes.runs import Run
from gymrl.sandboxes.seats import Seats
from gymrl.sandboxes.worker import Worker

LONGEST = 1_000_000
"""Seconds that a run may be given."""


class PoolSandbox(Sandbox):
    """A pool of workers of one tier, one run at a time on each; any number of event loops and threads may share it.

    `workers` is how many programs run at once (as many as there are CPUs, by default). preload: modules that programs
    find imported already, and with them the folder of packages they come from. Workers start when they are
    needed; one that dies is replaced: the call in flight raises SandboxFault, the next one works.
    """

    _group: cgroup.Cgroup | None = None

    def __init__(self, tier: str, size: int | None = None, preload: Sequence[str] = ()) -> None:
        if size is not None and size < 1:
            raise ValueError(f"a sandbox has one worker or more, not {size}")
        self.backend = self.tier = tier
        self.size = size or os.cpu_count() or 1
        self.preload = tuple(preload)
        self.packages = package_folders(self.preload)
        self._start()

    def _start(self) -> None:
        self._owner, self._closed = os.getpid(), False
        self.threads = ThreadPoolExecutor(self.size, "gymrl-sandbox")
        self._idle: queue.LifoQueue[Worker | None] = queue.LifoQueue()
        self.seats, self.watched = Seats(self.size), set[Run]()

    def open_worker(self, size: int = 0, names: int = 0) -> Worker:
        """A new worker. size, names: bytes and files of a working tree that it is to have room for."""
        worker = Worker(self.tier, self.preload, self.packages, size)
        self._group = worker.group
        return worker

    @property
    def description(self) -> str:
        """The backend and what bounds the memory of the worker that was opened last."""
        look = "a look at the processes 25 times a second"
        if self._group is not None:
            return f"{self.backend}: memory by cgroup (version {self._group.version}) and {look}"
        if self.tier == "namespaces":
            return f"{self.backend}: memory by {look} (no cgroup: {cgroup.reason()})"
        own = "the container's own limit and " if self.tier == "docker" else ""
        return f"{self.backend}: memory by {own}{look}"

    def probe(self) -> None:
        """Build a worker, which stays in the pool. Raises SandboxUnavailable, naming what failed and the mend."""
        self._idle.put(self.open_worker())

    def _open(self) -> None:
        if self._closed:
            raise SandboxFault("this sandbox is closed: open another with open_sandbox()")
        if self._owner != os.getpid():  # a fork took neither threads nor workers along
            self._start()

    async def run(self, code: str, timeout: float = 5.0, limits: Limits | None = None) -> Result:
        """Run a Python program in a process of its own. Raises SandboxFault, and ValueError for a bad time-out."""
        check_timeout(timeout)
        self._open()
        if len(self.watched) >= self.size:
            self._hand_over_of_those(lambda loop: loop.is_closed())
        run = Run(self, code.encode("utf-8", "surrogatepass"), timeout, limits or Limits())
        self.seats.ask(run)
        try:
            return await run.seen
        except BaseException:
            run.hand_over()  # cancelled: it goes on to its end all the same
            raise

    def _hand_over_of_those(self, stopped: Callable[[asyncio.AbstractEventLoop], bool]) -> None:
        """Give the runs of event loops that see to nothing any more to threads."""
        for run in list(self.watched):
            if stopped(run.loop):
                run.hand_over()

    def at_hand(self) -> Worker | None:
        with contextlib.suppress(queue.Empty):
            worker = self._idle.get_nowait()
            if worker is not None and worker.alive:
                return worker
            self._idle.put(worker)  # something is to be done about it
        return None

    def take(self) -> Worker:
        while True:
            try:
                worker = self._idle.get_nowait()
            except queue.Empty:
                worker = self._await()
            if worker is None:
                return self._fresh()
            if worker.alive:
                return worker
            worker.close()

    def _await(self) -> Worker | None:
        """A worker that is under way already; None where another one is to be made now."""
        return None

    def _fresh(self, size: int = 0, names: int = 0) -> Worker:
        """Another worker, with room for a working tree of so many bytes and files."""
        try:
            return self.open_worker(size, names)
        except SandboxUnavailable as error:  # it could be built before: to the caller this is a failure
            raise SandboxFault(str(error)) from error

    def give(self, worker: Worker) -> None:
        if self._closed or not worker.alive:
            worker.close()
        else:
            self._idle.put(worker)

    async def session(self, checkpoint: bool = True) -> Session:
        """A session; its process starts with its first run."""
        from gymrl.sandboxes.session import PoolSession

        self._open()
        return PoolSession(self._fresh, self.backend, checkpoint)

    async def shell(self, tree: str | os.PathLike[str] = "", limits: Limits | None = None) -> ShellSession:
        """A bash in a copy of the folder `tree`, in a worker of its own, which is running when this returns."""
        from gymrl.sandboxes.shell import PoolShell

        self._open()
        if self.tier == "confined":
            raise SandboxUnavailable(
                "the sandbox 'confined' starts no processes, and a shell does little else: "
                "take 'namespaces' or 'docker' for shells"
            )
        shell = PoolShell(self._fresh, self.backend, tree, limits or Limits())
        await shell.open()
        return shell

    async def close(self) -> None:
        """End the workers once the runs in flight are over. Sessions are closed by whoever opened them."""
        if not self._closed and self._owner == os.getpid():
            self._closed = True
            self._hand_over_of_those(lambda loop: not loop.is_running())
            for _ in range(self.size):
                await self.seats.enter()
            await asyncio.get_running_loop().run_in_executor(None, self._close)

    def _close(self) -> None:
        self.threads.shutdown(wait=True)
        with contextlib.suppress(queue.Empty):
            while True:
                worker = self._idle.get_nowait()
                if worker is not None:
                    worker.close()


def package_folders(modules: Sequence[str]) -> tuple[str, ...]:
    """Where the installed packages are, if any module is to be preloaded. Raises SandboxUnavailable for one that is not
    installed."""
    if not modules:
        return ()
    folders = [path for name in ("purelib", "platlib") if (path := sysconfig.get_path(name))]
    for name in modules:
        spec = importlib.util.find_spec(name.partition(".")[0])
        if spec is None:
            raise SandboxUnavailable(f"{name!r} is to be preloaded and is not installed: pip install {name}")
        places = spec.submodule_search_locations or (
            [spec.origin] if spec.has_location and spec.origin else []
        )
        folders += [os.path.dirname(place) for place in places]
    standard = {os.path.dirname(os.__file__)}
    return tuple(
        dict.fromkeys(folder for folder in folders if folder not in standard and os.path.isdir(folder))
    )


def check_timeout(timeout: float) -> None:
    if not (isinstance(timeout, int | float) and 0 < timeout <= LONGEST):
        raise ValueError(
            f"a time-out is a positive number of seconds, {LONGEST:,} at the most, not {timeout!r}"
        )
