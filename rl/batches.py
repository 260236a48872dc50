"""From episodes to packed batches: flat tokens, and what is known about every action token.

Shapes: T flat tokens of a batch, N action tokens among them, S sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from gymrl.agents.ragged import Packed
from gymrl.agents.records import Episode

TOLD, SHOWN = -1, -2
"""Versions of tokens that no policy sampled: a demonstration's, and those of its tokens that carry no loss."""


@dataclass(frozen=True)
class TokenSequence:
    """One segment of one episode. `action` marks sampled tokens that carry loss; `mu`, `advantage`, `version` and
    `turn` have a value for every token (0 where it is no action)."""

    ids: np.ndarray  # [L] int64
    action: np.ndarray  # [L] bool
    mu: np.ndarray  # [L] float32: log-probability when sampled
    advantage: np.ndarray  # [L] float32
    version: np.ndarray  # [L] int64
    turn: np.ndarray  # [L] int64
    old: np.ndarray | None = None
    """[L] float32: the learner's log-probability before the update, where it was taken."""
    ref: np.ndarray | None = None
    """[L] float32: the reference model's log-probability, where there is one."""
    guided: bool = False
    """A demonstration among sampled sequences: its loss is -advantage * lp."""
    void: np.ndarray | None = None
    """[L] bool: tokens of void turns."""
    seen: np.ndarray | None = None
    """[L] int64: what the model is shown instead of `ids`, which stay what it has to say."""
    key: np.ndarray | None = None
    """[L] bool: key tokens of a demonstration."""

    @property
    def tokens(self) -> int:
        return len(self.ids)

    @property
    def actions(self) -> int:
        return int(self.action.sum())


def sequences_of(
    episode: Episode, trained: Sequence[bool] | None = None, advantage: float | Sequence[Any] = 0.0,
    oldest: int | None = None,
) -> list[TokenSequence]:  # fmt: skip
    """An episode's segments as sequences: every sampled token of a trained turn is an action, nothing else is.

    `advantage` is one number, or for every turn a number or an array over its sampled tokens. Tokens of a policy
    version before `oldest` carry no loss, nor do those of version SHOWN. Scripted turns (without ids) give nothing.
    """
    trained = [True] * len(episode.turns) if trained is None else trained
    segments: dict[int, list[tuple[np.ndarray, ...]]] = {}
    for number, (turn, train) in enumerate(zip(episode.turns, trained, strict=True)):
        prompt, said = len(turn.prompt_ids), len(turn.completion_ids)
        total = prompt + said
        if not total:
            continue
        ids = np.array(turn.prompt_ids + turn.completion_ids, dtype=np.int64)
        version = np.zeros(total, dtype=np.int64)
        version[prompt:] = turn.versions
        action = np.zeros(total, dtype=bool)
        live = version != SHOWN
        if oldest is not None:
            live &= (version >= oldest) | (version == TOLD)
        action[prompt:] = train and live[prompt:]
        mu = np.zeros(total, dtype=np.float32)
        mu[prompt:] = turn.logprobs
        worth = np.zeros(total, dtype=np.float32)
        worth[prompt:] = advantage if isinstance(advantage, (int, float)) else advantage[number]
        spread = np.where(action, worth, np.float32(0))
        segments.setdefault(turn.segment, []).append(
            (
                ids,
                action,
                mu,
                spread,
                version,
                np.full(total, number, dtype=np.int64),
                np.full(total, turn.void),
            )
        )
    found = []
    for _, turns in sorted(segments.items()):
        columns = [np.concatenate(parts) for parts in zip(*turns, strict=True)]
        ids, action, mu, spread, version, place, void = columns
        found.append(TokenSequence(ids, action, mu, spread, version, place, void=void))
    return found


@dataclass(frozen=True)
class Batch:
    """Whole sequences packed into one row of flat tokens."""

    ids_T: torch.Tensor
    packed: Packed
    predict_N: torch.Tensor
    """Where in the row each action token is predicted from (the token before it)."""
    target_N: torch.Tensor
    mu_N: torch.Tensor
    advantage_N: torch.Tensor
    weight_N: torch.Tensor
    """Weight of the token in the step's loss."""
    version_N: torch.Tensor
    sequence_N: torch.Tensor
    turn_N: torch.Tensor
    old_N: torch.Tensor | None
    """The learner's log-probabilities before the update, if all sequences have them."""
    ref_N: torch.Tensor | None
    """The reference's log-probabilities, if all sequences have them."""
    void_N: torch.Tensor
    """Whether the token is of a void turn."""
    guided_N: torch.Tensor
    """Whether the token is of a demonstration."""

    @property
    def tokens(self) -> int:
        return len(self.ids_T)

    @property
    def actions(self) -> int:
        return len(self.target_N)


def make_batch(
    sequences: Sequence[TokenSequence], weights_S: Sequence[float], device: torch.device | str = "cpu"
) -> Batch:
    """Pack sequences into one row. The first token of a sequence is predicted from nothing and is never an action."""
    ids = np.concatenate([s.ids for s in sequences])
    seen = np.concatenate([s.ids if s.seen is None else s.seen for s in sequences])
    action = np.concatenate([s.action for s in sequences])
    lengths = [s.tokens for s in sequences]
    starts = np.cumsum([0, *lengths[:-1]])
    if action[starts].any():
        raise ValueError("a sequence's first token cannot be an action: prompts have at least one token")
    where = np.flatnonzero(action)
    owner = np.repeat(np.arange(len(sequences)), lengths)[where]

    def pick(values: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(values)[where]).to(device)

    return Batch(
        ids_T=torch.from_numpy(seen).to(device),
        packed=Packed(lengths, device),
        predict_N=torch.from_numpy(where - 1).to(device),
        target_N=torch.from_numpy(ids[where]).to(device),
        mu_N=pick([s.mu for s in sequences]),
        advantage_N=pick([s.advantage for s in sequences]),
        weight_N=torch.tensor(np.asarray(weights_S, dtype=np.float32)[owner]).to(device),
        version_N=pick([s.version for s in sequences]),
        sequence_N=torch.from_numpy(owner).to(device),
        turn_N=pick([s.turn for s in sequences]),
        old_N=pick(old)
        if len(old := [s.old for s in sequences if s.old is not None]) == len(sequences)
        else None,
        ref_N=pick(ref)
        if len(ref := [s.ref for s in sequences if s.ref is not None]) == len(sequences)
        else None,
        void_N=pick([np.zeros(s.tokens, dtype=bool) if s.void is None else s.void for s in sequences]),
        guided_N=torch.tensor([s.guided for s in sequences], dtype=torch.bool)[owner].to(device),
    )


def at_actions(sequence: TokenSequence, values_n: torch.Tensor) -> np.ndarray:
    """Values of a sequence's action tokens at their places, 0 elsewhere: [actions] -> [L] float32."""
    placed = np.zeros(sequence.tokens, dtype=np.float32)
    placed[sequence.action] = values_n.numpy()
    return placed


def kept_only(sequence: TokenSequence, kept_n: torch.Tensor) -> TokenSequence:
    """The sequence with only those of its action tokens that are kept, [actions] bool."""
    action = sequence.action.copy()
    action[sequence.action] = kept_n.numpy()
    return replace(sequence, action=action, advantage=np.where(action, sequence.advantage, np.float32(0)))


def cut(sequences: Sequence[TokenSequence], budget: int) -> list[list[int]]:
    """Indices of sequences for each micro-batch of at most `budget` tokens: longest first, so that sequences of like
    length lie together. A sequence longer than the budget gets a batch of its own."""
    order = sorted(range(len(sequences)), key=lambda i: (-sequences[i].tokens, i))
    bins: list[list[int]] = []
    used = 0
    for i in order:
        size = sequences[i].tokens
        if not bins or used + size > budget:
            bins.append([])
            used = 0
        bins[-1].append(i)
        used += size
    return bins
