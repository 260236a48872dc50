"""The environment `acme/Countdown-v0`."""

import random
import re

from gymrl.envs import Action, Environment


class Countdown(Environment):
    """Count down from a number in steps, one number a turn. One wrong number is forgiven.

    numbers: how many numbers are to be said (1 to 3). Each pays an equal share of 1.
    """

    def __init__(self, numbers: int = 3) -> None:
        if not 1 <= numbers <= 3:
            raise ValueError(f"numbers is 1, 2 or 3, not {numbers}")
        self.numbers, self.max_turns = numbers, numbers + 1

    def reset(self) -> str:
        while True:
            start, step = self.rng.randint(20, 99), self.rng.randint(1, 3)
            if self.task.owns(f"{start} by {step}"):  # no countdown is in two splits
                break
        self.left = [start - step * i for i in range(1, self.numbers + 1)]
        return f"Count down from {start} by {step}."

    def step(self, action: Action) -> tuple[str, float, bool]:
        if not self.recognises(action):
            return "Say one number.", 0.0, False
        said = int(action.text)
        if said != self.left[0]:
            return "Too high." if said > self.left[0] else "Too low.", 0.0, False
        self.left.pop(0)
        return "Right.", 1 / self.numbers, not self.left

    def recognises(self, action: Action) -> bool:
        return re.fullmatch(r" *-?[0-9]{1,6} *", action.text) is not None

    def oracle(self) -> str:
        return str(self.left[0])

    def random_action(self, rng: random.Random) -> str:
        return str(rng.randint(0, 99))
