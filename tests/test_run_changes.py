"""What may change between the beginning of a run and its end: settings, files, the folder one stands in; and what a run
says of steps that taught nothing."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import tomllib
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from gymrl.agents.episodes import read_jsonl
from gymrl.envs import Action, Environment, register
from gymrl.rl.folder import RunFault, RunFolder
from gymrl.rl.recipes import RecipeError, anchored, load
from gymrl.rl.run import INTERRUPTED, Run, train
from gymrl.rl.workshop import Workshop

sys.path.insert(0, str(Path(__file__).parent))
from toy_env import SMALL


class Coin(Environment):
    """Every other task is won whatever is said, the others by chance of what is said: half of the groups are flat."""

    runs = "inline"

    def reset(self) -> str:
        return "Go."

    def step(self, action: Action) -> tuple[str, float, bool]:
        won = self.task.index % 2 == 0 or len(action.text) % 2 == 0
        return "Done.", float(won), True

    def recognises(self, action: Action) -> bool:
        return True

    def oracle(self) -> str:
        return "ab"


class Lost(Coin):
    """What the oracle says wins; a policy never says it."""

    def step(self, action: Action) -> tuple[str, float, bool]:
        return "Done.", float(action.text == "ab ba ab"), True

    def oracle(self) -> str:
        return "ab ba ab"


register("toy/Coin-v0", Coin)
register("toy/Lost-v0", Lost)


def rows(run: Path, stage: str = "rl") -> list[dict]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if row["stage"] == stage]


def bare(row: dict) -> dict:
    return {key: value for key, value in row.items() if not key.startswith("time/")}


def cut(out: Path, overrides: list[str], monkeypatch: pytest.MonkeyPatch, at: int = 1) -> None:
    """A run that ends by an error in an RL step, the second one if nothing is said."""
    log = RunFolder.log

    def broken(self: RunFolder, found: dict) -> None:
        if found["stage"] == "rl" and found["step"] == at:
            raise RuntimeError("the power fails")
        log(self, found)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "log", broken)
        with pytest.raises(RuntimeError, match="power"):
            train("quickstart", [*SMALL, *overrides], None, out)


def test_what_a_resumed_run_changes_is_in_its_recipe_and_its_summary(tmp_path, monkeypatch):
    run = tmp_path / "run"
    cut(run, [], monkeypatch)
    assert json.loads((run / "summary.json").read_text())["status"] == "failed"
    with pytest.raises(RunFault, match=r"the run has been through \['sft', 'rl'\]"):
        train(None, ['stages=["rl"]'], run)
    assert tomllib.loads((run / "recipe.toml").read_text())["rl"]["steps"] == 3
    wanted = ["rl.steps=4", 'stages=["sft", "rl", "rft"]', "rft={rounds=1, tasks=2, steps=1}"]
    assert train(None, wanted, run) == 0
    assert load(run / "recipe.toml").rl.steps == 4 and len(rows(run)) == 4
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "finished" and [s["name"] for s in summary["stages"]] == ["base", "sft", "rl", "rft"]
    assert summary["changed"] == [{"phase": 3, "step": 1, "set": wanted}]


def test_fewer_steps_than_are_done_are_refused(tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    cut(run, [], monkeypatch, at=2)
    with pytest.raises(RunFault, match="rl has done 2 steps, more than the 1"):
        train(None, ["rl.steps=1"], run)
    assert load(run / "recipe.toml").rl.steps == 3
    assert train(None, [], run) == 0
    capsys.readouterr()
    assert train(None, ["rl.steps=9"], run) == 0
    assert "rl.steps=9 would be of a new run" in " ".join(capsys.readouterr().out.split())


def test_an_interruption_before_the_first_evaluation_is_heard_there(tmp_path, monkeypatch):
    prepare = Workshop.prepare

    def interrupted(self):
        prepare(self)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Workshop, "prepare", interrupted)
        assert train("quickstart", SMALL, None, tmp_path / "run") == INTERRUPTED
    assert not list((tmp_path / "run" / "episodes").glob("eval-*"))
    assert train(None, [], tmp_path / "run") == 0


def test_a_run_goes_on_where_its_demonstrations_have_gone(tmp_path, monkeypatch):
    assert train("quickstart", [*SMALL, 'stages=["sft"]'], None, tmp_path / "first") == 0
    (tmp_path / "first" / "episodes" / "demonstrations.jsonl").rename(tmp_path / "shown.jsonl")
    monkeypatch.chdir(tmp_path)
    cut(tmp_path / "run", ["data=shown.jsonl"], monkeypatch)
    (tmp_path / "shown.jsonl").unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert train(None, ["sft.lr=1e-4"], tmp_path / "run") == 0


def test_a_resumed_run_learns_from_the_demonstrations_that_it_is_given(tmp_path, monkeypatch):
    assert train("quickstart", [*SMALL, 'stages=["sft"]'], None, tmp_path / "first") == 0
    shown = (tmp_path / "first" / "episodes" / "demonstrations.jsonl").read_text().splitlines(True)
    for name, part in (("one", shown[:5]), ("two", shown[5:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(part))
    cut(tmp_path / "run", [f"data={tmp_path}/one.jsonl"], monkeypatch)
    copy = tmp_path / "run" / "episodes" / "demonstrations.jsonl"
    assert len(copy.read_text().splitlines()) == 5
    (tmp_path / "one.jsonl").unlink()
    with pytest.raises(RecipeError, match="there is no such file"):
        train(None, [f"data={tmp_path}/three.jsonl"], tmp_path / "run")
    assert len(copy.read_text().splitlines()) == 5
    assert train(None, [f"data={tmp_path}/two.jsonl"], tmp_path / "run") == 0
    assert len(copy.read_text().splitlines()) == 3


def test_a_recipe_means_the_same_from_every_folder(tmp_path, monkeypatch):
    (tmp_path / "shown.jsonl").write_text("")
    (tmp_path / "ref").mkdir()
    (tmp_path / "ref" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    recipe = anchored(load("quickstart", ["data=shown.jsonl", "rl.kl={ref='ref'}", "model.path=org/name"]))
    assert recipe.sft.data == str(tmp_path / "shown.jsonl") and recipe.model.path == "org/name"
    assert recipe.rl.kl is not None and recipe.rl.kl.ref == str(tmp_path / "ref")
    assert anchored(load("quickstart")) == load("quickstart")


def test_steps_without_an_advantage_are_counted(tmp_path, capsys):
    overrides = [*SMALL, "env.id=toy/Lost-v0", 'stages=["rl"]', "rl.steps=4"]
    assert train("quickstart", overrides, None, tmp_path / "run") == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["skipped"] == {"no token had an advantage": 4}
    assert "RL learnt nothing" in capsys.readouterr().out


def test_groups_that_were_dropped_count_in_what_the_policy_achieves(tmp_path):
    overrides = [*SMALL, "env.id=toy/Coin-v0", 'stages=["rl"]', "rl.resample=1", "rl.group=6"]
    assert train("quickstart", overrides, None, tmp_path / "run") == 0
    found = rows(tmp_path / "run")
    assert any(row["dropped_groups"] for row in found)
    for row in found:
        episodes = list(read_jsonl(tmp_path / "run" / "episodes" / "rl" / f"{row['step']:06d}.jsonl"))
        assert row["success"] == pytest.approx(sum(e.success for e in episodes) / len(episodes))
        assert row["sampled_tokens"] == pytest.approx(sum(e.tokens for e in episodes))


@pytest.mark.parametrize(("settings", "first"), [(['stages=["rl"]'], 0), (['stages=["rl"]', "rl.sft_weight=0.5"], 8)])
def test_rl_plays_other_tasks_than_were_shown(settings, first, tmp_path):
    assert train("quickstart", [*SMALL, *settings, "rl.steps=1"], None, tmp_path / "run") == 0
    played = read_jsonl(tmp_path / "run" / "episodes" / "rl" / "000000.jsonl")
    assert sorted({e.task.index for e in played}) == [first, first + 1]


def test_weights_that_are_not_finite_are_not_kept(tmp_path, monkeypatch):
    overrides = [*SMALL, "sft.lr=1e38", "sft.steps=9", "sft.schedule.warmup=0", "learner.spike=0"]
    with pytest.raises(RunFault, match="not finite any more, and no checkpoint is written"):
        train("quickstart", overrides, None, tmp_path / "run")
    assert not list((tmp_path / "run" / "checkpoints").glob("sft-step-00000[4-9]"))


def test_looks_on_the_way_keep_the_best_and_change_nothing(tmp_path, monkeypatch):
    wanted = ["rl.steps=4", "rl.lr=1e-2", "sft.steps=40", "sft.lr=5e-3", "eval.tasks=8"]
    looks = [*wanted, "eval.every=2"]
    assert train("quickstart", [*SMALL, *wanted], None, tmp_path / "plain") == 0
    assert train("quickstart", [*SMALL, *looks], None, tmp_path / "whole") == 0
    cut(tmp_path / "cut", looks, monkeypatch)
    assert train(None, [], tmp_path / "cut") == 0
    plain, whole, resumed = (rows(tmp_path / name) for name in ("plain", "whole", "cut"))
    assert [bare(row) for row in whole] == [bare(row) for row in resumed]
    seen = [row["val/success"] for row in whole if "val/success" in row]
    assert [("val/success" in row) for row in whole] == [False, True, False, True]
    assert [{k: v for k, v in bare(row).items() if not k.startswith("val/")} for row in whole] == list(map(bare, plain))
    best = json.loads((tmp_path / "whole" / "summary.json").read_text())["best"]
    assert best["rl"]["success"] == max(seen) and best["rl"]["step"] == 2 * (seen.index(max(seen)) + 1)
    assert len([row for row in rows(tmp_path / "whole", "sft") if "val/success" in row]) == 20
    for stage in ("sft", "rl"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "whole" / "checkpoints" / f"{stage}-best")


def test_a_blank_that_is_no_token_is_named_before_anything_is_trained(tmp_path):
    with pytest.raises(ValueError, match=r"sft\.tokens\.blank=999999 is no token of this policy"):
        train("quickstart", [*SMALL, "sft.tokens={blank=999999, masked=0.2}"], None, tmp_path / "run")


@pytest.mark.parametrize("end", [KeyboardInterrupt, MemoryError])
def test_a_run_that_was_stopped_before_its_last_lines_is_finished_by_resuming(end, tmp_path, monkeypatch):
    finish = Run._finish

    def dies(self, status):
        raise end

    monkeypatch.setattr(Run, "_finish", dies)
    run = tmp_path / "run"
    with contextlib.suppress(MemoryError):
        train("quickstart", SMALL, None, run)
    assert not (run / "policy").exists()
    monkeypatch.setattr(Run, "_finish", finish)
    assert train(None, [], run, None) == 0
    assert (run / "policy" / "model.safetensors").read_bytes() == (
        run / "checkpoints" / "rl" / "model.safetensors"
    ).read_bytes()
    assert json.loads((run / "summary.json").read_text())["status"] == "finished"


def test_preferences_of_nothing_end_the_run_and_a_resumed_one_samples_anew(tmp_path):
    small = [*SMALL, "env.id=toy/Lost-v0", "algo=dpo", 'stages=["preference"]', "preference.tasks=2"]
    settings = [*small, "preference.samples=2", "preference.steps=4"]
    run = tmp_path / "run"
    told = r"0 of 0 successes and \d of \d failures can be learnt from .*no task has both"
    for arguments in (("quickstart", settings, None, run), (None, ["preference.samples=3"], run, None)):
        with pytest.raises(RunFault, match=told):
            train(*arguments)
        assert json.loads((run / "summary.json").read_text())["status"] == "failed"
    episodes = list(read_jsonl(run / "episodes" / "preference" / "000000.jsonl"))
    assert len(episodes) == 6 and not (run / "policy").exists()


def test_a_split_without_tasks_is_told_before_anything_is_played(tmp_path, monkeypatch):
    monkeypatch.setattr(Coin, "sizes", {"train": 8, "val": 4, "test": 0})
    with pytest.raises(ValueError, match=r"has no tasks in test: give it some, or take another eval\.split"):
        train("quickstart", [*SMALL, "env.id=toy/Coin-v0"], None, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    small = [*SMALL, "env.id=toy/Coin-v0", "eval.split=val", 'stages=["rl"]']
    assert train("quickstart", small, None, tmp_path / "run") == 0
