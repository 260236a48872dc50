"""Several processes that train one policy come to what one process comes to, up to rounding."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

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
from gymrl.rl.crew import CrewFault, check_crew, crew, size
from gymrl.rl.folder import RunFolder
from gymrl.rl.learner import Learner, LearnerSettings
from gymrl.rl.losses.aggregation import token_weights
from gymrl.rl.merging import read_weights
from gymrl.rl.objective import loss_of_settings
from gymrl.rl.processes import dealt
from gymrl.rl.recipes import load
from gymrl.rl.recipes.models import RlSection
from gymrl.rl.run import train
from gymrl.rl.tiny import make_model
from gymrl.rl.trainers.sft import negative_logprob
from gymrl.rl.trainers.update import causes

sys.path.insert(0, str(Path(__file__).parent))
import toy_env  # noqa: F401 - registers toy/Letters-v0

LR = 1e-4
BUDGET = 96
CASES = {
    "sft": {}, "grpo": {}, "fsdp-sft": {"shard": True}, "fsdp-grpo": {"shard": True}, "half": {"trainable": "half"},
    "lora": {"adapter": AdapterSettings("lora", 4)}, "checkpointing": {"gradient_checkpointing": True},
    "fsdp-checkpointing": {"shard": True, "gradient_checkpointing": True},
}  # fmt: skip


def sequences(count: int, seed: int) -> list[TokenSequence]:
    """Ragged, with an observation in the middle; one of them has no action at all."""
    rng = np.random.default_rng(seed)
    found = []
    for number, length in enumerate(rng.integers(6, 60, count)):
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
    for number, count in enumerate((7, 1, 5)):
        data = sequences(count, number)
        weights = token_weights(torch.tensor([s.actions for s in data]), "token-mean").tolist()
        results.append(ours.step(data, weights, objective, LR))
        if number == 1:
            ours = resumed(ours, kind)
    data = sequences(4, 5)
    norms = ours.gradient_norms(data, [0.01] * 4, objective, causes(1))
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
        assert list(both["weights"]) == list(alone["weights"])
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


SMALL = [
    "model.tiny={hidden=32, heads=2, kv_heads=1, layers=1}", "sft.demonstrations=8", "sft.steps=2", "sft.batch=4",
    "rl.steps=3", "rl.tasks=2", "rl.group=3", "rl.updates=2", "rl.kl.ref=start", "eval.tasks=2",
    "sampling.max_tokens=6", "log.checkpoint_every=1", "log.insight_every=2", "log.trackers=[]", "rl.void=keep",
    "env.id=toy/Letters-v0", "env.params={}", "sft.params={}",
]  # fmt: skip


def rows(run: Path) -> list[dict]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in found]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "alone"
    assert train("quickstart", SMALL, None, out) == 0
    return out


@pytest.mark.parametrize("shard", [False, True])
def test_a_run_of_two_processes_is_a_run_of_one_and_resumes_bit_for_bit(alone, shard, tmp_path, monkeypatch):
    surroundings = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    write = RunFolder.save_progress

    def failing(self, progress):
        write(self, progress)
        if (self.path, progress.phase, progress.step) == (cut, 3, 2):
            raise RuntimeError("the power is gone")

    monkeypatch.setattr(RunFolder, "save_progress", failing)
    with crew(2, shard):
        assert size() == 2
        assert train("quickstart", [*SMALL, 'log.trackers=["tensorboard"]'], None, whole) == 0
        assert size() == 2  # closing the trackers left the processes together
        with pytest.raises(RuntimeError, match="the power is gone"):
            train("quickstart", SMALL, None, cut)
        assert train(None, [], cut) == 0
    assert size() == 1
    assert surroundings == {n: v for n, v in os.environ.items() if n != "PYTEST_CURRENT_TEST"}
    single, one, two = (read_weights(run / "policy") for run in (alone, whole, cut))
    assert list(single) == list(one)
    for name, tensor in single.items():
        torch.testing.assert_close(one[name], tensor, atol=1e-5, rtol=0)
        assert torch.equal(one[name], two[name])
    assert rows(whole) == rows(cut)
    for got, want in zip(rows(whole), rows(alone), strict=True):
        assert (got.pop("stage"), got.pop("step")) == (want.pop("stage"), want.pop("step"))
        assert got == pytest.approx(want, rel=1e-3, abs=1e-5)
    # Its checkpoint is one that a single process goes on from, and the other way round.
    state = torch.load(next((whole / "checkpoints").glob("*-step-*/trainer.pt")), weights_only=True)
    of_one = torch.load(next((alone / "checkpoints").glob("*-step-*/trainer.pt")), weights_only=True)
    assert set(state) == set(of_one)
    for index, moments in of_one["optimizer"]["state"].items():
        for name, tensor in moments.items():
            torch.testing.assert_close(state["optimizer"]["state"][index][name], tensor, atol=1e-5, rtol=1e-3)


def test_what_several_processes_cannot_do_is_refused(tmp_path, monkeypatch):
    with pytest.raises(CrewFault, match="add --processes"), crew(1, shard=True):
        pass
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    for override, words in (
        ('stages=["es"]', "one process"),
        ("sft.tokens.anchor=0.1", "one process"),
    ):
        with pytest.raises(CrewFault, match=words):
            check_crew(load("quickstart", [override]))


def test_the_others_end_when_the_first_process_is_killed():
    code = (
        "import os, signal; from gymrl.rl import crew; started = crew._start\n"
        "def start(n):\n    found = started(n); print(found[0].pid, flush=True); return found\n"
        "crew._start = start\n"
        "with crew.crew(2): os.kill(os.getpid(), signal.SIGKILL)"
    )
    first = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert first.returncode == -signal.SIGKILL
    end = time.monotonic() + 60
    while alive(int(first.stdout)):
        assert time.monotonic() < end, "the other process still waits"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


if __name__ == "__main__":
    worker(int(sys.argv[1]), sys.argv[2], sys.argv[3])
