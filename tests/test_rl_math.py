"""Advantages, losses, weights and filters against float64 references written from their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gymrl.agents.records import Episode, Turn
from gymrl.envs.records import Message, TaskSpec
from gymrl.rl.advantages.grpo import grpo
from gymrl.rl.corrections.tis import tis
from gymrl.rl.filters import FilterSettings, judge, reward_table
from gymrl.rl.groups import Group, group_by_task
from gymrl.rl.losses.aggregation import token_weights
from gymrl.rl.losses.clip import clipped_loss

TASK = TaskSpec.make("toy/Toy-v0", "1", "train", 0)
rewards = st.lists(
    st.lists(st.sampled_from([0.0, 0.25, 1.0, -1.0]), min_size=1, max_size=6), min_size=1, max_size=4
)


def turn(reward: float = 0.0, void: bool = False, ids: tuple[int, ...] = (5, 6)) -> Turn:
    n = len(ids)
    return Turn((Message("user", "?"),), "x", (), (1, 2), ids, (-0.5,) * n, (0,) * n, 0, "stop", reward, void)


def episode(
    *turns: Turn, ending: str = "terminated", reason: str = "", task: TaskSpec = TASK, sample: int = 0
) -> Episode:
    return Episode(task, turns, ending, reason, sample=sample)  # type: ignore[arg-type]


def padded(table: list[list[float]], mask: list[list[bool]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(row) for row in table)
    values = torch.zeros(len(table), width, dtype=torch.float64)
    counted = torch.zeros(len(table), width, dtype=torch.bool)
    for p, row in enumerate(table):
        values[p, : len(row)] = torch.tensor(row, dtype=torch.float64)
        counted[p, : len(row)] = torch.tensor(mask[p])
    return values, counted


@given(rewards, st.randoms())
def test_grpo_is_the_formula(table, random):
    mask = [[random.random() < 0.8 for _ in row] for row in table]
    values, counted = padded(table, mask)
    got = grpo(values, counted)
    for p, row in enumerate(table):
        kept = [r for r, m in zip(row, mask[p], strict=True) if m]
        for g, r in enumerate(row):
            want = 0.0
            if len(kept) > 1 and max(kept) > min(kept):
                mean = sum(kept) / len(kept)
                std = math.sqrt(sum((x - mean) ** 2 for x in kept) / (len(kept) - 1))
                want = (r - mean) / (std + 1e-6)
            assert got[p, g].item() == pytest.approx(want, abs=1e-9)


def test_grpo_golden_vector():
    values, counted = padded([[1, 0, 0, 1], [1, 1, 1, 1], [3]], [[True] * 4, [True] * 4, [True]])
    a = 0.5 / (math.sqrt(1 / 3) + 1e-6)
    want = [[a, -a, -a, a], [0] * 4, [0, 0, 0, 0]]
    torch.testing.assert_close(grpo(values, counted), torch.tensor(want, dtype=torch.float64))


floats = st.floats(-4, 4)


@given(
    st.lists(st.tuples(floats, floats, st.floats(-3, 3)), min_size=1, max_size=20),
    st.sampled_from([0.0, 3.0]),
)
def test_clipped_loss_is_the_formula(rows, dual):
    lp, old, a = (torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True))
    got, _ = clipped_loss(lp, old, a, low=0.2, high=0.28, dual=dual)
    for i, (x, y, adv) in enumerate(rows):
        ratio = math.exp(min(20, max(-20, x - y)))
        want = max(-adv * ratio, -adv * min(max(ratio, 0.8), 1.28))
        if dual and adv < 0:
            want = min(want, -adv * dual)
        assert got[i].item() == pytest.approx(want, rel=1e-9, abs=1e-9)


def test_clipped_loss_gradient_is_the_policy_gradient_on_policy():
    lp = torch.tensor([-1.0, -2.0, -0.1], dtype=torch.float64, requires_grad=True)
    a = torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64)
    loss, clipped = clipped_loss(lp, lp.detach(), a)
    loss.sum().backward()
    torch.testing.assert_close(lp.grad, -a)
    assert not clipped.any()


def test_clipping_stops_the_gradient_only_outside_the_bounds():
    old = torch.zeros(4, dtype=torch.float64)
    lp = torch.log(torch.tensor([1.3, 0.7, 1.3, 0.7], dtype=torch.float64)).requires_grad_()
    loss, clipped = clipped_loss(lp, old, torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64))
    loss.sum().backward()
    assert clipped.tolist() == [True, False, False, True]
    assert (lp.grad != 0).tolist() == [False, True, True, False]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8))
def test_token_weights_are_the_means_they_are_named_after(counts):
    losses = [[float(7 * s + t + 1) for t in range(n)] for s, n in enumerate(counts)]
    live = [row for row in losses if row]
    want = {
        "token-mean": sum(map(sum, live)) / max(1, sum(counts)),
        "seq-mean-token-mean": sum(sum(row) / len(row) for row in live) / max(1, len(live)),
        "seq-mean-token-sum": sum(map(sum, live)) / max(1, len(live)),
        "constant": sum(map(sum, live)) / 50,
    }
    for how, value in want.items():
        weights = token_weights(torch.tensor(counts), how, 50)
        assert sum(w * sum(row) for w, row in zip(weights.tolist(), losses, strict=True)) == pytest.approx(
            value
        )


def test_importance_is_truncated_and_carries_no_gradient():
    old = torch.tensor([0.0, -1.0, 3.0], requires_grad=True)
    rho, kept = tis(old, torch.tensor([0.0, 0.0, 0.0]), torch.arange(3), cap=2.0)
    torch.testing.assert_close(rho, torch.tensor([1.0, math.exp(-1), 2.0]))
    assert not rho.requires_grad and kept.all()


def test_a_group_is_one_task():
    other = TaskSpec.make("toy/Toy-v0", "1", "train", 1)
    with pytest.raises(ValueError, match="a group is one task"):
        Group(TASK, (episode(turn()), episode(turn(), task=other)))
    groups = group_by_task(
        [episode(turn(), sample=0), episode(turn(), task=other), episode(turn(), sample=1)]
    )
    assert [len(group.episodes) for group in groups] == [2, 1]


VOID = (turn(), turn(void=True), turn(1.0))


@pytest.mark.parametrize(
    ("mode", "counted", "trained"),
    [
        ("keep", True, (True, True, True)),
        ("end_episode", True, (True, True, True)),
        ("mask_turn", True, (True, False, True)),
        ("mask_episode", True, (False, False, False)),
        ("drop_episode", False, (False, False, False)),
    ],
)
def test_void_settings(mode, counted, trained):
    verdict = judge(episode(*VOID), FilterSettings(mode))
    assert (verdict.counted, verdict.trained) == (counted, trained)
    clean = judge(episode(turn(), turn(1.0)), FilterSettings(mode))
    assert (clean.counted, clean.trained) == (True, (True, True))
    if mode in ("mask_turn", "mask_episode", "drop_episode"):
        for choice in (True, False):
            assert judge(episode(*VOID), FilterSettings(mode, choice)).counted is choice


def test_invalid_episodes_leave_the_baseline_and_are_never_reward_zero():
    broken = episode(turn(), ending="invalid", reason="environment: lost", sample=2)
    groups = [Group(TASK, (episode(turn(1.0)), episode(turn(0.0), sample=1), broken))]
    verdicts = [[judge(e, FilterSettings()) for e in groups[0].episodes]]
    values, counted = reward_table(groups, verdicts)
    assert counted.tolist() == [[True, True, False]]
    without = grpo(*padded([[1.0, 0.0]], [[True, True]]))
    torch.testing.assert_close(grpo(values, counted)[:, :2], without)
    assert verdicts[0][2].trained == (False,)
    with pytest.raises(ValueError, match="no reward"):
        _ = broken.reward


def test_truncated_episodes_can_be_masked():
    cut = episode(turn(), ending="truncated", reason="max_turns")
    assert judge(cut, FilterSettings()).trained == (True,)
    assert judge(cut, FilterSettings(mask_truncated=True)).trained == (False,)
