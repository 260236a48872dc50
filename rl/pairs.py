"""From sampled episodes to what preference losses learn from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gymrl.agents.records import Episode
from gymrl.rl.batches import TokenSequence, sequences_of
from gymrl.rl.groups import Group, group_by_task


@dataclass(frozen=True)
class Example:
    """One episode as sequences. `pair` numbers its pair (-1: none); `good` is a success."""

    sequences: tuple[TokenSequence, ...]
    good: bool
    pair: int = -1

    @property
    def actions(self) -> int:
        return sum(s.actions for s in self.sequences)


def usable(episode: Episode, longest: int | None) -> bool:
    """Whether an episode may be learnt from: valid, no void turn or turn cut short, at most `longest` tokens."""
    cut_short = any(turn.stop in ("length", "context", "abort") for turn in episode.turns)
    within = longest is None or episode.tokens <= longest
    return episode.valid and not episode.void and not cut_short and within and episode.tokens > 0


def pairs(episodes: Sequence[Episode], longest: int | None = None) -> list[Example]:
    """Of every task with both, the first usable success and the first usable failure: two examples a pair, the success
    first."""
    found: list[Example] = []
    for group in group_by_task(episodes):
        wins, losses = _split(group, longest)
        if wins and losses:
            number = len(found) // 2
            found += [Example(_tokens(wins[0]), True, number), Example(_tokens(losses[0]), False, number)]
    return found


def singles(episodes: Sequence[Episode], longest: int | None = None) -> list[Example]:
    """Every usable episode, desirable if it succeeded."""
    return [Example(_tokens(e), e.success) for e in episodes if usable(e, longest)]


def fingerprint(examples: Sequence[Example]) -> str:
    """A hash of what is learnt from: every id, which of them carry loss, and what is a success."""
    found = hashlib.blake2b(digest_size=16)
    for example in examples:
        found.update(f"{example.good} {example.pair} {[s.tokens for s in example.sequences]}".encode())
        for sequence in example.sequences:
            found.update(sequence.ids.tobytes() + sequence.action.tobytes())
    return found.hexdigest()


def mismatched(examples: Sequence[Example]) -> list[Example | None]:
    """Each example's answers put to the task of the next one whose task differs: its first prompt is replaced, the rest
    stays. None for examples of several segments, whose later prompts hold the task again, and where no task differs."""
    found: list[Example | None] = [None] * len(examples)
    for i, example in enumerate(examples):
        if len(example.sequences) != 1:
            continue
        own = example.sequences[0]
        start = int(own.action.argmax())
        for far in range(1, len(examples)):
            other = examples[(i + far) % len(examples)].sequences[0]
            prompt = other.ids[: int(other.action.argmax())]
            if not np.array_equal(prompt, own.ids[:start]):
                found[i] = replace(example, sequences=(_with_prompt(own, start, prompt),))
                break
    return found


def _with_prompt(sequence: TokenSequence, start: int, prompt: np.ndarray) -> TokenSequence:
    blank = np.zeros(len(prompt))

    def put(values: np.ndarray, first: np.ndarray) -> np.ndarray:
        return np.concatenate([first.astype(values.dtype), values[start:]])

    return TokenSequence(
        put(sequence.ids, prompt), put(sequence.action, blank), put(sequence.mu, blank),
        put(sequence.advantage, blank), put(sequence.version, blank), put(sequence.turn, blank),
    )  # fmt: skip


def _split(group: Group, longest: int | None) -> tuple[list[Episode], list[Episode]]:
    kept = [e for e in group.episodes if usable(e, longest)]
    return [e for e in kept if e.success], [e for e in kept if not e.success]


def _tokens(episode: Episode) -> tuple[TokenSequence, ...]:
    return tuple(sequences_of(episode))
