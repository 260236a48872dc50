"""Which environments there are: ours, and those of installed packages (entry-point group `gymrl.envs`)."""

from __future__ import annotations

import difflib
import importlib
import inspect
import numbers
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.metadata import entry_points
from typing import Any

import gymnasium

from gymrl.envs import imports
from gymrl.envs.blame import told
from gymrl.envs.environment import Environment
from gymrl.envs.gym import GymEnv
from gymrl.envs.records import SPLIT_SHARES

GROUP = "gymrl.envs"
OURS = "gymrl"
"""The source of what no installed package has registered."""


class UnknownEnvironment(ValueError):
    """No environment of that id is registered."""


class MissingExtra(ImportError):
    """An environment needs a package that is not installed."""


@dataclass(frozen=True)
class EnvEntry:
    """A registered environment: its id, how to get its class, and where it came from."""

    id: str
    load: Callable[[], type[Environment]]
    source: str = OURS
    extra: str | None = None
    defaults: dict[str, Any] = field(default_factory=dict)

    def cls(self) -> type[Environment]:
        """The class. Raises MissingExtra if a package it needs is not there, ValueError if it is no environment."""
        try:
            cls = self.load()
        except MissingExtra:  # it names a mend of its own
            raise
        except ImportError as error:
            if isinstance(error, imports.NoModule):
                raise MissingExtra(f"{self.id} cannot be imported: {error}") from error
            by_hand = self.source == OURS and not self.id.startswith("gymrl/")
            mend = "install what it needs, or mend the import" if by_hand else f"reinstall {self.source}"
            mend = f'pip install "gymrl[{self.extra}]"' if self.extra else mend
            raise MissingExtra(f"{self.id} cannot be imported ({error}): {mend}") from error
        except SystemExit as error:
            raise ValueError(
                f"{self.id}: its module raised SystemExit({error.code!r}) as it was imported"
            ) from error
        if not (isinstance(cls, type) and issubclass(cls, Environment)):
            raise ValueError(f"{self.id}: {getattr(cls, '__qualname__', repr(cls))} {_NO_ENVIRONMENT}")
        _check_runs(self.id, cls)
        return cls


_NO_ENVIRONMENT = "is no subclass of gymrl.envs.Environment"
_ENTRIES: dict[str, EnvEntry] = {}


def register(
    env_id: str,
    cls: type[Environment] | str,
    *,
    source: str = OURS,
    extra: str | None = None,
    defaults: dict[str, Any] | None = None,
) -> None:
    """Register a class, or the `module:Class` it is found at, under an id such as `acme/Countdown-v0`.

    Registering an id again replaces it. `defaults` are parameters of the environment; `extra` names the
    extra of ours that installs what it needs. Raises ValueError for an id that Gymnasium does not take.
    """
    load = (
        partial(_import, env_id, cls, source == OURS and not extra) if isinstance(cls, str) else (lambda: cls)
    )
    if env_id in gymnasium.registry:
        del gymnasium.registry[env_id]
    try:
        gymnasium.register(
            env_id, entry_point=partial(make, env_id), disable_env_checker=True, order_enforce=False
        )
    except gymnasium.error.RegistrationError as error:
        raise ValueError(
            f"{env_id!r} cannot be registered beside another of that name, as one of the two has no version: give "
            "both a version, as in NAME-v0"
        ) from error
    except gymnasium.error.Error as error:
        raise ValueError(
            f"{env_id!r} is no id of an environment: write NAME-v0 or namespace/NAME-v0 in letters, digits, '_' and "
            "'-', in NAME also '.'"
        ) from error
    _ENTRIES[env_id] = EnvEntry(env_id, load, source, extra, dict(defaults or {}))


def registered() -> dict[str, EnvEntry]:
    """Every environment by id, those of installed packages included."""
    _discover()
    return dict(sorted(_ENTRIES.items()))


def entry(env_id: str) -> EnvEntry:
    """The entry of that id. Raises UnknownEnvironment, which names the nearest id."""
    entries = registered()
    if env_id in entries:
        return entries[env_id]
    near = difflib.get_close_matches(env_id, entries, 1, 0.6) or _alike(env_id, entries)
    hint = "`gymrl envs list` shows what there is; one of your own is there once its package is installed "
    hint += "(pip install -e FOLDER)"
    if near:
        hint = f"did you mean {near[0]!r}?"
    elif ":" in env_id or env_id.endswith(".py"):
        hint = "an environment has an id, such as acme/Maze-v0, by which its installed package is found: "
        hint += "`gymrl envs new acme/Maze` makes such a package, for your class to be put into"
    raise UnknownEnvironment(f"unknown environment {env_id!r}: {hint}")


def _alike(env_id: str, entries: Iterable[str]) -> list[str]:
    """The id whose name alone, in any case, is nearest: `textworld` means gymrl/TextWorld-v0."""
    names = {re.sub(r"-v\d+$", "", entry.rpartition("/")[2]).lower(): entry for entry in entries}
    asked = re.sub(r"-v\d+$", "", env_id.rpartition("/")[2]).lower()
    return [names[name] for name in difflib.get_close_matches(asked, names, 1, 0.8)]


def make(env_id: str, *, split: str = "train", render_mode: str | None = None, **params: Any) -> GymEnv:
    """Make one environment. Raises UnknownEnvironment, MissingExtra, and ValueError for a wrong parameter."""
    found = entry(env_id)
    cls = found.cls()
    params = {**found.defaults, **params}
    known = parameters(cls)
    wrappers = [] if "wrappers" in known else params.pop("wrappers", [])
    for name in params:
        if name not in known and not any(p.kind is p.VAR_KEYWORD for p in known.values()):
            near = difflib.get_close_matches(name, [*known, "wrappers"], 1, 0.3)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(known) or 'none'}."
            raise ValueError(f"{env_id} has no parameter {name!r}: {hint}")
    hints = hints_of(cls)
    for name, value in params.items():
        if name in hints and (wanted := misfit(value, hints[name])):
            raise ValueError(f"{env_id}: parameter {name!r} takes {wanted}, not {value!r}")
    for name, parameter in known.items():
        needed = parameter.default is parameter.empty and parameter.kind not in _COLLECTING
        if needed and name not in params:
            raise ValueError(
                f"{env_id} needs the parameter {name!r}: give --param {name}=... (in Python {name}=...), "
                f"or a default in {cls.__name__}.__init__"
            )
    try:
        world = cls(**params)
    except SystemExit as error:
        raise ValueError(
            f"{env_id}: __init__() raised SystemExit({error.code!r}): raise ValueError"
        ) from error
    except TypeError as error:
        if not params:
            raise
        given = ", ".join(f"{name} = {value!r}" for name, value in params.items())
        raise ValueError(f"{env_id} cannot be made with {given}: {error}") from error
    except AttributeError as error:
        if error.name in TAKEN and isinstance(error.obj, cls):
            raise ValueError(
                f"{env_id}: __init__() asks for self.{error.name}, which is there from reset() on: draw the task there"
            ) from error
        raise
    check_names(env_id, world)
    _check_runs(env_id, world)
    _check_turns(env_id, world)
    _check_identity(env_id, world)
    if wrappers:
        from gymrl.envs.wrappers import specifications, wrap

        params["wrappers"] = specifications(wrappers)
        world = wrap(world, params["wrappers"])
        _check_turns(f"{env_id} in {params['wrappers'][-1]['name']}", world)
        return GymEnv(env_id, world, params, split, render_mode, params["wrappers"][-1]["name"])
    return GymEnv(env_id, world, params, split, render_mode)


TAKEN = ("task", "rng")
"""What is set for every episode, before `reset`."""
_METHODS = tuple(name for name, value in vars(Environment).items() if inspect.isfunction(value))


def check_names(name: str, world: Environment) -> None:
    """Refuse a world that has used names of the contract for something else."""
    for taken in TAKEN:
        if taken in getattr(world, "__dict__", ()):
            raise ValueError(
                f"{name}: __init__() sets self.{taken}, which is set for every episode: take another name, such as "
                f"self.{taken}_"
            )
    for method in _METHODS:
        if not callable(found := getattr(world, method)):
            raise ValueError(f"{name}: {method} is a method, not {found!r}: write def {method}(self, ...)")


def _check_turns(env_id: str, world: Environment) -> None:
    turns: Any = world.max_turns
    if isinstance(turns, bool) or not isinstance(turns, numbers.Integral) or turns < 1:
        raise ValueError(f"{env_id}: max_turns is a whole number from 1 on, not {turns!r}")


def _check_identity(env_id: str, world: Environment) -> None:
    """Refuse a version or sizes that tasks cannot be named with."""
    version: Any = world.version
    if not isinstance(version, str):
        raise ValueError(
            f'{env_id}: version is a text such as "1", not {version!r}: write version = "{version}"'
        )
    sizes: Any = world.sizes
    if not isinstance(sizes, Mapping) or set(sizes) != set(SPLIT_SHARES):
        raise ValueError(
            f"{env_id}: sizes says how many tasks each of {', '.join(SPLIT_SHARES)} has, not {sizes!r}: write "
            "sizes = {'train': 1000, 'val': 100, 'test': 100}"
        )
    for split, size in sizes.items():
        least = int(split == "train")  # a file of tasks may have none for val or test
        if isinstance(size, bool) or not isinstance(size, numbers.Integral) or size < least:
            raise ValueError(f"{env_id}: sizes[{split!r}] is a whole number from {least} on, not {size!r}")


def parameters(cls: type[Environment]) -> dict[str, inspect.Parameter]:
    """The keyword parameters of an environment class."""
    if cls.__init__ is object.__init__:
        return {}
    found = dict(inspect.signature(cls.__init__).parameters)
    found.pop(next(iter(found)))
    return found


_COLLECTING = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _import(env_id: str, path: str, here: bool) -> type[Environment]:
    """The class at `module:Class`; `here` says that the working directory may hold it, as no package has named it."""
    module, _, name = path.partition(":")
    try:
        found = imports.load_module(module) if here else importlib.import_module(module)
    except ImportError:
        raise
    except Exception as error:
        raise ValueError(f"{env_id}: {module} cannot be imported: {told(error)}") from error
    try:
        return getattr(found, name)  # type: ignore[no-any-return]
    except AttributeError:
        raise ValueError(f"{env_id}: {path} {_NO_ENVIRONMENT}: {module} has no {name!r}") from None


def _check_runs(env_id: str, of: type[Environment] | Environment) -> None:
    if of.runs not in ("inline", "thread", "process"):
        raise ValueError(f"{env_id}: runs is 'inline', 'thread' or 'process', not {of.runs!r}")


@cache
def _discover() -> None:
    for point in entry_points(group=GROUP):
        if point.name in _ENTRIES:
            continue
        source = point.dist.name if point.dist else point.value
        try:
            register(point.name, point.value, source=source)
        except ValueError as error:  # told where that id is listed or asked for: nothing else shall break
            reason = f"in the entry points {GROUP} of the package {source}, {error}"
            _ENTRIES[point.name] = EnvEntry(point.name, partial(_refuse, reason), source)


def _refuse(reason: str) -> type[Environment]:
    raise ValueError(reason)


def misfit(value: Any, hint: Any) -> str:
    """What a parameter takes, in words, where its annotation says that this value is none; empty where it fits, or
    where the annotation is none of str, bool, int, float, None, Literal and their unions."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        wanted = [misfit(value, option) for option in typing.get_args(hint)]
        return " or ".join(wanted) if all(wanted) else ""
    if typing.get_origin(hint) is typing.Literal:
        options = typing.get_args(hint)
        return "" if value in options else "one of " + ", ".join(map(repr, options))
    if hint in _WORDS:
        kinds, words = _WORDS[hint]
        fits = isinstance(value, kinds) and (hint is bool or not isinstance(value, bool))
        return "" if fits else words
    return ""


_WORDS: dict[Any, tuple[tuple[type, ...], str]] = {
    str: ((str,), "a text"), bool: ((bool,), "true or false"), int: ((int,), "a whole number"),
    float: ((int, float), "a number"), type(None): ((type(None),), "nothing"),
}  # fmt: skip


def hints_of(cls: type) -> dict[str, Any]:
    """The annotations of a class's parameters; none where they cannot be resolved."""
    try:
        return typing.get_type_hints(getattr(cls, "__init__"))  # noqa: B009
    except Exception:  # annotations that name what is not imported say nothing
        return {}
