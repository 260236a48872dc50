"""Reading actions out of what a model said."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from gymrl.envs.calls import tool_calls
from gymrl.envs.marks import spans
from gymrl.envs.records import Action, ToolCall

DEEPEST = 100
"""Levels of lists and objects in a call's arguments."""


def parse_action(text: str) -> Action:
    """The action in a completed turn. Thoughts (`<think>...</think>`) are not part of it, nor are halves of surrogate
    pairs, see `clean`."""
    spoken = clean(without_thoughts(text))
    return Action(spoken, tuple(filter(None, map(clean_call, tool_calls(spoken)))))


def clean(text: str) -> str:
    """The text with ? for halves of surrogate pairs, which are no characters: no tokenizer and no file takes them, and
    an environment that repeats them would be to blame. JSON's escapes (`"\\ud800"`) make them of honest text."""
    return text if text.isascii() else text.encode(errors="replace").decode()


def clean_call(call: ToolCall) -> ToolCall | None:
    """The call, its texts `clean`; None for one that is nested deeper than DEEPEST, which many a library
    fails over. The arguments are plain JSON data, and are changed in place."""
    left: list[tuple[Any, int]] = [(call.arguments, 1)]
    while left:
        inside, depth = left.pop()
        if depth > DEEPEST:
            return None
        pairs = list(inside.items() if isinstance(inside, dict) else enumerate(inside))
        if isinstance(inside, dict):
            inside.clear()
        for key, value in pairs:
            key, value = (clean(part) if isinstance(part, str) else part for part in (key, value))
            inside[key] = value
            if isinstance(value, (dict, list)):
                left.append((value, depth + 1))
    return replace(call, name=clean(call.name), id=clean(call.id))


def without_thoughts(text: str) -> str:
    """The text without what stands from a `<think>` to the next `</think>`; a thought that is not closed stays."""
    kept, at = [], 0
    for start, end in spans(text, "<think>", "</think>"):
        kept.append(text[at:start])
        at = end
    return "".join((*kept, text[at:]))


def with_calls(text: str, calls: Iterable[ToolCall]) -> str:
    """The text, and after it those of the calls that it does not hold yet, in the form that `tool_calls` reads: what a
    policy would have had to write, where a scripted player or a server gave the calls apart from the text."""
    there = [(call.name, dict(call.arguments)) for call in parse_action(text).tool_calls]
    missing = [call for call in calls if (call.name, dict(call.arguments)) not in there]
    bodies = [
        json.dumps({"name": c.name, "arguments": dict(c.arguments)}, ensure_ascii=False) for c in missing
    ]
    return "\n".join(filter(None, [text, *(f"<tool_call>\n{body}\n</tool_call>" for body in bodies)]))
