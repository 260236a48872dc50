"""What no world may be asked to do: calls that would take minutes or gigabytes are refused, as a real system would."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CALLS = 50
"""In one turn of the agent."""
CHARACTERS = 20_000
"""In the arguments of one call."""
DEPTH = 40
"""Of a directory tree, and of nested arguments."""
ENTRIES, PATHS = 4_000, 400_000
"""Of a directory tree: its files and directories, and the characters of all their paths.
(BFCL's have 124 and 4,487.)"""
NAME = 255
PRECISION = 1_000
"""Digits."""
BITS = 20_000
"""Of a whole number, as the result of a power."""

_GROWS = ("cp", "mv", "find", "du", "mkdir", "touch")


def objection(name: str, arguments: Mapping[str, Any], instance: Any) -> str | None:
    """Why a call of a backend's method is refused; None where it is not."""
    if name in _GROWS:
        if any(isinstance(value, str) and len(value) > NAME for value in arguments.values()):
            return f"{name}: File name too long"
        if not _small(instance.root):
            return f"{name}: the file system is full"
        if name == "mkdir" and _depth(instance._current_dir) >= DEPTH:
            return f"{name}: too many levels of directories"
    elif name in ("logarithm", "square_root"):
        if not all(isinstance(value, (int, float)) for value in arguments.values()):
            return f"{name} takes numbers alone"
        if abs(arguments.get("precision", 0)) > PRECISION:
            return f"precision is at most {PRECISION}"
    elif name == "round_number":
        places = arguments.get("decimal_places", 0)
        if isinstance(places, int) and abs(places) > PRECISION:
            return f"decimal_places is at most {PRECISION}"
    elif name == "power":
        base, exponent = arguments.get("base"), arguments.get("exponent")
        if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * abs(exponent) > BITS:
            return "the result is too large"
    return None


def size(value: Any, depth: int = 0) -> int:
    """Roughly the characters of an argument. Raises ValueError for one that is nested too deep or is no plain data."""
    if depth > DEPTH:
        raise ValueError("its arguments are nested too deep")
    if isinstance(value, str):
        return len(value) + 2
    if isinstance(value, (bool, int, float, complex, bytes)) or value is None or value is ...:
        return 8 + (value.bit_length() // 3 if isinstance(value, int) else 0)
    if isinstance(value, Mapping):
        return 2 + sum(size(key, depth + 1) + size(item, depth + 1) for key, item in value.items())
    if isinstance(value, (list, tuple, set)):
        return 2 + sum(size(item, depth + 1) for item in value)
    raise ValueError(f"its arguments hold a {type(value).__name__}")


def _small(root: Any) -> bool:
    """Whether a tree is one that can be walked. Directories may share their contents, and even hold themselves."""
    entries = paths = 0
    open_ = [(root, 0, 0)]
    while open_:
        directory, depth, length = open_.pop()
        for name, item in directory.contents.items():
            entries, paths = entries + 1, paths + length + len(name)
            if entries > ENTRIES or paths > PATHS or depth > DEPTH:
                return False
            if hasattr(item, "contents"):
                open_.append((item, depth + 1, length + len(name) + 1))
    return True


def _depth(directory: Any) -> int:
    depth = 0
    while directory is not None and depth < DEPTH:
        directory, depth = directory.parent, depth + 1
    return depth
