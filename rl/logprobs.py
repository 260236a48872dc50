"""Log-probabilities of packed tokens, without ever holding all logits."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from gymrl.rl.batches import Batch


class LogProbs(torch.nn.Module):
    """A language model as a function from a packed batch to its action tokens' log-probabilities."""

    def __init__(
        self, model: Any, logits_budget: int, autocast: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        """`logits_budget` logits (numbers) are held at once; more are computed in chunks, and again in the backward
        pass. All but the head runs inside `autocast`."""
        super().__init__()
        self.model, self.logits_budget, self.autocast = model, logits_budget, autocast

    def forward(
        self, batch: Batch, temperature: float, entropy: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Log-probabilities [N] (float32, nats) at the sampling temperature, and their entropy [N]."""
        model = self.model
        base = model.get_decoder() if hasattr(model, "get_decoder") else model.model
        with self.autocast():
            hidden_T = base(
                input_ids=batch.ids_T[None], position_ids=batch.packed.positions[None], ragged=batch.packed,
                use_cache=False,
            ).last_hidden_state[0]  # fmt: skip
        head = model.get_output_embeddings()
        hidden_N = hidden_T[batch.predict_N]
        rows = max(1, self.logits_budget // head.weight.shape[0])
        if len(hidden_N) <= rows:
            lp_N, entropy_N = head_logprobs(hidden_N, head, batch.target_N, temperature, entropy)
            return lp_N.clone(), entropy_N  # a view would be no output that FSDP2 can watch
        parts = [
            checkpoint(head_logprobs, h, head, t, temperature, entropy, use_reentrant=False)
            for h, t in zip(hidden_N.split(rows), batch.target_N.split(rows), strict=True)
        ]
        lp_N = torch.cat([part[0] for part in parts])
        return lp_N, torch.cat([part[1] for part in parts]) if entropy else None


def head_logprobs(
    hidden_N: torch.Tensor, head: torch.nn.Module, target_N: torch.Tensor, temperature: float, entropy: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Of every row [N, D] the log-probability of its target, and the entropy of its distribution."""
    logits_NV = head(hidden_N).float()
    if temperature not in (0.0, 1.0):
        logits_NV = logits_NV / temperature
    all_lp_NV = logits_NV.log_softmax(-1)
    lp_N = all_lp_NV.gather(-1, target_N[:, None])[:, 0]
    if not entropy:
        return lp_N, None
    with torch.no_grad():
        entropy_N = -(all_lp_NV.exp() * all_lp_NV).sum(-1)
    return lp_N, entropy_N
