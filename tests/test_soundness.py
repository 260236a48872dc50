"""Checkpoints that are damaged, incomplete or broken: what is said names the file, the tensor and the mend."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gymrl.cli.main import run
from gymrl.rl.folder import RunFault, RunFolder
from gymrl.rl.opening import ModelFault, check_packing
from gymrl.rl.policy import PolicyFault, check_source
from gymrl.rl.run import train
from gymrl.rl.soundness import damage, not_finite
from gymrl.rl.tiny import make_model, make_tokenizer, save_policy

sys.path.insert(0, str(Path(__file__).parent))
import toy_env  # noqa: F401 - registers toy/Letters-v0

SMALL = [
    "model.tiny={hidden=64, heads=2, kv_heads=1, layers=1}", "sft.demonstrations=12", "sft.steps=3", "sft.batch=4",
    "eval.tasks=4", "sampling.max_tokens=8", "log.checkpoint_every=1", "env.id=toy/Letters-v0", "env.params={}",
    "sft.params={}", 'stages=["sft"]',
]  # fmt: skip


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """A run as one that was stopped after its last step leaves it."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert train("quickstart", SMALL, None, out) == 0
    state = json.loads((out / "state.json").read_text())
    (out / "state.json").write_text(json.dumps(state | {"phase": 1, "step": 3}))
    (out / "summary.json").unlink()
    return out


@pytest.fixture
def copy(stopped, tmp_path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "copy"))


@pytest.fixture
def policy(tmp_path) -> Path:
    tokenizer = make_tokenizer(["user\nhello\n"], 300)
    return save_policy(tmp_path / "policy", make_model(len(tokenizer), 32, 1, 2, 1, 512), tokenizer)


def poison(folder: Path, name: str) -> None:
    weights = load_file(folder / "model.safetensors")
    weights[name].view(-1)[3:5] = torch.tensor([torch.nan, torch.inf])
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("length", [0, 4, 20, 2000, -1])
@pytest.mark.parametrize("name", ["model.safetensors", "trainer.pt"])
def test_a_truncated_file_of_a_checkpoint_is_named_on_resume(copy, capsys, name, length):
    file = copy / "checkpoints" / "sft-step-000003" / name
    file.write_bytes(file.read_bytes()[:length])
    assert run(["train", "--resume", str(copy)]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{file} is damaged (" in said and f"start a new run with `gymrl train {copy}/recipe.toml`" in said
    with pytest.raises(RunFault, match="restore it from a copy"):
        RunFolder(copy).read_checkpoint("sft-step-000003")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_damaged_first_policy_is_named_and_made_again_once_deleted(copy, capsys, name):
    file = copy / "checkpoints" / "base" / name
    whole = (copy / "checkpoints" / "base" / "model.safetensors").read_bytes()
    file.write_bytes(file.read_bytes()[:100])
    assert run(["train", "--resume", str(copy)]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{file if 'model' in name else file.parent} " in said and f"or delete {file.parent}" in said
    shutil.rmtree(file.parent)
    assert run(["train", "--resume", str(copy)]) == 0
    assert (file.parent / "model.safetensors").read_bytes() == whole


def test_weights_that_are_not_finite_are_named_on_resume(copy, capsys):
    folder = copy / "checkpoints" / "sft-step-000003"
    poison(folder, "model.norm.weight")
    assert run(["train", "--resume", str(copy)]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{folder} has a broken tensor, model.norm.weight, of whose 64 numbers 2 are NaN or infinite" in said
    assert "had already broken down" in said and "take another model" not in said


def test_a_model_that_is_not_finite_is_no_start(policy, tmp_path):
    model = make_model(300, 32, 1, 2, 1, 64)
    check_packing(model)
    poison(policy, "model.layers.0.mlp.up_proj.weight")
    with pytest.raises(PolicyFault, match=r"broken tensor, model\.layers\.0\.mlp\.up_proj\.weight, .* take an"):
        train("quickstart", [*SMALL, f"model.path={policy}"], None, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with torch.no_grad():
        model.model.norm.weight[0] = torch.inf
    with pytest.raises(ModelFault, match="the model has a broken tensor, model"):
        check_packing(model)


def test_a_folder_without_a_tokenizer_is_refused_before_anything_runs(policy, tmp_path):
    check_source(str(policy))
    (policy / "tokenizer.json").unlink()
    mend = "copy tokenizer.json and tokenizer_config.json there"
    for words in (f"tokenizer of .* cannot be loaded .*: {mend}", f"tokenizer of .*knows no token.*: {mend}"):
        with pytest.raises(PolicyFault, match=words):
            train("quickstart", [*SMALL, f"model.path={policy}"], None, tmp_path / "run")
        assert not (tmp_path / "run").exists()
        (policy / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2TokenizerFast"}')
    (policy / "tokenizer_config.json").unlink()
    with pytest.raises(PolicyFault, match=f"has weights and no tokenizer: {mend}"):
        check_source(str(policy))


def test_what_is_whole_is_not_complained_of(policy):
    assert damage(policy) == "" and damage(policy / "absent") == ""
    kinds = (torch.float8_e4m3fn, torch.bfloat16, torch.int8, torch.bool, torch.float64)
    assert not_finite([(str(kind), torch.ones(3).to(kind)) for kind in kinds]) == ""
    for kind in (torch.float8_e4m3fn, torch.bfloat16):
        assert not_finite([("w", torch.tensor([1.0, torch.nan]).to(kind))]).startswith("w, of whose 2 numbers 1 ")
    assert not_finite([("large", torch.tensor([1e300], dtype=torch.float64))]) == ""
