"""Conversations and comparisons as TRL's data sets hold them: `messages`, `prompt` with `completion` (and `label`), and
`chosen` with `rejected`; each text a string or a list of messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from gymrl.agents.records import Episode
from gymrl.agents.sharegpt import entries, episode_of, parsed, role_of
from gymrl.envs.records import TaskSpec

READ = (
    "episodes as gymrl writes them, 'messages' or 'conversations', 'prompt' with 'completion' (and 'label'), and "
    "'chosen' with 'rejected' (and 'prompt')"
)
"""What is read, for messages."""


def read_conversations(path: str | Path) -> Iterator[Episode]:
    """The episodes of JSONL, or of one JSON list in a .json, of conversations or comparisons. Raises ValueError naming
    file and line where one is broken."""
    path = Path(path)
    for found in parsed(path, entries(path), episodes_of):
        yield from found


def episodes_of(data: Any, index: int) -> list[Episode]:
    """One entry as episodes: of a comparison two of one task, `chosen` a success and `rejected` none; of all else one,
    a success where `label` (or `success`) does not say otherwise.

    Only what the model says after the prompt are turns. `index` becomes the task's, where the data names none. Raises
    ValueError.
    """
    if not isinstance(data, Mapping):
        raise ValueError("it is no JSON object")
    data = {key: value for key, value in data.items() if value is not None}  # Parquet holds every column
    if "chosen" in data or "rejected" in data:
        return _compared(data, index)
    if "prompt" in data and "completion" in data:
        label = data.get("label", True)
        if label not in (True, False):
            raise ValueError(f"its label is {label!r}, neither true nor false")
        prompt, (answer,) = _parts(data, "completion")
        return [_episode(data, prompt, answer, index, 0, bool(label))]
    if "conversations" in data or "messages" in data:
        return [episode_of(data, index)]
    raise ValueError(f"its keys are {', '.join(map(str, data)) or 'none'}; what is read are {READ}")


def _compared(data: Mapping[str, Any], index: int) -> list[Episode]:
    if not ("chosen" in data and "rejected" in data):
        raise ValueError("of 'chosen' and 'rejected' it has one alone")
    prompt, answers = _parts(data, "chosen", "rejected")
    return [
        _episode(data, prompt, answer, index, sample, not sample) for sample, answer in enumerate(answers)
    ]


def _parts(data: Mapping[str, Any], *names: str) -> tuple[list[Any], list[list[Any]]]:
    """The messages of the prompt, and those of each answer. Whole conversations are split where they part."""
    answers = [_messages(data[name], "assistant", name) for name in names]
    given = data.get("prompt", data.get("conversations"))
    prompt = [] if given is None else _messages(given, "user", "prompt")
    whole = [answer for answer in answers if answer and role_of(answer[0]) != "assistant"]
    if len(whole) == len(answers) and not isinstance(given, list):
        prompt = _shared(answers)
        return prompt, [answer[len(prompt) :] for answer in answers]
    if not prompt:
        raise ValueError(
            f"it has no prompt before {' and '.join(names)}: give the task as 'prompt', or whole conversations as "
            "lists of messages"
        )
    if all(answer[: len(prompt)] == prompt for answer in answers):
        answers = [answer[len(prompt) :] for answer in answers]
    return prompt, answers


def _shared(conversations: list[list[Any]]) -> list[Any]:
    """The messages that all of them begin with, the last one of each aside; of one conversation, those before the model
    speaks."""
    if len(conversations) == 1:
        return list(takewhile(lambda message: role_of(message) != "assistant", conversations[0]))
    first, second = (conversation[:-1] for conversation in conversations)
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    found = [message for message, _ in pairs]
    if not found:
        raise ValueError("its answers begin with nothing in common, and it has no prompt")
    return found


def _messages(value: Any, role: str, name: str) -> list[Any]:
    """A string as one message of that role, one message as a list of it."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, Mapping):
        return [value]
    if not isinstance(value, list):
        raise ValueError(f"its {name!r} is neither a text nor a list of messages")
    return value


def _episode(
    data: Mapping[str, Any], prompt: list[Any], answer: list[Any], index: int, sample: int, success: bool
) -> Episode:
    if prompt and answer and role_of(prompt[-1]) == role_of(answer[0]) == "assistant":
        raise ValueError(
            "its prompt ends with the model speaking, and goes on so: put all of that into the answer"
        )
    shown = [{**message, "loss": False} if isinstance(message, Mapping) else message for message in prompt]
    extra = {key: data[key] for key in ("tools", "system") if key in data}
    episode = episode_of({"messages": [*shown, *answer], **extra}, index)
    task = TaskSpec("trl", "", "train", index)
    return replace(episode, task=task, group=index, sample=sample, success=success)
