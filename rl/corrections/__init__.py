"""Corrections for the difference between the engine that sampled and the learner that trains: one file each.

rho = exp(old_lp - mu_lp), detached: learner's over engine's probability of the same token, under the same weights. Each
gives a factor on the token's loss, and whether the token stays in the mask.
"""

from gymrl.rl.corrections import icepop, none, reject, tis

__all__ = ["icepop", "none", "reject", "tis"]
