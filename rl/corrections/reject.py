"""Rejection of whole sequences that the engine sampled from too different a distribution."""

from __future__ import annotations

import torch

from gymrl.rl.algorithms import correction
from gymrl.rl.choices import NonNegative
from gymrl.rl.losses.sequences import sequence_mean


@correction("reject", masks=True)
def reject(
    old_lp_N: torch.Tensor, mu_lp_N: torch.Tensor, sequence_N: torch.Tensor, *, low: NonNegative = 0.5,
    high: NonNegative = 2.0,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Sequences whose rho, as the geometric mean of their tokens' (so that long ones are not rejected for being long),
    lies outside [low, high] leave the mask, and with it every mean; the rest have weight 1. Both [N]."""
    rho_N = sequence_mean((old_lp_N - mu_lp_N).detach(), sequence_N).clamp(-20, 20).exp()
    return torch.ones_like(rho_N), (rho_N >= low) & (rho_N <= high)
