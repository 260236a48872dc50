"""Reward for progress, by a potential."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from gymrl.envs.environment import Environment, StepReturn
from gymrl.envs.gym import EnvironmentFault
from gymrl.envs.records import Action
from gymrl.envs.wrappers.base import Wrapper, as_return, core, offers, settled

SLACK = 1e-6
"""How far rounding may take a world's progress beyond 0 and 1."""


class Progress(Wrapper):
    """Pay progress: the difference of the world's `measure_progress()`, from 0 to 1, before and after each turn.

    keep = false shapes: `weight` times the difference is added to the world's reward and taken back at the end, where
    the potential is that of the beginning. Sums of rewards, and so the best policies, stay what they were (Ng, Harada
    and Russell 1999, without discount). keep = true pays for how far a lost episode came: the rewards are
    (1 - weight) of the world's and `weight` of the progress, so that a won episode still sums to its success.
    """

    state = ("first", "potential")

    def __init__(self, world: Environment, weight: float = 0.5, keep: bool = False) -> None:
        super().__init__(world)
        if not 0 < weight <= 1:
            raise ValueError(f"progress takes a weight above 0 and at most 1, not {weight}")
        if not offers(world, "measure_progress"):
            raise ValueError(
                f"{type(core(world)).__name__} has no measure_progress(): write it, from 0 (begun) to 1 (done)"
            )
        self.weight, self.keep = weight, keep

    async def reset(self) -> Any:
        observation, info = await self.inner_reset()
        self.first = self.potential = await self._measure()
        return observation, info

    async def step(self, action: Action) -> StepReturn:
        result = await self.inner_step(action)
        before = self.potential
        ended = result.terminated and not self.keep
        self.potential = self.first if ended else await self._measure()
        gained = self.weight * (self.potential - before)
        reward = (1 - self.weight) * result.reward + gained if self.keep else result.reward + gained
        return as_return(replace(result, reward=reward, info={**result.info, "progress": self.potential}))

    async def _measure(self) -> float:
        value = await settled(self.world.measure_progress())
        try:
            progress = float(value)
        except (TypeError, ValueError):
            progress = math.nan
        if not -SLACK <= progress <= 1 + SLACK:
            name = type(core(self.world)).__name__
            raise EnvironmentFault(
                f"{name}: measure_progress() returned {value!r}: return a number from 0 (begun) to 1 (done)"[
                    :300
                ]
            )
        return progress
