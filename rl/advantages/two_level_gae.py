"""PPO on two levels: the return of a turn, from GAE over turns, is the terminal reward of GAE inside the turn."""

from __future__ import annotations

import torch

from gymrl.rl.advantages.gae import gae
from gymrl.rl.advantages.reinforce_pp import whiten
from gymrl.rl.advantages.turn_gae import turn_gae
from gymrl.rl.advantages.turns import first_tokens, last_tokens
from gymrl.rl.algorithms import advantage
from gymrl.rl.choices import Share


@advantage("two-level-gae")
def two_level_gae(
    token_rewards_BT: torch.Tensor, values_BT: torch.Tensor, sampled_BT: torch.Tensor, turn_BT: torch.Tensor,
    bootstrap_B: torch.Tensor, counted_B: torch.Tensor, *, gamma: Share = 1.0, lam: Share = 0.95,
    gamma_turn: Share = 1.0, lam_turn: Share = 0.95, whitened: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """(gamma_turn, lam_turn) over turns, (gamma, lam) over the tokens of each turn, which ends there: its last token
    is paid V_k + A_k and bootstraps nothing. [B, T] -> [B, T] twice."""
    _, returns_BT = turn_gae(
        token_rewards_BT, values_BT, sampled_BT, turn_BT, bootstrap_B, counted_B, gamma=gamma_turn, lam=lam_turn,
        whitened=False,
    )  # fmt: skip
    firsts_BT, lasts_BT = first_tokens(sampled_BT, turn_BT), last_tokens(sampled_BT, turn_BT)
    paid_BT = torch.zeros_like(values_BT)
    paid_BT[lasts_BT] = returns_BT[firsts_BT]  # both in the order of episodes and turns
    found_BT, targets_BT = torch.zeros_like(values_BT), torch.full_like(values_BT, torch.nan)
    for turn in turn_BT[sampled_BT].unique().tolist():
        inside_BT = sampled_BT & (turn_BT == turn)
        ended = (paid_BT, values_BT, inside_BT, torch.zeros_like(bootstrap_B), counted_B)
        a_BT, r_BT = gae(*ended, gamma=gamma, lam=lam, whitened=False)
        found_BT = torch.where(inside_BT, a_BT, found_BT)
        targets_BT = torch.where(inside_BT, r_BT, targets_BT)
    if whitened:
        found_BT = whiten(found_BT, sampled_BT & counted_B[:, None])
    return found_BT * sampled_BT, targets_BT
