"""Calls in an agent's words, for policies that do not call tools apart from them, and for people who play."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

from gymrl.envs.records import ToolCall

LONGEST = 1_000_000
"""Characters of a call's arguments as JSON."""
_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)
_BARE = re.compile(r"([\w./:-]{1,100})\s*(\{.*\})?", re.DOTALL)


def from_text(text: str, names: Collection[str]) -> tuple[ToolCall, ...]:
    """The complete `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` of a text, or the one call that the whole
    text is, as a tool's name and its arguments in JSON: `get_balance {"owner": "Ann"}`."""
    found = []
    if "</tool_call>" in text:
        for body in _CALL.findall(text[:LONGEST]):
            data = _object(body)
            if data is not None and isinstance(data.get("name"), str):
                arguments = data.get("arguments", {})
                if isinstance(arguments, dict):
                    found.append(ToolCall(data["name"], arguments))
        return tuple(found)
    bare = _BARE.fullmatch(text.strip()) if len(text) <= LONGEST else None
    if bare is None or bare[1] not in names:
        return ()
    arguments = _object(bare[2] or "{}")
    return () if arguments is None else (ToolCall(bare[1], arguments),)


def fault(arguments: Any) -> str:
    """Why arguments cannot be sent to a server; '' where they can."""
    try:
        size = len(json.dumps(dict(arguments), allow_nan=False, ensure_ascii=False).encode())
    except UnicodeEncodeError:
        return "the arguments are not UTF-8"
    except (TypeError, ValueError, RecursionError):
        return "the arguments are not JSON"
    return f"the arguments have {size} bytes, the most is {LONGEST}" if size > LONGEST else ""


def _object(text: str) -> dict[str, Any] | None:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None
