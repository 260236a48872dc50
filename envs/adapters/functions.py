"""Functions that a user names as `module:function`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gymrl.envs import imports


def load(parameter: str, path: str) -> Callable[..., Any]:
    """The function of that path. Raises ValueError, which names the parameter, where there is none."""
    found = imports.load(f"{parameter} = {path!r}", path)
    if not callable(found):
        raise ValueError(f"{parameter} = {path!r} is a {type(found).__name__}: name a function")
    return found  # type: ignore[no-any-return]
