"""PPO's generalised advantage estimation (Schulman et al. 2015) over tokens, passing over observations."""

from __future__ import annotations

import torch

from gymrl.rl.advantages.reinforce_pp import whiten
from gymrl.rl.algorithms import advantage
from gymrl.rl.choices import Share


@advantage("gae")
def gae(
    token_rewards_BT: torch.Tensor, values_BT: torch.Tensor, sampled_BT: torch.Tensor, bootstrap_B: torch.Tensor,
    counted_B: torch.Tensor, *, gamma: Share = 1.0, lam: Share = 0.95, whitened: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Advantages and returns of sampled tokens, [B, T]; tokens not sampled neither discount nor carry a value.

    `bootstrap_B` is the value after a truncated episode, 0 after a terminated one. Returns are A + V before
    whitening, which is over the tokens of the episodes that count.
    """
    next_v_B, last_B = bootstrap_B.clone(), torch.zeros_like(bootstrap_B)
    advantages_BT = torch.zeros_like(values_BT)
    for t in reversed(range(values_BT.shape[1])):
        delta_B = token_rewards_BT[:, t] + gamma * next_v_B - values_BT[:, t]
        here_B = delta_B + gamma * lam * last_B
        next_v_B = torch.where(sampled_BT[:, t], values_BT[:, t], next_v_B)
        last_B = torch.where(sampled_BT[:, t], here_B, last_B)
        advantages_BT[:, t] = last_B
    returns_BT = advantages_BT + values_BT
    if whitened:
        advantages_BT = whiten(advantages_BT, sampled_BT & counted_B[:, None])
    return advantages_BT * sampled_BT, torch.where(sampled_BT, returns_BT, torch.nan)
