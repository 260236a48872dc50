"""Making environments: what an author of a class may get wrong is a sentence that names the mend."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from gymrl.envs import Action, Environment, EnvironmentFault, UnknownEnvironment, make, register, registry
from gymrl.envs.wrappers import Wrapper


class Room(Environment):
    def reset(self) -> Any:
        return "A room."

    def step(self, action: Action) -> Any:
        return "Go on.", 0.0, False


class DrawsEarly(Room):
    def __init__(self, most: int = 9) -> None:
        self.number = self.rng.randint(0, most)


class AsksEarly(Room):
    def __init__(self) -> None:
        self.number = self.task.index


class TakesTask(Room):
    def __init__(self, task: str = "add") -> None:
        self.task = task  # type: ignore[assignment]


class TakesRng(Room):
    def __init__(self) -> None:
        self.rng = 3  # type: ignore[assignment]


class ToolsTuple(Room):
    tools = ()  # type: ignore[assignment]


class OracleText(Room):
    def __init__(self) -> None:
        self.oracle = "east"  # type: ignore[assignment]


class LacksOther(Room):
    def __init__(self) -> None:
        self.number = self.nothing  # type: ignore[attr-defined]


class Odd(Room):
    def oracle(self) -> Any:
        return None

    def random_action(self, rng: Any) -> Any:
        return 3

    def give_hint(self) -> Any:
        return None

    def measure_progress(self) -> Any:
        return 2


class HalfWay(Odd):
    def measure_progress(self) -> Any:
        return "half"


class TakingWrapper(Wrapper):
    def __init__(self, world: Environment) -> None:
        super().__init__(world)
        self.rng = 3  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def _entries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    yield


def made(cls: type[Environment], **params: Any) -> Any:
    register("made/It-v0", cls, source="test")
    return make("made/It-v0", **params)


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (DrawsEarly, r"made/It-v0: __init__\(\) asks for self\.rng, which is there from reset\(\) on: draw the ta"),
        (AsksEarly, r"made/It-v0: __init__\(\) asks for self\.task, which is there from reset\(\) on"),
        (TakesTask, r"made/It-v0: __init__\(\) sets self\.task, .* take another name, such as self\.task_"),
        (TakesRng, r"made/It-v0: __init__\(\) sets self\.rng, .* take another name, such as self\.rng_"),
        (ToolsTuple, r"made/It-v0: tools is a method, not \(\): write def tools\(self, \.\.\.\)"),
        (OracleText, r"made/It-v0: oracle is a method, not 'east'"),
    ],
)  # fmt: skip
def test_names_of_the_contract_are_taken(cls: type[Environment], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        made(cls)


def test_what_else_a_class_lacks_is_its_own_error() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        made(LacksOther)


def test_a_wrapper_may_not_take_them_either(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "my_wrappers", sys.modules[__name__])
    with pytest.raises(
        ValueError, match=r"the wrapper 'my_wrappers:TakingWrapper': __init__\(\) sets self\.rng"
    ):
        made(Room, wrappers=["my_wrappers:TakingWrapper"])


async def test_players_say_texts_and_actions() -> None:
    env = made(Odd)
    env.reset(options={"index": 0})
    with pytest.raises(
        EnvironmentFault, match=r"made/It-v0: oracle\(\) returned None: return a text, or an Action"
    ):
        await env.aoracle()
    with pytest.raises(
        EnvironmentFault, match=r"made/It-v0: random_action\(\) returned 3 \(int\): return a text"
    ):
        await env.arandom(None)


@pytest.mark.parametrize(
    ("cls", "wrapper", "words"),
    [
        (Odd, {"name": "hints", "after": 1}, r"Odd: give_hint\(\) returned None: return a text"),
        (
            Odd,
            "progress",
            r"Odd: measure_progress\(\) returned 2: return a number from 0 \(begun\) to 1 \(done\)",
        ),
        (HalfWay, "progress", r"HalfWay: measure_progress\(\) returned 'half': return a number from 0"),
    ],
)
def test_what_wrappers_ask_of_a_world_is_looked_at(cls: type[Environment], wrapper: Any, words: str) -> None:
    env = made(cls, wrappers=[wrapper])
    with pytest.raises(EnvironmentFault, match=words):
        env.reset(options={"index": 0})
        env.step("x")


def test_the_parameter_that_every_environment_takes_is_suggested_too() -> None:
    with pytest.raises(ValueError, match="has no parameter 'wrapper': did you mean 'wrappers'"):
        made(Odd, wrapper=["hints"])


@pytest.mark.parametrize("name", ["my_module:Maze", "maze.py"])
def test_an_environment_has_an_id(name: str) -> None:
    with pytest.raises(
        UnknownEnvironment, match=r"has an id, such as acme/Maze-v0, .* `gymrl envs new acme/Maze`"
    ):
        make(name)


def test_info_tells_where_this_one_runs_and_that_it_takes_wrappers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from gymrl.cli.main import run

    horizon = 'wrappers=[{name = "horizon", turns = 5000}]'
    assert run(["envs", "info", "gymrl/Gymnasium-v0", "--param", horizon]) == 0
    out = capsys.readouterr().out
    assert (
        "\nruns: inline\n" in out and "\nturns: at most 100\n" in out and out.endswith("Turns left: 100.\n")
    )
    assert "\n  wrappers = [] (of hints, horizon, " in out
