"""Causes by which episodes and updates are counted: texts that differ in their figures alone are one."""

from __future__ import annotations

import re
from collections.abc import Mapping

_FIGURE = re.compile(r"(?<![\w.])(?:0x[0-9a-fA-F]+|\d+(?:[.,]\d+)*(?:e[+-]?\d+)?)")
_NAMES = re.compile(r"(?:\.py:|HTTP |status |exit |code |signal |errno )-?$", re.IGNORECASE)
"""What comes before a figure that says which one it is: a line of a source, a status, a signal."""


def masked(cause: str) -> str:
    """A cause without its figures, but for those that are names."""

    def mask(found: re.Match[str]) -> str:
        return found[0] if _NAMES.search(cause[max(0, found.start() - 10) : found.start()]) else "#"

    return _FIGURE.sub(mask, cause)


def grouped(counts: Mapping[str, int], *more: Mapping[str, int]) -> dict[str, int]:
    """Counts by cause, added up over causes that are alike but for their figures; the first of them stands for all."""
    examples: dict[str, str] = {}
    found: dict[str, int] = {}
    for one in (counts, *more):
        for cause, count in one.items():
            example = examples.setdefault(masked(cause), cause)
            found[example] = found.get(example, 0) + count
    return found


def without_figures(trouble: str) -> str:
    """Why an update was skipped, without what was measured."""
    return re.sub(r" \(.*| [\d.e+-]+ is [\d.e+-]+ times.*", "", trouble)
