"""GSPO (Zheng et al. 2025): one ratio for a whole sequence, the geometric mean of its tokens'."""

from __future__ import annotations

import torch

from gymrl.rl.algorithms import loss
from gymrl.rl.choices import NonNegative
from gymrl.rl.losses.sequences import sequence_mean


@loss("gspo")
def gspo(
    lp_N: torch.Tensor, old_lp_N: torch.Tensor, advantages_N: torch.Tensor, sequence_N: torch.Tensor, *,
    low: NonNegative = 3e-4, high: NonNegative = 4e-4, dual: NonNegative = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """s = exp(mean over the sequence's action tokens of (lp - old_lp)); loss = max(-A s, -A clip(s, 1 - low,
    1 + high)) at every token, with the gradient through all of them, and where A < 0 at most -A dual (0: no
    such bound); and where it was clipped."""
    s_N = sequence_mean(lp_N - old_lp_N.detach(), sequence_N).clamp(-20, 20).exp()
    free_N = -advantages_N * s_N
    held_N = -advantages_N * s_N.clamp(1 - low, 1 + high)
    loss_N, clipped_N = torch.maximum(free_N, held_N), held_N > free_N
    if dual:
        over_N = (advantages_N < 0) & (loss_N > -advantages_N * dual)
        loss_N, clipped_N = torch.where(over_N, -advantages_N * dual, loss_N), clipped_N | over_N
    return loss_N, clipped_N
