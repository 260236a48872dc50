"""What came of the learning study: a row for every finished run, the arms side by side, plots."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from study_plan import ARMS, QUESTIONS, Question

T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Two-sided 95 % quantiles of Student's t, by the number of values."""

COLOURS = ("#1f77b4", "#d95f02", "#2ca02c", "#9467bd", "#8c564b")
FIELDS = (
    "arm", "seed", "start", "success", "low", "high", "tasks", "training", "void", "grad_norm", "grad_norm_max",
    "void_share_of_grad", "skipped", "seconds",
)  # fmt: skip


def row_of(out: Path, arm: str, seed: int) -> dict[str, Any] | None:
    """A finished run's figures, None of one that is not: held-out success before (`start`) and after with its Wilson
    interval, success in the last third of its RL steps, share of void turns and gradient norms over all of them."""
    folder = out / arm / f"seed-{seed}"
    try:
        summary = json.loads((folder / "summary.json").read_text())
    except (OSError, ValueError):
        return None
    if summary["status"] != "finished":
        return None
    first, last = summary["stages"][0], summary["stages"][-1]
    steps = steps_of(out, arm, seed)
    norms = [s["grad_norm"] for s in steps if "grad_norm" in s]
    causes = [
        s["grad_norm/void"] / s["grad_norm/all"]
        for s in steps
        if s.get("grad_norm/all", 0) > 0 and "grad_norm/void" in s
    ]
    return {
        "arm": arm, "seed": seed, "start": first["success"], "success": last["success"], "low": last["low"],
        "high": last["high"], "tasks": last["episodes"],
        "training": mean([s["success"] for s in steps[-max(1, len(steps) // 3) :]]),
        "void": mean([s["void_turns"] for s in steps]), "grad_norm": mean(norms),
        "grad_norm_max": max(norms, default=math.nan), "void_share_of_grad": mean(causes),
        "skipped": sum(summary.get("skipped", {}).values()), "seconds": round(summary["seconds"], 1),
    }  # fmt: skip


def steps_of(out: Path, arm: str, seed: int) -> list[dict[str, Any]]:
    """The metrics of a run's RL steps so far."""
    found = []
    try:
        lines = (out / arm / f"seed-{seed}" / "metrics.jsonl").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the line that was being written
        if row["stage"] == "rl":
            found.append(row)
    return found


def mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean of seeds and half its 95 % interval (Student's t); NaN for half where there is one seed."""
    if len(values) < 2:
        return mean(values), math.nan
    return mean(values), T95.get(len(values), 2.0) * statistics.stdev(values) / math.sqrt(len(values))


def shown(value: float, half: float = math.nan) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.3f}" + ("" if math.isnan(half) else f" ± {half:.3f}")


def table(question: Question, rows: Sequence[dict[str, Any]]) -> str:
    """The arms of a question as Markdown; differences are to the first arm, seed by seed."""
    lines = [
        f"### {question.title}",
        "",
        "| arm | seeds | before | held-out success | to the first, same seeds | last third of training | "
        "void turns | gradient norm, largest | of it void |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    base = {r["seed"]: r["success"] for r in rows if r["arm"] == question.arms[0]}
    for arm in question.arms:
        own = [r for r in rows if r["arm"] == arm]
        if not own:
            lines.append(f"| {arm} | none finished | | | | | | | |")
            continue
        paired = [r["success"] - base[r["seed"]] for r in own if r["seed"] in base]
        cells = [
            arm, ", ".join(str(r["seed"]) for r in own), shown(mean([r["start"] for r in own])),
            shown(*interval([r["success"] for r in own])),
            "" if arm == question.arms[0] else shown(*interval(paired)), shown(*interval([r["training"] for r in own])),
            shown(mean([r["void"] for r in own])),
            f"{shown(mean([r['grad_norm'] for r in own]))}, {shown(max(r['grad_norm_max'] for r in own))}",
            shown(mean([r["void_share_of_grad"] for r in own])),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(title: str, curves: dict[str, list[list[float]]]) -> str:
    """Success by RL step, as an SVG: of each arm every seed thin, and their mean (where all have the step) thick."""
    width, height, left, low = 560, 320, 48, 276
    most = max((len(seed) for seeds in curves.values() for seed in seeds), default=1)

    def path(values: Sequence[float]) -> str:
        smooth = [mean(values[max(0, i - 2) : i + 1]) for i in range(len(values))]
        points = (
            f"{left + i / max(1, most - 1) * (width - left - 20):.1f} {low - v * (low - 30):.1f}"
            for i, v in enumerate(smooth)
        )
        return "M" + "L".join(points)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="{left}" y="18">{escape(title)}</text>',
        f'<path d="M{left} 30V{low}H{width - 20}" fill="none" stroke="#888"/>',
        f'<text x="{width / 2}" y="{height - 8}" text-anchor="middle">RL step (1 to {most}), mean of three</text>',
    ]
    for value in (0.0, 0.5, 1.0):
        parts.append(
            f'<text x="{left - 6}" y="{low - value * (low - 30) + 4}" text-anchor="end">{value}</text>'
        )
    for number, (arm, seeds) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        thin = f'fill="none" stroke="{colour}"'
        parts += [f'<path d="{path(seed)}" {thin} opacity="0.35"/>' for seed in seeds if seed]
        together = [mean(column) for column in zip(*seeds, strict=False)]
        if together:
            parts.append(f'<path d="{path(together)}" {thin} stroke-width="2.5"/>')
        label = f"{arm} ({len(seeds)} seed{'s' * (len(seeds) != 1)})"
        parts.append(
            f'<text x="{width - 170}" y="{low - 12 - 16 * number}" fill="{colour}">{escape(label)}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def write_results(out: Path, seeds: Sequence[int]) -> None:
    """results.csv, results.md and QUESTION.svg, of what is finished."""
    found = [row for arm in ARMS for seed in seeds if (row := row_of(out, arm, seed)) is not None]
    with (out / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
    (out / "results.md").write_text("\n".join(table(question, found) for question in QUESTIONS))
    done = {(row["arm"], row["seed"]) for row in found}
    for question in QUESTIONS:
        curves = {
            arm: [[s["success"] for s in steps_of(out, arm, n)] for n in seeds if (arm, n) in done]
            for arm in question.arms
        }
        curves = {arm: runs for arm, runs in curves.items() if any(runs)}
        if curves:
            (out / f"{question.name}.svg").write_text(plot(question.title, curves))
