"""TL-Training (Ye et al. 2024): the few tokens that decide a tool call weigh as much as all the others together."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from gymrl.agents.records import Episode
from gymrl.agents.rendering import Renderer
from gymrl.rl.batches import TokenSequence


def key_weights(key_L: np.ndarray, action_L: np.ndarray, most: float = 9.0) -> np.ndarray:
    """Weights of a demonstration's tokens, [L] float64: min(n_other / n_key, most) for its key tokens, 1 for its other
    action tokens, 0 elsewhere. Where all of them are key tokens, or none, all weigh 1."""
    key_L = key_L & action_L
    n_key, n_other = int(key_L.sum()), int((action_L & ~key_L).sum())
    weight = min(n_other / n_key, most) if n_key and n_other else 1.0
    weight_L: np.ndarray = np.where(key_L, weight, 1.0) * action_L
    return weight_L


def with_keys(
    sequences: list[TokenSequence], episode: Episode, pattern: str, renderer: Renderer
) -> list[TokenSequence]:
    """A tokenised demonstration's sequences with their key tokens: those that hold a character of what `pattern`, a
    regular expression, finds in what a turn says (of its groups, where it has any)."""
    flags = [key_places(turn.text, pattern, renderer) for turn in episode.turns]
    found = []
    for sequence in sequences:
        key_L = np.zeros(sequence.tokens, dtype=bool)
        for number in np.unique(sequence.turn[sequence.action]):
            places = np.flatnonzero(sequence.action & (sequence.turn == number))
            key_L[places[: len(flags[number])]] = flags[number]
        found.append(replace(sequence, key=key_L))
    return found


def key_places(text: str, pattern: str, renderer: Renderer) -> np.ndarray:
    """Which tokens of a text are key tokens, [tokens] bool."""
    matches = re.finditer(pattern, text, re.DOTALL)
    spans = [m.span(g) for m in matches for g in (range(1, m.re.groups + 1) if m.re.groups else [0])]
    tokens = renderer.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return np.array([any(a < end and start < b for a, b in spans) for start, end in tokens], dtype=bool)
