"""The registry of algorithms: named functions that ask for tensors by name and carry their own settings.

An algorithm is a plain function. Its positional parameters name the tensors it wants (`INPUTS` lists them), its
keyword-only parameters are its settings, with types and defaults. A decorator makes it known:

    @advantage("centred")
    def centred(rewards_PG, counted_PG, *, scale: float = 1.0): ...

A recipe then says `rl.advantage = "centred"` or `{ name = "centred", scale = 2.0 }`.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from gymrl.envs.imports import load_module

GROUP = "gymrl.algorithms"
"""The entry-point group of installed packages: each entry is a module that is imported."""

F = TypeVar("F", bound=Callable[..., Any])

INPUTS: dict[str, tuple[str, ...]] = {
    "advantage": (
        "rewards_PG", "counted_PG", "greedy_P", "turn_rewards_PGK", "turns_PGK", "states_PGK",
        "token_rewards_BT", "sampled_BT", "turn_BT", "values_BT", "bootstrap_B", "counted_B",
    ),
    "loss": ("lp_N", "old_lp_N", "mu_lp_N", "ref_lp_N", "advantages_N", "sequence_N"),
    "correction": ("old_lp_N", "mu_lp_N", "sequence_N"),
    "preference": (
        "win_Q", "lose_Q", "ref_win_Q", "ref_lose_Q", "win_length_Q", "lose_length_Q", "lp_S", "ref_lp_S",
        "desirable_S", "mismatched_S",
    ),
}  # fmt: skip
"""What the functions of each kind may ask for; docs/write_your_own_algorithm.md says what each tensor is."""


class AlgorithmFault(ValueError):
    """There is no such algorithm, or its settings are wrong; the text names the mend."""


@dataclass(frozen=True)
class Algorithm:
    """One registered function: what it asks for, and the typed form of its settings."""

    kind: str
    name: str
    function: Callable[..., Any]
    inputs: tuple[str, ...]
    settings: type[BaseModel]
    masks: bool = False
    """A correction that takes tokens out of the mask: it is asked before the step's weights are computed."""

    def bind(self, given: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], Any]:
        """The function with its settings: takes a mapping of tensors and picks those it asks for.

        Raises AlgorithmFault for settings it does not have, or of the wrong type.
        """
        settings = dict(self.check(given))

        def call(tensors: Mapping[str, Any]) -> Any:
            wanted = [tensors[name] for name in self.inputs]
            try:
                result = self.function(*wanted, **settings)
            except Exception as error:
                raise AlgorithmFault(
                    f"{self.kind} {self.name!r} ({self.file}) failed with {type(error).__name__}: {error}"
                ) from error
            self._check_returned(result, tensors)
            return result

        return call

    def _check_returned(self, result: Any, tensors: Mapping[str, Any]) -> None:
        """Raise AlgorithmFault where the result has not the form of its kind. (An advantage's shape depends on what is
        played: `gymrl.rl.credit` looks at it.)"""
        if self.kind in ("loss", "correction"):
            wanted = "(loss_N, clipped_N)" if self.kind == "loss" else "(weight_N, kept_N)"
            many = next(len(value) for name, value in tensors.items() if name.endswith("_N"))
            pair = result if isinstance(result, tuple) and len(result) == 2 else (None, None)
            good = all(getattr(part, "shape", None) == (many,) for part in pair)
            wanted += f", both [{many}], of {many} tokens"
        elif self.kind == "preference":
            sizes = {(len(tensors[name]),) for name in ("win_Q", "lp_S") if name in tensors}
            good = getattr(result, "shape", None) in sizes
            wanted = "the loss of each pair [Q], or of each episode [S]"
        else:
            return
        if not good:
            raise AlgorithmFault(
                f"{self.kind} {self.name!r} ({self.file}) returned {_form(result)}: return {wanted}"
            )
        if self.kind == "correction" and not self.masks and not bool(result[1].all()):
            raise AlgorithmFault(
                f"correction {self.name!r} ({self.file}) takes tokens out: register it with masks=True, or else its "
                "kept_N is never asked"
            )

    @property
    def file(self) -> str:
        """Where the function is written."""
        return str(inspect.unwrap(self.function).__code__.co_filename)

    def check(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The settings with their defaults filled in."""
        try:
            return self.settings.model_validate(dict(given)).model_dump()
        except ValidationError as error:
            item = error.errors()[0]
            key = ".".join(str(part) for part in item["loc"])
            known = list(self.settings.model_fields)
            if item["type"] == "extra_forbidden":
                near = difflib.get_close_matches(key, known, 1, 0.4)
                hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known) or 'none'}"
                raise AlgorithmFault(f"{self.kind} {self.name!r} has no setting {key!r}: {hint}") from None
            raise AlgorithmFault(
                f"{self.kind} {self.name!r}: {key} = {item['input']!r}: {item['msg']}"
            ) from None


_REGISTRY: dict[tuple[str, str, str], Algorithm] = {}
"""By kind, name, and the source that was named to have it: '' for what everybody has by its bare name."""
_SOURCE = [""]
"""What is being imported now, the last of it."""


def advantage(name: str) -> Callable[[F], F]:
    """Register `(tensors of INPUTS["advantage"], *, settings) -> advantages`, shaped [P, G], [P, G, K] or [B, T];
    a function that asks for `values_BT` returns (advantages, returns), both [B, T]."""
    return _decorator("advantage", name)


def loss(name: str) -> Callable[[F], F]:
    """Register `(tensors of INPUTS["loss"], *, settings) -> (loss_N, clipped_N)`."""
    return _decorator("loss", name)


def correction(name: str, masks: bool = False) -> Callable[[F], F]:
    """Register `(tensors of INPUTS["correction"], *, settings) -> (weight_N, kept_N)`, detached: the factor on each
    token's loss, and whether the token stays in the mask. `masks` says that `kept_N` is not always true."""
    return _decorator("correction", name, masks)


def preference(name: str) -> Callable[[F], F]:
    """Register `(tensors of INPUTS["preference"], *, settings) -> loss`: [Q] of pairs, or [S] of single episodes."""
    return _decorator("preference", name)


def find(kind: str, name: str) -> Algorithm:
    """The algorithm of that name; `module:name` and `file.py:name` import the module or file first, and are found
    there, whatever else has that name.

    Raises AlgorithmFault, which names the nearest.
    """
    _builtin()
    source, _, short = name.rpartition(":")
    if short.endswith(".py"):
        raise AlgorithmFault(f"{name!r} is a file: say which {kind} in it, {name}:NAME")
    if source:
        _import(source)
    if (kind, short, source) in _REGISTRY:
        return _REGISTRY[kind, short, source]
    known = _REGISTRY.get((kind, short, ""))  # a module may have been imported before it was named here
    if known is not None and f"{known.function.__module__}.".startswith(f"{source}." if source else ""):
        return known
    names_ = names(kind, source)
    near = difflib.get_close_matches(short, names_, 1, 0.4)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names_)}" if names_ else "it has none"
    where = f" in {source}" if source else ""
    raise AlgorithmFault(f"there is no {kind} {short!r}{where}: {hint}")


def names(kind: str, source: str = "") -> list[str]:
    """All registered names of a kind, sorted: those that everybody has, or those of a source."""
    _builtin()
    return sorted(name for k, name, of in _REGISTRY if k == kind and of == source)


def _decorator(kind: str, name: str, masks: bool = False) -> Callable[[F], F]:
    def register(function: F) -> F:
        inputs, fields = [], dict[str, Any]()
        hints = get_type_hints(function, include_extras=True)
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind is parameter.KEYWORD_ONLY:
                if parameter.default is parameter.empty:
                    raise AlgorithmFault(f"{kind} {name!r}: give its setting {parameter.name!r} a default")
                fields[parameter.name] = (hints.get(parameter.name, Any), parameter.default)
            elif parameter.name in INPUTS[kind]:
                inputs.append(parameter.name)
            else:
                raise AlgorithmFault(
                    f"{kind} {name!r} asks for {parameter.name!r}, which it cannot have: take of "
                    f"{', '.join(INPUTS[kind])}, or make it a keyword-only setting"
                )
        model = create_model(f"{kind}-{name}", __config__=ConfigDict(extra="forbid"), **fields)
        made = Algorithm(kind, name, function, tuple(inputs), model, masks)
        before = _REGISTRY.get((kind, name, _SOURCE[-1]))
        if before is not None and before.file != made.file:
            raise AlgorithmFault(
                f"{kind} {name!r} is taken by {before.file}: give that of {made.file} another name"
            )
        _REGISTRY[kind, name, _SOURCE[-1]] = made
        return function

    return register


def _form(result: Any) -> str:
    """What a function returned, in words."""
    if isinstance(result, tuple):
        return "(" + ", ".join(map(_form, result)) + ")"
    shape = getattr(result, "shape", None)
    return type(result).__name__ if shape is None else f"a tensor of shape {list(shape)}"


@cache
def _builtin() -> None:
    for package in ("advantages", "losses", "corrections", "preferences"):
        importlib.import_module(f"gymrl.rl.{package}")
    for point in entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:
            raise AlgorithmFault(
                f"the algorithms of an installed package ({point.name} = {point.value}) cannot be imported "
                f"({type(error).__name__}: {error}): mend or uninstall it"
            ) from error


@cache
def _import(source: str) -> None:
    """Import a module by name or a file by path, once."""
    _SOURCE.append(source)
    try:
        if source.endswith(".py"):
            path = Path(source).resolve()
            unique = hashlib.sha256(str(path).encode()).hexdigest()[:8]
            spec = importlib.util.spec_from_file_location(f"gymrl_user_{path.stem}_{unique}", path)
            if spec is None or spec.loader is None or not path.exists():
                raise FileNotFoundError("there is no such file")
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            spec.loader.exec_module(module)
        else:
            load_module(source)
    except AlgorithmFault:
        raise
    except Exception as error:
        hint = f"; a file is named with its ending, {source}.py" if Path(f"{source}.py").exists() else ""
        raise AlgorithmFault(
            f"the algorithm's source {source} cannot be imported ({type(error).__name__}: {error}){hint}"
        ) from error
    finally:
        _SOURCE.pop()
