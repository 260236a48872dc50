"""Whether answers and results are as they should be."""

from __future__ import annotations

import contextlib
import json
import math
import re
from typing import Any

from gymrl.envs.mcp_tools.records import Expected, Use

LONGEST_ANSWER = 4_000
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d{1,3})?")


def right_answer(expected: Expected, said: str) -> bool:
    """Whether the agent's final answer is right. One of more than LONGEST_ANSWER characters is not."""
    said = " ".join(said.split())
    if len(said) > LONGEST_ANSWER:
        return False
    if expected.kind == "done":
        return said.rstrip(".!").casefold() == "done"
    if expected.kind == "equals":
        return any(said == " ".join(str(value).split()) for value in expected.value)
    return _fits(expected, said)


def right_result(expected: Expected, text: str, structured: Any, failed: bool) -> bool:
    """Whether a tool's result is as expected: its text, its text as JSON, or its structured content."""
    if failed or expected.kind == "error":
        return failed and expected.kind == "error"
    if expected.kind == "equals":
        forms = [text.strip(), structured]
        if isinstance(structured, dict) and len(structured) == 1:
            forms += structured.values()  # servers wrap what is no object: {"result": 5}
        with contextlib.suppress(ValueError, RecursionError):
            forms.append(json.loads(text))
        return any(_same(value, form) for value in expected.value for form in forms)
    return _fits(expected, text.strip())


def made(wanted: Use, use: Use) -> bool:
    """Whether a call is one that had to be made: the tool, and among its arguments those that are named."""
    return wanted.tool == use.tool and all(
        name in use.arguments and _same(value, use.arguments[name])
        for name, value in wanted.arguments.items()
    )


def number(text: str) -> float | None:
    """The number that a text is, with or without thousands' commas and a currency or per cent sign; else None."""
    text = text.strip().strip("$€£%").strip()
    if not any(letter.isdigit() for letter in text) or not _NUMBER.fullmatch(text):
        return None
    value = float(text.replace(",", ""))
    return value if math.isfinite(value) else None


def _fits(expected: Expected, text: str) -> bool:
    if expected.kind == "number":
        found = number(text)
        return found is not None and abs(found - expected.value) <= expected.tolerance
    return re.fullmatch(expected.value, text, re.DOTALL) is not None


def _same(one: Any, other: Any) -> bool:
    """Equal as JSON: 1 is 1.0, but true is not 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
