"""From episodes to what every token is worth: tables, credit by turn, the critic's values, KL in the reward."""

from __future__ import annotations

import copy
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
from gymrl.rl.advantages.grpo import grpo
from gymrl.rl.algorithms import find, names
from gymrl.rl.batches import sequences_of
from gymrl.rl.credit import Judged, assign, reward_sums, token_tables, turn_tables
from gymrl.rl.critic import Critic, CriticSettings, with_targets
from gymrl.rl.groups import Group
from gymrl.rl.learner import Learner, LearnerSettings
from gymrl.rl.losses.kl import kl
from gymrl.rl.recipes.models import CriticSection, KlSection, OverlongSection, Part, RlSection
from gymrl.rl.reference import Reference
from gymrl.rl.tiny import make_model
from gymrl.rl.trainers.update import Helpers, _with_models, learn, shaped

VOCAB = 300
TASKS = [TaskSpec.make("toy/Toy-v0", "1", "train", index) for index in range(3)]


def turn(said, reward=0.0, shown="?", prompt=(1, 2), segment=0, void=False):
    n = len(said)
    lps = tuple(-0.5 - 0.1 * i for i in range(n))
    return Turn(
        (Message("user", shown),), "x", (), prompt, tuple(said), lps, (0,) * n, segment, "stop", reward, void
    )


def episode(index, sample, *turns, ending="terminated", reason=""):
    return Episode(TASKS[index], turns, ending, reason, group=index, sample=sample)


@st.composite
def ragged_groups(draw):
    """Groups of one to three episodes (also invalid and truncated ones) of one to three turns of up to three tokens."""
    groups = []
    for index in range(draw(st.integers(1, 2))):
        episodes = []
        for sample in range(draw(st.integers(1, 3))):
            turns, segment = [], 0
            for _ in range(draw(st.integers(1, 3))):
                segment += draw(st.booleans())
                said = draw(st.lists(st.integers(5, 50), min_size=1, max_size=3))
                prompt = tuple(draw(st.lists(st.integers(5, 50), min_size=1, max_size=3)))
                shown, paid = draw(st.sampled_from("abc")), draw(st.sampled_from([0.0, 1.0, -0.5]))
                turns.append(turn(said, paid, shown, prompt, segment))
            ending = draw(st.sampled_from(["terminated", "truncated", "invalid"]))
            episodes.append(episode(index, sample, *turns, ending=ending, reason="environment: x"))
        groups.append(Group(TASKS[index], tuple(episodes)))
    return groups


def judged_of(groups, values=None, costs=None):
    width = max(len(group.episodes) for group in groups)
    counted = torch.zeros(len(groups), width, dtype=torch.bool)
    for p, group in enumerate(groups):
        for g, e in enumerate(group.episodes):
            counted[p, g] = e.valid
    rewards = [[shaped(e, RlSection()) for e in group.episodes] for group in groups]
    greedy = torch.zeros(len(groups), dtype=torch.float64)
    return Judged(groups, counted, rewards, greedy, costs, values)


def value_rows(groups, scale=1.0):
    return [[np.arange(e.tokens + 1) * 0.1 * scale for e in group.episodes] for group in groups]


@settings(max_examples=40)
@given(ragged_groups())
def test_tables_hold_each_token_and_turn_where_it_is(groups):
    judged = judged_of(
        groups, value_rows(groups), [[np.full(e.tokens, 0.25) for e in g.episodes] for g in groups]
    )
    tokens, turns, sums = token_tables(judged), turn_tables(judged), reward_sums(judged)
    width = judged.counted_PG.shape[1]
    for p, group in enumerate(groups):
        for g, e in enumerate(group.episodes):
            b, at = p * width + g, 0
            for k, t in enumerate(e.turns):
                n = len(t.completion_ids)
                paid = (t.reward if e.valid else 0.0) - 0.25 * n
                row = tokens["token_rewards_BT"][b, at : at + n]
                assert row[:-1].tolist() == [-0.25] * (n - 1)
                assert row.sum().item() == pytest.approx(paid) == turns["turn_rewards_PGK"][p, g, k].item()
                assert tokens["turn_BT"][b, at : at + n].tolist() == [k] * n
                at += n
            assert tokens["sampled_BT"][b].sum() == at == e.tokens and tokens["sampled_BT"][b, :at].all()
            assert tokens["values_BT"][b, :at].tolist() == pytest.approx([0.1 * i for i in range(at)])
            last = 0.1 * at if e.ending == "truncated" else 0.0  # truncated is not terminated
            assert tokens["bootstrap_B"][b].item() == pytest.approx(last)
            whole = (e.reward if e.valid else 0.0) - 0.25 * at
            assert sums[p, g].item() == pytest.approx(whole) == turns["turn_rewards_PGK"][p, g].sum().item()
            seen = [t.messages[0].text for t in e.turns]
            found = turns["states_PGK"][p, g, : len(seen)].tolist()
            assert all(
                (seen[i] == seen[j]) == (found[i] == found[j]) for i in range(len(seen)) for j in range(i)
            )


def with_other_prompts(e):
    return replace(e, turns=tuple(replace(t, prompt_ids=(77,) * 5) for t in e.turns))


@pytest.mark.parametrize("name", names("advantage"))
@settings(max_examples=15)
@given(groups=ragged_groups())
def test_the_ids_of_observations_change_no_advantage(name, groups):
    """The critic's values being equal, other observation ids leave every algorithm's advantages as they are."""
    other = [Group(g.task, tuple(with_other_prompts(e) for e in g.episodes)) for g in groups]
    worths = []
    for data in (groups, other):
        judged = judged_of(data, value_rows(data))
        worth, _ = assign(judged, find("advantage", name), {})
        spread = []
        for p, g in judged.places():
            for s in sequences_of(judged.episode(p, g), None, worth[p, g]):
                assert not s.advantage[~s.action].any()
                spread += s.advantage[s.action].tolist()
        worths.append(spread)
    assert worths[0] == worths[1] and len(worths[0]) == sum(e.tokens for g in groups for e in g.episodes)


def test_each_token_has_its_own_advantage_also_across_segments():
    e = episode(0, 0, turn((5, 6), 1.0), turn((7,), 0.0, segment=1), turn((8, 9), 2.0, segment=1))
    judged = judged_of([Group(TASKS[0], (e,))], [[np.zeros(6)]])
    worth, targets = assign(judged, find("advantage", "gae"), {"lam": 1.0, "whitened": False})
    one, two = sequences_of(e, None, worth[0, 0])
    assert one.advantage.tolist() == [0, 0, 3, 3] and two.advantage.tolist() == [0, 0, 2, 0, 0, 2, 2]
    assert [t.tolist() for t in targets[0, 0]] == [[3, 3], [2], [2, 2]]


def test_credit_by_turn_normalises_the_rewards_to_go_of_all_turns_of_the_group():
    group = Group(TASKS[0], (episode(0, 0, turn((5,), 1.0), turn((6,), 2.0)), episode(0, 1, turn((7,), 0.5))))
    worth, _ = assign(judged_of([group]), find("advantage", "grpo"), {}, "turn")
    togo = torch.tensor([[3.0, 2.0, 0.5]], dtype=torch.float64)
    want = grpo(togo, togo > 0)[0].tolist()
    assert worth[0, 0][:2] == pytest.approx(want[:2]) and worth[0, 1][0] == pytest.approx(want[2])


def test_overlong_episodes_pay_at_their_last_turn():
    section = RlSection(overlong=OverlongSection(limit=5, buffer=2, factor=0.5))
    assert shaped(episode(0, 0, turn((5, 6), 1.0), turn((7, 8), 1.0)), section).tolist() == [1.0, 0.75]
    assert shaped(episode(0, 0, turn((5, 6, 7), 1.0)), section).tolist() == [1.0]


# -- with models -----------------------------------------------------------------------------------


def model(seed=1):
    made = make_model(VOCAB, hidden=32, layers=1, heads=2, kv_heads=1, context=64, seed=seed)
    made.set_attn_implementation(NAME)
    return made


def learner(seed=1):
    return Learner(model(seed), LearnerSettings(), Accelerator(cpu=True))


GROUPS = [
    Group(TASKS[0], (
        episode(0, 0, turn((5, 6), 0.0), turn((7, 8, 9), 1.0, "b")),
        episode(0, 1, turn((5,), 0.0), turn((7, 9), 0.0, "b"), ending="truncated"),
        episode(0, 2, turn((5,), 0.0, void=True), ending="invalid", reason="environment: lost"),
    )),
    Group(TASKS[1], (
        episode(1, 0, turn((11, 12), 1.0)),
        episode(1, 1, turn((13,), 0.0), turn((14, 15), 0.0, segment=1)),
    )),
]  # fmt: skip


def test_the_critics_values_stand_before_each_token_and_after_the_last():
    critic = Critic(model(), CriticSettings(token_budget=12), Accelerator(cpu=True))
    torch.nn.init.normal_(critic.head.weight, generator=torch.Generator().manual_seed(0))
    plain = make_model(VOCAB, hidden=32, layers=1, heads=2, kv_heads=1, context=64, seed=1)
    flat = [s for g in GROUPS for e in g.episodes for s in sequences_of(e)]
    for s, (values, after) in zip(flat, critic.values(flat), strict=True):
        hidden = plain.model(torch.from_numpy(s.ids)[None]).last_hidden_state[0]
        want = critic.head(hidden)[:, 0].detach().double()
        places = torch.from_numpy(np.flatnonzero(s.action) - 1)
        torch.testing.assert_close(torch.from_numpy(values), want[places], atol=1e-4, rtol=1e-4)
        assert after == pytest.approx(want[-1].item(), abs=1e-4)


def test_the_critic_learns_its_targets_and_resumes_bit_for_bit():
    accelerator = Accelerator(cpu=True)
    critic, other = (Critic(model(), CriticSettings(token_budget=20), accelerator) for _ in range(2))
    flat = [s for g in GROUPS for e in g.episodes for s in sequences_of(e)]
    targets = [np.where(np.arange(s.actions) == 1, np.nan, 0.5 + 0.1 * n) for n, s in enumerate(flat)]
    data = [with_targets(s, t) for s, t in zip(flat, targets, strict=True)]
    assert sum(s.actions for s in data) == sum(int((~np.isnan(t)).sum()) for t in targets)
    first = critic.step(data, 1e-2)
    want = np.mean([v**2 / 2 for t in targets for v in t[~np.isnan(t)]])
    assert first["value_loss"] == pytest.approx(want, rel=1e-5)  # a fresh critic says 0
    for _ in range(30):
        last = critic.step(data, 1e-2)
    assert last["value_loss"] < 0.1 * first["value_loss"] and last["value_explained"] > 0
    other.load_state(copy.deepcopy(critic.state()))
    assert other.step(data, 1e-2) == critic.step(data, 1e-2)
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), critic.parameters(), strict=True))


def test_a_critic_that_is_not_finite_takes_no_step_and_is_told_of():
    critic, ours = Critic(model(), CriticSettings(), Accelerator(cpu=True)), learner()
    with torch.no_grad():
        critic.head.bias.fill_(float("nan"))
    section = RlSection(advantage=Part(name="gae"), critic=CriticSection(warmup=1), group=3, void="keep")
    before = [p.detach().clone() for p in critic.parameters()]
    assert learn(ours, GROUPS, section, 1.0, 0, Helpers(None, critic))["value_skipped"] == 1
    assert ours.troubles == ["the critic's values or its gradient are not finite"]
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(before, critic.parameters(), strict=True))


def test_kl_in_the_reward_costs_each_sampled_token():
    ours, reference = learner(1), Reference(model(2), LearnerSettings(), Accelerator(cpu=True))
    section = RlSection(kl=KlSection(estimator="k1", coefficient=0.5, place="reward"))
    judged = _with_models(judged_of(GROUPS), ours, Helpers(reference), section, 1.0)
    e = GROUPS[0].episodes[0]
    (own,), (ref,) = (scorer.score(sequences_of(e)) for scorer in (ours, reference))
    costs = 0.5 * kl(own, ref, "k1").double()
    np.testing.assert_allclose(judged.token_costs[0][0], costs.numpy(), atol=1e-5)
    assert reward_sums(judged)[0, 0].item() == pytest.approx(1.0 - costs.sum().item(), abs=1e-5)


@pytest.mark.parametrize("name", names("advantage"))
def test_every_advantage_makes_a_step_and_good_episodes_likelier(name):
    """One small step on four episodes: the success's tokens gain on the failure's."""
    ours = learner()
    critic = Critic(model(), CriticSettings(), Accelerator(cpu=True)) if "gae" in name else None
    section = RlSection(
        advantage=Part(name=name), group=3, void="keep", lr=1e-3, schedule={"warmup": 0}, correction=Part(name="none"),
        critic=CriticSection() if critic else None,
    )  # fmt: skip
    groups = GROUPS
    if name == "remax":
        groups = [
            Group(g.task, (*g.episodes, replace(episode(g.task.index, 3, turn((5,), 0.5))))) for g in GROUPS
        ]
    win, loss = sequences_of(GROUPS[0].episodes[0])[0], sequences_of(GROUPS[0].episodes[1])[0]
    before = [float(lp.mean()) for lp in ours.score([win, loss])]
    metrics = learn(ours, groups, section, 1.0, 0, Helpers(None, critic))
    after = [float(lp.mean()) for lp in ours.score([win, loss])]
    assert metrics["grad_norm"] > 0 and not metrics["skipped"] and ours.updates == 1
    assert after[0] - before[0] > after[1] - before[1]


def test_nothing_to_learn_from_is_told():
    ours = learner()
    metrics = learn(ours, [], RlSection(), 1.0, 0)
    assert metrics["skipped"] == 1 and "no token is left" in ours.troubles[0]
    flat = [Group(TASKS[0], (episode(0, 0, turn((5,), 1.0)), episode(0, 1, turn((6,), 1.0))))]
    ours.troubles = []
    assert (
        learn(ours, flat, RlSection(), 1.0, 0)["skipped"] == 1 and not ours.troubles
    )  # flat groups are no trouble


def test_rejected_sequences_leave_the_mask():
    ours = learner()
    section = RlSection(correction=Part(name="reject", low=0.99, high=1.01), void="keep", schedule={"warmup": 0})
    assert (
        learn(ours, GROUPS, section, 1.0, 0)["rejected_tokens"] > 0 and ours.updates == 0
    )  # mu is nowhere near


def test_stale_tokens_are_masked():
    ours = learner()
    ours.updates = 3
    section = RlSection(max_staleness=2, void="keep", schedule={"warmup": 0})
    learn(ours, GROUPS, section, 1.0, 0)
    assert "no token is left" in ours.troubles[0]
    assert learn(ours, GROUPS, replace_section(section, max_staleness=3), 1.0, 0)["actions"] > 0


def replace_section(section, **changes):
    return section.model_copy(update=changes)
