"""The tools of BFCL's backends: from its function docs to JSON schemas."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from bfcl_eval.constants.executable_backend_config import MULTI_TURN_FUNC_DOC_FILE_MAPPING as FILES

from gymrl.envs.records import Tool, stable_hash
from gymrl.envs.tool_calling.calls import right_call
from gymrl.envs.tool_calling.scenarios import Scenario, data_folder

DESCRIPTIONS = ("full", "short")
TYPES = {"dict": "object", "float": "number", "tuple": "array"}
"""BFCL's names of types that are not JSON schema's."""


@cache
def class_tools(name: str, descriptions: str) -> tuple[Tool, ...]:
    """The tools of one backend class. `short` descriptions leave out what all tools of a class say alike."""
    text = (data_folder() / "multi_turn_func_doc" / FILES[name]).read_text(encoding="utf-8")
    found = []
    for line in filter(None, text.split("\n")):
        doc = json.loads(line)
        about = doc["description"]
        if descriptions == "short":
            about = about.partition("Tool description:")[2].strip() or about
        found.append(Tool(doc["name"], about, schema(doc["parameters"])))
    return tuple(found)


def offered(
    scenario: Scenario, turn: int, descriptions: str = "full", distractors: int | None = None
) -> tuple[Tool, ...]:
    """The tools on offer in a turn; those withheld until then come last. distractors: how many beside those that the
    right calls need; None for all."""
    tools = {tool.name: tool for name in scenario.classes for tool in class_tools(name, descriptions)}
    if distractors is not None:
        needed = {right_call(source).name for calls in scenario.truth for source in calls}
        needed |= {name for names in scenario.withheld.values() for name in names}
        others = sorted(
            set(tools) - needed, key=lambda name: stable_hash("distractor", scenario.number, name)
        )
        tools = {name: tool for name, tool in tools.items() if name in needed or name in others[:distractors]}
    for start in sorted(scenario.withheld):
        for name in scenario.withheld[start]:
            tool = tools.pop(name)
            if turn >= start:
                tools[name] = tool
    return tuple(tools.values())


def schema(doc: Mapping[str, Any]) -> dict[str, Any]:
    """A function doc's types as JSON schema."""
    found = dict(doc)
    if "type" in found:
        found["type"] = TYPES.get(found["type"], found["type"])
    if "properties" in found:
        found["properties"] = {name: schema(value) for name, value in found["properties"].items()}
    if isinstance(found.get("items"), Mapping):
        found["items"] = schema(found["items"])
    if "description" in found:
        found["description"] = found["description"].strip()
    return found
