"""The sandbox contract: untrusted code in, what it did out."""

from __future__ import annotations

import abc
import os
from dataclasses import dataclass
from typing import Literal

KilledBy = Literal["", "timeout", "memory", "output", "processes", "disk", "signal"]


class SandboxFault(RuntimeError):
    """The sandbox failed, not the program in it. Never a result of the program."""


class SandboxUnavailable(RuntimeError):
    """This sandbox cannot run here; the text names what failed and the mend."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run may use, all its processes together. Bytes.

    Raises ValueError for what is no number of bytes (or processes), or is too small for any program.
    """

    memory: int = 512 * 2**20
    output: int = 64 * 2**10
    """stdout and stderr are each cut after this many bytes."""
    file_size: int = 16 * 2**20
    """The largest single file."""
    processes: int = 16
    """Processes at once, the program included."""
    disk: int = 64 * 2**20
    """All files of the working and the temporary folder, each."""

    def __post_init__(self) -> None:
        for name, least in (
            ("memory", 2**20),
            ("output", 0),
            ("file_size", 0),
            ("processes", 1),
            ("disk", 2**16),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**62:
                raise ValueError(f"the limit {name} is an integer from {least} on, not {value!r}")


@dataclass(frozen=True, slots=True)
class Result:
    """What a run came to.

    `value` is the repr of a session's last expression ('' where there is none), `exit` the exit status (negative: the
    signal), `killed_by` why the sandbox ended it ('' where it did not), `backend` what isolated it.

    Everything but `stdout`, `stderr` and a session's `value` and `exit` is found out outside the program's process.
    """

    stdout: str
    stderr: str
    value: str
    exit: int
    seconds: float
    killed_by: KilledBy
    backend: str

    @property
    def ok(self) -> bool:
        return self.exit == 0 and not self.killed_by


class Session(abc.ABC):
    """A Python interpreter whose variables, files and working folder live on from one run to the next.

    A run that crashes, exits or is stopped leaves the session as it was before it (where the session takes
    checkpoints, which it does unless told otherwise) and says so at the end of its `stderr`.
    """

    @abc.abstractmethod
    async def run(self, code: str, timeout: float = 5.0, limits: Limits | None = None) -> Result: ...

    @abc.abstractmethod
    async def reset(self) -> None:
        """Forget every variable and file; snapshots stay."""

    @abc.abstractmethod
    async def snapshot(self) -> int:
        """Remember the session as it is now: variables, files, working folder. The number to restore it by."""

    @abc.abstractmethod
    async def restore(self, snapshot: int) -> None:
        """Go on from a snapshot, any number of times. Raises ValueError for one that there is not."""

    @abc.abstractmethod
    async def close(self) -> None: ...


class ShellSession(abc.ABC):
    """A real bash in a working tree of its own, which lives on from one command to the next.

    The folder, exported and other variables, functions, options and files live on; processes end with the command that
    started them. A command that is stopped, or that ends the bash itself (`exit`), leaves the files as they are, and a
    new bash goes on in the folder and with the exported variables that the command began with; the end of its `stderr`
    says so.
    """

    @abc.abstractmethod
    async def exec(self, command: str, timeout: float = 10.0, limits: Limits | None = None) -> Result:
        """Have the bash evaluate a command (or a script). limits: the shell's own, unless given.

        The address space of a process, the largest file and the room on disk are the shell's own in any case. Raises
        SandboxFault if the sandbox failed, ValueError for a bad time-out.
        """

    @abc.abstractmethod
    async def read_file(self, path: str, most: int = 16 * 2**20) -> bytes:
        """A file's bytes, read with the rights of the shell's programs; a relative path is below the working tree.

        Raises OSError (FileNotFoundError, IsADirectoryError, ...) as `open` does, with EFBIG for more than `most`
        bytes, and SandboxFault if the sandbox failed.
        """

    @abc.abstractmethod
    async def write_file(self, path: str, data: bytes | str) -> None:
        """Make a file hold just this (text as UTF-8), and the folders above it, with the rights of the shell's
        programs; a relative path is below the working tree. Raises as `read_file` does."""

    @abc.abstractmethod
    async def reset(self) -> None:
        """The working tree as it was given, an empty temporary folder, and a new bash."""

    @abc.abstractmethod
    async def close(self) -> None: ...


class Sandbox(abc.ABC):
    """Runs programs, each one in a world of its own."""

    backend: str

    @property
    def description(self) -> str:
        """The backend, and how it does what it can do in more than one way."""
        return self.backend

    @abc.abstractmethod
    async def run(self, code: str, timeout: float = 5.0, limits: Limits | None = None) -> Result:
        """Run a Python program. Raises SandboxFault if the sandbox failed, ValueError for a bad time-out."""

    @abc.abstractmethod
    async def session(self, checkpoint: bool = True) -> Session:
        """A session. checkpoint: whether a run that goes wrong is undone (about a millisecond a run) or ends it."""

    @abc.abstractmethod
    async def shell(self, tree: str | os.PathLike[str] = "", limits: Limits | None = None) -> ShellSession:
        """A bash in a copy of the folder `tree` ('': in an empty one). limits: of every command, unless it is given
        others.

        Raises SandboxUnavailable where this sandbox has no shell, ValueError for a folder that cannot be read or is
        too large, SandboxFault if the sandbox failed.
        """

    @abc.abstractmethod
    async def close(self) -> None: ...
