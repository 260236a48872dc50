"""What a world shows, as text or as PNG."""

from __future__ import annotations

import math
import re
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

NUMBERS = 4096
"""Of an array that is shown as text; a larger one is refused, and is most likely a picture."""
MEND = "give observation = 'module:function', which makes it a text"
_COLOURED = re.compile(r"\x1b\[[0-9;]*[1-9][0-9;]*m(.*?)\x1b\[0?m", re.DOTALL)
_ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class Unshown(ValueError):
    """An observation that has no text, or is not a number."""


def as_text(value: Any) -> str:
    """A str as it is, numbers and arrays (at most 4096 numbers, six digits each), and dicts (a line for each key),
    lists and tuples of these. Raises Unshown for all else, and for NaN."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return "\n".join(f"{name}: {_inner(item)}" for name, item in value.items())
    return _inner(value)


def as_png(value: Any) -> bytes:
    """An array of shape (height, width, 3) or (height, width), uint8, as PNG. Raises Unshown for all else."""
    array = np.asarray(value) if isinstance(value, np.ndarray) else None
    if array is not None and array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array is None or array.dtype != np.uint8 or array.ndim not in (2, 3) or 0 in array.shape:
        raise Unshown(
            f"{_kind(value)} is no picture (uint8, height x width x 3): leave observation out, or {MEND}"
        )
    if array.ndim == 3 and array.shape[2] != 3:
        raise Unshown(f"{_kind(value)} is no picture: it takes 3 colours, or 1")
    height, width = array.shape[:2]
    rows = np.ascontiguousarray(array).reshape(height, -1)
    raw = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if array.ndim == 3 else 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", zlib.compress(raw))
        + _chunk(b"IEND", b"")
    )


def plain(drawn: str) -> str:
    """A drawing for terminals without its escapes: what was coloured stands in brackets."""
    if "\x1b" in drawn:
        drawn = _ESCAPE.sub("", _COLOURED.sub(r"[\1]", drawn))
    return drawn.strip("\n")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _inner(value: Any) -> str:
    if value is None or isinstance(value, (str, bool, np.bool_)):
        return str(value)
    if isinstance(value, (int, np.integer)):
        return str(int(value))
    if isinstance(value, (float, np.floating)):
        if math.isnan(value):
            raise Unshown("NaN is no observation: mend the world")
        return format(float(value), ".6g")
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biuf":
            raise Unshown(f"{_kind(value)} has no text: {MEND}")
        if value.size > NUMBERS:
            raise Unshown(f"{_kind(value)} is too large to be a text: give observation = 'image', or {MEND}")
        return _inner(value.tolist())
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_inner(item)}" for name, item in value.items()) + "}"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(_inner, value)) + ")"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inner, value)) + "]"
    raise Unshown(f"{_kind(value)} has no text: {MEND}")


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} and shape {value.shape}"
    return f"an observation that is a {type(value).__name__}"
