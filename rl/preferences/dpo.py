"""M-DPO (Rafailov et al. 2023; multi-turn: Xiong et al. 2024, Building Math Agents with Multi-Turn Iterative
Preference Learning)."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

from gymrl.rl.algorithms import preference
from gymrl.rl.choices import NonNegative, Positive


@preference("dpo")
def dpo(
    win_Q: torch.Tensor, lose_Q: torch.Tensor, ref_win_Q: torch.Tensor, ref_lose_Q: torch.Tensor,
    win_length_Q: torch.Tensor, *, beta: Positive = 0.1, nll: NonNegative = 0.0,
) -> torch.Tensor:  # fmt: skip
    """-log sigmoid(beta [(win - ref_win) - (lose - ref_lose)]) + nll * (-win / its length). [Q] -> [Q]."""
    margin_Q = (win_Q - ref_win_Q) - (lose_Q - ref_lose_Q)
    return -logsigmoid(beta * margin_Q) - nll * win_Q / win_length_Q
