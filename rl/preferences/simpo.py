"""SimPO (Meng et al. 2024): length-normalised log-probabilities, no reference."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

from gymrl.rl.algorithms import preference
from gymrl.rl.choices import NonNegative, Positive


@preference("simpo")
def simpo(
    win_Q: torch.Tensor, lose_Q: torch.Tensor, win_length_Q: torch.Tensor, lose_length_Q: torch.Tensor, *,
    beta: Positive = 2.0, margin: NonNegative = 1.0,
) -> torch.Tensor:  # fmt: skip
    """-log sigmoid(beta win / |win| - beta lose / |lose| - margin), lengths in sampled tokens. [Q] -> [Q]."""
    return -logsigmoid(beta * (win_Q / win_length_Q - lose_Q / lose_length_Q) - margin)
