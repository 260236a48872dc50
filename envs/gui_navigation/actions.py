"""What an agent does on a screen, read from its words or its tool calls."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from gymrl.envs.records import Tool, ToolCall

TOOLS = (
    Tool(
        "click",
        "Click on an icon: give its name, or the point x, y in pixels.",
        {
            "type": "object",
            "properties": {
                "icon": {"type": "string", "description": "the icon's name"},
                "x": {"type": "integer", "description": "pixels from the left"},
                "y": {"type": "integer", "description": "pixels from the top"},
            },
        },
    ),
    Tool("back", "Go back, up to the screen above."),
    Tool("home", "Go to the home screen."),
    Tool("complete", "Say that the goal screen is reached; this ends the task."),
)


@dataclass(frozen=True, slots=True)
class Press:
    """One action: `icon` or the point is what a click is on."""

    kind: Literal["click", "back", "home", "complete"]
    icon: str = ""
    point: tuple[float, float] | None = None


_BUTTON = re.compile(r"(back|home|complete)\s*(?:\(\s*\))?", re.IGNORECASE)
_CLICK = re.compile(r"click(?:\s*\((.+)\)|\s+(\S.*))", re.IGNORECASE)
_NUMBER = r"(-?\d{1,6}(?:\.\d{1,6})?)"
_POINT = re.compile(rf"(?:x\s*=\s*)?{_NUMBER}\s*,\s*(?:y\s*=\s*)?{_NUMBER}")
LONGEST = 200


def from_text(text: str) -> Press | None:
    """The action in `<action>...</action>`, or else on the last line that is not empty; None where that is none."""
    end = text.rfind("</action>")
    begin = text.rfind("<action>", 0, end) if end >= 0 else -1
    said = text[begin + len("<action>") : end] if begin >= 0 else text.rstrip().rpartition("\n")[2]
    if len(said) > LONGEST:
        return None
    said = said.strip().strip("`").removesuffix(".").strip()
    if button := _BUTTON.fullmatch(said):
        return Press(button[1].lower())  # type: ignore[arg-type]
    click = _CLICK.fullmatch(said)
    if click is None:
        return None
    target = (click[1] or click[2]).strip()
    if point := _POINT.fullmatch(target):
        return Press("click", point=(float(point[1]), float(point[2])))
    return Press("click", target.removeprefix("icon=").strip("\"'").strip())


def from_call(call: ToolCall) -> Press | str:
    """The action of a tool call, or what is wrong with the call."""
    if call.name not in ("click", "back", "home", "complete"):
        return f"There is no tool {call.name[:40]!r}: take click, back, home or complete."
    if call.name != "click":
        return Press(call.name)  # type: ignore[arg-type]
    icon, x, y = (call.arguments.get(name) for name in ("icon", "x", "y"))
    if isinstance(icon, str) and icon.strip():
        return Press("click", icon.strip()[:LONGEST])
    if _is_number(x) and _is_number(y):
        return Press("click", point=(float(x), float(y)))  # type: ignore[arg-type]
    return "click takes the name of an icon, or two numbers x and y."


def _is_number(value: Any) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return math.isfinite(value) and abs(value) < 1e6 if isinstance(value, float) else abs(value) < 10**6
