"""Time that is part of the task."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gymrl.envs.environment import Environment, StepReturn
from gymrl.envs.records import Action
from gymrl.envs.wrappers.base import Wrapper, as_return, with_note


class Horizon(Wrapper):
    """End the episode, for good, after `turns` turns, and say with every observation how many are left.

    A world that allows fewer turns for a task ends after those: put a `turn_limit` inside to raise them. The end is
    `terminated`: what could have come later is worth nothing, and nothing is bootstrapped. tell: whether the turns left
    are said; without it the time is hidden from the agent.
    """

    state = ("played",)

    def __init__(self, world: Environment, turns: int, tell: bool = True) -> None:
        super().__init__(world)
        if turns < 1:
            raise ValueError(f"horizon takes turns of 1 or more, not {turns}")
        self.turns, self.tell, self.played = turns, tell, 0
        self.follow()

    def follow(self) -> None:
        """The limit is this one, whatever is given back inside, unless the inner world's is lower."""
        self.max_turns = min(self.turns, self.world.max_turns)

    @property
    def left(self) -> int:
        """The turns that are left."""
        return self.max_turns - self.played

    async def reset(self) -> Any:
        observation, info = await self.inner_reset()
        self.played = 0
        return (with_note(observation, self._note()) if self.tell else observation), info

    async def step(self, action: Action) -> StepReturn:
        result = await self.inner_step(action)
        self.played += 1
        if result.terminated or (result.truncated and self.left > 0):
            return as_return(result)
        if self.left <= 0:
            observation, info = with_note(result.observation, "Time is up."), {**result.info, "horizon": True}
            result = replace(result, observation=observation, terminated=True, truncated=False, info=info)
        elif self.tell:
            result = replace(result, observation=with_note(result.observation, self._note()))
        return as_return(result)

    def _note(self) -> str:
        return f"Turns left: {self.left}."
