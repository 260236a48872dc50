"""The words and ranges that recipes and algorithms share. No other import of ours: a recipe is checked before anything
heavy is loaded."""

from typing import Annotated, Literal

from pydantic import Field

VoidMode = Literal["keep", "end_episode", "mask_turn", "mask_episode", "drop_episode"]
"""What is done about void turns."""

Aggregation = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "constant"]
"""How the losses of single tokens become one number."""

Decay = Literal["constant", "linear", "cosine"]
"""What the learning rate does after its warm-up."""

Level = Literal["token", "sequence"]
"""Whether a ratio of probabilities is taken of every token or of whole sequences."""

Adapter = Literal["lora", "rslora", "dora", "loha", "lokr"]
"""Small matrices that are trained beside the frozen weights (through the package peft)."""

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]

Pace = Annotated[int, Field(ge=1)] | Literal["lockstep", "free"]
"""When a request joins the engine's batch, see `gymrl.agents.gates`."""
