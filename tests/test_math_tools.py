"""Math with tools: what is asked, what runs, which answers are paid."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gymrl.agents.players import Job, ScriptedAgent
from gymrl.agents.rollout import rollout
from gymrl.envs import make
from gymrl.envs.check import Settings, check
from gymrl.envs.marks import boxed
from gymrl.envs.records import TaskSpec
from gymrl.envs.workers import EnvPool

pytest.importorskip("math_verify")
from gymrl.envs.math_tools.judge import Judge, shared_judge
from gymrl.envs.math_tools.problems import KINDS, Procedural

ID = "gymrl/MathTools-v0"


def started(**params):
    env = make(ID, **params)
    env.reset(options={"index": 3})
    return env


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{1} no, \boxed{ 2 }", "2"),
        (r"\boxed{1} and \boxed{2", "1"),
        (r"\boxed{}", None),
        (r"\boxed{{1}", None),
        ("```python\nprint('\\boxed{3}')\n```", None),
        ("", None),
        ("\\boxed{" * 10_000, None),
    ],
)
def test_the_last_complete_box_outside_of_code(text, found):
    assert boxed(text) == found


def test_a_code_block_runs_and_its_capped_output_comes_back():
    env = started(output_cap=20)
    shown, reward, terminated, truncated, info = env.step("Hm.\n```python\nprint(6 * 7)\n```")
    assert shown.text == "```output\n42\n```"
    assert (reward, terminated, truncated, info["void"], info["exit"]) == (0.0, False, False, False, 0)
    shown, *_ = env.step("```python\nprint('x' * 1000)\n```")
    assert shown.text.count("x") == 20 and "more" in shown.text
    shown, *_ = env.step("```python\n1 / 0\n```")
    assert "Zero" in shown.text or "more" in shown.text
    env.close()


@pytest.mark.parametrize(
    "text", ["", "42", "```python\nprint(1)", r"\boxed{", r"\boxed{}", "<answer>42</answer>"]
)
def test_anything_else_is_void(text):
    env = started()
    shown, reward, terminated, _, info = env.step(text)
    assert (reward, terminated, info["void"]) == (0.0, False, True) and "\\boxed" in shown.text
    env.close()


def test_the_box_ends_the_episode_and_only_the_right_one_is_paid():
    for said, want in ((lambda a: a, 1.0), (lambda a: a + "1", 0.0)):
        env = started(kinds="arithmetic")
        _, reward, terminated, _, info = env.step(f"\\boxed{{{said(env.world.problem.answer)}}}")
        assert (reward, terminated, info["void"]) == (want, True, False)
        env.close()


def test_variables_live_on_only_where_asked_for():
    for stateful, word in ((True, "21"), (False, "NameError")):
        env = started(stateful=stateful)
        env.step("```python\na = 20\n```")
        assert word in env.step("```python\nprint(a + 1)\n```")[0].text
        env.close()


RIGHT = [
    ("3/4", "0.75"), ("3/4", r"\frac{6}{8}"), ("3/4", r"x = \frac34"), ("391", "391.0"), ("1000", "1,000"),
    ("391", r"391\text{ cm}"), ("1000", r"1 \times 10^3"), ("-2, 8", r"\{8, -2\}"),
    ("-2, 8", r"x = 8 \text{ or } x = -2"),
    ("-8, -1/2", "-8 and -0.5"), (r"12\sqrt{3}", r"\sqrt{432}"), ("x^2+1", "1 + x^2"), ("2^{10}", "1024"),
    ("(1,2)", "(1, 2)"),
]  # fmt: skip
WRONG = [
    ("3/4", "1/2+1/4"), ("391", "17*23"), ("391", r"17 \cdot 23"), ("391", "1=391"), ("391", "nan"), ("391", ""),
    ("5", r"\int_0^5 dx"), ("2", "10^{10^{10^{10}}}"), ("-2, 8", "8"), ("-2, 8", "-2, 8, 9"), ("(1,2)", "(2,1)"),
    ("A", "B"), ("3", "3 \udcff"), ("720", "6!"), ("1/3", "0.3"), ("x^2", "zq = 1, zq = x^2"), ("5", "9" * 5000),
]  # fmt: skip


async def test_math_verify_judges_behind_guards():
    judge = shared_judge()
    for gold, answer in RIGHT:
        assert await judge.right(gold, answer), (gold, answer)
    for gold, answer in WRONG:
        assert not await judge.right(gold, answer), (gold, answer)


async def test_a_judge_that_dies_is_replaced():
    judge = Judge(1)
    judge.warm()
    (process,) = list(judge._idle.queue)
    process.child.kill()
    process.child.wait()
    assert await judge.right("3/4", r"\frac{3}{4}")
    judge.close()
    assert judge._idle.empty()


@given(kind=st.sampled_from(sorted(KINDS)), difficulty=st.integers(1, 5), seed=st.integers(0, 10**6))
@settings(max_examples=80)
def test_every_problem_has_an_answer_that_can_be_said(kind, difficulty, seed):
    from gymrl.envs.math_tools.answers import presentable

    question, answer, solution = KINDS[kind](random.Random(seed), difficulty)
    assert question and presentable(answer, answer)
    compile(solution, "solution", "exec")
    task = TaskSpec.make(ID, "1", "val", seed)
    assert task.owns(Procedural((kind,), difficulty).draw(task, task.rng()).question)


@pytest.mark.parametrize("difficulty", [1, 5])
async def test_the_oracle_wins_every_kind_by_the_tool_and_nobody_else(difficulty):
    pools = [EnvPool(ID, {"kinds": kind, "difficulty": difficulty, "timeout": 60.0}) for kind in KINDS]
    for pool in pools:
        jobs = [Job(pool.task("test", index), index) for index in range(2)]
        for episode in await rollout(jobs, ScriptedAgent("oracle"), pool):
            assert episode.success and len(episode.turns) == 2, (episode.task, episode.turns)
        for name in ("random", "null"):
            assert not any(e.success for e in await rollout(jobs, ScriptedAgent(name), pool))
        await pool.aclose()


def rows(count, **fields):
    return [{"problem": f"What is {i} + {i}?", "answer": str(2 * i), **fields} for i in range(count)]


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in data))
    return str(path)


def test_problems_of_a_file_are_in_one_split_each(tmp_path):
    path = write(tmp_path / "p.jsonl", [*rows(200), {"problem": "what is  3 + 3?", "answer": "6"}])
    env = make(ID, problems=path)
    sizes = env.world.sizes
    assert sum(sizes.values()) == 200 and 120 < sizes["train"] < 195 and sizes["val"] and sizes["test"]
    asked = [p.question for found in env.world.source.by_split.values() for p in found]
    assert len(set(asked)) == 200
    env.reset(options={"index": 0})
    assert env.oracle().text.startswith("\\boxed{") and env.step(env.oracle())[1] == 1.0
    env.close()


def test_the_folder_of_a_dataset(tmp_path):
    pyarrow = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    (tmp_path / "data").mkdir()
    train = [{"question": f"Twice {i}?", "answer": f"It is so. #### {2 * i}"} for i in range(100)]
    test = [{"question": f"Twice {i}?", "answer": f"#### {2 * i}"} for i in range(95, 120)]
    for name, data in (("train", train), ("test", test)):
        pyarrow.write_table(pa.Table.from_pylist(data), tmp_path / "data" / f"{name}-00000-of-00001.parquet")
    env = make(ID, problems=str(tmp_path), split="test")
    assert env.world.sizes["test"] == 25 and env.world.sizes["train"] + env.world.sizes["val"] == 95
    assert env.world.source.by_split["test"][0].answer == "190"
    env.close()


@pytest.mark.parametrize(
    ("lines", "params", "words"),
    [
        ('{"problem": "1?", "answer": "1"}\n{', {}, "line 2"),
        ('{"text": "1?", "answer": "1"}', {}, "no question in"),
        ('{"problem": "1?", "answer": ""}', {}, "no answer in"),
        ("[1]", {}, "line 1"),
        ("", {}, "no problem for training"),
        ('{"problem": "1?", "answer": "1"}\n{"problem": "\udcff"}', {}, r"p\.jsonl, line 2: not UTF-8"),
        ('{"problem": "1?", "answer": "1"}', {"kinds": "dice"}, "leave them out"),
    ],
)
def test_a_broken_file_names_the_line(lines, params, words, tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(lines, errors="surrogateescape")
    with pytest.raises(ValueError, match=words):
        make(ID, problems=str(path), **params)


def test_wrong_parameters_name_the_mend():
    for params, words in (
        ({"kinds": "dise"}, "'dice'"), ({"difficulty": 9}, "1 to 5"), ({"problems": "nowhere"}, "no such file"),
        ({"problems": ""}, "no such file"),
        ({"max_turns": 0}, "1 or more"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            make(ID, **params)


def test_it_keeps_the_laws():
    laws = ["splits", "players", "rewards", "garbage", "endings", "close", "gymnasium"]
    quick = Settings(seconds=0.5, tasks=16, garbage=40, split_tasks=200)
    report = check(ID, {"kinds": "roots,dice"}, laws=laws, settings=quick)
    assert report.sound, [verdict for verdict in report.verdicts if verdict.faults]
