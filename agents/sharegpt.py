"""Conversations as other tools write and read them: ShareGPT and AgentInstruct, as JSONL or one JSON list."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from gymrl.agents.parsers import with_calls
from gymrl.agents.records import Episode, Turn
from gymrl.envs.records import Message, TaskSpec, Tool, ToolCall

T = TypeVar("T")

SPEAKERS = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "model": "assistant", "function_call": "assistant", "tool": "tool", "observation": "tool", "function": "tool",
    "function_response": "tool",
}  # fmt: skip
"""The role of each speaker that is known, by the names in use."""
_NAMES = {"system": "system", "user": "human", "assistant": "gpt", "tool": "tool"}


def write_sharegpt(path: str | Path, episodes: Iterable[Episode]) -> int:
    """Write episodes as ShareGPT JSONL, whole file or nothing; returns how many.

    Beside `conversations` a line holds what ShareGPT has no words for (task, ending, success, rewards of the turns);
    others may ignore it. Tokens and timings are left out. Raises ValueError for an episode with images.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    count = 0
    with draft.open("w", encoding="utf-8", errors="replace") as file:
        for episode in episodes:
            file.write(json.dumps(conversation_of(episode), ensure_ascii=False, default=str) + "\n")
            count += 1
    draft.replace(path)
    return count


def read_sharegpt(path: str | Path) -> Iterator[Episode]:
    """Read conversations as episodes. Raises ValueError naming file and line (of a .json list: the entry).

    What the model said (`gpt`, `assistant`, `function_call`) are turns, all else is shown; so is what it said where
    `loss` is there and not true (AgentInstruct). Where a line says nothing else, the conversation counts as a success:
    somebody chose to show it; its rewards are not known and read as 0.
    """
    path = Path(path)
    return parsed(path, entries(path), episode_of)


Entry = tuple[str, int, Callable[[], Any]]
"""What an entry is called (`line`), its number from 1, and how it is read."""


def parsed(path: Path, found: Iterable[Entry], parse: Callable[[Any, int], T]) -> Iterator[T]:
    """What `parse(data, index)` makes of each entry. Raises ValueError naming file and entry."""
    for place, number, read in found:
        try:
            made = parse(read(), number - 1)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}, {place} {number}: not a conversation ({error})") from error
        yield made


def entries(path: Path) -> Iterator[Entry]:
    """The entries of JSONL, or of one JSON list in a .json. Raises ValueError where that is no list."""
    if path.suffix == ".json":
        try:
            listed = json.loads(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path} is not JSON: {error} (one object a line goes into a .jsonl)") from None
        if not isinstance(listed, list):
            raise ValueError(
                f"{path} is no list of conversations: write one, or a JSON object a line in a .jsonl"
            )
        yield from (("entry", number, lambda entry=entry: entry) for number, entry in enumerate(listed, 1))
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield "line", number, partial(json.loads, line)


def conversation_of(episode: Episode) -> dict[str, Any]:
    """An episode as ShareGPT's JSON data. A turn's tool calls stand in its text, in the Hermes form."""
    said: list[dict[str, Any]] = []
    for turn in episode.turns:
        said += [_said(message) for message in turn.messages]
        said.append({"from": "gpt", "value": with_calls(turn.text, turn.tool_calls)})
    said += [_said(message) for message in episode.closing]
    task = episode.task
    data: dict[str, Any] = {
        "id": f"{task.env}/{task.split}/{task.index}/{episode.sample}",
        "conversations": said,
        "task": asdict(task),
        "policy": episode.policy,
        "ending": episode.ending,
        "reason": episode.reason,
        "success": episode.success,
        "rewards": [turn.reward for turn in episode.turns],
    }
    if tools := next((turn.tools for turn in reversed(episode.turns) if turn.tools), episode.tools):
        data["tools"] = json.dumps(
            [tool.schema() for tool in tools]
        )  # of tools that come later it says only that
    return data


def _said(message: Message) -> dict[str, Any]:
    if message.images:
        raise ValueError(
            "ShareGPT holds text only: leave episodes with images in gymrl's own JSONL or Parquet"
        )
    data: dict[str, Any] = {"from": _NAMES.get(message.role, message.role), "value": message.text}
    return data | ({"loss": False} if message.role == "assistant" else {})


def episode_of(data: Any, index: int) -> Episode:
    """The inverse of `conversation_of`; also of lines with `messages` of `role` and `content`, and of AgentInstruct's.

    `index` becomes the task's, where the data names none. Raises ValueError for what is no conversation.
    """
    if not isinstance(data, Mapping):
        raise ValueError("it is no JSON object")
    listed = data.get("conversations", data.get("messages"))
    if not isinstance(listed, list):
        raise ValueError("it has no list 'conversations' (or 'messages')")
    shown: list[Message] = [Message("system", data["system"])] if data.get("system") else []
    turns: list[Turn] = []
    for entry in listed:
        role, text = _read(entry)
        if role == "assistant" and entry.get("loss", True) is True:
            turns.append(Turn(tuple(shown), text, stop="scripted"))
            shown = []
        else:
            shown.append(Message(role, text))
    if not turns:
        raise ValueError("the model says nothing in it that is to be learnt")
    rewards = data.get("rewards")
    if isinstance(rewards, list) and len(rewards) == len(turns):
        turns = [
            Turn(turn.messages, turn.text, stop="scripted", reward=float(reward))
            for turn, reward in zip(turns, rewards, strict=True)
        ]
    named = data.get("task")
    task = TaskSpec(**named) if isinstance(named, Mapping) else TaskSpec("sharegpt", "", "train", index)
    return Episode(
        task, tuple(turns), data.get("ending", "terminated"), data.get("reason", ""), bool(data.get("success", True)),
        tuple(shown), _tools(data.get("tools")), str(data.get("policy", "")),
        metrics={"turns": len(turns), "tokens": 0, "void_turns": 0, "seconds": 0.0},
    )  # fmt: skip


def role_of(entry: Any) -> str:
    """Who speaks in a message. Raises ValueError."""
    if not isinstance(entry, Mapping):
        raise ValueError(f"{entry!r} is no message")
    speaker = entry.get("from", entry.get("role"))
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        raise ValueError(f"it speaks {speaker!r}, who is none of {', '.join(SPEAKERS)}")
    return SPEAKERS[speaker]


def _read(entry: Any) -> tuple[str, str]:
    """Role and text of one message, its tool calls written out."""
    role, speaker = role_of(entry), entry.get("from", entry.get("role"))
    text, calls = entry.get("value", entry.get("content")), entry.get("tool_calls") or []
    if isinstance(text, list) and all(isinstance(part, Mapping) and "text" in part for part in text):
        text = "".join(str(part["text"]) for part in text)
    if text is None and calls:
        text = ""
    if not isinstance(text, str):
        raise ValueError(f"what {speaker} says is no text")
    if speaker == "function_call":
        return role, with_calls("", [_call(json.loads(text))])
    return role, with_calls(text, [_call(call) for call in calls]) if calls else text


def _call(data: Mapping[str, Any]) -> ToolCall:
    """A call as it is, or as the `function` of one; its arguments an object or the text of one."""
    function = data.get("function", data)
    arguments = function.get("arguments") or {}
    arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    return ToolCall(str(function["name"]), dict(arguments))


def _tools(given: Any) -> tuple[Tool, ...]:
    """Tools as schemas, in a list or as the text of one; bare functions too."""
    schemas = json.loads(given) if isinstance(given, str) and given.strip() else given or []
    found = []
    for schema in schemas:
        function = schema.get("function", schema)
        parameters = function.get("parameters") or {"type": "object", "properties": {}}
        found.append(Tool(str(function["name"]), str(function.get("description", "")), parameters))
    return tuple(found)
