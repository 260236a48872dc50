"""The stages of a run, one file each; a stage takes optimiser steps that can be stopped after any of them."""

from __future__ import annotations

from typing import Any, Protocol

from gymrl.agents.records import Episode
from gymrl.rl.recipes import Recipe
from gymrl.rl.workshop import Workshop


class Stage(Protocol):
    """`title` is shown; `total` is the number of steps."""

    title: str
    total: int

    def step(self, number: int) -> tuple[dict[str, Any], list[Episode]]:
        """One step: its metrics, and the episodes played in it."""
        ...

    def facts(self, metrics: dict[str, Any]) -> dict[str, float]:
        """What of the metrics is shown while it works."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold besides weights and optimiser, readable by torch.load(weights_only=True)."""
        ...

    def load_state(self, state: dict[str, Any]) -> None: ...


def open_stage(name: str, workshop: Workshop) -> Stage:
    """The stage of that name."""
    if name == "sft":
        from gymrl.rl.stages.sft import SftStage

        return SftStage(workshop)
    if name == "rl":
        from gymrl.rl.stages.online import OnlineStage

        return OnlineStage(workshop)
    if name == "rft":
        from gymrl.rl.stages.rft import RftStage

        return RftStage(workshop)
    if name == "preference":
        from gymrl.rl.stages.preference import PreferenceStage

        return PreferenceStage(workshop)
    if name == "es":
        from gymrl.rl.stages.es import EsStage

        return EsStage(workshop)
    raise ValueError(f"there is no stage {name!r}: take sft, rl, rft, preference or es")


def steps_in(recipe: Recipe, name: str) -> int:
    """How many steps the stage of that name has in a recipe, 0 if it is none."""
    settings = getattr(recipe, name, None)
    return settings.steps * getattr(settings, "rounds", 1) if settings is not None else 0
