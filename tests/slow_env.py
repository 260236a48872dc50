"""The letters of `toy_env` in worker processes, and in no hurry."""

import os
import signal
import time

from toy_env import Letters

from gymrl.envs import Action, register


class Slow(Letters):
    """A step takes a while, so that a signal comes in the middle of one."""

    runs = "process"

    def reset(self) -> str:
        if os.environ.get("MORTAL"):  # a world that dies of a SIGTERM to its process, as a program's own may
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        return super().reset()

    def step(self, action: Action) -> tuple[str, float, bool]:
        time.sleep(0.1)
        return super().step(action)


register("toy/Slow-v0", Slow)
