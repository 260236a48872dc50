"""A working folder: wiping it, and remembering and putting back what is in it. Programs may have made it a maze."""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from gymrl.sandboxes.inside import syscalls as sc

DEEPEST = 3000
"""Characters of a path below the folder; what lies deeper is not remembered."""
_NO_LINKS = 0x04 | 0x08  # RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH


@dataclass(frozen=True, slots=True)
class Entry:
    """A file (its bytes), a symbolic link (its aim) or a folder (None). `key` changes whenever the content does."""

    mode: int
    changed: int
    key: tuple[int, int, int]
    content: bytes | str | None


@dataclass(frozen=True, slots=True)
class Tree:
    """What a folder held, by path below it; a folder comes before what is in it."""

    entries: dict[str, Entry] = field(default_factory=dict)


def _beneath(root: int, path: str, flags: int, mode: int = 0) -> int:
    """Open a path below `root` without following any link (Linux 5.6)."""
    how = struct.pack("<QQQ", flags | os.O_CLOEXEC | os.O_NOFOLLOW, mode, _NO_LINKS)
    return sc.call("openat2", root, path or ".", ctypes.c_char_p(how), len(how))


def wipe(path: str) -> None:
    """Remove everything in a folder, however deep and whatever its modes. Nothing may be using it. Raises OSError."""
    names: list[str] = []
    here = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        while True:
            below = _remove_entries(here)
            if below is not None:
                deeper = os.open(below, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
                names.append(below)
            elif names:
                deeper = os.open("..", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
                os.rmdir(names.pop(), dir_fd=deeper)
            else:
                return
            os.close(here)
            here = deeper
    finally:
        os.close(here)


def _remove_entries(folder: int) -> str | None:
    """Remove what can be removed at once; the first folder that is not empty."""
    for name in os.listdir(folder):
        try:
            os.unlink(name, dir_fd=folder)
        except (IsADirectoryError, PermissionError):
            try:
                os.rmdir(name, dir_fd=folder)
            except OSError:
                if not stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                    raise
                os.chmod(name, 0o700, dir_fd=folder)
                return name
    return None


def take(path: str, before: Tree) -> Tree:
    """What the folder holds. Files that have not changed since `before` are not read again."""
    entries: dict[str, Entry] = {}
    root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    todo = [""]
    try:
        while todo:
            prefix = todo.pop()
            with contextlib.suppress(OSError):
                folder = _beneath(root, prefix, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    for name in os.listdir(folder):
                        below = f"{prefix}/{name}" if prefix else name
                        with contextlib.suppress(OSError):
                            entry = _entry(folder, name, before.entries.get(below))
                            if entry is not None and len(below) < DEEPEST:
                                entries[below] = entry
                                if entry.content is None:
                                    todo.append(below)
                finally:
                    os.close(folder)
    finally:
        os.close(root)
    return Tree(entries)


def _entry(folder: int, name: str, before: Entry | None) -> Entry | None:
    info = os.stat(name, dir_fd=folder, follow_symlinks=False)
    key = (info.st_ino, info.st_ctime_ns, info.st_size)
    mode = stat.S_IMODE(info.st_mode)
    if stat.S_ISDIR(info.st_mode):
        return Entry(mode, 0, (info.st_ino, mode, 0), None)
    if before is not None and before.key == key and before.content is not None:
        return before
    if stat.S_ISLNK(info.st_mode):
        return Entry(mode, info.st_mtime_ns, key, os.readlink(name, dir_fd=folder))
    if not stat.S_ISREG(info.st_mode):
        return None
    with open(
        os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder), "rb"
    ) as file:
        return Entry(mode, info.st_mtime_ns, key, file.read())


def put(path: str, tree: Tree, own: Callable[[int | str, int | None], None]) -> None:
    """Make the folder hold what the tree says. own(name, folder) hands a new file to the program's user."""
    if take(path, tree).entries == tree.entries:
        return
    wipe(path)
    root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        for below, entry in tree.entries.items():
            parent, _, name = below.rpartition("/")
            with contextlib.suppress(OSError):
                folder = _beneath(root, parent, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    _make(folder, name, entry)
                    own(name, folder)
                    if isinstance(entry.content, bytes):
                        os.chmod(name, entry.mode, dir_fd=folder)
                        os.utime(name, ns=(entry.changed, entry.changed), dir_fd=folder)
                finally:
                    os.close(folder)
        for below, entry in reversed(tree.entries.items()):
            if entry.content is None:
                with contextlib.suppress(OSError):
                    folder = _beneath(root, below, os.O_RDONLY | os.O_DIRECTORY)
                    os.fchmod(folder, entry.mode)
                    os.close(folder)
    finally:
        os.close(root)


def _make(folder: int, name: str, entry: Entry) -> None:
    if entry.content is None:
        os.mkdir(name, 0o700, dir_fd=folder)
    elif isinstance(entry.content, str):
        os.symlink(entry.content, name, dir_fd=folder)
    else:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(name, flags, 0o600, dir_fd=folder), "wb") as file:
            file.write(entry.content)
