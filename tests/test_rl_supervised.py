"""Key tokens, anchored DFT, notes on success and failure, and prefixes of demonstrations, against float64 references
written from their formulas."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st

from gymrl.agents.engines.base import Engine, Generation, Sampling
from gymrl.agents.players import Job, ScriptedAgent
from gymrl.agents.ragged import NAME
from gymrl.agents.records import Episode, Turn
from gymrl.agents.rendering import Renderer
from gymrl.agents.rollout import RolloutSettings, rollout
from gymrl.envs.records import Message, TaskSpec
from gymrl.envs.workers import EnvPool
from gymrl.rl.batches import SHOWN, TOLD, TokenSequence, sequences_of
from gymrl.rl.demonstrations import tokenise
from gymrl.rl.groups import Group
from gymrl.rl.learner import Learner, LearnerSettings
from gymrl.rl.recipes import RecipeError, load
from gymrl.rl.recipes.models import RlSection, SftSection, TokensSection
from gymrl.rl.reference import Reference
from gymrl.rl.stages.rft import kept
from gymrl.rl.supervised.agent import GuidedAgent
from gymrl.rl.supervised.anchor import full_kl
from gymrl.rl.supervised.key_tokens import key_places, key_weights, with_keys
from gymrl.rl.supervised.notes import noted
from gymrl.rl.supervised.prefix import guided, most_entropic, prefix_of, share_of
from gymrl.rl.tiny import make_model, make_tokenizer
from gymrl.rl.trainers.sft import prepared, sft_step
from gymrl.rl.trainers.update import learn

sys.path.insert(0, str(Path(__file__).parent))
import toy_env  # noqa: F401 - registers toy/Letters-v0

VOCAB, f64 = 320, torch.float64
GOLDEN = json.loads((Path(__file__).parent / "golden" / "supervised.json").read_text())


def learner(seed: int = 1, **changes) -> Learner:
    made = make_model(VOCAB, hidden=32, layers=1, heads=2, kv_heads=1, context=64, seed=seed)
    made.set_attn_implementation(NAME)
    return Learner(made, LearnerSettings(**changes), Accelerator(cpu=True))


def demonstrations() -> list[TokenSequence]:
    """Ragged, with observations between the turns, the last with a turn of one token; some of their tokens are key."""
    rng = np.random.default_rng(0)
    found = []
    for turns, said in ((2, 3), (3, 2), (1, 1)):
        turn = np.repeat(np.arange(turns), 3 + said)
        action = np.tile(np.array([False] * 3 + [True] * said), turns)
        zeros = np.zeros(len(turn), dtype=np.float32)
        key = rng.random(len(turn)) < 0.4  # on observations too, where it must not count
        found.append(
            TokenSequence(rng.integers(0, VOCAB, len(turn)), action, zeros, zeros, turn * 0, turn, key=key)
        )
    return found


# -- key tokens ------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=12), st.floats(0.5, 12))
def test_key_tokens_weigh_as_much_as_the_others_together(tokens, most):
    key, action = (np.array([token[i] for token in tokens], dtype=bool) for i in (0, 1))
    n_key = sum(k and a for k, a in tokens)
    n_other = sum(a and not k for k, a in tokens)
    heavy = min(n_other / n_key, most) if n_key and n_other else 1.0
    want = [0.0 if not a else heavy if k else 1.0 for k, a in tokens]
    assert key_weights(key, action, most).tolist() == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("budget", [20, 8192])
@pytest.mark.parametrize("dft", [False, True])
def test_the_loss_of_key_tokens_is_the_weighted_mean(dft, budget):
    ours, data = learner(token_budget=budget), demonstrations()
    top = bottom = 0.0
    for s in data:
        lp = ours.score([s])[0].double().numpy()
        w = key_weights(s.key, s.action, 2.0)[s.action] * (np.exp(lp) if dft else 1.0)
        top, bottom = top - float((w * lp).sum()), bottom + float(w.sum())
    chosen = SftSection(tokens=TokensSection(dft=dft, key=".", key_most=2.0))
    sequences, weights, loss_of = prepared(ours, data, chosen, 1.0, 0, 0)
    assert ours.step(sequences, weights, loss_of, 1e-3).loss == pytest.approx(top / bottom, rel=1e-5)


def renderer() -> Renderer:
    return Renderer(
        make_tokenizer(['{"name": "look_up"} say it, then go on. Answer correctly. wrongly\n'] * 9)
    )


def test_key_tokens_are_those_that_touch_what_the_pattern_finds():
    with_tools = renderer()
    text = 'go <tool_call>{"name": "look_up", "arguments": {}}</tool_call>'
    ids = with_tools.encode(text)
    flags = key_places(text, '"name": "([^"]+)"', with_tools)
    assert len(flags) == len(ids)
    assert "".join(with_tools.decode([i]) for i, on in zip(ids, flags, strict=True) if on) == "look_up"
    assert key_places(text, "go", with_tools).tolist()[:1] == [True]
    assert not key_places(text, "nothing", with_tools).any()


def test_key_tokens_of_a_demonstration_stand_at_its_turns():
    ours = renderer()
    turns = tuple(
        Turn((Message("user", "say it"),), text, reward=1.0, stop="scripted") for text in ("then go", "go on")
    )
    scripted = Episode(TaskSpec("toy", "0", "train", 0, "{}"), turns, "terminated", success=True)
    told = tokenise(scripted, ours)
    (sequence,) = with_keys(sequences_of(told), told, " ?go", ours)
    assert [ours.decode([i]).strip() for i in sequence.ids[sequence.key]] == ["go", "go"]
    assert sequence.turn[sequence.key].tolist() == [0, 1] and (sequence.action | ~sequence.key).all()


# -- the anchor ------------------------------------------------------------------------------------


@given(st.integers(0, 2**31), st.integers(1, 4))
@settings(max_examples=25)
def test_the_full_kl_is_its_formula_and_has_the_gradient_of_pi_minus_ref(seed, n):
    rng = np.random.default_rng(seed)
    own, ref = rng.normal(0, 2, (n, 5)), rng.normal(0, 2, (n, 5))
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (ref, own))
    logits = torch.tensor(own, requires_grad=True)
    got = full_kl(logits, torch.tensor(ref))
    assert got.tolist() == pytest.approx((p * (np.log(p) - np.log(q))).sum(-1).tolist(), abs=1e-9)
    got.sum().backward()
    np.testing.assert_allclose(logits.grad.numpy(), q - p, atol=1e-9)


@pytest.mark.parametrize("logits", [VOCAB * 2, 2**24])
@pytest.mark.parametrize("dft", [False, True])
@pytest.mark.parametrize("budget", [20, 8192])
def test_anchored_sft_adds_the_mean_kl(dft, budget, logits):
    """Whatever the cut of the step and of the logits. The first weights are the reference: there the KL is 0."""
    data = demonstrations()
    plain = SftSection(batch=3, tokens=TokensSection(dft=dft))
    held = SftSection(batch=3, tokens=TokensSection(dft=dft, anchor=0.5))
    losses = []
    for chosen in (plain, held):
        ours = learner(token_budget=budget, logits_budget=logits)
        anchor = Reference(other := learner(seed=2).model, LearnerSettings(), Accelerator(cpu=True))
        losses.append(sft_step(ours, [[s] for s in data], chosen, 0, 0, reference=anchor))
    same = learner()
    kls = []
    for s in data:
        row = torch.from_numpy(s.ids)[None]
        logits_of = [
            m.set_attn_implementation("eager") or m(input_ids=row).logits[0].double()
            for m in (same.model, other)
        ]
        lp, ref = (x.log_softmax(-1)[np.flatnonzero(s.action) - 1] for x in logits_of)
        kls += (ref.exp() * (ref - lp)).sum(-1).tolist()
    assert losses[1]["loss"] - losses[0]["loss"] == pytest.approx(0.5 * float(np.mean(kls)), rel=1e-3)
    assert losses[1]["anchor"] == pytest.approx(float(np.mean(kls)), rel=1e-4)
    assert losses[1]["grad_norm"] != losses[0]["grad_norm"]


# -- notes -----------------------------------------------------------------------------------------


class Echo(Engine):
    """Says the same short answer every time, and remembers what it was asked."""

    name, max_context = "echo", 512

    def __init__(self, ids) -> None:
        self.ids, self.asked = tuple(ids), []

    async def generate(self, request):
        self.asked.append(request)
        ids = self.ids[: request.sampling.max_tokens]
        return Generation(ids, (-0.5,) * len(ids), (3,) * len(ids), "stop")

    async def load_weights(self, weights, version): ...
    async def pause(self): ...
    async def resume(self): ...
    async def close(self): ...


def play(agent, jobs=(0,)) -> list[Episode]:
    async def go():
        pool = EnvPool("toy/Letters-v0", {})
        try:
            found = [Job(pool.task("train", 0), 0, sample) for sample in jobs]
            return await rollout(found, agent, pool, RolloutSettings())
        finally:
            await pool.aclose()

    return asyncio.run(go())


def test_a_noted_episode_is_what_would_have_been_sampled_under_its_note():
    ours = renderer()
    said = (*ours.encode("go on"), ours.stop_ids[0])
    (under,) = play(GuidedAgent("x", Echo(said), ours, Sampling(), "Answer correctly."))
    (plain,) = play(GuidedAgent("x", Echo(said), ours, Sampling()))
    assert len(plain.turns) == 2 and "Answer" not in str(under.turns[0].messages)
    assert [t.prompt_ids for t in noted(plain, "Answer correctly.", ours).turns] == [
        t.prompt_ids for t in under.turns
    ]
    lost = noted(plain, "Answer wrongly.", ours)
    assert [t.completion_ids for t in lost.turns] == [t.completion_ids for t in plain.turns]
    assert ours.decode(lost.turns[0].prompt_ids).count("Answer wrongly.") == 1
    assert lost.turns[1].prompt_ids == plain.turns[1].prompt_ids
    assert noted(plain, "", ours) == plain


def test_failures_are_kept_the_shortest_first_and_void_ones_never():
    task = TaskSpec("toy", "0", "train", 0, "{}")

    def episode(sample, tokens, **changes):
        ids = tuple(range(sample, sample + tokens))
        row = (0.0,) * tokens
        turn = Turn(
            (Message("user", "x"),), "", (), (1,), ids, row, (0,) * tokens, void=changes.pop("void", False)
        )
        return Episode(task, (turn,), "terminated", sample=sample, **changes)

    played = [
        episode(0, 5), episode(1, 3), episode(2, 1, void=True), episode(3, 2, success=True), episode(4, 4)
    ]  # fmt: skip
    assert [e.sample for e in kept(played, 2, failures=True)] == [1, 4]
    assert [e.sample for e in kept(played, 2)] == [3]


# -- prefixes --------------------------------------------------------------------------------------


@given(st.integers(0, 60), st.integers(1, 50), st.floats(0, 1), st.floats(0, 1))
def test_the_share_falls_along_half_a_cosine(step, steps, first, last):
    done = min(step / (steps - 1), 1.0) if steps > 1 else float(step > 0)
    want = last + (first - last) * 0.5 * (1 + math.cos(math.pi * done))
    assert share_of(step, steps, first, last) == pytest.approx(want, abs=1e-12)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.floats(0, 1))
def test_a_prefix_is_the_first_of_the_demonstrations_tokens_and_never_all(lengths, share):
    answers = tuple(tuple(range(10 * k, 10 * k + n)) for k, n in enumerate(lengths))
    flat = [token for ids in answers for token in ids]
    told = prefix_of(answers, share)
    want = flat[: min(round(share * len(flat)), len(flat) - 1)]
    assert [token for ids in told for token in ids] == want
    assert all(own == ids for own, ids in zip(told[:-1], answers, strict=False)) and all(told)


@given(st.lists(st.floats(0, 5), max_size=12), st.floats(0.01, 1))
def test_the_most_uncertain_tokens_of_a_prefix_carry_the_gradient(entropies, share):
    chosen = most_entropic(np.array(entropies), share)
    ranked = sorted(range(len(entropies)), key=lambda i: (-entropies[i], i))
    assert set(np.flatnonzero(chosen)) == set(ranked[: math.ceil(share * len(entropies))])


def test_a_prefix_is_told_turn_by_turn_and_then_the_policy_speaks():
    ours = renderer()
    stop = ours.stop_ids[0]
    (oracle,) = [tokenise(e, ours) for e in play(ScriptedAgent("oracle"))]
    answers = tuple(turn.completion_ids for turn in oracle.turns)
    engine = Echo((*ours.encode("go"), stop))
    agent = GuidedAgent("x", engine, ours, Sampling(max_tokens=20)).told(
        {(0, 0): (answers[0], answers[1][:2])}
    )
    hybrid, free = play(agent, (0, 1))
    first, second = hybrid.turns
    assert first.completion_ids == answers[0] and set(first.versions) == {TOLD}
    assert second.completion_ids == (*answers[1][:2], *engine.ids)
    assert second.versions == (TOLD, TOLD, *(3,) * len(engine.ids)) and second.logprobs[:3] == (
        0.0,
        0.0,
        -0.5,
    )
    assert all(set(turn.versions) == {3} for turn in free.turns)
    asked = [r for r in engine.asked if r.sampling.max_tokens == 18]
    assert len(engine.asked) == 3 and [r.prompt_ids[-2:] for r in asked] == [answers[1][:2]]
    tokens = sequences_of(hybrid)[0]
    assert tokens.ids.tolist() == [i for t in hybrid.turns for i in (*t.prompt_ids, *t.completion_ids)]


def hybrid_group(ours: Learner) -> Group:
    rng = np.random.default_rng(3)
    task = TaskSpec("toy", "0", "train", 0, "{}")
    episodes = []
    for sample in range(3):
        turns = []
        for told, free in ((4, 0), (2, 3)) if sample == 0 else ((0, 3), (0, 2)):
            many = told + free
            ids = tuple(rng.integers(0, VOCAB, many).tolist())
            versions = (TOLD,) * told + (0,) * free
            mu = (0.0,) * told + tuple(rng.normal(-5.7, 0.1, free).tolist())
            prompt = tuple(rng.integers(0, VOCAB, 3).tolist())
            turns.append(
                Turn((Message("user", "x"),), "", (), prompt, ids, mu, versions, reward=float(sample == 0))
            )
        episodes.append(Episode(task, tuple(turns), "terminated", sample=sample))
    return Group(task, tuple(episodes))


@pytest.mark.parametrize("updates", [1, 2])
def test_of_a_prefix_only_the_chosen_tokens_are_learnt_from_and_on_policy(updates):
    ours, entropy_share = learner(), 0.5
    group = hybrid_group(ours)
    (ready,) = guided(ours, entropy_share, 1.0, [group])
    assert ready.episodes[1:] == group.episodes[1:]
    versions = [v for turn in ready.episodes[0].turns for v in turn.versions]
    mu = [x for turn in ready.episodes[0].turns for x in turn.logprobs]
    (sequence,) = sequences_of(group.episodes[0])
    logits = ours.model.set_attn_implementation("eager") or ours.model(torch.from_numpy(sequence.ids)[None])
    lp_LV = logits.logits[0].detach().double().log_softmax(-1)[np.flatnonzero(sequence.action) - 1]
    entropy = -(lp_LV.exp() * lp_LV).sum(-1).numpy()[:6]
    chosen = set(np.argsort(-entropy)[:3].tolist())
    assert versions == [TOLD if i in chosen else SHOWN for i in range(6)] + [0, 0, 0]
    own = lp_LV.gather(-1, torch.from_numpy(sequence.ids[sequence.action])[:, None])[:, 0].tolist()
    assert mu[:6] == pytest.approx(own[:6], abs=1e-4)
    ours.model.set_attn_implementation(NAME)
    (trained,) = sequences_of(ready.episodes[0], oldest=0)
    assert trained.actions == 6  # a demonstration is never stale
    before = [p.detach().clone() for p in ours.model.parameters()]
    chosen_settings = RlSection(lr=1e-2, updates=updates, void="keep", schedule={"warmup": 0})
    metrics = learn(ours, [ready], chosen_settings, 1.0, 0)
    assert metrics["tokens"] > 0 and metrics["mismatch_max"] < 1.5
    assert any(not torch.equal(a, b) for a, b in zip(before, ours.model.parameters(), strict=True))


def test_tokens_that_are_shown_change_no_loss_but_through_the_context():
    """Whatever stands as the log-probability of tokens that are only shown."""
    losses = []
    for junk in (0.0, -7.0):
        ours = learner()
        (ready,) = guided(ours, 0.5, 1.0, [hybrid_group(ours)])
        turns = tuple(
            replace(
                turn,
                logprobs=tuple(
                    junk if v == SHOWN else x for x, v in zip(turn.logprobs, turn.versions, strict=True)
                ),
            )
            for turn in ready.episodes[0].turns
        )
        changed = Group(ready.task, (replace(ready.episodes[0], turns=turns), *ready.episodes[1:]))
        losses.append(learn(ours, [changed], RlSection(void="keep"), 1.0, 0)["grad_norm"])
    assert losses[0] == losses[1] > 0


REFUSED = [
    (["algo=prefix-rft", "rl.critic={lr=1e-3}"], "a critic"),
    (["algo=prefix-rft", 'rl.kl={place="reward"}'], "rl.kl.place = 'loss'"),
    (["algo=prefix-rft", "rl.advantage=reinforce++"], "compare a group's rewards"),
    (["algo=prefix-rft", "rl.group=1"], "rl.group=2 or more"),
    (["rl.prefix.first=1.5"], "less than or equal to 1"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "words"), REFUSED)
def test_senseless_prefixes_are_refused(overrides, words):
    with pytest.raises(RecipeError, match=words):
        load("quickstart", overrides)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["title"])
def test_golden_vectors(case):
    given_ = case["given"]
    if case["name"] == "key_weights":
        got = key_weights(*(np.array(given_[k], dtype=bool) for k in ("key", "action")), given_["most"])
    elif case["name"] == "full_kl":
        got = full_kl(*(torch.tensor(given_[k], dtype=f64).log() for k in ("pi", "ref")))
    elif case["name"] == "share_of":
        got = [share_of(step, given_["steps"], given_["first"], given_["last"]) for step in given_["at"]]
    else:
        got = most_entropic(np.array(given_["entropy"]), given_["share"])
    np.testing.assert_allclose(np.asarray(got, dtype=float), np.array(case["want"], dtype=float), atol=1e-9)
