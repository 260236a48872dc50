"""The reference policy of the KL: frozen, or a moving average of the policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from gymrl.rl.batches import TokenSequence
from gymrl.rl.crew import open_learner
from gymrl.rl.learner import Learner, LearnerSettings


class Reference:
    """Scores sequences under a policy that is not trained. With a `decay` it follows the policy: after each step
    theta_ref = decay * theta_ref + (1 - decay) * theta."""

    def __init__(
        self, model: str | Path | PreTrainedModel, settings: LearnerSettings, accelerator: Accelerator,
        decay: float | None = None,
    ) -> None:  # fmt: skip
        settings = replace(settings, adapter=None)
        # One that moves is the first process's alone: it moves outside of what the others are told.
        self.scorer = (
            open_learner(model, settings, accelerator)
            if decay is None
            else Learner(model, settings, accelerator, alone=True)
        )
        self.decay = decay
        for parameter in self.scorer.model.parameters():
            parameter.requires_grad_(False)

    def score(self, sequences: Sequence[TokenSequence], temperature: float = 1.0) -> list[torch.Tensor]:
        """Log-probabilities of each sequence's action tokens, [n_i] float32 on the CPU."""
        return self.scorer.score(sequences, temperature)

    @torch.no_grad()
    def follow(self, learner: Learner) -> None:
        """Move towards the policy, if it is a moving average."""
        if self.decay is None:
            return
        theirs = dict(learner.weights())
        for name, mine in self.scorer.model.named_parameters():
            mine.lerp_(theirs[name].detach(), 1 - self.decay)

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to hold: the weights, if they move."""
        return {} if self.decay is None else {"reference": self.scorer.model.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        if self.decay is not None:
            self.scorer.model.load_state_dict(state["reference"])


class WithoutAdapter(Reference):
    """What the policy was before its adapter: the same model, and no memory for another one."""

    def __init__(self, learner: Learner) -> None:
        self.scorer, self.decay = learner, None

    def score(self, sequences: Sequence[TokenSequence], temperature: float = 1.0) -> list[torch.Tensor]:
        return self.scorer.score(sequences, temperature, adapter=False)
