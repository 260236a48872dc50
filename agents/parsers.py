"""Reading actions out of what a model said."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from gymrl.envs.records import Action, ToolCall

_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)
_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)


def tool_calls(text: str) -> tuple[ToolCall, ...]:
    """The complete calls in the Hermes / Qwen form, `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`.

    A call that is not closed, not JSON, or has no name is none.
    """
    found: list[ToolCall] = []
    for body in _CALL.findall(text):
        try:
            data = json.loads(body)
        except ValueError:
            continue
        if not isinstance(data, dict) or not isinstance(data.get("name"), str):
            continue
        arguments = data.get("arguments", {})
        if isinstance(arguments, dict):
            found.append(ToolCall(data["name"], arguments, f"call_{len(found)}"))
    return tuple(found)


def parse_action(text: str) -> Action:
    """The action in a completed turn. Thoughts (`<think>...</think>`) are not part of it."""
    spoken = _THOUGHT.sub("", text)
    return Action(spoken, tool_calls(spoken))


def with_calls(text: str, calls: Iterable[ToolCall]) -> str:
    """The text, and after it those of the calls that it does not hold yet, in the form that `tool_calls` reads: what a
    policy would have had to write, where a scripted player or a server gave the calls apart from the text."""
    there = [(call.name, dict(call.arguments)) for call in parse_action(text).tool_calls]
    missing = [call for call in calls if (call.name, dict(call.arguments)) not in there]
    bodies = [json.dumps({"name": c.name, "arguments": dict(c.arguments)}, ensure_ascii=False) for c in missing]
    return "\n".join(filter(None, [text, *(f"<tool_call>\n{body}\n</tool_call>" for body in bodies)]))
