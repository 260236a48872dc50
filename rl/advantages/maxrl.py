"""MaxRL (maximum-likelihood RL): rewards relative to their group's mean, so that rare successes weigh more."""

from __future__ import annotations

import torch

from gymrl.rl.advantages.drgrpo import group_means
from gymrl.rl.algorithms import advantage


@advantage("maxrl")
def maxrl(rewards_PG: torch.Tensor, counted_PG: torch.Tensor) -> torch.Tensor:
    """A = (r - mean_g) / mean_g over the episodes that count; 0 where mean_g <= 0 and in a group of one.

    [P, G] -> [P, G].
    """
    n_P1, mean_P1 = group_means(rewards_PG, counted_PG)
    useful_P1 = (n_P1 > 1) & (mean_P1 > 0)
    safe_P1 = torch.where(useful_P1, mean_P1, torch.ones_like(mean_P1))
    return torch.where(useful_P1, (rewards_PG - mean_P1) / safe_P1, torch.zeros_like(rewards_PG))
