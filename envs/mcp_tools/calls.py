"""Calls in an agent's words, for policies that do not call tools apart from them, and for people who play."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

from gymrl.envs.calls import CLOSE, tool_calls
from gymrl.envs.records import ToolCall

LONGEST = 1_000_000
"""Characters of a call's arguments as JSON."""
DEEPEST = 100
_BARE = re.compile(r"([\w./:-]{1,100})\s*(\{.*\})?", re.DOTALL)


def from_text(text: str, names: Collection[str]) -> tuple[ToolCall, ...]:
    """The complete `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` of a text, or the one call that the whole
    text is, as a tool's name and its arguments in JSON: `get_balance {"owner": "Ann"}`."""
    if CLOSE in text:
        return tool_calls(text)
    bare = _BARE.fullmatch(text.strip()) if len(text) <= LONGEST else None
    if bare is None or bare[1] not in names:
        return ()
    data = _object(bare[2] or "{}")
    return () if data is None else (ToolCall(bare[1], data),)


def sendable(arguments: Any) -> dict[str, Any] | str:
    """The arguments as JSON keeps them, or why they cannot be sent to a server."""
    if not _is_flat(arguments):
        return f"the arguments are nested more than {DEEPEST} deep"
    try:
        text = json.dumps(dict(arguments), allow_nan=False, ensure_ascii=False)
        size = len(text.encode())
    except UnicodeEncodeError:
        return "the arguments are not UTF-8"
    except (TypeError, ValueError, RecursionError):
        return "the arguments are not JSON"
    if size > LONGEST:
        return f"the arguments have {size} bytes, the most is {LONGEST}"
    return json.loads(text)  # type: ignore[no-any-return]


def _is_flat(value: Any) -> bool:
    """Whether a value is nested no more than DEEPEST deep."""
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list, tuple))
        ]  # fmt: skip
        if not level:
            return True
    return False


def _object(text: str) -> dict[str, Any] | None:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None
