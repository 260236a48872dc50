"""The reasoning-gym families of the code interpreter: sound worlds, sound verdicts."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("reasoning_gym")

import numpy as np
from reasoning_gym.factory import DATASETS

from gymrl.envs import EnvironmentFault, TaskSpec, make
from gymrl.envs.code_interpreter import maker
from gymrl.envs.code_interpreter.propositions import concludes, conclusion, formula
from gymrl.envs.code_interpreter.reasoning import APART, ReasoningTasks, all_families, held_out

GARBAGE = (
    "", " ", "foo", "0", "1", "-1", "42 garbage", "None", "True", "False", "True False", "yes no", "A", "a b c",
    "0 1 2 3 4 5 6 7 8 9", "()", "[]", "{}", "[[1,2],[3,4]]", '{"a": 1}', "((((", "1e9999999999", "é∂ƒ", "x" * 5000,
    "<answer>", "9**9**9**9", "__import__('os').getpid()", "[print(1) for _ in ()]",
)  # fmt: skip


SLOW = frozenset({"arc_agi", "futoshiki", "figlet_font", "group_anagrams"})
QUICK = tuple(family for family in all_families() if family not in APART)


def spec(split: str, index: int) -> TaskSpec:
    return TaskSpec.make("gymrl/CodeInterpreter-v0", "1", split, index)


def digests() -> dict[str, str]:
    """One problem of every family, hashed."""
    found = {}
    for family in sorted({*QUICK, *APART} - SLOW):
        task = spec("train", 3)
        problem = ReasoningTasks((family,)).draw(task, task.rng())
        text = json.dumps([problem.question, problem.answer])
        found[family] = hashlib.sha256(text.encode()).hexdigest()
    return found


def same(answer: str, stored: str) -> bool:
    """Whether a garbage answer happens to say what the right one does."""
    try:
        return float(answer) == float(stored)
    except ValueError:
        return answer.strip().lower() == stored.strip().lower()


@pytest.mark.parametrize("family", all_families())
def test_a_family_is_sound(family: str) -> None:
    source = ReasoningTasks((family,))
    for index in range(2):
        task = spec("train", index)
        source.draw(task, task.rng())  # some families read their data when they are first used
        before = random.getstate(), str(np.random.get_state())
        problem = source.draw(task, task.rng())
        assert problem.kind == family and problem.question and problem.answer
        assert task.owns(f"{family}\n{problem.question}")
        assert source.score(problem, problem.answer) == 1.0
        assert source.score(problem, f"\n {problem.answer} ") == 1.0
        right = problem.answer
        near = (
            f"{right} garbage",
            f"garbage {right}",
            f"{right} or zq",
            f"The answer is {right}",
            right + "zq",
        )
        for garbage in (*GARBAGE, *near):
            if not same(garbage, problem.answer):
                assert source.score(problem, garbage) == 0.0, garbage
        assert (random.getstate(), str(np.random.get_state())) == before


@pytest.mark.parametrize(
    ("family", "wrong"),
    [
        ("puzzle24", lambda right: "4 * 6 * 1 * 1"),  # other numbers; the package asks for any four
        ("puzzle24", lambda right: f"({right})*1"),
        ("countdown", lambda right: right.replace(" ", "", 1) + ".0"),
        ("gsm_symbolic", lambda right: f"-{right}"),
        ("sokoban", lambda right: f"{right} or not"),
        ("rush_hour", lambda right: f"Z+1 {right}"),
        ("rush_hour", lambda right: f"{right} A+1"),
        ("boxnet", lambda right: right.replace("Agent", "Nobody")),
        ("number_sorting", lambda right: right.replace(".", ".01")),
        ("pool_matrix", lambda right: right.replace("9", "9.04") + " "),
        ("polynomial_equations", lambda right: f"{right}, {right}"),
        ("rubiks_cube", lambda right: f"{right} 9x9"),
        ("decimal_arithmetic", lambda right: right + "9" if "." not in right else right[:-3]),
        ("advanced_geometry", lambda right: f"{right}, I guess"),
        ("knights_knaves", lambda right: f"{right} {right}"),
        ("propositional_logic", lambda right: "(P ∨ ¬P)"),
        ("propositional_logic", lambda right: "((P ∧ ¬P) ∧ Q)"),
        ("propositional_logic", lambda right: right + "9"),
    ],
)
def test_what_the_package_takes_for_right_and_is_not(family: str, wrong: Callable[[str], str]) -> None:
    source = ReasoningTasks((family,))
    for index in range(6):
        task = spec("train", index)
        problem = source.draw(task, task.rng())
        said = wrong(problem.answer)
        if said.split() != problem.answer.split():
            assert source.score(problem, said) == 0.0, (problem.question[-300:], problem.answer, said)
        assert source.score(problem, problem.answer) == 1.0


@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("countdown", lambda right: f"({right})"),
        ("gsm_symbolic", lambda right: f"${right}.00"),
        ("number_sorting", lambda right: right.replace("'", '"').replace(".0'", "'")),
        (
            "polynomial_equations",
            lambda right: ", ".join(reversed([f"{part}0" for part in right.split(", ")])),
        ),
        ("quantum_lock", lambda right: right.replace(" → ", ", ").lower()),
        ("fraction_simplification", lambda right: right.strip("$")),
        ("propositional_logic", lambda right: f"({right})".replace(" ", "")),
        ("knights_knaves", lambda right: right.replace(", and", " and").rstrip(".")),
        ("spell_backward", lambda right: right.upper()),
        ("boxnet", lambda right: right.replace(" ", "").replace(",", ", ").replace("box_", "box_")),
    ],
)
def test_a_right_answer_may_be_written_otherwise(family: str, said: Callable[[str], str]) -> None:
    source = ReasoningTasks((family,))
    for index in range(6):
        task = spec("train", index)
        problem = source.draw(task, task.rng())
        assert source.score(problem, said(problem.answer)) == 1.0, (problem.answer, said(problem.answer))


def test_no_answer_is_right_for_most_problems() -> None:
    for family in ("puzzle24", "propositional_logic", "countdown", "string_manipulation"):
        source = ReasoningTasks((family,))
        problems = [source.draw(task, task.rng()) for task in (spec("train", index) for index in range(24))]
        said = {problem.answer for problem in problems} | {"(P ∨ Q)", "4 * 6", ""}
        assert max(sum(source.score(problem, text) for problem in problems) for text in said) <= 14, family


def test_conclusions_take_more_than_one_premise() -> None:
    known = {"premises": ["P", "(P → Q)", "(¬R ∨ P)"], "variables": ["P", "Q", "R"]}
    assert conclusion(known) == "Q" and concludes("Q", known) and concludes("P ∧ Q", known)
    assert not concludes("P", known) and not concludes("(P ∨ Q)", known)  # of the first alone
    assert not concludes("R", known) and not concludes("S", known) and not concludes("(Q", known)
    assert not concludes("¬" * 150 + "Q" * 2, known) and not concludes("(" * 5000, known)
    assert formula("P → Q ∨ ¬R ∧ P")({"P": True, "Q": False, "R": False})
    assert conclusion({"premises": ["P", "¬P"], "variables": ["P", "Q"]}) == ""
    for text in ("", "P Q", "P ∧", "∧ P", "()", "P)", "¬", "P9"):
        with pytest.raises(ValueError, match=r"formula|\) is missing|stands where"):
            formula(text)


def test_another_process_with_another_hash_seed_draws_the_same() -> None:
    script = (
        "import importlib.util, json\n"
        f"spec = importlib.util.spec_from_file_location('here', {__file__!r})\n"
        "here = importlib.util.module_from_spec(spec); spec.loader.exec_module(here)\n"
        "print(json.dumps(here.digests()))\n"
    )
    environ = {**os.environ, "PYTHONHASHSEED": "4242"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environ, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == digests()


def test_all_of_the_package_is_here() -> None:
    assert set(all_families()) == set(DATASETS) and len(all_families()) == 106
    assert set(APART) < set(DATASETS) and all(APART.values())


def test_families_can_be_split_too() -> None:
    source = ReasoningTasks(by_family=True)
    assert 16 <= sum(map(held_out, all_families())) <= 36
    kinds = {
        split: {random.Random(i).choice(source._of_split(split)) for i in range(3000)}
        for split in ("train", "val", "test")
    }
    assert kinds["val"] == kinds["test"] == set(filter(held_out, all_families()))
    assert kinds["train"] == set(all_families()) - kinds["test"]
    for split in ("train", "test"):
        source = ReasoningTasks(
            ("leg_counting", "lcm", "gcd", "basic_arithmetic", "number_sorting", "maze"), True
        )
        task = spec(split, 0)
        assert held_out(source.draw(task, task.rng()).kind) == (split == "test")
    with pytest.raises(ValueError, match="none of 1 families is in"):
        ReasoningTasks(("leg_counting",), by_family=True)


def test_a_verifier_that_computes_for_ever_finds_the_answer_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maker, "JUDGE_SECONDS", 0.5)
    source = ReasoningTasks(("simple_integration",))
    task = spec("train", 0)
    problem = source.draw(task, task.rng())
    seed, index = problem.data.where
    assert maker.MAKER.score("simple_integration", seed, index, "9**9**9**9") == 0.0
    assert source.score(problem, "9**9**9**9") == 0.0
    assert source.score(problem, problem.answer) == 1.0  # by a new process


def test_a_lost_maker_is_a_fault_and_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lost = maker.Maker()
    first = lost.item("ransom_note", 7, 0)
    assert lost._process is not None
    for index in range(40):  # stored programs, of which some write files
        lost.item("codeio", 7, index)
    assert not list(tmp_path.iterdir())
    lost._process.kill()
    lost._process.wait()
    assert lost.item("ransom_note", 7, 0) == first
    with pytest.raises(EnvironmentFault, match="word_ladder failed for seed 1"):
        lost.item("word_ladder", 1, 10**9)
    lost.close()
    assert lost._process is None


def test_neighbouring_tasks_share_nothing_and_splits_are_disjoint() -> None:
    source = ReasoningTasks(("basic_arithmetic", "leg_counting", "lcm"))
    drawn = {
        split: {
            source.draw(task, task.rng()).question for task in (spec(split, index) for index in range(40))
        }
        for split in ("train", "val", "test")
    }
    assert len(drawn["train"]) >= 39
    assert (
        not drawn["train"] & drawn["val"]
        and not drawn["train"] & drawn["test"]
        and not drawn["val"] & drawn["test"]
    )


def test_all_families_are_drawn_from_by_default() -> None:
    source = ReasoningTasks(None)
    kinds = {random.Random(index).choice(source.families) for index in range(2000)}
    assert kinds == set(source.families) == set(all_families())


def test_code_in_an_answer_is_never_run(tmp_path: os.PathLike[str]) -> None:
    marker = os.path.join(tmp_path, "ran")
    attack = f"open({marker!r}, 'w').close()"
    for family in (
        "n_queens",
        "binary_matrix",
        "spiral_matrix",
        "string_insertion",
        "countdown",
        "puzzle24",
        "simple_integration",
        "polynomial_multiplication",
        "rush_hour",
    ):
        source = ReasoningTasks((family,))
        task = spec("test", 0)
        problem = source.draw(task, task.rng())
        for answer in (attack, f"[{attack}]", f"1 + {attack}"):
            assert source.score(problem, answer) == 0.0
    assert not os.path.exists(marker)


def test_a_verifier_that_fails_on_its_own_answer_is_a_fault() -> None:
    source = ReasoningTasks(("leg_counting",))
    task = spec("train", 0)
    problem = source.draw(task, task.rng())

    class Broken:
        def score_answer(self, answer: str, item: object) -> float:
            raise RuntimeError("broken verifier")

    broken = replace(problem, data=replace(problem.data, where=(Broken(), {})))
    assert source.score(broken, "wrong") == 0.0
    with pytest.raises(EnvironmentFault, match="leg_counting cannot judge its own answer"):
        source.score(broken, problem.answer)


def test_an_unknown_family_is_named() -> None:
    with pytest.raises(ValueError, match="did you mean 'leg_counting'"):
        ReasoningTasks(("leg_countin",))


def test_the_code_interpreter_plays_them() -> None:
    env = make("gymrl/CodeInterpreter-v0", tasks="reasoning-gym:leg_counting,lcm", split="test")
    for index in range(3):
        env.reset(options={"index": index})
        _, reward, terminated, _, _ = env.step(env.oracle())
        assert (reward, terminated) == (1.0, True)
    env.close()
