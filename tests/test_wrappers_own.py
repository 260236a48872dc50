"""Wrappers of one's own: what an author may get wrong is a sentence that names the wrapper and the mend."""

from __future__ import annotations

from typing import Any

import pytest

from gymrl.envs import Action, Environment, EnvironmentFault, Observation, make, register
from gymrl.envs.blame import told
from gymrl.envs.wrappers import Wrapper, as_return, with_note, wrap


class Room(Environment):
    """Say anything, three times."""

    max_turns = 3

    def reset(self) -> str:
        return "A room."

    def step(self, action: Action) -> tuple[str, float, bool]:
        return f"You said {action.text}.", 0.0, False

    def oracle(self) -> str:
        return "x"


class AsItIs(Wrapper):
    async def step(self, action: Action) -> Any:
        return await self.inner_step(action)


class NotAwaited(Wrapper):
    def step(self, action: Action) -> Any:
        result = self.inner_step(action)
        return result.observation, result.reward, result.terminated  # type: ignore[attr-defined]


class ResetNotAwaited(Wrapper):
    def reset(self) -> Any:
        observation, info = self.inner_reset()  # type: ignore[misc]
        return observation, info


class Unpacked(Wrapper):
    async def step(self, action: Action) -> Any:
        observation, reward, terminated, truncated, info = await self.inner_step(action)  # type: ignore[misc]
        return observation, reward, terminated, truncated, info


class ResultNoted(Wrapper):
    async def step(self, action: Action) -> Any:
        return with_note(await self.inner_step(action), "x"), 0.0, False  # type: ignore[arg-type]


class PairNoted(Wrapper):
    async def reset(self) -> Any:
        return with_note(await self.inner_reset(), "x")  # type: ignore[arg-type]


class TupleAsReturn(Wrapper):
    async def step(self, action: Action) -> Any:
        return as_return(("text", 0.0, False))  # type: ignore[arg-type]


class NoState(Wrapper):
    async def step(self, action: Action) -> Any:
        self.count += 1
        return await super().step(action)


class NoReward(Wrapper):
    async def step(self, action: Action) -> Any:
        result = await self.inner_step(action)
        return result.observation, None, result.terminated


class NoObservation(Wrapper):
    async def reset(self) -> Any:
        await self.inner_reset()


class NoSuper(Wrapper):
    def __init__(self, world: Environment) -> None:
        self.word = "x"


class WorldAlone(Wrapper):
    def __init__(self, world: Environment) -> None:
        self.world = world


class SuperLast(Wrapper):
    def __init__(self, world: Environment) -> None:
        self.most = self.max_sentences + 1
        super().__init__(world)


class SuperEmpty(Wrapper):
    def __init__(self, world: Environment) -> None:
        super().__init__()  # type: ignore[call-arg]


class NoWorld(Wrapper):
    def __init__(self, *, word: str = "x") -> None:
        super().__init__(Room())


class Buggy(Wrapper):
    def __init__(self, world: Environment, size: int = 3) -> None:
        super().__init__(world)
        self.size = size + "3"  # type: ignore[operator]


class NoTurns(Wrapper):
    def __init__(self, world: Environment) -> None:
        super().__init__(world)
        self.max_turns = 0


class AroundEnv(Wrapper):
    """As Gymnasium's wrappers are written: another name for the world, and options that are passed on."""

    def __init__(self, env: Environment, **options: Any) -> None:
        super().__init__(env)
        self.options = options

    async def step(self, action: Action) -> Any:
        result = await self.inner_step(action.text)  # type: ignore[arg-type]
        return with_note("a text", self.options["word"]), result.reward, result.terminated  # type: ignore[arg-type]


register("own/Room-v0", Room, source="test")


@pytest.fixture(autouse=True)
def _named(monkeypatch: pytest.MonkeyPatch) -> None:
    """This module is found by the name `my_wrappers`."""
    import sys

    monkeypatch.setitem(sys.modules, "my_wrappers", sys.modules[__name__])


def fault_of(*names: str) -> str:
    """What a user is told who plays a room in these wrappers."""
    env = make("own/Room-v0", wrappers=[f"my_wrappers:{name}" for name in names])
    with pytest.raises((EnvironmentFault, TypeError, AttributeError)) as raised:
        env.reset(options={"index": 0})
        env.step("hello")
    return told(raised.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("AsItIs", "own/Room-v0 in my_wrappers:AsItIs: step() returned a StepResult, as inner_step() gives it: return "
         "as_return(result), from gymrl.envs.wrappers, or its five values"),
        ("NotAwaited", "NotAwaited uses inner_step(action) without await: write await self.inner_step(action) in an "),
        ("ResetNotAwaited", "ResetNotAwaited uses inner_reset() without await: write await self.inner_reset() in an "),
        ("Unpacked", "take result.observation, result.reward and so on, or as_return(result) (test_wrappers_own.py:"),
        ("ResultNoted", "with_note takes an observation, not the StepResult of inner_step(action): give its .observat"),
        ("PairNoted", "not a tuple of 2: write observation, info = await self.inner_reset() (test_wrappers_own.py:"),
        ("TupleAsReturn", "as_return takes the StepResult of inner_step(action), not a tuple: what step() returns "),
        ("NoState", "neither NoState nor the Room in it has 'count': set it in NoState.reset() (test_wrappers_own.py:"),
        ("NoReward", "own/Room-v0 in my_wrappers:NoReward: a reward is a finite number, not None"),
        ("NoObservation", "own/Room-v0 in my_wrappers:NoObservation: an observation is a str, a Message or an Obs"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("error")  # no coroutine is left that nobody awaited
def test_a_wrong_use_of_the_inner_world_is_a_sentence(name: str, words: str) -> None:
    assert words in fault_of(name)


def test_the_wrapper_that_is_wrong_is_named_and_not_the_one_around_it() -> None:
    assert "AsItIs: step() returned a StepResult" in fault_of("AsItIs", "AroundEnv").replace(
        "my_wrappers:", ""
    )
    assert "AroundEnv" not in fault_of("AsItIs", "AroundEnv")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "NoSuper",
            r"'my_wrappers:NoSuper' is not made whole: call super\(\).__init__\(world\) first in NoSuper.__i",
        ),
        (
            "WorldAlone",
            r"is not made whole: call super\(\).__init__\(world\) first in WorldAlone.__init__\(\)",
        ),
        ("SuperLast", r"is not made whole: call super\(\).__init__\(world\) first in SuperLast.__init__\(\)"),
        (
            "SuperEmpty",
            r"\(test_wrappers_own.py:\d+ in __init__\): call super\(\).__init__\(world\) in SuperEmpty",
        ),
        (
            "NoWorld",
            r"'my_wrappers:NoWorld' takes no world: write def __init__\(self, world, \.\.\.\) in NoWorld",
        ),
        (
            "Buggy",
            r"'my_wrappers:Buggy' cannot be made: unsupported .* \(test_wrappers_own.py:\d+ in __init__\)",
        ),
        ("NoTurns", r"own/Room-v0 in my_wrappers:NoTurns: max_turns is a whole number from 1 on, not 0"),
    ],
)
def test_a_wrapper_that_cannot_be_made_is_a_sentence(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make("own/Room-v0", wrappers=[f"my_wrappers:{name}"])


def test_a_world_by_another_name_and_options_that_are_passed_on() -> None:
    env = make("own/Room-v0", wrappers=[{"name": "my_wrappers:AroundEnv", "word": "Bye."}])
    env.reset(options={"index": 0})
    assert env.step("hello")[0] == Observation.of("a text\nBye.")


def test_a_wrapper_goes_around_a_world_and_not_around_what_make_gives() -> None:
    with pytest.raises(TypeError, match=r"AsItIs goes around an Environment, not a GymEnv: name it in make"):
        AsItIs(make("own/Room-v0"))  # type: ignore[arg-type]


# -- how many turns are left ---------------------------------------------------------------------------------


def played(*wrappers: Any, env_id: str = "own/Room-v0", index: int = 0) -> tuple[list[str], Any]:
    """The last lines of all observations of an episode that says `x` to its end, and how it ended."""
    env = make(env_id, wrappers=list(wrappers))
    lines, ending = [env.reset(options={"index": index})[0].text.splitlines()[-1]], (False, False)
    while not any(ending):
        observation, _, *ended, _ = env.step("x")
        lines, ending = [*lines, observation.text.splitlines()[-1]], tuple(ended)
    return lines, ending


def test_a_horizon_tells_the_turns_of_a_world_that_allows_fewer() -> None:
    told_, ending = played({"name": "horizon", "turns": 50})
    assert told_ == ["Turns left: 3.", "Turns left: 2.", "Turns left: 1.", "Time is up."]
    assert ending == (True, False)
    assert make("own/Room-v0", wrappers=[{"name": "horizon", "turns": 50}]).world.max_turns == 3
    told_, _ = played({"name": "turn_limit", "turns": 5}, {"name": "horizon", "turns": 50})
    assert told_[0] == "Turns left: 5." and len(told_) == 6


def test_a_horizon_tells_the_turns_of_a_world_that_has_others_for_each_task() -> None:
    limits = set()
    for index in range(12):
        lines, ending = played({"name": "horizon", "turns": 50}, env_id="gymrl/GuiNavigation-v0", index=index)
        assert lines[0] == f"Turns left: {len(lines) - 1}." and ending == (True, False)
        limits.add(len(lines))
    assert len(limits) > 1


def test_a_horizon_tells_the_turns_that_are_given_back_inside() -> None:
    noise = {"name": "tool_noise", "errors": 1.0, "in_a_row": 1}
    register(
        "own/Answers-v0", type("Answers", (Room,), {"recognises": lambda self, action: True}), source="test"
    )
    lines, _ = played(noise, {"name": "horizon", "turns": 5}, env_id="own/Answers-v0")
    assert lines[:4] == ["Turns left: 3.", "Turns left: 3.", "Turns left: 2.", "Turns left: 2."]
    assert len(lines) == 6 and lines[-1] == "Time is up."


def test_a_limit_around_a_horizon_that_tells_more_is_refused() -> None:
    limit, horizon = {"name": "turn_limit", "turns": 2}, {"name": "horizon", "turns": 9}
    with pytest.raises(
        ValueError, match=r"cuts after 2 turns what the horizon inside it says has 3: take horizon wi"
    ):
        make("own/Room-v0", wrappers=[horizon, limit])
    assert wrap(Room(), [{**horizon, "tell": False}, limit]).max_turns == 2
    assert wrap(Room(), [limit, horizon]).max_turns == 2


def test_a_limit_may_give_a_world_more_turns_than_it_has_itself() -> None:
    lines, ending = played({"name": "turn_limit", "turns": 50}, env_id="gymrl/GuiNavigation-v0")
    assert len(lines) == 51 and ending == (False, True)
