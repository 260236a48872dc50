"""Truncated importance sampling (Yao et al. 2025)."""

from __future__ import annotations

import torch

from gymrl.rl.algorithms import correction
from gymrl.rl.choices import Level, Positive
from gymrl.rl.losses.sequences import sequence_sum


def log_rho(
    old_lp_N: torch.Tensor, mu_lp_N: torch.Tensor, sequence_N: torch.Tensor, level: Level
) -> torch.Tensor:
    """old_lp - mu_lp of every token, or summed over its sequence; detached, clamped to 20. [N]."""
    d_N = (old_lp_N - mu_lp_N).detach()
    return (sequence_sum(d_N, sequence_N) if level == "sequence" else d_N).clamp(-20, 20)


@correction("tis")
def tis(
    old_lp_N: torch.Tensor, mu_lp_N: torch.Tensor, sequence_N: torch.Tensor, *, cap: Positive = 2.0,
    level: Level = "token",
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Weight min(rho, cap); the mask stays. Both [N]."""
    weight_N = log_rho(old_lp_N, mu_lp_N, sequence_N, level).exp().clamp_max(cap)
    return weight_N, torch.ones_like(weight_N, dtype=torch.bool)
