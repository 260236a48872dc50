"""Tool calls in a text, in the form of the Hermes and Qwen chat templates."""

from __future__ import annotations

import json
from typing import Any

from gymrl.envs.records import ToolCall

OPEN, CLOSE = "<tool_call>", "</tool_call>"
BROKEN = 64
"""Calls in a text that cannot be read, before the rest of it is left."""
_SPACES = " \t\r\n"
_decoder = json.JSONDecoder()


def tool_calls(text: str) -> tuple[ToolCall, ...]:
    """The complete calls `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, with ids `call_0` and on.

    A call that is not closed, not JSON, or has no name is none. After BROKEN of those nothing more is read: the time is
    then linear in the text's length, which may be what a policy wrote that has learnt nothing yet.
    """
    found: list[ToolCall] = []
    broken, at = 0, text.find(OPEN)
    while at >= 0 and broken < BROKEN:
        at += len(OPEN)
        read = _object(text, at)
        if read is None:
            broken += 1
        else:
            data, at = read
            arguments = data.get("arguments", {})
            if isinstance(data.get("name"), str) and isinstance(arguments, dict):
                found.append(ToolCall(data["name"], arguments, f"call_{len(found)}"))
        at = text.find(OPEN, at)
    return tuple(found)


def _object(text: str, start: int) -> tuple[dict[str, Any], int] | None:
    """The JSON object between here and a closing mark, and where that ends."""
    start = _skip(text, start)
    if not text.startswith("{", start):
        return None
    try:
        data, end = _decoder.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None
    end = _skip(text, end)
    return (data, end + len(CLOSE)) if text.startswith(CLOSE, end) else None


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in _SPACES:
        at += 1
    return at
