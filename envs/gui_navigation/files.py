"""A graph of one's own: a JSON file of screens and icons.

    {"home": "Start",
     "screens": {"Start": {"icons": [{"name": "gear", "to": "Settings", "box": [20, 60, 48, 48]}, ...]},
                 "Settings": {"back": "Start", "icons": [...]}}}

`box` is [left, top, width, height] in pixels; where no icon of a screen has one they are laid out in rows. `back` and
`to` may be left out: the button or icon then does nothing. `size` is [width, height], [360, 640] by default.
"""

from __future__ import annotations

import difflib
import json
import random
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from gymrl.envs.gui_navigation.graph import BAR, HEIGHT, WIDTH, Box, Errand, Graph, Icon, Screen
from gymrl.envs.records import SPLIT_SHARES, TaskSpec, stable_hash

MOST_SCREENS = 1000


class FileGraph:
    """Every pair of two screens of a file's graph, of which the second can be reached from the first, is a task.

    A pair belongs to the split that the hash of its names says. Raises ValueError for what is no graph, naming file and
    place.
    """

    def __init__(self, path: str) -> None:
        place = Path(path).expanduser()
        try:
            stamp = place.stat()
        except OSError:
            raise ValueError(
                f"graph = {path!r}: there is no such file; name a JSON file of screens"
            ) from None
        self.graph, self.by_split, self.longest = _load(
            str(place.resolve()), stamp.st_size, stamp.st_mtime_ns
        )
        self.sizes = {split: len(pairs) for split, pairs in self.by_split.items()}
        self.most = len(self.graph.screens)
        if not self.sizes["train"]:
            raise ValueError(
                f"{path}: no screen can be reached from another that is for training: add screens and links"
            )

    def draw(self, task: TaskSpec, rng: random.Random) -> Errand:
        return Errand(self.graph, *self.by_split[task.split][task.index])


Pairs = Mapping[str, tuple[tuple[str, str], ...]]


@lru_cache(8)
def _load(path: str, size: int, changed: int) -> tuple[Graph, Pairs, int]:
    graph = read(Path(path))
    found: dict[str, list[tuple[int, str, str]]] = {split: [] for split in SPLIT_SHARES}
    longest = 1
    for goal in graph.screens:
        for start, distance in graph.distances(goal).items():
            if distance:
                key = stable_hash("gui", start, goal)
                split = next(name for name, (low, high) in SPLIT_SHARES.items() if low <= key % 100 < high)
                found[split].append((key, start, goal))
                longest = max(longest, distance)
    by_split = {
        split: tuple((start, goal) for _, start, goal in sorted(pairs)) for split, pairs in found.items()
    }
    return graph, by_split, longest


def read(path: Path) -> Graph:
    """The graph of a file. Raises ValueError, which names the line or place and the mend."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {error.lineno}: not JSON ({error.msg} at column {error.colno})"
        ) from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON in UTF-8 ({error})") from None
    data = _fields(data, f"{path}", {"home", "screens"}, {"size"})
    where = f"{path}, screens"
    screens = _fields(data["screens"], where, set(), None)
    if len(screens) < 2:
        raise ValueError(f"{where}: a graph has two screens or more, this one has {len(screens)}")
    if len(screens) > MOST_SCREENS:
        raise ValueError(f"{where}: a graph has at most {MOST_SCREENS} screens, this one has {len(screens)}")
    wide, high = _numbers(data.get("size", [WIDTH, HEIGHT]), f"{path}, size", 2)
    if not 120 <= wide <= 4000 or not 160 <= high <= 4000:
        raise ValueError(f"{path}, size: a screen is 120 x 160 to 4000 x 4000 pixels, not {wide} x {high}")
    home = _screen(data["home"], screens, f"{path}, home")
    found = {
        name: _read_screen(name, value, screens, f"{where}.{name}", wide, high)
        for name, value in screens.items()
    }
    return Graph(home, found, wide, high)


def _read_screen(
    name: str, value: Any, screens: Mapping[str, Any], where: str, wide: int, high: int
) -> Screen:
    _name(name, where)
    value = _fields(value, where, set(), {"icons", "back"})
    back = value.get("back")
    back = None if back is None else _screen(back, screens, f"{where}.back")
    listed = value.get("icons", [])
    if not isinstance(listed, list):
        raise ValueError(f"{where}.icons: take a list of icons")
    rows = [_fields(row, f"{where}.icons[{i}]", {"name"}, {"to", "box"}) for i, row in enumerate(listed)]
    boxes = _laid_out(rows, where, wide, high)
    icons: list[Icon] = []
    for number, (row, box) in enumerate(zip(rows, boxes, strict=True)):
        here = f"{where}.icons[{number}]"
        _name(row["name"], f"{here}.name")
        if any(icon.name.casefold() == row["name"].casefold() for icon in icons):
            raise ValueError(
                f"{here}: a second icon named {row['name']!r} on one screen: give it another name"
            )
        to = row.get("to")
        icons.append(Icon(row["name"], box, None if to is None else _screen(to, screens, f"{here}.to")))
    return Screen(name, tuple(icons), back)


def _laid_out(rows: list[dict[str, Any]], where: str, wide: int, high: int) -> list[Box]:
    given = [number for number, row in enumerate(rows) if "box" in row]
    if not given:
        columns = max(1, min(4, wide // 80), -(-len(rows) // max(1, (high - 2 * BAR) // 70)))
        cell, tall = wide // columns, min(90, max(1, (high - 2 * BAR) // max(1, -(-len(rows) // columns))))
        side = min(48, cell - 4, tall - 18)
        if rows and side < 8:
            raise ValueError(
                f"{where}: {len(rows)} icons do not fit on {wide} x {high} pixels: take a larger size, or fewer"
            )
        return [
            Box(cell * (i % columns) + (cell - side) // 2, BAR + tall * (i // columns) + 2, side, side)
            for i in range(len(rows))
        ]
    if len(given) < len(rows):
        missing = next(number for number in range(len(rows)) if number not in given)
        raise ValueError(
            f"{where}.icons[{missing}]: it has no box, others of its screen have: give all icons one, or none"
        )
    boxes: list[Box] = []
    for number, row in enumerate(rows):
        here = f"{where}.icons[{number}].box"
        box = Box(*_numbers(row["box"], here, 4))
        if box.width < 1 or box.height < 1 or box.left < 0 or box.left + box.width > wide:
            raise ValueError(
                f"{here}: [left, top, width, height] lies within 0 and {wide} across, not {row['box']}"
            )
        if box.top < BAR or box.top + box.height > high - BAR:
            raise ValueError(
                f"{here}: an icon stands between the bars, from {BAR} to {high - BAR} down, not {row['box']}"
            )
        for other, before in enumerate(boxes):
            if _overlap(box, before):
                raise ValueError(f"{here}: it lies over the box of icons[{other}]: move one of them")
        boxes.append(box)
    return boxes


def _overlap(a: Box, b: Box) -> bool:
    across = a.left < b.left + b.width and b.left < a.left + a.width
    return across and a.top < b.top + b.height and b.top < a.top + a.height


def _fields(value: Any, where: str, needed: set[str], others: set[str] | None) -> dict[str, Any]:
    """The value as an object with these fields; any further ones where `others` is None."""
    if not isinstance(value, dict):
        raise ValueError(f"{where}: take an object, {{...}}, not {json.dumps(value)[:40]}")
    for name in sorted(needed - set(value)):
        raise ValueError(f"{where}: {name!r} is missing")
    if others is not None:
        for name in value:
            if name not in needed | others:
                near = difflib.get_close_matches(name, needed | others, 1, 0.5)
                hint = (
                    f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(sorted(needed | others))}"
                )
                raise ValueError(f"{where}: unknown field {name!r}: {hint}")
    return value


def _screen(value: Any, screens: Mapping[str, Any], where: str) -> str:
    if not isinstance(value, str) or value not in screens:
        near = difflib.get_close_matches(str(value), screens, 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else "name one of 'screens'"
        raise ValueError(f"{where}: there is no screen {value!r}: {hint}")
    return value


def _name(value: Any, where: str) -> None:
    if (
        not isinstance(value, str)
        or not value.strip()
        or value != value.strip()
        or len(value) > 60
        or not value.isprintable()
    ):
        raise ValueError(
            f"{where}: a name is a printable text of 1 to 60 characters without spaces around it, not {value!r}"
        )


def _numbers(value: Any, where: str, count: int) -> list[int]:
    if not isinstance(value, list) or len(value) != count or any(type(number) is not int for number in value):
        raise ValueError(f"{where}: take {count} whole numbers, not {json.dumps(value)[:60]}")
    return value
