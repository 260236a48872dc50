"""Whole runs of the trainer, small enough for a test: resume after anything, bad input, what the folder holds."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gymrl.agents.episodes import read_jsonl
from gymrl.rl.folder import RunFault
from gymrl.rl.recipes import RecipeError, dump, load, parse, shipped
from gymrl.rl.run import train

HERE = str(Path(__file__).parent)
sys.path.insert(0, HERE)
import toy_env  # noqa: E402, F401 - registers toy/Letters-v0

ENVIRONMENT = {**os.environ, "PYTHONPATH": HERE}
SMALL = [
    "model.tiny={hidden=64, heads=2, kv_heads=1, layers=1}", "sft.demonstrations=12",
    "sft.steps=7", "sft.batch=4",
    "rl.steps=5", "rl.tasks=2", "rl.group=3", "rl.schedule.warmup=1", "rl.updates=2", "eval.tasks=4",
    "sampling.max_tokens=8",
    "log.checkpoint_every=2", 'rl.void="keep"', "env.id=toy/Letters-v0", "env.params={}", "sft.params={}",
]  # fmt: skip


def start(out: Path, *extra: str) -> subprocess.Popen[str]:
    code = "import sys; import toy_env; from pathlib import Path; from gymrl.rl.run import train; " + (
        "sys.exit(train('quickstart', sys.argv[2:], None, Path(sys.argv[1])))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(out), *SMALL, *extra],
        text=True,
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
    )


def metrics(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(run / "policy").state_dict()


def same_run(a: Path, b: Path) -> None:
    one, two = weights(a), weights(b)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert metrics(a) == metrics(b)
    for stage in ("base", "sft", "rl"):
        first, second = (list(read_jsonl(run / "episodes" / f"eval-{stage}.jsonl")) for run in (a, b))
        assert [[t.completion_ids for t in e.turns] for e in first] == [
            [t.completion_ids for t in e.turns] for e in second
        ]
        assert [[t.logprobs for t in e.turns] for e in first] == [
            [t.logprobs for t in e.turns] for e in second
        ]
    stages = [json.loads((run / "summary.json").read_text()) for run in (a, b)]
    for summary in stages:
        for stage in summary["stages"]:
            stage.pop("seconds")
    assert stages[0]["stages"] == stages[1]["stages"]
    assert (stages[0]["invalid"], stages[0]["void"]) == (stages[1]["invalid"], stages[1]["void"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that was never interrupted, in a process of its own as the interrupted ones are."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    process = start(out)
    process.communicate()
    assert process.returncode == 0
    return out


def test_the_run_folder_stands_alone(whole):
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["status"] == "finished" and summary["seed"] == 0
    assert [stage["name"] for stage in summary["stages"]] == ["base", "sft", "rl"]
    for stage in summary["stages"]:
        assert 0 <= stage["low"] <= stage["success"] <= stage["high"] <= 1 and stage["episodes"] == 4
    rows = metrics(whole)
    assert [(r["stage"], r["step"]) for r in rows] == [("sft", s) for s in range(7)] + [
        ("rl", s) for s in range(5)
    ]
    assert load(whole / "recipe.toml") == load("quickstart", SMALL)
    assert len(list((whole / "episodes" / "rl").glob("*.jsonl"))) == 5
    for name in ("base", "sft", "rl"):
        assert AutoTokenizer.from_pretrained(whole / "checkpoints" / name).chat_template
        AutoModelForCausalLM.from_pretrained(whole / "checkpoints" / name)
    assert (whole / "report.html").stat().st_size > 1000
    assert not list(whole.rglob("*.part"))
    # Every stage did change the policy: the comparisons below would otherwise show nothing.
    folders = [whole / "checkpoints" / stage for stage in ("base", "sft", "rl")]
    trained = [AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in folders]
    for before, after in itertools.pairwise(trained):
        assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(row["tokens"] > 0 and not row["skipped"] for row in rows if row["stage"] == "rl")


@pytest.mark.parametrize("stop", ["SIGINT", "SIGTERM", "SIGKILL"])
@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_a_resumed_run_equals_an_uninterrupted_one(whole, tmp_path, stop, stage):
    out = tmp_path / "run"
    process = start(out)
    while process.poll() is None:
        if (out / "metrics.jsonl").exists() and any(
            r["stage"] == stage and r["step"] >= 2 for r in metrics_so_far(out)
        ):
            process.send_signal(getattr(signal, stop))
            break
        time.sleep(0.01)
    printed, _ = process.communicate()
    codes = {"SIGINT": 130, "SIGTERM": 143, "SIGKILL": -signal.SIGKILL}
    assert process.returncode == codes[stop], "it ended before it was stopped"
    if stop != "SIGKILL":
        assert f"gymrl train --resume {out}" in printed
        assert json.loads((out / "summary.json").read_text())["status"] == "interrupted"
    assert resume(out) == 0
    same_run(whole, out)


def metrics_so_far(run: Path) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def resume(out: Path) -> int:
    code = "import sys; import toy_env; from pathlib import Path; from gymrl.rl.run import train; " + (
        "sys.exit(train(None, [], Path(sys.argv[1])))"
    )
    command = [sys.executable, "-c", code, str(out)]
    return subprocess.run(command, stdout=subprocess.DEVNULL, env=ENVIRONMENT).returncode


def test_resuming_a_finished_run_changes_nothing(whole):
    before = (whole / "metrics.jsonl").read_bytes()
    assert resume(whole) == 0
    assert (whole / "metrics.jsonl").read_bytes() == before


def test_other_seeds_are_other_runs(whole, tmp_path):
    out = tmp_path / "other"
    assert start(out, "seed=1", 'stages=["sft"]').communicate() is not None
    assert metrics(out)[0]["loss"] != metrics(whole)[0]["loss"]


def test_a_folder_that_holds_a_run_is_not_overwritten(whole, tmp_path):
    with pytest.raises(RunFault, match="--resume"):
        train("quickstart", SMALL, None, whole)
    with pytest.raises(RunFault, match="not a run folder"):
        train(None, [], tmp_path)


def test_a_broken_checkpoint_is_named(whole, tmp_path):
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(whole), str(copy)], check=True)
    state = json.loads((copy / "state.json").read_text())
    state["phase"], state["step"] = 3, 4
    (copy / "state.json").write_text(json.dumps(state))
    (copy / "summary.json").unlink()  # a run that is not finished
    file = next((copy / "checkpoints").glob("*-step-*/trainer.pt"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(RunFault, match="cannot be read"):
        train(None, [], copy)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("rl.stpes=3", "did you mean 'rl.steps'"),
        ("stpes=3", "unknown recipe key 'stpes'"),
        ("out=x", "unknown recipe key 'out': did you mean the option --out?"),
        ("resume=runs/a", "unknown recipe key 'resume': did you mean the option --resume?"),
        ("rl.group=1", "rl.group"),
        ("rl.void=burn", "drop_episode"),
        ("env=3", "env"),
        ("rl.steps.x=3", "is a value, not a section"),
        ("rl", "key.sub=value"),
        ("model.tiny.heads=3", "multiple"),
        ("sampling.temperature=0", "greater than 0"),
        ("stages=[]", "stages"),
        ("engine.pace=fast", "engine.pace cannot be 'fast': `gymrl train --keys` says what it takes"),
        ("engine.pace=0", "engine.pace cannot be 0"),
    ],
)
def test_wrong_keys_name_the_mend(override, words):
    with pytest.raises(RecipeError) as error:
        load("quickstart", [override])
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_data_is_short_for_the_demonstrations_file(tmp_path):
    (tmp_path / "demos.jsonl").touch()
    assert load("quickstart", ["algo=sft", f"data={tmp_path}/demos.jsonl"]).sft.data.endswith("demos.jsonl")
    with pytest.raises(RecipeError, match="unknown recipe key 'data'"):
        parse({"data": "demos.jsonl"})  # in a recipe it has its own name


def test_recipes(tmp_path):
    with pytest.raises(RecipeError, match="did you mean 'quickstart'"):
        load("quikstart")
    with pytest.raises(RecipeError, match=r"nope\.toml is no such file"):
        load("nope.toml")
    (tmp_path / "bad.toml").write_text("a = = 3")
    with pytest.raises(RecipeError, match="not TOML"):
        load(tmp_path / "bad.toml")
    for name, path in shipped().items():
        recipe = load(name)
        assert recipe.name == name
        (tmp_path / "copy.toml").write_text(dump(recipe))
        assert load(tmp_path / "copy.toml") == recipe
        assert path.read_text().startswith("# ")
    assert parse({"name": "x"}, ["env.params.tasks=reasoning-gym:chain_sum"]).env.params == {
        "tasks": "reasoning-gym:chain_sum"
    }


def test_a_context_too_small_for_the_environment_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"engine\.max_context=\d+ or more"):
        train("quickstart", [*SMALL, "engine.max_context=16"], None, tmp_path / "run")


def test_a_model_that_cannot_be_loaded_is_named(tmp_path):
    for path, words in (("./nope", "there is no folder './nope'"), (str(tmp_path), "holds no config.json")):
        with pytest.raises(RuntimeError, match=words):
            train("quickstart", [*SMALL, f"model.path={path}"], None, tmp_path / "run")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RuntimeError, match="cannot be loaded"):
        train("quickstart", [*SMALL, f"model.path={tmp_path}"], None, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
def test_a_full_disk_is_an_error_and_the_run_goes_on_from_its_checkpoint(tmp_path, whole):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(disk)]).returncode != 0:
        pytest.skip("this machine does not let root mount a tmpfs")
    try:
        (disk / "ballast").write_bytes(b"0" * 1_600_000)
        process = start(disk / "run")
        process.communicate()
        assert process.returncode not in (0, 130)
        (disk / "ballast").unlink()
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert resume(disk / "run") == 0
        same_run(whole, disk / "run")
    finally:
        subprocess.run(["umount", str(disk)])


@pytest.mark.vllm
def test_the_main_job_on_vllm(tmp_path, whole):
    """A short run with rollouts on real vLLM in the trainer's process: its logprobs are the learner's."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    process = start(tmp_path / "run", "engine.kind=vllm", "rl.updates=1")
    printed, _ = process.communicate()
    assert process.returncode == 0, printed
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "finished" and not summary["invalid"]
    rows = [row for row in metrics(tmp_path / "run") if row["stage"] == "rl"]
    assert len(rows) == 5
    for row in rows:
        assert row.get("mismatch_max", 0.0) < 1e-3
    sampled = [
        e for path in sorted((tmp_path / "run" / "episodes" / "rl").glob("*.jsonl")) for e in read_jsonl(path)
    ]
    versions = [
        {v for e in sampled[i * 6 : i * 6 + 6] for t in e.turns for v in t.versions} for i in range(5)
    ]
    assert all(len(found) == 1 for found in versions) and versions[0] != versions[-1]
    # SFT does not touch the engine: it is the embedded run's, bit for bit.
    sft = [[r for r in metrics(run) if r["stage"] == "sft"] for run in (tmp_path / "run", whole)]
    assert sft[0] == sft[1]


def test_an_engine_that_dies_stops_the_run_which_then_goes_on(whole, tmp_path, monkeypatch, capsys):
    from gymrl.agents.engines import EngineFault
    from gymrl.agents.engines.transformers import TransformersEngine

    calls = 0
    serve = TransformersEngine.generate_at

    async def dying(self, request, pace, seat):
        nonlocal calls
        calls += 1
        if self.version >= 9:
            raise EngineFault("the engine died: restart it")
        return await serve(self, request, pace, seat)

    monkeypatch.setattr(TransformersEngine, "generate_at", dying)
    with pytest.raises(EngineFault, match="restart it"):
        train("quickstart", SMALL, None, tmp_path / "run")
    assert f"gymrl train --resume {tmp_path / 'run'}" in capsys.readouterr().out
    monkeypatch.undo()
    assert resume(tmp_path / "run") == 0
    assert [r["step"] for r in metrics(tmp_path / "run")] == [r["step"] for r in metrics(whole)]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "finished" and not summary["invalid"]


def test_a_run_that_learnt_nothing_says_so_and_no_other_does(whole, tmp_path, capsys):
    small = [key for key in SMALL if not key.startswith(("env.", "sft.params", "rl.steps"))]
    assert train("quickstart", [*small, "rl.steps=2"], None, tmp_path / "flat") == 0
    assert "RL learnt nothing: in no step had a token an advantage" in capsys.readouterr().out
    assert not any(row["actions"] for row in metrics(tmp_path / "flat") if row["stage"] == "rl")
    assert any(row["actions"] for row in metrics(whole) if row["stage"] == "rl")
    one = ["rl.group=1", 'rl.advantage="reinforce++"', "rl.steps=1", "sft.steps=1"]  # groups of one are always flat
    assert train("quickstart", [*SMALL, *one], None, tmp_path / "one") == 0
    assert "learnt nothing" not in capsys.readouterr().out


def test_invalid_episodes_are_shown(capsys):
    from types import SimpleNamespace

    from rich.console import Console

    from gymrl.rl.display import Display

    display = Display(Console(width=120), every=0.0)
    display.begin("evaluate sft", 2)
    display.count(SimpleNamespace(valid=True))
    assert "invalid" not in capsys.readouterr().out
    display.count(SimpleNamespace(valid=False))
    display.end()
    assert "evaluate sft: 2/2" in (printed := capsys.readouterr().out) and "invalid 1" in printed
    stage = {
        "name": "sft", "success": 1.0, "low": 0.2, "high": 1.0, "turns": 1.0, "void_turns": 0.0, "episodes": 2,
        "seconds": 1.0, "invalid": {"environment: KeyError: 'x'": 1},
    }  # fmt: skip
    display.stages([stage])
    header, row = (line for line in capsys.readouterr().out.splitlines() if "polic" in line or "SFT" in line)
    assert "invalid" in header and row.split()[-3:] == ["2", "1", "1.0"]
    display.stages([stage | {"invalid": {}}])
    assert "invalid" not in capsys.readouterr().out


def test_a_phase_that_does_not_advance_says_that_it_is_still_there(tmp_path):
    from rich.console import Console

    from gymrl.rl.display import Display

    with (tmp_path / "said").open("w+") as file:

        def lines() -> list[str]:
            return (tmp_path / "said").read_text().splitlines()

        display = Display(Console(file=file, width=120), every=0.1)
        display.begin("demonstrations", 5)
        while len(lines()) < 2:
            time.sleep(0.01)
            file.flush()
        assert lines()[0].startswith("demonstrations: 0/5")
        display.advance(3)
        display.end()
        file.flush()
        ended = len(lines())
        time.sleep(0.5)
        file.flush()
        assert len(lines()) == ended and lines()[-1].startswith("demonstrations: 3/5 in")


@pytest.mark.parametrize("invalid", [{}, {"environment: gone": 100}])
def test_the_last_table_is_whole_at_80_columns(invalid, monkeypatch, capsys):
    from gymrl.rl.display import Display

    monkeypatch.setenv("COLUMNS", "80")
    stage = {"name": "preference", "success": 0.977, "low": 0.95, "high": 0.989, "turns": 12.34, "void_turns": 1.0,
             "episodes": 10_000, "invalid": invalid, "seconds": 12345.6}  # fmt: skip
    Display().stages([stage])
    words = {"after preferences", "0.977 [0.950, 0.989]", "12.34", "1.000", "10000", "12345.6"}
    said = capsys.readouterr()
    assert all(word in said.out + said.err for word in words | {str(sum(invalid.values()) or "")})
