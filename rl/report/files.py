"""Reading a run folder that may be missing parts, half written, or still growing."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LARGEST = 1e100
"""Metrics beyond this have blown up: they are counted as not finite."""
SCAN_BYTES = 64 * 2**20
"""How much of one episode file is looked at in search of examples."""


@dataclass(frozen=True)
class Curve:
    """One metric of one stage: `values[i]` at `steps[i]`, ascending; NaN where a value was not finite, which JSON
    writes as null."""

    stage: str
    key: str
    steps: list[float]
    values: list[float]


@dataclass(frozen=True)
class Stage:
    """One evaluation of the summary; `low` and `high` bound its 95 % interval, `valid` of the `episodes` are in it."""

    name: str
    success: float
    low: float
    high: float
    episodes: int
    valid: int
    seconds: float | None


@dataclass(frozen=True)
class Summary:
    """`summary.json`, as much of it as makes sense."""

    recipe: str = ""
    seed: str = ""
    status: str = ""
    seconds: float | None = None
    versions: dict[str, str] = field(default_factory=dict)
    stages: tuple[Stage, ...] = ()
    invalid: dict[str, int] = field(default_factory=dict)
    void: dict[str, int] = field(default_factory=dict)


def number(value: Any) -> float | None:
    """A finite number as float; None for anything else."""
    if isinstance(value, int | float):
        try:
            found = float(value)
        except OverflowError:
            return None
        return found if math.isfinite(found) else None
    return None


def read_text(path: Path, limit: int) -> str:
    """The first `limit` characters of a file, '' where there is none; undecodable bytes are replaced."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(limit)
    except OSError:
        return ""


def read_summary(run: Path) -> Summary:
    """The summary; an empty one where there is none or it cannot be read."""
    data = _parse(read_text(run / "summary.json", 2**22))
    if not isinstance(data, dict):
        return Summary()
    stages = data.get("stages")
    found = [_stage(item) for item in stages] if isinstance(stages, list) else []
    versions = data.get("versions")
    return Summary(
        recipe=str(data.get("recipe") or ""),
        seed="" if data.get("seed") is None else str(data["seed"]),
        status=str(data.get("status") or ""),
        seconds=number(data.get("seconds")),
        versions={str(k): str(v) for k, v in versions.items()} if isinstance(versions, dict) else {},
        stages=tuple(stage for stage in found if stage is not None),
        invalid=_counts(data.get("invalid")),
        void=_counts(data.get("void")),
    )


def read_curves(run: Path) -> list[Curve]:
    """Every metric of every stage in the order they appear. Of two lines of one step the later counts, as after a
    resumed run."""
    found: dict[tuple[str, str], dict[float, float]] = {}
    for data in _lines(run / "metrics.jsonl"):
        step = number(data.get("step"))
        if step is None or abs(step) > LARGEST:
            continue
        stage = str(data.get("stage", ""))
        for key, value in data.items():
            if key not in ("stage", "step") and (value is None or isinstance(value, int | float)):
                finite = number(value)
                found.setdefault((stage, key), {})[step] = (
                    math.nan if finite is None or abs(finite) > LARGEST else finite
                )
    curves = []
    for (stage, key), points in found.items():
        steps = sorted(points)
        curves.append(Curve(stage, key, steps, [points[step] for step in steps]))
    return curves


def read_episodes(path: Path) -> Iterator[dict[str, Any]]:
    """The episodes of a file as plain data; broken lines, and all after the first `SCAN_BYTES`, are passed over."""
    yield from _lines(path, SCAN_BYTES)


def _lines(path: Path, limit: int | None = None) -> Iterator[dict[str, Any]]:
    read = 0
    try:
        with path.open("rb") as file:
            for line in file:
                read += len(line)
                data = _parse(line.decode("utf-8", "replace"))
                if isinstance(data, dict):
                    yield data
                if limit is not None and read > limit:
                    return
    except OSError:
        return


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _stage(item: Any) -> Stage | None:
    if not isinstance(item, Mapping):
        return None
    success = number(item.get("success"))
    if success is None:
        return None
    low, high = number(item.get("low")), number(item.get("high"))
    episodes = int(number(item.get("episodes")) or 0)
    invalid = sum(_counts(item.get("invalid")).values())
    return Stage(
        name=str(item.get("name", "")),
        success=success,
        low=success if low is None else low,
        high=success if high is None else high,
        episodes=episodes,
        valid=max(0, episodes - max(0, invalid)),
        seconds=number(item.get("seconds")),
    )


def _counts(value: Any, prefix: str = "") -> dict[str, int]:
    """Counts by cause, largest first; nested ones carry their path as prefix."""
    found: dict[str, int] = {}
    if isinstance(value, Mapping):
        for key, item in value.items():
            count = number(item)
            if count is not None:
                found[f"{prefix}{key}"] = int(count)
            elif isinstance(item, Mapping) and prefix.count(": ") < 3:
                found |= _counts(item, f"{prefix}{key}: ")
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))
