"""One optimiser step on a preference loss over sums of log-probabilities.

The loss couples episodes, which may lie in different micro-batches. Its gradient is the sum over episodes of
dL/d(lp_S) times the gradient of lp_S: the sums are scored first, the small derivative is taken, and each token is then
differentiated with its episode's factor. So the result does not depend on how the step is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from gymrl.rl.algorithms import Algorithm
from gymrl.rl.batches import Batch, TokenSequence
from gymrl.rl.learner import Learner
from gymrl.rl.pairs import Example


def sums(scorer: Any, examples: Sequence[Example], temperature: float) -> torch.Tensor:
    """The sum of the log-probabilities of each example's sampled tokens, [S] float64."""
    flat = [sequence for example in examples for sequence in example.sequences]
    scores = iter(scorer.score(flat, temperature))
    found = [sum(float(next(scores).double().sum()) for _ in example.sequences) for example in examples]
    return torch.tensor(found, dtype=torch.float64)


def preference_step(
    learner: Learner, examples: Sequence[Example], ref_S: torch.Tensor, algorithm: Algorithm,
    settings: dict[str, Any], lr: float, temperature: float,
    others: Sequence[Example] = (), others_ref: torch.Tensor | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Step on the mean loss of the examples: pairs lie together, the success first. `ref_S` are the reference's sums,
    `others` mismatched answers and `others_ref` their sums, for losses that ask for them. Returns metrics."""
    lp_S = sums(learner, examples, temperature).requires_grad_()
    length_S = torch.tensor([example.actions for example in examples], dtype=torch.float64)
    tensors: dict[str, Any] = {
        "lp_S": lp_S, "ref_lp_S": ref_S, "desirable_S": torch.tensor([example.good for example in examples]),
    }  # fmt: skip
    if "mismatched_S" in algorithm.inputs:
        assert others_ref is not None
        tensors["mismatched_S"] = sums(learner, others, temperature) - others_ref
    paired = "win_Q" in algorithm.inputs
    if paired:
        tensors |= {
            "win_Q": lp_S[::2],
            "lose_Q": lp_S[1::2],
            "ref_win_Q": ref_S[::2],
            "ref_lose_Q": ref_S[1::2],
        }
        tensors |= {"win_length_Q": length_S[::2], "lose_length_Q": length_S[1::2]}
    loss = algorithm.bind(settings)(tensors).mean()
    (slope_S,) = torch.autograd.grad(loss, lp_S)
    sequences = [
        _sloped(sequence, slope)
        for example, slope in zip(examples, slope_S.tolist(), strict=True)
        for sequence in example.sequences
    ]
    result = learner.step(sequences, [1.0] * len(sequences), along, lr, temperature)
    metrics = {
        "loss": float(loss.detach()), "grad_norm": result.grad_norm, "lr": lr, "tokens": result.tokens,
        "skipped": int(result.skipped),
    }  # fmt: skip
    good_S = tensors["desirable_S"]
    if paired:
        good_S = torch.arange(len(examples)) % 2 == 0
    return metrics | _movement(lp_S.detach(), ref_S, good_S, paired, tensors.get("mismatched_S"))


def _movement(
    lp_S: torch.Tensor, ref_S: torch.Tensor, good_S: torch.Tensor, paired: bool, mismatched: torch.Tensor | None
) -> dict[str, float]:  # fmt: skip
    """Sums of log-probabilities (nats), alone and against the reference, by the side they are on."""
    moved_S, found = lp_S - ref_S, dict[str, float]()
    for name, side_S in (("chosen", good_S), ("rejected", ~good_S)):
        if side_S.any():
            found |= {
                f"rewards/{name}": float(moved_S[side_S].mean()), f"logps/{name}": float(lp_S[side_S].mean())
            }  # fmt: skip
    if paired:
        margin_Q = moved_S[::2] - moved_S[1::2]
        return found | {"margin": float(margin_Q.mean()), "accuracy": float((margin_Q > 0).double().mean())}
    level = 0.0
    if mismatched is not None:
        level = max(0.0, float(mismatched.mean())) if len(mismatched) else 0.0
        found["kl/episode"] = level
    right_S = torch.where(good_S, moved_S > level, moved_S < level)
    return found | {"accuracy": float(right_S.double().mean())}


def along(batch: Batch, lp_N: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A loss whose gradient is each token's factor times that of its log-probability."""
    return batch.advantage_N * lp_N, {}


def _sloped(sequence: TokenSequence, slope: float) -> TokenSequence:
    return replace(sequence, advantage=np.where(sequence.action, np.float32(slope), np.float32(0)))
