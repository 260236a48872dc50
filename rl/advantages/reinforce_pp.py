"""REINFORCE++ (Hu 2025): discounted reward-to-go of every token, whitened over the whole batch."""

from __future__ import annotations

import torch

from gymrl.rl.algorithms import advantage
from gymrl.rl.choices import Share


def whiten(values_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """(x - mean) / sqrt(var + 1e-8) with the unbiased variance, both over the masked places of the batch."""
    n = mask_BT.sum()
    mean = (values_BT * mask_BT).sum() / n.clamp_min(1)
    variance = ((values_BT - mean).square() * mask_BT).sum() / (n - 1).clamp_min(1)
    return (values_BT - mean) / (variance + 1e-8).sqrt()


@advantage("reinforce++")
def reinforce_pp(
    token_rewards_BT: torch.Tensor, sampled_BT: torch.Tensor, counted_B: torch.Tensor, *, gamma: Share = 1.0
) -> torch.Tensor:
    """G_t = r_t + gamma G_next, discounted in sampled tokens: those between them decay nothing. Whitened over the
    tokens of the episodes that count. [B, T] -> [B, T], 0 where no token was sampled."""
    togo_BT = torch.zeros_like(token_rewards_BT)
    last_B = token_rewards_BT.new_zeros(len(token_rewards_BT))
    for t in reversed(range(token_rewards_BT.shape[1])):
        here_B = token_rewards_BT[:, t] + gamma * last_B
        last_B = torch.where(sampled_BT[:, t], here_B, last_B)
        togo_BT[:, t] = last_B
    return torch.where(
        sampled_BT, whiten(togo_BT, sampled_BT & counted_B[:, None]), torch.zeros_like(togo_BT)
    )
