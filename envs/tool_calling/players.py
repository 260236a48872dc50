"""What the oracle says beside its calls, and what the random player calls with."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Any

from gymrl.envs.records import Tool
from gymrl.envs.tool_calling.scenarios import Scenario

_WORD = re.compile(r"[\w.@#/-]+")


def oracle_words(scenario: Scenario, turn: int) -> str:
    """What is to be said after the calls for a request, or where there are none to be made."""
    if scenario.truth[turn]:
        return "Done."
    if any(start > turn for start in scenario.withheld):
        return "None of my tools can do that."
    if scenario.category == "miss_param":
        return "A detail that I need for this is missing: please tell me."
    return "There is nothing here that my tools can do."


def random_arguments(tool: Tool, scenario: Scenario, rng: random.Random) -> dict[str, Any]:
    """Arguments that fit the tool's schema: the required ones and half of the others, from the words of the user."""
    words = _WORD.findall(" ".join(scenario.turns)) or ["a"]
    required = tool.parameters.get("required", ())
    return {
        name: _value(schema, words, rng)
        for name, schema in tool.parameters.get("properties", {}).items()
        if name in required or rng.random() < 0.5
    }


def _value(schema: Mapping[str, Any], words: list[str], rng: random.Random) -> Any:
    kind = schema.get("type")
    if schema.get("enum"):
        return rng.choice(list(schema["enum"]))
    if kind == "integer":
        return rng.randrange(0, 1000)
    if kind == "number":
        return round(rng.uniform(0, 1000), 1)
    if kind == "boolean":
        return rng.random() < 0.5
    if kind == "array":
        return [_value(schema.get("items", {}), words, rng) for _ in range(rng.randint(1, 2))]
    if kind == "object":
        return {name: _value(inner, words, rng) for name, inner in schema.get("properties", {}).items()}
    return rng.choice(words)
