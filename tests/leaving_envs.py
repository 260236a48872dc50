"""Environments that end the process, take too long or pay too much, in a module that worker processes can import."""

from __future__ import annotations

import sys
import time
from typing import Any

from gymrl.envs import Action, Environment


class Leaves(Environment):
    """Raises SystemExit in the method that it is told to."""

    def __init__(self, method: str = "step") -> None:
        self.method = method

    def leave(self, method: str) -> None:
        if self.method == method:
            sys.exit(3)

    def reset(self) -> Any:
        self.leave("reset")
        return "say something"

    def step(self, action: Action) -> Any:
        self.leave("step")
        return "", 1.0, True

    def oracle(self) -> str:
        self.leave("oracle")
        return "<answer>x</answer>"


class LeavesAwaited(Leaves):
    async def reset(self) -> Any:
        return super().reset()

    async def step(self, action: Action) -> Any:
        return super().step(action)


class LeavesThread(Leaves):
    runs = "thread"


class LeavesProcess(Leaves):
    runs = "process"


class Slow(Leaves):
    """Takes its time in one method, without letting anything else run."""

    def leave(self, method: str) -> None:
        if self.method == method:
            time.sleep(0.6)


class SlowAtLast(Slow):
    async def step(self, action: Action) -> Any:
        return super().step(action)


class Rich(Leaves):
    def step(self, action: Action) -> Any:
        return "more", 1e308, False
