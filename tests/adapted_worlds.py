"""Gymnasium environments and functions as users write them, sound and faulty, for the tests of the adapters."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Secret(gymnasium.Env[Any, Any]):
    """Say the word that is asked for. A text world; `trouble` is what goes wrong at the first step."""

    metadata = {"render_modes": []}  # noqa: RUF012
    observation_space = spaces.Text(100)
    action_space = spaces.Text(100)

    def __init__(self, trouble: str = "") -> None:
        self.trouble = trouble

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.word = "".join(self.np_random.choice(list("abcdefgh"), 8))
        return f"Say {self.word}.", {"seed": seed, "array": np.zeros(3)}

    def step(self, action: Any) -> Any:
        right = action == self.word
        observation: Any = {"object": object(), "nan": np.nan, "large": np.zeros((70, 70))}.get(
            self.trouble, "Right." if right else "Wrong."
        )
        reward: Any = {"string": "1.0", "nan reward": np.nan}.get(self.trouble, np.float32(right))
        terminated: Any = "yes" if self.trouble == "terminated" else bool(right)
        return observation, reward, terminated, False, {}


class Pixels(gymnasium.Env[Any, Any]):
    """Shows 4 x 6 pixels; an action moves a Box."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space = spaces.Box(0, 255, (4, 6, 3), np.uint8)
    action_space = spaces.Dict({"move": spaces.Box(-1, 1, (2,), np.float32), "jump": spaces.Discrete(2)})

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.frame = self.np_random.integers(0, 256, (4, 6, 3), np.uint8)
        return self.frame, {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), action
        return self.frame, float(action["jump"]), bool(action["jump"]), False, {}

    def render(self) -> Any:
        return self.frame


gymnasium.register("adapted/Secret-v0", entry_point=Secret)
gymnasium.register("adapted/Pixels-v0", entry_point=Pixels)


def word(env: Secret) -> str:
    return env.word


def blackjack(observation: Any) -> str:
    return f"You have {observation[0]}, the dealer shows {observation[1]}."


def stick(env: Any) -> int:
    return 0


def hit_or_stick(text: str) -> int | None:
    return {"hit me": 1, "enough": 0}.get(text.strip().lower())


def seeds(task: Any) -> dict[str, Any]:
    return {"trouble": f"none {task.index}"}
