"""The checker on packages as they are published, and on our own environments around them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("reasoning_gym")

sys.path.insert(0, str(Path(__file__).parent))
import published_envs  # noqa: F401 - registers published/...

from gymrl.cli.main import run
from gymrl.envs.check import LAWS, Settings, check

QUICK = Settings(seconds=2, tasks=12, split_tasks=120, resets=40, garbage=300)


@pytest.mark.parametrize(
    ("family", "law", "words"),
    [
        ("leg_counting", "splits", "the same world as"),  # item 1 of seed 42 is item 0 of seed 43
        ("isomorphic_strings", "worlds", "PYTHONHASHSEED"),
        ("game_of_life_halting", "garbage", "garbage gets reward 1"),
        ("prime_factorization", "garbage", "raised"),
        ("complex_arithmetic", "garbage", "garbage gets reward"),
        ("rubiks_cube", "players", "the oracle loses"),
    ],
)
def test_the_faults_of_reasoning_gym_as_published_are_found(family: str, law: str, words: str) -> None:
    found = check(
        "published/BareReasoning-v0", {"family": family}, laws=[law], settings=QUICK, isolate=False
    ).verdict(law)
    assert found.status == "fault" and any(words in fault.what for fault in found.faults), found


@pytest.mark.parametrize(
    ("game", "law", "words"),
    [
        (
            "Countdown-v0",
            "rewards",
            "a finite number, not 'Invalid action format",
        ),  # reason for reward
        ("Cryptarithm-v0", "rewards", "a finite number, not 'Bad action format"),
        ("GuessTheNumber-v0", "growth", "each observation repeats the last one"),
        ("GuessTheNumber-v0", "globals", "changes random's global generator"),
    ],
)
def test_the_faults_of_textarena_as_published_are_found(game: str, law: str, words: str) -> None:
    pytest.importorskip("textarena")
    found = check(
        "published/BareTextArena-v0", {"game": game}, laws=[law], settings=QUICK, isolate=False
    ).verdict(law)
    assert found.status == "fault" and any(words in fault.what for fault in found.faults), found


def test_textworld_as_published_makes_other_games_in_threads() -> None:
    pytest.importorskip("textworld")
    found = check("published/BareTextWorld-v0", laws=["worlds"], settings=QUICK, isolate=False).verdict(
        "worlds"
    )
    assert found.status == "fault" and any("4 threads" in fault.what for fault in found.faults), found


@pytest.mark.slow
def test_our_environment_around_them_passes() -> None:
    families = "leg_counting,game_of_life_halting,complex_arithmetic"
    settings = Settings(seconds=1, tasks=12, split_tasks=60, resets=40, garbage=300)
    report = check("gymrl/CodeInterpreter-v0", {"tasks": f"reasoning-gym:{families}"}, settings=settings)
    assert report.sound, [verdict.faults for verdict in report.verdicts if verdict.faults]
    assert "3 task families" in report.verdict("garbage").measured


@pytest.mark.slow
def test_textworld_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("textworld")
    monkeypatch.setenv("GYMRL_CACHE", str(tmp_path))
    small: dict[str, Any] = {"nb_rooms": 1, "nb_objects": 2, "quest_length": 2, "games": 2}
    settings = Settings(seconds=0.5, tasks=4, split_tasks=4, resets=24, garbage=60)
    others = [
        law for law in LAWS if law not in ("worlds", "splits")
    ]  # slow, and tests/test_textworld.py has them
    report = check("gymrl/TextWorld-v0", small, laws=others, settings=settings)
    assert report.sound, [verdict.faults for verdict in report.verdicts if verdict.faults]


def test_the_command_prints_verdicts_and_fails_on_a_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["envs", "check", "gymrl/CodeInterpreter-v0", "terms=2", "--law", "endings", "--law", "players",
                "--tasks", "8"]) == 0  # fmt: skip
    text, told = capsys.readouterr()
    assert "trying gymrl/CodeInterpreter-v0; a law that comes no further for 300 s" in told
    assert "holds" in text and "oracle 8 of 8" in text and "keeps all 2 laws" in text
    bad = ["envs", "check", "published/BareReasoning-v0", "family=game_of_life_halting", "--law", "garbage",
           "--garbage", "200"]  # fmt: skip
    assert run(bad) == 1
    text = capsys.readouterr().out
    assert "fault" in text and "breaks 1 of 1 laws: garbage" in text
    assert "gymrl envs play published/BareReasoning-v0 --split train --index" in text
    assert "--param family=game_of_life_halting" in text
    assert run([*bad, "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert data["sound"] is False and data["verdicts"][0]["faults"][0]["split"] == "train"
    assert run(["envs", "check", "gymrl/CodeInterpreter-v0", "terms=1", "--law", "endings"]) == 2
    assert "terms of 2 or more" in capsys.readouterr().err
    assert run(["envs", "check", "gymrl/CodeInterpreter-v0", "--law", "ending"]) == 2
    assert "did you mean 'endings'" in capsys.readouterr().err
