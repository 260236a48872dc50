"""Soft punishment of over-long episodes (DAPO, Yu et al. 2025)."""

from __future__ import annotations


def overlong(length: int, limit: int, buffer: int, factor: float) -> float:
    """min(-(length - (limit - buffer)) / buffer * factor, 0): nothing up to limit - buffer tokens, -factor at the
    limit, more beyond it."""
    return min(-(length - (limit - buffer)) / buffer * factor, 0.0)
