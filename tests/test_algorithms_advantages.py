"""Advantages against float64 references written from their formulas, on ragged batches, and on golden vectors."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gymrl.rl.advantages.drgrpo import drgrpo
from gymrl.rl.advantages.gae import gae
from gymrl.rl.advantages.gigpo import gigpo
from gymrl.rl.advantages.grpo import grpo
from gymrl.rl.advantages.maxrl import maxrl
from gymrl.rl.advantages.reinforce_pp import reinforce_pp
from gymrl.rl.advantages.remax import remax
from gymrl.rl.advantages.rloo import rloo
from gymrl.rl.advantages.turn_gae import turn_gae
from gymrl.rl.advantages.two_level_gae import two_level_gae
from gymrl.rl.algorithms import find

GOLDEN = json.loads((Path(__file__).parent / "golden" / "advantages.json").read_text())
CLOSE = 1e-6
f64 = torch.float64

# -- ragged data -----------------------------------------------------------------------------------

reward = st.sampled_from([0.0, 0.0, 1.0, 0.25, -1.0])
"""Groups of one and more, some of them all zero, with a flag whether each episode counts."""
groups = st.lists(st.lists(st.tuples(reward, st.booleans()), min_size=0, max_size=5), min_size=1, max_size=4)


@st.composite
def tokens(draw, turns_max: int = 4):
    """One episode as a row of tokens: turns of 1 to 3 sampled tokens with observations of 0 to 3 tokens before each
    (and perhaps after the last), rewards on the turns' last tokens, a value for every token."""
    row: list[tuple[bool, int, float, float]] = []
    for turn in range(draw(st.integers(0, turns_max))):
        for _ in range(draw(st.integers(0, 3))):
            row.append((False, turn, 0.0, draw(st.floats(-9, 9))))
        length = draw(st.integers(1, 3))
        for i in range(length):
            row.append((True, turn, draw(reward) if i == length - 1 else 0.0, draw(st.floats(-1, 1))))
    for _ in range(draw(st.integers(0, 2))):
        row.append((False, max([t for _, t, _, _ in row], default=0), 0.0, draw(st.floats(-9, 9))))
    truncated = draw(st.booleans())
    return row, draw(st.floats(-1, 1)) if truncated else 0.0, draw(st.booleans())


batches = st.lists(tokens(), min_size=1, max_size=4)
shares = st.sampled_from([0.0, 0.5, 0.95, 1.0])


def group_tensors(data):
    width = max(len(row) for row in data)
    rewards = torch.zeros(len(data), width, dtype=f64)
    counted = torch.zeros(len(data), width, dtype=torch.bool)
    for p, row in enumerate(data):
        for g, (r, c) in enumerate(row):
            rewards[p, g], counted[p, g] = r, c
    return rewards, counted


def token_tensors(batch):
    width = max(len(row) for row, _, _ in batch)
    out = {
        "token_rewards_BT": torch.zeros(len(batch), width, dtype=f64),
        "values_BT": torch.zeros(len(batch), width, dtype=f64),
        "sampled_BT": torch.zeros(len(batch), width, dtype=torch.bool),
        "turn_BT": torch.zeros(len(batch), width, dtype=torch.int64),
        "bootstrap_B": torch.tensor([b for _, b, _ in batch], dtype=f64),
        "counted_B": torch.tensor([c for _, _, c in batch]),
    }
    for b, (row, _, _) in enumerate(batch):
        for t, (m, k, r, v) in enumerate(row):
            out["sampled_BT"][b, t], out["turn_BT"][b, t] = m, k
            out["token_rewards_BT"][b, t], out["values_BT"][b, t] = r, v
        out["turn_BT"][b, len(row) :] = row[-1][1] if row else 0
    return out


def call(name, tensors, **settings):
    return find("advantage", name).bind(settings)(tensors)


# -- group methods ---------------------------------------------------------------------------------


def reference_group(name, row, greedy=0.0):
    kept = [r for r, c in row if c]
    n = len(kept)
    mean = sum(kept) / n if n else 0.0
    std = math.sqrt(sum((r - mean) ** 2 for r in kept) / (n - 1)) if n > 1 else 0.0
    found = []
    for r, _ in row:
        if name == "remax":
            found.append(r - greedy)
        elif n <= 1:
            found.append(0.0)
        elif name == "grpo":
            found.append((r - mean) / (std + 1e-6) if max(kept) > min(kept) else 0.0)
        elif name == "drgrpo":
            found.append(r - mean)
        elif name == "rloo":
            found.append(n / (n - 1) * (r - mean))
        elif name == "maxrl":
            found.append((r - mean) / mean if mean > 0 else 0.0)
    return found


@pytest.mark.parametrize("name", ["grpo", "drgrpo", "rloo", "maxrl", "remax"])
@given(groups, st.lists(reward, min_size=4, max_size=4))
def test_group_methods_are_their_formulas(name, data, greedy):
    rewards, counted = group_tensors(data)
    greedy_P = torch.tensor(greedy[: len(data)], dtype=f64)
    got = call(name, {"rewards_PG": rewards, "counted_PG": counted, "greedy_P": greedy_P})
    assert got.shape == rewards.shape and got.dtype == f64
    for p, row in enumerate(data):
        want = reference_group(name, row, greedy[p])
        assert got[p, : len(row)].tolist() == pytest.approx(want, abs=CLOSE)


@given(st.lists(reward, min_size=2, max_size=6))
def test_rloo_is_the_reward_minus_the_mean_of_the_others(row):
    rewards, counted = group_tensors([[(r, True) for r in row]])
    got = rloo(rewards, counted)[0].tolist()
    for i, r in enumerate(row):
        others = row[:i] + row[i + 1 :]
        assert got[i] == pytest.approx(r - sum(others) / len(others), abs=CLOSE)


@pytest.mark.parametrize("name", ["grpo", "drgrpo", "rloo", "maxrl"])
@given(st.floats(-10, 10), st.integers(1, 9), st.integers(0, 3))
def test_equal_rewards_are_exactly_nothing(name, reward, many, absent):
    """Rounding in their mean would leave an advantage of 1e-17, and a step on nothing."""
    rewards_PG = torch.tensor([[reward] * many + [7.0] * absent], dtype=torch.float64)
    counted_PG = torch.arange(many + absent)[None] < many
    found = find("advantage", name).bind({})({"rewards_PG": rewards_PG, "counted_PG": counted_PG})
    assert not found[0, :many].any()


def test_remax_without_a_valid_greedy_episode_says_nothing():
    rewards = torch.ones(1, 2, dtype=f64)
    assert remax(rewards, rewards > 0, torch.tensor([math.nan], dtype=f64)).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("function", [grpo, drgrpo, rloo, maxrl])
def test_the_order_of_episodes_does_not_matter(function):
    rewards = torch.tensor([[1.0, 0.0, 0.25, 1.0]], dtype=f64)
    order = torch.tensor([2, 0, 3, 1])
    counted = torch.tensor([[True, True, False, True]])
    torch.testing.assert_close(
        function(rewards, counted)[:, order], function(rewards[:, order], counted[:, order])
    )


# -- GiGPO -----------------------------------------------------------------------------------------

steps = st.lists(st.tuples(reward, st.integers(0, 3)), min_size=0, max_size=4)
plays = st.lists(st.lists(st.tuples(steps, st.booleans()), min_size=1, max_size=4), min_size=1, max_size=3)


def normalised(value, kept):
    if len(kept) < 2:
        return 0.0
    mean = sum(kept) / len(kept)
    std = math.sqrt(sum((x - mean) ** 2 for x in kept) / (len(kept) - 1))
    return (value - mean) / (std + 1e-6) if std > 0 else 0.0


@given(plays, shares, st.sampled_from([0.0, 1.0, 2.0]))
def test_gigpo_is_its_formula(data, gamma, weight):
    g_, k_ = max(map(len, data)), max(len(s) for group in data for s, _ in group)
    rewards = torch.zeros(len(data), g_, k_, dtype=f64)
    turns = torch.zeros(len(data), g_, k_, dtype=torch.bool)
    states = torch.full((len(data), g_, k_), -1)
    counted = torch.zeros(len(data), g_, dtype=torch.bool)
    for p, group in enumerate(data):
        for g, (row, c) in enumerate(group):
            counted[p, g] = c
            for k, (r, state) in enumerate(row):
                rewards[p, g, k], turns[p, g, k], states[p, g, k] = r, True, state
    got = gigpo(rewards, turns, states, counted, weight=weight, gamma=gamma)
    for p, group in enumerate(data):
        totals = [sum(r for r, _ in row) for row, _ in group]
        kept = [t for t, (_, c) in zip(totals, group, strict=True) if c]
        togo = [
            [sum(gamma ** (j - k) * row[j][0] for j in range(k, len(row))) for k in range(len(row))]
            for row, _ in group
        ]
        for g, (row, _) in enumerate(group):
            for k, (_, state) in enumerate(row):
                alike = [
                    togo[h][j]
                    for h, (other, c) in enumerate(group)
                    if c
                    for j in range(len(other))
                    if other[j][1] == state
                ]
                want = normalised(totals[g], kept) + weight * normalised(togo[g][k], alike)
                assert got[p, g, k].item() == pytest.approx(want, abs=1e-5)
            assert not got[p, g, len(row) :].any()


def test_gigpo_long_episodes_weigh_no_more_in_the_baseline():
    rewards = torch.tensor([[[1.0, 0, 0], [0, 0, 0]]], dtype=f64)
    turns = torch.tensor([[[True, True, True], [True, False, False]]])
    got = gigpo(rewards, turns, torch.arange(6).view(1, 2, 3), torch.ones(1, 2, dtype=torch.bool))
    episode = grpo(torch.tensor([[1.0, 0.0]], dtype=f64), torch.ones(1, 2, dtype=torch.bool))[0]
    torch.testing.assert_close(got[0, :, 0], episode)  # every state is seen once: no step advantage


# -- token methods ---------------------------------------------------------------------------------


def whitened(values, counted):
    """values[b][t] (None: not sampled) whitened over the rows that count."""
    flat = [v for row, c in zip(values, counted, strict=True) if c for v in row if v is not None]
    n = len(flat)
    mean = sum(flat) / n if n else 0.0
    var = sum((v - mean) ** 2 for v in flat) / max(1, n - 1)
    return [[0.0 if v is None else (v - mean) / math.sqrt(var + 1e-8) for v in row] for row in values]


def padded(rows, width):
    return torch.tensor([row + [0.0] * (width - len(row)) for row in rows], dtype=f64)


@given(batches, shares)
def test_reinforce_pp_is_its_formula(batch, gamma):
    tensors = token_tensors(batch)
    got = reinforce_pp(tensors["token_rewards_BT"], tensors["sampled_BT"], tensors["counted_B"], gamma=gamma)
    values = []
    for row, _, _ in batch:
        sampled = [i for i, (m, _, _, _) in enumerate(row) if m]
        togo = [None] * len(row)
        for n, i in enumerate(sampled):
            togo[i] = sum(gamma ** (far - n) * row[j][2] for far, j in enumerate(sampled) if far >= n)
        values.append(togo)
    want = whitened(values, [c for _, _, c in batch])
    torch.testing.assert_close(got, padded(want, got.shape[1]), atol=1e-5, rtol=1e-6)


def reference_gae(rewards, values, mask, bootstrap, gamma, lam):
    """The recursion, on one row."""
    next_v, last = bootstrap, 0.0
    found = [0.0] * len(values)
    for t in reversed(range(len(values))):
        delta = rewards[t] + gamma * next_v - values[t]
        g = delta + gamma * lam * last
        next_v = values[t] if mask[t] else next_v
        last = g if mask[t] else last
        found[t] = last
    return found


@given(batches, shares, shares)
def test_gae_is_its_formula(batch, gamma, lam):
    tensors = token_tensors(batch)
    got, returns = call("gae", tensors, gamma=gamma, lam=lam, whitened=False)
    for b, (row, bootstrap, _) in enumerate(batch):
        mask = [m for m, *_ in row]
        want = reference_gae([r for *_, r, _ in row], [v for *_, v in row], mask, bootstrap, gamma, lam)
        for t, (m, _, _, v) in enumerate(row):
            if m:
                assert got[b, t].item() == pytest.approx(want[t], abs=CLOSE)
                assert returns[b, t].item() == pytest.approx(want[t] + v, abs=CLOSE)
            else:
                assert got[b, t] == 0 and returns[b, t].isnan()


@given(batches, shares, shares)
def test_gae_without_the_observations_is_the_same(batch, gamma, lam):
    """Discounts never decay across observation tokens, and their values are never used."""
    bare = [([token for token in row if token[0]], bootstrap, c) for row, bootstrap, c in batch]
    for name in ("gae", "turn-gae", "two-level-gae"):
        full, short = token_tensors(batch), token_tensors(bare)
        a, _ = call(name, full, gamma=gamma, lam=lam)
        b, _ = call(name, short, gamma=gamma, lam=lam)
        torch.testing.assert_close(a[full["sampled_BT"]], b[short["sampled_BT"]], atol=1e-9, rtol=1e-9)


def by_turn(row):
    turns: dict[int, list[int]] = {}
    for i, (m, k, _, _) in enumerate(row):
        if m:
            turns.setdefault(k, []).append(i)
    return turns


def reference_turns(row, bootstrap, gamma, lam):
    turns = by_turn(row)
    values = [row[places[0]][3] for places in turns.values()]
    rewards = [sum(row[i][2] for i in places) for places in turns.values()]
    return turns, values, reference_gae(rewards, values, [True] * len(values), bootstrap, gamma, lam)


@given(batches, shares, shares)
def test_turn_gae_is_its_formula(batch, gamma, lam):
    tensors = token_tensors(batch)
    got, returns = call("turn-gae", tensors, gamma=gamma, lam=lam, whitened=False)
    for b, (row, bootstrap, _) in enumerate(batch):
        turns, values, want = reference_turns(row, bootstrap, gamma, lam)
        for n, places in enumerate(turns.values()):
            assert got[b, places].tolist() == pytest.approx([want[n]] * len(places), abs=CLOSE)
            assert returns[b, places[0]].item() == pytest.approx(values[n] + want[n], abs=CLOSE)
            assert returns[b, places[1:]].isnan().all()


@given(batches, shares, shares, shares, shares)
def test_two_level_gae_is_its_formula(batch, gamma, lam, gamma_turn, lam_turn):
    tensors = token_tensors(batch)
    settings = {"gamma": gamma, "lam": lam, "gamma_turn": gamma_turn, "lam_turn": lam_turn}
    got, returns = call("two-level-gae", tensors, **settings, whitened=False)
    for b, (row, bootstrap, _) in enumerate(batch):
        turns, values, above = reference_turns(row, bootstrap, gamma_turn, lam_turn)
        for n, places in enumerate(turns.values()):
            own = [row[i][3] for i in places]
            paid = [0.0] * (len(places) - 1) + [values[n] + above[n]]
            want = reference_gae(paid, own, [True] * len(places), 0.0, gamma, lam)
            assert got[b, places].tolist() == pytest.approx(want, abs=CLOSE)
            sums = [a + v for a, v in zip(want, own, strict=True)]
            assert returns[b, places].tolist() == pytest.approx(sums, abs=CLOSE)


@pytest.mark.parametrize("name", ["gae", "turn-gae", "two-level-gae"])
@given(batches)
def test_whitening_is_over_the_sampled_tokens_that_count_and_leaves_the_returns(name, batch):
    tensors = token_tensors(batch)
    plain, returns = call(name, tensors, whitened=False)
    white, same = call(name, tensors)
    rows = [
        [plain[b, t].item() if m else None for t, (m, *_) in enumerate(row)]
        for b, (row, _, _) in enumerate(batch)
    ]
    want = padded(whitened(rows, [c for _, _, c in batch]), plain.shape[1])
    torch.testing.assert_close(white, want, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(returns, same, equal_nan=True)


def test_truncated_is_not_terminated():
    row = [(True, 0, 0.0, 0.5)]
    cut, _ = call("gae", token_tensors([(row, 0.75, True)]), whitened=False)
    over, _ = call("gae", token_tensors([(row, 0.0, True)]), whitened=False)
    assert cut.item() == pytest.approx(0.25) and over.item() == pytest.approx(-0.5)


# -- golden vectors --------------------------------------------------------------------------------


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["title"])
def test_golden_vectors(case):
    tensors = {}
    for name, value in case["tensors"].items():
        kind = torch.bool if name.startswith(("sampled", "counted", "turns")) else f64
        kind = torch.int64 if name.startswith(("turn_BT", "states")) else kind
        tensors[name] = torch.tensor(value, dtype=kind)
    got = call(case["advantage"], tensors, **case["settings"])
    got = got[0] if isinstance(got, tuple) else got
    torch.testing.assert_close(got, torch.tensor(case["want"], dtype=f64), atol=case["within"], rtol=0)


def test_the_functions_are_those_that_recipes_name():
    pairs = {
        "gae": gae,
        "turn-gae": turn_gae,
        "two-level-gae": two_level_gae,
        "gigpo": gigpo,
        "reinforce++": reinforce_pp,
    }
    for name, function in pairs.items():
        assert find("advantage", name).function is function
