"""Where the gradient comes from: the norm that the tokens of each cause make alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from gymrl.agents.ragged import NAME
from gymrl.agents.records import Episode, Turn
from gymrl.envs.records import Message, TaskSpec
from gymrl.rl.batches import TOLD, at_actions, make_batch, sequences_of
from gymrl.rl.learner import Learner, LearnerSettings
from gymrl.rl.objective import loss_of_settings
from gymrl.rl.recipes.models import RlSection
from gymrl.rl.tiny import make_model
from gymrl.rl.trainers.update import _update, causes, episode_metrics


def learner(**changes) -> Learner:
    made = make_model(300, hidden=32, layers=1, heads=2, kv_heads=1, context=64, seed=1)
    made.set_attn_implementation(NAME)
    return Learner(made, LearnerSettings(**changes), Accelerator(cpu=True))


def turn(ids, void, version):
    n = len(ids)
    return Turn((Message("user", "?"),), "x", (), (1, 2), ids, (-5.7,) * n, (version,) * n, void=void)


@pytest.mark.parametrize("budget", [12, 8192])
def test_the_norms_are_those_of_the_tokens_alone(budget):
    task = TaskSpec.make("toy/Toy-v0", "1", "train", 0)
    episodes = [
        Episode(task, (turn((5, 6, 7), True, 3), turn((8, 9), False, 3)), "terminated"),
        Episode(task, (turn((5, 6), False, 2), turn((8, 9, 10), False, 3)), "terminated"),
    ]
    data = [s for n, e in enumerate(episodes) for s in sequences_of(e, advantage=1.0 - 2.0 * n)]
    weights = [0.1, 0.1]
    ours = learner(token_budget=budget)
    loss_of = loss_of_settings(RlSection())
    before = [p.detach().clone() for p in ours.model.parameters()]
    got = ours.gradient_norms(data, weights, loss_of, causes(3))
    assert (
        all(torch.equal(a, b) for a, b in zip(before, ours.model.parameters(), strict=True))
        and ours.updates == 0
    )
    batch = make_batch(data, weights)
    lp, _ = ours.logprobs(batch)
    version = np.concatenate([s.version[s.action] for s in data])
    masks = {
        "all": [True] * 10,
        "void": [True] * 3 + [False] * 7,
        "stale": (version < 3).tolist(),
        "unlikely": (lp.detach() < np.log(0.1)).tolist(),
    }
    assert sum(masks["stale"]) == 2 and set(got) == set(masks)
    for name, mask in masks.items():
        ours.model.zero_grad()
        loss, _ = loss_of(batch, ours.logprobs(batch)[0])
        (loss * batch.weight_N * torch.tensor(mask)).sum().backward()
        want = torch.nn.utils.get_total_norm([p.grad for p in ours.model.parameters() if p.grad is not None])
        assert got[name] == pytest.approx(float(want), rel=1e-4)
    assert got["all"] == pytest.approx(ours.step(data, weights, loss_of, 0.0).grad_norm, rel=1e-5)


def test_demonstrated_tokens_are_not_stale():
    task = TaskSpec.make("toy/Toy-v0", "1", "train", 0)
    told = replace(turn((5, 6, 7, 8), False, 3), versions=(TOLD, TOLD, 2, 3))
    data = sequences_of(Episode(task, (told,), "terminated"), advantage=1.0)
    beside = [replace(s, guided=True) for s in data]
    batch = make_batch(data + beside, [1.0, 1.0])
    stale = causes(3)["stale"](batch, torch.zeros(batch.actions))
    assert batch.version_N.tolist() == [TOLD, TOLD, 2, 3] * 2
    assert stale.tolist() == [False, False, True, False] + [False] * 4


def test_what_is_said_of_tokens_is_said_of_sampled_ones_alone():
    task = TaskSpec.make("toy/Toy-v0", "1", "train", 0)
    episode = Episode(task, (turn((5, 6, 7), False, 0),), "terminated")
    told = Episode(task, (turn((200, 201, 202, 203, 204), False, TOLD),), "terminated")
    data, shown = sequences_of(episode, advantage=1.0), sequences_of(told)
    alone, beside = (
        _update(learner(), data, RlSection(sft_weight=0.5, correction={"name": "none"}), 1.0, 1e-3, shown=more)
        for more in ((), shown)
    )
    assert (alone["actions"], beside["actions"]) == (3, 8)
    for name in ("entropy", "mismatch_mean", "clip_share", "importance_truncated"):
        assert beside[name] == pytest.approx(alone[name], rel=1e-5), name


def test_more_updates_than_sequences_are_as_many_as_there_are():
    task = TaskSpec.make("toy/Toy-v0", "1", "train", 0)
    data = [
        s
        for ids, worth in (((5, 6, 7), 1.0), ((8, 9), -1.0))
        for s in sequences_of(Episode(task, (turn(ids, False, 0),), "terminated"), advantage=worth)
    ]
    two, many = (_update(learner(), data, RlSection(updates=n), 1.0, 1e-3) for n in (2, 50))
    assert two == many and two["skipped"] == 0
    assert two["approx_kl"] > 0  # the second update sees what the first has moved


def test_epochs_go_through_the_same_parts_again():
    """Two epochs are the steps of two updates taken twice, all against the policy before the first of them."""
    task = TaskSpec.make("toy/Toy-v0", "1", "train", 0)
    data = [
        s
        for ids, worth in (((5, 6, 7), 1.0), ((8, 9), -1.0))
        for s in sequences_of(Episode(task, (turn(ids, False, 0),), "terminated"), advantage=worth)
    ]
    settings = RlSection(updates=2, epochs=2, correction={"name": "none"})
    ours, plain = learner(), learner()
    found = _update(ours, data, settings, 1.0, 1e-3)
    scored = plain.score(data)
    held = [replace(s, old=at_actions(s, lp)) for s, lp in zip(data, scored, strict=True)]
    loss_of = loss_of_settings(settings)
    steps = [plain.step([held[n % 2]], [1 / held[n % 2].actions], loss_of, 1e-3) for n in range(4)]
    for mine, theirs in zip(ours.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert ours.updates == 4 and found["actions"] == 10
    assert found["grad_norm"] == pytest.approx(sum(step.grad_norm for step in steps) / 4)


def test_a_correction_that_leaves_no_token_is_a_trouble():
    task = TaskSpec.make("toy/Toy-v0", "1", "train", 0)
    data = sequences_of(Episode(task, (turn((5, 6, 7), False, 0),), "terminated"), advantage=1.0)
    for name in ("icepop", "reject"):
        ours = learner()
        _update(ours, data, RlSection(correction={"name": name, "low": 1e-9, "high": 1e-8}), 1.0, 1e-3)
        assert any("leaves no token" in trouble for trouble in ours.troubles), name


def test_the_sampled_entropy_is_that_of_all_that_was_sampled():
    task = TaskSpec.make("toy/Toy-v0", "1", "train", 0)
    told = replace(turn((5, 6), False, 0), versions=(TOLD, 0), logprobs=(0.0, -1.0))
    episodes = [
        Episode(task, (told, turn((7, 8), False, 0)), "terminated"),
        Episode(task, (), "invalid", "environment: x"),
    ]
    assert episode_metrics(episodes)["entropy_sampled"] == pytest.approx((1.0 + 2 * 5.7) / 3)
