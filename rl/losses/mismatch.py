"""Correcting for the difference between the engine that sampled and the learner that trains."""

from __future__ import annotations

import torch


def truncated_importance(old_lp_N: torch.Tensor, mu_lp_N: torch.Tensor, cap: float = 2.0) -> torch.Tensor:
    """rho = min(exp(old_lp - mu_lp), cap) of every token, detached (TIS, Yao et al. 2025)."""
    return (old_lp_N - mu_lp_N).detach().clamp(-20, 20).exp().clamp_max(cap)
