"""What a run has going: its processes, their memory, its files. And how to end all of it."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Collection

from gymrl.sandboxes.inside import syscalls as sc

PAGE = os.sysconf("SC_PAGE_SIZE")
LOCKS = 4096
"""File locks that a run may hold."""
SOCKETS, SOCKET = 64, 2**18
"""Sockets of a run that do not count, and the bytes that each one more counts for, since so much may wait in it."""


class Watch:
    """Over the processes below this one. proc: a descriptor of /proc. alone: this is process 1 of a namespace, so that
    whatever else /proc shows belongs to the run. kills: a descriptor of the cgroup's count of processes that the kernel
    killed for memory (-1: there is no cgroup). own: /proc is this namespace's own, and nobody has put files over it."""

    def __init__(self, proc: int, alone: bool, kills: int = -1, own: bool = False) -> None:
        self.load = os.open("loadavg", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc) if own else -1
        self.proc, self.alone, self.kills, self.killed = proc, alone, kills, 0
        self.baseline = self.memory([os.getpid()])

    def read(self, path: str) -> str:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.proc)
        try:
            return os.read(fd, 65536).decode("ascii", "replace")
        finally:
            os.close(fd)

    def processes(self) -> list[int]:
        """Every process of the run, those included that have ended and are not reaped."""
        own = os.getpid()
        if self.alone:
            return [pid for name in os.listdir(self.proc) if name.isdigit() and (pid := int(name)) != own]
        found: list[int] = []
        todo = [own]
        while todo and len(found) < 4096:
            parent = todo.pop()
            for child in self._children(parent):
                found.append(child)
                todo.append(child)
        return found

    def none_since(self, pid: int) -> bool:
        """Whether no process and no thread was started since this process, which lives: its number, which nobody else
        can have, is the last that was given. False where that cannot be known."""
        if self.load < 0:
            return False
        return int(os.pread(self.load, 128, 0).rpartition(b" ")[2]) == pid

    def _children(self, pid: int) -> list[int]:
        try:
            task = os.open(f"{pid}/task", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.proc)
        except OSError:
            return []
        try:
            threads = os.listdir(task)
        except OSError:
            return []
        finally:
            os.close(task)
        found: list[int] = []
        for thread in threads:
            with contextlib.suppress(OSError):
                found += map(int, self.read(f"{pid}/task/{thread}/children").split())
        return found

    def _strike_groups(self, pids: Collection[int], keep: Collection[int]) -> None:
        """Kill whole process groups, each at once: what multiplies is faster than a list of it."""
        groups: set[int] = set()
        spared = {os.getpgrp()}
        for pid in (*pids, *keep):
            with contextlib.suppress(ProcessLookupError):
                (spared if pid in keep else groups).add(os.getpgid(pid))
        for group in groups - spared:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, sc.SIGKILL)

    def ended(self, pid: int) -> bool:
        try:
            return self.read(f"{pid}/stat").rpartition(")")[2].split()[0] in "ZX"
        except OSError:
            return True

    def memory(self, pids: Collection[int]) -> int:
        """Bytes of anonymous and shared memory that these processes hold, pages that they share counted for each."""
        total = 0
        for pid in pids:
            with contextlib.suppress(OSError):
                for line in self.read(f"{pid}/status").splitlines():
                    if line.startswith(("RssAnon:", "RssShmem:", "VmPTE:")):
                        total += int(line.split()[1]) * 1024
        return total

    def used(self, pids: Collection[int]) -> int:
        """The same beyond what each process had when it was forked from this one."""
        waiting = max(0, self.sockets() - SOCKETS) * SOCKET
        return max(0, self.memory(pids) - len(pids) * self.baseline) + waiting

    def lines(self, path: str, most: int) -> list[bytes]:
        """Of a file of /proc, from the first on; none where there is no such file."""
        text = b""
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.proc)
            try:
                while len(text) < most * 64 and (part := os.read(fd, 65536)):
                    text += part
            finally:
                os.close(fd)
        return text.splitlines()

    def locks(self, pids: Collection[int]) -> int:
        """File locks that these processes hold, which are memory of the kernel's; where /proc is the host's, of the
        first ones there are."""
        lines = self.lines("locks", 2 * LOCKS)
        if self.alone:
            return len(lines)
        owners = {str(pid).encode() for pid in pids}
        return sum(len(words) > 4 and words[4] in owners for words in map(bytes.split, lines))

    def sockets(self) -> int:
        """Unix sockets of a run that has a network namespace of its own."""
        return len(self.lines("self/net/unix", 4096)) if self.alone else 0

    def struck(self) -> bool:
        """Whether the kernel has killed a process for memory since this was last asked."""
        if self.kills < 0:
            return False
        before, text = self.killed, os.pread(self.kills, 512, 0)
        self.killed = int(text[text.index(b"oom_kill ") + 9 :].split(maxsplit=1)[0])
        return self.killed != before

    def open_files(self, pids: Collection[int]) -> int:
        """Bytes in files that these processes hold open and that have no name any more."""
        total = 0
        for pid in pids:
            with contextlib.suppress(OSError):
                folder = os.open(f"{pid}/fd", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.proc)
                try:
                    for name in os.listdir(folder):
                        with contextlib.suppress(OSError):
                            info = os.stat(name, dir_fd=folder)
                            total += info.st_blocks * 512 if info.st_nlink == 0 else 0
                finally:
                    os.close(folder)
        return total

    def end(self, keep: Collection[int] = ()) -> None:
        """Kill and reap every process of the run but those in `keep`. Exits where one cannot be killed."""
        if not self.ended_all(keep, 10.0):
            sys.exit("a process cannot be killed")

    def ended_all(self, keep: Collection[int], patience: float) -> bool:
        """The same within so many seconds; whether it could be done."""
        deadline = time.monotonic() + patience
        pause = 0.0
        while self.alone and not keep:
            try:
                os.kill(-1, sc.SIGKILL)  # all at once: nothing can be forked in between
            except (
                ProcessLookupError
            ):  # there is nothing else in the namespace, not even what is to be reaped
                return True
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            if time.monotonic() > deadline:
                return False
            time.sleep(pause)
            pause = 0.001
        keep = set(keep)
        while True:
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            left = [pid for pid in self.processes() if pid not in keep]
            if keep:
                left = [
                    pid for pid in left if not self.ended(pid)
                ]  # a kept process is yet to reap its children
            if not left:
                return True
            if not self.alone:
                self._strike_groups(left, keep)
            for pid in left:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, sc.SIGKILL)
            if time.monotonic() > deadline:
                return False
            time.sleep(pause)
            pause = 0.001


def folder_size(path: str, most: int = 20_000) -> int:
    """Bytes on disk below a folder; a very large number where there are more than `most` names."""
    total, names = 0, 0
    todo = [path]
    while todo:
        try:
            entries = os.scandir(todo.pop())
        except OSError:
            continue
        with entries:
            for entry in entries:
                names += 1
                if names > most:
                    return 2**62
                with contextlib.suppress(OSError):
                    info = entry.stat(follow_symlinks=False)
                    total += info.st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(entry.path)
    return total
