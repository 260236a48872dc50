"""Advantages: one file each. Shapes: P groups of at most G episodes of at most K turns; B = P * G episodes in group
order of at most T sampled tokens. All are float64 or bool."""

from gymrl.rl.advantages import (
    drgrpo,
    gae,
    gigpo,
    grpo,
    maxrl,
    reinforce_pp,
    remax,
    rloo,
    turn_gae,
    two_level_gae,
)

__all__ = [
    "drgrpo",
    "gae",
    "gigpo",
    "grpo",
    "maxrl",
    "reinforce_pp",
    "remax",
    "rloo",
    "turn_gae",
    "two_level_gae",
]
