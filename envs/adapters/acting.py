"""What an agent writes, as an action of a Gymnasium space, and back."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from gymnasium import spaces

from gymrl.envs.marks import answer

NUMBERS = 200_000
"""Characters of JSON that are read; more is no action."""


class Misfit(ValueError):
    """A text that is no action of the space."""


def said(text: str) -> str:
    """What counts of a text: the content of its last `<answer>...</answer>`, else its last line that is not empty."""
    marked = answer(text)
    if marked is not None:
        return marked
    return text.strip().rpartition("\n")[2].strip()


def check_names(space: Any, names: Sequence[str]) -> None:
    """Raises ValueError where the names do not fit the space."""
    if not isinstance(space, spaces.Discrete):
        raise ValueError(
            f"actions are the names of a Discrete space's actions, and this one is {space}: leave them out"
        )
    if len(names) != space.n:
        raise ValueError(
            f"the action space has {space.n} actions, and actions names {len(names)}: name each of them"
        )
    plain = [_plain(name) if isinstance(name, str) else "" for name in names]
    if "" in plain or len(set(plain)) < len(plain):
        raise ValueError(f"actions are texts that differ, not {list(names)!r}")


def parse(space: Any, text: str, names: Sequence[str] = ()) -> Any:
    """The action that a text stands for. A Text space, or one that is not Gymnasium's, takes the text as it is; a
    Discrete one a name or a number; all others JSON. Raises Misfit where it is none."""
    if takes_text(space):
        if not text.strip():
            raise Misfit("nothing is said")
        return text
    text = said(text)
    if isinstance(space, spaces.Discrete):
        plain = _plain(text)
        if (number := _numbers(tuple(names)).get(plain)) is not None:
            return int(space.start) + number
        if not re.fullmatch(r"-?[0-9]{1,9}", plain) or not space.contains(int(plain)):
            raise Misfit("it is not one of the actions")
        return int(plain)
    try:
        value = _of_json(space, json.loads(text[:NUMBERS]))
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise Misfit(str(error)) from None
    if not space.contains(value):
        raise Misfit("it is outside of the action space")
    return value


def takes_text(space: Any) -> bool:
    """Whether the space's actions are texts: those of Text, and of spaces that are none of Gymnasium's."""
    return isinstance(space, spaces.Text) or not type(space).__module__.startswith("gymnasium.")


def write(space: Any, action: Any, names: Sequence[str] = ()) -> str:
    """The text that stands for an action: the inverse of `parse`."""
    if takes_text(space):
        return str(action)
    if isinstance(space, spaces.Discrete):
        number = int(action)
        return names[number - int(space.start)] if names else str(number)
    return json.dumps(_to_json(action))


def form(space: Any, names: Sequence[str] = ()) -> str:
    """How an action is written, as a sentence for the agent."""
    if takes_text(space):
        return "Write what you do."
    if isinstance(space, spaces.Discrete):
        first, last = int(space.start), int(space.start + space.n) - 1
        options = ", ".join(names) if names else f"a number from {first} to {last}"
        return f"Write one action on the last line: {options}."
    return f"Write one action on the last line, as JSON, of the space {space}."


def sample(space: Any, rng: random.Random) -> Any:
    """A random action, drawn from `rng` alone; the space's own generator is left as it is."""
    if isinstance(space, spaces.Discrete):
        return int(space.start) + rng.randrange(int(space.n))
    if takes_text(space) and not isinstance(space, spaces.Text):
        return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz ") for _ in range(12)) + "."
    import copy

    own = copy.deepcopy(space)
    own.seed(rng.getrandbits(31))
    return own.sample()


@lru_cache(64)
def _numbers(names: tuple[str, ...]) -> dict[str, int]:
    """The place of each action by its plain name."""
    return {_plain(name): number for number, name in enumerate(names)}


def _plain(text: str) -> str:
    return text.strip(" \t`*.\"'").casefold()


def _of_json(space: Any, value: Any) -> Any:
    if isinstance(space, spaces.Discrete):
        if not isinstance(value, int) or isinstance(value, bool):
            raise Misfit(f"{value!r} is no whole number"[:100])
        return value
    if isinstance(space, (spaces.Box, spaces.MultiDiscrete, spaces.MultiBinary)):
        array = np.asarray(value)
        if array.dtype.kind not in "iuf" or array.shape != space.shape:
            raise Misfit(f"it takes numbers of shape {space.shape}")
        if space.dtype.kind in "iu" and (array.dtype.kind == "f" or not _holds(space.dtype, array)):
            raise Misfit("it takes whole numbers")
        return array.astype(space.dtype)
    if isinstance(space, spaces.Dict):
        if not isinstance(value, dict) or set(value) != set(space.spaces):
            raise Misfit(f"it takes an object of {', '.join(space.spaces)}")
        return {name: _of_json(part, value[name]) for name, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        if not isinstance(value, list) or len(value) != len(space.spaces):
            raise Misfit(f"it takes a list of {len(space.spaces)}")
        return tuple(_of_json(part, item) for part, item in zip(space.spaces, value, strict=True))
    return value


def _holds(dtype: Any, array: Any) -> bool:
    limits = np.iinfo(dtype)
    return bool(np.all((array >= limits.min) & (array <= limits.max)))


def _to_json(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, dict):
        return {name: _to_json(item) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_to_json(item) for item in value]
    return value
