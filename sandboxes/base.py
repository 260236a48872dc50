"""The sandbox contract: untrusted code in, what it did out."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Literal

KilledBy = Literal["", "timeout", "memory", "output", "processes", "signal"]


class SandboxFault(RuntimeError):
    """The sandbox failed, not the program in it. Never a result of the program."""


class SandboxUnavailable(RuntimeError):
    """This sandbox cannot run here; the text names what failed and the mend."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run may use. Bytes and seconds."""

    memory: int = 512 * 2**20
    output: int = 64 * 2**10
    """stdout and stderr are each cut after this many bytes."""
    file_size: int = 16 * 2**20
    processes: int = 16


@dataclass(frozen=True, slots=True)
class Result:
    """What a run came to.

    `value` is the repr of a session's last expression ('' where there is none), `exit` the exit status (negative: the
    signal), `killed_by` why the sandbox ended it ('' where it did not), `backend` what isolated it.
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
    """A Python interpreter whose variables live on from one run to the next."""

    @abc.abstractmethod
    async def run(self, code: str, timeout: float = 5.0, limits: Limits | None = None) -> Result: ...

    @abc.abstractmethod
    async def reset(self) -> None:
        """Forget every variable and file."""

    @abc.abstractmethod
    async def close(self) -> None: ...


class Sandbox(abc.ABC):
    """Runs programs, each one in a world of its own."""

    backend: str

    @abc.abstractmethod
    async def run(self, code: str, timeout: float = 5.0, limits: Limits | None = None) -> Result:
        """Run a Python program. Raises SandboxFault if the sandbox failed."""

    @abc.abstractmethod
    async def session(self) -> Session: ...

    @abc.abstractmethod
    async def close(self) -> None: ...
