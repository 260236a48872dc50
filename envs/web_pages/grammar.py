"""What an agent may do on a page: one small grammar, said in lines of text or in tool calls."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gymrl.envs.marks import code_blocks
from gymrl.envs.records import Action, Tool, ToolCall

MOST_ACTIONS = 20
"""Actions of one turn; what follows is not done."""
MOST_CHARACTERS = 2000
"""Characters of one action."""
SIDE = 4000
"""Coordinates lie within this many pixels."""

Target = tuple[int, ...]
"""(reference,) or (x, y) in pixels from the page's top left corner."""

HELP = {
    "click": "click(ref)",
    "double_click": "double_click(ref)",
    "hover": "hover(ref)",
    "type": 'type(ref, "text"), or type("text") where the cursor is',
    "press": 'press("Enter"), press("Control+a")',
    "select": 'select(ref, "option", ...)',
    "drag": "drag(ref, ref), or drag(x, y, x, y, ...) along points",
    "scroll": "scroll(ref, pixels), more than 0 is down",
    "wait": "wait() or wait(milliseconds)",
}
NAMED_KEYS = (
    "Enter", "Tab", "Escape", "Backspace", "Delete", "Space", "ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight",
    "Home", "End", "PageUp", "PageDown",
)  # fmt: skip
MODIFIERS = ("Control", "Shift", "Alt")

_CALL = re.compile(rf"({'|'.join(HELP)})\(.*\)", re.DOTALL)


@dataclass(frozen=True)
class Command:
    """One action: its name, where (one target; several for `drag`), texts (`type`, `select`, `press`), and a number
    (`scroll`: pixels, `wait`: milliseconds)."""

    name: str
    targets: tuple[Target, ...] = ()
    texts: tuple[str, ...] = ()
    number: int = 0

    def line(self) -> str:
        """The command as a line of text, which `parse` reads back."""
        numbers = [str(part) for target in self.targets for part in target]
        words = [json.dumps(text, ensure_ascii=False) for text in self.texts]
        last = [str(self.number)] if self.number else []
        return f"{self.name}({', '.join(numbers + words + last)})"

    def call(self) -> ToolCall:
        """The command as a tool call, which `parse` reads back."""
        arguments: dict[str, Any] = {}
        if self.name == "drag":
            if any(len(target) == 1 for target in self.targets):
                arguments = {"ref": self.targets[0][0], "to": self.targets[1][0]}
            else:
                arguments = {"points": [part for target in self.targets for part in target]}
        elif self.targets:
            arguments = dict(
                zip(("ref",) if len(self.targets[0]) == 1 else ("x", "y"), self.targets[0], strict=True)
            )
        if self.name == "select":
            arguments["options"] = list(self.texts)
        elif self.texts:
            arguments["key" if self.name == "press" else "text"] = self.texts[0]
        if self.number:
            arguments["pixels" if self.name == "scroll" else "milliseconds"] = self.number
        return ToolCall(self.name, arguments)


@dataclass(frozen=True)
class Refusal:
    """What is no command, and why: it is said to the agent."""

    why: str


def parse(action: Action) -> list[Command | Refusal]:
    """The commands of a turn, in order: its tool calls, or else the lines of its last code block, or else the lines at
    its end that have the form of an action. Empty where there is none of these."""
    if action.tool_calls:
        return [_of_call(call) for call in action.tool_calls[:MOST_ACTIONS]]
    return [_of_line(line) for line in lines_of(action.text)[:MOST_ACTIONS]]


def lines_of(text: str) -> list[str]:
    """The lines of a text that are actions by their form."""
    blocks = code_blocks(text, ("", "python", "py", "text"))
    if blocks:
        lines = [line.strip().rstrip(";") for line in blocks[-1].splitlines()]
        return [line for line in lines if _CALL.fullmatch(line)]
    found: list[str] = []
    for line in reversed(text.rstrip()[-MOST_CHARACTERS * MOST_ACTIONS :].splitlines()):
        line = line.strip().strip("`").rstrip(";")
        if not _CALL.fullmatch(line):
            break
        found.insert(0, line)
    return found


def _of_line(line: str) -> Command | Refusal:
    name = line.partition("(")[0]
    if len(line) > MOST_CHARACTERS:
        return Refusal(f"an action has at most {MOST_CHARACTERS} characters, not {len(line)}")
    try:
        call = ast.parse(line, mode="eval").body
        if not isinstance(call, ast.Call) or call.keywords:
            raise ValueError
        values = [ast.literal_eval(argument) for argument in call.args]
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return _wrong(name)
    return _command(name, values)


def _of_call(call: ToolCall) -> Command | Refusal:
    """A tool call by its arguments' names; numbers may come as texts."""
    if call.name not in HELP:
        return Refusal(f"there is no action {call.name[:40]!r}: take {', '.join(HELP)}")
    names = {"ref", "x", "y", "text", "key", "options", "to", "points", "pixels", "milliseconds"}
    given = {name: value for name, value in call.arguments.items() if value is not None}
    if set(given) - names or len(json.dumps(given, default=str)) > 2 * MOST_CHARACTERS:
        return _wrong(call.name)
    values: list[Any] = []
    for name in ("ref", "x", "y", "to"):
        if name in given:
            values.append(_number(given[name]))
    for name in ("points", "options"):
        if name in given:
            many = given[name] if isinstance(given[name], (list, tuple)) else [given[name]]
            values += map(_number, many) if name == "points" else many
    values += [given[name] for name in ("text", "key") if name in given]
    values += [_number(given[name]) for name in ("pixels", "milliseconds") if name in given]
    return _command(call.name, values)


def _number(value: Any) -> Any:
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,6}(\.[0-9]{1,6})?", value.strip()):
        return float(value)
    return value


def _wrong(name: str) -> Refusal:
    return Refusal(f"that is no {name}: write {HELP[name]}" + _coordinates(name))


def _coordinates(name: str) -> str:
    return "; for a reference you may write two coordinates" if "ref" in HELP[name] else ""


def _command(name: str, values: Sequence[Any]) -> Command | Refusal:
    """The command of these values: first numbers, then texts, then a number for `scroll`."""
    numbers: list[int] = []
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= 10**6:
            break
        numbers.append(round(value))
    rest = list(values[len(numbers) :])
    if not all(isinstance(text, str) for text in rest):
        return _wrong(name)
    made = _shaped(name, numbers, tuple(rest))
    if made is None or any(not 0 <= part <= SIDE for target in made.targets for part in target):
        return _wrong(name)
    return made


def _shaped(name: str, numbers: list[int], texts: tuple[str, ...]) -> Command | None:
    """The command, or None where there are too few or too many parts."""
    spot = (tuple(numbers),) if len(numbers) in (1, 2) else ()
    if name in ("click", "double_click", "hover"):
        return Command(name, spot) if spot and not texts else None
    if name == "type":
        return Command(name, spot, texts) if (spot or not numbers) and len(texts) == 1 else None
    if name == "select":
        return Command(name, spot, texts) if spot and texts else None
    if name == "press":
        return Command(name, (), texts) if not numbers and len(texts) == 1 and is_key(texts[0]) else None
    if name == "scroll":
        place = (tuple(numbers[:-1]),) if len(numbers) > 1 else ()
        return Command(name, place, (), numbers[-1]) if 1 <= len(numbers) <= 3 and not texts else None
    if name == "wait":
        fits = len(numbers) <= 1 and not texts and all(0 <= number <= 10_000 for number in numbers)
        return Command(name, (), (), sum(numbers)) if fits else None
    if texts or len(numbers) < 2 or (len(numbers) > 2 and len(numbers) % 2):
        return None
    pairs = tuple(zip(numbers[::2], numbers[1::2], strict=True))
    return Command(name, tuple((n,) for n in numbers) if len(numbers) == 2 else pairs)


def is_key(text: str) -> bool:
    """Whether it is a key of the keyboard, or one with modifiers such as Control+a."""
    *modifiers, key = text.split("+") if text != "+" else ["+"]
    named = key in NAMED_KEYS or (len(key) == 1 and key.isprintable())
    return named and all(modifier in MODIFIERS for modifier in modifiers)


def tools(refs: bool) -> tuple[Tool, ...]:
    """The actions as tools; without `refs` places are coordinates only."""
    where: dict[str, Any] = {"x": {"type": "integer"}, "y": {"type": "integer"}}
    if refs:
        where = {"ref": {"type": "integer", "description": "the element's number"}, **where}
    points = {"type": "array", "items": {"type": "integer"}, "description": "x, y, x, y, ..."}
    text, whole = {"type": "string"}, {"type": "integer"}
    drag = {"ref": whole, "to": whole, "points": points} if refs else {"points": points}
    place = "an element" if refs else "a point"
    spelled: list[tuple[str, str, Mapping[str, Any], list[str]]] = [
        ("click", f"Click {place}.", where, []),
        ("double_click", f"Double-click {place}.", where, []),
        ("hover", f"Move the mouse to {place}.", where, []),
        ("type", "Type a text in the place of what a field holds; without a place, where the cursor is.",
         {**where, "text": text}, ["text"]),
        ("press", "Press a key, such as Enter or Control+a.", {"key": text}, ["key"]),
        ("select", "Select options of a list.", {**where, "options": {"type": "array", "items": text}}, ["options"]),
        ("drag", "Drag with the mouse.", drag, []),
        ("scroll", "Scroll down (pixels more than 0) or up.", {**where, "pixels": whole}, ["pixels"]),
        ("wait", "Let time pass.", {"milliseconds": whole}, []),
    ]  # fmt: skip
    return tuple(
        Tool(name, said, {"type": "object", "properties": dict(given), "required": required})
        for name, said, given, required in spelled
    )
