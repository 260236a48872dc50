"""Supervised fine-tuning: its options against float64 references, and beside RL in one loss."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from gymrl.agents.ragged import NAME
from gymrl.rl.batches import TokenSequence, make_batch
from gymrl.rl.learner import Learner, LearnerSettings
from gymrl.rl.recipes.models import RlSection, SftSection, TokensSection
from gymrl.rl.tiny import make_model
from gymrl.rl.trainers.sft import masked, prepared, weighed
from gymrl.rl.trainers.update import _update

VOCAB = 300


def learner(**changes) -> Learner:
    made = make_model(VOCAB, hidden=32, layers=1, heads=2, kv_heads=1, context=64, seed=1)
    made.set_attn_implementation(NAME)
    return Learner(made, LearnerSettings(**changes), Accelerator(cpu=True))


def demonstrations() -> list[TokenSequence]:
    """Two turns and three, ragged, with observations between them."""
    rng = np.random.default_rng(0)
    found = []
    for turns in (2, 3):
        turn = np.repeat(np.arange(turns), 6)
        action = np.tile(np.array([0, 0, 0, 1, 1, 1], dtype=bool), turns)
        zeros = np.zeros(len(turn), dtype=np.float32)
        found.append(TokenSequence(rng.integers(0, VOCAB, len(turn)), action, zeros, zeros, turn * 0, turn))
    return found


def plain(ours: Learner, sequence: TokenSequence) -> np.ndarray:
    return ours.score([sequence])[0].double().numpy()


@pytest.mark.parametrize("dft", [False, True])
@pytest.mark.parametrize("discount", [1.0, 0.5])
@pytest.mark.parametrize("budget", [20, 8192])
def test_the_loss_is_the_weighted_mean(dft, discount, budget):
    ours, data = learner(token_budget=budget), demonstrations()
    top, bottom = 0.0, 0.0
    for sequence in data:
        lp, turn = plain(ours, sequence), sequence.turn[sequence.action]
        weight = discount ** (turn.max() - turn) * (np.exp(lp) if dft else 1.0)
        top, bottom = top - float((weight * lp).sum()), bottom + float(weight.sum())
    settings = SftSection(tokens=TokensSection(dft=dft, turn_discount=discount))
    sequences, weights, loss_of = prepared(ours, data, settings, 1.0, 0, 0)
    done = ours.step(sequences, weights, loss_of, 1e-3)
    assert done.loss == pytest.approx(top / bottom, rel=1e-5)


def test_masked_thought_hides_what_is_shown_and_not_what_is_to_be_said():
    data = demonstrations()
    hidden = [masked(s, 0.5, 7, 0, n) for n, s in enumerate(data)]
    again = [masked(s, 0.5, 7, 0, n) for n, s in enumerate(data)]
    for own, s, t in zip(data, hidden, again, strict=True):
        assert (s.seen == t.seen).all() and (s.ids == own.ids).all()
        changed = s.seen != s.ids
        assert changed.any() and not changed[~s.action].any() and set(s.seen[changed]) == {7}
    batch = make_batch(hidden, [1.0, 1.0])
    assert batch.ids_T.tolist() == np.concatenate([s.seen for s in hidden]).tolist()
    assert batch.target_N.tolist() == np.concatenate([s.ids[s.action] for s in data]).tolist()


def test_observations_of_demonstrations_carry_no_loss():
    ours, data = learner(), demonstrations()
    sequences, weights, loss_of = prepared(ours, data, SftSection(tokens=TokensSection(turn_discount=0.5)), 1.0, 0, 0)
    batch = make_batch(sequences, weights)
    assert batch.actions == sum(int(s.action.sum()) for s in data)
    lp, _ = ours.logprobs(batch)
    assert loss_of(batch, lp)[0].shape == lp.shape


@pytest.mark.parametrize("updates", [1, 2])
def test_sft_beside_rl_adds_its_mean_with_its_weight(updates):
    data = demonstrations()
    rng = np.random.default_rng(4)
    sampled = [
        TokenSequence(
            s.ids[::-1].copy(),
            s.action,
            rng.normal(-5.7, 0.1, s.tokens).astype(np.float32) * s.action,
            s.action * np.float32(0.5 - n),
            s.version,
            s.turn,
        )
        for n, s in enumerate(data)
    ]
    losses = []
    for weight, shown in ((0.0, []), (0.3, data)):
        ours = learner()
        settings = RlSection(sft_weight=weight, updates=updates, loss={"name": "clip"})
        losses.append(_update(ours, list(sampled), settings, 1.0, 0.0, None, shown)["loss"])
    ours = learner()
    parts = [data[n::updates] for n in range(updates)]
    means = [-np.concatenate([plain(ours, s) for s in part]).mean() for part in parts]
    assert losses[1] - losses[0] == pytest.approx(0.3 * float(np.mean(means)), rel=1e-4)


def test_demonstrations_beside_rl_weigh_what_the_recipe_says():
    """The weighted mean of SFT with its options, times the weight, as the stage of SFT would have it."""
    ours, data = learner(), demonstrations()
    chosen = SftSection(tokens=TokensSection(dft=True, turn_discount=0.5))
    told = weighed(ours, data, chosen, 1.0)
    flat = [replace(s, advantage=s.advantage * 0, mu=s.mu * 0) for s in data]
    got = _update(ours, flat, RlSection(sft_weight=0.3), 1.0, 0.0, None, told)["loss"]
    sequences, weights, loss_of = prepared(ours, data, chosen, 1.0)
    want = ours.step(sequences, weights, loss_of, 0.0).loss
    assert got == pytest.approx(0.3 * want, rel=1e-5) and want > 0


def test_the_learners_gradient_of_dft_is_that_of_fixed_weights():
    """The probabilities are not differentiated: the gradient is that of -sum(w lp) / sum(w) with w as numbers."""
    ours, data = learner(), demonstrations()
    sequences, weights, loss_of = prepared(ours, data, SftSection(tokens=TokensSection(dft=True)), 1.0, 0, 0)
    batch = make_batch(sequences, weights)
    lp, _ = ours.logprobs(batch)
    lp.retain_grad()
    (loss_of(batch, lp)[0] * batch.weight_N).sum().backward()
    p = lp.detach().exp()
    torch.testing.assert_close(lp.grad, -p / p.sum(), rtol=1e-4, atol=1e-7)
