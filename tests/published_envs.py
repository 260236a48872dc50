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


class BareTextArena(Environment):
    """A game of textarena for one player, in the wrappers that it is registered with."""

    max_turns = 12

    def __init__(self, game: str = "GuessTheNumber-v0") -> None:
        self.game = game

    def reset(self) -> str:
        import textarena

        self.played = textarena.make(self.game)
        self.played.reset(num_players=1, seed=self.task.seed % 2**31)
        return str(self.played.get_observation()[1])

    def step(self, action: Action) -> Any:
        done, _ = self.played.step(action.text)
        reward = self.played.close()[0][0] if done else 0.0
        return str(self.played.get_observation()[1]), reward, done

    def oracle(self) -> str:
        raise NotImplementedError

    def random_action(self, rng: random.Random) -> str:
        return f"[{rng.randint(1, 20)}]"


class BareTextWorld(Environment):
    """A game of textworld, made where it is asked for; what is shown is what it takes to win it."""

    runs = "thread"

    def reset(self) -> str:
        import textworld

        options = textworld.GameOptions()
        options.nb_rooms, options.nb_objects, options.quest_length = 4, 8, 4
        options.seeds = self.task.seed % 65_535
        game = textworld.generator.make_game(options)
        self.walkthrough = " > ".join(game.metadata.get("walkthrough", ()))
        return f"{game.objective}\n{self.walkthrough}"

    def step(self, action: Action) -> Any:
        return "Done.", float(answer(action.text) == self.walkthrough), True

    def oracle(self) -> str:
        return f"<answer>{self.walkthrough}</answer>"

    def random_action(self, rng: random.Random) -> str:
        return f"<answer>{rng.randrange(100)}</answer>"


register("published/BareReasoning-v0", BareReasoning, source="test")
register("published/BareTextArena-v0", BareTextArena, source="test")
register("published/BareTextWorld-v0", BareTextWorld, source="test")
