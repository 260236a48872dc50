"""Plots of the learning study as SVG: curves by RL step beside what was held out, one colour an arm."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from html import escape

COLOURS = ("#1f6fb4", "#d9590f", "#2a9134", "#8e5bc0", "#8c564b")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, LOW = 380, 250, 46, 14, 34, 210
"""Of one panel, and of its axes within it."""

Curves = Mapping[str, Sequence[Sequence[float]]]
"""Of each arm the values by step, a sequence for every seed."""


def figure(title: str, panels: Sequence[str]) -> str:
    """Panels in two columns under a title."""
    height = 30 + HEIGHT * math.ceil(len(panels) / 2)
    placed = (
        f'<g transform="translate({WIDTH * (n % 2)} {30 + HEIGHT * (n // 2)})">{panel}</g>'
        for n, panel in enumerate(panels)
    )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {height}" '
        'font-family="sans-serif" font-size="11" fill="#222">'
    )
    return "\n".join(
        [
            head,
            f'<rect width="{2 * WIDTH}" height="{height}" fill="#fff"/>',
            f'<text x="{LEFT}" y="20" font-size="14" font-weight="bold">{escape(title)}</text>',
            *placed,
            "</svg>\n",
        ]
    )


def curves(title: str, arms: Curves, span: int = 3) -> str:
    """Values by RL step, a mean over the last `span`: every seed thin, the mean of the seeds thick."""
    smooth = {
        arm: [[_mean(seed[max(0, i - span + 1) : i + 1]) for i in range(len(seed))] for seed in seeds]
        for arm, seeds in arms.items()
    }
    top = _ceiling([v for seeds in smooth.values() for seed in seeds for v in seed])
    most = max((len(seed) for seeds in smooth.values() for seed in seeds), default=1)

    def path(values: Sequence[float]) -> str:
        points = (
            f"{LEFT + i / max(1, most - 1) * (WIDTH - LEFT - RIGHT):.1f} {LOW - v / top * (LOW - TOP):.1f}"
            for i, v in enumerate(values)
        )
        return "M" + "L".join(points)

    parts = [
        *_frame(title, f"RL step, 1 to {most}" + (f" (each a mean over {span})" if span > 1 else "")),
        *(_level(top * share, LOW - share * (LOW - TOP)) for share in (0, 0.25, 0.5, 0.75, 1)),
    ]
    for number, seeds in enumerate(smooth.values()):
        thin = f'fill="none" stroke="{COLOURS[number % len(COLOURS)]}"'
        parts += [f'<path d="{path(seed)}" {thin} opacity="0.3"/>' for seed in seeds if seed]
        together = [_mean(column) for column in zip(*seeds, strict=False)]
        if together:
            parts.append(f'<path d="{path(together)}" {thin} stroke-width="2.2"/>')
    return "\n".join(parts)


def dots(title: str, arms: Mapping[str, Sequence[float]], before: Mapping[str, float]) -> str:
    """One row an arm, which is also the legend: a dot for every seed's value in [0, 1], a bar at their mean, and a ring
    at the mean of what was before."""
    parts = _frame(title, "dots: seeds; bar: their mean; ring: mean before")

    def across(value: float) -> float:
        return LEFT + value * (WIDTH - LEFT - RIGHT)

    for share in (0, 0.25, 0.5, 0.75, 1):
        x = across(share)
        parts.append(f'<path d="M{x:.1f} {TOP}V{LOW}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:.1f}" y="{LOW + 14}" text-anchor="middle">{share:g}</text>')
    for number, (arm, values) in enumerate(arms.items()):
        colour = COLOURS[number % len(COLOURS)]
        y = TOP + (number + 0.62) * (LOW - TOP) / len(arms)
        middle = _mean(values)
        parts.append(
            f'<text x="{LEFT + 4}" y="{y - 12:.1f}" fill="{colour}" font-weight="bold">'
            f"{escape(arm)}: {middle:.3f} (n = {len(values)})</text>"
        )
        parts += [
            f'<circle cx="{across(v):.1f}" cy="{y:.1f}" r="4" fill="{colour}" opacity="0.55"/>'
            for v in values
        ]
        ring = across(before[arm])
        parts.append(f'<circle cx="{ring:.1f}" cy="{y:.1f}" r="4" fill="none" stroke="{colour}"/>')
        parts.append(f'<path d="M{across(middle):.1f} {y - 8:.1f}v16" stroke="{colour}" stroke-width="2.5"/>')
    return "\n".join(parts)


def _frame(title: str, under: str) -> list[str]:
    return [
        f'<text x="{LEFT}" y="{TOP - 14}" font-weight="bold">{escape(title)}</text>',
        f'<path d="M{LEFT} {TOP}V{LOW}H{WIDTH - RIGHT}" fill="none" stroke="#888"/>',
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{LOW + 30}" text-anchor="middle">{escape(under)}</text>',
    ]


def _level(value: float, y: float) -> str:
    return (
        f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>'
        f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
    )


def _ceiling(values: Sequence[float]) -> float:
    """The least of 1, 2, 4, 8 times a power of ten that is not below any value; 1 where there is none above 0.4."""
    most = max((v for v in values if math.isfinite(v)), default=0.0)
    if 0.4 < most <= 1 or most <= 0:
        return 1.0
    unit = 10.0 ** math.floor(math.log10(most))
    return next((m * unit for m in (1, 2, 4, 8) if m * unit >= most), 10 * unit)


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan
