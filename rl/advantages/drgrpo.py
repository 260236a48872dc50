"""Dr. GRPO (Liu et al. 2025, Understanding R1-Zero-Like Training): rewards centred on their group, not scaled."""

from __future__ import annotations

import torch

from gymrl.rl.algorithms import advantage


def group_means(rewards_PG: torch.Tensor, counted_PG: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How many episodes of each group count, and their mean reward (0 where there are none), both [P, 1].

    The mean is taken of what lies above the least reward: that of equal rewards is then exactly theirs.
    """
    n_P1 = counted_PG.sum(1, keepdim=True)
    if not rewards_PG.shape[1]:
        return n_P1, torch.zeros_like(n_P1, dtype=rewards_PG.dtype)
    least_P1 = torch.where(counted_PG, rewards_PG, torch.inf).amin(1, keepdim=True)
    least_P1 = torch.where(n_P1 > 0, least_P1, torch.zeros_like(least_P1))
    above_PG = torch.where(counted_PG, rewards_PG - least_P1, torch.zeros_like(rewards_PG))
    return n_P1, least_P1 + above_PG.sum(1, keepdim=True) / n_P1.clamp_min(1)


@advantage("drgrpo")
def drgrpo(rewards_PG: torch.Tensor, counted_PG: torch.Tensor) -> torch.Tensor:
    """A = r - mean_g over the episodes of the group that count; 0 in a group of one. [P, G] -> [P, G]."""
    n_P1, mean_P1 = group_means(rewards_PG, counted_PG)
    return torch.where(n_P1 > 1, rewards_PG - mean_P1, torch.zeros_like(rewards_PG))
