"""Curricula: pure functions of the step, plateaus whose state survives a checkpoint, tasks by potential."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gymrl.agents.records import Episode
from gymrl.envs.records import TaskSpec
from gymrl.rl.curricula import Curriculum, by_potential, potential
from gymrl.rl.recipes import RecipeError, load
from gymrl.rl.recipes.models import CurriculumSection


def test_the_horizon_is_that_of_scaling_inter():
    c = Curriculum(CurriculumSection(kind="horizon", stages=[10, 20, 30], every=100))
    assert [c.max_turns(step) for step in (0, 99, 100, 199, 200, 299, 300, 10_000)] == [
        10,
        10,
        20,
        20,
        30,
        30,
        30,
        30,
    ]
    assert c.tasks(0) is None and c.params(0) == {}


@given(st.lists(st.floats(0, 1), max_size=60), st.integers(0, 60))
def test_a_plateau_curriculum_goes_on_from_its_state(successes, cut):
    settings = CurriculumSection(kind="horizon", stages=[1, 2, 3], every=3, advance="plateau", gain=0.1)
    whole, first, second = Curriculum(settings), Curriculum(settings), Curriculum(settings)
    for success in successes:
        whole.saw(success)
    for success in successes[:cut]:
        first.saw(success)
    second.load_state(first.state())
    for success in successes[cut:]:
        second.saw(success)
    assert second.state() == whole.state() and second.stage(10**6) == whole.stage(0)


def test_a_plateau_advances_one_stage_and_looks_anew():
    c = Curriculum(
        CurriculumSection(
            kind="staged", stages=[{"a": 1}, {"a": 2}, {}], every=2, advance="plateau", gain=0.1
        )
    )
    seen = []
    for success in (0.1, 0.1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5):
        c.saw(success)
        seen.append(c.stage(0))
    # 0.1 -> 0.5 is a gain, 0.5 -> 0.5 none; the new stage begins without a look to compare with.
    assert seen == [0, 0, 0, 0, 0, 1, 1, 1, 1, 2] and c.params(0) == {}


def test_held_out_tasks_may_say_where_a_plateau_is():
    c = Curriculum(
        CurriculumSection(kind="horizon", stages=[1, 2, 3], every=2, advance="plateau", gain=0.1, validate_on=8)
    )
    looks = {1: 0.1, 3: 0.5, 5: 0.55, 7: 0.6, 9: 0.6}
    seen = []
    for step in range(12):
        if c.looks(step):
            c.looked(looks.pop(step))
        seen.append(c.stage(step))
    # 0.5 -> 0.55 is none, the new stage is looked at anew, and the last one not at all.
    assert seen == [0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2] and not looks


REFERENCE = {
    "TextCraft, SciWorld": ([10, 20, 30], 100), "BabyAI": ([6, 13, 20], 100), "SearchQA": ([5, 8, 10], 100),
    "WebArena": ([8, 12, 15], 80),
}  # fmt: skip


@pytest.mark.parametrize("name", REFERENCE)
def test_reference_stages_of_scaling_inter(name):
    """Those of the docs, as a recipe has them."""
    stages, every = REFERENCE[name]
    docs = (Path(__file__).parents[1] / "docs" / "algorithms.md").read_text()
    row = next(line for line in docs.splitlines() if line.startswith(f"| {name} |"))
    written = row.split("`")[1].removeprefix("rl.curriculum=")
    c = load("quickstart", [f"rl.curriculum={written}"]).rl.curriculum
    assert c is not None and (c.stages, c.every, c.advance) == (stages, every, "step")
    turns = Curriculum(c)
    assert [turns.max_turns(every * n + k) for n in range(4) for k in (0, every - 1)] == [
        stages[min(n, 2)] for n in range(4) for _ in range(2)
    ]


def test_difficulty_takes_the_highest_potential_first_and_a_quarter_more_each_stage():
    wins = {0: 4, 1: 2, 2: 1, 3: 0, 4: 2, 5: 3, 6: 0, 7: 4}
    episodes = [
        Episode(TaskSpec.make("toy/Toy-v0", "1", "train", index), (), "terminated", success=n < won)
        for index, won in wins.items()
        for n in range(4)
    ]
    episodes.append(Episode(TaskSpec.make("toy/Toy-v0", "1", "train", 1), (), "invalid", "environment: lost"))
    assert potential(2, 4) == 1 and potential(0, 4) == potential(4, 4) == 0 and potential(1, 4) == 0.75
    c = Curriculum(CurriculumSection(kind="difficulty", every=10))
    c.order = by_potential(episodes)
    assert c.order == [1, 4, 2, 5, 0, 3, 6, 7]
    assert [c.tasks(step) for step in (0, 10)] == [[1, 4], [1, 4, 2, 5]] and c.tasks(99) == c.order


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ('{kind="horizon"}', "numbers of turns"),
        ('{kind="staged", stages=[1]}', "tables of environment parameters"),
        ('{kind="difficulty", stages=[1]}', "goes by quarters"),
        ('{kind="horizon", stages=[0, 3]}', "1 turn or more"),
        ('{kind="horizon", stages=[2, 3], validate_on=8}', "what a plateau is seen by"),
    ],
)
def test_wrong_curricula_are_refused(table, words):
    with pytest.raises(RecipeError) as error:
        load("quickstart", [f"rl.curriculum={table}"])
    assert words in str(error.value)
    with pytest.raises(RecipeError, match="both bound the turns"):
        load("quickstart", ['rl.curriculum={kind="horizon", stages=[2]}', "env.max_turns=3"])
