"""Calls as text: the form `[tool(parameter=value), ...]`, read with `ast` and never evaluated."""

from __future__ import annotations

import ast
import re
import warnings
from dataclasses import dataclass, field
from functools import cache
from typing import Any

MOST_CHARACTERS = 16_000
"""Of a text that is read as calls."""

_FENCE = re.compile(r"```[\w+-]*[ \t]*\n(.*?)\n?```", re.DOTALL)
_MARKUP = ("<tool_call", "<function_call", "<|tool_call", "[TOOL_CALLS]")
"""What begins a call in models' own forms. Where it is left in a text, the call could not be read."""


@dataclass(frozen=True)
class Call:
    """A call as it was written: the values of its arguments, by position and by name."""

    name: str
    positional: tuple[Any, ...] = ()
    named: dict[str, Any] = field(default_factory=dict)


class Unreadable(ValueError):
    """A text that is meant to be calls and is none; it says why."""


def read_calls(text: str) -> tuple[Call, ...]:
    """The calls that a text is made of, none where it is words. Raises Unreadable.

    A list `[a(x=1), b("y")]`, alone or in a code fence, is calls; so is one bare call. Arguments are literals.
    """
    said = text.strip()
    if found := _FENCE.fullmatch(said):
        said = found[1].strip()
    bracketed = said.startswith("[") and said.endswith("]")
    if not bracketed:
        if any(mark in said for mark in _MARKUP):
            raise Unreadable("a call that is not complete, or no JSON object with a name and arguments")
        if not re.match(r"[A-Za-z_]\w*\(", said) or not said.endswith(")") or len(said) > MOST_CHARACTERS:
            return ()
    if len(said) > MOST_CHARACTERS:
        raise Unreadable(f"a list of calls of more than {MOST_CHARACTERS} characters")
    try:
        body = _parsed(said)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        if not bracketed:
            return ()
        reason = error.msg if isinstance(error, SyntaxError) else "it cannot be parsed"
        raise Unreadable(f"no list of calls ({reason})") from None
    if not isinstance(body, ast.List):
        body = ast.List([body], ast.Load())
    try:
        return tuple(_call(node) for node in body.elts)
    except (ValueError, TypeError, MemoryError, RecursionError) as error:
        if isinstance(error, Unreadable):
            raise
        raise Unreadable("an argument that is no literal value") from None


@cache
def right_call(source: str) -> Call:
    """A call of BFCL's ground truth. Its arguments are shared: copy them before they are changed."""
    (call,) = read_calls(source)
    return call


def _parsed(text: str) -> ast.expr:
    with warnings.catch_warnings():  # of odd escapes, which are the agent's own
        warnings.simplefilter("ignore")
        return ast.parse(text, mode="eval").body


def _call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise Unreadable("a list whose items are not all calls of the form tool(parameter=value)")
    if any(keyword.arg is None for keyword in node.keywords):
        raise Unreadable("a call with **")
    for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
        if any(isinstance(inner, ast.Call) for inner in ast.walk(argument)):
            raise Unreadable("a call within a call: make one after the other")
    named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
    return Call(node.func.id, tuple(ast.literal_eval(argument) for argument in node.args), named)
