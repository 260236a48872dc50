"""Advantages: one file each, `(rewards_PG, counted_PG) -> advantages_PG`."""

from collections.abc import Callable

import torch

from gymrl.rl.advantages.grpo import grpo

ADVANTAGES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {"grpo": grpo}
