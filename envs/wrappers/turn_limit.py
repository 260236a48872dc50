"""A limit on turns, beyond which the episode is cut."""

from __future__ import annotations

from gymrl.envs.environment import Environment
from gymrl.envs.wrappers.base import Wrapper
from gymrl.envs.wrappers.horizon import Horizon


class TurnLimit(Wrapper):
    """Truncate the episode after `turns` turns, fewer or more than the world's own limit.

    A cut episode bootstraps its value; for time that is part of the task take `horizon`. One around a `horizon` that
    tells more turns is refused.
    """

    def __init__(self, world: Environment, turns: int) -> None:
        super().__init__(world)
        if turns < 1:
            raise ValueError(f"turn_limit takes turns of 1 or more, not {turns}")
        inside = world
        while isinstance(inside, Wrapper):
            if isinstance(inside, Horizon) and inside.tell and inside.max_turns > turns:
                raise ValueError(
                    f"turn_limit cuts after {turns} turns what the horizon inside it says has {inside.max_turns}: "
                    f"take horizon with {turns} turns, or put turn_limit before it in the list"
                )
            inside = inside.world
        self.max_turns = turns

    def follow(self) -> None:
        """The limit is this one, whatever is given back inside."""
