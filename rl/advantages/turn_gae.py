"""PPO with advantages of whole turns: GAE over turns, whose value is that of their first token."""

from __future__ import annotations

import torch

from gymrl.rl.advantages.gae import gae
from gymrl.rl.advantages.reinforce_pp import whiten
from gymrl.rl.advantages.turns import first_tokens, spread, turn_table
from gymrl.rl.algorithms import advantage
from gymrl.rl.choices import Share


@advantage("turn-gae")
def turn_gae(
    token_rewards_BT: torch.Tensor, values_BT: torch.Tensor, sampled_BT: torch.Tensor, turn_BT: torch.Tensor,
    bootstrap_B: torch.Tensor, counted_B: torch.Tensor, *, gamma: Share = 1.0, lam: Share = 0.95,
    whitened: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """V_k is the value at turn k's first sampled token, its reward the sum of its tokens'; GAE runs over turns, and
    every token of turn k gets A_k. Returns V_k + A_k stand at first tokens only (NaN elsewhere): no other value is
    used. [B, T] -> [B, T] twice."""
    first_BT = first_tokens(sampled_BT, turn_BT)
    values_BK, there_BK = turn_table(values_BT, first_BT, turn_BT)
    rewards_BK, _ = turn_table(token_rewards_BT, sampled_BT, turn_BT)
    found_BK, returns_BK = gae(
        rewards_BK, values_BK, there_BK, bootstrap_B, counted_B, gamma=gamma, lam=lam, whitened=False
    )
    advantages_BT = spread(found_BK, sampled_BT, turn_BT)
    if whitened:
        advantages_BT = whiten(advantages_BT, sampled_BT & counted_B[:, None])
    returns_BT = torch.where(first_BT, spread(returns_BK, sampled_BT, turn_BT), torch.nan)
    return advantages_BT * sampled_BT, returns_BT
