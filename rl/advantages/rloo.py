"""RLOO (Ahmadian et al. 2024, Back to Basics): each episode against the mean of the others of its group."""

from __future__ import annotations

import torch

from gymrl.rl.advantages.drgrpo import drgrpo
from gymrl.rl.algorithms import advantage


@advantage("rloo")
def rloo(rewards_PG: torch.Tensor, counted_PG: torch.Tensor) -> torch.Tensor:
    """A = n / (n - 1) (r - mean_g), which is r minus the mean of the n - 1 others; 0 in a group of one.

    n and the mean are of the episodes that count. [P, G] -> [P, G].
    """
    n_P1 = counted_PG.sum(1, keepdim=True)
    return drgrpo(rewards_PG, counted_PG) * n_P1 / (n_P1 - 1).clamp_min(1)
