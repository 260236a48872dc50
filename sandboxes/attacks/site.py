"""What the attacks aim at: a secret file, a folder anybody may write, sockets that listen, a process that waits."""

from __future__ import annotations

import contextlib
import os
import resource
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

VARIABLE = "GYMRL_ATTACK_SECRET"
HARNESS_GROWTH = 96 * 2**20
"""Bytes by which this process may grow while a program floods it."""


class Site:
    """Open for as long as attacks are tried. `harm` says what they did to it; the token is what they must not learn."""

    def __enter__(self) -> Site:
        self.token = secrets.token_hex(16)
        self.marker = f"a{secrets.token_hex(6)}"
        self.folder = Path(tempfile.mkdtemp(prefix="gymrl-site-"))
        self.path = str(self.folder)
        self.folder.chmod(0o777)
        self.secret = self.folder / "secret"
        self.secret.write_text(self.token)
        self.target = self.folder / "target"
        self.target.write_text("untouched")
        for file in (self.secret, self.target):
            file.chmod(0o666)
        self.descriptor = os.open(self.secret, os.O_RDONLY)
        os.set_inheritable(self.descriptor, True)
        os.environ[VARIABLE] = self.token
        self.listeners = self._listeners()
        self.victim = self._victim()
        self.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.victim.kill()
        self.victim.wait()
        for listener in self.listeners:
            listener.close()
        os.close(self.descriptor)
        os.environ.pop(VARIABLE, None)
        for path in self._outside():
            with contextlib.suppress(OSError):
                os.unlink(path)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _listeners(self) -> list[socket.socket]:
        """TCP, UDP, and Unix sockets by path and by abstract name, for streams and for datagrams."""
        unix = socket.AF_UNIX
        places: list[tuple[int, int, Any]] = [
            (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
            (unix, socket.SOCK_STREAM, str(self.folder / "stream")),
            (unix, socket.SOCK_DGRAM, str(self.folder / "datagram")),
            (unix, socket.SOCK_STREAM, f"\0{self.marker}s"),
            (unix, socket.SOCK_DGRAM, f"\0{self.marker}d"),
        ]
        listeners = []
        for family, kind, place in places:
            listener = socket.socket(family, kind)
            listener.bind(place)
            if kind == socket.SOCK_STREAM:
                listener.listen(64)
            listener.setblocking(False)
            listeners.append(listener)
        for name in ("stream", "datagram"):
            (self.folder / name).chmod(0o777)
        return listeners

    def _victim(self) -> subprocess.Popen[bytes]:
        environment = {VARIABLE: self.token, "PATH": os.defpath}
        return subprocess.Popen(["sleep", "100000"], env=environment, stdin=subprocess.DEVNULL)

    def aims(self) -> dict[str, Any]:
        """What a program is told."""
        return {
            "SITE": self.path, "SECRET": str(self.secret), "TARGET": str(self.target), "MARKER": self.marker,
            "VICTIM": self.victim.pid, "TCP": self.listeners[0].getsockname(), "UDP": self.listeners[1].getsockname(),
            "CALLER": os.getpid(), "OUTSIDE": self._outside(),
        }  # fmt: skip

    def _outside(self) -> list[str]:
        """Places outside, some of which a program might be able to write to."""
        folders = [
            "/tmp",
            "/var/tmp",
            "/dev/shm",
            "/run",
            "/etc",
            "/usr/lib",
            "/",
            os.path.dirname(os.__file__),
        ]
        home = os.path.expanduser("~")
        return [
            os.path.join(folder, f"{self.marker}.py") for folder in [*folders, home] if os.path.isdir(folder)
        ]

    def begin(self) -> None:
        """Remember how things stand before an attack."""
        self.state = self._state()
        self.peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def _state(self) -> dict[str, object]:
        pid = self.victim.pid
        files = {path.name: _facts(path) for path in sorted(self.folder.iterdir())}
        return {
            "the folder": files,
            "the file": self.target.read_text() if self.target.exists() else "gone",
            "the modes of the interpreter": os.stat(os.__file__).st_mode,
            "the victim's priority": os.getpriority(os.PRIO_PROCESS, pid),
            "the victim's CPUs": os.sched_getaffinity(pid),
            "the victim's limits": [resource.prlimit(pid, kind) for kind in range(12)],
            "the caller's limits": [resource.getrlimit(kind) for kind in range(12)],
            "the host's name": socket.gethostname(),
        }

    def harm(self) -> str:
        """What has changed; empty where nothing has."""
        if self.victim.poll() is not None:
            how = f"the victim was killed ({self.victim.returncode})"
            self.victim = self._victim()
            return how
        status = Path(f"/proc/{self.victim.pid}/status").read_text()
        if "\nState:\tT" in status or "\nState:\tt" in status:
            os.kill(self.victim.pid, signal.SIGCONT)
            return "the victim was stopped"
        for listener in self.listeners:
            if heard(listener):
                return f"it reached {listener.getsockname()!r}"
        for path in self._outside():
            if os.path.lexists(path):
                os.unlink(path)
                return f"it wrote {os.path.dirname(path)}"
        for name, value in self._state().items():
            if value != self.state[name]:
                self._mend()
                return f"it changed {name}"
        if left := self.survivors():
            return f"processes live on: {left}"
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self.peak) * 1024
        return f"the harness grew by {grown >> 20} MiB" if grown > HARNESS_GROWTH else ""

    def _mend(self) -> None:
        for path in self.folder.iterdir():
            if path.name not in ("secret", "target", "stream", "datagram"):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        self.secret.write_text(self.token)
        self.target.write_text("untouched")
        for name in ("secret", "target"):
            (self.folder / name).chmod(0o666)

    def survivors(self) -> list[int]:
        """Processes of an attack that still run a moment after it: they bear the marker as their name."""
        left: list[int] = []
        for _ in range(20):
            left = []
            for path in Path("/proc").glob("[0-9]*/comm"):
                with contextlib.suppress(OSError):
                    if path.read_text().strip() == self.marker:
                        left.append(int(path.parent.name))
            if not left:
                break
            time.sleep(0.05)
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        return left


def _facts(path: Path) -> tuple[object, ...]:
    info = path.lstat()
    return (
        info.st_mode,
        info.st_mtime_ns,
        info.st_uid,
        info.st_nlink,
        sorted(os.listxattr(path, follow_symlinks=False)),
    )


def heard(listener: socket.socket) -> bool:
    """Whether anything has come in; it is taken."""
    try:
        if listener.type == socket.SOCK_STREAM:
            listener.accept()[0].close()
        else:
            listener.recv(4096)
    except BlockingIOError:
        return False
    return True
