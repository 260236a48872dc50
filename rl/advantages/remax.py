"""ReMax (Li et al. 2023): the reward of the greedy episode of the same task is the baseline."""

from __future__ import annotations

import torch

from gymrl.rl.algorithms import advantage


@advantage("remax")
def remax(rewards_PG: torch.Tensor, counted_PG: torch.Tensor, greedy_P: torch.Tensor) -> torch.Tensor:
    """A = r - r(greedy). `greedy_P` is NaN where the greedy episode is invalid: nothing is known, A = 0.

    [P, G], [P, G], [P] -> [P, G].
    """
    baseline_P1 = greedy_P[:, None]
    return torch.where(baseline_P1.isnan(), torch.zeros_like(rewards_PG), rewards_PG - baseline_P1)
