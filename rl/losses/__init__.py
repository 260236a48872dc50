"""Losses: one value for every action token, and how the values of a whole step become one number."""

from gymrl.rl.losses import cispo, clip, gspo, reinforce

__all__ = ["cispo", "clip", "gspo", "reinforce"]
