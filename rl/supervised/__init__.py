"""Learning from demonstrations: what weighs in SFT, what holds it back, and what of it goes into RL. One file each."""
