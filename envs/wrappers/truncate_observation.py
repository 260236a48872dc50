"""Observations of a bounded length."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gymrl.envs.environment import Environment, StepReturn
from gymrl.envs.records import Action, Observation
from gymrl.envs.wrappers.base import Wrapper, as_return

KEEP = ("head", "tail", "both")


class TruncateObservation(Wrapper):
    """Cut the text of every message to `characters`, and say how many are missing where they are.

    keep: `head`, `tail`, or `both` ends in equal parts. first: whether the first observation, which holds the task,
    is cut too.
    """

    def __init__(
        self, world: Environment, characters: int = 2000, keep: str = "head", first: bool = False
    ) -> None:
        super().__init__(world)
        if characters < 1:
            raise ValueError(f"truncate_observation takes characters of 1 or more, not {characters}")
        if keep not in KEEP:
            raise ValueError(f"truncate_observation keeps {', '.join(KEEP)}, not {keep!r}")
        self.characters, self.keep, self.first = characters, keep, first

    async def reset(self) -> Any:
        observation, info = await self.inner_reset()
        return (self._cut(observation) if self.first else observation), info

    async def step(self, action: Action) -> StepReturn:
        result = await self.inner_step(action)
        return as_return(replace(result, observation=self._cut(result.observation)))

    def _cut(self, observation: Observation) -> Observation:
        messages = tuple(
            replace(m, text=cut(m.text, self.characters, self.keep)) for m in observation.messages
        )
        return replace(observation, messages=messages)


def cut(text: str, characters: int, keep: str) -> str:
    """The text, or what is kept of it with a note of how many characters are missing."""
    missing = len(text) - characters
    if missing <= 0:
        return text
    note = f"[{missing} characters left out]"
    if keep == "head":
        return f"{text[:characters]}\n{note}"
    if keep == "tail":
        return f"{note}\n{text[missing:]}"
    head = (characters + 1) // 2
    return f"{text[:head]}\n{note}\n{text[head + missing :]}"
