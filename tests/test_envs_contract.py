"""The environment contract: what every environment gets from `GymEnv`, the registry and `TaskSpec`."""

from __future__ import annotations

import asyncio
import math
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st

import gymrl.envs
from gymrl.envs import (
    Action,
    Environment,
    EnvironmentFault,
    GymEnv,
    Message,
    Observation,
    TaskSpec,
    UnknownEnvironment,
    make,
    register,
)
from gymrl.envs.records import SPLIT_SHARES, stable_hash
from gymrl.envs.workers import EnvPool

# Said of every game that is not in jericho's list; TextWorld silences it, pytest brings it back.
pytestmark = pytest.mark.filterwarnings("ignore:Game .* is not fully supported")
TEXTWORLD = {"nb_rooms": 1, "nb_objects": 1, "quest_length": 1, "theme": "basic", "games": 20}


class Guess(Environment):
    """Guess a digit: a whole environment."""

    def reset(self) -> str:
        self.digit = str(self.rng.randrange(10))
        return "Guess a digit."

    def step(self, action: Action) -> tuple[str, float, bool]:
        right = action.text.strip() == self.digit
        return "Right." if right else "No.", float(right), right

    def oracle(self) -> str:
        return self.digit


class AsyncGuess(Guess):
    async def reset(self) -> str:  # type: ignore[override]
        await asyncio.sleep(0)
        return Guess.reset(self)

    async def step(self, action: Action) -> tuple[str, float, bool]:  # type: ignore[override]
        await asyncio.sleep(0)
        return Guess.step(self, action)

    async def oracle(self) -> str:  # type: ignore[override]
        return self.digit


class ThreadGuess(Guess):
    runs = "thread"


class Returns(Environment):
    """Returns what it is told to."""

    value: Any = ("", 0.0, False)
    first: Any = "start"

    def reset(self) -> Any:
        return self.first

    def step(self, action: Action) -> Any:
        return self.value


register("test/Guess-v0", Guess, source="test")
register("test/AsyncGuess-v0", AsyncGuess, source="test")
register("test/ThreadGuess-v0", ThreadGuess, source="test")
register("test/Returns-v0", Returns, source="test")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GYMRL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def ours() -> list[Any]:
    """Our environments that can run here, with parameters that make them quick."""
    textworld = pytest.param("gymrl/TextWorld-v0", TEXTWORLD, id="textworld")
    try:
        import textworld as _  # noqa: F401
    except ImportError:
        textworld = pytest.param(
            None, None, marks=pytest.mark.skip(reason="needs the extra textworld"), id="textworld"
        )
    return [
        pytest.param("gymrl/CodeInterpreter-v0", {}, id="code-interpreter"),
        textworld,
        pytest.param("test/Guess-v0", {}, id="guess"),
        pytest.param("test/AsyncGuess-v0", {}, id="async-guess"),
    ]


@pytest.mark.parametrize(("env_id", "params"), ours())
def test_gymnasium_makes_it_and_its_checker_passes(env_id: str, params: dict[str, Any]) -> None:
    name = f"gymrl.envs:{env_id}" if env_id.startswith("gymrl/") else env_id
    env = gymnasium.make(name, split="train", **params)
    observation, info = env.reset(seed=3, options={"index": 17})
    assert isinstance(observation, Observation) and observation.messages[-1].role == "user"
    assert isinstance(info, dict)
    observation, reward, terminated, truncated, info = env.step("nothing in particular")
    assert isinstance(observation, Observation) and isinstance(reward, float)
    assert (type(terminated), type(truncated)) == (bool, bool)
    assert info["void"] is True
    check_env(env.unwrapped, skip_render_check=False)
    env.close()


@pytest.mark.parametrize(("env_id", "params"), ours())
def test_the_oracle_wins_and_the_null_agent_does_not(env_id: str, params: dict[str, Any]) -> None:
    env = make(env_id, split="test", **params)
    for player, succeeds in (("oracle", True), ("null", False)):
        for index in range(2):
            env.reset(options={"index": index})
            total, ended = 0.0, False
            while not ended:
                _, reward, terminated, truncated, _ = env.step(env.oracle() if player == "oracle" else "")
                total, ended = total + reward, terminated or truncated
            assert (total >= env.world.success_reward) is succeeds
    env.close()


def global_state() -> tuple[Any, ...]:
    """Python's and numpy's global random state, whole."""
    numpy = np.random.get_state(legacy=False)
    return random.getstate(), numpy["state"]["key"].tobytes(), numpy["state"]["pos"]  # type: ignore[call-overload]


@pytest.mark.parametrize(("env_id", "params"), ours())
def test_one_task_is_one_world_and_global_random_state_is_left_alone(
    env_id: str, params: dict[str, Any]
) -> None:
    one, two = make(env_id, **params), make(env_id, **params)
    states = []
    for env, seed in ((one, 98), (two, 99)):
        random.seed(seed)
        np.random.seed(seed)
        before = global_state()
        observation, _ = env.reset(options={"index": 4})
        oracle = env.oracle()
        states.append((observation, oracle, env.step(oracle)[:4], env.world.random_action(random.Random(0))))
        assert global_state() == before
    assert states[0] == states[1]
    assert one.reset(seed=5)[0] == two.reset(seed=5)[0]
    one.close()
    two.close()


def test_tasks_are_chosen_by_index_by_task_and_by_seed() -> None:
    env = make("test/Guess-v0", split="val")
    env.reset(options={"index": 6})
    assert env.world.task == TaskSpec.make("test/Guess-v0", "1", "val", 6)
    other = TaskSpec.make("test/Guess-v0", "1", "train", 8)
    env.reset(options={"task": other})
    assert env.world.task == other
    env.reset(seed=1)
    drawn = env.world.task
    env.reset()
    assert env.world.task != drawn
    env.reset(seed=1)
    assert env.world.task == drawn
    with pytest.raises(ValueError, match="unknown reset option 'idx'"):
        env.reset(options={"idx": 1})
    with pytest.raises(ValueError, match="is not one of them"):
        env.reset(options={"index": 2**31})
    with pytest.raises(TypeError, match="takes a TaskSpec"):
        env.reset(options={"task": 3})
    for foreign in (
        TaskSpec.make("test/Guess-v0", "2", "val", 6),
        TaskSpec.make("test/Guess-v0", "1", "val", 6, {"high": 3}),
        TaskSpec.make("test/Other-v0", "1", "val", 6),
    ):
        with pytest.raises(ValueError, match="make it with the task's parameters"):
            env.reset(options={"task": foreign})


def test_a_step_before_reset_or_after_the_end_raises() -> None:
    env = make("test/Guess-v0")
    with pytest.raises(EnvironmentFault, match="call reset"):
        env.step("1")
    env.reset(options={"index": 0})
    assert env.step(env.oracle())[2]
    with pytest.raises(EnvironmentFault, match="call reset"):
        env.step("1")
    env.reset(options={"index": 0})
    for turn in range(8):
        _, _, terminated, truncated, info = env.step("x")
        assert (terminated, truncated) == (False, turn == 7)
    assert info["cut"] == "max_turns"
    with pytest.raises(EnvironmentFault, match="call reset"):
        env.step("1")


def returning(value: Any = ("", 0.0, False), first: Any = "start") -> GymEnv:
    env = make("test/Returns-v0")
    env.world.value, env.world.first = value, first  # type: ignore[attr-defined]
    env.reset(options={"index": 0})
    return env


@pytest.mark.parametrize(
    "reward", ["1", b"1", None, [1], 1j, math.nan, math.inf, -math.inf, np.array([1.0, 2.0])]
)
def test_a_reward_is_a_finite_number_or_a_fault(reward: Any) -> None:
    with pytest.raises(EnvironmentFault, match="reward"):
        returning(("x", reward, False)).step("a")


@pytest.mark.parametrize("reward", [1, 0.5, np.float32(0.5), np.int64(2), np.array(0.25)])
def test_numbers_of_every_kind_are_rewards(reward: Any) -> None:
    given_reward = returning(("x", reward, False)).step("a")[1]
    assert type(given_reward) is float and given_reward == float(reward)


@pytest.mark.parametrize(
    "value", [None, "x", ("x", 1.0), (1, 2.0, False), ("x", 1.0, False, False, {}, 1), 3]
)
def test_a_step_of_another_shape_is_a_fault(value: Any) -> None:
    with pytest.raises(EnvironmentFault):
        returning(value).step("a")


def test_every_normal_form_of_a_step() -> None:
    assert returning(("x", 1.0, True)).step("a")[2:4] == (True, False)
    assert returning(("x", 1.0, False, {"k": 1})).step("a")[4]["k"] == 1
    assert returning(("x", 1.0, False, True, {"k": 2})).step("a")[3:] == (True, {"k": 2, "void": True})
    assert returning((Message("tool", "x"), 1.0, False)).step("a")[0].messages == (Message("tool", "x"),)
    assert make("test/Returns-v0").reset(options={"index": 0})[0].messages == (Message("user", "start"),)
    with pytest.raises(EnvironmentFault, match="an observation is"):
        returning(first=7)
    with pytest.raises(EnvironmentFault, match="observation, dict"):
        returning(first=("x", 1))


def test_actions_are_strings_or_records_and_void_is_seen() -> None:
    env = make("test/Returns-v0")
    for action, void in [
        ("plain", True),
        (Action("plain"), True),
        ("```python\n1\n```", False),
        ("```python\n1\n", True),
        ("<answer>4</answer>", False),
        ("<answer>4", True),
    ]:
        env.reset(options={"index": 0})
        assert env.step(action)[4]["void"] is void
    with pytest.raises(TypeError, match="an action is a str or an Action"):
        env.step(3)  # type: ignore[arg-type]


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(UnknownEnvironment, match="did you mean 'gymrl/CodeInterpreter-v0'"):
        make("gymrl/CodeInterpeter-v0")
    with pytest.raises(UnknownEnvironment, match="did you mean 'gymrl/CodeInterpreter-v0'"):
        make("codeinterpreter")
    with pytest.raises(ValueError, match="did you mean 'terms'"):
        make("gymrl/CodeInterpreter-v0", term=3)
    with pytest.raises(ValueError, match="it takes none"):
        make("test/Guess-v0", size=3)
    with pytest.raises(ValueError, match="did you mean 'train'"):
        make("test/Guess-v0", split="trian")


@pytest.mark.parametrize("env_id", ["test/Guess-v0", "test/AsyncGuess-v0", "test/ThreadGuess-v0"])
async def test_pools_play_every_kind_and_close_what_they_open(env_id: str) -> None:
    pool = EnvPool(env_id)
    handles = await asyncio.gather(*(pool.open() for _ in range(3)))
    assert pool.opened == 3
    for index, handle in enumerate(handles):
        await handle.reset(pool.task("test", index))
        assert await handle.random_action(3) == await handles[0].random_action(3)
        assert (await handle.step(await handle.oracle())).terminated
    await pool.release(handles[0])
    await pool.release(handles[0])
    await pool.aclose()
    assert pool.closed == 3


# -- tasks ---------------------------------------------------------------------------------------------------


@given(st.text(), st.text(min_size=1))
def test_every_problem_belongs_to_exactly_one_split(problem: str, env_id: str) -> None:
    owners = [split for split in SPLIT_SHARES if TaskSpec(env_id, "1", split, 0).owns(problem)]
    assert len(owners) == 1


def test_splits_get_their_shares() -> None:
    owns = [TaskSpec("e", "1", split, 0).owns for split in ("train", "val", "test")]
    counts = [sum(own(str(i)) for i in range(5000)) for own in owns]
    assert sum(counts) == 5000
    assert abs(counts[0] - 4000) < 150 and abs(counts[1] - 500) < 100


params = st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.booleans(), max_size=3)
specs = st.builds(
    TaskSpec.make, st.text(max_size=8), st.text(max_size=3), st.sampled_from(list(SPLIT_SHARES)),
    st.integers(0, 2**40), params,
)  # fmt: skip


@given(specs, specs)
def test_tasks_share_a_seed_only_if_they_are_equal(one: TaskSpec, two: TaskSpec) -> None:
    assert (one.seed == two.seed) is (one == two)
    assert 0 <= one.seed < 2**63
    assert one.rng().random() == one.rng().random()


@given(params)
def test_the_order_of_parameters_does_not_matter(chosen: dict[str, Any]) -> None:
    turned = dict(reversed(list(chosen.items())))
    assert TaskSpec.make("e", "1", "val", 1, chosen) == TaskSpec.make("e", "1", "val", 1, turned)


def test_seeds_are_the_same_in_every_process() -> None:
    spec = TaskSpec.make("gymrl/TextWorld-v0", "1", "test", 5, {"b": 1, "a": "ü"})
    script = (
        "from gymrl.envs import TaskSpec\n"
        "spec = TaskSpec.make('gymrl/TextWorld-v0', '1', 'test', 5, {'a': 'ü', 'b': 1})\n"
        "print(spec.seed, spec.rng().random(), spec.owns('x'))"
    )
    for hash_seed in ("0", "77"):
        environ = {**os.environ, "PYTHONHASHSEED": hash_seed}
        out = subprocess.run(
            [sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True
        )
        assert out.stdout.split() == [str(spec.seed), str(spec.rng().random()), str(spec.owns("x"))]
    assert stable_hash("a", 1) == 1202366693309484190


def test_wrong_tasks_are_named() -> None:
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        TaskSpec("e", "1", "dev", 0)
    with pytest.raises(ValueError, match="0 or more"):
        TaskSpec("e", "1", "val", -1)


def test_the_package_says_where_it_is() -> None:
    assert Path(gymrl.envs.__file__).name == "__init__.py"
    assert {"gymrl/CodeInterpreter-v0", "gymrl/TextWorld-v0"} <= set(gymrl.envs.registered())
