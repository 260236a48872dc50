"""Estimates of KL(policy, reference) from the sampled token (Schulman 2020, Approximating KL Divergence)."""

from __future__ import annotations

from typing import Literal

import torch

Estimator = Literal["k1", "k2", "k3"]


def kl(lp_N: torch.Tensor, ref_lp_N: torch.Tensor, estimator: Estimator) -> torch.Tensor:
    """Of every token, with d = lp - ref_lp: k1 = d, k2 = d^2 / 2, k3 = exp(-d) + d - 1 (d clamped to 20, the result to
    10). Gradients flow through `lp_N`. [N] -> [N].

    As a loss, only k2 has the gradient of the KL in expectation; k1's is zero. k1 belongs in the reward.
    """
    d_N = lp_N - ref_lp_N.detach()
    if estimator == "k1":
        return d_N
    if estimator == "k2":
        return d_N.square() / 2
    d_N = d_N.clamp(-20, 20)
    return ((-d_N).exp() + d_N - 1).clamp(-10, 10)
