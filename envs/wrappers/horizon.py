"""Time that is part of the task."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gymrl.envs.environment import Environment, StepReturn
from gymrl.envs.records import Action
from gymrl.envs.wrappers.base import Wrapper, as_return, with_note


class Horizon(Wrapper):
    """End the episode, for good, after `turns` turns, and say with every observation how many are left.

    The end is `terminated`: what could have come later is worth nothing, and nothing is bootstrapped. tell: whether
    the turns left are said; without it the time is hidden from the agent.
    """

    state = ("left",)

    def __init__(self, world: Environment, turns: int, tell: bool = True) -> None:
        super().__init__(world)
        if turns < 1:
            raise ValueError(f"horizon takes turns of 1 or more, not {turns}")
        self.turns, self.tell = turns, tell
        self.max_turns = turns

    def follow(self) -> None:
        """The limit is this one, whatever is given back inside."""

    async def reset(self) -> Any:
        observation, info = await self.inner_reset()
        self.left = self.turns
        return (with_note(observation, self._note()) if self.tell else observation), info

    async def step(self, action: Action) -> StepReturn:
        result = await self.inner_step(action)
        self.left -= 1
        if not result.terminated and not result.truncated:
            if self.left == 0:
                observation = with_note(result.observation, "Time is up.")
                return as_return(
                    replace(
                        result,
                        observation=observation,
                        terminated=True,
                        info={**result.info, "horizon": True},
                    )
                )
            if self.tell:
                result = replace(result, observation=with_note(result.observation, self._note()))
        return as_return(result)

    def _note(self) -> str:
        return f"Turns left: {self.left}."
