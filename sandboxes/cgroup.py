"""A memory cgroup for each worker, where that is asked for and one may be made: a ceiling that the kernel keeps.

`GYMRL_SANDBOX_CGROUP=on` asks for it; it costs a few percent of the speed, since the kernel then counts pages and
messages for two groups in turn. Whether one may be made is found out by making one, setting its limit and putting a
process in. It is below the cgroup that this process is in, so that limits further up hold for the sandbox too.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gymrl.sandboxes.base import Limits
from gymrl.sandboxes.inside import protocol

SWITCH = "GYMRL_SANDBOX_CGROUP"
PATIENCE = 2.0
"""Seconds that a cgroup's last processes may take to be gone."""
MARGIN = 16 * 2**20
PROCESS = 2 * 2**20
"""Bytes that a process costs beside the memory of its program: page tables, stacks in the kernel, what it writes to of
the interpreter that it is a fork of."""
_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.oom_control"),
    2: ("memory.max", "memory.current", "memory.events"),
}
"""Limit, usage, and where the kernel counts whom it has killed."""


@dataclass(frozen=True, slots=True)
class Place:
    """A folder in which memory cgroups can be made. version: of the cgroup file system. beside: this process's own
    cgroup, where the folder is not that but the one above."""

    version: int
    folder: Path
    beside: Path | None = None


class Cgroup:
    """One memory cgroup. Raises OSError from every method but `remove`."""

    def __init__(self, place: Place) -> None:
        self.version = place.version
        self.path = place.folder / f"{_prefix()}{os.getpid()}-{_started(os.getpid())}-{next(_NUMBERS)}"
        self.limit, self.usage, self.events = (self.path / name for name in _FILES[self.version])
        self.path.mkdir()

    def bound(self, size: int) -> None:
        """Set the ceiling, swap included where the kernel counts it. One below what is in use may be refused."""
        swap = self.path / "memory.memsw.limit_in_bytes"
        if self.version == 2:
            _write(self.limit, size)
            with contextlib.suppress(FileNotFoundError):
                _write(self.path / "memory.swap.max", 0)
        elif not swap.exists():
            _write(self.limit, size)
        else:  # never the larger of the two, not even for a moment
            both = [self.limit, swap]
            for file in both if size <= int(swap.read_text()) else reversed(both):
                _write(file, size)

    def used(self) -> int:
        """Bytes in use, files that the kernel keeps in memory but could drop left out."""
        lines = (self.path / "memory.stat").read_text().splitlines()
        stat = dict(line.split()[:2] for line in lines)
        kept = sum(int(stat.get(name, 0)) for name in ("active_file", "inactive_file"))
        return max(0, int(self.usage.read_text()) - kept)

    def door(self) -> int:
        """A descriptor: a process that writes `0` to it is in the cgroup from then on."""
        return os.open(self.path / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)

    def counter(self) -> int:
        """A descriptor of the file that says how many processes the kernel killed for memory."""
        return os.open(self.events, os.O_RDONLY | os.O_CLOEXEC)

    def remove(self) -> None:
        """Remove it once it is empty, which its processes are about to see to; one that stays is tried again later."""
        deadline = time.monotonic() + PATIENCE
        while not _removed(self.path):
            if time.monotonic() > deadline:
                _LEFT.add(self.path)
                return
            time.sleep(0.005)


class Ceiling:
    """What a worker and all that runs in it may come to, request after request. baseline: bytes of the worker alone.
    tree: bytes of a shell's working tree.

    Above the limit on memory there is room for the worker and one program's own copy of it, for full folders (which are
    in memory), and for what the kernel needs: what passes the limit and not the ceiling is seen by the look at the
    processes. A session holds two states at once, the one before a run and the run's, and one more for each snapshot,
    each with its files. It is never lowered while a session or a shell holds anything.
    """

    def __init__(self, baseline: int, tree: int = 0) -> None:
        self.baseline, self.tree = baseline, tree
        self.states, self.limits, self.highest = 1, Limits(), 0

    def above(self, kind: bytes, limits: Limits, size: int) -> int:
        """The ceiling in bytes for a request with `size` bytes of code."""
        if kind == protocol.RUN:
            return self._sum(limits, 1, 0, size)
        if kind == protocol.SESSION:
            self.states = 2
        elif kind == protocol.SNAPSHOT:
            self.states += 1
        elif kind == protocol.FORGET:
            self.states -= 1
        if kind in (protocol.SESSION, protocol.TURN, protocol.SHELL, protocol.EXEC):
            self.limits = limits
        self.highest = max(self.highest, self._sum(self.limits, self.states, self.tree, size))
        return self.highest

    def _sum(self, limits: Limits, states: int, tree: int, size: int) -> int:
        copies = (
            states if states == 1 else states + 1
        )  # a session's worker keeps a copy of each state's files
        overhead = MARGIN + PROCESS * min(limits.processes, 64) + (4 * size if size > 2**20 else 0)
        files = 2 * copies * limits.disk + 3 * tree
        return 2 * self.baseline + states * limits.memory + files + overhead


def make() -> Cgroup | None:
    """A new cgroup; None where none can be had."""
    place = find()
    if isinstance(place, str):
        return None
    try:
        return Cgroup(place)
    except OSError:
        return None


def find() -> Place | str:
    """Where cgroups can be made, or why not. The first call makes one, and removes those of processes that are gone."""
    global _FOUND
    if os.environ.get(SWITCH) != "on":
        return f"{SWITCH}=on asks for one"
    with _LOCK:
        if _FOUND is None:
            _FOUND = _search()
        for path in [path for path in _LEFT if _removed(path)]:
            _LEFT.discard(path)
        return _FOUND


def reason() -> str:
    """Why a worker has no cgroup."""
    found = find()
    return found if isinstance(found, str) else "making one failed"


def _search() -> Place | str:
    if not sys.platform.startswith("linux"):
        return "only Linux has cgroups"
    failures: list[str] = []
    try:
        places = candidates(Path("/proc/self/cgroup").read_text(), Path("/proc/self/mountinfo").read_text())
        for place in places:
            try:
                _prepare(place)
                _try(place)
                sweep(place)
                return place
            except (OSError, subprocess.SubprocessError) as error:
                failures.append(f"{place.folder}: {getattr(error, 'strerror', None) or error}")
    except OSError as error:
        failures.append(str(error))
    return "; ".join(failures) or "no cgroup file system with a memory controller is mounted"


def candidates(cgroups: str, mounts: str) -> list[Place]:
    """Where a process may have a right to make memory cgroups, the likeliest first. cgroups, mounts: its
    /proc/self/cgroup and mountinfo.

    In version 2 a cgroup that holds processes cannot have one below it with a memory controller: the one above, where
    this user owns it, is taken then.
    """
    own: dict[int, str] = {}
    for line in cgroups.splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            own[2] = path
        elif "memory" in controllers.split(","):
            own[1] = path
    found: list[Place] = []
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        root, mount = left.split()[3:5]
        kind, _, options = right.split()[:3]
        if kind == "cgroup" and "memory" in options.split(","):
            version = 1
        elif kind == "cgroup2":
            version = 2
        else:
            continue
        path = own.get(version, "/..")
        below = ".." if ".." in path.split("/") else os.path.relpath(path, root)
        if below.startswith(".."):
            continue  # it is outside of what is mounted
        folder = Path(os.path.normpath(os.path.join(mount, below)))
        found.append(Place(version, folder))
        if version == 2 and below != ".":
            found.append(Place(version, folder.parent, folder))
    return sorted(found, key=lambda place: place.version)  # the sort is stable: own before above


def _prepare(place: Place) -> None:
    """Have a version 2 cgroup hand its memory controller down. Raises OSError."""
    if place.version == 1:
        return
    if "memory" not in (place.folder / "cgroup.controllers").read_text().split():
        raise OSError("its memory controller is not delegated")
    if place.beside is not None:
        if os.geteuid() == 0 or place.folder.stat().st_uid != os.geteuid():
            raise OSError("it is not delegated to this user")
        if (place.beside / "memory.max").read_text().strip() != "max":
            raise OSError("a cgroup beside one's own would get round its limit")
    control = place.folder / "cgroup.subtree_control"
    if "memory" not in control.read_text().split():
        control.write_text("+memory")


def _try(place: Place) -> None:
    """Make a cgroup, set its limit, put a process in, remove it. Raises OSError, SubprocessError."""
    cgroup = Cgroup(place)
    try:
        cgroup.bound(64 * 2**20)
        waiting = [sys.executable, "-I", "-S", "-c", "input()"]
        with subprocess.Popen(waiting, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            try:
                _write(cgroup.path / "cgroup.procs", process.pid)
                if cgroup.path.name not in Path(f"/proc/{process.pid}/cgroup").read_text():
                    raise OSError("a process that was put in is not in")
                cgroup.used()
                if "oom_kill " not in cgroup.events.read_text():
                    raise OSError("the kernel does not count whom it kills (Linux 4.13)")
            finally:
                process.kill()
    finally:
        cgroup.remove()


def sweep(place: Place) -> None:
    """Remove the cgroups of processes that are gone."""
    with contextlib.suppress(OSError):
        for name in os.listdir(place.folder):
            if name.startswith(_prefix()):
                pid, start, _ = name.removeprefix(_prefix()).split("-")
                if _started(int(pid)) != int(start):
                    _removed(place.folder / name)


def _removed(path: Path) -> bool:
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _write(file: Path, number: int) -> None:
    """In one write; the file is there already."""
    fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, b"%d" % number)
    finally:
        os.close(fd)


def _prefix() -> str:
    """Process ids mean something in their own namespace only."""
    return f"gymrl-{os.stat('/proc/self/ns/pid').st_ino}-"


def _started(pid: int) -> int:
    """When a process began, in clock ticks since the system did; 0 for one that is not there."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return 0


_NUMBERS: Iterator[int] = itertools.count()
_LOCK = threading.Lock()
_LEFT: set[Path] = set()
_FOUND: Place | str | None = None
