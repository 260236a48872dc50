"""What a run leaves for other programs: JSON that is JSON, TensorBoard curves that hold each step once, causes that are
told apart; and what it does where there are fewer tasks than it is to hold out."""

from __future__ import annotations

import errno
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gymrl.agents.evaluation import merged_causes
from gymrl.agents.records import Episode
from gymrl.envs import Action, Environment, register
from gymrl.envs.records import TaskSpec
from gymrl.rl.folder import RunFolder
from gymrl.rl.pools import asked_for_tasks
from gymrl.rl.recipes import RecipeError, described, load, shipped
from gymrl.rl.report.files import read_curves
from gymrl.rl.run import Run, train
from gymrl.rl.stages.online import OnlineStage
from gymrl.rl.trackers import Trackers

sys.path.insert(0, str(Path(__file__).parent))
from toy_env import SMALL, Letters


class Few(Letters):
    """A world with few tasks to hold out."""

    sizes = {"train": 64, "val": 3, "test": 5}  # noqa: RUF012


class Odd(Environment):
    """Breaks in words that hold a measurement."""

    runs = "inline"

    def reset(self) -> str:
        return "Go."

    def step(self, action: Action) -> tuple[str, float, bool]:
        if self.task.split != "train":
            raise RuntimeError(f"no answer after {self.task.index + 0.25} s")
        return "Done.", 1.0, True

    def oracle(self) -> str:
        return "a"


register("toy/Few-v0", Few)
register("toy/Odd-v0", Odd)


def strict(text: str) -> dict:
    """JSON as all others read it."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def power_fails(monkeypatch: pytest.MonkeyPatch, stage: str, step: int) -> None:
    """The run ends by an error after this step has been logged."""
    checkpoint = Run._log

    def failing(self: Run, name: str, number: int, found: dict) -> None:
        checkpoint(self, name, number, found)
        if (name, number) == (stage, step):
            raise RuntimeError("the power fails")

    monkeypatch.setattr(Run, "_log", failing)


@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_tensorboard_holds_each_step_once_whatever_is_done_again(stage, tmp_path, monkeypatch) -> None:
    run = tmp_path / "run"
    small = [*SMALL, 'log.trackers=["tensorboard"]', "log.checkpoint_every=3", "sft.steps=5", "rl.steps=5"]
    with monkeypatch.context() as patch:
        power_fails(patch, stage, 4 if stage == "rl" else 1)  # steps from 3 on, or all, are done again
        with pytest.raises(RuntimeError, match="the power fails"):
            train("quickstart", small, None, run)
    assert train(None, [], run) == 0
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for name in ("sft", "rl"):
        events = EventAccumulator(str(run / "tensorboard" / name), size_guidance={"scalars": 0}).Reload()
        assert f"{name}/loss" in events.Tags()["scalars"]
        for tag in events.Tags()["scalars"]:
            key = tag.partition("/")[2]
            rows = [row for row in logged if row["stage"] == name and key in row]
            assert [(e.step, e.value) for e in events.Scalars(tag)] == [
                (row["step"], pytest.approx(row[key])) for row in rows
            ]


def test_other_trackers_count_steps_through_the_run(tmp_path) -> None:
    """Weights & Biases takes no step that is not above the last."""
    said: list[tuple[dict, int]] = []
    started: list[str] = []
    tracker = SimpleNamespace(finish=lambda: started.remove("gymrl"))
    accelerator = SimpleNamespace(
        init_trackers=lambda name, _: started.append(name),
        log=lambda values, step: said.append((values, step)),
        trackers=[tracker],
    )
    recipe = load("quickstart", ["sft.steps=2", "rl.steps=2", "log.trackers=[]"])
    recipe.log.trackers.append("wandb")
    trackers = Trackers(recipe, tmp_path, accelerator)
    for stage in ("sft", "rl"):
        trackers.begin(stage, 0)
        for step in range(2):
            trackers.log(stage, step, {"loss": 0.5})
    trackers.close()
    assert said == [({f"{s}/loss": 0.5}, n) for n, s in enumerate(("sft", "sft", "rl", "rl"))]
    assert not started and not (tmp_path / "tensorboard").exists()


def test_numbers_that_are_not_finite_are_null_in_the_files(tmp_path, monkeypatch) -> None:
    step, run = OnlineStage.step, tmp_path / "run"

    def odd(self: OnlineStage, number: int) -> tuple[dict, list[Episode]]:
        metrics, episodes = step(self, number)
        return metrics | {"acme": [math.nan, math.inf, 1.0][number], "skips": {"a": -math.inf}}, episodes

    with monkeypatch.context() as patch:
        patch.setattr(OnlineStage, "step", odd)
        power_fails(patch, "rl", 2)
        with pytest.raises(RuntimeError, match="the power fails"):
            train("quickstart", SMALL, None, run)
        rows = [strict(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [row["acme"] for row in rows if row["stage"] == "rl"] == [None, None, 1.0]
        # One of an older gymrl, and a summary of odd figures: read, and written as JSON from then on.
        text = (run / "metrics.jsonl").read_text()
        (run / "metrics.jsonl").write_text(text.replace('"acme": null', '"acme": NaN', 1))
        state = json.loads((run / "state.json").read_text())
        state["summary"]["odd"] = math.inf
        (run / "state.json").write_text(json.dumps(state))
    assert train(None, [], run) == 0
    rows = [strict(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("acme", "gone") for row in rows if row["stage"] == "rl"] == [None, None, "gone"]
    for name in ("summary.json", "state.json"):
        strict((run / name).read_text())
    assert strict((run / "summary.json").read_text())["odd"] is None
    (curve,) = [c for c in read_curves(run) if c.key == "acme"]
    assert curve.steps == [0.0, 1.0] and all(map(math.isnan, curve.values))
    found = RunFolder.open(run).logged("rl", "acme")
    assert len(found) == 2 and all(map(math.isnan, found))


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("no answer after 12.3 s", "no answer after 4 s", True),
        ("took 1e-05 s of 60", "took 3.5e+02 s of 60", True),
        ("object at 0x7f3a10 is gone", "object at 0x7f3a5e is gone", True),
        ("127.0.0.1:34567 refuses", "127.0.0.1:8000 refuses", False),
        ("KeyError: 'x' (world.py:12)", "KeyError: 'x' (world.py:13)", False),
        ("the server said HTTP 404", "the server said HTTP 500", False),
        ("died (exit status 1)", "died (exit status -9)", False),
        ("[Errno 2] no file", "[Errno 28] no space", False),
        ("float16 is no number", "float32 is no number", False),
        ("no answer", "no question", False),
    ],
)
def test_causes_are_one_where_only_a_measurement_differs(one: str, other: str, alike: bool) -> None:
    assert merged_causes({one: 2}, {other: 3}) == ({one: 5} if alike else {one: 2, other: 3})


def test_a_run_counts_and_tells_such_causes_once(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(Odd, "sizes", {"train": 64, "val": 8, "test": 8})
    step = Odd.step

    def sometimes(self: Odd, action: Action) -> tuple[str, float, bool]:
        return ("Done.", 1.0, True) if self.task.index == 7 else step(self, action)

    monkeypatch.setattr(Odd, "step", sometimes)
    small = [*SMALL, "env.id=toy/Odd-v0", "eval.tasks=8", 'stages=["sft"]']
    assert train("quickstart", small, None, tmp_path / "run") == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    (cause,) = summary["invalid"]
    assert "no answer after 0.25 s" in cause and summary["invalid"][cause] == 14
    assert [stage["invalid"] for stage in summary["stages"]] == [{cause: 7}, {cause: 7}]
    assert "14 invalid episodes, in no figure" in " ".join(capsys.readouterr().out.split())


def test_more_held_out_tasks_than_there_are_is_an_error_where_the_user_wrote_it(tmp_path, capsys) -> None:
    small = [key for key in SMALL if not key.startswith(("eval.", "env."))]
    few = [*small, "env.id=toy/Few-v0"]
    for wish in (["eval.tasks=6"], ["eval={tasks=6}"]):
        with pytest.raises(
            ValueError, match=r"^eval\.tasks = 6: toy/Few-v0 has 5 tasks in test; set 5 or less$"
        ):
            train("quickstart", [*few, *wish], None, tmp_path / "run")
    (tmp_path / "mine.toml").write_text("[eval]\ntasks = 6\n")
    with pytest.raises(ValueError, match=r"eval\.tasks = 6: "):
        train(str(tmp_path / "mine.toml"), few, None, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    capsys.readouterr()
    # The default of 256 is nobody's wish: all there are, and one line that says so.
    assert train("quickstart", [*few, "eval.every=2", "rl.steps=2"], None, tmp_path / "run") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "toy/Few-v0 has 5 tasks in test: all are held out, eval.tasks = 5" in printed
    assert "toy/Few-v0 has 3 tasks in val: looks on the way are at those" in printed
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [stage["episodes"] for stage in summary["stages"]] == [5, 5, 5]
    assert load(tmp_path / "run" / "recipe.toml").eval.tasks == 5  # and so its recipe runs again


def test_a_resumed_run_of_too_many_held_out_tasks_goes_on(tmp_path, monkeypatch) -> None:
    """A recipe.toml that was written before this was looked at names the default."""
    small = [key for key in SMALL if not key.startswith(("eval.", "env."))]
    with monkeypatch.context() as patch:
        power_fails(patch, "rl", 2)
        with pytest.raises(RuntimeError, match="the power fails"):
            train("quickstart", [*small, "env.id=toy/Few-v0"], None, tmp_path / "run")
    recipe = tmp_path / "run" / "recipe.toml"
    text = recipe.read_text()
    recipe.write_text(text.replace("tasks = 5\n", "tasks = 256\n"))
    assert recipe.read_text() != text
    with pytest.raises(ValueError, match=r"eval\.tasks = 7: "):
        train(None, ["eval.tasks=7"], tmp_path / "run")
    assert train(None, [], tmp_path / "run") == 0


def test_no_shipped_recipe_is_a_wish_for_tasks() -> None:
    for name in shipped():
        try:
            recipe = load(name)
        except RecipeError as error:  # one that needs what is not installed
            assert "pip install" in str(error)
            continue
        assert not asked_for_tasks(name, recipe, [])
    assert asked_for_tasks("textworld", load("textworld"), ["eval.tasks=128"])


def test_a_recipe_stays_small() -> None:
    """Keys outside the tables that may be left out and the settings of choices."""
    every = described()
    tables = {key.of for key in every}
    assert {"model.tiny", "sft.tokens", "rl.kl", "rl.critic", "rl.overlong", "rl.curriculum", "rl.prefix", "rft",
            "preference", "es"} <= tables  # fmt: skip
    plain = [
        key.name for key in every if not key.of and not (key.name in tables and key.default == "left out")
    ]
    assert {"rl.schedule", "learner.trainable", "env.id"} <= set(plain) and "rl.kl" not in plain
    assert len(plain) <= 60, plain


def test_causes_are_counted_over_all_steps() -> None:
    task = TaskSpec.make("toy/Odd-v0", "1", "test", 0)
    episodes = [Episode(task, (), "invalid", f"environment: no answer after {n} s") for n in (1, 2.5, 3)]
    run = SimpleNamespace(summary={"invalid": {}, "void": {}})
    for _ in range(2):
        Run._count(run, episodes)
    assert run.summary["invalid"] == {"environment: no answer after 1 s": 6}


def test_a_full_disk_still_tells_how_to_go_on(tmp_path, capsys, monkeypatch) -> None:
    """Nothing can be written any more, not even that the run failed."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    log = RunFolder.log

    def filling(self: RunFolder, row: dict) -> None:
        if row["stage"] == "rl" and row["step"] == 1:
            monkeypatch.setattr(RunFolder, "write_text", full)
            full()
        log(self, row)

    monkeypatch.setattr(RunFolder, "log", filling)
    out = tmp_path / "run"
    with pytest.raises(OSError, match="No space left"):
        train("quickstart", SMALL, None, out)
    said = " ".join(capsys.readouterr().out.split())
    assert f"once it is mended, go on with: gymrl train --resume {out}" in said
    monkeypatch.undo()
    assert train(None, [], out) == 0
