"""What is wrong with a call, in words that one can act on."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from gymrl.envs.records import Tool

KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,), "array": (list, tuple),
    "object": (Mapping,),
}  # fmt: skip


def unknown(name: str, tools: Sequence[Tool]) -> str:
    """There is no such tool; the nearest one."""
    near = difflib.get_close_matches(name[:100], [tool.name for tool in tools], 1, 0.5)
    return f"There is no tool {name[:100]!r} on offer" + (f"; did you mean {near[0]}?" if near else ".")


def complaints(tool: Tool, positional: Sequence[Any], named: Mapping[str, Any]) -> list[str]:
    """How a call does not fit the tool's schema, one sentence each; none where it fits."""
    properties: Mapping[str, Any] = tool.parameters.get("properties", {})
    given = {**dict(zip(properties, positional, strict=False)), **named}
    found = []
    missing = [name for name in tool.parameters.get("required", ()) if name not in given]
    if missing:
        found.append(f"{tool.name} needs {_listed(missing, properties)}.")
    extra = [name for name in given if name not in properties]
    if extra or len(positional) > len(properties):
        names = ", ".join(repr(str(name)[:50]) for name in extra[:5]) or "that many arguments"
        takes = _listed(list(properties), properties) or "no parameters"
        found.append(f"{tool.name} has no parameter {names}; it takes {takes}.")
    for name, value in given.items():
        kind = properties.get(name, {}).get("type")
        kinds = KINDS.get(kind, (object,))
        if not isinstance(value, kinds) or (isinstance(value, bool) and kind in ("integer", "number")):
            found.append(f"{name} is of the type {kind}, not {type(value).__name__}.")
    return found


def _listed(names: Sequence[str], properties: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} ({properties.get(name, {}).get('type', 'any')})" for name in names)
