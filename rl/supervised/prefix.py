"""Prefix-RFT (Huang et al. 2025, Blending Supervised and Reinforcement Fine-Tuning with Prefix Sampling): one rollout
of a group begins as a demonstration does, and the policy goes on from there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from gymrl.agents.records import Episode
from gymrl.rl.batches import SHOWN, TOLD, cut, make_batch, sequences_of
from gymrl.rl.groups import Group
from gymrl.rl.learner import Learner

Answers = tuple[tuple[int, ...], ...]
"""Ids of what was said, turn by turn."""


def share_of(step: int, steps: int, first: float, last: float) -> float:
    """The share of a demonstration that is told at a step, from `first` down to `last` along half a cosine."""
    done = min(step / max(1, steps - 1), 1.0)
    return last + (first - last) * (1 + math.cos(math.pi * done)) / 2


def prefix_of(answers: Answers, share: float) -> Answers:
    """The first round(share * n) of a demonstration's n tokens, at most n - 1 of them: the policy has the last word."""
    total = sum(len(ids) for ids in answers)
    left = min(round(share * total), total - 1)
    found = []
    for ids in answers:
        if left <= 0:
            break
        found.append(ids[:left])
        left -= len(ids)
    return tuple(found)


def most_entropic(entropy_n: np.ndarray, share: float) -> np.ndarray:
    """Which of the prefix's tokens carry a gradient, [n] bool: the ceil(share * n) with the highest entropy, the
    earlier one of two alike."""
    chosen = np.zeros(len(entropy_n), dtype=bool)
    order = np.argsort(-entropy_n, kind="stable")
    chosen[order[: math.ceil(share * len(entropy_n))]] = True
    return chosen


def guided(learner: Learner, share: float, temperature: float, groups: Sequence[Group]) -> list[Group]:
    """The groups, ready to learn from: of a prefix, the tokens of the highest entropy under the policy carry loss, as
    if it had sampled them itself; the others become SHOWN."""
    table = [list(group.episodes) for group in groups]
    places = [(g, e) for g, row in enumerate(table) for e, episode in enumerate(row) if _told(episode).any()]
    pieces = [sequences_of(table[g][e]) for g, e in places]
    flat = [sequence for parts in pieces for sequence in parts]
    found: list[tuple[np.ndarray, np.ndarray]] = [(np.empty(0), np.empty(0))] * len(flat)
    with torch.no_grad():
        for chosen in cut(flat, learner.settings.token_budget):
            batch = make_batch([flat[i] for i in chosen], [0.0] * len(chosen), learner.accelerator.device)
            lp_N, entropy_N = learner.logprobs(batch, temperature, entropy=True)
            assert entropy_N is not None
            for row, i in enumerate(chosen):
                own = batch.sequence_N == row
                found[i] = (lp_N[own].cpu().numpy(), entropy_N[own].cpu().numpy())
    scores = iter(found)
    for (g, e), parts in zip(places, pieces, strict=True):
        lp, entropy = (np.concatenate(column) for column in zip(*(next(scores) for _ in parts), strict=True))
        table[g][e] = _marked(table[g][e], lp, entropy, share)
    return [replace(group, episodes=tuple(row)) for group, row in zip(groups, table, strict=True)]


def _told(episode: Episode) -> np.ndarray:
    return np.array([version == TOLD for turn in episode.turns for version in turn.versions], dtype=bool)


def _marked(episode: Episode, lp_n: np.ndarray, entropy_n: np.ndarray, share: float) -> Episode:
    told = _told(episode)
    lost = told.copy()
    lost[told] = ~most_entropic(entropy_n[told], share)
    turns, at = [], 0
    for turn in episode.turns:
        here = slice(at, at := at + len(turn.completion_ids))
        logprobs = np.where(told[here], lp_n[here], np.array(turn.logprobs, dtype=np.float64))
        versions = np.where(lost[here], SHOWN, np.array(turn.versions, dtype=np.int64))
        turns.append(replace(turn, logprobs=tuple(logprobs.tolist()), versions=tuple(versions.tolist())))
    return replace(episode, turns=tuple(turns))
