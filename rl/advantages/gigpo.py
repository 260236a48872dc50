"""GiGPO (Feng et al. 2025): episodes compared within their group, and steps with those seen in the same state."""

from __future__ import annotations

import torch

from gymrl.rl.advantages.grpo import grpo
from gymrl.rl.algorithms import advantage
from gymrl.rl.choices import NonNegative, Share


@advantage("gigpo")
def gigpo(
    turn_rewards_PGK: torch.Tensor, turns_PGK: torch.Tensor, states_PGK: torch.Tensor, counted_PG: torch.Tensor, *,
    weight: NonNegative = 1.0, gamma: Share = 0.95,
) -> torch.Tensor:  # fmt: skip
    """A = A_episode + weight A_step, both as GRPO's. A_episode is over the group's episodes, however long they are.
    A_step compares the returns sum_j gamma^j r_(k+j) of all turns of one task whose observation is identical (equal
    `states_PGK`, int64); a step group of one gives 0. [P, G, K] -> [P, G, K], 0 where there is no turn.
    """
    p, _, k = turn_rewards_PGK.shape
    rewards_PGK = turn_rewards_PGK * turns_PGK
    episode_PG1 = grpo(rewards_PGK.sum(-1), counted_PG)[..., None]
    returns_PGK, last_PG = torch.zeros_like(rewards_PGK), torch.zeros_like(rewards_PGK[..., :1]).sum(-1)
    for turn in reversed(range(k)):
        last_PG = rewards_PGK[..., turn] + gamma * last_PG
        returns_PGK[..., turn] = last_PG
    step_PGK = torch.zeros_like(rewards_PGK)
    for task in range(p):
        for state in states_PGK[task][turns_PGK[task]].unique().tolist():
            members_GK = (states_PGK[task] == state) & turns_PGK[task]
            counted_GK = members_GK & counted_PG[task][:, None]
            found_1M = grpo(returns_PGK[task][members_GK][None], counted_GK[members_GK][None])
            step_PGK[task][members_GK] = found_1M[0]
    return torch.where(turns_PGK, episode_PG1 + weight * step_PGK, torch.zeros_like(step_PGK))
