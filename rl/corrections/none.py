"""No correction."""

from __future__ import annotations

import torch

from gymrl.rl.algorithms import correction


@correction("none")
def none(old_lp_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight of 1 for every token, and none masked; both [N]."""
    one_N = torch.ones_like(old_lp_N.detach())
    return one_N, one_N > 0
