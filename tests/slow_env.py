"""The letters of `toy_env` in worker processes, and in no hurry."""

import time

from toy_env import Letters

from gymrl.envs import Action, register


class Slow(Letters):
    """A step takes a while, so that a signal comes in the middle of one."""

    runs = "process"

    def step(self, action: Action) -> tuple[str, float, bool]:
        time.sleep(0.1)
        return super().step(action)


register("toy/Slow-v0", Slow)
