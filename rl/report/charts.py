"""From metrics to drawings: scales, ticks and SVG paths, without any library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gymrl.rl.report.files import Curve
from gymrl.rl.report.metrics import (
    GROUPS,
    SMOOTHING,
    Metric,
    Points,
    Shares,
    Unit,
    describe,
    rank,
    smooth,
    thin,
    time_shares,
)
from gymrl.rl.report.stages import named

WIDTH, HEIGHT = 300, 168
LEFT, RIGHT, TOP, BOTTOM = 46, 296, 8, 142
MOST_CHARTS = 90
POINTS = 240


@dataclass(frozen=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True)
class Area:
    """One part of a stacked chart; `tone` numbers its colour, `now` is its share at the last step."""

    name: str
    path: str
    tone: int
    now: str


@dataclass(frozen=True)
class Chart:
    """One drawing, in units of a box of WIDTH x HEIGHT. `data` is what a script needs to draw it again."""

    id: str
    title: str
    note: str
    now: str
    label: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    data: dict[str, Any]
    raw: str = ""
    line: str = ""
    band: str = ""
    dots: list[tuple[float, float]] = field(default_factory=list)
    areas: list[Area] = field(default_factory=list)


@dataclass(frozen=True)
class ChartGroup:
    """Charts read together; `still` are the metrics that never changed, as (title, value)."""

    title: str
    charts: list[Chart]
    still: list[tuple[str, str]]


@dataclass(frozen=True)
class ChartStage:
    name: str
    title: str
    steps: str
    """Which steps, and how many make one point where there are too many to draw."""
    groups: list[ChartGroup]


@dataclass(frozen=True)
class Scale:
    """Maps values in [low, high] to [start, end]; logarithmic if `log`, where low > 0."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.forth(self.low), self.forth(self.high)
        share = (self.forth(value) - low) / (high - low)
        return self.start + min(1.0, max(0.0, share)) * (self.end - self.start)

    def forth(self, value: float) -> float:
        """The value as the axis counts it: its decimal logarithm if `log`."""
        return math.log10(max(value, self.low)) if self.log and not math.isnan(value) else value

    def back(self, value: float) -> float:
        return 10.0**value if self.log else value


def draw_stages(curves: Sequence[Curve], order: Sequence[str]) -> tuple[list[ChartStage], int]:
    """The charts of every stage, in this order, and how many metrics were left out because there are too many: the
    known ones stay."""
    ordered = sorted(curves, key=rank)
    kept = ordered[:MOST_CHARTS]
    points = max(40, min(POINTS, 9600 // max(1, len(kept))))
    names = sorted({curve.stage for curve in kept}, key=order.index)
    stages = [_draw_stage(name, [c for c in kept if c.stage == name], points) for name in names]
    return stages, len(curves) - len(kept)


def _draw_stage(name: str, curves: Sequence[Curve], most: int) -> ChartStage:
    charts: dict[str, list[Chart]] = {group: [] for group in GROUPS}
    still: dict[str, list[tuple[str, str]]] = {group: [] for group in GROUPS}
    shares = time_shares(curves, most)
    if shares is not None:
        charts["Time"].append(draw_shares(f"{name}-time", shares))
    for place, curve in enumerate(curves):
        metric = describe(curve)
        finite = {value for value in curve.values if not math.isnan(value)}
        if not finite:
            still[metric.group].append((metric.title, "never finite"))
        elif len(finite) == 1 and (len(curve.steps) == 1 or not metric.always):
            still[metric.group].append((metric.title, show(finite.pop(), metric.unit)))
        else:
            charts[metric.group].append(draw_curve(f"{name}-{place}", metric, thin(curve, most)))
    last = max(curve.steps[-1] for curve in curves)
    first = min(curve.steps[0] for curve in curves)
    steps = f"steps {first:,.0f} to {last:,.0f}" if last > first else f"step {last:,.0f}"
    stride = max(-(-len(curve.steps) // most) for curve in curves)
    if stride > 1:
        steps += f" · up to {stride} a point: the line is their mean, the band their range"
    return ChartStage(
        name,
        named(name).title,
        steps,
        [ChartGroup(group, charts[group], still[group]) for group in GROUPS if charts[group] or still[group]],
    )


def draw_curve(chart_id: str, metric: Metric, points: Points) -> Chart:
    """A line of the values, a smoothed line over it, and a band from least to largest where points are means."""
    finite = [value for low, high in zip(points.low, points.high, strict=True) for value in (low, high)]
    y = y_scale([value for value in finite if not math.isnan(value)], metric)
    x = _x_scale(points.first, points.last)
    middle = [(a + b) / 2 for a, b in zip(points.first, points.last, strict=True)]
    # On a logarithmic axis the logarithms are smoothed: one spike does not hide what follows it.
    smoothed = [y.back(v) for v in smooth([y.forth(v) for v in points.mean], SMOOTHING)]
    band = _band(middle, points.low, points.high, x, y) if points.stride > 1 else ""
    notes = [metric.note] if metric.note else []
    notes += ["log scale"] if y.log else []
    notes += [f"{points.lost} value{'s' * (points.lost != 1)} not finite"] if points.lost else []
    ends = (*(show(value, metric.unit) for value in points.ends), show(min(points_low(points)), metric.unit),
            show(max(points_high(points)), metric.unit))  # fmt: skip
    return Chart(
        chart_id,
        metric.title,
        ", ".join(notes),
        ends[1],
        f"{metric.title} by step: first {ends[0]}, last {ends[1]}, least {ends[2]}, largest {ends[3]}",
        [Tick(x(value), count(value)) for value in ticks(x.low, x.high, 5, whole=True)],
        [Tick(y(value), show(value, metric.unit)) for value in _y_ticks(y)],
        {
            "unit": metric.unit,
            "first": [compact(v) for v in points.first],
            "last": [compact(v) for v in points.last] if points.stride > 1 else None,
            "mean": [compact(v) for v in points.mean],
            "low": [compact(v) for v in points.low] if points.stride > 1 else None,
            "high": [compact(v) for v in points.high] if points.stride > 1 else None,
            "x": [x.low, x.high],
            "y": [y.low, y.high],
            "log": y.log,
        },
        raw=_line(middle, points.mean, x, y),
        line=_line(middle, smoothed, x, y),
        band=band,
        dots=_alone(middle, points.mean, x, y),
    )


def draw_shares(chart_id: str, shares: Shares) -> Chart:
    """Stacked areas: what share of a step's wall-clock each part took."""
    x = _x_scale(shares.first, shares.last)
    middle = [(a + b) / 2 for a, b in zip(shares.first, shares.last, strict=True)]
    y = Scale(0, 1, BOTTOM, TOP)
    sums = [sum(column) for column in zip(*shares.seconds, strict=True)]
    below = [0.0] * len(sums)
    areas, data = [], []
    for tone, (name, seconds, now) in enumerate(zip(shares.names, shares.seconds, shares.now, strict=True)):
        part = [value / total for value, total in zip(seconds, sums, strict=True)]
        above = [b + p for b, p in zip(below, part, strict=True)]
        tone = 7 if name == "rest" else tone
        areas.append(Area(name, _band(middle, below, above, x, y), tone, show(now / sum(shares.now), "share")))
        data.append(
            {"name": name, "share": [compact(v) for v in part], "seconds": [compact(v) for v in seconds]}
        )
        below = above
    label = ", ".join(f"{area.name} {area.now}" for area in areas)
    return Chart(
        chart_id,
        "Where a step's time goes",
        "share of wall-clock",
        "",
        f"Share of each step's time at the last step: {label}",
        [Tick(x(value), count(value)) for value in ticks(x.low, x.high, 5, whole=True)],
        [Tick(y(value), show(value, "share")) for value in (0.0, 0.25, 0.5, 0.75, 1.0)],
        {
            "first": [compact(v) for v in shares.first],
            "last": [compact(v) for v in shares.last],
            "x": [x.low, x.high],
            "parts": data,
        },
        areas=areas,
    )


def points_low(points: Points) -> list[float]:
    return [value for value in points.low if not math.isnan(value)]


def points_high(points: Points) -> list[float]:
    return [value for value in points.high if not math.isnan(value)]


def y_scale(values: Sequence[float], metric: Metric) -> Scale:
    """A scale over all values: success over [0, 1]; from 0 where the values reach far enough down; logarithmic
    where the largest of positive values is over 100 times the middle one."""
    low, high = min(values), max(values)
    middle = sorted(values)[len(values) // 2]
    if metric.unit == "share" and metric.group == GROUPS[0]:
        return Scale(0.0, 1.0, BOTTOM, TOP)
    if low > 0 and high > 100 * middle:
        return Scale(
            10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high)), BOTTOM, TOP, log=True
        )
    if 0 <= low <= high / 2:
        low = 0.0
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # nothing that an axis could tell apart
        low, high = low - (abs(low) / 2 or 0.5), high + (abs(high) / 2 or 0.5)
    else:
        room = (high - low) / 20
        low, high = (low if low == 0 else low - room), (high if high == 0 else high + room)
    if metric.unit == "share":
        low, high = max(0.0, low), min(1.0, high)
    return Scale(low, high, BOTTOM, TOP)


def _x_scale(first: Sequence[float], last: Sequence[float]) -> Scale:
    low, high = first[0], last[-1]
    return Scale(low, high if high > low else low + max(1.0, abs(low) / 10), LEFT, RIGHT)


def _y_ticks(scale: Scale) -> list[float]:
    if not scale.log:
        return ticks(scale.low, scale.high, 4)
    low, high = round(math.log10(scale.low)), round(math.log10(scale.high))
    return [10.0**power for power in range(low, high + 1, max(1, -(-(high - low) // 4)))]


def ticks(low: float, high: float, most: int, whole: bool = False) -> list[float]:
    """At most `most` + 1 round numbers in [low, high]; whole ones if `whole`."""
    span = (high - low) / most
    size = 10.0 ** math.floor(math.log10(span))
    gap = next((size * m for m in (1, 2, 5, 10) if size * m >= span * (1 - 1e-9)), size * 10)
    if whole:
        gap = max(1.0, gap)
    start = math.ceil(low / gap - 1e-9)
    return [n * gap for n in range(start, start + most + 2) if n * gap <= high + gap * 1e-9]


def show(value: float, unit: Unit) -> str:
    """A value for reading; the page's script writes values the same way."""
    if unit == "share":
        return f"{100 * value:.3g} %"
    ends = {"s": " s"}.get(unit, "")
    return count(value) + ends


def count(value: float) -> str:
    """Three significant digits, thousands as k and millions as M."""
    size = abs(value)
    for least, name in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if least <= size < 1e12:
            unit = 1e3 if name == "k" else least
            return f"{value / unit:.3g}".replace("e+03", "000") + name
    if 1000 <= size < 1e4:
        return f"{value:.0f}"
    return f"{value:.3g}"


def compact(value: float) -> float | int | None:
    """A value for embedding: five significant digits (whole numbers exact), None for NaN."""
    if math.isnan(value):
        return None
    if value == int(value) and abs(value) < 1e15:
        return int(value)
    return float(f"{value:.5g}")


def _line(xs: Sequence[float], ys: Sequence[float], x: Scale, y: Scale) -> str:
    """The path through the points, broken where a value is NaN."""
    parts, pen = [], "M"
    for at, value in zip(xs, ys, strict=True):
        if math.isnan(value):
            pen = "M"
            continue
        parts.append(f"{pen}{x(at):.1f} {y(value):.1f}")
        pen = "L"
    return "".join(parts)


def _alone(xs: Sequence[float], ys: Sequence[float], x: Scale, y: Scale) -> list[tuple[float, float]]:
    """Points without a neighbour, which no line shows."""
    gone = [True, *(math.isnan(value) for value in ys), True]
    return [
        (round(x(at), 1), round(y(value), 1))
        for i, (at, value) in enumerate(zip(xs, ys, strict=True))
        if not gone[i + 1] and gone[i] and gone[i + 2]
    ]


def _band(xs: Sequence[float], lows: Sequence[float], highs: Sequence[float], x: Scale, y: Scale) -> str:
    """The closed path between two lines, without the points where they are NaN."""
    known = [i for i in range(len(xs)) if not math.isnan(lows[i])]
    over = [f"{x(xs[i]):.1f} {y(highs[i]):.1f}" for i in known]
    under = [f"{x(xs[i]):.1f} {y(lows[i]):.1f}" for i in reversed(known)]
    return "M" + "L".join(over + under) + "Z" if known else ""
