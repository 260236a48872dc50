"""A working folder: wiping it, and remembering and putting back what is in it. Programs may have made it a maze."""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
import struct
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from gymrl.sandboxes.inside import syscalls as sc
from gymrl.sandboxes.inside.protocol import Passing

DEEPEST = 3000
"""Characters of a path below the folder; what lies deeper is not remembered."""
_NO_LINKS = 0x04 | 0x08  # RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH


class Entry(NamedTuple):
    """A file (its bytes), a symbolic link (its aim) or a folder (None). `key` changes whenever the content does."""

    mode: int
    changed: int
    key: tuple[int, int, int]
    content: Passing | str | None


class Tree(NamedTuple):
    """What a folder held, by path below it; a folder comes before what is in it."""

    entries: dict[str, Entry]


def _beneath(root: int, path: str, flags: int, mode: int = 0) -> int:
    """Open a path below `root` without following any link (Linux 5.6)."""
    how = struct.pack("<QQQ", flags | os.O_CLOEXEC | os.O_NOFOLLOW, mode, _NO_LINKS)
    return sc.call("openat2", root, path or ".", ctypes.c_char_p(how), len(how))


def wipe(path: str) -> None:
    """Remove everything in a folder, however deep and whatever its modes. Nothing may be using it. Raises OSError."""
    _empty(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW))


def _empty(here: int) -> None:
    """The same for an open folder, which is closed."""
    names: list[str] = []
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


def _key(info: os.stat_result) -> tuple[int, int, int]:
    if stat.S_ISDIR(info.st_mode):
        return info.st_ino, stat.S_IMODE(info.st_mode), 0
    return info.st_ino, info.st_ctime_ns, info.st_size


def _entry(folder: int, name: str, before: Entry | None) -> Entry | None:
    info = os.stat(name, dir_fd=folder, follow_symlinks=False)
    key = _key(info)
    mode = stat.S_IMODE(info.st_mode)
    if stat.S_ISDIR(info.st_mode):
        return Entry(mode, 0, key, None)
    if before is not None and before.key == key and before.content is not None:
        return before
    if stat.S_ISLNK(info.st_mode):
        return Entry(mode, info.st_mtime_ns, key, os.readlink(name, dir_fd=folder))
    if not stat.S_ISREG(info.st_mode):
        return None
    with open(
        os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder), "rb"
    ) as file:
        content = Passing(info.st_size)
        size = file.readinto(content)
        if size < len(content):
            del content[size:]
        return Entry(mode, info.st_mtime_ns, key, content)


def put(path: str, tree: Tree, own: Callable[[int | str, int | None], None]) -> Tree:
    """Make the folder hold what the tree says; the same tree, as what the folder holds now. What has not changed since
    the tree was taken is left alone. own(name, folder) hands a new file to the program's user."""
    kept: set[str] = set()
    for below, entry in take(path, tree).entries.items():
        above = below.rpartition("/")[0]
        whole = entry.content is not None or entry.mode & 0o700 == 0o700  # else nothing can be changed in it
        if tree.entries.get(below) == entry and whole and (not above or above in kept):
            kept.add(below)
    root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        _prune(root, "", kept)
        entries = {below: tree.entries[below] for below in tree.entries}
        made = [below for below in entries if below not in kept]
        for below in made:
            with contextlib.suppress(OSError), parent(root, below) as (folder, name):
                make(folder, name, entries[below], own)
        for below in reversed(made):
            if entries[below].content is None:
                with contextlib.suppress(OSError), parent(root, below) as (folder, name):
                    os.chmod(name, entries[below].mode, dir_fd=folder)
        for below in made:
            with contextlib.suppress(OSError), parent(root, below) as (folder, name):
                info = os.stat(name, dir_fd=folder, follow_symlinks=False)
                entries[below] = entries[below]._replace(key=_key(info))
    finally:
        os.close(root)
    return Tree(entries)


@contextlib.contextmanager
def parent(root: int, below: str) -> Iterator[tuple[int, str]]:
    """The folder that a path below `root` lies in, opened, and the path's last name."""
    parent, _, name = below.rpartition("/")
    folder = _beneath(root, parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield folder, name
    finally:
        os.close(folder)


def _prune(root: int, prefix: str, kept: Collection[str]) -> None:
    """Remove all that is not in `kept`, of whatever kind, from a folder that is in it."""
    folder = _beneath(root, prefix, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in os.listdir(folder):
            below = f"{prefix}/{name}" if prefix else name
            is_folder = stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
            if below in kept:
                if is_folder:
                    _prune(root, below, kept)
            elif is_folder:
                os.chmod(name, 0o700, dir_fd=folder)
                lost = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
                _empty(lost)
                os.rmdir(name, dir_fd=folder)
            else:
                os.unlink(name, dir_fd=folder)
    finally:
        os.close(folder)


def make(folder: int, name: str, entry: Entry, own: Callable[[int | str, int | None], None]) -> None:
    """Make a file, a link or a folder, which may be written to for now, and hand it to the program's user."""
    if entry.content is None:
        os.mkdir(name, 0o700, dir_fd=folder)
    elif isinstance(entry.content, str):
        os.symlink(entry.content, name, dir_fd=folder)
    else:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(name, flags, 0o600, dir_fd=folder), "wb") as file:
            file.write(entry.content)
    own(name, folder)
    if isinstance(entry.content, Passing):
        os.chmod(name, entry.mode, dir_fd=folder)
        os.utime(name, ns=(entry.changed, entry.changed), dir_fd=folder)
