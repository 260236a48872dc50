"""M-KTO (Ethayarajh et al. 2024): single episodes, desirable or not, against how far the policy has moved at all."""

from __future__ import annotations

import torch

from gymrl.rl.algorithms import preference
from gymrl.rl.choices import NonNegative, Positive


@preference("kto")
def kto(
    lp_S: torch.Tensor, ref_lp_S: torch.Tensor, desirable_S: torch.Tensor, mismatched_S: torch.Tensor, *,
    beta: Positive = 0.1, desirable: NonNegative = 1.0, undesirable: NonNegative = 1.0,
) -> torch.Tensor:  # fmt: skip
    """u = lp - ref_lp; z = max(mean of `mismatched_S`, 0), detached, where `mismatched_S` is u of each answer put to
    another task. Desirable: 1 - sigmoid(beta (u - z)); else 1 - sigmoid(beta (z - u)); times its weight. [S] -> [S]."""
    u_S = lp_S - ref_lp_S
    z = mismatched_S.detach().mean().clamp_min(0) if len(mismatched_S) else u_S.new_zeros(())
    good_S = desirable * (1 - torch.sigmoid(beta * (u_S - z)))
    return torch.where(desirable_S, good_S, undesirable * (1 - torch.sigmoid(beta * (z - u_S))))
