"""Packages as they are published, with no care taken: what the checker has to find in them."""

from __future__ import annotations

import random
from typing import Any

from reasoning_gym.factory import create_dataset

from gymrl.envs import Action, Environment, answer, register

SEEDS = {"train": 42, "val": 43, "test": 44}


class BareReasoning(Environment):
    """Item `index` of a reasoning-gym data set, its seed one for each split, its score the reward."""

    def __init__(self, family: str = "leg_counting") -> None:
        self.family = family

    def reset(self) -> str:
        self.data = create_dataset(self.family, seed=SEEDS[self.task.split], size=self.task.index + 1)
        self.item = self.data[self.task.index]
        return str(self.item["question"])

    def step(self, action: Action) -> Any:
        said = answer(action.text)
        if said is None:
            return "Answer in <answer>...</answer>.", 0.0, False
        return "Done.", self.data.score_answer(said, self.item), True

    def oracle(self) -> str:
        return f"<answer>{self.item['answer']}</answer>"

    def random_action(self, rng: random.Random) -> str:
        return f"<answer>{rng.randrange(100)}</answer>"


register("published/BareReasoning-v0", BareReasoning, source="test")
