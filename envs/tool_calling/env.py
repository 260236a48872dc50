"""The environment `gymrl/ToolCalling-v0`."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gymrl.envs.environment import Environment
from gymrl.envs.records import Action, Message, Observation, TaskSpec, Tool, ToolCall
from gymrl.envs.tool_calling.backends import ERROR, Backends, methods
from gymrl.envs.tool_calling.calls import Call, Unreadable, read_calls, right_call
from gymrl.envs.tool_calling.feedback import complaints, unknown
from gymrl.envs.tool_calling.judge import RIGHT, Verdict, judge
from gymrl.envs.tool_calling.limits import CALLS
from gymrl.envs.tool_calling.players import oracle_words, random_arguments
from gymrl.envs.tool_calling.scenarios import Scenario, categories_of, scenarios, split_numbers
from gymrl.envs.tool_calling.tools import DESCRIPTIONS, offered

INSTRUCTIONS = (
    "You carry out a user's requests by calling tools. Call tools until the request is met, then answer in words; the "
    "next request follows. Where no tool is fit or a detail is missing, say so instead of calling."
)
REWARDS = ("sparse", "per_turn")
STEPS = 1024
"""Rewards are multiples of 1/STEPS, so that their sums are exact."""


@dataclass
class Play:
    """What an episode has come to; a deep copy of it is a snapshot."""

    scenario: Scenario
    agent: Backends
    truth: Backends
    turn: int = 0
    right: int = 0
    """Requests that ask for calls and were met."""
    failed: bool = False
    steps: int = 0
    """Of the agent since the last request, with calls."""
    made: list[Call] = field(default_factory=list)
    """The calls since the last request that could be tried."""
    responses: list[str] = field(default_factory=list)
    """The results of all calls."""
    trouble: str = ""
    """What was wrong with the last call; empty where nothing was."""


class ToolCalling(Environment):
    """Carry out a user's requests by calling tools, request by request: BFCL's multi-turn conversations.

    A turn with tool calls makes them, all in order, and shows what they return. A turn of words ends the request: it is
    judged by BFCL's own checks of state and responses, and the next one follows. The episode is won when all requests
    were met.

    category: `all`, or of base, miss_func (a tool that is needed comes later), miss_param (a detail that is needed
    comes later) and long_context (much beside the point) those named, with commas between. rewards: `sparse`, 1 at the
    end for a won episode, or `per_turn`, an equal share for each request that is met (those that ask for no call pay
    nothing). end_at_failure: whether the episode ends at the first request that is not met, when it can no longer be
    won. actionable: whether the result of a failed call says what is wrong with the call, and not only what was
    raised. descriptions: of the tools, `full` as in BFCL, or `short` without what all tools of one system say alike.
    distractors: tools on offer beside those that the conversation needs; as in BFCL, all there are, where it is None.
    steps: turns with calls that one request may take before the episode is lost. max_turns: turns after which the
    episode is truncated.
    """

    version = "1"
    runs = "inline"

    def __init__(
        self, category: str = "all", rewards: str = "sparse", end_at_failure: bool = True, actionable: bool = True,
        descriptions: str = "full", distractors: int | None = None, steps: int = 20, max_turns: int = 60,
    ) -> None:  # fmt: skip
        self.categories = categories_of(category)
        for name, value, known in (
            ("rewards", rewards, REWARDS),
            ("descriptions", descriptions, DESCRIPTIONS),
        ):
            if value not in known:
                raise ValueError(f"unknown {name} {value!r}: take {' or '.join(known)}")
        if steps < 1 or max_turns < 1 or (distractors is not None and distractors < 0):
            raise ValueError("steps and max_turns are 1 or more, distractors 0 or more")
        self.rewards, self.end_at_failure, self.actionable = rewards, end_at_failure, actionable
        self.descriptions, self.distractors, self.steps, self.max_turns = (
            descriptions,
            distractors,
            steps,
            max_turns,
        )
        self.sizes = {
            split: len(split_numbers()[split]) * len(self.categories) for split in ("train", "val", "test")
        }

    def scenario(self, task: TaskSpec) -> Scenario:
        """The conversation of a task: the categories of one scenario follow each other."""
        place, category = divmod(task.index, len(self.categories))
        return scenarios(self.categories[category])[split_numbers()[task.split][place]]

    def reset(self) -> Observation:
        scenario = self.scenario(self.task)
        self.play = Play(scenario, Backends(scenario), Backends(scenario))
        messages = (Message("system", INSTRUCTIONS), Message("user", scenario.turns[0]))
        return Observation(messages, self.tools())

    def tools(self) -> tuple[Tool, ...]:
        """Those on offer now."""
        if not hasattr(self, "play"):
            return ()
        return offered(self.play.scenario, self.play.turn, self.descriptions, self.distractors)

    def step(self, action: Action) -> tuple[Any, ...]:
        try:
            calls = self._calls(action)
        except Unreadable as error:
            calls, self.play.trouble = (), str(error)
            text = f"Error: this is {error}. Write [tool(parameter=value)] or answer in words."
            return self._after_calls((Message("user", text),), {"calls": 0})
        if not calls:
            return self._answered()
        messages = tuple(Message("tool", self._made(call), name=call.name) for call in calls[:CALLS])
        if len(calls) > CALLS:
            messages += (Message("user", f"Error: only the first {CALLS} calls of a turn are made."),)
        return self._after_calls(messages, {"calls": len(calls)})

    def recognises(self, action: Action) -> bool:
        try:
            return bool(action.tool_calls or action.text.strip()) and read_calls(action.text) is not None
        except Unreadable:
            return False

    def oracle(self) -> Action:
        calls = self._right_calls()
        if not calls:
            return Action(oracle_words(self.play.scenario, self.play.turn))
        return Action("", tuple(self._tool_call(call, f"call_{number}") for number, call in enumerate(calls)))

    def random_action(self, rng: random.Random) -> Action:
        if rng.random() < 0.3:
            return Action("Done.")
        tool = rng.choice(self.tools())
        return Action("", (ToolCall(tool.name, random_arguments(tool, self.play.scenario, rng), "call_0"),))

    def describe_task(self, task: TaskSpec) -> str:
        """The state in which the world of a task begins: scenarios that share it are in one split, as are the
        categories of one scenario."""
        return json.dumps(self.scenario(task).config, sort_keys=True)

    def task_families(self) -> tuple[dict[str, Any], ...]:
        return tuple({"category": name} for name in self.categories) if len(self.categories) > 1 else ()

    def give_hint(self) -> str:
        """What is wrong with the last call, else which tool is next: not with what arguments."""
        if self.play.trouble:
            return self.play.trouble
        calls = self._right_calls()
        if calls:
            return f"Think of the tool {calls[0].name}."
        if self.play.scenario.truth[self.play.turn]:
            return "What was asked for is done: answer in words."
        return "The tools on offer or the details given are not enough: say so, without a call."

    def measure_progress(self) -> float:
        return self.play.right / sum(map(bool, self.play.scenario.truth))

    def snapshot(self) -> Play:
        return copy.deepcopy(self.play)

    def restore(self, state: Play) -> None:
        self.play = copy.deepcopy(state)

    def close(self) -> None:
        self.__dict__.pop("play", None)

    def _calls(self, action: Action) -> tuple[Call, ...]:
        if not action.tool_calls:
            return read_calls(action.text)
        if not all(isinstance(call.arguments, Mapping) for call in action.tool_calls):
            raise Unreadable("a call whose arguments are no object")
        return tuple(Call(_plain(str(call.name)), (), dict(call.arguments)) for call in action.tool_calls)

    def _made(self, call: Call) -> str:
        """Make a call; what the agent sees of it."""
        play = self.play
        tools = {tool.name: tool for tool in self.tools()}
        if call.name not in tools:
            result, failed = f"{ERROR}name '{call.name}' is not defined", True
            trouble = unknown(call.name, tuple(tools.values()))
        else:
            result, failed = play.agent.call(call.name, call.positional, call.named)
            result = _plain(result, len(result))
            trouble = " ".join(complaints(tools[call.name], call.positional, call.named)) if failed else ""
        play.made.append(call)
        play.responses.append(result)
        play.trouble = trouble or (result if failed else "")
        return f"{result}\n{trouble}" if self.actionable and trouble else result

    def _after_calls(self, messages: tuple[Message, ...], info: dict[str, Any]) -> tuple[Any, ...]:
        self.play.steps += 1
        if self.play.steps <= self.steps:
            return Observation(messages), 0.0, False, info
        verdict = Verdict(False, "steps", f"More than {self.steps} turns with calls for one request.")
        return self._lost(verdict, messages, info)

    def _answered(self) -> tuple[Any, ...]:
        """The agent has answered in words: judge the request and make the next."""
        play = self.play
        wanted = [self._truth(source) for source in play.scenario.truth[play.turn]]
        verdict = RIGHT
        if wanted:  # of requests that no call is fit for, BFCL judges nothing
            verdict = judge(
                play.turn, bool(play.made), play.agent.instances, play.truth.instances, play.responses, wanted
            )
        info = {"request": play.turn, "right": verdict.right, "fault": verdict.fault}
        before = self._potential()
        play.right += verdict.right and bool(wanted)
        play.failed = play.failed or not verdict.right
        if play.failed and self.end_at_failure:
            return self._lost(verdict, (), info)
        play.turn, play.steps, play.made, play.trouble = play.turn + 1, 0, [], ""
        ended = play.turn == len(play.scenario.turns)
        play.turn -= ended
        reward = self._potential(ended and not play.failed) - before
        if ended:
            return (
                "Not all requests were met." if play.failed else "All requests were met.",
                reward,
                True,
                info,
            )
        more = self.tools() if play.turn in play.scenario.withheld else ()
        return Observation((Message("user", play.scenario.turns[play.turn]),), more), reward, False, info

    def _lost(self, verdict: Verdict, messages: tuple[Message, ...], info: dict[str, Any]) -> tuple[Any, ...]:
        self.play.failed = True
        said = Message("user", f"The request was not met. {verdict.words}")
        return Observation((*messages, said)), 0.0, True, {**info, "right": False, "fault": verdict.fault}

    def _potential(self, won: bool = False) -> float:
        if won or self.rewards == "sparse":
            return float(won)
        wanted = sum(map(bool, self.play.scenario.truth))
        return self.play.right * STEPS // wanted / STEPS

    def _truth(self, source: str) -> str:
        call = right_call(source)
        return self.play.truth.call(call.name, call.positional, call.named)[0]

    def _right_calls(self) -> list[Call]:
        """The right calls for this request that were not made yet, their arguments by name."""
        made = [self._by_name(call) for call in self.play.made]
        left = []
        for source in self.play.scenario.truth[self.play.turn]:
            call = self._by_name(right_call(source))
            if call in made:
                made.remove(call)
            else:
                left.append(call)
        return left

    def _by_name(self, call: Call) -> Call:
        """The call with all its arguments by name, as far as there are names."""
        owner = self.play.agent.owner
        if not call.positional or call.name not in owner:
            return call
        names = methods(owner[call.name])[call.name]
        return Call(call.name, (), {**dict(zip(names, call.positional, strict=False)), **call.named})

    def _tool_call(self, call: Call, name: str) -> ToolCall:
        return ToolCall(call.name, copy.deepcopy(call.named), name)


def _plain(text: str, characters: int = 200) -> str:
    """A text of the agent's that can be written down: without halves of surrogate pairs, and of a bounded length."""
    return text[:characters].encode(errors="replace").decode()
