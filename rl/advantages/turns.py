"""Turns among tokens: explicit indices, never inferred from rewards."""

from __future__ import annotations

import torch


def first_tokens(sampled_BT: torch.Tensor, turn_BT: torch.Tensor) -> torch.Tensor:
    """Which sampled tokens are the first of their turn, [B, T] bool. Turn indices grow along an episode."""
    turn_BT = torch.where(sampled_BT, turn_BT, -1)
    before_BT = torch.cat([torch.full_like(turn_BT[:, :1], -1), turn_BT.cummax(1).values[:, :-1]], 1)
    return sampled_BT & (turn_BT > before_BT) if turn_BT.shape[1] else sampled_BT


def last_tokens(sampled_BT: torch.Tensor, turn_BT: torch.Tensor) -> torch.Tensor:
    """Which sampled tokens are the last of their turn, [B, T] bool."""
    most = int(turn_BT.max()) if turn_BT.numel() else 0
    return first_tokens(sampled_BT.flip(1), (most - turn_BT).flip(1)).flip(1)


def turn_table(
    values_BT: torch.Tensor, mask_BT: torch.Tensor, turn_BT: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of the masked values of every turn, [B, K], and whether the turn has any masked token, [B, K] bool."""
    turns = int(turn_BT.max()) + 1 if turn_BT.numel() else 0
    sums_BK = values_BT.new_zeros(len(values_BT), turns)
    many_BK = torch.zeros_like(sums_BK)
    index_BT = turn_BT.clamp_min(0)
    sums_BK.scatter_add_(1, index_BT, torch.where(mask_BT, values_BT, torch.zeros_like(values_BT)))
    many_BK.scatter_add_(1, index_BT, mask_BT.to(values_BT.dtype))
    return sums_BK, many_BK > 0


def spread(values_BK: torch.Tensor, sampled_BT: torch.Tensor, turn_BT: torch.Tensor) -> torch.Tensor:
    """Each turn's value at every sampled token of it, 0 elsewhere, [B, T]."""
    if not turn_BT.numel():
        return values_BK.new_zeros(turn_BT.shape)
    values_BT = values_BK.gather(1, turn_BT.clamp_min(0))
    return torch.where(sampled_BT, values_BT, torch.zeros_like(values_BT))
