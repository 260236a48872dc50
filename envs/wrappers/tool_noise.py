"""Tools that fail: errors, time-outs, renamed parameters."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gymrl.envs.environment import Environment, StepReturn, with_tools
from gymrl.envs.marks import answer
from gymrl.envs.records import Action, Message, Observation, Tool, ToolCall
from gymrl.envs.wrappers.base import Wrapper, settled

ERRORS = (
    "Error: service unavailable, try again.",
    "Error: internal error, try again.",
    "Error: rate limit reached, try again.",
)
TIMEOUT = "Error: the call timed out and was not carried out, try again."
SUFFIXES = ("_value", "_arg", "_field", "_input")


class ToolNoise(Wrapper):
    """Let calls fail and change how they are to be made, as tools do.

    errors, timeouts: the share of turns with tool calls (or, in a world without tools, of turns that it reacts to and
    that give no answer) that are not carried out and are told so. At most `in_a_row` fail one after another, and a
    lost turn is given back. renamed: the share of each tool's parameters that have another name in this task; calls
    with the old name are refused. The oracle knows the new names and tries again.
    """

    state = ("failed", "lost", "names")

    def __init__(
        self,
        world: Environment,
        errors: float = 0.1,
        timeouts: float = 0.0,
        renamed: float = 0.0,
        in_a_row: int = 2,
    ) -> None:
        super().__init__(world)
        for name, share in (("errors", errors), ("timeouts", timeouts), ("renamed", renamed)):
            if not 0 <= share <= 1:
                raise ValueError(f"tool_noise takes {name} from 0 to 1, not {share}")
        if errors + timeouts > 1:
            raise ValueError("tool_noise takes errors and timeouts that sum to 1 or less")
        self.errors, self.timeouts, self.renamed, self.in_a_row = errors, timeouts, renamed, in_a_row
        self.names: dict[str, dict[str, str]] = {}
        self.lost = 0

    def follow(self) -> None:
        self.max_turns = self.world.max_turns + self.lost  # lost turns are given back

    async def reset(self) -> Any:
        self.failed = self.lost = 0
        observation, info = await self.inner_reset()
        self.names = {}
        return self._renamed(with_tools(observation, self.world.tools())), info

    async def step(self, action: Action) -> StepReturn:
        if self.names:
            for call in action.tool_calls:
                names = self.names.get(call.name, {})
                for old, new in names.items():
                    if old in call.arguments:
                        text = f"Error: {call.name} has no parameter {old!r}. It takes {new!r}."
                        return _answer(action, text), 0.0, False, {"refused": old}
            action = self._translated(action, back=True)
        if trouble := self._trouble(action):
            return _answer(action, trouble), 0.0, False, {"noise": trouble}
        result = await self.inner_step(action)
        observation = self._renamed(result.observation)
        return observation, result.reward, result.terminated, result.truncated, result.info

    def tools(self) -> tuple[Tool, ...]:
        return tuple(self._tool(tool) for tool in self.world.tools())

    async def oracle(self) -> str | Action:  # type: ignore[override]
        action = await settled(self.world.oracle())
        return self._translated(Action.of(action)) if self.names else action

    async def random_action(self, rng: random.Random) -> str | Action:  # type: ignore[override]
        action = await settled(self.world.random_action(rng))
        return self._translated(Action.of(action)) if self.names else action

    def _trouble(self, action: Action) -> str:
        """What goes wrong with a turn; '' where nothing does."""
        acts = bool(action.tool_calls)
        if not acts and not self.world.tools():
            acts = self.world.recognises(action) and answer(action.text) is None
        drawn = self.rng.random() if acts else 1.0
        if not acts or self.failed >= self.in_a_row or drawn >= self.errors + self.timeouts:
            self.failed = 0
            return ""
        self.failed += 1
        self.lost += 1
        self.follow()
        return self.rng.choice(ERRORS) if drawn < self.errors else TIMEOUT

    def _renamed(self, observation: Observation) -> Observation:
        if not observation.tools or not self.renamed:
            return observation
        for tool in observation.tools:
            self._draw(tool)
        return replace(observation, tools=tuple(self._tool(tool) for tool in observation.tools))

    def _draw(self, tool: Tool) -> None:
        """New names for a tool's parameters, from the task alone."""
        if tool.name in self.names:
            return
        rng = random.Random(f"{self.task.seed} {tool.name}")
        properties = tool.parameters.get("properties", {})
        self.names[tool.name] = {
            name: new
            for name in properties
            if rng.random() < self.renamed and (new := name + rng.choice(SUFFIXES)) not in properties
        }

    def _tool(self, tool: Tool) -> Tool:
        names = self.names.get(tool.name)
        if not names:
            return tool
        schema = dict(tool.parameters)
        schema["properties"] = _rename(schema["properties"], names)
        if "required" in schema:
            schema["required"] = [names.get(name, name) for name in schema["required"]]
        return replace(tool, parameters=schema)

    def _translated(self, action: Action, back: bool = False) -> Action:
        """The action with the new names in its calls, or `back` with the old ones."""
        calls = []
        for call in action.tool_calls:
            names = self.names.get(call.name, {})
            names = {new: old for old, new in names.items()} if back else names
            calls.append(ToolCall(call.name, _rename(call.arguments, names), call.id))
        return Action(action.text, tuple(calls))


def _rename(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in values.items()}


def _answer(action: Action, text: str) -> Observation:
    """An error as the answer to every call of a turn, or as a user message where there was none."""
    calls = tuple(Message("tool", text, name=call.name) for call in action.tool_calls)
    return Observation(calls or (Message("user", text),))
