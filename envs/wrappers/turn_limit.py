"""A limit on turns, beyond which the episode is cut."""

from __future__ import annotations

from gymrl.envs.environment import Environment
from gymrl.envs.wrappers.base import Wrapper


class TurnLimit(Wrapper):
    """Truncate the episode after `turns` turns, fewer or more than the world's own limit.

    A cut episode bootstraps its value; for time that is part of the task take `horizon`.
    """

    def __init__(self, world: Environment, turns: int) -> None:
        super().__init__(world)
        if turns < 1:
            raise ValueError(f"turn_limit takes turns of 1 or more, not {turns}")
        self.max_turns = turns

    def follow(self) -> None:
        """The limit is this one, whatever is given back inside."""
