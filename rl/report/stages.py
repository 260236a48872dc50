"""The stages of a run: what they are called, and their order."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gymrl.rl.report.files import Summary, read_text


@dataclass(frozen=True)
class StageName:
    """`title` heads a stage's curves, `brief` its episodes; `after` goes into a sentence."""

    title: str
    brief: str
    after: str


NAMES = {
    "base": StageName("Before training", "Before training", "before training"),
    "sft": StageName("Supervised fine-tuning", "SFT", "after SFT"),
    "rft": StageName("Rejection sampling", "Rejection sampling", "after rejection sampling"),
    "preference": StageName("Preference learning", "Preference learning", "after preference learning"),
    "rl": StageName("Reinforcement learning", "RL", "after RL"),
    "es": StageName("Evolution strategies", "Evolution strategies", "after evolution strategies"),
}


def named(stage: str) -> StageName:
    """The names of a stage; one that is unknown is called as it is."""
    return NAMES.get(stage) or StageName(stage or "Metrics", stage, f"after {stage}")


def heading(stage: str) -> str:
    """What heads the evaluation after a stage."""
    after = named(stage).after
    return after[:1].upper() + after[1:]


def run_order(run: Path, summary: Summary, logged: Iterable[str]) -> list[str]:
    """Every stage of a run in the order in which they are trained, the base first: as the recipe has it, where that
    cannot be read as they were evaluated or logged; then those that a run can have."""
    try:
        found = tomllib.loads(read_text(run / "recipe.toml", 2**20)).get("stages")
    except (ValueError, RecursionError):
        found = None
    recipe = [str(stage) for stage in found] if isinstance(found, list) else []
    return list(dict.fromkeys(["base", *recipe, *(stage.name for stage in summary.stages), *logged, *NAMES]))
