"""An environment as its author writes it with openenv-core, for the tests of the adapters."""

from __future__ import annotations

from typing import Any

from openenv import core
from openenv.core.env_server import create_fastapi_app, types


class Guess(types.Action):
    number: int


class Heard(types.Observation):
    hint: str = ""
    tries: int = 0


class GuessEnvironment(core.Environment[Any, Any, Any]):
    """Guess a number of 1 to 9 that follows from the seed; 13 makes it fail."""

    SUPPORTS_CONCURRENT_SESSIONS = True
    closed = 0

    def reset(self, seed=None, episode_id=None, **kwargs):
        self.number, self.tries = 1 + seed % 9, 0
        return Heard(hint=f"Guess. {kwargs.get('greeting', '')}")

    def step(self, action, timeout_s=None, **kwargs):
        self.tries += 1
        if action.number == 13:
            raise RuntimeError("unlucky")
        right = action.number == self.number
        hint = "Right." if right else "Higher." if self.number > action.number else "Lower."
        return Heard(hint=hint, tries=self.tries, done=right, reward=float(right))

    @property
    def state(self):
        return types.State(step_count=self.tries)

    def close(self):
        type(self).closed += 1


def create_app():
    return create_fastapi_app(GuessEnvironment, Guess, Heard, max_concurrent_envs=16)
