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

from gymrl.envs import imports
from gymrl.envs.blame import where
from gymrl.envs.environment import Environment
from gymrl.envs.registry import check_names, hints_of, misfit
from gymrl.envs.wrappers.base import Wrapper, as_return, is_whole, settled, with_note

__all__ = ["Wrapper", "as_return", "names", "settled", "specifications", "with_note", "wrap", "wrapper_class"]

_NOT_WRAPPERS = frozenset({"base", "models"})


def names() -> tuple[str, ...]:
    """The wrappers that come with gymrl."""
    return tuple(info.name for info in pkgutil.iter_modules(__path__) if info.name not in _NOT_WRAPPERS)


def wrapper_class(name: str) -> type[Wrapper]:
    """The wrapper of that name, or of `module:Class`. Raises ValueError, which names the nearest one."""
    if ":" in name:
        found = imports.load(f"the wrapper {name!r}", name, "Class")
    elif name in names():
        module = importlib.import_module(f"{__name__}.{name}")
        found = getattr(module, "".join(map(str.capitalize, name.split("_"))))
    else:
        near = difflib.get_close_matches(name, names(), 1, 0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"take {', '.join(names())}, or module:Class"
        raise ValueError(f"there is no wrapper {name!r}: {hint}")
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
    """The world in its wrappers, the first innermost. Raises ValueError for a wrong name or option, and for a wrapper
    of one's own that cannot be made."""
    for table in specifications(wrappers):
        options = {name: value for name, value in table.items() if name != "name"}
        world = _made(f"the wrapper {table['name']!r}", wrapper_class(table["name"]), world, options)
    return world


def _made(wrapper: str, cls: type[Wrapper], world: Environment, options: dict[str, Any]) -> Wrapper:
    given = list(inspect.signature(cls).parameters.values())
    if not given or given[0].kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD):
        raise ValueError(f"{wrapper} takes no world: write def __init__(self, world, ...) in {cls.__name__}")
    taken = {each.name: each for each in given[1:] if each.kind not in _COLLECTING}
    if all(each.kind is not each.VAR_KEYWORD for each in given):
        for option in options:
            if option not in taken:
                near = difflib.get_close_matches(option, taken, 1, 0.3)
                hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(taken) or 'none'}"
                raise ValueError(f"{wrapper} has no option {option!r}: {hint}")
    for name, wanting in taken.items():
        if wanting.default is wanting.empty and name not in options:
            raise ValueError(f"{wrapper} needs {name}: write {{name = {wrapper.split()[-1]}, {name} = ...}}")
    hints = hints_of(cls)
    for name, value in options.items():
        if name in hints and (wanted := misfit(value, hints[name])):
            raise ValueError(f"{wrapper} takes {wanted} as {name}, not {value!r}")
    unmade = f"{wrapper} is not made whole: call super().__init__(world) first in {cls.__name__}.__init__()"
    try:
        made = cls(world, **options)
    except TypeError as error:
        mend = f": call super().__init__(world) in {cls.__name__}.__init__()"
        mend = mend if "Wrapper.__init__()" in str(error) else ""
        raise ValueError(f"{wrapper} cannot be made: {error}{_place(error)}{mend}") from error
    except AttributeError as error:
        if isinstance(error.obj, cls) and "world" not in vars(error.obj):
            raise ValueError(unmade) from error
        raise
    if not is_whole(made):
        raise ValueError(unmade)
    check_names(wrapper, made)
    return made


def _place(error: BaseException) -> str:
    place = where(error)
    return f" ({place})" if place else ""


_COLLECTING = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
