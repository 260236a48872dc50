"""A working tree on its way to a worker: a folder's contents as one stream."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from gymrl.sandboxes.inside import protocol

PART = 2**20
"""Bytes that are sent at once."""


@dataclass(frozen=True, slots=True)
class Item:
    """Something in a folder. path: below it. size: bytes of a file, or of a link's aim."""

    kind: bytes
    path: str
    mode: int
    changed: int
    size: int


@dataclass(frozen=True, slots=True)
class WorkingTree:
    """A folder's contents ('': none): files, folders and symbolic links, each folder before what is in it."""

    folder: str
    items: tuple[Item, ...]

    @property
    def size(self) -> int:
        """Bytes that it takes on a file system, about."""
        return sum(item.size + 4096 for item in self.items)

    def stream(self) -> Iterator[bytes]:
        """What the worker's side reads. A file that shrinks meanwhile is filled up with NULs. Raises OSError."""
        for item in self.items:
            name = os.fsencode(item.path)
            full = os.path.join(self.folder, item.path)
            yield protocol.ITEM.pack(item.kind, item.mode, item.changed, item.size, len(name)) + name
            if item.kind == protocol.LINK:
                yield os.fsencode(os.readlink(full))[: item.size].ljust(item.size, b"\0")
            elif item.kind == protocol.FILE:
                left = item.size
                with open(full, "rb") as file:
                    while left:
                        data = file.read(min(left, PART)) or bytes(min(left, PART))
                        left -= len(data)
                        yield data
        yield protocol.ITEM.pack(protocol.END, 0, 0, 0, 0)


def working_tree(folder: str | os.PathLike[str]) -> WorkingTree:
    """Look through a folder; sockets, pipes and devices are left out. Raises ValueError if it cannot be read."""
    folder = os.fspath(folder)
    if not folder:
        return WorkingTree("", ())
    items: list[Item] = []
    todo = [""]
    try:
        while todo:
            prefix = todo.pop()
            with os.scandir(os.path.join(folder, prefix)) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    info = entry.stat(follow_symlinks=False)
                    path = os.path.join(prefix, entry.name)
                    kind = _kind(info.st_mode)
                    if kind:
                        aim = os.readlink(entry.path) if kind == protocol.LINK else ""
                        size = info.st_size if kind == protocol.FILE else len(os.fsencode(aim))
                        items.append(Item(kind, path, stat.S_IMODE(info.st_mode), info.st_mtime_ns, size))
                    if kind == protocol.FOLDER:
                        todo.append(path)
    except OSError as error:
        raise ValueError(
            f"the working tree {folder!r} cannot be read ({error.strerror}): give a folder that can"
        ) from error
    return WorkingTree(folder, tuple(items))


def _kind(mode: int) -> bytes:
    if stat.S_ISDIR(mode):
        return protocol.FOLDER
    if stat.S_ISLNK(mode):
        return protocol.LINK
    return protocol.FILE if stat.S_ISREG(mode) else b""
