"""The benchmarks that another machine is for, small: that they run, and that what they count is right."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from gymrl.rl.batches import TokenSequence
from gymrl.rl.recipes import load

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def bench(monkeypatch):
    """Imports a benchmark by its name."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:  # "common" and the like are other things elsewhere
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(FOLDER)):
            del sys.modules[name]


@pytest.fixture
def gpu(bench):
    return bench("gpu")


def test_operations_are_those_that_torch_counts(gpu):
    """One episode of which every token but the first is said, through the plain model: the same matrix products."""
    from torch.utils.flop_counter import FlopCounterMode

    size = gpu.Size(32, 2, 4, 2, 8, 96, 320)
    made = gpu.make(size, "eager", torch.device("cpu"))
    n = 40
    (s,) = gpu.episodes(1, size.vocab)
    data = gpu.TokenSequence(
        s.ids[:n], s.action[:n] | True, *(x[:n] for x in (s.mu, s.advantage, s.version, s.turn))
    )
    with FlopCounterMode(display=False) as counter:
        made(input_ids=torch.from_numpy(data.ids)[None]).logits.sum().backward()
    # Eager attention computes the whole square: the causal half is added once more here.
    squares = 6.0 * size.layers * size.heads * size.head_size * n**2
    assert counter.get_total_flops() == gpu.operations(size, [data]) + squares


def test_the_sizes_are_what_they_are_named(gpu):
    size = gpu.SIZES["0.5b"]
    layer = size.hidden * size.head_size * (2 * size.heads + 2 * size.kv_heads) + 3 * size.hidden * size.inner
    assert 0.495e9 < size.layers * layer + size.hidden * size.vocab < 0.505e9


def test_all_figures_come_out_on_the_cpu(gpu):
    found = gpu.measure(gpu.SIZES["tiny"], 3, 1, "no", 512, peak=1.0, times=(1, 2))
    assert [s["name"] for s in found["speeds"]] == [
        "GRPO update", "SFT update", "bare packed loop", "bare padded loop"
    ]  # fmt: skip
    for speed in found["speeds"]:
        assert speed["tokens_per_second"] * speed["seconds"] == pytest.approx(found["tokens"])
        assert 0 < speed["mfu"] < 1
    assert found["peak_from"] == "given" and len(found["lengths"]) == 2 and found["over_packed"] > 0


def test_every_arm_of_the_study_is_a_recipe(bench):
    plan, study = bench("study_plan"), bench("study")
    for question in plan.QUESTIONS:
        assert len(question.arms) > 1
        for name in question.arms:
            arm = plan.ARMS[name]
            start = Path("somewhere") if arm.start else None
            recipe = load(arm.recipe, study.settings_of(arm, 2, start))
            assert recipe.seed == 2 and recipe.rl.correction.name == "none" and recipe.rl.updates == 1
            assert (recipe.model.path == "somewhere") == bool(arm.start)
            assert not arm.unmasked or recipe.rl.advantage.name == "grpo"  # one advantage an episode
            if arm.start:
                before = load(plan.ARMS[arm.start].recipe, study.settings_of(plan.ARMS[arm.start], 2, None))
                assert before.stages == ["sft"] and before.env.id == recipe.env.id


def test_the_unmasked_arm_learns_from_what_the_policy_did_not_say(bench):
    study = bench("study")
    action = np.array([0, 0, 1, 1, 0, 0, 1, 0], dtype=bool)
    worth = np.where(action, np.float32(0.5), np.float32(0))
    zeros = np.zeros(8, dtype=np.float32)
    s = TokenSequence(np.arange(8), action, zeros, worth, np.zeros(8, int), np.zeros(8, int))
    found = study.with_observations(s)
    assert found.action.tolist() == [False] * 2 + [True] * 6
    assert found.advantage.tolist() == [0.0] * 2 + [0.5] * 6
    before = study.update.sequences_of
    with study.trained_on_observations():
        assert study.update.sequences_of is not before
    assert study.update.sequences_of is before


def test_a_run_that_another_process_is_at_is_left_to_it(bench, tmp_path):
    study, plan = bench("study"), bench("study_plan")
    folder = study.place(tmp_path, plan.ARMS["grpo"], 0)
    with study.alone(folder, wait=False) as mine:
        assert mine
    code = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    command = [sys.executable, "-c", code, str(folder.parent / ".seed-0.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"1\n"
        with study.alone(folder, wait=False) as mine:
            assert not mine
        assert not study.make(plan.ARMS["grpo"], 0, tmp_path, [], {"sft-360": tmp_path})
        other.communicate(b"\n")
    with study.alone(folder, wait=True) as mine:
        assert mine
    assert not folder.exists()


def test_results_hold_finished_runs_alone(bench, tmp_path):
    results = bench("study_results")
    for arm, seed, success, status in (
        ("grpo", 0, 0.7, "finished"), ("grpo", 1, 0.9, "finished"), ("rloo", 0, 0.8, "finished"),
        ("rloo", 1, 0.1, "interrupted"),
    ):  # fmt: skip
        folder = tmp_path / arm / f"seed-{seed}"
        folder.mkdir(parents=True)
        stages = [{"success": s, "low": 0.0, "high": 1.0, "episodes": 64} for s in (0.5, success)]
        (folder / "summary.json").write_text(json.dumps({"status": status, "stages": stages, "seconds": 1.0}))
        steps = [{"stage": "rl", "success": x, "void_turns": 0.0, "grad_norm": 2.0} for x in (0.5, 0.6, 0.75)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(s) + "\n" for s in steps) + '{"stage": "r')
    results.write_results(tmp_path)
    lines = (tmp_path / "results.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in lines[1:]] == [["grpo", "0"], ["grpo", "1"], ["rloo", "0"]]
    text = (tmp_path / "results.md").read_text()
    assert "| grpo | 0, 1 | 0.500 | 0.800 ± 1.271 |" in text and "| ppo | none finished |" in text
    assert "| rloo | 0 | 0.500 | 0.800 | 0.100 | 0.750 |" in text
    picture = (tmp_path / "algorithms.svg").read_text()
    assert "rloo: 0.800 (n = 1)" in picture and "grpo: 0.800 (n = 2)" in picture and "ppo" not in picture
    ElementTree.fromstring(picture)
    assert {path.name for path in tmp_path.glob("results*")} == {"results.csv", "results.md"}
    assert not (tmp_path / "rewards.svg").exists()
    mean, half = results.interval([0.7, 0.8, 0.9])
    assert mean == pytest.approx(0.8) and half == pytest.approx(4.303 * 0.1 / math.sqrt(3))
    assert all(map(math.isnan, results.interval([math.nan, math.nan])))


async def test_environments_are_measured_beside_the_world_alone(bench):
    environments = bench("environments")
    family = environments.FAMILIES["gui_navigation"]
    found = await environments.speeds(family, quick=True)
    assert 0 < found["low"] <= found["ratio"] <= found["high"] and list(found["at_once"]) == [1, 8]
    assert 0 < found["bare_ms"] < 1 and all(speed > 0 for speed in found["at_once"].values())
    assert await environments.memory(family, quick=True) < 10
    row = {
        "family": "x",
        "bare_ms": 2.0,
        "ratio": 0.8,
        "low": 0.7,
        "high": 0.9,
        "start_up": 1.0,
        "memory": 0.5,
    }
    lines = environments.table(
        [{**row, "at_once": {"1": 10.0, "8": 2000.0}}, {**row, "ratio": 0.95, "at_once": {"1": 1.0}}]
    )
    assert "| 1 at once | 8 at once |" in lines
    assert "| x | 2.000 | **0.80 (0.70 to 0.90)** | 0.9 | 1.0 | 0.50 | 10 | 2,000 |" in lines
    assert "| 0.95 (0.70 to 0.90) | 0.9 | 1.0 | 0.50 | 1 | - |" in lines


@pytest.mark.parametrize("name", ["code_interpreter", "math_tools", "tool_calling", "mcp", "gymnasium"])
async def test_the_bare_side_plays_the_same_episodes(bench, name):
    environments = bench("environments")
    family = environments.FAMILIES[name]
    try:
        environments.entry(family.env_id).cls()
        if name == "mcp":
            pytest.importorskip("mcp")
    except environments.MissingExtra as missing:
        pytest.skip(str(missing))
    pool, player = environments.EnvPool(family.env_id, family.params), family.bare()
    try:
        (episode,) = await environments.record(family, pool, 1, player)
        await player.reset(episode.data)
        last = [await player.step(action) for action in episode.actions][-1]
    finally:
        await player.close()
        await pool.aclose()
    right = {
        "code_interpreter": lambda: last is True, "math_tools": lambda: last is True,
        "tool_calling": lambda: last["valid"],
        "mcp": lambda: json.loads(last[0]) in episode.data[1].state[0].expected.value,
        "gymnasium": lambda: last[0][1] == 1.0,
    }  # fmt: skip
    assert right[name]()
