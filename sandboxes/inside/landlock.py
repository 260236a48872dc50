"""Landlock: which files a process may reach, for itself and its children, with no way back."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable

from gymrl.sandboxes.inside import syscalls

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE = 1, 2, 4, 8, 1 << 14
READ = EXECUTE | READ_FILE | READ_DIR
_FILE = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | 1 << 15
"""The rights that a rule on a file, not a folder, may give."""
_BITS = {1: 13, 2: 14, 3: 15, 4: 15}
"""How many rights over files a version knows; 16 from version 5 on."""


def version() -> int:
    """The kernel's Landlock version. Raises OSError where there is none."""
    return syscalls.call("landlock_create_ruleset", None, 0, 1)


def everything(abi: int) -> int:
    """All rights over files that this version knows, but for making devices."""
    return (1 << _BITS.get(abi, 16)) - 1 & ~(1 << 6 | 1 << 11)


def ruleset(abi: int, readable: Iterable[str], writable: Iterable[str]) -> int:
    """A descriptor for `restrict`: files may be read below `readable`, used freely below `writable`, nothing else.

    Network and, from version 6, signals to and abstract sockets of processes outside are denied too.
    """
    handled = (1 << _BITS.get(abi, 16)) - 1
    attributes = struct.pack("<QQQ", handled, 3 if abi >= 4 else 0, 3 if abi >= 6 else 0)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    rules = syscalls.call("landlock_create_ruleset", ctypes.c_char_p(attributes), size, 0)
    try:
        for paths, access in ((readable, READ), (writable, everything(abi))):
            for path in paths:
                _allow(rules, path, access)
    except OSError:
        os.close(rules)
        raise
    return rules


def _allow(rules: int, path: str, access: int) -> None:
    try:
        beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not os.path.isdir(path):
            access &= _FILE
        syscalls.call("landlock_add_rule", rules, 1, ctypes.c_char_p(struct.pack("<Qi", access, beneath)), 0)
    finally:
        os.close(beneath)


def restrict(rules: int) -> None:
    """From here on. The process has to have `no_new_privs`."""
    syscalls.restrict(rules)
