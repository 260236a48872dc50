"""Supervised fine-tuning on demonstrations."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from gymrl.envs.records import stable_hash
from gymrl.rl.batches import Batch, TokenSequence
from gymrl.rl.learner import Learner, LossOf, schedule
from gymrl.rl.losses.aggregation import token_weights
from gymrl.rl.recipes.models import SftSection, TokensSection
from gymrl.rl.reference import Reference
from gymrl.rl.supervised.anchor import anchored
from gymrl.rl.supervised.key_tokens import key_weights


def negative_logprob(batch: Batch, lp_N: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """-log p of every demonstrated token."""
    return -lp_N, {}


def weighted(batch: Batch, lp_N: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """-w log p of every demonstrated token; w is its advantage."""
    return -batch.advantage_N * lp_N, {}


def with_weights(
    sequence: TokenSequence, discount: float, lp_n: torch.Tensor | None = None, most: float = 9.0
) -> TokenSequence:
    """A demonstration whose tokens weigh discount^(turns that follow), times their probability where `lp_n`, the
    log-probabilities of its action tokens, is given (DFT), times what key tokens weigh, at most `most`, where it has
    them."""
    last = int(sequence.turn[sequence.action].max()) if sequence.actions else 0
    weight = np.where(sequence.action, discount ** (last - sequence.turn).clip(0), 0.0)
    if sequence.key is not None:
        weight *= key_weights(sequence.key, sequence.action, most)
    if lp_n is not None:
        weight[sequence.action] *= lp_n.double().exp().numpy()
    return replace(sequence, advantage=weight.astype(np.float32))


def masked(sequence: TokenSequence, rate: float, blank: int, *key: object) -> TokenSequence:
    """Masked thought: each of the demonstrated tokens is shown as `blank` at this rate, a pure function of the key;
    what has to be said stays."""
    drawn = np.random.default_rng(stable_hash("masked", *key)).random(sequence.tokens)
    return replace(sequence, seen=np.where(sequence.action & (drawn < rate), blank, sequence.ids))


def prepared(
    learner: Learner, sequences: list[TokenSequence], settings: SftSection, temperature: float, *key: object
) -> tuple[list[TokenSequence], list[float], LossOf]:
    """The step's demonstrations with the recipe's options, the weight of each in the loss, and the loss: in all
    -sum(w m lp) / sum(w m)."""
    tokens = settings.tokens or TokensSection()
    told = weighed(learner, sequences, settings, temperature, *key)
    if not tokens.dft and not tokens.key and tokens.turn_discount == 1:
        counts = torch.tensor([s.actions for s in told], dtype=torch.long)
        return told, token_weights(counts, "token-mean").tolist(), negative_logprob
    total = float(sum(s.advantage.sum(dtype=np.float64) for s in told))
    return told, [1 / total if total else 0.0] * len(told), weighted


def weighed(
    learner: Learner, sequences: list[TokenSequence], settings: SftSection, temperature: float, *key: object
) -> list[TokenSequence]:
    """The demonstrations with the recipe's options: what is shown of them, and their tokens' weights as advantages."""
    tokens = settings.tokens or TokensSection()
    if tokens.masked:
        sequences = [masked(s, tokens.masked, tokens.blank, *key, n) for n, s in enumerate(sequences)]
    scores = learner.score(sequences, temperature) if tokens.dft else [None] * len(sequences)
    return [
        with_weights(s, tokens.turn_discount, lp, tokens.key_most)
        for s, lp in zip(sequences, scores, strict=True)
    ]


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
    reference: Reference | None = None,
) -> dict[str, Any]:
    """One optimiser step, loss -sum(w lp) / sum(w) over the action tokens, plus where there is a `reference` the anchor
    times the mean KL(reference, policy) over them. Returns its metrics."""
    began = time.perf_counter()
    picked = chosen(step, len(demonstrations), settings.batch, seed)
    sequences = [sequence for i in picked for sequence in demonstrations[i]]
    sequences, weights, loss_of = prepared(learner, sequences, settings, temperature, seed, step)
    lr = schedule(step, settings.lr, settings.schedule.warmup, settings.steps, settings.schedule.name)
    actions = sum(s.actions for s in sequences)
    anchor = settings.tokens.anchor if settings.tokens is not None else 0.0
    if reference is None or not anchor or not actions or not any(weights):
        result = learner.step(sequences, weights, loss_of, lr, temperature)
    else:
        scale = 1 / (actions * max(weights))
        with anchored(learner, reference, loss_of, anchor, scale, temperature) as with_anchor:
            result = learner.step(sequences, weights, with_anchor, lr, temperature)
    seconds = time.perf_counter() - began
    return {
        "loss": result.loss,
        "entropy": result.sums.get("entropy", 0.0) / max(1, result.actions),
        "grad_norm": result.grad_norm,
        "lr": lr,
        "tokens": result.tokens,
        "skipped": int(result.skipped),
        "time/step": seconds,
        "time/trained_per_second": result.tokens / seconds,
    } | ({"anchor": result.sums["anchor"] / max(1, result.actions)} if "anchor" in result.sums else {})
