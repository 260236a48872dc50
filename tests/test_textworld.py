"""TextWorld: the same games everywhere, rewards that sum to the result, commands, splits."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("textworld")

import textworld

from gymrl.envs import GymEnv, TaskSpec, make
from gymrl.envs.textworld.challenges import CoinCollector, Cooking, TreasureHunter
from gymrl.envs.textworld.env import feedback_text, last_marked, room_text
from gymrl.envs.textworld.games import (
    GameSettings,
    cache_folder,
    describe,
    draw_game,
    game_file,
    prepare,
    problem_of,
)
from gymrl.envs.workers import EnvPool

# Said of every game that is not in jericho's list; TextWorld silences it, pytest brings it back.
pytestmark = pytest.mark.filterwarnings("ignore:Game .* is not fully supported")
SMALL = {"nb_rooms": 2, "nb_objects": 4, "quest_length": 3, "theme": "basic"}
SETTINGS = GameSettings(**SMALL)  # type: ignore[arg-type]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of this module's own, so that the games are really made here."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GYMRL_CACHE", str(folder))
        yield folder


def spec(split: str, index: int) -> TaskSpec:
    return TaskSpec.make("gymrl/TextWorld-v0", "1", split, index)


def env(**params: Any) -> GymEnv:
    return make("gymrl/TextWorld-v0", **{**SMALL, "games": 2, **params})


def win(world: GymEnv) -> list[float]:
    """Play the oracle to the end; the rewards."""
    rewards = []
    for _ in range(10):
        _, reward, terminated, _, _ = world.step(world.oracle())
        rewards.append(reward)
        if terminated:
            break
    return rewards


def test_the_first_message_is_short_and_whole() -> None:
    observation, _ = env().reset(options={"index": 0})
    system, user = observation.messages
    assert (system.role, user.role) == ("system", "user")
    lines = user.text.splitlines()
    assert lines[0].startswith("First, ")
    assert lines[2].startswith("-= Room")
    assert lines[-1].startswith("Commands: ")
    assert not {"look", "inventory"} & set(lines[-1].removeprefix("Commands: ").split(", "))
    assert "$$" not in user.text and "\n>" not in user.text
    assert len(observation.text) < 600


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [("sparse", [0, 0, 1]), ("balanced", [0, 0.5, 0.5]), ("dense", [341 / 1024, 341 / 1024, 342 / 1024])],
)
def test_the_oracle_wins_and_its_rewards_sum_to_one(rewards: str, expected: list[float]) -> None:
    world = env(rewards=rewards)
    for index in range(2):
        world.reset(options={"index": index})
        assert win(world) == expected


def test_steps_back_cost_what_steps_forward_paid() -> None:
    world = env(rewards="dense")
    world.reset(options={"index": 0})
    total, rng = 0.0, random.Random(0)
    for _ in range(8):
        _, reward, terminated, truncated, info = world.step(str(world.world.random_action(rng)))
        total += reward
        assert 0 <= total <= 1
        if terminated or truncated:
            assert total == float(info["won"])
            return
    assert sum(win(world), total) == 1, "the oracle goes on from anywhere"


def test_an_oracle_that_takes_its_time_looks_at_the_same_turns_again_and_wins() -> None:
    def play() -> list[list[str]]:
        world = env(looks=0.5, max_turns=40)
        games = []
        for index in range(2):
            world.reset(options={"index": index})
            said, ended = [], False
            while not ended:
                said.append(world.oracle().text)
                _, _, terminated, truncated, info = world.step(said[-1])
                ended = terminated or truncated
            assert info["won"]
            games.append(said)
        return games

    games = play()
    assert games == play()
    assert any("look" in said for said in games)
    assert all(len(said) - said.count("look") == SMALL["quest_length"] for said in games)
    with pytest.raises(ValueError, match="share of turns"):
        env(looks=1.0)


def test_eating_what_the_quest_needs_loses_the_game() -> None:
    maker = textworld.GameMaker()
    kitchen = maker.new_room("kitchen")
    maker.set_player(kitchen)
    chest = maker.new(type="c", name="chest")
    maker.add_fact("closed", chest)
    kitchen.add(chest)
    maker.inventory.add(maker.new(type="f", name="apple"))
    maker.set_quest_from_commands(["open chest", "insert apple into chest"])
    path = game_file(spec("val", 7), SETTINGS)  # our game takes the place of a generated one
    maker.compile(str(path.with_name("ours.z8")))
    for suffix in (".json", ".z8"):
        path.with_name("ours.z8").with_suffix(suffix).replace(path.with_suffix(suffix))
    path.with_name("ours.ni").unlink()

    world = env(rewards="dense", games=None)
    task = world.task_spec(7, "val")
    world.reset(options={"task": task})
    assert win(world) == [0.5, 0.5]
    world.reset(options={"task": task})
    assert world.step("open chest")[1:3] == (0.5, False)
    assert world.step("close chest")[1:3] == (-0.5, False)
    observation, reward, terminated, _, info = world.step("eat apple")
    assert (reward, terminated, info["lost"], info["won"]) == (0.0, True, True, False)
    assert "no longer be done" in observation.text


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("look", "look"),
        ("I think.\n\nGo East.\n", "go east"),
        ("<command>take  K-key from box4</command> because", "take k-key from box4"),
        ("<command>look</command> <command>inventory</command>", "inventory"),
        ("", None),
        ("   \n ", None),
        ("dance", None),
        ("look. go east", None),
        ("take key then go east", None),
        ("quit", None),
        ("undo", None),
        ("save", None),
        ("tw-extra-infos score", None),
        ("look " + "x" * 200, None),
        ("<command></command>", None),
    ],
)
def test_what_counts_as_a_command(text: str, command: str | None) -> None:
    world = env()
    world.reset(options={"index": 0})
    assert world.world.command(text) == command  # type: ignore[attr-defined]
    _, reward, terminated, _, info = world.step(text)
    assert info["void"] is (command is None)
    assert (reward, terminated) == (0.0, False)


def test_void_turns_do_not_reach_the_game_but_count() -> None:
    world = env(max_turns=3)
    world.reset(options={"index": 0})
    for _ in range(2):
        observation, _, _, truncated, _ = world.step("quit")
        assert observation.text.startswith("That's not a verb I recognise.") and not truncated
    assert world.step("")[3]


def test_without_admissible_no_commands_are_listed() -> None:
    world = env(admissible=False)
    observation, _ = world.reset(options={"index": 0})
    assert "Commands:" not in observation.text
    assert "Commands:" not in world.step("look")[0].text


def test_no_game_is_in_two_splits_and_draws_repeat() -> None:
    tiny = GameSettings(1, 1, 1, "basic")
    found: dict[str, set[str]] = {}
    for split, count in (("train", 12), ("val", 4), ("test", 4)):
        for index in range(count):
            game, _ = draw_game(spec(split, index), tiny)
            text = describe(game)
            assert spec(split, 0).owns(text)
            found.setdefault(split, set()).add(text)
    assert (
        not found["train"] & found["test"]
        and not found["train"] & found["val"]
        and not found["val"] & found["test"]
    )
    again, _ = draw_game(spec("test", 2), tiny)
    assert describe(again) in found["test"]


def digests(count: int = 2) -> list[str]:
    """What the agent reads over whole games, and the games' own data, hashed."""
    found = []
    world = env(rewards="dense", games=None)
    for split in ("test", "train"):
        for index in range(count):
            observation, _ = world.reset(options={"task": world.task_spec(index, split)})
            texts = [observation.text]
            for _ in range(5):
                action = world.oracle().text
                observation, reward, terminated, _, _ = world.step(action)
                texts += [
                    action,
                    observation.text,
                    str(reward),
                    json.dumps(world.world.state["admissible_commands"]),
                ]  # type: ignore[attr-defined]
                if terminated:
                    break
            path = game_file(world.world.task, SETTINGS).with_suffix(".json")
            texts.append(json.dumps(json.loads(path.read_text()), sort_keys=True))
            found.append(hashlib.sha256("\n".join(texts).encode()).hexdigest())
    world.close()
    return found


def test_another_process_with_another_hash_seed_makes_the_same_games(tmp_path: Path) -> None:
    script = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('here', {__file__!r})\n"
        "here = importlib.util.module_from_spec(spec); spec.loader.exec_module(here)\n"
        # Other games first: the order in which a process makes games must not matter.
        "here.draw_game(here.spec('val', 9), here.SETTINGS)\n"
        "print(*here.digests())\n"
    )
    environ = {**os.environ, "PYTHONHASHSEED": "12345", "GYMRL_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environ, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.split() == digests(), done.stderr


def test_games_do_not_depend_on_how_they_are_played() -> None:
    first, _ = env(rewards="sparse", max_turns=5).reset(options={"index": 1})
    second, _ = env(rewards="dense", max_turns=9, games=50).reset(options={"index": 1})
    assert first == second
    assert first != env(quest_length=2).reset(options={"index": 1})[0]


def test_the_cache_holds_whole_games_only(cache: Path) -> None:
    path = game_file(spec("train", 0), SETTINGS)
    assert path.parent == cache_folder() / "textworld" == cache / "textworld"
    before = path.stat().st_mtime_ns
    assert game_file(spec("train", 0), SETTINGS) == path and path.stat().st_mtime_ns == before
    suffixes = {each.suffix for each in path.parent.iterdir()}
    assert suffixes == {".z8", ".json"}


def test_a_cache_that_cannot_be_written_names_the_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("GYMRL_CACHE", str(blocked))
    with pytest.raises(OSError, match="point GYMRL_CACHE to a folder with room"):
        game_file(spec("train", 0), SETTINGS)


async def test_prepare_makes_games_in_processes_that_equal_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = {
        p.stem: json.loads(p.read_text())
        for p in [game_file(spec("train", i), SETTINGS).with_suffix(".json") for i in range(2)]
    }
    monkeypatch.setenv("GYMRL_CACHE", str(tmp_path))
    seen: list[int] = []
    assert await prepare(SMALL, [("train", 0), ("train", 1)], 1, seen.append) == 2
    assert seen == [1, 2]
    there = {p.stem: json.loads(p.read_text()) for p in (tmp_path / "textworld").glob("*.json")}
    assert there == here


async def test_many_games_at_once_in_one_process_do_not_mix() -> None:
    pool = EnvPool("gymrl/TextWorld-v0", {**SMALL, "games": 2}, workers=1)
    handles = [await pool.open() for _ in range(4)]
    for turn in range(4):
        for i, handle in enumerate(handles):
            if turn == 0:
                await handle.reset(pool.task("train", i % 2))
            else:
                result = await handle.step(await handle.oracle())
                assert result.terminated is (turn == 3)
    assert result.info["won"]
    await pool.aclose()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the process's size from /proc")
def test_episode_after_episode_takes_no_more_memory() -> None:
    world = env()

    def megabytes_after(episodes: int) -> float:
        for index in range(episodes):
            world.reset(options={"index": index % 2})
            world.step("look")
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    before = megabytes_after(10)
    assert megabytes_after(60) - before < 10  # without closing the interpreter it is 25


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"rewards": "lavish"}, "take sparse, balanced, dense"),
        ({"theme": "castle"}, "take house or basic"),
        ({"quest_length": 0}, "1 or more"),
        ({"games": 0}, "1 or more"),
        ({"quest_lenght": 3}, "did you mean 'quest_length'"),
    ],
)
def test_wrong_parameters_are_named(params: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        env(**params)


def test_games_bound_every_split() -> None:
    world = env(games=2)
    with pytest.raises(ValueError, match="has 2 tasks in train"):
        world.reset(options={"index": 2})


def test_feedback_is_stripped() -> None:
    bar = "\n>                       -= Bedroom =-0/3"
    end = "*** The End ***\n\nYou scored 1 out of a possible 1, in 4 turns.\n\nWould you like to RESTART?"
    raw = f"\nYou drop it.\n\n\nYour score has just gone up by one point.\n\n\n    {end}{bar}"
    assert feedback_text(raw) == "You drop it.\n*** The End ***"
    assert room_text(f"art\nDo this.\n\n-= Bedroom =-\nA bed.\n{bar}") == "-= Bedroom =-\nA bed."


CHALLENGES: dict[str, dict[str, Any]] = {
    "coin_collector": {"game": "coin_collector", "level": 2, "goal": "brief"},
    "treasure_hunter": {"game": "treasure_hunter", "level": 3},
    "simple": {"game": "simple", "goal": "none"},
    "cooking": {"game": "cooking"},
    "drop": {"game": "cooking", "drop": True},
}


def challenge(name: str, **params: Any) -> GymEnv:
    return make("gymrl/TextWorld-v0", **CHALLENGES[name], **params)


@pytest.mark.parametrize("name", CHALLENGES)
def test_the_oracle_wins_each_challenge_and_its_rewards_sum_to_one(name: str) -> None:
    world = challenge(name, rewards="dense")
    observation, _ = world.reset(options={"index": 0})
    first = observation.messages[-1].text
    assert "Commands: " in first and "-= " in first and "\n>" not in first and "$$" not in first
    if name == "simple":
        assert first.startswith("-= Bedroom =-"), "no goal is told"
    played = game_file(world.world.task, world.world.settings).with_suffix(".json")  # type: ignore[attr-defined]
    game = textworld.Game.load(str(played))
    assert problem_of(world.world.task, world.world.settings) == describe(game)  # type: ignore[attr-defined]
    assert world.world.task.owns(describe(game))
    total, rewards, said = 0.0, [], []
    for _ in range(world.world.max_turns):
        said.append(world.oracle().text)
        observation, reward, terminated, _, info = world.step(said[-1])
        total, rewards = total + reward, [*rewards, reward]
        assert "score has" not in observation.text and "\n>" not in observation.text
        if terminated:
            break
    assert total == 1 and info["won"], said
    assert min(rewards) >= 0
    if name in ("simple", "cooking", "drop"):
        assert len([reward for reward in rewards if reward]) > 2, "points are paid on the way"
    if name in ("cooking", "drop"):
        assert "examine cookbook" in said and said[-2:] == ["prepare meal", "eat meal"]


def test_a_wrong_cut_loses_and_takes_back_what_was_paid() -> None:
    world = challenge("cooking", rewards="dense")
    world.reset(options={"index": 0})
    total, cuts = 0.0, ("chop", "slice", "dice")
    while not (action := world.oracle().text).startswith(cuts):
        total += world.step(action)[1]
    assert total > 0
    wrong = next(verb for verb in cuts if not action.startswith(verb))
    observation, reward, terminated, _, info = world.step(" ".join([wrong, *action.split()[1:]]))
    assert (total + reward, terminated, info["lost"]) == (0, True, True)
    assert "no longer be done" in observation.text


def test_challenges_are_the_same_in_another_process(tmp_path: Path) -> None:
    names = ("cooking", "treasure_hunter")
    script = (
        "import sys, hashlib\n"
        "from gymrl.envs import make\n"
        "from gymrl.envs.textworld.games import game_file\n"
        f"for params in {[CHALLENGES[name] for name in names]!r}:\n"
        "    env = make('gymrl/TextWorld-v0', **params); env.reset(options={'index': 0})\n"
        "    path = game_file(env.world.task, env.world.settings).with_suffix('.json')\n"
        "    print(hashlib.sha256(path.read_bytes()).hexdigest())\n"
    )
    environ = {**os.environ, "PYTHONHASHSEED": "54321", "GYMRL_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environ, capture_output=True, text=True, timeout=300
    )
    ours = []
    for name in names:
        world = challenge(name)
        world.reset(options={"index": 0})
        path = game_file(world.world.task, world.world.settings).with_suffix(".json")  # type: ignore[attr-defined]
        ours.append(hashlib.sha256(path.read_bytes()).hexdigest())
    assert done.stdout.split() == ours, done.stderr


def test_no_challenge_is_in_two_splits() -> None:
    level_one = CoinCollector(1)  # the smallest of them: one room and a coin
    found: dict[str, set[str]] = {}
    for split in ("train", "val", "test"):
        for index in range(4):
            text = problem_of(spec(split, index), level_one)
            assert spec(split, 0).owns(text)
            found.setdefault(split, set()).add(text)
    assert not found["train"] & found["test"] and not found["val"] & (found["train"] | found["test"])


def test_a_quest_is_the_game_that_it_always_was() -> None:
    world = make("gymrl/TextWorld-v0")
    observation, _ = world.reset(options={"task": world.task_spec(0, "test")})
    assert world.world.task.seed == 3447345565248837145 and world.world.max_turns == 12
    path = game_file(world.world.task, GameSettings())
    assert path.stem == "b2ae4f5fd1909e907eba2dba6781dabf"
    assert hashlib.sha256(observation.text.encode()).hexdigest()[:16] == "73dd8295b3883da4"
    problem = problem_of(world.world.task, SETTINGS)
    assert hashlib.sha256(problem.encode()).hexdigest()[:16] == "0f5fcc5e42603eef"


def test_levels_are_those_of_the_package() -> None:
    lengths = [TreasureHunter(level).quest_length for level in (1, 10, 11, 20, 21, 30)]
    assert lengths == [1, 5, 2, 10, 3, 20]
    assert [CoinCollector(level).quest_length for level in (1, 100, 101, 233)] == [1, 100, 1, 33]
    assert Cooking(recipe=3, take=2, go=6).settings("val")["split"] == "valid"


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"game": "chess"}, "take quest, coin_collector, treasure_hunter, simple, cooking"),
        ({"game": "coin_collector", "level": 301}, "1 to 300, not 301"),
        ({"game": "coin_collector", "level": 160}, "take 1 to 150 or 201 to 233"),
        ({"game": "treasure_hunter", "level": 31}, "1 to 30, not 31"),
        ({"game": "simple", "goal": "vague"}, "take detailed, brief, none"),
        ({"game": "simple", "level": 3}, "has no level: it takes goal"),
        ({"game": "cooking", "nb_rooms": 6}, "has no nb_rooms"),
        ({"game": "cooking", "recipe": 6}, "1 to 5 ingredients, not 6"),
        ({"game": "cooking", "take": 2}, "so 0 to 1, not 2"),
        ({"game": "cooking", "go": 3}, "set go to one of these"),
        ({"game": "cooking", "cut": "yes"}, "true or false"),
        ({"level": 3}, "'quest' has no level"),
    ],
)
def test_wrong_settings_of_a_challenge_are_named(params: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make("gymrl/TextWorld-v0", **params)


@pytest.mark.parametrize("params", [{}, {"game": "cooking"}], ids=["quest", "cooking"])
def test_the_quick_search_finds_what_textworlds_own_finds_in_its_order(params: dict[str, Any]) -> None:
    played, rng = make("gymrl/TextWorld-v0", **(params or SMALL)), random.Random(0)
    for index in range(2):
        played.reset(options={"index": index})
        over = False
        while not over:
            progression = played.world.state["_game_progression"]
            rules, constants = progression.game.kb.rules.values(), progression.game.kb.types.constants_mapping
            theirs = list(progression.state.all_applicable_actions(rules, constants))
            assert progression.valid_actions == theirs
            action = played.oracle() if rng.random() < 0.4 else played.world.random_action(rng)
            _, _, ended, cut, _ = played.step(action)
            over = ended or cut
        assert type(progression).__module__ == "gymrl.envs.textworld.tracking"
    played.close()


def test_the_last_mark_is_found_in_time_that_grows_with_the_text() -> None:
    pattern, rng = re.compile(r"<command>(.*?)</command>", re.DOTALL), random.Random(0)
    for _ in range(500):
        text = "".join(rng.choices(["<command>", "</command>", "a", "\n"], k=rng.randrange(9)))
        found = pattern.findall(text)
        assert last_marked(text) == (found[-1] if found else None), text
    for text in ("<command>" * 100_000, "</command>" * 100_000, "<command></command" * 60_000):
        assert last_marked(text) is None  # minutes with the pattern
