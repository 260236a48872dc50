"""Preference losses over whole episodes: one file each.

Sums run over the sampled tokens of an episode alone; tool and user tokens are never in them. Q pairs of a success and a
failure at one task, or S episodes each desirable or not.
"""

from gymrl.rl.preferences import dpo, ipo, kto, simpo

__all__ = ["dpo", "ipo", "kto", "simpo"]
