"""What no loss may depend on: observation tokens but through the context, the order of sequences, the side of padding.
And the gradient of a whole step, by finite differences of its own loss."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st

from gymrl.agents.ragged import NAME
from gymrl.agents.records import Episode, Turn
from gymrl.envs.records import Message, TaskSpec
from gymrl.rl.algorithms import find, names
from gymrl.rl.batches import SHOWN, TOLD, TokenSequence, make_batch, sequences_of
from gymrl.rl.critic import Critic, CriticSettings
from gymrl.rl.groups import Group
from gymrl.rl.learner import Learner, LearnerSettings
from gymrl.rl.losses.aggregation import token_weights
from gymrl.rl.objective import loss_of_settings
from gymrl.rl.pairs import Example
from gymrl.rl.recipes import load, shipped
from gymrl.rl.recipes.models import KlSection, Part, RlSection, SftSection, TokensSection
from gymrl.rl.reference import Reference
from gymrl.rl.tiny import make_model
from gymrl.rl.trainers.preference import preference_step, sums
from gymrl.rl.trainers.sft import prepared, sft_step
from gymrl.rl.trainers.update import Helpers, learn

VOCAB = 300
TASK = TaskSpec.make("toy/Toy-v0", "1", "train", 0)
ONLINE = [
    name for name in sorted(shipped()) if name not in ("quickstart", "textworld")
    and load("quickstart", [f"algo={name}"]).stages == ["sft", "rl"]
]  # fmt: skip


def model(seed: int = 1, blind: bool = False):
    """A tiny model. A blind one looks at nothing but the token before: its attention adds 0."""
    made = make_model(VOCAB, hidden=32, layers=1, heads=2, kv_heads=1, context=64, seed=seed)
    made.set_attn_implementation(NAME)
    if blind:
        for layer in made.model.layers:
            torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    return made


def learner(seed: int = 1, blind: bool = False, **changes) -> Learner:
    return Learner(model(seed, blind), LearnerSettings(**changes), Accelerator(cpu=True))


def reference(blind: bool = True) -> Reference:
    return Reference(model(2, blind), LearnerSettings(), Accelerator(cpu=True))


def critic() -> Critic:
    made = Critic(model(3, blind=True), CriticSettings(), Accelerator(cpu=True))
    torch.nn.init.normal_(made.head.weight, generator=torch.Generator().manual_seed(0))
    return made


# -- observations ----------------------------------------------------------------------------------
# A blind model's context is the one token before what it says. All others are observations whose ids must not matter.

LAST = 3
"""The token that ends every prompt: the whole context of a blind model's first word."""


def observed(rng: np.random.Generator, longest: int = 4) -> tuple[int, ...]:
    return (*rng.integers(4, VOCAB, longest).tolist(), LAST)


def groups_of(seed: int, greedy: bool, told: bool) -> list[Group]:
    """Two groups of three two-turn episodes whose prompts have ids drawn by `seed`; nothing else is."""
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(0)
    groups = []
    for index in range(2):
        task, episodes = TaskSpec.make("toy/Toy-v0", "1", "train", index), []
        for sample in range(3 + greedy):
            turns = []
            for k in range(2):
                n = int(fixed.integers(1, 4))
                said = tuple(fixed.integers(4, VOCAB, n).tolist())
                versions = ((TOLD, SHOWN, 0)[:n] if told and sample == 0 else (0,) * n)  # fmt: skip
                lps = tuple(fixed.normal(-5.7, 0.1, n).tolist())
                reward = float(k == 1 and sample == index + 1)
                turns.append(
                    Turn(
                        (Message("user", "ab"[k]),),
                        "x",
                        (),
                        observed(rng),
                        said,
                        lps,
                        versions,
                        0,
                        "stop",
                        reward,
                    )
                )
            episodes.append(Episode(task, tuple(turns), "terminated", group=index, sample=sample))
        groups.append(Group(task, tuple(episodes)))
    return groups


@pytest.mark.parametrize("name", ONLINE)
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(1, 2**31))
def test_observation_ids_change_no_loss_of_an_online_algorithm(name, seed):
    rl = load("quickstart", [f"algo={name}", "rl.void=keep", "rl.group=3"]).rl
    rl = rl.model_copy(update={"kl": KlSection(coefficient=0.1)})
    seen = []
    for drawn in (0, seed):
        ours, helpers = learner(blind=True), Helpers(reference(), critic() if rl.critic else None)
        groups = groups_of(drawn, greedy=rl.advantage.name == "remax", told=rl.prefix is not None)
        shown = []
        if rl.sft_weight:
            told = replace(groups[0].episodes[0], sample=9)
            shown = sequences_of(told)
        metrics = learn(ours, groups, rl, 1.0, 0, helpers, shown)
        assert ours.updates == rl.updates and metrics["actions"] > 0
        terms = ("loss", "kl", "actions", "mismatch_mean", "clip_share", "value_loss")
        seen.append({term: metrics[term] for term in terms if term in metrics})
    assert (
        seen[0] == seen[1] and seen[0]["loss"] != 0 and ("value_loss" in seen[0]) == (rl.critic is not None)
    )


SUPERVISED = {
    "sft": None,
    "dft": TokensSection(dft=True),
    "turn discount": TokensSection(turn_discount=0.5),
    "key tokens": TokensSection(key=".", key_most=3.0),
    "masked thought": TokensSection(masked=0.5, blank=7),
    "anchored dft": TokensSection(dft=True, anchor=0.5),
}


def demonstrations(seed: int) -> list[TokenSequence]:
    found = []
    for episode in groups_of(seed, greedy=False, told=False)[0].episodes:
        (sequence,) = sequences_of(episode)
        key = np.arange(sequence.tokens) % 2 == 0  # on observations too, where it must not count
        found.append(replace(sequence, key=key))
    return found


@pytest.mark.parametrize("name", SUPERVISED)
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(1, 2**31))
def test_observation_ids_change_no_loss_of_supervised_tuning(name, seed):
    losses = []
    for drawn in (0, seed):
        data = [[s if name == "key tokens" else replace(s, key=None)] for s in demonstrations(drawn)]
        chosen = SftSection(batch=3, tokens=SUPERVISED[name])
        done = sft_step(learner(blind=True), data, chosen, 0, 0, reference=reference())
        losses.append({term: done[term] for term in ("loss", "anchor") if term in done})
    assert losses[0] == losses[1] and losses[0]["loss"] > 0


@pytest.mark.parametrize("name", names("preference"))
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(1, 2**31))
def test_observation_ids_change_no_preference_loss(name, seed):
    algorithm = find("preference", name)
    losses = []
    for drawn in (0, seed):
        episodes = [e for g in groups_of(drawn, False, False) for e in g.episodes[:2]]
        examples = [Example(tuple(sequences_of(e)), n % 2 == 0) for n, e in enumerate(episodes)]
        others = list(reversed(examples))
        ours, ref = learner(blind=True), reference()
        ref_S, others_ref = sums(ref, examples, 1.0), sums(ref, others, 1.0)
        done = preference_step(ours, examples, ref_S, algorithm, {}, 1e-3, 1.0, others, others_ref)
        losses.append({term: done[term] for term in ("loss", "margin") if term in done})
    assert losses[0] == losses[1] and losses[0]["loss"] > 0


def test_a_loss_on_observations_would_be_seen():
    """The test above can fail: with observations in the mask other ids change the loss."""
    losses = []
    for drawn in (0, 1):
        data = [replace(s, key=None, action=np.arange(s.tokens) > 1) for s in demonstrations(drawn)]
        losses.append(sft_step(learner(blind=True), [[s] for s in data], SftSection(batch=3), 0, 0)["loss"])
    assert losses[0] != losses[1]


def test_a_model_that_sees_the_observations_says_something_else():
    rl = load("quickstart", ["rl.void=keep", "rl.group=3"]).rl.model_copy(update={"kl": KlSection()})
    seen = [
        learn(learner(), groups_of(n, False, False), rl, 1.0, 0, Helpers(reference(False))) for n in (0, 1)
    ]
    assert seen[0]["kl"] != seen[1]["kl"] and seen[0]["grad_norm"] != seen[1]["grad_norm"]


# -- order, and padding ----------------------------------------------------------------------------


def sampled(lengths=(9, 14, 6, 11)) -> list[TokenSequence]:
    """Ragged sequences with observation gaps; old, ref and mu near the model's own."""
    rng, found = np.random.default_rng(7), []
    for n in lengths:
        action = np.zeros(n, dtype=bool)
        action[2 : n // 2] = action[n // 2 + 2 :] = True
        mu, old, ref = (rng.normal(-5.7, 0.1, n).astype(np.float32) * action for _ in range(3))
        worth = np.where(action, np.float32(rng.choice([-1.5, 0.7])), np.float32(0))
        ids = rng.integers(0, VOCAB, n)
        found.append(TokenSequence(ids, action, mu, worth, ids * 0, ids * 0, old, ref))
    return found


OBJECTIVES = {
    "clip": RlSection(),
    "clip + k3": RlSection(kl=KlSection(coefficient=0.1)),
    "gspo": RlSection(loss=Part(name="gspo", low=0.5, high=0.5), aggregation={"name": "seq-mean-token-mean"}),
    "cispo": RlSection(loss=Part(name="cispo"), aggregation={"name": "seq-mean-token-sum"}),
    "reinforce": RlSection(loss=Part(name="reinforce"), correction=Part(name="tis", level="sequence")),
    "icepop": RlSection(correction=Part(name="icepop")),
}


def weights_of(data: list[TokenSequence], chosen: RlSection) -> list[float]:
    counts = torch.tensor([s.actions for s in data])
    return token_weights(counts, chosen.aggregation.name, chosen.aggregation.length).tolist()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_order_of_sequences_does_not_matter(name):
    """Nor which of them share a micro-batch: in another order they are packed otherwise."""
    data, chosen = sampled(), OBJECTIVES[name]
    done = []
    for order in ((0, 1, 2, 3), (3, 1, 0, 2), (2, 3, 1, 0)):
        part = [data[i] for i in order]
        ours = learner(token_budget=24)
        done.append(ours.step(part, weights_of(part, chosen), loss_of_settings(chosen), 1e-3))
    for other in done[1:]:
        assert other.loss == pytest.approx(done[0].loss, rel=1e-5, abs=1e-7)
        assert other.grad_norm == pytest.approx(done[0].grad_norm, rel=1e-4)
        assert (other.actions, other.tokens) == (done[0].actions, done[0].tokens)


@pytest.mark.parametrize("name", names("preference"))
def test_the_order_of_pairs_does_not_matter(name):
    data = sampled()
    examples = [Example((s,), n % 2 == 0) for n, s in enumerate(data)]
    done = []
    for order in ((0, 1, 2, 3), (2, 3, 0, 1)):
        part = [examples[i] for i in order]
        ours, ref = learner(), reference(blind=False)
        ref_S = sums(ref, part, 1.0)
        done.append(preference_step(ours, part, ref_S, find("preference", name), {}, 1e-3, 1.0, part, ref_S))
    assert done[1]["loss"] == pytest.approx(done[0]["loss"], rel=1e-6)
    assert done[1]["grad_norm"] == pytest.approx(done[0]["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_packed_logprobs_are_those_of_a_batch_padded_on_either_side(side):
    data, ours = sampled(), learner()
    width = max(s.tokens for s in data)
    ids, mask = (
        torch.zeros(len(data), width, dtype=torch.long),
        torch.zeros(len(data), width, dtype=torch.long),
    )
    starts = [width - s.tokens if side == "left" else 0 for s in data]
    for row, (s, start) in enumerate(zip(data, starts, strict=True)):
        ids[row, start : start + s.tokens] = torch.from_numpy(s.ids)
        mask[row, start : start + s.tokens] = 1
    plain = model()
    plain.set_attn_implementation("eager")
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    lp = (
        plain(input_ids=ids, attention_mask=mask, position_ids=places)
        .logits.detach()
        .double()
        .log_softmax(-1)
    )
    got = torch.split(ours.logprobs(make_batch(data, [1.0] * len(data)))[0], [s.actions for s in data])
    for row, (s, start) in enumerate(zip(data, starts, strict=True)):
        at = torch.from_numpy(np.flatnonzero(s.action))
        want = lp[row, start + at - 1, torch.from_numpy(s.ids)[at]]
        torch.testing.assert_close(got[row].double(), want, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["gae", "turn-gae", "two-level-gae", "reinforce++"])
@settings(max_examples=15)
@given(seed=st.integers(0, 2**31), pad=st.integers(1, 5))
def test_advantages_do_not_depend_on_the_side_of_the_padding(name, seed, pad):
    rng = np.random.default_rng(seed)
    sampled_BT = torch.from_numpy(rng.random((3, 8)) < 0.5)
    sampled_BT[:, 0] = True
    turn_BT = torch.from_numpy(
        np.cumsum(np.diff(sampled_BT.numpy().astype(int), prepend=0, axis=1) == 1, axis=1)
    )
    plain = {
        "token_rewards_BT": torch.from_numpy(rng.normal(size=(3, 8))) * sampled_BT,
        "values_BT": torch.from_numpy(rng.normal(size=(3, 8))),
        "sampled_BT": sampled_BT,
        "turn_BT": turn_BT,
    }
    rows = {
        "bootstrap_B": torch.from_numpy(rng.normal(size=3)),
        "counted_B": torch.tensor([True, True, False]),
    }
    rule, found = find("advantage", name).bind({}), []
    for left, right in ((0, 0), (pad, 0), (0, pad)):
        wide = {key: torch.nn.functional.pad(value, (left, right)) for key, value in plain.items()}
        # The padding belongs to the turn beside it, as trailing observations do.
        wide["turn_BT"] = torch.cat(
            [turn_BT[:, :1].expand(-1, left), turn_BT, turn_BT[:, -1:].expand(-1, right)], 1
        )
        got = rule({**wide, **rows})
        found.append((got[0] if isinstance(got, tuple) else got)[wide["sampled_BT"]])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-12, rtol=1e-12)


# -- gradients -------------------------------------------------------------------------------------


def slope_of_a_step(step, ours: Learner, monkeypatch, h: float = 1e-3) -> tuple[float, float]:
    """The norm of the gradient that a step takes, and the step's loss differentiated along it numerically."""
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(
        ours.optimizer, "step", lambda: seen.extend(p.grad.clone() for p in ours.model.parameters())
    )
    step()
    monkeypatch.setattr(ours.optimizer, "step", lambda: None)
    norm = float(torch.nn.utils.get_total_norm(seen))
    values = []
    start = [p.detach().clone() for p in ours.model.parameters()]
    for sign in (1, -1):
        with torch.no_grad():
            for p, first, g in zip(ours.model.parameters(), start, seen, strict=True):
                p.copy_(first + sign * h * g / norm)
        values.append(step())
    return norm, (values[0] - values[1]) / (2 * h)


def exact() -> Learner:
    """In float64 as far as the model goes (its norms are float32 inside), with a gradient that is not clipped."""
    made = model().double()
    return Learner(made, LearnerSettings(grad_clip=1e9, token_budget=24), Accelerator(cpu=True))


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "cispo"])
def test_the_gradient_of_a_step_by_finite_differences(name, monkeypatch):
    """Through the learner's own packing, chunks and micro-batches. CISPO stops a gradient that differences see."""
    data, chosen, ours = sampled(), OBJECTIVES[name], exact()
    objective, weights = loss_of_settings(chosen), weights_of(data, chosen)
    norm, numeric = slope_of_a_step(lambda: ours.step(data, weights, objective, 0.0).loss, ours, monkeypatch)
    assert norm > 0 and numeric == pytest.approx(norm, rel=2e-2)


@pytest.mark.parametrize("name", ["sft", "dft", "turn discount", "key tokens"])
def test_the_gradient_of_a_supervised_step_by_finite_differences(name, monkeypatch):
    ours = exact()
    data, weights, loss_of = prepared(ours, demonstrations(0), SftSection(tokens=SUPERVISED[name]), 1.0, 0, 0)
    norm, numeric = slope_of_a_step(lambda: ours.step(data, weights, loss_of, 0.0).loss, ours, monkeypatch)
    assert norm > 0 and numeric == pytest.approx(norm, rel=2e-2)


@pytest.mark.parametrize("name", names("preference"))
def test_the_gradient_of_a_preference_step_by_finite_differences(name, monkeypatch):
    ours = exact()
    examples = [Example((s,), n % 2 == 0) for n, s in enumerate(sampled())]
    ref_S = sums(reference(blind=False), examples, 1.0)
    rule = find("preference", name)

    def step() -> float:
        done = preference_step(
            ours, examples, ref_S, rule, {}, 0.0, 1.0, [], torch.zeros(0, dtype=torch.float64)
        )
        return float(done["loss"])

    norm, numeric = slope_of_a_step(step, ours, monkeypatch)
    assert norm > 0 and numeric == pytest.approx(norm, rel=2e-2)
