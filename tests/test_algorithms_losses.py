"""Policy losses, KL and corrections against float64 references, their gradients, and what observations change."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st

from gymrl.agents.ragged import NAME
from gymrl.rl.algorithms import find, names
from gymrl.rl.batches import TokenSequence, make_batch
from gymrl.rl.choices import Aggregation
from gymrl.rl.learner import Learner, LearnerSettings
from gymrl.rl.losses.aggregation import token_weights
from gymrl.rl.losses.kl import kl
from gymrl.rl.losses.length import overlong
from gymrl.rl.objective import loss_of_settings
from gymrl.rl.recipes.models import KlSection, Part, RlSection
from gymrl.rl.tiny import make_model

f64 = torch.float64
lps = st.floats(-4, 0)
# Sequences of one to four tokens: (lp, old, mu, advantage); a sequence of one is a one-token turn.
ragged = st.lists(
    st.lists(st.tuples(lps, lps, lps, st.sampled_from([-2.0, -1.0, 0.0, 0.5, 3.0])), min_size=1, max_size=4),
    min_size=0, max_size=4,
)  # fmt: skip


def tensors(rows):
    flat = [token for row in rows for token in row]
    columns = [torch.tensor([token[i] for token in flat], dtype=f64) for i in range(4)]
    owner = torch.tensor([s for s, row in enumerate(rows) for _ in row], dtype=torch.int64)
    return dict(zip(("lp_N", "old_lp_N", "mu_lp_N", "advantages_N"), columns, strict=True)) | {
        "sequence_N": owner
    }


def clamp(x, low, high):
    return min(max(x, low), high)


def reference_loss(name, row, t):
    lp, old, _, a = row[t]
    ratio = math.exp(clamp(lp - old, -20, 20))
    if name == "reinforce":
        return -a * lp
    if name == "cispo":
        return -clamp(ratio, 0.8, 1.28) * a * lp
    if name == "gspo":
        s = math.exp(sum(x - y for x, y, _, _ in row) / len(row))
        return max(-a * s, -a * clamp(s, 1 - 3e-4, 1 + 4e-4))
    value = max(-a * ratio, -a * clamp(ratio, 0.8, 1.28))
    return min(value, -a * 3) if a < 0 else value


@pytest.mark.parametrize("name", ["clip", "gspo", "cispo", "reinforce"])
@given(ragged)
def test_losses_are_their_formulas(name, rows):
    got, clipped = find("loss", name).bind({})(tensors(rows))
    want = [reference_loss(name, row, t) for row in rows for t in range(len(row))]
    assert got.tolist() == pytest.approx(want, abs=1e-6)
    assert clipped.shape == got.shape and clipped.dtype == torch.bool


def gradient(name, rows, **settings):
    given_ = tensors(rows)
    given_["lp_N"].requires_grad_()
    find("loss", name).bind(settings)(given_)[0].sum().backward()
    return given_["lp_N"].grad


@pytest.mark.parametrize("name", ["clip", "gspo", "cispo", "reinforce"])
def test_on_policy_every_loss_has_the_policy_gradient(name):
    rows = [[(-1.0, -1.0, -1.0, 2.0), (-0.5, -0.5, -1.0, 2.0)], [(-2.0, -2.0, -1.0, -1.0)]]
    assert gradient(name, rows).tolist() == pytest.approx([-2.0, -2.0, 1.0])


def test_gspo_sends_the_gradient_through_every_token_of_the_sequence():
    rows = [[(-1.0, -1.0001, -1.0, 1.0), (-0.5, -0.5, -1.0, 0.0), (-0.5, -0.5, -1.0, 0.0)]]
    got = gradient("gspo", rows)
    s = math.exp(1e-4 / 3)
    assert got.tolist() == pytest.approx([-s / 3] * 3)


def test_cispo_keeps_the_gradient_of_clipped_tokens_and_clip_does_not():
    rows = [[(0.0, -1.0, 0.0, 1.0)]]
    assert gradient("cispo", rows).tolist() == pytest.approx([-1.28])
    assert gradient("clip", rows).tolist() == [0.0]


def test_gspo_has_a_dual_clip_where_it_is_asked_for():
    rows = [[(3.0, 0.0, 0.0, -1.0), (2.0, 0.0, 0.0, 2.0)], [(0.1, 0.0, 0.0, -1.0)]]
    free, _ = find("loss", "gspo").bind({})(tensors(rows))
    bound, clipped = find("loss", "gspo").bind({"dual": 3.0})(tensors(rows))
    s = math.exp(2.5)
    assert free.tolist() == pytest.approx([s, -2 * (1 + 4e-4), math.exp(0.1)])
    assert bound.tolist() == pytest.approx([3.0, -2 * (1 + 4e-4), math.exp(0.1)])
    assert clipped.tolist() == [True, True, False]
    assert gradient("gspo", [rows[0][:1]], dual=3.0).tolist() == [0.0]


def test_the_dual_clip_bounds_the_loss_of_bad_tokens_and_zero_turns_it_off():
    rows = [[(0.0, -4.0, 0.0, -1.0)]]
    assert find("loss", "clip").bind({})(tensors(rows))[0].item() == pytest.approx(3.0)
    assert find("loss", "clip").bind({"dual": 0.0})(tensors(rows))[0].item() == pytest.approx(math.exp(4))


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@given(st.lists(st.tuples(st.floats(-30, 0), st.floats(-30, 0)), min_size=1, max_size=8))
def test_kl_estimates_are_their_formulas(estimator, pairs):
    lp, ref = (torch.tensor(column, dtype=f64) for column in zip(*pairs, strict=True))
    want = []
    for x, y in pairs:
        d = x - y
        c = clamp(d, -20, 20)
        want.append({"k1": d, "k2": d * d / 2, "k3": clamp(math.exp(-c) + c - 1, -10, 10)}[estimator])
    assert kl(lp, ref, estimator).tolist() == pytest.approx(want, abs=1e-6)


@given(ragged, st.sampled_from(["token", "sequence"]))
def test_corrections_are_their_formulas(rows, level):
    given_ = tensors(rows)
    wants: dict[str, list[tuple[float, bool]]] = {"tis": [], "icepop": [], "reject": [], "none": []}
    for row in rows:
        gaps = [old - mu for _, old, mu, _ in row]
        mean = math.exp(sum(gaps) / len(gaps))
        for gap in gaps:
            rho = math.exp(clamp(sum(gaps) if level == "sequence" else gap, -20, 20))
            wants["tis"].append((min(rho, 2.0), True))
            wants["icepop"].append((rho if 0.5 <= rho <= 5 else 0.0, True))
            wants["reject"].append((1.0, 0.5 <= mean <= 2.0))
            wants["none"].append((1.0, True))
    for name, want in wants.items():
        settings = {"level": level} if name in ("tis", "icepop") else {}
        weight, kept = find("correction", name).bind(settings)(given_)
        assert weight.tolist() == pytest.approx([w for w, _ in want], abs=1e-6)
        assert kept.tolist() == [k for _, k in want]
        assert not weight.requires_grad
        assert find("correction", name).masks == (name == "reject")


def test_overlong_is_dapos_ramp():
    assert [overlong(n, 100, 20, 1.0) for n in (0, 80, 90, 100, 110)] == pytest.approx([0, 0, -0.5, -1, -1.5])


GOLDEN = json.loads((Path(__file__).parent / "golden" / "losses.json").read_text())


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["title"])
def test_golden_vectors(case):
    kinds = {"sequence_N": torch.int64, "desirable_S": torch.bool}
    given_ = {name: torch.tensor(v, dtype=kinds.get(name, f64)) for name, v in case["tensors"].items()}
    got = find(case["kind"], case["name"]).bind(case["settings"])(given_)
    got = got[0] if isinstance(got, tuple) else got
    torch.testing.assert_close(got, torch.tensor(case["want"], dtype=f64), atol=1e-9, rtol=1e-9)


# -- the whole objective on a model ----------------------------------------------------------------

VOCAB = 300


def settings_of(**changes) -> RlSection:
    return RlSection(**changes)


CASES = {
    "clip": {},
    "clip + k3": {"kl": KlSection(estimator="k3", coefficient=0.1)},
    "clip + k2, no correction": {
        "kl": KlSection(estimator="k2", coefficient=0.1),
        "correction": Part(name="none"),
    },
    "gspo": {"loss": Part(name="gspo", low=0.5, high=0.5), "aggregation": "seq-mean-token-mean"},
    "cispo": {"loss": Part(name="cispo"), "aggregation": "seq-mean-token-sum"},
    "reinforce": {"loss": Part(name="reinforce"), "aggregation": {"name": "constant", "length": 7.0}},
    "icepop": {"correction": Part(name="icepop")},
    "sequence tis": {"correction": Part(name="tis", level="sequence")},
}


def test_the_cases_hold_every_loss_and_correction():
    losses = {s.loss.name for s in (settings_of(**case) for case in CASES.values())}
    assert losses == set(names("loss")) and len(names("correction")) == 4


def sequences(rng: np.random.Generator, lengths=(9, 14, 6)) -> list[TokenSequence]:
    """Ragged sequences with observation gaps, the last with a turn of one token; old and mu near the model's own."""
    found = []
    for number, n in enumerate(lengths):
        action = np.zeros(n, dtype=bool)
        action[2 : n // 2] = True
        action[n // 2 + 2 :] = True
        if number == len(lengths) - 1:
            action[:] = False
            action[3] = True
        ids = rng.integers(0, VOCAB, n)
        noise = [rng.normal(-5.7, 0.1, n).astype(np.float32) * action for _ in range(3)]
        advantage = np.where(action, np.float32(rng.choice([-1.5, 0.7])), np.float32(0))
        found.append(TokenSequence(ids, action, noise[0], advantage, ids * 0, ids * 0, noise[1], noise[2]))
    return found


def model() -> Learner:
    made = make_model(VOCAB, hidden=32, layers=1, heads=2, kv_heads=1, context=64, seed=1)
    made.set_attn_implementation(NAME)
    return Learner(made, LearnerSettings(), Accelerator(cpu=True))


@pytest.mark.parametrize("case", [case for case in CASES if case != "cispo"])
def test_gradients_of_the_objective_by_finite_differences(case):
    """CISPO stops the gradient of its ratio, which differences see: its gradient is tested above."""
    learner, settings = model(), settings_of(**CASES[case])
    data = sequences(np.random.default_rng(7))
    weights = token_weights(
        torch.tensor([s.actions for s in data]), settings.aggregation.name, settings.aggregation.length
    ).tolist()
    batch = make_batch(data, weights)
    # The same log-probabilities as a function of float64 logits: exact enough to differentiate numerically.
    hidden = torch.randn(batch.actions, VOCAB, dtype=f64, generator=torch.Generator().manual_seed(0)) * 0.1
    loss_of = loss_of_settings(settings)
    wide = replace(
        batch, weight_N=batch.weight_N.double(), mu_N=batch.mu_N.double(), advantage_N=batch.advantage_N.double(),
        old_N=batch.old_N.double(), ref_N=batch.ref_N.double(),
    )  # fmt: skip

    def loss(logits):
        lp = logits.log_softmax(-1).gather(-1, batch.target_N[:, None])[:, 0]
        return (loss_of(wide, lp)[0] * wide.weight_N).sum()

    at = hidden.clone().requires_grad_()
    loss(at).backward()
    for direction in (at.grad / at.grad.norm(), torch.eye(batch.actions, VOCAB, dtype=f64)):
        h = 1e-6
        numeric = (loss(hidden + h * direction) - loss(hidden - h * direction)).item() / (2 * h)
        assert numeric == pytest.approx((at.grad * direction).sum().item(), rel=1e-4, abs=1e-9)
    assert learner.updates == 0


@pytest.mark.parametrize("case", CASES)
def test_observations_change_no_loss_term_but_through_the_context(case):
    """Other values of everything at observation tokens, and other ids after the last action, change nothing."""
    settings = settings_of(**CASES[case])
    rng = np.random.default_rng(3)
    data = sequences(rng)
    results = []
    for changed in (False, True):
        learner = model()
        given_ = data
        if changed:
            given_ = []
            for s in data:
                junk = rng.normal(0, 9, s.tokens).astype(np.float32)
                fill = {
                    name: np.where(s.action, getattr(s, name), junk)
                    for name in ("mu", "advantage", "old", "ref")
                }
                ids = s.ids.copy()
                last = int(np.flatnonzero(s.action)[-1])
                ids[last + 1 :] = rng.integers(0, VOCAB, s.tokens - last - 1)
                given_.append(replace(s, ids=ids, **fill))
        weights = token_weights(torch.tensor([s.actions for s in given_]), settings.aggregation.name, 7.0).tolist()
        done = learner.step(given_, weights, loss_of_settings(settings), 1e-3)
        results.append((done.loss, done.grad_norm, [p.detach().clone() for p in learner.model.parameters()]))
    assert results[0][:2] == results[1][:2] and results[0][1] > 0
    assert all(torch.equal(a, b) for a, b in zip(results[0][2], results[1][2], strict=True))


@pytest.mark.parametrize("how", Aggregation.__args__)
@pytest.mark.parametrize("loss", ["clip", "gspo"])
def test_no_aggregation_depends_on_the_cut(how, loss):
    rng = np.random.default_rng(5)
    data = sequences(rng, (9, 14, 6, 22, 30, 8))
    settings = settings_of(loss=Part(name=loss), aggregation={"name": how, "length": 50.0})
    weights = token_weights(torch.tensor([s.actions for s in data]), how, 50.0).tolist()
    done = []
    for budget in (32, 8192):
        learner = model()
        learner.settings = replace(learner.settings, token_budget=budget)
        done.append(learner.step(data, weights, loss_of_settings(settings), 1e-3))
    assert done[0].loss == pytest.approx(done[1].loss, rel=1e-5)
    assert done[0].grad_norm == pytest.approx(done[1].grad_norm, rel=1e-4)


def test_demonstrations_among_samples_have_the_supervised_loss():
    data = sequences(np.random.default_rng(9), (9,))
    ones = np.where(data[0].action, np.float32(1), np.float32(0))
    shown = replace(data[0], guided=True, advantage=ones)
    batch = make_batch([shown, data[0]], [1.0, 1.0])
    lp = torch.full((batch.actions,), -2.0)
    loss, _ = loss_of_settings(settings_of())(batch, lp)
    assert loss[batch.guided_N].tolist() == [2.0] * shown.actions
    assert (loss[~batch.guided_N] != 2.0).all()
