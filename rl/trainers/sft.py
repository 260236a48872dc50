"""Supervised fine-tuning on demonstrations."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

import torch

from gymrl.envs.records import stable_hash
from gymrl.rl.batches import Batch, TokenSequence
from gymrl.rl.learner import Learner, schedule
from gymrl.rl.losses.aggregation import token_weights
from gymrl.rl.recipes.models import SftSection


def negative_logprob(batch: Batch, lp_N: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """-log p of every demonstrated token."""
    return -lp_N, {}


def chosen(step: int, count: int, batch: int, seed: int) -> list[int]:
    """Which demonstrations step `step` takes: epochs in shuffled order, a pure function of its arguments."""
    picked = []
    for position in range(step * batch, (step + 1) * batch):
        epoch, place = divmod(position, count)
        picked.append((epoch, place))
    orders: dict[int, list[int]] = {}
    for epoch, _ in picked:
        if epoch not in orders:
            orders[epoch] = list(range(count))
            random.Random(stable_hash("sft", seed, epoch)).shuffle(orders[epoch])
    return [orders[epoch][place] for epoch, place in picked]


def sft_step(
    learner: Learner,
    demonstrations: Sequence[Sequence[TokenSequence]],
    settings: SftSection,
    step: int,
    seed: int,
    temperature: float = 1.0,
) -> dict[str, Any]:
    """One optimiser step, loss -sum(lp) / number of action tokens (algorithm `sft`). Returns its metrics."""
    began = time.perf_counter()
    picked = chosen(step, len(demonstrations), settings.batch, seed)
    sequences = [sequence for i in picked for sequence in demonstrations[i]]
    weights = token_weights(torch.tensor([s.actions for s in sequences]), "token-mean").tolist()
    lr = schedule(step, settings.lr, settings.warmup, settings.steps, settings.decay)
    result = learner.step(sequences, weights, negative_logprob, lr, temperature)
    seconds = time.perf_counter() - began
    return {
        "loss": result.loss,
        "entropy": result.sums.get("entropy", 0.0) / max(1, result.actions),
        "grad_norm": result.grad_norm,
        "lr": lr,
        "tokens": result.tokens,
        "skipped": int(result.skipped),
        "time/step": seconds,
    }
