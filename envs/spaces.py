"""Gymnasium spaces for text. `gymnasium.spaces.Text` holds a charset and pickles to megabytes with Unicode."""

from __future__ import annotations

from typing import Any

from gymnasium import Space

from gymrl.envs.records import Action, Message, Observation

_PRINTABLE = [chr(code) for code in range(32, 127)]


class ActionSpace(Space[Any]):
    """Any `str` or `Action`; samples are short printable ASCII strings."""

    def __init__(self, seed: int | None = None) -> None:
        super().__init__(None, None, seed)

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        length = int(self.np_random.integers(1, 33))
        return "".join(_PRINTABLE[i] for i in self.np_random.integers(0, len(_PRINTABLE), length))

    def contains(self, x: Any) -> bool:
        return isinstance(x, (str, Action))

    @property
    def is_np_flattenable(self) -> bool:
        return False

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))


class ObservationSpace(ActionSpace):
    """Any `Observation`; samples hold one short user message."""

    def sample(self, mask: Any = None, probability: Any = None) -> Observation:  # type: ignore[override]
        return Observation((Message("user", super().sample()),))

    def contains(self, x: Any) -> bool:
        return isinstance(x, Observation)
