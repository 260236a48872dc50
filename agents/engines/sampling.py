"""Drawing tokens from logits, each sequence with random numbers of its own."""

from __future__ import annotations

import numpy as np
import torch


def uniforms(seeds_B: np.ndarray, counts_B: np.ndarray) -> np.ndarray:
    """One number in [0, 1) for every (seed, count), float64: SplitMix64's finaliser over both.

    A sequence's n-th token always draws the same number, whatever else is in the batch.
    """
    with np.errstate(over="ignore"):
        z = seeds_B.astype(np.uint64) + (counts_B.astype(np.uint64) + np.uint64(1)) * np.uint64(
            0x9E3779B97F4A7C15
        )
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    uniform_B: np.ndarray = (z >> np.uint64(11)).astype(np.float64) / 2.0**53
    return uniform_B


def truncate(logits_BV: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """Logits with everything outside the top k and the nucleus of mass p at -inf.

    The nucleus is the smallest set of most likely tokens whose mass reaches p (Holtzman et al. 2020).
    """
    if 0 < top_k < logits_BV.shape[-1]:
        floor = logits_BV.topk(top_k, -1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < floor, -torch.inf)
    if top_p < 1.0:
        ordered, index = logits_BV.sort(-1, descending=True)
        probs = ordered.softmax(-1)
        drop = probs.cumsum(-1) - probs >= top_p
        logits_BV = logits_BV.masked_fill(drop.gather(-1, index.argsort(-1)), -torch.inf)
    return logits_BV


def draw(
    logits_BV: torch.Tensor, temperature: float, top_k: int, top_p: float, uniform_B: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sampled ids [B] (int64) and their log-probabilities [B] (float32) under the distribution drawn from.

    Inverts the cumulative distribution at `uniform_B`. Temperature 0 takes the most likely token; its
    log-probability is then that of temperature 1.
    """
    logits_BV = logits_BV.float()
    if temperature == 0:
        ids_B = logits_BV.argmax(-1)
        return ids_B, logits_BV.log_softmax(-1).gather(-1, ids_B[:, None])[:, 0]
    logprobs_BV = truncate(logits_BV / temperature, top_k, top_p).log_softmax(-1)
    mass_BV = logprobs_BV.double().exp().cumsum(-1)
    target_B1 = uniform_B[:, None].to(mass_BV) * mass_BV[:, -1:]
    ids_B = (mass_BV <= target_B1).sum(-1).clamp_max(logits_BV.shape[-1] - 1)
    return ids_B, logprobs_BV.gather(-1, ids_B[:, None])[:, 0]
