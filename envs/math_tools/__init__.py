r"""Math with tools: problems that are reasoned about and computed in Python; the answer is given in `\boxed{}`."""
