"""A shell's working tree, as it arrives at the worker: one stream of files, folders and links, made again in a folder.

The other end is `gymrl.sandboxes.tree`. A whole tree may be larger than the memory that is to spare: a file is written
as it comes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import BinaryIO

from gymrl.sandboxes.inside import protocol
from gymrl.sandboxes.inside.files import parent

PART = 2**20


def unpack(source: int, path: str, own: Callable[[int | str, int | None], None]) -> None:
    """Fill an empty folder that no program knows yet; the stream is closed. own(name, folder) hands a file to the
    program's user. Raises OSError, and EOFError where the stream ends too early."""
    folders: list[tuple[str, int]] = []
    root = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with open(source, "rb") as stream:
            while True:
                kind, mode, changed, size, length = protocol.ITEM.unpack(exactly(stream, protocol.ITEM.size))
                if kind == protocol.END:
                    break
                below = os.fsdecode(exactly(stream, length))
                with parent(root, below) as (folder, name):
                    if kind == protocol.FOLDER:
                        os.mkdir(name, 0o700, dir_fd=folder)
                        folders.append((below, mode))
                    elif kind == protocol.LINK:
                        os.symlink(os.fsdecode(exactly(stream, size)), name, dir_fd=folder)
                    else:
                        _file(stream, folder, name, mode, size)
                        os.utime(name, ns=(changed, changed), dir_fd=folder)
                    own(name, folder)
        for below, mode in reversed(folders):
            with parent(root, below) as (folder, name):
                os.chmod(name, mode & 0o1777, dir_fd=folder)
    finally:
        os.close(root)


def _file(stream: BinaryIO, folder: int, name: str, mode: int, size: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(name, flags, 0o600, dir_fd=folder), "wb", buffering=0) as file:
        os.fchmod(file.fileno(), mode & 0o777)
        while size:
            data = exactly(stream, min(size, PART))
            size -= len(data)
            while data:
                data = data[file.write(data) :]


def exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError("the working tree's stream ends too early")
    return data
