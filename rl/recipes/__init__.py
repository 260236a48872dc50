"""Recipes: typed TOML files that say what a run does."""

from __future__ import annotations

import copy
import difflib
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from gymrl.rl.recipes.checks import check
from gymrl.rl.recipes.keys import Key, described, keys, named
from gymrl.rl.recipes.models import Recipe

__all__ = ["Key", "Recipe", "RecipeError", "algorithms", "described", "dump", "keys", "load", "parse", "shipped"]


class RecipeError(ValueError):
    """A recipe, or an override of one of its keys, is wrong; the text names the mend."""


BASE = "quickstart"
"""What an algorithm's recipe is laid over where it is run by its own name."""


def shipped() -> dict[str, Path]:
    """The recipes that come with the package, by name: whole ones, then one for each algorithm."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.toml"))} | algorithms()


def algorithms() -> dict[str, Path]:
    """The recipes of single algorithms: what `algo=NAME` changes in any other recipe."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "algorithms").glob("*.toml"))}


def load(recipe: str | Path, overrides: Iterable[str] = (), resumed: bool = False) -> Recipe:
    """Read a shipped recipe by name or a TOML file by path, and apply `key.sub=value` overrides.

    An algorithm's recipe is laid over the quickstart's. `resumed`: a run goes on, which has its own copy of the
    demonstrations. Raises RecipeError naming what is wrong and the nearest name.
    """
    if str(recipe) in algorithms():
        data = {**_read(shipped()[BASE]), "name": str(recipe)}
        return parse(data, [f"algo={recipe}", *overrides])
    path = shipped().get(str(recipe), Path(recipe))
    try:
        data = _read(path)
    except (FileNotFoundError, IsADirectoryError):
        if path.suffix == ".toml" or len(path.parts) > 1:
            kind = "a folder, not a recipe's file" if path.is_dir() else "no such file"
            raise RecipeError(f"{recipe} is {kind}: name a TOML file, or a recipe of `gymrl train --list`") from None
        near = difflib.get_close_matches(str(recipe), shipped(), 1, 0.4)
        hint = f"did you mean {near[0]!r}?" if near else "`gymrl train --list` shows what there is"
        raise RecipeError(f"there is no recipe {str(recipe)!r}: {hint}") from None
    data.setdefault("name", path.stem)
    return parse(data, overrides, resumed)


def parse(data: dict[str, Any], overrides: Iterable[str] = (), resumed: bool = False) -> Recipe:
    """Check recipe data. Overrides are `key.sub=value` with a TOML value; what is not TOML is taken as a string.

    An override of env.id with another environment clears env.params and sft.params first: they are the old one's.
    `algo` lays an algorithm's recipe under the data's own keys; as an override it goes over them, and the other
    overrides over it.
    """
    pairs = []
    for override in overrides:
        key, sign, value = override.partition("=")
        if not sign or not key:
            raise RecipeError(f"an override is written key.sub=value, not {override!r}")
        name = key.strip()
        pairs.append((SHORT.get(name, name).split("."), _value(value.strip()), override))
    before = _env_id(data)
    if any(path == ["env", "id"] and value != before for path, value, _ in pairs):
        for section in ("env", "sft"):
            if isinstance(data.get(section), dict):
                data[section].pop("params", None)
    chosen = [value for path, value, _ in pairs if path == ["algo"]]
    if chosen:
        rl = data.get("rl")
        if isinstance(rl, dict):
            data = {**data, "rl": {key: value for key, value in rl.items() if key not in ALGORITHM_KEYS}}
        data = _merge(data, _algorithm(chosen[-1]))
    elif data.get("algo"):
        data = _merge(_algorithm(data["algo"]), data)
    for path, value, override in pairs:
        _set(data, path, value, override)
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(_explain(error)) from None
    try:
        given = {".".join(path) for path, _, _ in pairs}
        check(recipe, {"sft.data", "preference.data"} - given if resumed else ())
    except ValueError as error:
        raise RecipeError(str(error)) from None
    return recipe


FILES = ("sft.data", "preference.data", "model.path", "rl.kl.ref")
"""Keys that may name a file or a folder; so may the source of a part."""


def anchored(recipe: Recipe) -> Recipe:
    """The recipe with whole paths for what it names by relative ones, so that it means the same from every folder."""
    data = recipe.model_dump(exclude_none=True)

    def table(key: str) -> tuple[dict[str, Any], str]:
        *path, last = key.split(".")
        at = data
        for part in path:
            at = at.get(part, {})
        return at, last

    for key in FILES:
        at, last = table(key)
        if at.get(last) and Path(at[last]).exists():
            at[last] = str(Path(at[last]).resolve())
    for key in named():
        at, last = table(key)
        source, _, short = at[last]["name"].rpartition(":") if last in at else ("", "", "")
        if source.endswith(".py"):
            at[last]["name"] = f"{Path(source).resolve()}:{short}"
    return Recipe.model_validate(data)


SHORT = {"data": "sft.data"}
"""Overrides that have a shorter name too."""
ALGORITHM_KEYS = ("advantage", "credit", "loss", "aggregation", "critic", "prefix")
"""Keys of [rl] that an algorithm's recipe decides: laid over another one, those of the other are forgotten."""


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not TOML: {error}") from error


def _algorithm(name: Any) -> dict[str, Any]:
    known = algorithms()
    if name not in known:
        near = difflib.get_close_matches(str(name), known, 1, 0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        raise RecipeError(
            f"algo: there is no algorithm {name!r}: {hint} (one of your own is named by its part, e.g. rl.advantage)"
        )
    return _read(known[name])


def _merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Both, table by table; where both have a value, that of `over`. A part that is named anew keeps nothing."""
    found = dict(under)
    for key, value in over.items():
        old = found.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and "name" not in value:
            found[key] = _merge(old, value)
        else:
            found[key] = copy.deepcopy(value)
    return found


def dump(recipe: Recipe) -> str:
    """The recipe as TOML, every key resolved; `load` reads it back. Keys that are unset (None) are left out."""
    return tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True))


def _env_id(data: dict[str, Any]) -> Any:
    section = data.get("env")
    return (section if isinstance(section, dict) else {}).get("id", keys()["env.id"])


def _set(data: dict[str, Any], path: list[str], value: Any, override: str) -> None:
    parts = named()
    for depth, part in enumerate(path[:-1], 1):
        here = ".".join(path[:depth])
        if here in parts:  # a part may be named alone, or not at all: it then is the default one
            known = data.get(part, parts[here])
            if isinstance(known, str):
                data[part] = {"name": known}
            elif isinstance(known, dict):
                known.setdefault("name", parts[here])
        data = data.setdefault(part, {})
        if not isinstance(data, dict):
            raise RecipeError(f"{override!r}: {part!r} is a value, not a section")
    data[path[-1]] = value


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


OPTIONS = ("out", "resume", "processes", "shard")
"""Options of `gymrl train` that are easily taken for keys."""

_KIND = re.compile(r"constrained-|literal\[|(int|float|str|bool)$")


def _explain(error: ValidationError) -> str:
    parts: list[str] = []
    every = [one.name for one in described()]
    for item in error.errors():
        where = [str(part) for part in item["loc"]]
        key = ".".join(where)
        if where and _KIND.match(where[-1]) and item["type"] != "extra_forbidden":
            # Of a key that takes several kinds of values pydantic names each kind below the key: one line does.
            parts.append(
                f"{'.'.join(where[:-1])} cannot be {item['input']!r}: `gymrl train --keys` says what it takes"
            )
            continue
        if item["type"] == "literal_error" and isinstance(item["input"], str):
            options = re.findall(r"'([^']+)'", str(item["ctx"]["expected"]))
            close = difflib.get_close_matches(item["input"], options, 1, 0.5)
            hint = f"did you mean {close[0]!r}?" if close else f"take {', '.join(options)}"
            parts.append(f"{key} cannot be {item['input']!r}: {hint}")
            continue
        if item["type"] == "extra_forbidden":
            sections = {k.rsplit(".", 1)[0] for k in every if "." in k}
            among = sections if isinstance(item["input"], dict) else every
            near = difflib.get_close_matches(key, among, 1, 0.4)
            tail = difflib.get_close_matches(key.split(".")[-1], [k.split(".")[-1] for k in every], 1, 0.6)
            same = [k for k in every if tail and k.split(".")[-1] == tail[0]]
            guess = repr(near[0]) if near else (repr(same[0]) if same else "")
            if key in OPTIONS:
                guess = f"the option --{key}"
            parts.append(f"unknown recipe key {key!r}" + (f": did you mean {guess}?" if guess else ""))
        else:
            parts.append(
                f"{key}: {item['msg'].removeprefix('Value error, ')} (got {item['input']!r})"[:300]
                if key
                else item["msg"].removeprefix("Value error, ")
            )
    return "; ".join(dict.fromkeys(parts))
