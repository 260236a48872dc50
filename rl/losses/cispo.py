"""CISPO (MiniMax 2025, MiniMax-M1): the importance weight is clipped, every token keeps its gradient."""

from __future__ import annotations

import torch

from gymrl.rl.algorithms import loss
from gymrl.rl.choices import NonNegative


@loss("cispo")
def cispo(
    lp_N: torch.Tensor, old_lp_N: torch.Tensor, advantages_N: torch.Tensor, *, low: NonNegative = 0.2,
    high: NonNegative = 0.28,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """-sg(clip(ratio, 1 - low, 1 + high)) A lp, ratio = exp(clamp(lp - old_lp, -20, 20)); and where it was clipped."""
    ratio_N = (lp_N - old_lp_N).detach().clamp(-20, 20).exp()
    held_N = ratio_N.clamp(1 - low, 1 + high)
    return -held_N * advantages_N * lp_N, held_N != ratio_N
