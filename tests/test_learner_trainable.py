"""Which parameters are trained: half of them, or a few layers at a time, drawn anew as a function of the update."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from gymrl.agents.ragged import NAME
from gymrl.rl.batches import TokenSequence
from gymrl.rl.learner import Learner, LearnerSettings
from gymrl.rl.tiny import make_model
from gymrl.rl.trainable import trainable
from gymrl.rl.trainers.sft import negative_logprob

NAMES = [name for name, _ in make_model(300, 32, 6, 2, 1, 64).named_parameters()]


@pytest.mark.parametrize("round_", range(4))
def test_half_is_half_of_every_kind(round_):
    chosen = trainable(NAMES, "half", round_, 2, 0)
    assert chosen == trainable(NAMES, "half", round_, 2, 0) and abs(2 * len(chosen) - len(NAMES)) <= 1
    for kind in ("q_proj", "down_proj", "input_layernorm"):
        assert sum(kind in name for name in chosen) == 3
    assert chosen != trainable(NAMES, "half", round_ + 1, 2, 0) and chosen != trainable(
        NAMES, "half", round_, 2, 1
    )


def test_lisa_trains_the_ends_and_two_layers():
    drawn = set()
    for round_ in range(12):
        chosen = trainable(NAMES, "lisa", round_, 2, 0)
        layers = {name.split(".layers.")[1].split(".")[0] for name in chosen if ".layers." in name}
        assert (
            len(layers) == 2 and "model.embed_tokens.weight" in chosen and "model.norm.weight" not in chosen
        )
        assert all(name in chosen for name in NAMES for n in layers if f".layers.{n}." in name)
        drawn |= layers
    assert drawn == set("012345")


@pytest.mark.parametrize("kind", ["half", "lisa"])
def test_only_what_is_drawn_moves_and_a_resumed_learner_draws_the_same(kind):
    rng = np.random.default_rng(0)
    action = np.arange(20) >= 4
    ids = rng.integers(0, 300, 20)
    data = [TokenSequence(ids, action, action * 0.0, action * 1.0, ids * 0, ids * 0)]

    def made() -> Learner:
        model = make_model(300, 32, 4, 2, 1, 64)
        model.set_attn_implementation(NAME)
        return Learner(
            model, LearnerSettings(trainable=kind, redraw=2, layers=1, seed=5), Accelerator(cpu=True)
        )

    ours, other = made(), made()
    for update in range(4):
        before = {name: p.detach().clone() for name, p in ours.model.named_parameters()}
        chosen = trainable(list(before), kind, update // 2, 1, 5)
        ours.step(data, [0.1], negative_logprob, 1e-2)
        moved = {name for name, p in ours.model.named_parameters() if not torch.equal(p, before[name])}
        assert moved <= chosen and moved
        if update == 1:
            other.model.load_state_dict(ours.model.state_dict())
            other.load_state(copy.deepcopy(ours.state()))
        if update >= 2:
            other.step(data, [0.1], negative_logprob, 1e-2)
    pairs = zip(ours.model.parameters(), other.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
