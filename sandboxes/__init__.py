"""Sandboxes: running untrusted code."""

from gymrl.sandboxes.base import (
    Limits,
    Result,
    Sandbox,
    SandboxFault,
    SandboxUnavailable,
    Session,
)

__all__ = [
    "Limits",
    "Result",
    "Sandbox",
    "SandboxFault",
    "SandboxUnavailable",
    "Session",
    "open_sandbox",
    "shared_sandbox",
]


def open_sandbox(backend: str = "auto") -> Sandbox:
    """Open a sandbox by name: `local` (also `auto`) runs programs in limited processes of this machine.

    Raises ValueError for an unknown backend and SandboxUnavailable where it cannot run.
    """
    from gymrl.sandboxes.local import LocalSandbox

    if backend in ("auto", "local"):
        return LocalSandbox()
    raise ValueError(f"unknown sandbox {backend!r}: take 'auto' or 'local'")


_SHARED: dict[str, Sandbox] = {}


def shared_sandbox(backend: str = "auto") -> Sandbox:
    """The one sandbox of that backend that this process's environments share; it ends with the process."""
    if backend not in _SHARED:
        _SHARED[backend] = open_sandbox(backend)
    return _SHARED[backend]
