"""What an author learns from an environment that raises: the error, and the line of his own code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gymrl.agents.players import Job, ScriptedAgent
from gymrl.agents.rollout import rollout
from gymrl.envs import Environment, register
from gymrl.envs.blame import told, where
from gymrl.envs.registry import misfit
from gymrl.envs.workers import EnvPool


class Clumsy(Environment):
    """Raises in step, where `deep` in what it calls of Python's own."""

    def __init__(self, deep: bool = False) -> None:
        self.deep = deep

    def reset(self) -> str:
        return "say something"

    def step(self, action: Any) -> Any:
        if self.deep:
            json.loads("{")
        return {}["key"]

    def oracle(self) -> str:
        return "something"


class ClumsyInThreads(Clumsy):
    runs = "thread"


for _cls in (Clumsy, ClumsyInThreads):
    register(f"blame/{_cls.__name__}-v0", _cls)


@pytest.mark.parametrize("env", ["Clumsy", "ClumsyInThreads"])
@pytest.mark.parametrize(("deep", "error"), [(False, "KeyError: 'key'"), (True, "JSONDecodeError: Expecting")])
async def test_an_invalid_episode_names_the_line(env, deep, error):
    pool = EnvPool(f"blame/{env}-v0", {"deep": deep})
    (episode,) = await rollout([Job(pool.task("train", 0), 0, 0, 1)], ScriptedAgent("oracle"), pool)
    await pool.aclose()
    assert episode.reason.startswith(f"environment: {error}")
    words = 'json.loads("{")' if deep else '{}["key"]'
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    line = 1 + next(n for n, text in enumerate(lines) if text.strip().endswith(words))
    assert episode.reason.endswith(f" (test_blame.py:{line} in step)")


def test_an_error_that_was_never_raised_has_no_place():
    assert where(ValueError("x")) == "" and told(ValueError("x")) == "ValueError: x"


@pytest.mark.parametrize(
    ("value", "hint", "words"),
    [
        (3, int, ""), (3, float, ""), (True, bool, ""), ("a", str, ""), (None, int | None, ""), ([1], list[int], ""),
        (True, int, "a whole number"), ("3", float, "a number"), (1, bool, "true or false"), (7, str, "a text"),
        ("x", int | None, "a whole number or nothing"), (2.5, int, "a whole number"),
    ],
)  # fmt: skip
def test_a_parameter_that_does_not_fit(value, hint, words):
    assert misfit(value, hint) == words
