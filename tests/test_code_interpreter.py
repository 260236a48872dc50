"""The code interpreter: what runs, what is shown, what is paid."""

from __future__ import annotations

from types import SimpleNamespace

import gymnasium
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gymrl.agents.players import Job, ScriptedAgent
from gymrl.agents.rollout import rollout
from gymrl.envs import Environment, make
from gymrl.envs.code_interpreter.problems import Arithmetic
from gymrl.envs.records import TaskSpec
from gymrl.envs.workers import EnvPool
from gymrl.rl.run import Run
from gymrl.sandboxes import SandboxFault

ID = "gymrl/CodeInterpreter-v0"


def started(**params):
    env = make(ID, **params)
    env.reset(options={"index": 3})
    return env


def test_code_runs_and_its_output_is_shown():
    env = started()
    shown, reward, terminated, truncated, info = env.step("Let me see.\n```python\nprint(6 * 7)\n```")
    assert shown.text == "```output\n42\n```"
    assert (reward, terminated, truncated, info["void"], info["exit"]) == (0.0, False, False, False, 0)
    assert info["sandbox"]
    env.close()


def test_only_the_right_answer_is_paid():
    for said, want in (
        (lambda e: e.world.problem.answer, 1.0),
        (lambda e: e.world.problem.answer + "1", 0.0),
    ):
        env = started()
        _, reward, terminated, _, info = env.step(f"<answer> {said(env)} </answer>")
        assert (reward, terminated, info["void"]) == (want, True, False)
        env.close()


@pytest.mark.parametrize("text", ["", "42", "```python\nprint(1)", "<answer>42", "``` ```", "print(1)"])
def test_turns_without_code_or_answer_are_void(text):
    env = started()
    shown, reward, terminated, _, info = env.step(text)
    assert (reward, terminated, info["void"]) == (0.0, False, True)
    assert "```python" in shown.text
    env.close()


def test_errors_and_time_outs_are_shown_and_cost_nothing():
    env = started(timeout=0.5)
    shown, reward, terminated, _, info = env.step("```python\n1 / 0\n```")
    assert "ZeroDivisionError" in shown.text and (reward, terminated) == (0.0, False) and info["exit"] != 0
    shown, *_ = env.step("```python\nwhile True: pass\n```")
    assert "timeout" in shown.text
    shown, *_ = env.step("```python\nprint('x' * 10**6)\n```")
    assert len(shown.text) < 3000
    env.close()


def test_variables_live_on_only_where_asked_for():
    env = started(stateful=True)
    env.step("```python\na = 20\n```")
    shown, *_ = env.step("```python\na + 1\n```")
    assert "21" in shown.text
    env.reset(options={"index": 3})
    shown, *_ = env.step("```python\nprint(a)\n```")
    assert "NameError" in shown.text
    env.close()
    env = started()
    env.step("```python\na = 20\n```")
    shown, *_ = env.step("```python\nprint(a)\n```")
    assert "NameError" in shown.text
    env.close()


def test_episodes_are_cut_after_max_calls():
    env = started(max_calls=2)
    assert env.step("```python\nprint(1)\n```")[3] is False
    assert env.step("```python\nprint(1)\n```")[3] is True
    env.close()


@given(st.integers(0, 10**6), st.integers(2, 4), st.integers(1, 3))
def test_arithmetic_is_right_and_no_problem_is_in_two_splits(index, terms, digits):
    source = Arithmetic(terms, digits)
    questions = {}
    for split in ("train", "val", "test"):
        task = TaskSpec.make(ID, "1", split, index)
        problem = source.draw(task, task.rng())
        assert problem == source.draw(task, task.rng())
        expression = problem.question.removeprefix("What is ").removesuffix("?")
        assert str(eval(expression)) == problem.answer
        assert source.score(problem, problem.answer) == 1.0
        assert source.score(problem, problem.answer + "0") == 0.0
        assert task.owns(expression)
        questions[split] = problem.question
    assert len(set(questions.values())) == 3


async def test_oracle_wins_and_null_does_not():
    pool = EnvPool(ID)
    jobs = [Job(pool.task("test", i), i) for i in range(16)]
    assert all(e.success and len(e.turns) == 2 for e in await rollout(jobs, ScriptedAgent("oracle"), pool))
    for kind in ("null", "random"):
        assert not any(e.success for e in await rollout(jobs, ScriptedAgent(kind), pool))
    await pool.aclose()
    assert pool.opened == pool.closed


async def test_a_lost_sandbox_makes_the_episode_invalid(monkeypatch):
    class Lost:
        async def run(self, *_):
            raise SandboxFault("the worker died")

    monkeypatch.setattr("gymrl.envs.programs.shared_sandbox", lambda _: Lost())
    pool = EnvPool(ID)
    (episode,) = await rollout([Job(pool.task("test", 0))], ScriptedAgent("oracle"), pool)
    assert episode.ending == "invalid" and "the worker died" in episode.reason
    await pool.aclose()


def test_unknown_tasks_and_parameters_name_the_mend():
    with pytest.raises(ValueError, match="arithmetic"):
        make(ID, tasks="algebra")
    with pytest.raises(ValueError, match="did you mean 'digits'"):
        make(ID, digit=3)
    with pytest.raises(ValueError, match="terms of 2 or more"):
        make(ID, terms=1)
    assert issubclass(type(gymnasium.make(f"gymrl.envs:{ID}").unwrapped.world), Environment)


async def test_a_run_records_what_isolated_its_code():
    pool = EnvPool(ID)
    episodes = await rollout([Job(pool.task("test", i), i) for i in range(2)], ScriptedAgent("oracle"), pool)
    await pool.aclose()
    run = SimpleNamespace(summary={"invalid": {}, "void": {}})
    for _ in range(2):
        Run._count(run, episodes)
    assert list(run.summary["sandboxes"].values()) == [4]
    assert set(run.summary["sandboxes"]) == {episodes[0].turns[0].info["sandbox"]}


def test_the_marks_of_r1_code_interpreter():
    env = make(ID, mark="angles")
    observation, _ = env.reset(options={"index": 0})
    assert "<<<...>>>" in observation.text and "<answer>" not in observation.text
    assert env.step("<answer>3</answer>")[4]["void"]
    _, _, terminated, _, info = env.step(env.oracle())
    assert not terminated and not info["void"]
    assert env.oracle().text.startswith("<<<")
    assert env.step(env.oracle())[1:3] == (1.0, True)
    env.close()
    with pytest.raises(ValueError, match="take answer or angles"):
        make(ID, mark="box")
    with pytest.raises(ValueError, match="arithmetic is one family"):
        make(ID, by_family=True)
