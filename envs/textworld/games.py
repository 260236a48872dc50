"""Making TextWorld games, and keeping them on disk.

A game is made once (about a second: the Inform 7 compiler) and then found by its key under the cache folder:
`GYMRL_CACHE`, else `XDG_CACHE_HOME/gymrl`, else `~/.cache/gymrl`. Run `python -m gymrl.envs.textworld.games --help`
to make many ahead of time.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import textworld
from mementos.core import _memento_cache as _propositions  # type: ignore[import-untyped]
from textworld.generator import compile_game, make_game, make_grammar
from textworld.generator.chaining import QuestGenerationError
from textworld.generator.data import KnowledgeBase
from textworld.generator.inform7 import Inform7Game

from gymrl.envs.records import TaskSpec, stable_hash
from gymrl.envs.textworld.challenges import KINDS, Challenge

FORMAT = 1
"""Part of every key: raise it when the same settings would give other games."""
THEMES = ("house", "basic")
MAX_ATTEMPTS = 500

_MAKING = threading.Lock()  # TextWorld's generator is not safe in threads: one game at a time in a process


@dataclass(frozen=True)
class GameSettings:
    """What a game is made of. `quest_length` is the number of commands of its walkthrough, exactly."""

    nb_rooms: int = 2
    nb_objects: int = 4
    quest_length: int = 3
    theme: str = "house"

    def __post_init__(self) -> None:
        for name in ("nb_rooms", "nb_objects", "quest_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"TextWorld's {name} is 1 or more, not {getattr(self, name)}")
        if self.theme not in THEMES:
            raise ValueError(f"unknown TextWorld theme {self.theme!r}: take {' or '.join(THEMES)}")


Settings = GameSettings | Challenge


def settings_of(game: str, params: Mapping[str, Any]) -> Settings:
    """The settings of one kind of game: `quest` or one of the package's challenges.

    `params` may hold what any kind is made of; None stands for a kind's own default. Raises ValueError for an unknown
    kind, a value out of range, and a parameter that is not this kind's.
    """
    kinds: dict[str, type[Settings]] = {"quest": GameSettings, **KINDS}
    if game not in kinds:
        raise ValueError(f"unknown TextWorld game {game!r}: take {', '.join(kinds)}")
    known = {f.name: f.default for f in fields(kinds[game]) if f.init}
    shared = {f.name: f.default for f in fields(GameSettings)}
    for name, value in params.items():
        if name not in known and value is not None and value != shared.get(name, ...):
            raise ValueError(f"the game {game!r} has no {name}: it takes {', '.join(known)}")
    return kinds[game](**{name: params[name] for name in known if params.get(name) is not None})


def game_file(task: TaskSpec, settings: Settings) -> Path:
    """The `.z8` of a task's game, with its `.json` beside it; made if the cache does not hold it.

    The game follows from the task's env, version, split and index and from the settings alone, not from how it is
    played (rewards, turns), and no game is in two splits. Raises ValueError where no such game exists, OSError with
    the mend where the cache folder cannot be written.
    """
    identity = [
        FORMAT,
        version("textworld"),
        task.env,
        task.version,
        task.split,
        task.index,
        asdict(settings),
    ]
    key = hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=16).hexdigest()
    folder = cache_folder() / "textworld"
    path = folder / f"{key}.z8"
    if not path.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _MAKING:
                _make(task, settings, key, folder)
        except OSError as error:
            raise OSError(
                f"cannot keep games in {folder} ({error}): point GYMRL_CACHE to a folder with room"
            ) from error
    return path


def cache_folder() -> Path:
    """Where gymrl keeps what can be made again."""
    if chosen := os.environ.get("GYMRL_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gymrl"


def draw_game(
    task: TaskSpec, settings: Settings, draft: bool = False
) -> tuple[textworld.Game, textworld.GameOptions]:
    """The first game of the task's own series that has the length asked for and that its split owns.

    A draft of a challenge is enough to describe it, not to play it.
    """
    if isinstance(settings, Challenge):
        return _draw_challenge(task, settings, draft)
    for attempt in range(MAX_ATTEMPTS):
        options = textworld.GameOptions()
        options.kb = _knowledge()
        options.nb_rooms, options.nb_objects = settings.nb_rooms, settings.nb_objects
        options.quest_length = settings.quest_length
        options.grammar.theme = settings.theme
        # Numbers of its own for each of the four generators: from one int TextWorld derives only 65635 of each.
        seeds = {
            part: _seed(task, settings, part, attempt) for part in ("map", "objects", "quest", "grammar")
        }
        options.seeds = seeds
        try:
            game = make_game(options)
        except QuestGenerationError:
            continue
        # A world that another split owns gets other names: that is ten times quicker than another world.
        for naming in range(100):
            if len(game.metadata["walkthrough"]) != settings.quest_length:
                break
            if task.owns(describe(game)):
                return game, options
            options.seeds = {**seeds, "grammar": _seed(task, settings, "grammar", attempt, naming)}
            _rename(game, options)
    raise ValueError(
        f"TextWorld finds no game with quest_length {settings.quest_length} in {settings.nb_rooms} rooms: "
        "take a shorter quest or more rooms"
    )


def _draw_challenge(
    task: TaskSpec, settings: Challenge, draft: bool
) -> tuple[textworld.Game, textworld.GameOptions]:
    """As `draw_game`: one draft after another, until one is the split's own."""
    for attempt in range(MAX_ATTEMPTS):
        seeds = {
            part: _seed(task, settings, part, attempt) for part in ("map", "objects", "quest", "grammar")
        }
        for drafting in (True,) if draft else (True, False):
            options = textworld.GameOptions()
            options.seeds = seeds
            try:
                game = settings.make(options, task.split, drafting)
            except (
                QuestGenerationError,
                ValueError,
            ):  # the package cannot end what it began with these seeds
                break
            if not task.owns(describe(game)):
                break
        else:
            return game, options
    raise ValueError(
        f"TextWorld makes no {settings.game} game for the split {task.split} with these settings: take others"
    )


def problem_of(task: TaskSpec, settings: Settings) -> str:
    """What makes the task's game itself (see `describe`), without compiling it: a tenth of the time."""
    with _MAKING:
        return describe(draw_game(task, settings, draft=True)[0])


def forget_propositions() -> None:
    """Empty TextWorld's table of every proposition that it ever made, which has no other end.

    Propositions are compared by what they say, so that those still in use are none the worse for it.
    """
    _propositions.clear()


def _rename(game: textworld.Game, options: textworld.GameOptions) -> None:
    """Give the game the names and texts that `make_game` would have given it with these options."""
    for info in game.infos.values():
        info.__init__(info.id, info.type)
    for quest in game.quests:
        quest.desc = None
    game.change_grammar(make_grammar(options.grammar, options.rngs["grammar"]))
    game.metadata["uuid"] = options.uuid


def _seed(task: TaskSpec, settings: Settings, part: str, *attempt: int) -> int:
    """32 bits for one of TextWorld's generators."""
    world = (task.env, task.version, task.split, task.index, asdict(settings))
    return stable_hash("textworld", part, *world, *attempt) % 2**32


def describe(game: textworld.Game) -> str:
    """Everything that makes a game itself, in its own names: its first state and its walkthrough.

    How the grammar phrases its texts is left out, so two phrasings of one game belong to one split.
    """
    inform = Inform7Game(game)
    facts = sorted(str(inform.get_human_readable_fact(fact)) for fact in game.world.facts)
    return json.dumps([facts, game.metadata["walkthrough"]])


@functools.cache
def _knowledge() -> KnowledgeBase:
    """TextWorld's rules; parsing them anew takes ten times as long as generating a game."""
    return KnowledgeBase.load()


def _make(task: TaskSpec, settings: Settings, key: str, folder: Path) -> None:
    game, options = draw_game(task, settings)
    with tempfile.TemporaryDirectory(dir=folder, prefix="making-") as work:
        options.path, options.force_recompile = os.path.join(work, f"{key}.z8"), True
        compile_game(game, options)
        # The .z8 comes last: where it is there, the game is whole.
        for suffix in (".json", ".z8"):
            os.replace(os.path.join(work, key + suffix), folder / (key + suffix))


async def prepare(
    params: dict[str, Any],
    tasks: Iterable[tuple[str, int]],
    workers: int = 2,
    progress: Callable[[int], None] = lambda done: None,
    env_id: str = "gymrl/TextWorld-v0",
) -> int:
    """Make the games of `tasks`, which are (split, index), in worker processes; return how many there are.

    `params` are the environment's parameters; `progress` is called with how many are done.
    """
    from gymrl.envs.workers import EnvPool

    pool = EnvPool(env_id, params, workers)
    waiting = iter(list(tasks))
    done = 0

    async def work() -> None:
        nonlocal done
        handle = await pool.open()
        for split, index in waiting:
            await handle.reset(pool.task(split, index))
            done += 1
            progress(done)

    try:
        await asyncio.gather(*(work() for _ in range(workers)))
    finally:
        await pool.aclose()
    return done


def main() -> None:
    """`python -m gymrl.envs.textworld.games`: make games ahead of time."""
    import argparse
    import typing

    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    from gymrl.envs.textworld.env import MADE_OF, TextWorld

    parser = argparse.ArgumentParser(prog="python -m gymrl.envs.textworld.games", description=main.__doc__)
    parser.add_argument("--splits", nargs="+", default=["train", "test"])
    parser.add_argument("--games", type=int, default=64, help="how many of each split, from index 0 on")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    hints = typing.get_type_hints(TextWorld.__init__)
    for name in MADE_OF:
        kind = next((kind for kind in (bool, int, str) if hints[name] in (kind, kind | None)), str)
        how: dict[str, Any] = {"action": argparse.BooleanOptionalAction} if kind is bool else {"type": kind}
        parser.add_argument(f"--{name}", **how)
    given = parser.parse_args()
    params = {name: value for name in MADE_OF if (value := getattr(given, name)) is not None}
    tasks = [(split, index) for split in given.splits for index in range(given.games)]
    console = Console()
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        line = bar.add_task("games", total=len(tasks))
        asyncio.run(prepare(params, tasks, given.workers, lambda done: bar.update(line, completed=done)))
    console.print(f"{len(tasks)} games in {cache_folder() / 'textworld'}")


if __name__ == "__main__":
    main()
