"""What came of the learning study: a row for every finished run, the arms side by side, plots."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import study_plots as plots
from study_plan import ARMS, QUESTIONS, Question

T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Two-sided 95 % quantiles of Student's t, by the number of values."""

FIELDS = (
    "arm", "seed", "start", "success", "low", "high", "tasks", "training", "void", "void_last",
    "grad_norm", "grad_norm_max", "void_share_of_grad", "skipped", "invalid", "seconds",
)  # fmt: skip


def row_of(out: Path, arm: str, seed: int) -> dict[str, Any] | None:
    """A finished run's figures, None of one that is not: held-out success before (`start`) and after with its Wilson
    interval, success in the last third of its RL steps (`training`), share of void turns over all of them
    (`void`) and in that third (`void_last`), gradient norms before clipping, and the mean over steps of (norm of the
    void turns' part of the gradient) / (norm of the gradient), where it was looked at."""
    folder = out / arm / f"seed-{seed}"
    try:
        summary = json.loads((folder / "summary.json").read_text())
    except (OSError, ValueError):
        return None
    if summary["status"] != "finished":
        return None
    first, last = summary["stages"][0], summary["stages"][-1]
    steps = steps_of(out, arm, seed)
    late = steps[-max(1, len(steps) // 3) :]
    norms = [s["grad_norm"] for s in steps if "grad_norm" in s]
    causes = [
        s["grad_norm/void"] / s["grad_norm/all"]
        for s in steps
        if s.get("grad_norm/all", 0) > 0 and "grad_norm/void" in s
    ]
    return {
        "arm": arm, "seed": seed, "start": first["success"], "success": last["success"], "low": last["low"],
        "high": last["high"], "tasks": last["episodes"],
        "training": mean([s["success"] for s in late]), "void": mean([s["void_turns"] for s in steps]),
        "void_last": mean([s["void_turns"] for s in late]), "grad_norm": mean(norms),
        "grad_norm_max": max(norms, default=math.nan), "void_share_of_grad": mean(causes),
        "skipped": sum(summary.get("skipped", {}).values()), "invalid": sum(summary.get("invalid", {}).values()),
        "seconds": round(summary["seconds"], 1),
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
    """The mean of seeds and half its 95 % interval (Student's t); NaN for half where there is one seed, or a value is
    NaN (an arm without RL has no success in training)."""
    if len(values) < 2 or any(map(math.isnan, values)):
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
        "void turns, in that third | gradient norm, largest | of it void |",
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
            f"{shown(mean([r['void'] for r in own]))}, {shown(mean([r['void_last'] for r in own]))}",
            f"{shown(mean([r['grad_norm'] for r in own]))}, {shown(max(r['grad_norm_max'] for r in own))}",
            shown(mean([r["void_share_of_grad"] for r in own])),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def seeds_of(out: Path, arm: str) -> list[int]:
    """The seeds that an arm was begun with."""
    return sorted(int(folder.name.removeprefix("seed-")) for folder in (out / arm).glob("seed-*"))


def write_results(out: Path) -> None:
    """results.csv, results.md and QUESTION.svg, of what is finished."""
    found = [
        row for arm in ARMS for seed in seeds_of(out, arm) if (row := row_of(out, arm, seed)) is not None
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    replace_text(out / "results.csv", text.getvalue())
    replace_text(out / "results.md", "\n".join(table(question, found) for question in QUESTIONS))
    for question in QUESTIONS:
        if any(row["arm"] in question.arms for row in found):
            replace_text(out / f"{question.name}.svg", figure(out, question, found))


def figure(out: Path, question: Question, rows: Sequence[dict[str, Any]]) -> str:
    """Training success by step and held-out success; for void turns also their share and the gradient's norm."""
    done = {arm: [r for r in rows if r["arm"] == arm] for arm in question.arms}
    done = {arm: own for arm, own in done.items() if own}

    def by_step(name: str) -> dict[str, list[list[float]]]:
        return {
            arm: [[s[name] for s in steps_of(out, arm, r["seed"]) if name in s] for r in own]
            for arm, own in done.items()
        }

    panels = [
        plots.curves("success in training", by_step("success")),
        plots.dots(
            "held-out success",
            {arm: [r["success"] for r in own] for arm, own in done.items()},
            {arm: mean([r["start"] for r in own]) for arm, own in done.items()},
        ),
    ]
    if question.name == "void":
        panels.append(plots.curves("void turns, share of all", by_step("void_turns")))
        panels.append(plots.curves("gradient norm before clipping", by_step("grad_norm"), span=1))
    return plots.figure(question.title, panels)


def replace_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: another process may write the same."""
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_text(text)
    beside.replace(path)
