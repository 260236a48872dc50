"""Hints for an agent that does not get on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gymrl.envs.environment import Environment, StepReturn
from gymrl.envs.gym import EnvironmentFault
from gymrl.envs.records import Action
from gymrl.envs.wrappers.base import Wrapper, as_return, core, offers, settled, with_note

KINDS = ("hint", "oracle")


class Hints(Wrapper):
    """Add a hint after `after` turns in a row without reward, and begin to count again.

    kind: `hint` asks the world's `give_hint()`; `oracle` tells the oracle's next action. text: a fixed hint instead,
    the same each time. most: hints in an episode. At training time hints make rewards less sparse; leave them out
    where success is measured.
    """

    state = ("without", "given")

    def __init__(
        self, world: Environment, after: int = 2, kind: str = "hint", text: str = "", most: int = 3
    ) -> None:
        super().__init__(world)
        if kind not in KINDS:
            raise ValueError(f"hints are of the kind {' or '.join(KINDS)}, not {kind!r}")
        if after < 1 or most < 1:
            raise ValueError("hints takes after and most of 1 or more")
        method = {"hint": "give_hint", "oracle": "oracle"}[kind]
        if not text and not offers(world, method):
            mend = "take kind = 'oracle' or a text" if kind == "hint" else "take a text"
            raise ValueError(f"{type(core(world)).__name__} has no {method}() for hints: write it, or {mend}")
        self.after, self.kind, self.text, self.most = after, kind, text, most

    async def reset(self) -> Any:
        self.without, self.given = 0, 0
        return await self.inner_reset()

    async def step(self, action: Action) -> StepReturn:
        result = await self.inner_step(action)
        self.without = 0 if result.reward > 0 else self.without + 1
        if result.terminated or result.truncated or self.without < self.after or self.given >= self.most:
            return as_return(result)
        hint = await self._hint()
        self.without, self.given = 0, self.given + 1
        note = with_note(result.observation, f"Hint: {hint}")
        return as_return(replace(result, observation=note, info={**result.info, "hint": hint}))

    async def _hint(self) -> str:
        if self.text:
            return self.text
        if self.kind == "hint":
            hint = await settled(self.world.give_hint())
            if not isinstance(hint, str):
                name = type(core(self.world)).__name__
                raise EnvironmentFault(f"{name}: give_hint() returned {hint!r}: return a text"[:300])
            return hint
        return shown(Action.of(await settled(self.world.oracle())))


def shown(action: Action) -> str:
    """An action in words."""
    calls = [
        f"{call.name}({', '.join(f'{name}={value!r}' for name, value in call.arguments.items())})"
        for call in action.tool_calls
    ]
    return "\n".join(part for part in (action.text, *calls) if part)
