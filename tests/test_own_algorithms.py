"""Algorithms of a user's own: found by file, module or package, each under its own name, and tried before a run."""

from __future__ import annotations

import json
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gymrl.rl import algorithms as algorithms_module
from gymrl.rl.algorithms import AlgorithmFault, find
from gymrl.rl.folder import RunFolder
from gymrl.rl.recipes import RecipeError, load
from gymrl.rl.rehearsal import rehearse
from gymrl.rl.run import train

sys.path.insert(0, str(Path(__file__).parent))
from toy_env import SMALL

OWN = '''
import torch
from gymrl.rl.algorithms import advantage


@advantage("best-of")
def best_of(rewards_PG, counted_PG, *, scale: float = 1.0):
    """The best episode of each group, and nothing else."""
    return scale * (rewards_PG == rewards_PG.max(1, keepdim=True).values).double()
'''


def test_algorithms_of_an_installed_package_are_known_by_name(tmp_path, monkeypatch):
    (tmp_path / "acme_algorithms.py").write_text(OWN.replace("best-of", "acme-best"))
    (tmp_path / "acme_broken.py").write_text("import nothing_of_this_name")
    monkeypatch.syspath_prepend(tmp_path)
    good = EntryPoint("acme", "acme_algorithms", algorithms_module.GROUP)
    monkeypatch.setattr(algorithms_module, "entry_points", lambda group: [good])
    algorithms_module._builtin.cache_clear()
    assert load("quickstart", ["rl.advantage=acme-best"]).rl.advantage.name == "acme-best"
    bad = EntryPoint("acme", "acme_broken", algorithms_module.GROUP)
    monkeypatch.setattr(algorithms_module, "entry_points", lambda group: [bad])
    algorithms_module._builtin.cache_clear()
    with pytest.raises(RecipeError, match="acme_broken"):
        load("quickstart", ["rl.advantage=rloo"])
    monkeypatch.undo()
    algorithms_module._builtin.cache_clear()


def test_a_users_own_file_is_an_algorithm(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    overrides = [*SMALL, f"rl.advantage={tmp_path}/mine.py:best-of", "rl.advantage.scale=0.5"]
    assert train("quickstart", overrides, None, tmp_path / "run") == 0
    with pytest.raises(RecipeError, match="'scale'"):
        load("quickstart", [f"rl.advantage={tmp_path}/mine.py:best-of", "rl.advantage.scael=0.5"])


def wrong(file: Path, kind: str, body: str, asks: str) -> list[str]:
    file.write_text(
        f"import torch\nfrom gymrl.rl.algorithms import {kind}\n\n@{kind}('x')\ndef x({asks}):\n    return {body}\n"
    )
    return [f"rl.{kind}={file}:x"]


@pytest.mark.parametrize(
    ("kind", "asks", "body", "words"),
    [
        ("loss", "lp_N, advantages_N", "-(lp_N * advantages_N).mean(), lp_N > 0", "a tensor of shape []"),
        ("loss", "lp_N, advantages_N", "-lp_N * advantages_N", "return (loss_N, clipped_N)"),
        ("loss", "lp_N, advantages_N", "None", "returned NoneType"),
        ("loss", "lp_N", "lp_N.nosuch", "failed with AttributeError"),
        ("loss", "lp_N", "(-lp_N.detach(), lp_N > 0)", "has no gradient: make it of lp_N"),
        ("loss", "lp_N", "(lp_N / 0, lp_N > 0)", "returned numbers that are not finite"),
        ("correction", "old_lp_N", "torch.ones_like(old_lp_N), old_lp_N > -0.5", "register it with masks=True"),
        ("advantage", "rewards_PG, counted_PG", "rewards_PG[:, :1]", "return [P, G], [P, G, K] or [B, T]"),
        ("advantage", "rewards_PG, counted_PG", "rewards_PG / 0", "not finite"),
        ("advantage", "values_BT, sampled_BT", "values_BT", "return (advantages_BT, returns_BT)"),
    ],
)
def test_what_a_function_cannot_do_shows_before_the_run(kind, asks, body, words, tmp_path):
    with pytest.raises(RecipeError) as error:
        load("quickstart", wrong(tmp_path / "wrong.py", kind, body, asks))
    assert words in str(error.value) and str(tmp_path / "wrong.py") in str(error.value)


@pytest.mark.parametrize("kind", ["advantage", "loss", "correction", "preference"])
def test_every_shipped_function_would_pass_the_rehearsal(kind, monkeypatch):
    monkeypatch.setattr("gymrl.rl.rehearsal.OURS", "nobody")
    for name in algorithms_module.names(kind):
        rehearse(find(kind, name), {}, 4)


def test_a_function_that_breaks_later_is_named(tmp_path):
    body = "rewards_PG / (rewards_PG.shape[0] - 1)"
    overrides = wrong(tmp_path / "late.py", "advantage", body, "rewards_PG, counted_PG")
    with pytest.raises(AlgorithmFault, match=r"advantage 'x' \(.*late\.py\) returned numbers that are not finite"):
        train("quickstart", [*SMALL, *overrides, "rl.tasks=1"], None, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed"


def test_the_same_name_in_two_files_is_two_functions_and_shipped_ones_stay(tmp_path):
    for name, scale in (("one", 1.0), ("two", 2.0)):
        text = OWN.replace("scale: float = 1.0", f"scale: float = {scale}")
        (tmp_path / f"{name}.py").write_text(text + text.partition("\n\n\n")[2].replace("best-of", "grpo"))
    shipped = find("advantage", "grpo")
    one, two = (find("advantage", f"{tmp_path}/{name}.py:best-of") for name in ("one", "two"))
    assert (one.check({})["scale"], two.check({})["scale"]) == (1.0, 2.0)
    assert find("advantage", "grpo") is shipped
    assert find("advantage", f"{tmp_path}/two.py:grpo").check({})["scale"] == 2.0
    with pytest.raises(AlgorithmFault, match="did you mean 'best-of'"):
        find("advantage", f"{tmp_path}/two.py:best-off")


def test_a_package_cannot_take_a_name_that_is_taken(tmp_path, monkeypatch):
    (tmp_path / "acme_grpo.py").write_text(OWN.replace("best-of", "grpo"))
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint("acme", "acme_grpo", algorithms_module.GROUP)
    monkeypatch.setattr(algorithms_module, "entry_points", lambda group: [point])
    algorithms_module._builtin.cache_clear()
    with pytest.raises(RecipeError, match=r"advantage .grpo. is taken by .*grpo\.py"):
        load("quickstart", ["rl.advantage=rloo"])
    monkeypatch.undo()
    algorithms_module._builtin.cache_clear()


def test_a_run_finds_its_functions_from_every_folder_and_says_that_they_changed(tmp_path, monkeypatch, capsys):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    log = RunFolder.log

    def broken(self, found):
        if found["stage"] == "rl" and found["step"] == 1:
            raise RuntimeError("the power fails")
        log(self, found)

    monkeypatch.setattr(RunFolder, "log", broken)
    with pytest.raises(RuntimeError, match="power"):
        train("quickstart", [*SMALL, "rl.advantage=mine.py:best-of"], None, tmp_path / "run")
    monkeypatch.setattr(RunFolder, "log", log)
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "mine.py").write_text(OWN + "# other\n")
    capsys.readouterr()
    assert train(None, [], tmp_path / "run") == 0
    assert "mine.py has changed since the run began" in capsys.readouterr().out.replace("\n", " ")


def test_a_loss_may_ask_for_the_reference(tmp_path):
    body = "-lp_N * advantages_N + 0.3 * ((ref_lp_N - lp_N).exp() - (ref_lp_N - lp_N) - 1), lp_N > 0"
    mine = wrong(tmp_path / "anchored.py", "loss", body, "lp_N, advantages_N, ref_lp_N")
    with pytest.raises(RecipeError, match=r"asks for ref_lp_N, .*: set rl\.kl\.coefficient=0"):
        load("quickstart", mine)
    ends = {}
    free = ["rl.loss=reinforce"]
    losses = {"mine": [*mine, "rl.kl.coefficient=0"], "shipped": [*free, "rl.kl.coefficient=0.3"], "free": free}
    for name, loss in losses.items():
        settings = [*SMALL, *loss, "rl.correction=none", "rl.lr=0.01"]
        assert train("quickstart", settings, None, tmp_path / name) == 0
        ends[name] = load_file(tmp_path / name / "policy" / "model.safetensors")
    for key, weights in ends["shipped"].items():
        torch.testing.assert_close(ends["mine"][key], weights, rtol=1e-4, atol=1e-6)
    assert any(not torch.allclose(ends["free"][key], weights, atol=1e-5) for key, weights in ends["shipped"].items())


def test_a_file_without_a_name_says_how_one_is_named(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    with pytest.raises(RecipeError, match=r"is a file: say which advantage in it, .*mine\.py:NAME"):
        load("quickstart", [f"rl.advantage={tmp_path}/mine.py"])


def test_a_broken_package_shows_before_the_warm_start(tmp_path, monkeypatch, capsys):
    (tmp_path / "acme_raises.py").write_text("raise RuntimeError('it broke')")
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint("acme", "acme_raises", algorithms_module.GROUP)
    monkeypatch.setattr(algorithms_module, "entry_points", lambda group: [point])
    algorithms_module._builtin.cache_clear()
    with pytest.raises(AlgorithmFault, match="acme_raises"):
        train("quickstart", SMALL, None, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    monkeypatch.undo()
    algorithms_module._builtin.cache_clear()
