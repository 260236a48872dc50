"""REINFORCE (Williams 1992): no ratio, so it is right for one update on fresh samples only."""

from __future__ import annotations

import torch

from gymrl.rl.algorithms import loss


@loss("reinforce")
def reinforce(lp_N: torch.Tensor, advantages_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """-A lp of every action token; nothing is ever clipped. Both [N]."""
    return -advantages_N * lp_N, torch.zeros_like(lp_N, dtype=torch.bool)
