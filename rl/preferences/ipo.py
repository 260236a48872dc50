"""IPO (Azar et al. 2023): the margin is regressed to 1 / (2 beta), so that it does not grow without end."""

from __future__ import annotations

import torch

from gymrl.rl.algorithms import preference
from gymrl.rl.choices import Positive


@preference("ipo")
def ipo(
    win_Q: torch.Tensor, lose_Q: torch.Tensor, ref_win_Q: torch.Tensor, ref_lose_Q: torch.Tensor, *,
    beta: Positive = 0.1,
) -> torch.Tensor:  # fmt: skip
    """([(win - ref_win) - (lose - ref_lose)] - 1 / (2 beta))^2. [Q] -> [Q]."""
    return ((win_Q - ref_win_Q) - (lose_Q - ref_lose_Q) - 1 / (2 * beta)).square()
