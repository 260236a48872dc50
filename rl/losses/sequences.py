"""Sums and means over the tokens of a sequence, given at each of its tokens."""

from __future__ import annotations

import torch


def sequence_sum(values_N: torch.Tensor, sequence_N: torch.Tensor) -> torch.Tensor:
    """At every token the sum over all tokens of its sequence, [N]; sequences are numbered from 0."""
    sequences = int(sequence_N.max()) + 1 if len(sequence_N) else 0
    return values_N.new_zeros(sequences).index_add(0, sequence_N, values_N)[sequence_N]


def sequence_mean(values_N: torch.Tensor, sequence_N: torch.Tensor) -> torch.Tensor:
    """At every token the mean over all tokens of its sequence, [N]."""
    return sequence_sum(values_N, sequence_N) / sequence_sum(torch.ones_like(values_N), sequence_N)
