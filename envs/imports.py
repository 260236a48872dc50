"""What a user names as `module:thing`: found as `python -m` finds it, but with the working directory looked in last."""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.machinery
import os
import sys
from types import ModuleType
from typing import Any

from gymrl.envs.blame import told


class NoModule(ModuleNotFoundError):
    """There is no module of that name; the text is a sentence that names the mend."""


def load_module(name: str) -> ModuleType:
    """Import a module. The working directory is searched where Python finds it nowhere else, and then stays the last
    place of `sys.path`, so that nothing in it hides what is installed.

    Raises what the module raises, and NoModule where there is none of that name.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not _is_part(error.name, name):
            raise  # it is there, and needs another one
        missing = error
    here = _here()
    if here and not {here, ""} & set(sys.path) and _file_in(here, name):
        sys.path.append(here)
        importlib.invalidate_caches()
        return load_module(name)
    raise NoModule(_unfound(name, here), name=missing.name) from missing


def load(what: str, path: str, kind: str = "function") -> Any:
    """The thing that `module:thing` names. Raises ValueError, which begins with `what`, where there is none."""
    module, sign, name = path.partition(":")
    if not sign or not module or not name:
        raise ValueError(f"{what} names no {kind}: write module:{kind}")
    found = module_of(what, module)
    try:
        return functools.reduce(getattr, name.split("."), found)
    except AttributeError as error:
        raise ValueError(f"{what} cannot be imported: {_without(found, name)}") from error


def module_of(what: str, name: str) -> ModuleType:
    """`load_module` for a user's own: raises ValueError alone, which begins with `what` and names the mend."""
    if name.endswith(".py") or os.sep in name:
        dotted = name.removesuffix(".py").strip("./").replace(os.sep, ".")
        raise ValueError(f"{what} names a file: name its module, as in {dotted}:NAME")
    if not name or name.startswith("."):
        raise ValueError(f"{what} names no module: write module:NAME")
    try:
        return load_module(name)
    except NoModule as error:
        raise ValueError(f"{what} cannot be imported: {error}") from error
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{what} cannot be imported: {told(error)}: install it, or mend the import"
        ) from error
    except (Exception, SystemExit) as error:
        raise ValueError(f"{what} cannot be imported, as {name} raised {told(error)}: mend it") from error


def _is_part(missing: str | None, name: str) -> bool:
    """Whether what is missing is the module of that name, or a package that it lies in."""
    return missing is not None and f"{name}.".startswith(f"{missing}.")


def _here() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return ""


def _file_in(folder: str, name: str) -> str:
    """Where the first package or module of a dotted name is in a folder; empty where it is not."""
    importlib.invalidate_caches()
    found = importlib.machinery.PathFinder.find_spec(name.partition(".")[0], [folder])
    if found is None:
        return ""
    return found.origin or next(iter(found.submodule_search_locations or ()), "")


def _unfound(name: str, here: str) -> str:
    looked = f"nor in the working directory ({here})" if here else "and there is no working directory"
    first = name.partition(".")[0]
    if hidden := _hidden(first, here):
        return f"there is no module {name!r} in {_place(sys.modules[first])}, which hides {hidden}: rename that one"
    return (
        f"there is no module {name!r} on Python's path, {looked}: run the command in its folder, put that folder "
        "on PYTHONPATH, install its package, or mend the name"
    )


def _without(module: ModuleType, name: str) -> str:
    """A sentence for a module that lacks a thing."""
    text = f"{module.__name__} ({_place(module)}) has no {name!r}"
    if hidden := _hidden(module.__name__.partition(".")[0], _here()):
        return f"{text}, and hides {hidden}: rename that one"
    near = difflib.get_close_matches(
        name, [each for each in vars(module) if not each.startswith("_")], 1, 0.6
    )
    return f"{text}: did you mean {near[0]!r}?" if near else f"{text}: write it there, or mend the name"


def _hidden(first: str, here: str) -> str:
    """A module of that name in the working directory, where another one of that name was imported; else empty."""
    loaded, mine = sys.modules.get(first), _file_in(here, first) if here else ""
    if loaded is None or not mine:
        return ""
    own = getattr(loaded, "__file__", None) or next(iter(getattr(loaded, "__path__", ())), "")
    return "" if own and os.path.realpath(own) == os.path.realpath(mine) else mine


def _place(module: ModuleType) -> str:
    return getattr(module, "__file__", None) or next(
        iter(getattr(module, "__path__", ())), "built into Python"
    )
