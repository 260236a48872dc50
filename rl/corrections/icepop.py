"""IcePop (Ling Team 2025): tokens whose two probabilities lie far apart get the weight 0."""

from __future__ import annotations

import torch

from gymrl.rl.algorithms import correction
from gymrl.rl.choices import Level, NonNegative
from gymrl.rl.corrections.tis import log_rho


@correction("icepop")
def icepop(
    old_lp_N: torch.Tensor, mu_lp_N: torch.Tensor, sequence_N: torch.Tensor, *, low: NonNegative = 0.5,
    high: NonNegative = 5.0, level: Level = "token",
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Weight rho where low <= rho <= high, else 0; the mask stays, so the step's mean is over as many tokens as
    before. Both [N]."""
    rho_N = log_rho(old_lp_N, mu_lp_N, sequence_N, level).exp()
    inside_N = (rho_N >= low) & (rho_N <= high)
    return torch.where(inside_N, rho_N, torch.zeros_like(rho_N)), torch.ones_like(inside_N)
