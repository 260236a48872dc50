"""Several processes that train one policy come to what one process comes to, up to rounding."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st

from gymrl.agents.ragged import NAME
from gymrl.rl.adapters import AdapterSettings
from gymrl.rl.batches import TokenSequence
from gymrl.rl.learner import Learner, LearnerSettings
from gymrl.rl.losses.aggregation import token_weights
from gymrl.rl.objective import loss_of_settings
from gymrl.rl.processes import dealt
from gymrl.rl.recipes.models import RlSection
from gymrl.rl.tiny import make_model
from gymrl.rl.trainers.sft import negative_logprob
from gymrl.rl.trainers.update import causes

LR = 1e-4
BUDGET = 128
CASES = {
    "sft": {}, "grpo": {}, "fsdp-sft": {"shard": True}, "fsdp-grpo": {"shard": True}, "half": {"trainable": "half"},
    "lora": {"adapter": AdapterSettings("lora", 4)},
}  # fmt: skip


def sequences(count: int, seed: int) -> list[TokenSequence]:
    """Ragged, with an observation in the middle; one of them has no action at all."""
    rng = np.random.default_rng(seed)
    found = []
    for number, length in enumerate(rng.integers(6, 90, count)):
        action = np.arange(length) >= length // 4
        action[length // 2 : length // 2 + length // 5] = False
        action &= number != 1
        ids = rng.integers(0, 320, length)
        mu = np.where(action, rng.normal(-5.7, 0.3, length), 0).astype(np.float32)
        advantage = np.where(action, rng.normal(), 0).astype(np.float32)
        old = mu + np.where(action, rng.normal(0, 0.3, length), 0).astype(np.float32)
        found.append(TokenSequence(ids, action, mu, advantage, ids * 0, ids * 0, old=old))
    return found


def opened(**changes) -> Learner:
    model = make_model(320, hidden=32, layers=2, heads=2, kv_heads=1, context=128, seed=3)
    model.set_attn_implementation(NAME)
    return Learner(model, LearnerSettings(token_budget=BUDGET, **changes), Accelerator(cpu=True))


def trained(kind: str) -> dict:
    """Three steps, the second of which has fewer sequences than there are processes; then what came of them. After the
    second the learner is saved and a fresh one goes on."""
    objective = negative_logprob if kind.endswith("sft") else loss_of_settings(RlSection())
    ours, results = opened(**CASES[kind]), []
    for number, count in enumerate((9, 1, 7)):
        data = sequences(count, number)
        weights = token_weights(torch.tensor([s.actions for s in data]), "token-mean").tolist()
        results.append(ours.step(data, weights, objective, LR))
        if number == 1:
            ours = resumed(ours, kind)
    data = sequences(8, 5)
    norms = ours.gradient_norms(data, [0.01] * 8, objective, causes(1))
    return {
        "results": results, "norms": norms, "scores": ours.score(data), "weights": dict(ours.weights()),
        "updates": ours.updates, "state": ours.state(),
    }  # fmt: skip


def resumed(ours: Learner, kind: str) -> Learner:
    """A fresh learner with the state of `ours`, as from a checkpoint."""
    file = io.BytesIO()
    torch.save({"state": ours.state(), "weights": dict(ours.weights())}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    model = make_model(320, hidden=32, layers=2, heads=2, kv_heads=1, context=128, seed=3)
    if kind != "lora":
        model.load_state_dict(saved["weights"])
    model.set_attn_implementation(NAME)
    other = Learner(model, ours.settings, ours.accelerator)
    other.load_state(saved["state"])
    for (name, a), (_, b) in zip(ours.weights(), other.weights(), strict=True):
        assert torch.equal(a, b), name
    return other


def worker(rank: int, store: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    found = {kind: trained(kind) for kind in CASES}
    torch.save(found, f"{out}-{rank}")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def pair() -> list[dict]:
    """What each of two processes came to, for all cases."""
    with tempfile.TemporaryDirectory() as folder:
        place = os.path.join(folder, "store"), os.path.join(folder, "found")
        workers = [subprocess.Popen([sys.executable, __file__, str(rank), *place]) for rank in range(2)]
        assert [one.wait() for one in workers] == [0, 0]
        return [torch.load(f"{place[1]}-{rank}", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("kind", CASES)
def test_two_processes_are_one(pair, kind):
    alone = trained(kind)
    for rank in range(2):
        both = pair[rank][kind]
        for got, want in zip(both["results"], alone["results"], strict=True):
            assert (got.tokens, got.actions, got.skipped) == (want.tokens, want.actions, False)
            assert got.loss == pytest.approx(want.loss, rel=1e-5, abs=1e-7)
            assert got.grad_norm == pytest.approx(want.grad_norm, rel=1e-5)
            assert got.sums == pytest.approx(want.sums, rel=1e-4)
        assert both["norms"] == pytest.approx(alone["norms"], rel=1e-4, abs=1e-7)
        assert both["updates"] == alone["updates"] == 3
        for got, want in zip(both["scores"], alone["scores"], strict=True):
            torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
        assert set(both["weights"]) == set(alone["weights"])
        for name, want in alone["weights"].items():
            torch.testing.assert_close(both["weights"][name], want, atol=1e-6, rtol=0)
    # All processes hold the same, to the bit.
    for name, tensor in pair[0][kind]["weights"].items():
        assert torch.equal(tensor, pair[1][kind]["weights"][name])


def test_the_weights_did_move(pair):
    start = dict(opened().weights())
    for kind in ("sft", "grpo"):
        moved = max(float((pair[0][kind]["weights"][n] - t).abs().max()) for n, t in start.items())
        assert moved > 1e-4


@given(st.lists(st.integers(1, 500), max_size=40), st.integers(1, 6))
def test_dealing_is_even_and_loses_nothing(sizes, hands):
    found = dealt(sizes, hands)
    assert sorted(i for hand in found for i in hand) == list(range(len(sizes)))
    sums = [sum(sizes[i] for i in hand) for hand in found]
    assert max(sums) - min(sums) <= max(sizes, default=0)


if __name__ == "__main__":
    worker(int(sys.argv[1]), sys.argv[2], sys.argv[3])
