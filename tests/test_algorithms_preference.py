"""Preference losses against float64 references; pairs; a step's gradient; ES and rejection sampling."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st

from gymrl.agents.ragged import NAME
from gymrl.agents.records import Episode, Turn
from gymrl.envs.records import Message, TaskSpec
from gymrl.rl.algorithms import find, names
from gymrl.rl.learner import Learner, LearnerSettings
from gymrl.rl.pairs import Example, mismatched, pairs, singles
from gymrl.rl.stages.rft import kept
from gymrl.rl.tiny import make_model
from gymrl.rl.trainers.es import es_step, noise, z_scores
from gymrl.rl.trainers.preference import preference_step, sums

f64 = torch.float64
VOCAB = 300
logs = st.floats(-30, 0)
rows = st.lists(
    st.tuples(logs, logs, logs, logs, st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5
)


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def pair_tensors(data):
    columns = ("win_Q", "lose_Q", "ref_win_Q", "ref_lose_Q", "win_length_Q", "lose_length_Q")
    return {name: torch.tensor([row[i] for row in data], dtype=f64) for i, name in enumerate(columns)}


@given(rows)
def test_pair_losses_are_their_formulas(data):
    tensors = pair_tensors(data)
    wants = {"dpo": [], "dpo+nll": [], "ipo": [], "simpo": []}
    for win, lose, ref_win, ref_lose, n, m in data:
        margin = (win - ref_win) - (lose - ref_lose)
        wants["dpo"].append(-math.log(sigmoid(0.1 * margin)))
        wants["dpo+nll"].append(-math.log(sigmoid(0.1 * margin)) - 0.5 * win / n)
        wants["ipo"].append((margin - 5.0) ** 2)
        wants["simpo"].append(-math.log(sigmoid(2.0 * win / n - 2.0 * lose / m - 1.0)))
    for name, want in wants.items():
        settings = {"nll": 0.5} if name == "dpo+nll" else {}
        got = find("preference", name.partition("+")[0]).bind(settings)(tensors)
        assert got.tolist() == pytest.approx(want, abs=1e-6)


@given(
    st.lists(st.tuples(logs, logs, st.booleans()), min_size=1, max_size=6),
    st.lists(st.floats(-3, 3), max_size=4),
)
def test_kto_is_its_formula(data, crossed):
    tensors = {
        "lp_S": torch.tensor([lp for lp, _, _ in data], dtype=f64),
        "ref_lp_S": torch.tensor([ref for _, ref, _ in data], dtype=f64),
        "desirable_S": torch.tensor([good for _, _, good in data]),
        "mismatched_S": torch.tensor(crossed, dtype=f64),
    }
    got = find("preference", "kto").bind({"undesirable": 2.0})(tensors)
    z = max(0.0, sum(crossed) / len(crossed)) if crossed else 0.0
    want = [
        1 - sigmoid(0.1 * ((lp - ref) - z)) if good else 2.0 * (1 - sigmoid(0.1 * (z - (lp - ref))))
        for lp, ref, good in data
    ]
    assert got.tolist() == pytest.approx(want, abs=1e-6)


# -- episodes --------------------------------------------------------------------------------------


def turn(prompt, said, void=False, stop="stop", segment=0):
    n = len(said)
    return Turn(
        (Message("user", "?"),), "x", (), prompt, said, (-1.0,) * n, (0,) * n, segment, stop, 0.0, void
    )


def episode(index, sample, success, *turns, ending="terminated", reason=""):
    task = TaskSpec.make("toy/Toy-v0", "1", "train", index)
    return Episode(task, turns, ending, reason, success, group=index, sample=sample)


def two_turns(index, first, second):
    return (turn((1, 2, 10 + index), first), turn((30, 31), second))


EPISODES = [
    episode(0, 0, True, turn((1, 2, 10), (5, 6), stop="length")),
    episode(0, 1, False, turn((1, 2, 10), (5, 6), void=True)),
    episode(0, 2, True, *two_turns(0, (5, 6), (7,))),
    episode(0, 3, False, *two_turns(0, (8,), (9, 9))),
    episode(0, 4, False, *two_turns(0, (8,), (9, 9, 9))),
    episode(1, 0, True, *two_turns(1, (5, 6), (7,))),
    episode(1, 1, True, turn((1,), (7,)), ending="invalid", reason="environment: lost"),
    episode(2, 0, False, *two_turns(2, (5,) * 9, (7,))),
    episode(2, 1, True, *two_turns(2, (5, 6), (7,))),
]


def test_pairs_are_one_success_and_one_failure_of_a_task():
    found = pairs(EPISODES)
    assert [(e.good, e.pair, e.actions) for e in found] == [
        (True, 0, 3),
        (False, 0, 3),
        (True, 1, 3),
        (False, 1, 10),
    ]
    assert [e.pair for e in pairs(EPISODES, longest=5)] == [0, 0]
    assert [e.good for e in singles(EPISODES)] == [True, False, False, True, False, True]


def test_mismatched_answers_keep_their_tokens_under_another_task():
    examples = singles(EPISODES)
    for example, other in zip(examples, mismatched(examples), strict=True):
        own, crossed = example.sequences[0], other.sequences[0]
        assert crossed.ids[3:].tolist() == own.ids[3:].tolist() and crossed.ids[2] != own.ids[2]
        assert crossed.action.tolist() == own.action.tolist()
    assert mismatched(examples[:2]) == [None, None]  # one task alone


def test_rejection_sampling_keeps_the_shortest_distinct_successes():
    twins = [
        episode(5, n, True, *two_turns(5, said, (7,)))
        for n, said in enumerate([(4,) * 5, (4,), (4,), (4, 4)])
    ]
    assert [(e.task.index, e.sample) for e in kept(twins, 2)] == [(5, 1), (5, 3)]
    assert [e.sample for e in kept(EPISODES, 1)] == [0, 0, 1]


# -- steps -----------------------------------------------------------------------------------------


def learner(**changes) -> Learner:
    made = make_model(VOCAB, hidden=32, layers=1, heads=2, kv_heads=1, context=64, seed=1)
    made.set_attn_implementation(NAME)
    return Learner(made, LearnerSettings(**changes), Accelerator(cpu=True))


def direct(ours: Learner, examples, ref, loss_of):
    """The whole loss in one graph: every example's sum from the model itself, all at once."""
    from gymrl.rl.batches import make_batch

    totals = []
    for example in examples:
        batch = make_batch(list(example.sequences), [1.0] * len(example.sequences))
        totals.append(ours.logprobs(batch)[0].sum())
    loss = loss_of(torch.stack(totals), ref.float())
    ours.model.zero_grad()
    loss.backward()
    return float(loss.detach()), [p.grad.clone() for p in ours.model.parameters()]


@pytest.mark.parametrize("name", ["dpo", "ipo", "simpo", "kto"])
@pytest.mark.parametrize("budget", [8, 8192])
def test_a_step_has_the_gradient_of_the_whole_loss_whatever_the_cut(name, budget, monkeypatch):
    assert set(names("preference")) == {"dpo", "ipo", "simpo", "kto"}
    algorithm = find("preference", name)
    examples = singles(EPISODES) if name == "kto" else pairs(EPISODES)
    ours = learner(token_budget=budget, grad_clip=1e9)
    ref = sums(ours, examples, 1.0) + torch.linspace(-1, 1, len(examples), dtype=f64)
    others = [other for other in mismatched(examples) if other is not None] if name == "kto" else []
    others_ref = sums(ours, others, 1.0) - 0.25 if others else None

    def whole(lp, ref_):
        length = torch.tensor([float(e.actions) for e in examples])
        tensors = {
            "lp_S": lp, "ref_lp_S": ref_, "desirable_S": torch.tensor([e.good for e in examples]),
            "mismatched_S": torch.full((len(others),), 0.25), "win_Q": lp[::2], "lose_Q": lp[1::2],
            "ref_win_Q": ref_[::2], "ref_lose_Q": ref_[1::2],
            "win_length_Q": length[::2], "lose_length_Q": length[1::2],
        }  # fmt: skip
        return algorithm.bind({})(tensors).mean()

    want, gradients = direct(ours, examples, ref, whole)
    seen = []
    monkeypatch.setattr(
        ours.optimizer, "step", lambda: seen.extend(p.grad.clone() for p in ours.model.parameters())
    )
    done = preference_step(ours, examples, ref, algorithm, {}, 1e-3, 1.0, others, others_ref)
    assert done["loss"] == pytest.approx(want, rel=1e-4)
    for got, right in zip(seen, gradients, strict=True):
        torch.testing.assert_close(got, right, atol=2e-5, rtol=1e-3)


def test_tool_and_user_tokens_are_never_in_the_sums():
    """Changed ids of the last observation change the sums of later tokens through the context alone."""
    ours = learner()
    example = pairs(EPISODES)[0]
    own = example.sequences[0]
    tail = replace(
        own, ids=np.append(own.ids, [40, 41]), action=np.append(own.action, [False, False]),
        mu=np.append(own.mu, [9, 9]), advantage=np.append(own.advantage, [9, 9]),
        version=np.append(own.version, [0, 0]), turn=np.append(own.turn, [1, 1]),
    )  # fmt: skip
    assert torch.equal(sums(ours, [example], 1.0), sums(ours, [Example((tail,), True)], 1.0))


def test_evolution_strategies_climb_and_restore_exactly():
    theta = [("a", torch.zeros(3)), ("b", torch.ones(2, 2))]
    seen = []

    def play(member):
        seen.append([tensor.clone() for _, tensor in theta])
        return -float(sum((tensor - 2).square().sum() for _, tensor in theta))

    before = [tensor.clone() for _, tensor in theta]
    rewards = es_step(theta, play, 6, 0.1, 0.0, 7)
    assert all(
        torch.equal(a, b) for a, (_, b) in zip(before, theta, strict=True)
    )  # alpha 0: nothing moved at all
    for member, tensors in enumerate(seen):
        for (name, own), tensor, at in zip(theta, tensors, before, strict=True):
            torch.testing.assert_close(tensor, at + 0.1 * noise(own.shape, 7, member, name))
    assert not torch.equal(noise(torch.Size([4]), 7, 0, "a"), noise(torch.Size([4]), 7, 0, "b"))
    es_step(theta, play, 6, 0.1, 0.5, 7)
    scores = z_scores(rewards)
    want = before[0] + 0.5 / 6 * sum(z * noise(torch.Size([3]), 7, n, "a") for n, z in enumerate(scores))
    torch.testing.assert_close(theta[0][1], want)
    start = play(0)
    for step in range(60):
        es_step(theta, play, 20, 0.1, 0.1, step)
    assert play(0) > 0.2 * start and start < 0


def test_z_scores_of_nothing_to_choose_from():
    assert z_scores([1.0, 1.0]) == [0.0, 0.0] and z_scores([math.nan, 3.0]) == [0.0, 0.0]
    assert z_scores([0.0, 2.0]) == [-1.0, 1.0]
