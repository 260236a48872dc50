"""The clipped policy loss (Schulman et al. 2017) with clip-higher (DAPO, Yu et al. 2025) and dual clip (Ye et al.
2020)."""

from __future__ import annotations

import torch

from gymrl.rl.algorithms import loss
from gymrl.rl.choices import NonNegative


@loss("clip")
def clipped_loss(
    lp_N: torch.Tensor, old_lp_N: torch.Tensor, advantages_N: torch.Tensor, *, low: NonNegative = 0.2,
    high: NonNegative = 0.28, dual: NonNegative = 3.0,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Loss of every action token and whether it was clipped, both [N].

    ratio = exp(clamp(lp - old_lp, -20, 20)); loss = max(-A ratio, -A clip(ratio, 1 - low, 1 + high)), and where
    A < 0 at most -A * dual (0: no such bound). Gradients flow through `lp_N` alone.
    """
    ratio_N = (lp_N - old_lp_N.detach()).clamp(-20, 20).exp()
    free_N = -advantages_N * ratio_N
    held_N = -advantages_N * ratio_N.clamp(1 - low, 1 + high)
    loss_N = torch.maximum(free_N, held_N)
    clipped_N = held_N > free_N
    if dual:
        ceiling_N = -advantages_N * dual
        over_N = (advantages_N < 0) & (loss_N > ceiling_N)
        loss_N = torch.where(over_N, ceiling_N, loss_N)
        clipped_N = clipped_N | over_N
    return loss_N, clipped_N
