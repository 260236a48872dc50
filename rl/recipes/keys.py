"""The keys of a recipe: their defaults, what they mean, and which are tables that may be left out."""

from __future__ import annotations

import types
import typing
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from gymrl.rl.recipes.models import Choice, Part, Recipe, Section


@dataclass(frozen=True)
class Key:
    """A dotted key, its default as it would be written, and its meaning. `of` is the optional table or the choice
    that it is a setting of, empty for a key of every recipe."""

    name: str
    default: str
    meaning: str
    of: str = ""


def keys(model: type[BaseModel] = Recipe, prefix: str = "") -> dict[str, Any]:
    """Every dotted key of a recipe with its default; a table that may be left out is one key, and so is a choice."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        kind = field.annotation
        if _is(kind, (Choice, Part)):
            found[prefix + name] = field.default.name
        elif _is(kind, (BaseModel,)):
            found |= keys(typing.cast(type[BaseModel], kind), f"{prefix}{name}.")
        else:
            found[prefix + name] = field.get_default(call_default_factory=True)
    return found


def named(model: type[BaseModel] = Recipe, prefix: str = "") -> dict[str, str]:
    """The dotted keys that hold a part or a choice, which is something with a name and settings, and their default
    names; those of tables that may be left out included."""
    found: dict[str, str] = {}
    for name, field in model.model_fields.items():
        kind = field.annotation
        inner = _table(kind)
        if _is(kind, (Choice, Part)):
            found[prefix + name] = field.default.name
        elif inner is not None:
            found |= named(inner, f"{prefix}{name}.")
    return found


def described(model: type[BaseModel] = Recipe, prefix: str = "", of: str = "") -> list[Key]:
    """Every key there is with its meaning, those of optional tables and the settings of choices included."""
    found: list[Key] = []
    for name, field in model.model_fields.items():
        kind, key = field.annotation, prefix + name
        inner = _table(kind)
        if _is(kind, (Choice, Part)):
            chosen = field.default
            found.append(Key(key, _written(chosen.name), field.description or _line(inner), of))
            if inner is not None and issubclass(inner, Choice):
                settings = described(inner, f"{key}.", key)
                found += [setting for setting in settings if setting.name != f"{key}.name"]
        elif inner is not None and _is(kind, (BaseModel,)):
            found += described(inner, f"{key}.", of)
        elif inner is not None:
            found.append(Key(key, "left out", field.description or _line(inner), of))
            found += described(inner, f"{key}.", key)
        else:
            default = field.get_default(call_default_factory=True)
            shown = "needed" if field.is_required() else "left out" if default is None else _written(default)
            found.append(Key(key, shown, field.description or "", of))
    return found


def _table(kind: Any) -> type[BaseModel] | None:
    """The table that an annotation names, `X` or `X | None`."""
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    tables = [option for option in options if _is(option, (Section, Part))]
    return tables[0] if tables else None


def _is(kind: Any, bases: tuple[type, ...]) -> bool:
    return isinstance(kind, type) and issubclass(kind, bases)


def _line(model: type[BaseModel] | None) -> str:
    return " ".join((model.__doc__ or "").split("\n\n")[0].split()) if model is not None else ""


def _written(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {_written(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_written, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)
