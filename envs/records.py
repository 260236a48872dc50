"""The frozen records that pass between an environment and an agent.

Those that every step sends between processes say by `__reduce__` how they are made again: a pickle of half the work.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

SPLIT_SHARES = {"train": (0, 80), "val": (80, 90), "test": (90, 100)}
"""Which hundredths of all possible problems belong to which split (see `TaskSpec.owns`)."""


def stable_hash(*parts: object) -> int:
    """A 63-bit hash of the parts' JSON, the same in every process, thread and PYTHONHASHSEED."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, default=str)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool on offer: `parameters` is the JSON schema of its arguments."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})

    def schema(self) -> dict[str, Any]:
        """The tool as chat templates and OpenAI-compatible servers expect it."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A parsed call of a tool."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message. `images` are encoded PNG or JPEG bytes."""

    role: str
    text: str
    images: tuple[bytes, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    name: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Message, (self.role, self.text, self.images, self.tool_calls, self.name)


@dataclass(frozen=True, slots=True)
class Observation:
    """The messages to append to the conversation, and the tools on offer from now on."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return Observation, (self.messages, self.tools)

    @property
    def text(self) -> str:
        """The texts of all messages, joined by newlines."""
        return "\n".join(message.text for message in self.messages)

    @classmethod
    def of(cls, value: Observation | Message | str) -> Observation:
        """A plain `str` is one user message; a `Message` is an observation of one message."""
        if isinstance(value, Observation):
            return value
        if isinstance(value, Message):
            return cls((value,))
        if isinstance(value, str):
            return cls((Message("user", value),))
        raise TypeError(f"an observation is a str, a Message or an Observation, not {type(value).__name__}")


@dataclass(frozen=True, slots=True)
class Action:
    """What the assistant said, and the tool calls that were parsed from it."""

    text: str
    tool_calls: tuple[ToolCall, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return Action, (self.text, self.tool_calls)

    @classmethod
    def of(cls, value: Action | str) -> Action:
        """A plain `str` is an action without tool calls."""
        if isinstance(value, Action):
            return value
        if isinstance(value, str):
            return cls(value)
        raise TypeError(f"an action is a str or an Action, not {type(value).__name__}")


@dataclass(frozen=True)
class TaskSpec:
    """Names one task: everything its world depends on follows from these fields.

    `params` is the canonical JSON of the environment's parameters (`TaskSpec.make` writes it).
    """

    env: str
    version: str
    split: str
    index: int
    params: str = "{}"

    def __post_init__(self) -> None:
        if self.split not in SPLIT_SHARES:
            raise ValueError(f"unknown split {self.split!r}: take one of {', '.join(SPLIT_SHARES)}")
        if self.index < 0:
            raise ValueError(f"a task's index is 0 or more, not {self.index}")

    @classmethod
    def make(
        cls, env: str, version: str, split: str, index: int, params: Mapping[str, Any] | None = None
    ) -> TaskSpec:
        return cls(env, version, split, index, json.dumps(dict(params or {}), sort_keys=True))

    @cached_property
    def seed(self) -> int:
        """63 bits hashed from every field: no two tasks share one but by a collision of the hash."""
        return stable_hash(self.env, self.version, self.split, self.index, self.params)

    def rng(self) -> random.Random:
        """A fresh private generator; two calls give generators in the same state."""
        return random.Random(self.seed)

    def owns(self, problem: str) -> bool:
        """Whether a problem's text belongs to this task's split.

        A generator that may produce one problem under two seeds draws again until the split owns what it
        drew; then no problem is in two splits (80 % of all problems are in train, 10 % each in val and
        test), whatever the seeds.
        """
        low, high = SPLIT_SHARES[self.split]
        return low <= stable_hash(self.env, problem) % 100 < high


def message_to_json(message: Message) -> dict[str, Any]:
    """A message as plain JSON data; empty fields are left out, images are base64."""
    data: dict[str, Any] = {"role": message.role, "text": message.text}
    if message.images:
        data["images"] = [base64.b64encode(image).decode() for image in message.images]
    if message.tool_calls:
        data["tool_calls"] = [tool_call_to_json(call) for call in message.tool_calls]
    if message.name is not None:
        data["name"] = message.name
    return data


def message_from_json(data: Mapping[str, Any]) -> Message:
    """The inverse of `message_to_json`."""
    return Message(
        data["role"],
        data["text"],
        tuple(base64.b64decode(image) for image in data.get("images", ())),
        tuple(tool_call_from_json(call) for call in data.get("tool_calls", ())),
        data.get("name"),
    )


def tool_call_to_json(call: ToolCall) -> dict[str, Any]:
    return {"name": call.name, "arguments": dict(call.arguments), "id": call.id}


def tool_call_from_json(data: Mapping[str, Any]) -> ToolCall:
    return ToolCall(data["name"], data.get("arguments", {}), data.get("id", ""))
