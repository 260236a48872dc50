"""TextWorld's own challenges: coin collector, treasure hunter, the simple game and the cooking game.

Each is a frozen record of settings that the environment's parameters fill, and that makes a `textworld.Game` with the
package's generator. Their making is not safe in threads: `games.py` makes one at a time.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import textworld
from textworld.challenges import CHALLENGES
from textworld.generator.data import KnowledgeBase
from textworld.generator.maker import GameMaker

GOALS = ("detailed", "brief", "none")
MAX_ROOMS = 100
"""What TextWorld 1.7 can still compile."""
ROOMS = (1, 6, 9, 12)
PACKAGE_SPLITS = {"train": "train", "val": "valid", "test": "test"}


@dataclass(frozen=True)
class Challenge:
    """What the four have in common. `turns`: how long an episode is unless the player says otherwise."""

    points: ClassVar[bool] = False
    """Whether the game counts points for parts of the task, rather than the commands still to go."""
    tracked: ClassVar[bool] = True
    """Whether TextWorld knows the commands still to go in every state."""

    game: str = field(init=False)

    @property
    def turns(self) -> int:
        raise NotImplementedError

    def settings(self, split: str) -> dict[str, Any]:
        """What the package's generator is given for a game of this split."""
        raise NotImplementedError

    def make(self, options: textworld.GameOptions, split: str, draft: bool) -> textworld.Game:
        """A game from the seeds in `options`; its `metadata["walkthrough"]` wins it.

        A draft has the same world and walkthrough, but TextWorld does not know its commands to go; it takes a fifth
        of the time. Raises ValueError or QuestGenerationError where the package fails at these seeds.
        """
        brief = getattr(self, "goal", "detailed") == "brief" and not self.points
        options.grammar.only_last_action = brief
        with _package(draft) as walkthrough:
            game = CHALLENGES["tw-" + self.game][1](self.settings(split), options)
        if walkthrough:
            game.metadata["walkthrough"] = walkthrough
        if getattr(self, "goal", "") == "none":
            game.objective = ""
        # The package goes through sets of names here, whose order is another in every process.
        if game.grammar is not None:
            game.grammar.options.names_to_exclude.sort(key=str)
        for quest in game.quests:
            quest.fail_events = sorted(quest.fail_events, key=lambda event: str(event.condition))
        if not draft and self.tracked and not all(_known(quest) for quest in game.quests):
            raise ValueError("the package's walkthrough does not win the game that it made")
        return game


@dataclass(frozen=True)
class Search(Challenge):
    """What has a level, and is over after one right take."""

    level: int = 5
    goal: str = "detailed"

    @property
    def quest_length(self) -> int:
        raise NotImplementedError

    @property
    def turns(self) -> int:
        return max(12, 4 * self.quest_length)

    def settings(self, split: str) -> dict[str, Any]:
        return {"level": self.level}


@dataclass(frozen=True)
class CoinCollector(Search):
    """Walk along a chain of rooms and take the coin at its end."""

    game: str = field(init=False, default="coin_collector")

    def __post_init__(self) -> None:
        check_goal(self.goal)
        if not 1 <= self.level <= 300:
            raise ValueError(f"coin_collector's level is 1 to 300, not {self.level}")
        rooms = self.quest_length * (1 + (self.level - 1) // 100)
        if rooms > MAX_ROOMS:
            raise ValueError(
                f"coin_collector's level {self.level} has {rooms} rooms, and TextWorld builds {MAX_ROOMS} at most: "
                "take 1 to 150 or 201 to 233"
            )

    @property
    def quest_length(self) -> int:
        return (self.level - 1) % 100 + 1


@dataclass(frozen=True)
class TreasureHunter(Search):
    """Find one thing in a maze, and do not take the wrong one."""

    game: str = field(init=False, default="treasure_hunter")

    def __post_init__(self) -> None:
        check_goal(self.goal)
        if not 1 <= self.level <= 30:
            raise ValueError(f"treasure_hunter's level is 1 to 30, not {self.level}")

    @property
    def quest_length(self) -> int:
        first, last = ((1, 5), (2, 10), (3, 20))[(self.level - 1) // 10]
        return int(np.round(np.linspace(first, last, 10))[(self.level - 1) % 10])


@dataclass(frozen=True)
class Simple(Challenge):
    """Leave a locked bedroom, find a food in a house that is always the same, and put it on the stove."""

    points: ClassVar[bool] = True

    game: str = field(init=False, default="simple")
    goal: str = "detailed"

    def __post_init__(self) -> None:
        check_goal(self.goal)

    @property
    def turns(self) -> int:
        return 40

    def settings(self, split: str) -> dict[str, Any]:
        # Always the package's dense rewards: no part of the way can be left out, so how the points are paid is a
        # matter of playing, not of the game.
        return {"rewards": "dense", "goal": self.goal, "test": split == "test"}


@dataclass(frozen=True)
class Cooking(Challenge):
    """Read the cookbook, gather the ingredients, cut and cook them as it says, prepare the meal and eat it."""

    points: ClassVar[bool] = True

    game: str = field(init=False, default="cooking")
    recipe: int = 1
    take: int = 1
    go: int = 1
    open: bool = True
    cook: bool = True
    cut: bool = True
    drop: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.recipe <= 5:
            raise ValueError(f"a recipe has 1 to 5 ingredients, not {self.recipe}")
        if not 0 <= self.take <= self.recipe:
            raise ValueError(
                f"take is how many of the {self.recipe} ingredients have to be found, so 0 to {self.recipe}, "
                f"not {self.take}"
            )
        if self.go not in ROOMS:
            raise ValueError(f"a cooking game has 1, 6, 9 or 12 rooms, not {self.go}: set go to one of these")

    @property
    def tracked(self) -> bool:  # type: ignore[override]
        return not self.drop  # the package: "Having several slots causes issues with the dependency tree"

    @property
    def turns(self) -> int:
        return 20 + 20 * self.recipe + 2 * self.go

    def settings(self, split: str) -> dict[str, Any]:
        return {
            "recipe": self.recipe, "take": self.take, "go": self.go, "open": self.open, "cook": self.cook,
            "cut": self.cut, "drop": self.drop, "recipe_seed": 0, "split": PACKAGE_SPLITS[split],
        }  # fmt: skip


KINDS: dict[str, type[Challenge]] = {
    "coin_collector": CoinCollector,
    "treasure_hunter": TreasureHunter,
    "simple": Simple,
    "cooking": Cooking,
}


def check_goal(goal: str) -> None:
    if goal not in GOALS:
        raise ValueError(f"unknown goal {goal!r}: take {', '.join(GOALS)}")


def _known(quest: Any) -> bool:
    """Whether TextWorld knows a way to bring the quest about."""
    return not quest.win_events or any(event.actions for event in quest.win_events)


@contextlib.contextmanager
def _package(draft: bool) -> Iterator[list[str]]:
    """While the package makes a game: its rules are parsed once in a process, and the interpreters that it starts to
    play a walkthrough are closed, which it forgets. The commands of that walkthrough are in the list at the end.

    The package plays it so that TextWorld learns which commands bring about each part of the task; a draft leaves
    the compiling and playing out, and draws the same names.
    """
    started: list[Any] = []
    walkthrough: list[str] = []
    start, load, set_walkthrough = textworld.start, vars(KnowledgeBase)["load"], GameMaker.set_walkthrough

    def start_here(*args: Any, **kwargs: Any) -> Any:
        started.append(start(*args, **kwargs))
        return started[-1]

    def set_here(maker: Any, commands: list[str]) -> None:
        walkthrough[:] = commands
        if draft:
            maker.build()
        else:
            set_walkthrough(maker, commands)

    textworld.start, KnowledgeBase.load, GameMaker.set_walkthrough = start_here, _load, set_here
    try:
        yield walkthrough
    finally:
        textworld.start, KnowledgeBase.load, GameMaker.set_walkthrough = start, load, set_walkthrough
        for interpreter in started:
            interpreter.close()


_load_anew = KnowledgeBase.load


@functools.cache
def _load(
    target_dir: str | None = None, logic_path: str | None = None, grammar_path: str | None = None
) -> KnowledgeBase:
    return _load_anew(target_dir, logic_path, grammar_path)
