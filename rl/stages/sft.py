"""Supervised fine-tuning on the oracle's demonstrations."""

from __future__ import annotations

from typing import Any

from gymrl.agents.records import Episode
from gymrl.rl.reference import Reference
from gymrl.rl.trainers.sft import sft_step
from gymrl.rl.workshop import Workshop


class SftStage:
    title = "SFT"

    def __init__(self, workshop: Workshop) -> None:
        self.workshop = workshop
        self.total = workshop.recipe.sft.steps
        tokens = workshop.recipe.sft.tokens
        self.reference: Reference | None = None
        if tokens is not None and tokens.anchor:
            self.reference = Reference(workshop.started, workshop.learner_settings(), workshop.accelerator)

    def step(self, number: int) -> tuple[dict[str, Any], list[Episode]]:
        shop = self.workshop
        s = shop.recipe.sft
        metrics = sft_step(
            shop.learner, shop.demonstrations, s, number, shop.recipe.seed, reference=self.reference
        )
        return metrics, []

    def facts(self, metrics: dict[str, Any]) -> dict[str, float]:
        return {"loss": metrics["loss"]}

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None: ...
