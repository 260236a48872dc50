"""Reading actions out of what a model said."""

from __future__ import annotations

import json
from collections.abc import Iterable

from gymrl.envs.calls import tool_calls
from gymrl.envs.marks import spans
from gymrl.envs.records import Action, ToolCall


def parse_action(text: str) -> Action:
    """The action in a completed turn. Thoughts (`<think>...</think>`) are not part of it."""
    spoken = without_thoughts(text)
    return Action(spoken, tool_calls(spoken))


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
