"""Wrappers: worlds around worlds, one file each, named in the parameter `wrappers` that every environment takes.

`make("gymrl/TextWorld-v0", wrappers=["hints", {"name": "turn_limit", "turns": 6}])`; the first is the innermost. In a
recipe they stand in `env.params`. A name is that of a file here, or `module:Class` for a wrapper of one's own.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any

from gymrl.envs.environment import Environment
from gymrl.envs.registry import hints_of, misfit
from gymrl.envs.wrappers.base import Wrapper, as_return, settled, with_note

__all__ = ["Wrapper", "as_return", "names", "settled", "specifications", "with_note", "wrap", "wrapper_class"]

_NOT_WRAPPERS = frozenset({"base", "models"})


def names() -> tuple[str, ...]:
    """The wrappers that come with gymrl."""
    return tuple(info.name for info in pkgutil.iter_modules(__path__) if info.name not in _NOT_WRAPPERS)


def wrapper_class(name: str) -> type[Wrapper]:
    """The wrapper of that name, or of `module:Class`. Raises ValueError, which names the nearest one."""
    module, colon, attribute = name.partition(":")
    if not colon:
        if name not in names():
            near = difflib.get_close_matches(name, names(), 1, 0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"take {', '.join(names())}, or module:Class"
            raise ValueError(f"there is no wrapper {name!r}: {hint}")
        module, attribute = f"{__name__}.{name}", "".join(map(str.capitalize, name.split("_")))
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"the wrapper {name!r} cannot be imported ({error})") from error
    if not (isinstance(found, type) and issubclass(found, Wrapper)):
        raise ValueError(f"{name!r} is no wrapper: derive it from gymrl.envs.wrappers.Wrapper")
    return found


def specifications(wrappers: Any) -> list[dict[str, Any]]:
    """A list of names and tables in its one form: tables with a `name`. Raises ValueError for anything else."""
    if isinstance(wrappers, (str, Mapping)) or not isinstance(wrappers, Sequence):
        raise ValueError(
            f"wrappers is a list of names and tables with a name, such as "
            f'["hints", {{name = "turn_limit", turns = 6}}], not {wrappers!r}'
        )
    found = []
    for item in wrappers:
        table = {"name": item} if isinstance(item, str) else item
        if not isinstance(table, Mapping) or not isinstance(table.get("name"), str):
            raise ValueError(f"a wrapper is a name or a table with a name, not {item!r}")
        try:
            json.dumps(dict(table))
        except TypeError as error:
            raise ValueError(f"the wrapper {table['name']!r} takes JSON values alone ({error})") from None
        found.append(dict(table))
    return found


def wrap(world: Environment, wrappers: Sequence[Mapping[str, Any] | str]) -> Environment:
    """The world in its wrappers, the first innermost. Raises ValueError for a wrong name or option."""
    for table in specifications(wrappers):
        options = {name: value for name, value in table.items() if name != "name"}
        cls = wrapper_class(table["name"])
        taken = inspect.signature(cls).parameters
        known = [name for name in taken if name != "world"]
        for option in options:
            if option not in known:
                near = difflib.get_close_matches(option, known, 1, 0.3)
                hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(known) or 'none'}"
                raise ValueError(f"the wrapper {table['name']!r} has no option {option!r}: {hint}")
        for name in known:
            needed = taken[name].default is inspect.Parameter.empty and taken[name].kind in (
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                inspect.Parameter.KEYWORD_ONLY,
            )
            if needed and name not in options:
                raise ValueError(
                    f"the wrapper {table['name']!r} needs {name}: write "
                    f'{{name = "{table["name"]}", {name} = ...}}'
                )
        hints = hints_of(cls)
        for name, value in options.items():
            if name in hints and (wanted := misfit(value, hints[name])):
                raise ValueError(f"the wrapper {table['name']!r} takes {wanted} as {name}, not {value!r}")
        try:
            world = cls(world, **options)
        except TypeError as error:
            raise ValueError(f"the wrapper {table['name']!r} cannot be made: {error}") from error
    return world
