"""The frozen record of what happened: turns with their tokens, and episodes made of turns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from gymrl.envs.records import (
    Message,
    TaskSpec,
    Tool,
    ToolCall,
    message_from_json,
    message_to_json,
    tool_call_from_json,
    tool_call_to_json,
)

Ending = Literal["terminated", "truncated", "invalid"]
Stop = Literal["stop", "length", "context", "abort", "scripted"]
"""Why a completion ended: an end-of-turn token, the turn's token limit, the model's context, an abort by the
engine; `scripted` where no model spoke."""

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Turn:
    """One exchange: what was shown, what the policy answered, what that came to.

    `prompt_ids` are the ids appended before the completion (in the first turn of a segment the whole prompt).
    Concatenating prompt and completion ids of a segment's turns gives exactly what the model saw and said.
    `logprobs` and `versions` have one entry for every completion id: the log-probability under the distribution
    sampled from, and the version of the policy that sampled it. Scripted turns hold no ids. `tools` are those on offer
    from this turn on, where they are others than before it.
    """

    messages: tuple[Message, ...]
    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    prompt_ids: tuple[int, ...] = ()
    completion_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    versions: tuple[int, ...] = ()
    segment: int = 0
    stop: Stop = "stop"
    reward: float = 0.0
    void: bool = False
    timings: Mapping[str, float] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[Tool, ...] = ()

    def __post_init__(self) -> None:
        if not len(self.completion_ids) == len(self.logprobs) == len(self.versions):
            raise ValueError("a turn has one logprob and one policy version for every completion id")


@dataclass(frozen=True, slots=True)
class Episode:
    """One episode. `invalid` episodes have a reason and no meaning as rewards (law 3).

    `tools` are those on offer in the first turn, `closing` the messages that the environment sent after the last.
    `group` and `sample` tell the rollouts of one task apart; `seed` is that of its sampling.
    """

    task: TaskSpec
    turns: tuple[Turn, ...]
    ending: Ending
    reason: str = ""
    success: bool = False
    closing: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = ()
    policy: str = ""
    group: int = 0
    sample: int = 0
    seed: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.ending == "invalid" and not self.reason:
            raise ValueError("an invalid episode has a reason")

    @property
    def valid(self) -> bool:
        return self.ending != "invalid"

    @property
    def reward(self) -> float:
        """The sum of the turns' rewards. Raises ValueError for an invalid episode, which has none."""
        if not self.valid:
            raise ValueError(f"an invalid episode has no reward ({self.reason})")
        return sum(turn.reward for turn in self.turns)

    @property
    def void(self) -> bool:
        """Whether any turn was void."""
        return any(turn.void for turn in self.turns)

    @property
    def tokens(self) -> int:
        """How many tokens the policy sampled."""
        return sum(len(turn.completion_ids) for turn in self.turns)


def episode_to_json(episode: Episode) -> dict[str, Any]:
    """An episode as plain JSON data, with its reward (null where it is invalid) for readers without gymrl."""
    return {
        "format": FORMAT,
        "task": asdict(episode.task),
        "policy": episode.policy,
        "group": episode.group,
        "sample": episode.sample,
        "seed": episode.seed,
        "ending": episode.ending,
        "reason": episode.reason,
        "success": episode.success,
        "reward": episode.reward if episode.valid else None,
        "metrics": dict(episode.metrics),
        "tools": _tools_to_json(episode.tools),
        "turns": [_turn_to_json(turn) for turn in episode.turns],
        "closing": [message_to_json(message) for message in episode.closing],
    }


def episode_from_json(data: Mapping[str, Any]) -> Episode:
    """The inverse of `episode_to_json`. Raises ValueError for a format this version does not know."""
    if data.get("format") != FORMAT:
        raise ValueError(f"episode format {data.get('format')!r} is not known: this gymrl reads {FORMAT}")
    return Episode(
        task=TaskSpec(**data["task"]),
        turns=tuple(_turn_from_json(turn) for turn in data["turns"]),
        ending=data["ending"],
        reason=data["reason"],
        success=data["success"],
        closing=tuple(message_from_json(message) for message in data["closing"]),
        tools=_tools_from_json(data["tools"]),
        policy=data["policy"],
        group=data["group"],
        sample=data["sample"],
        seed=data["seed"],
        metrics=data["metrics"],
    )


def _tools_to_json(tools: tuple[Tool, ...]) -> list[dict[str, Any]]:
    return [dict(asdict(tool)) for tool in tools]


def _tools_from_json(data: Iterable[Mapping[str, Any]]) -> tuple[Tool, ...]:
    return tuple(Tool(**tool) for tool in data)


def _turn_to_json(turn: Turn) -> dict[str, Any]:
    return {
        "messages": [message_to_json(message) for message in turn.messages],
        "text": turn.text,
        "tool_calls": [tool_call_to_json(call) for call in turn.tool_calls],
        "segment": turn.segment,
        "prompt_ids": list(turn.prompt_ids),
        "completion_ids": list(turn.completion_ids),
        "logprobs": list(turn.logprobs),
        "versions": list(turn.versions),
        "stop": turn.stop,
        "reward": turn.reward,
        "void": turn.void,
        "timings": dict(turn.timings),
        "info": dict(turn.info),
        **({"tools": _tools_to_json(turn.tools)} if turn.tools else {}),
    }


def _turn_from_json(data: Mapping[str, Any]) -> Turn:
    return Turn(
        messages=tuple(message_from_json(message) for message in data["messages"]),
        text=data["text"],
        tool_calls=tuple(tool_call_from_json(call) for call in data["tool_calls"]),
        prompt_ids=tuple(data["prompt_ids"]),
        completion_ids=tuple(data["completion_ids"]),
        logprobs=tuple(data["logprobs"]),
        versions=tuple(data["versions"]),
        segment=data["segment"],
        stop=data["stop"],
        reward=data["reward"],
        void=data["void"],
        timings=data["timings"],
        info=data["info"],
        tools=_tools_from_json(data.get("tools") or ()),
    )
