"""Sandboxes: running untrusted code."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gymrl.sandboxes.base import (
    Limits,
    Result,
    Sandbox,
    SandboxFault,
    SandboxUnavailable,
    Session,
    ShellSession,
)

if TYPE_CHECKING:
    from gymrl.sandboxes.pool import PoolSandbox

__all__ = [
    "BACKENDS", "Limits", "Result", "Sandbox", "SandboxFault", "SandboxUnavailable", "Session",
    "ShellSession", "open_sandbox", "shared_sandbox",
]  # fmt: skip

BACKENDS = ("namespaces", "confined", "docker", "none")
"""The names that `open_sandbox` takes, beside `auto`."""
AUTOMATIC = ("namespaces", "confined")
"""What `auto` tries, in this order."""


def open_sandbox(
    backend: str = "auto", *, workers: int | None = None, preload: Sequence[str] = (), image: str = ""
) -> Sandbox:
    """Open a sandbox by name; `auto` takes the best of `namespaces` and `confined` that can be built here.

    workers: how many programs run at once (as many as CPUs). preload: modules that programs find imported already,
    such as numpy. image: for `docker`, one that has a Python 3.11 or newer as `python3` (one is made otherwise). The
    sandbox is really built before this returns. Raises ValueError for an unknown backend and SandboxUnavailable,
    naming the step that failed and the mend, where it cannot be built.
    """
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"unknown sandbox {backend!r}: take auto, {', '.join(BACKENDS)}")
    failures = []
    for name in AUTOMATIC if backend == "auto" else (backend,):
        try:
            sandbox = _make(name, workers, preload, image)
            sandbox.probe()
        except SandboxUnavailable as error:
            failures.append(str(error))
        else:
            return sandbox
    if backend != "auto":
        raise SandboxUnavailable(failures[0])
    raise SandboxUnavailable(
        f"no sandbox that isolates can be built here ({'; '.join(failures)}). "
        "Mend one of these, or take the sandbox 'none' by name where the code is trusted"
    )


def _make(name: str, workers: int | None, preload: Sequence[str], image: str) -> PoolSandbox:
    if name == "docker":
        from gymrl.sandboxes.container import DockerSandbox

        return DockerSandbox(workers, preload, image)
    from gymrl.sandboxes.pool import PoolSandbox

    return PoolSandbox(name, workers, preload)


_SHARED: dict[str, Sandbox] = {}
_LOCK = threading.Lock()


def shared_sandbox(backend: str = "auto") -> Sandbox:
    """The one sandbox of that backend that this process's environments share; it ends with the process.

    Building it blocks for a moment, the first time. Raises as `open_sandbox` does.
    """
    if backend not in _SHARED:
        with _LOCK:
            if backend not in _SHARED:
                _SHARED[backend] = open_sandbox(backend)
    return _SHARED[backend]
