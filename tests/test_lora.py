"""LoRA and its relatives: the frozen weights stay, what is served and saved is merged, a run resumes bit for bit."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from gymrl.agents.engines import EngineSettings, GenerationRequest, Sampling, open_engine
from gymrl.agents.ragged import NAME
from gymrl.rl.adapters import AdapterSettings
from gymrl.rl.batches import TokenSequence
from gymrl.rl.folder import RunFolder
from gymrl.rl.learner import Learner, LearnerSettings
from gymrl.rl.merging import read_weights, soup, write_weights
from gymrl.rl.recipes import RecipeError, load
from gymrl.rl.reference import Reference, WithoutAdapter
from gymrl.rl.run import train
from gymrl.rl.tiny import make_model
from gymrl.rl.trainable import ADAPTERS, AdapterFault
from gymrl.rl.trainers.sft import negative_logprob

sys.path.insert(0, str(Path(__file__).parent))
import toy_env  # noqa: F401 - registers toy/Letters-v0

missing = importlib.util.find_spec("peft") is None
needs_peft = pytest.mark.skipif(missing, reason="peft is not installed")


def make_base():
    return make_model(320, 64, 2, 2, 1, 256, seed=4)


def learner(kind: str = "lora", model=None, **changes) -> Learner:
    model = make_base() if model is None else model
    model.set_attn_implementation(NAME)
    adapter = AdapterSettings(kind, rank=4, **changes)
    return Learner(model, LearnerSettings(adapter=adapter, seed=1), Accelerator(cpu=True))


def data(count: int = 4) -> list[TokenSequence]:
    rng = np.random.default_rng(0)
    found = []
    for length in rng.integers(12, 40, count):
        action = np.arange(length) >= 3
        ids = rng.integers(0, 320, length)
        found.append(TokenSequence(ids, action, action * 0.0, action * 1.0, ids * 0, ids * 0))
    return found


def taught(ours: Learner, steps: int = 3) -> Learner:
    for _ in range(steps):
        ours.step(data(), [0.02] * 4, negative_logprob, 1e-2)
    return ours


@needs_peft
@pytest.mark.parametrize("kind", ADAPTERS)
def test_only_the_adapter_learns_and_the_merged_checkpoint_is_the_policy(kind, tmp_path):
    ours = learner(kind)
    before = {name: p.detach().clone() for name, p in ours.model.named_parameters()}
    first = ours.score(data())
    plain = make_base()
    plain.set_attn_implementation(NAME)
    there = Learner(plain, LearnerSettings(), Accelerator(cpu=True))
    assert all(map(torch.equal, first, there.score(data())))  # a fresh adapter changes nothing
    taught(ours)
    moved = {n for n, p in ours.model.named_parameters() if not torch.equal(p, before[n])}
    trained = {name for name, _ in ours.trained()}
    assert moved and moved <= trained
    assert 0 < sum(p.numel() for _, p in ours.trained()) < 0.25 * sum(p.numel() for p in plain.parameters())
    after = ours.score(data())
    assert max(float((a - b).abs().max()) for a, b in zip(first, after, strict=True)) > 0.1
    kept = {name: p.detach().clone() for name, p in ours.model.named_parameters()}
    ours.save(tmp_path / "policy")
    for _ in ours.weights():
        pass
    assert all(torch.equal(p, kept[n]) for n, p in ours.model.named_parameters())  # merging left no trace
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "policy", attn_implementation=NAME)
    assert not any("lora" in name or "base_layer" in name for name in loaded.state_dict())
    again = Learner(loaded, LearnerSettings(), Accelerator(cpu=True))
    for a, b in zip(again.score(data()), after, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    # What is served is what is saved, tensor by tensor.
    served = dict(ours.weights())
    assert all(torch.equal(served[name], tensor) for name, tensor in loaded.state_dict().items())


@needs_peft
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_the_adapter_beside_the_checkpoint_is_pefts(kind, tmp_path):
    from peft import PeftModel

    ours = taught(learner(kind))
    ours.save(tmp_path)
    theirs = PeftModel.from_pretrained(make_base(), tmp_path / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.arange(30)[None]
    torch.testing.assert_close(theirs(ids).logits, merged(ids).logits, atol=1e-5, rtol=0)


@needs_peft
def test_a_learner_that_goes_on_takes_the_same_steps():
    ours = taught(learner(), 2)
    file = io.BytesIO()
    torch.save(ours.state(), file)
    file.seek(0)
    other = learner()
    other.load_state(torch.load(file, weights_only=True))
    taught(ours, 2)
    taught(other, 2)
    one, two = dict(ours.weights()), dict(other.weights())
    assert all(torch.equal(one[name], two[name]) for name in one)
    with pytest.raises(AdapterFault, match="another kind, rank or targets"):
        learner("dora").load_state(ours.state())
    plain = make_base()
    with pytest.raises(AdapterFault, match=r"learner\.trainable"):
        Learner(plain, LearnerSettings(), Accelerator(cpu=True)).load_state(ours.state())


@needs_peft
def test_references_beside_an_adapter():
    ours = learner()
    base = ours.score(data())
    frozen, moving = (Reference(make_base(), ours.settings, ours.accelerator, d) for d in (None, 0.5))
    for reference in (frozen, moving):
        reference.scorer.model.set_attn_implementation(NAME)
    taught(ours)
    without = WithoutAdapter(ours)
    moving.follow(ours)
    for a, b, c, d in zip(
        base, without.score(data()), frozen.score(data()), moving.score(data()), strict=True
    ):
        assert torch.equal(a, b) and torch.equal(a, c) and not torch.equal(a, d)
    assert not torch.equal(ours.score(data())[0], base[0]) and ours.trained()  # the adapter is back
    want = {n: (t + dict(ours.weights())[n]) / 2 for n, t in make_base().state_dict().items()}
    for name, tensor in moving.scorer.model.state_dict().items():
        torch.testing.assert_close(tensor, want[name], atol=1e-6, rtol=0)


@needs_peft
def test_targets():
    ours = learner(targets=("q_proj", "v_proj"))
    assert {name.split(".")[-4] for name, _ in ours.trained()} == {"q_proj", "v_proj"}
    with pytest.raises(AdapterFault, match=r"qproj.*q_proj"):
        learner(targets=("qproj",))


def test_without_peft_the_mend_is_named(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "peft" else find(name, *a)
    )
    with pytest.raises(AdapterFault, match=r'pip install "gymrl\[peft\]"'):
        learner()
    with pytest.raises(RecipeError, match=r'pip install "gymrl\[peft\]"'):
        load("quickstart", ["learner.trainable=dora"])


def serves(kind: str, folder: Path, taught_: Learner) -> None:
    """The engine, opened on the start, serves the merged weights after `load_weights`: its logprobs are the
    learner's."""
    make_base().save_pretrained(folder)
    engine = open_engine(EngineSettings(kind, folder, max_context=128, slots=4, memory_gb=0.1))
    request = GenerationRequest(tuple(range(5, 25)), Sampling(max_tokens=12, seed=3), ())

    async def play():
        try:
            await engine.load_weights(taught_.weights(), taught_.updates)
            return await engine.generate(request)
        finally:
            await engine.close()

    said = asyncio.run(play())
    assert set(said.versions) == {3}
    ids = np.array(request.prompt_ids + said.ids)
    action = np.arange(len(ids)) >= 20
    sequence = TokenSequence(ids, action, action * 0.0, action * 1.0, ids * 0, ids * 0)
    (lp,) = taught_.score([sequence])
    torch.testing.assert_close(lp, torch.tensor(said.logprobs), atol=1e-4, rtol=0)


@needs_peft
def test_the_embedded_engine_serves_the_merged_weights(tmp_path):
    serves("transformers", tmp_path, taught(learner()))


@needs_peft
@pytest.mark.vllm
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_serves_the_merged_weights(tmp_path):
    serves("vllm", tmp_path, taught(learner("dora")))


VLLM = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

base, adapter = sys.argv[1:]
engine = LLM(model=base, skip_tokenizer_init=True, dtype="float32", enforce_eager=True, enable_lora=True,
             max_lora_rank=8, max_model_len=64, kv_cache_memory_bytes=2**26)
asked = SamplingParams(max_tokens=8, temperature=1.0, seed=0, logprobs=0, detokenize=False, ignore_eos=True)
prompt = {"prompt_token_ids": list(range(5, 25))}
for request in (None, LoRARequest("taught", 1, adapter)):
    said = engine.generate([prompt], asked, lora_request=request)[0].outputs[0]
    lps = [row[token].logprob for row, token in zip(said.logprobs, said.token_ids)]
    print("SAID", json.dumps([list(said.token_ids), lps]))
"""


@needs_peft
@pytest.mark.vllm
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_serves_the_adapter_that_a_run_leaves(tmp_path):
    """Beside the base that it was laid on, in a vLLM of the user's own."""
    ours = learner()
    ours.save(tmp_path / "start")  # an adapter that changes nothing yet, merged: the base
    taught(ours).save(tmp_path / "policy")
    surroundings = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TORCHDYNAMO_DISABLE": "1"}
    places = [str(tmp_path / "start"), str(tmp_path / "policy" / "adapter")]
    run = subprocess.run(
        [sys.executable, "-c", VLLM, *places], env=surroundings, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found = [json.loads(line[5:]) for line in run.stdout.splitlines() if line.startswith("SAID ")]
    for (ids, lps), adapter in zip(found, (False, True), strict=True):
        whole = np.array([*range(5, 25), *ids])
        action = np.arange(len(whole)) >= 20
        sequence = TokenSequence(whole, action, action * 0.0, action * 1.0, whole * 0, whole * 0)
        (own,) = ours.score([sequence], adapter=adapter)
        torch.testing.assert_close(own, torch.tensor(lps), atol=1e-4, rtol=0)
        (other,) = ours.score([sequence], adapter=not adapter)
        assert float((own - other).abs().max()) > 0.01  # the adapter does say something else


SMALL = [
    "model.tiny={hidden=32, heads=2, kv_heads=1, layers=1}", "sft.demonstrations=8", "sft.steps=3", "sft.batch=4",
    "rl.steps=3", "rl.tasks=2", "rl.group=3", "eval.tasks=2", "sampling.max_tokens=6", "log.checkpoint_every=1",
    "log.trackers=[]", "rl.void=keep", "env.id=toy/Letters-v0", "env.params={}", "sft.params={}",
    "learner.trainable={name='lora', rank=4}", "sft.lr=1e-2", "rl.lr=1e-2", "rl.kl.ref=base",
]  # fmt: skip


@needs_peft
def test_a_run_with_an_adapter_resumes_bit_for_bit_and_its_checkpoints_merge(tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train("quickstart", SMALL, None, whole) == 0
    write = RunFolder.save_progress

    def failing(self, progress):
        write(self, progress)
        if (progress.phase, progress.step) == (3, 2):
            raise RuntimeError("the power is gone")

    monkeypatch.setattr(RunFolder, "save_progress", failing)
    with pytest.raises(RuntimeError, match="the power is gone"):
        train("quickstart", SMALL, None, cut)
    monkeypatch.undo()
    assert train(None, [], cut) == 0
    one, two = (read_weights(run / "policy") for run in (whole, cut))
    start = read_weights(whole / "checkpoints" / "base")
    assert set(one) == set(start) and all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], start[name]) for name in one)
    assert torch.equal(one["model.embed_tokens.weight"], start["model.embed_tokens.weight"])
    adapters = [load_file(run / "policy" / "adapter" / "adapter_model.safetensors") for run in (whole, cut)]
    assert adapters[0] and all(torch.equal(tensor, adapters[1][name]) for name, tensor in adapters[0].items())
    merged = tmp_path / "merged"
    write_weights(soup([one, start]), whole / "policy", merged)
    assert not (merged / "adapter").exists()  # it is not the soup's
    AutoModelForCausalLM.from_pretrained(merged)


def test_settings_of_adapters_are_refused_elsewhere():
    with pytest.raises(RecipeError, match="rank, alpha and targets are of adapters"):
        load("quickstart", ["learner.trainable={name='half', rank=3}"])
