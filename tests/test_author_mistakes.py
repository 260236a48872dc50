"""What an author may get wrong: each ends in an invalid episode or in a sentence that names the mend."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import types
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gymrl.agents.evaluation import invalid_causes
from gymrl.agents.players import Job, ScriptedAgent
from gymrl.agents.records import Episode, episode_to_json
from gymrl.agents.rollout import RolloutSettings, rollout
from gymrl.cli.main import run
from gymrl.envs import Action, Environment, Message, Observation, Tool, ToolCall, make, register
from gymrl.envs.gym import EnvironmentFault, normal_step
from gymrl.envs.registry import entry
from gymrl.envs.workers import CloseWarning, EnvPool

sys.path.insert(0, str(Path(__file__).parent))
from leaving_envs import Leaves, LeavesAwaited, LeavesProcess, LeavesThread, Rich, Slow, SlowAtLast

KINDS = (Leaves, LeavesAwaited, LeavesThread, LeavesProcess, Slow, SlowAtLast, Rich)
for _kind in KINDS:
    register(f"mistakes/{_kind.__name__}-v0", _kind, source="test")


async def played(name: str, deadline: float = 60.0, count: int = 1, **params: Any) -> list[Episode]:
    pool = EnvPool(f"mistakes/{name}-v0", params, workers=1)
    try:
        jobs = [Job(pool.task("train", index)) for index in range(count)]
        return await rollout(jobs, ScriptedAgent("oracle"), pool, RolloutSettings(deadline=deadline))
    finally:
        await pool.aclose()


@pytest.mark.parametrize("kind", ["Leaves", "LeavesAwaited", "LeavesThread", "LeavesProcess"])
@pytest.mark.parametrize("method", ["reset", "step", "oracle"])
async def test_an_exit_is_an_invalid_episode(kind, method):
    for episode in await played(kind, count=2, method=method):
        assert episode.reason.startswith("environment: EnvironmentFault: ")
        assert f"{method}() raised SystemExit(3)" in episode.reason
        assert "(leaving_envs.py:" in episode.reason and "in leave" in episode.reason


def test_an_exit_in_init_or_on_import_is_a_sentence(monkeypatch, tmp_path):
    class Never(Leaves):
        def __init__(self) -> None:
            sys.exit(4)

    register("mistakes/Never-v0", Never)
    with pytest.raises(ValueError, match=r"mistakes/Never-v0: __init__\(\) raised SystemExit\(4\)"):
        make("mistakes/Never-v0")
    (tmp_path / "leaves_on_import.py").write_text("raise SystemExit(5)\n")
    monkeypatch.syspath_prepend(tmp_path)
    register("mistakes/Import-v0", "leaves_on_import:X")
    with pytest.raises(ValueError, match=r"SystemExit\(5\) as it was imported"):
        entry("mistakes/Import-v0").cls()
    _forget("mistakes/Import-v0")


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("def x(:\n", r"SyntaxError: .*broken_module\.py, line 1"),
        ("1 / 0\n", r"ZeroDivisionError: division by zero \(broken_module\.py:1 in <module>\)"),
        ("int('one')\n", r"ValueError: .*broken_module\.py:1 in <module>"),
    ],
)
def test_a_module_that_cannot_be_imported_says_where(monkeypatch, tmp_path, source, told):
    (tmp_path / "broken_module.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_module", raising=False)
    register("mistakes/Broken-v0", "broken_module:X")
    with pytest.raises(ValueError, match="mistakes/Broken-v0: broken_module cannot be imported: " + told):
        entry("mistakes/Broken-v0").cls()
    _forget("mistakes/Broken-v0")


@pytest.mark.parametrize("method", ["reset", "step", "oracle"])
@pytest.mark.parametrize("kind", ["Slow", "SlowAtLast"])
async def test_an_inline_call_beyond_its_deadline_is_late(kind, method):
    (episode,) = await played(kind, 0.3, method=method)
    assert episode.reason == f"environment: TimeoutError: {method}() gave no answer in 0.3 s"
    (episode,) = await played(kind, 30.0, method=method)
    assert episode.success


async def test_an_infinite_sum_is_no_reward():
    (episode,) = await played("Rich")
    assert episode.reason == "environment: the rewards of 2 turns sum to inf: return smaller rewards"
    assert "Infinity" not in json.dumps(episode_to_json(episode))


@pytest.mark.parametrize(
    "reward", [1, 1.0, np.float32(1), np.int64(1), np.array(1.0), Fraction(1), Decimal(1)]
)
def test_numbers_are_rewards(reward):
    result = normal_step("X", ("", reward, np.True_, np.False_, {"a": 1}))
    assert (result.reward, result.terminated, result.truncated, result.info) == (1.0, True, False, {"a": 1})
    assert type(result.reward) is float and type(result.terminated) is bool


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (("", True, False), "a reward is a finite number, not True (bool)"),
        (("", np.True_, False), "a reward is a finite number, not "),
        (("", np.array([1.0]), False), "a reward is a finite number, not array([1.]) (ndarray)"),
        (("", np.array([[1.0]]), False), "a reward is a finite number, not "),
        (("", [1.0], False), "a reward is a finite number, not [1.0] (list)"),
        (("", None, False), "a reward is a finite number, not None"),
        (("", float("nan"), False), "a reward is a finite number, not nan"),
        (("", 1.0, "no"), "terminated is True or False, not 'no' (str)"),
        (("", 1.0, 0), "terminated is True or False, not 0 (int)"),
        (("", 1.0, None, {}), "terminated is True or False, not None"),
        (("", 1.0, False, "no", {}), "truncated is True or False, not 'no' (str)"),
        (("", 1.0, False, False), "info is a dict, not False (bool)"),
        (("", 1.0, False, False, None), "info is a dict, not None"),
        (None, "step() returned None: return (observation, reward, terminated), "),
        (("", 1.0), "step() returned a tuple of 2: return (observation, reward, terminated), "),
        (tuple("abcdef"), "step() returned a tuple of 6: return "),
        ("text", "step() returned 'text' (str): return "),
        ((Observation(({"role": "user"},)), 0.0, False), "messages are gymrl.envs.Message objects, not {'role'"),  # type: ignore[arg-type]
        ((Observation((Message("user", "x"),), ({"name": "f"},)), 0.0, False), "tools are a tuple of gymrl.envs.Tool"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_what_is_no_step(value, words):
    with pytest.raises(EnvironmentFault) as raised:
        normal_step("X", value)
    assert str(raised.value).startswith("X: ") and words in str(raised.value)


def test_tensors_as_rewards():
    torch = pytest.importorskip("torch")
    assert normal_step("X", ("", torch.tensor(0.5), False)).reward == 0.5
    for wrong in (torch.tensor([1.0]), torch.tensor(True)):
        with pytest.raises(EnvironmentFault, match="a reward is a finite number"):
            normal_step("X", ("", wrong, False))


@pytest.fixture
def module(monkeypatch):
    """A module whose attributes are entry points; the ids that a test registers are gone afterwards."""
    made: Any = types.ModuleType("mistaken_envs")
    monkeypatch.setitem(sys.modules, "mistaken_envs", made)
    yield made
    for name in ("Odd", "Absent"):
        _forget(f"mistakes/{name}-v0")


def _forget(env_id: str) -> None:
    from gymrl.envs import registry

    registry._ENTRIES.pop(env_id, None)


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        (dict, "mistakes/Odd-v0: dict is no subclass of gymrl.envs.Environment"),
        (print, "print is no subclass of gymrl.envs.Environment"),
        (7, "7 is no subclass of gymrl.envs.Environment"),
        (type("Odd", (Leaves,), {"runs": "threads"}), "runs is 'inline', 'thread' or 'process', not 'threads'"),
        (type("Odd", (Leaves,), {"runs": None}), "runs is 'inline', 'thread' or 'process', not None"),
    ],
)  # fmt: skip
def test_what_is_no_environment(module, odd, words, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    module.Odd = odd
    register("mistakes/Odd-v0", "mistaken_envs:Odd")
    register("mistakes/Absent-v0", "mistaken_envs:Absent")
    assert run(["envs", "list"]) == 0
    listed = capfd.readouterr().out
    absent = "mistaken_envs:Absent is no subclass of gymrl.envs.Environment: mistaken_envs has no 'Absent'"
    assert "broken: " in listed and words in listed
    assert absent in listed and "gymrl/TextWorld-v0" in listed
    for command in (["envs", "info"], ["envs", "check"], ["eval", "--policy", "oracle", "--n", "1", "--env"]):
        for name, said in (("Odd", words), ("Absent", absent)):
            assert run([*command, f"mistakes/{name}-v0"]) == 2
            err = capfd.readouterr().err
            assert said in err and "unexpected" not in err


@pytest.mark.parametrize("turns", [None, 0, -1, "3", True, 2.5])
def test_a_wrong_limit_of_turns(module, turns):
    register("mistakes/Odd-v0", type("Odd", (Leaves,), {"max_turns": turns}))
    with pytest.raises(ValueError, match=f"max_turns is a whole number from 1 on, not {turns!r}"):
        make("mistakes/Odd-v0")
    register("mistakes/Odd-v0", type("Odd", (Leaves,), {"max_turns": np.int64(3)}))
    make("mistakes/Odd-v0").close()


@pytest.mark.parametrize("tools", [({"name": "f"},), {"name": "f"}, Tool("f"), (Tool("f"), print)])
def test_tools_that_are_none(module, tools):
    register("mistakes/Odd-v0", type("Odd", (Leaves,), {"tools": lambda self: tools}))
    with pytest.raises(EnvironmentFault, match=r"mistakes/Odd-v0: tools are a tuple of gymrl.envs.Tool\("):
        make("mistakes/Odd-v0").reset(seed=1)


def test_a_list_of_tools_is_taken(module):
    register("mistakes/Odd-v0", type("Odd", (Leaves,), {"tools": lambda self: [Tool("f")]}))
    assert make("mistakes/Odd-v0").reset(seed=1)[0].tools == (Tool("f"),)


def test_a_parameter_without_a_default_has_to_be_given(module):
    class Odd(Leaves):
        def __init__(self, level: int, *more: int, **others: int) -> None:
            super().__init__()

    register("mistakes/Odd-v0", Odd)
    with pytest.raises(ValueError, match=r"needs the parameter 'level': give --param level=\.\.\..* or a default"):
        make("mistakes/Odd-v0")
    make("mistakes/Odd-v0", level=2).close()


def test_methods_that_are_not_written(module):
    register("mistakes/Odd-v0", type("Odd", (Environment,), {}))
    with pytest.raises(NotImplementedError, match=r"Odd has no reset\(\): write one"):
        make("mistakes/Odd-v0").reset(seed=1)
    register("mistakes/Odd-v0", type("Odd", (Environment,), {"reset": lambda self: ("hello", {"a": 1})}))
    env = make("mistakes/Odd-v0")
    observation, info = env.reset(seed=1)  # the Gymnasium way
    assert observation.text == "hello" and info == {"a": 1}
    with pytest.raises(NotImplementedError, match=r"Odd has no step\(\): write one"):
        env.step("x")


ID = "is no id of an environment: write NAME-v0 or namespace/NAME-v0 in letters, digits, '_' and '-', in NAME also '.'"


@pytest.mark.parametrize("name", ["my maze-v0", "", "a/b/c-v0", "acme.ai/Maze-v0", "maze!-v0", "maze-v0\n"])
def test_a_malformed_id_is_refused(name):
    with pytest.raises(ValueError) as raised:
        register(name, Leaves)
    assert str(raised.value) == f"{name!r} {ID}"
    with pytest.raises(ValueError, match="unknown environment"):
        entry(name)


def test_no_version_beside_a_version_is_refused():
    with pytest.raises(ValueError, match=r"'mistakes/Slow' cannot be registered beside another.*: give both a version"):
        register("mistakes/Slow", Leaves)
    with pytest.raises(ValueError, match="unknown environment"):
        entry("mistakes/Slow")
    assert entry("mistakes/Slow-v0").cls() is Slow


def test_a_malformed_id_of_a_package_breaks_nothing_else(tmp_path):
    """In a process of its own: entry points are read once."""
    info = tmp_path / "acme_maze-0.1.0.dist-info"  # what an installation leaves
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-maze\nVersion: 0.1.0\n")
    points = ("my maze-v0 = acme_maze:Maze", "acme/Maze-v0 = leaving_envs:Leaves")
    (info / "entry_points.txt").write_text("\n".join(["[gymrl.envs]", *points]))
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parent)])

    def gymrl(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "gymrl.cli.main", *arguments],
            env={**os.environ, "PYTHONPATH": path, "COLUMNS": "300"}, capture_output=True, text=True,
        )  # fmt: skip

    told = f"in the entry points gymrl.envs of the package acme-maze, 'my maze-v0' {ID}"
    listed = gymrl("envs", "list")
    assert listed.returncode == 0 and "gymrl/TextWorld-v0" in listed.stdout and "acme/Maze-v0" in listed.stdout
    (row,) = [line for line in listed.stdout.splitlines() if "my maze-v0" in line and "acme-maze" in line]
    assert f"broken: {told}" in row
    assert gymrl("envs", "info", "gymrl/CodeInterpreter-v0").returncode == 0
    asked = gymrl("eval", "--env", "my maze-v0", "--policy", "oracle", "--n", "1")
    assert (asked.returncode, asked.stderr) == (2, f"gymrl: {told}\n")


HALF = r"mistakes/Odd-v0: the observation holds half of a surrogate pair, '\\ud83d', which is no character: return text"


def odd(**methods: Any) -> Any:
    """An environment with these attributes, made."""
    register("mistakes/Odd-v0", type("Odd", (Leaves,), {"leave": lambda self, method: None, **methods}))
    return make("mistakes/Odd-v0")


@pytest.mark.parametrize("value", ["a \ud83d", Message("user", "\ud83d"), Observation((Message("user", "é \ud83d"),))])
def test_half_a_surrogate_pair_is_the_environments_fault(module, value):
    with pytest.raises(EnvironmentFault, match=HALF):
        odd(reset=lambda self: value).reset(seed=1)
    env = odd(step=lambda self, action: (value, 0.0, False))
    env.reset(seed=1)
    with pytest.raises(EnvironmentFault, match=HALF):
        env.step("x")
    mended = "a \ud83d, \ud83d\ude42 é".encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert mended == "a \ufffd, 🙂 é"
    assert odd(reset=lambda self: mended).reset(seed=1)[0].text == mended


async def test_half_a_surrogate_pair_makes_an_invalid_episode(module):
    odd(step=lambda self, action: ("\ud83d", 1.0, True))
    pool = EnvPool("mistakes/Odd-v0")
    (episode,) = await rollout([Job(pool.task("train", 0))], ScriptedAgent("oracle"), pool)
    await pool.aclose()
    assert episode.reason.startswith("environment: EnvironmentFault: mistakes/Odd-v0: the observation holds half of")


def test_a_first_observation_without_a_message_is_refused(module):
    for value in (Observation(()), Observation((), (Tool("f"),)), (Observation(()), {})):
        with pytest.raises(EnvironmentFault, match=r"an observation without a message: return the task's text, or "):
            odd(reset=lambda self, value=value: value).reset(seed=1)
    env = odd(step=lambda self, action: (Observation(()), 1.0, True))
    env.reset(seed=1)
    assert env.step("x")[2]  # there is nothing left to say
    with pytest.raises(EnvironmentFault, match=r"a message's text is a str, not 5 \(int\)"):
        odd(reset=lambda self: Message("user", 5)).reset(seed=1)


async def awaited(self: Any, action: Action) -> bool:
    return True


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("answer", [None, 1, "yes", re.match("a", "a"), awaited])
def test_recognises_says_true_or_false(module, answer):
    env = odd(recognises=answer if answer is awaited else lambda self, action: answer)
    env.reset(seed=1)
    with pytest.raises(EnvironmentFault, match=r"mistakes/Odd-v0: recognises\(\) returned .*: return True or False"):
        env.step("x")
    assert env.step(Action("", (ToolCall("f"),)))[4]["void"] is False  # it is not asked then


@pytest.mark.parametrize("answer", [True, False, np.True_, np.False_])
def test_truth_values_of_numpy_recognise_too(module, answer):
    env = odd(recognises=lambda self, action: answer)
    env.reset(seed=1)
    assert env.step("x")[4]["void"] is not bool(answer)


SIZES = {"train": 5, "val": 5, "test": 5}


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"train": 5, "val": 5}, "sizes says how many tasks each of train, val, test has, not {'train': 5, 'val': 5}"),
        ({**SIZES, "dev": 5}, "sizes says how many tasks each of train, val, test has, not "),
        (100, "sizes says how many tasks each of train, val, test has, not 100: write sizes = {'train': 1000, "),
        ({**SIZES, "train": 0}, "sizes['train'] is a whole number from 1 on, not 0"),
        ({**SIZES, "test": -1}, "sizes['test'] is a whole number from 0 on, not -1"),
        ({**SIZES, "val": 1.5}, "sizes['val'] is a whole number from 0 on, not 1.5"),
        ({**SIZES, "val": True}, "sizes['val'] is a whole number from 0 on, not True"),
        ({**SIZES, "val": None}, "sizes['val'] is a whole number from 0 on, not None"),
    ],
)
def test_wrong_sizes_are_refused(module, sizes, words):
    with pytest.raises(ValueError) as raised:
        odd(sizes=sizes)
    assert str(raised.value).startswith(f"mistakes/Odd-v0: {words}")


def test_what_sizes_may_be(module):
    env = odd(sizes={**SIZES, "val": np.int64(3), "test": 0})  # a file of a few tasks has none for one of them
    with pytest.raises(ValueError, match="Odd-v0 has no tasks in test: take another split, or give it tasks"):
        env.task_spec(0, "test")
    with pytest.raises(ValueError, match=r"has 5 tasks in train: index 5 is not one of them .* 5 or fewer: --n 5\)"):
        env.task_spec(5)


@pytest.mark.parametrize("version", [2, 1.5, None])
def test_a_version_is_a_text(module, version):
    with pytest.raises(ValueError, match=f'version is a text such as "1", not {version}: write version = "'):
        odd(version=version)
    odd(version="2").close()


@pytest.mark.parametrize("runs", ["inline", "thread"])
async def test_a_close_that_raises_costs_no_result_and_closes_the_others(module, runs):
    closed = []

    def close(self: Any) -> None:
        closed.append(self)
        if len(closed) == 1:
            raise OSError("cannot close")

    odd(close=close, runs=runs)
    pool = EnvPool("mistakes/Odd-v0")
    handles = [await pool.open() for _ in range(3)]
    with pytest.warns(CloseWarning, match=r"^mistakes/Odd-v0: close\(\) raised OSError: cannot close .*: mend it"):
        await pool.aclose()
    assert len(closed) == len(handles) + 1 and pool.closed == pool.opened == 3


def test_an_evaluation_with_a_close_that_raises_keeps_its_result(module, capfd, tmp_path):
    def close(self: Any) -> None:
        raise OSError("cannot close")

    odd(close=close)
    out = tmp_path / "episodes.jsonl"
    command = ["eval", "--env", "mistakes/Odd-v0", "--policy", "oracle", "--n", "3", "--out", str(out)]
    with pytest.warns(CloseWarning, match=r"close\(\) raised OSError: cannot close .* in 2 environments"):
        assert run(command) == 0
    assert "3 terminated" in capfd.readouterr().out and len(out.read_text().splitlines()) == 3


def test_the_same_death_of_two_processes_is_one_cause():
    task = make("mistakes/Leaves-v0").task_spec(0)
    reasons = [f"environment: X.step: the worker process {pid} died (exit status 9)\nmore" for pid in (24753, 7)]
    episodes = [Episode(task, (), "invalid", reason) for reason in reasons]
    assert invalid_causes(episodes) == {"environment: X.step: the worker process died (exit status 9)": 2}
