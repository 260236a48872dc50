"""Anchored DFT (Zhu et al. 2025, Anchored Supervised Fine-Tuning): SFT that stays near the policy it began with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from gymrl.rl.batches import Batch
from gymrl.rl.learner import Learner, LossOf
from gymrl.rl.reference import Reference


def full_kl(logits_NV: torch.Tensor, ref_logits_NV: torch.Tensor) -> torch.Tensor:
    """KL(ref, pi) = sum_v ref_v (log ref_v - log pi_v) over the whole vocabulary, at every position, [N]. Gradients
    flow through `logits_NV` alone."""
    ref_NV = ref_logits_NV.detach().log_softmax(-1)
    return (ref_NV.exp() * (ref_NV - logits_NV.log_softmax(-1))).sum(-1)


@contextmanager
def anchored(
    learner: Learner, reference: Reference, loss_of: LossOf, coefficient: float, scale: float,
    temperature: float = 1.0,
) -> Iterator[LossOf]:  # fmt: skip
    """Within it, the loss `loss_of` + coefficient * scale * KL(ref, pi) of every action token, for this learner alone.

    `scale` undoes the weight that the step gives to a token, so that the KL is a mean over tokens. The learner's last
    hidden states are taken as they pass: its body runs once. Logits are made and dropped in chunks.
    """
    seen: list[torch.Tensor] = []
    hook = decoder(learner).register_forward_hook(lambda _, __, out: seen.append(out.last_hidden_state[0]))

    def with_anchor(batch: Batch, lp_N: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss_N, reports = loss_of(batch, lp_N)
        kl_N = _chunked(learner, reference, seen.pop()[batch.predict_N], batch, temperature)
        seen.clear()
        return loss_N + coefficient * scale * kl_N, {**reports, "anchor": kl_N.detach().sum()}

    try:
        yield with_anchor
    finally:
        hook.remove()


def decoder(learner: Learner) -> Any:
    """The model without its head."""
    model = learner.accelerator.unwrap_model(learner.model)
    return model.get_decoder() if hasattr(model, "get_decoder") else model.model


def _chunked(
    learner: Learner, reference: Reference, hidden_N: torch.Tensor, batch: Batch, temperature: float
) -> torch.Tensor:
    head, ref_head = (
        own.accelerator.unwrap_model(own.model).get_output_embeddings() for own in (learner, reference.scorer)
    )
    with torch.no_grad(), reference.scorer.accelerator.autocast():
        ref_N = decoder(reference.scorer)(
            input_ids=batch.ids_T[None], position_ids=batch.packed.positions[None], ragged=batch.packed,
            use_cache=False,
        ).last_hidden_state[0][batch.predict_N]  # fmt: skip

    def rows(h: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            ref_logits = ref_head(r).float() / (temperature or 1.0)
        return full_kl(head(h).float() / (temperature or 1.0), ref_logits)

    many = max(1, learner.settings.logits_budget // head.weight.shape[0])
    parts = zip(hidden_N.split(many), ref_N.split(many), strict=True)
    return torch.cat([checkpoint(rows, h, r, use_reentrant=False) for h, r in parts])
