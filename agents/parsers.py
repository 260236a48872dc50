"""Reading actions out of what a model said."""

from __future__ import annotations

import json
import re

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
