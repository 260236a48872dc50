"""The loss of a policy update, put together from its parts: policy loss x correction + KL, and the demonstrations'."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gymrl.rl.algorithms import find
from gymrl.rl.batches import Batch
from gymrl.rl.losses.kl import kl
from gymrl.rl.recipes.models import RlSection

SAMPLED = "sampled"
"""The report of how many of the tokens a policy sampled: all but the demonstrated ones."""

LossOf = Callable[[Batch, torch.Tensor], tuple[torch.Tensor, dict[str, torch.Tensor]]]


class Objective:
    """(batch, lp_N) -> the loss of every action token [N] and sums over tokens to be reported.

    It can be sent to another process, which then finds the same functions by their names.
    """

    def __init__(self, settings: RlSection) -> None:
        self.settings = settings
        policy_loss = find("loss", settings.loss.name)
        self.policy_loss = policy_loss.bind(settings.loss.settings)
        self.refers = "ref_lp_N" in policy_loss.inputs
        corrector = find("correction", settings.correction.name)
        self.correct = corrector.bind(settings.correction.settings)
        self.cap = corrector.check(settings.correction.settings).get("cap")
        self.penalty = settings.kl if settings.kl is not None and settings.kl.place == "loss" else None

    def __reduce__(self) -> tuple[type[Objective], tuple[RlSection]]:
        return Objective, (self.settings,)

    def __call__(self, batch: Batch, lp_N: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        old_N = lp_N.detach() if batch.old_N is None else batch.old_N
        tensors: dict[str, Any] = {
            "lp_N": lp_N, "old_lp_N": old_N, "advantages_N": batch.advantage_N, "mu_lp_N": batch.mu_N,
            "sequence_N": batch.sequence_N, "ref_lp_N": batch.ref_N,
        }  # fmt: skip
        loss_N, clipped_N = self.policy_loss(tensors)
        rho_N, _ = self.correct(tensors)
        gap_N = (old_N - batch.mu_N).abs()
        total_N = loss_N * rho_N
        sampled_N = ~batch.guided_N
        if not bool(sampled_N.all()):
            total_N = torch.where(sampled_N, total_N, -batch.advantage_N * lp_N)
            clipped_N, gap_N = clipped_N & sampled_N, torch.where(sampled_N, gap_N, torch.zeros_like(gap_N))
        cut_N = (rho_N >= self.cap) if self.cap is not None else (rho_N == 0)
        reports = {
            SAMPLED: sampled_N.sum(),
            "clip_share": clipped_N.sum(),
            "mismatch_mean": gap_N.sum(),
            "mismatch_max": gap_N.max(),
            "importance_truncated": (cut_N & sampled_N).sum(),
        }
        if batch.old_N is not None:
            reports["approx_kl"] = kl(lp_N.detach(), batch.old_N, "k3")[sampled_N].sum()
        if batch.ref_N is not None:
            reports["kl"] = kl(lp_N.detach(), batch.ref_N, "k3")[sampled_N].sum()
            if self.penalty is not None:
                cost_N = self.penalty.coefficient * kl(lp_N, batch.ref_N, self.penalty.estimator)
                total_N = total_N + torch.where(sampled_N, cost_N, torch.zeros_like(cost_N))
        return total_N, reports


def loss_of_settings(settings: RlSection) -> Objective:
    """The loss that the settings ask for."""
    return Objective(settings)
