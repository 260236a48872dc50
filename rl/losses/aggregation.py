"""How the losses of single tokens become one number, over the whole optimiser step."""

from __future__ import annotations

import torch

from gymrl.rl.choices import Aggregation


def token_weights(counts_S: torch.Tensor, how: Aggregation, constant: float = 1.0) -> torch.Tensor:
    """The weight of one token of each sequence, [S] float64; the step's loss is the weighted sum over all tokens.

    `counts_S` are the loss-carrying tokens of every sequence of the step, of all micro-batches and ranks, so the
    result does not depend on how the step is cut. Sequences without any leave the sequence means.
    """
    counts = counts_S.double()
    live = (counts > 0).double()
    sequences, tokens = live.sum().clamp_min(1), counts.sum().clamp_min(1)
    if how == "token-mean":
        return live / tokens
    if how == "seq-mean-token-mean":
        return live / counts.clamp_min(1) / sequences
    if how == "seq-mean-token-sum":
        return live / sequences
    if how == "constant":
        return live / constant
    raise ValueError(f"unknown aggregation {how!r}")
