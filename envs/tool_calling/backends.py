"""BFCL's backends, each episode's own: what its classes share with each other or take from outside is kept apart.

The classes of `bfcl-eval` are run as they are, from private copies of their modules, and the following are mended.
The backends of long conversations put parts of module globals into their states and change them there; default
arguments that are lists end up in the state; the sum of a card in one episode was then another's affair. Two messages
print sets, whose order is that of PYTHONHASHSEED. A traveller's age was reckoned from today. The math tools set the
precision of the whole process.
"""

from __future__ import annotations

import copy
import datetime
import decimal
import inspect
import json
import pickle
import re
import threading
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from typing import Any

import mpmath
from bfcl_eval.constants.executable_backend_config import CLASS_FILE_PATH_MAPPING as MODULES
from bfcl_eval.constants.executable_backend_config import STATELESS_CLASSES

from gymrl.envs.tool_calling.limits import CHARACTERS, objection, size
from gymrl.envs.tool_calling.scenarios import Scenario, scenarios

ERROR = "Error during execution: "
"""What begins the result of a call that raised, in BFCL's words."""

_CALLING = threading.Lock()
"""A call may set the precision of the process and read lists of its module, so there is one at a time."""
_SHARING = frozenset({"TravelAPI"})
"""The backends that put parts of module globals into the states of long conversations."""
_LOADING = threading.Lock()
"""Two threads would get two copies of a module, whose instances are never equal."""
_SET = re.compile(r"(?<=Must be one of )\{[^{}]*\}")
_FIELDS = "Invalid fields for update: "


class _Clock(datetime.datetime):
    """The day on which the backends are: that of the package's release."""

    @classmethod
    def today(cls) -> _Clock:
        return cls(2026, 3, 23, 10, 30)


def backend(name: str) -> type[Any]:
    """A backend class, from a copy of its module that nobody else uses."""
    with _LOADING:
        return _backend(name)


@cache
def _backend(name: str) -> type[Any]:
    origin = find_spec(MODULES[name])
    assert origin is not None and origin.origin is not None
    spec = spec_from_file_location(f"{__name__}.{name}", origin.origin)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    for key, value in vars(module).items():
        if key.isupper() and isinstance(value, (dict, list)):  # they come from one module that all share
            setattr(module, key, copy.deepcopy(value))
    if name == "TravelAPI":
        module.datetime = _Clock  # type: ignore[attr-defined]
    return getattr(module, name)  # type: ignore[no-any-return]


class Backends:
    """The instances that one scenario involves, and their methods by name. Free them by letting go of them."""

    def __init__(self, scenario: Scenario) -> None:
        self.instances = {name: _loaded(scenario, name) for name in scenario.classes}
        self.owner = {method: name for name in scenario.classes for method in methods(name)}

    def call(self, name: str, positional: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[str, bool]:
        """Call a method; what came of it in BFCL's words, and whether it raised or was refused."""
        if name not in self.owner:
            return f"{ERROR}name '{name}' is not defined", True
        owner = self.owner[name]
        instance, method = self.instances[owner], getattr(self.instances[owner], name)
        try:
            if (asked := sum(map(size, positional)) + size(named)) > CHARACTERS:
                return f"{ERROR}its arguments have {asked} characters, more than {CHARACTERS}", True
            given = {**dict(zip(methods(owner)[name], positional, strict=False)), **named}
            if said := objection(name, given, instance):
                return f"{ERROR}{said}", True
            args, kwargs = copy.deepcopy(positional), copy.deepcopy(dict(named))  # the state keeps them
        except (ValueError, TypeError) as error:
            return f"{ERROR}{error}", True
        with _CALLING, decimal.localcontext(), mpmath.workdps(mpmath.mp.dps):
            function = method.__func__
            defaults = function.__defaults__
            try:
                if any(isinstance(default, list) for default in defaults or ()):
                    function.__defaults__ = copy.deepcopy(defaults)
                return steady(_text(method(*args, **kwargs))), False
            except Exception as error:
                return f"{ERROR}{error}", True
            finally:
                function.__defaults__ = defaults


@cache
def methods(name: str) -> Mapping[str, tuple[str, ...]]:
    """The methods of a backend class that can be called, and their parameters in order."""
    found = inspect.getmembers(backend(name), inspect.isfunction)
    return {
        method: tuple(inspect.signature(function).parameters)[1:]
        for method, function in found
        if not method.startswith("_")
    }


def steady(text: str) -> str:
    """A result whose sets stand in order."""
    if found := _SET.search(text):
        members = sorted(part.strip() for part in found[0][1:-1].split(","))
        return text[: found.start()] + "{" + ", ".join(members) + "}" + text[found.end() :]
    before, mark, fields = text.partition(_FIELDS)
    if mark and fields.endswith('"}'):
        return before + mark + ", ".join(sorted(fields[:-2].split(", "))) + '"}'
    return text


def _loaded(scenario: Scenario, name: str) -> Any:
    instance = backend(name)()
    if name in STATELESS_CLASSES:
        return instance
    instance._load_scenario(
        pickle.loads(_config(scenario.number, scenario.category, name)), long_context=scenario.long
    )
    return copy.deepcopy(instance) if scenario.long and name in _SHARING else instance


@cache
def _config(number: int, category: str, name: str) -> bytes:
    """What a backend's state begins with; a copy of it is several times as fast from here."""
    return pickle.dumps(scenarios(category)[number].config.get(name, {}))


def _text(result: Any) -> str:
    if isinstance(result, str):
        return result
    if isinstance(result, dict):
        try:
            return json.dumps(result)
        except (TypeError, ValueError):
            return str(result)
    return str(result)
