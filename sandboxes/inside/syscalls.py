"""The few Linux calls that Python does not have, through ctypes. Every one raises OSError with the call's name."""

from __future__ import annotations

import ctypes
import os
from typing import Any

from gymrl.sandboxes.inside import numbers

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_JAIL = numbers.numbers(numbers.JAIL + numbers.CHILDREN, numbers.machine()[0])

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS = 0x20000, 0x2000000, 0x4000000
CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x8000000, 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = (
    1,
    2,
    4,
    8,
    32,
    4096,
    16384,
    1 << 18,
)
MNT_DETACH = 2
AT_FDCWD, AT_EMPTY_PATH, AT_RECURSIVE = -100, 0x1000, 0x8000
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC, MOVE_MOUNT_F_EMPTY_PATH = 1, os.O_CLOEXEC, 4
PR_GET_DUMPABLE = 3
SIGKILL, SIGCONT, SIGSTOP = 9, 18, 19  # here, since a worker without the module `signal` is smaller to fork
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38


def _argument(value: Any) -> Any:
    if value is None:
        return ctypes.c_void_p(None)
    if isinstance(value, int):
        return ctypes.c_long(value)
    if isinstance(value, str):
        return ctypes.c_char_p(os.fsencode(value))
    return value


def _check(result: int, name: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def call(name: str, *arguments: Any) -> int:
    """A system call by name. Integers, strings (as paths), None, bytes and ctypes objects go in."""
    return _check(int(_libc.syscall(ctypes.c_long(_JAIL[name]), *map(_argument, arguments))), name)


def prctl(option: int, first: int = 0, second: Any = 0) -> int:
    return _check(_libc.prctl(option, *map(_argument, (first, second, 0, 0))), f"prctl({option})")


def unshare(flags: int) -> None:
    call("unshare", flags)


def mount(source: str | None, target: str, kind: str | None, flags: int = 0, data: str | None = None) -> None:
    try:
        call("mount", source, target, kind, flags, data)
    except OSError as error:
        raise OSError(
            error.errno, f"mount {kind or source or ''} on {target}: {os.strerror(error.errno or 0)}"
        ) from None


def umount(target: str, flags: int = 0) -> None:
    call("umount2", target, flags)


class _MountAttr(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns"))


def protect(target: str) -> None:
    """Make a mount and all beneath it read-only, without setuid programs and devices (Linux 5.12)."""
    attributes = _MountAttr(set=1 | 2 | 4)
    call("mount_setattr", AT_FDCWD, target, AT_RECURSIVE, ctypes.byref(attributes), ctypes.sizeof(attributes))


def tree(path: str) -> int:
    """A copy of the mounts at a path, not yet attached anywhere: a descriptor for `attach` (Linux 5.2)."""
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE
    return call("open_tree", AT_FDCWD, path, flags)


def attach(descriptor: int, target: str) -> None:
    call("move_mount", descriptor, "", AT_FDCWD, target, MOVE_MOUNT_F_EMPTY_PATH)


_CAPABILITIES = [
    ctypes.c_long(_JAIL["capset"]),
    (ctypes.c_uint32 * 2)(0x20080522, 0),  # this process
    (ctypes.c_uint32 * 6)(),
]
_RESTRICT = ctypes.c_long(_JAIL["landlock_restrict_self"])


def drop_capabilities() -> None:
    """Give up every capability of this process."""
    _check(_libc.syscall(*_CAPABILITIES), "capset")


def restrict(rules: int) -> None:
    """Bind this process and its children to a Landlock ruleset."""
    _check(_libc.syscall(_RESTRICT, rules, 0), "landlock_restrict_self")
