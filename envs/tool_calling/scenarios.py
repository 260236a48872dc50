"""The 800 conversations of BFCL multi-turn: 200 scenarios in four categories, and which split each belongs to."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bfcl_eval.constants.default_prompts import DEFAULT_USER_PROMPT_FOR_ADDITIONAL_FUNCTION_FC as MORE_TOOLS

from gymrl.envs.records import stable_hash

CATEGORIES = ("base", "miss_func", "miss_param", "long_context")
DOMAIN = 50
"""Scenarios of one domain (files, vehicles, trading, travel), which follow each other in the data."""
SHARES = MappingProxyType({"test": 10, "val": 5, "train": 35})
"""Scenarios of each domain in each split."""


@dataclass(frozen=True)
class Scenario:
    """One conversation. `turns` are the user's requests in order, `truth` the right calls for each of them, as Python
    source; `withheld` the tools that are on offer only from a turn on, by that turn. `config` is shared: copy it
    before use."""

    number: int
    category: str
    turns: tuple[str, ...]
    truth: tuple[tuple[str, ...], ...]
    classes: tuple[str, ...]
    config: Mapping[str, Any]
    withheld: Mapping[int, tuple[str, ...]]

    @property
    def name(self) -> str:
        """BFCL's own id, such as `multi_turn_base_17`."""
        return f"multi_turn_{self.category}_{self.number}"

    @property
    def long(self) -> bool:
        """Whether the backends are filled up with what nobody asked for."""
        return self.category == "long_context"


def categories_of(text: str) -> tuple[str, ...]:
    """The categories that a parameter names: `all`, or some with commas between. Raises ValueError for others."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["all"]:
        return CATEGORIES
    for name in names:
        if name not in CATEGORIES:
            near = difflib.get_close_matches(name, CATEGORIES, 1, 0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(CATEGORIES)}, and all"
            raise ValueError(f"unknown category {name!r}: {hint}")
    if not names:
        raise ValueError(f"category names one at least: {', '.join(CATEGORIES)}, or all")
    return tuple(name for name in CATEGORIES if name in names)


@cache
def scenarios(category: str) -> tuple[Scenario, ...]:
    """The 200 conversations of a category, by number."""
    truths = {
        row["id"]: row["ground_truth"] for row in _rows(f"possible_answer/BFCL_v4_multi_turn_{category}.json")
    }
    found = []
    for row in _rows(f"BFCL_v4_multi_turn_{category}.json"):
        truth = tuple(map(tuple, truths[row["id"]]))
        withheld = {
            int(turn): tuple(name for name in names if not _needed(name, truth[: int(turn)]))
            for turn, names in row.get("missed_function", {}).items()
        }
        turns = tuple(
            MORE_TOOLS if number in withheld else "\n".join(message["content"] for message in messages)
            for number, messages in enumerate(row["question"])
        )
        found.append(Scenario(
            int(row["id"].rpartition("_")[2]), category, turns, truth, tuple(row["involved_classes"]),
            row["initial_config"], withheld,
        ))  # fmt: skip
    return tuple(sorted(found, key=lambda scenario: scenario.number))


@cache
def split_numbers() -> Mapping[str, tuple[int, ...]]:
    """The numbers of the scenarios in each split, in the order of its tasks.

    A number is one scenario in all four categories, so it has one split. So have scenarios that begin with the same
    state of the world or hold the same request. Every domain gives the same share to every split.
    """
    found: dict[str, list[int]] = {split: [] for split in SHARES}
    for group in sorted(_groups(), key=lambda group: stable_hash("bfcl multi-turn", group)):
        domain = group[0] // DOMAIN
        for split, share in SHARES.items():
            if sum(number // DOMAIN == domain for number in found[split]) + len(group) <= share:
                found[split] += group
                break
    return {split: tuple(sorted(row, key=lambda n: stable_hash("order", n))) for split, row in found.items()}


def _groups() -> list[list[int]]:
    """Scenarios that are related, directly or by others."""
    group: dict[int, list[int]] = {scenario.number: [scenario.number] for scenario in scenarios("base")}
    seen: dict[str, int] = {}
    for category in CATEGORIES:
        for scenario in scenarios(category):
            keys = [
                json.dumps(scenario.config, sort_keys=True),
                *(turn for turn in scenario.turns if turn != MORE_TOOLS),
            ]
            for key in keys:
                one, other = group[seen.setdefault(key, scenario.number)], group[scenario.number]
                if one is not other:
                    one += other
                    for number in other:
                        group[number] = one
    return [sorted(row) for row in {id(row): row for row in group.values()}.values()]


def _needed(name: str, truth: tuple[tuple[str, ...], ...]) -> bool:
    """Whether right calls need a tool already: `tail` in miss_func_49, which nobody could win without it."""
    return any(source.startswith(f"{name}(") for calls in truth for source in calls)


def data_folder() -> Path:
    spec = find_spec("bfcl_eval")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "data"


def _rows(file: str) -> list[dict[str, Any]]:
    text = (data_folder() / file).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line.strip()]
