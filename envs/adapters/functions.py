"""Functions that a user names as `module:function`."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any


def load(parameter: str, path: str) -> Callable[..., Any]:
    """The function of that path. Raises ValueError, which names the parameter, where there is none."""
    module, sign, name = path.partition(":")
    if not sign or not module or not name:
        raise ValueError(f"{parameter} = {path!r} names no function: write module:function")
    try:
        found = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{parameter} = {path!r} cannot be imported ({error}): put the module's folder on PYTHONPATH, "
            "or mend the name"
        ) from error
    if not callable(found):
        raise ValueError(f"{parameter} = {path!r} is a {type(found).__name__}: name a function")
    return found
