"""GRPO (Shao et al. 2024, DeepSeekMath, section 4.1.2): rewards normalised within their group."""

from __future__ import annotations

import torch

from gymrl.rl.advantages.drgrpo import group_means
from gymrl.rl.algorithms import advantage


@advantage("grpo")
def grpo(rewards_PG: torch.Tensor, counted_PG: torch.Tensor) -> torch.Tensor:
    """A = (r - mean_g) / (std_g + 1e-6) with the unbiased std, over the episodes of the group that count.

    A group of one, or of equal rewards, gives 0: it says nothing about relative quality. Episodes that do not
    count are compared with those that do. Shapes [P, G] -> [P, G], in the rewards' dtype.
    """
    n_P1, mean_P1 = group_means(rewards_PG, counted_PG)
    centred_PG = rewards_PG - mean_P1
    variance_P1 = (centred_PG.square() * counted_PG).sum(1, keepdim=True) / (n_P1 - 1).clamp_min(1)
    std_P1 = variance_P1.sqrt()
    spread_P1 = (n_P1 > 1) & (std_P1 > 0)
    return torch.where(spread_P1, centred_PG / (std_P1 + 1e-6), torch.zeros_like(rewards_PG))
