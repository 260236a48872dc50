"""The words of a recipe that algorithms read. No other import: a recipe is checked before anything heavy is loaded."""

from typing import Literal

VoidMode = Literal["keep", "end_episode", "mask_turn", "mask_episode", "drop_episode"]
"""What is done about void turns."""

Aggregation = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "constant"]
"""How the losses of single tokens become one number."""
