"""The learner: exact log-probabilities, no leaks between packed sequences, results that do not depend on the cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen3Config, Qwen3ForCausalLM

from gymrl.agents.ragged import NAME
from gymrl.agents.records import Episode, Turn
from gymrl.envs.records import Message, TaskSpec
from gymrl.rl.batches import TokenSequence, cut, make_batch, sequences_of
from gymrl.rl.learner import Learner, LearnerSettings, schedule
from gymrl.rl.losses.aggregation import token_weights
from gymrl.rl.tiny import make_model
from gymrl.rl.trainers.sft import chosen, negative_logprob

VOCAB = 320


def learner(**changes) -> Learner:
    model = make_model(VOCAB, hidden=64, layers=2, heads=2, kv_heads=1, context=256, seed=3)
    model.set_attn_implementation(NAME)
    return Learner(model, LearnerSettings(**changes), Accelerator(cpu=True))


def sequence(rng: np.random.Generator, length: int, gap: bool = True) -> TokenSequence:
    action = np.zeros(length, dtype=bool)
    action[length // 4 :] = True
    if gap:  # an observation in the middle
        action[length // 2 : length // 2 + length // 5] = False
    zeros = np.zeros(length, dtype=np.float32)
    ids = rng.integers(0, VOCAB, length)
    return TokenSequence(ids, action, zeros, action.astype(np.float32), ids * 0, ids * 0)


def plain_logprobs(model: Qwen3ForCausalLM, seq: TokenSequence, temperature: float) -> torch.Tensor:
    """Straight from transformers' own attention, one sequence at a time."""
    plain = Qwen3ForCausalLM(Qwen3Config(**model.config.to_dict()))
    plain.load_state_dict(model.state_dict())
    plain.set_attn_implementation("eager")
    ids = torch.from_numpy(seq.ids)[None]
    lp = (plain(ids).logits[0].double() / temperature).log_softmax(-1)[:-1]
    return lp.gather(-1, ids[0, 1:, None])[:, 0][torch.from_numpy(seq.action[1:])].detach()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("logits_budget", [2**24, VOCAB * 7])
def test_packed_logprobs_equal_the_plain_models(temperature, logits_budget):
    rng = np.random.default_rng(0)
    seqs = [sequence(rng, n) for n in (5, 130, 17, 64, 9)]
    ours = learner(logits_budget=logits_budget)
    batch = make_batch(seqs, [1.0] * 5)
    lp, entropy = ours.logprobs(batch, temperature, entropy=True)
    want = torch.cat([plain_logprobs(ours.model, s, temperature) for s in seqs])
    torch.testing.assert_close(lp.double(), want, atol=2e-5, rtol=0)
    assert (entropy > 0).all()
    scored = ours.score(seqs, temperature)
    torch.testing.assert_close(torch.cat(scored).double(), want, atol=2e-5, rtol=0)


def test_packed_sequences_do_not_see_each_other():
    rng = np.random.default_rng(1)
    ours = learner()
    first, second = sequence(rng, 40), sequence(rng, 50)
    alone, _ = ours.logprobs(make_batch([second], [1.0]))
    for other in (first, sequence(rng, 40)):
        together, _ = ours.logprobs(make_batch([other, second], [1.0, 1.0]))
        torch.testing.assert_close(together[other.actions :], alone, atol=1e-6, rtol=0)


def gradients(ours: Learner) -> list[torch.Tensor]:
    return [p.detach().clone() for p in ours.model.parameters()]


def test_a_step_does_not_depend_on_how_it_is_cut():
    rng = np.random.default_rng(2)
    seqs = [sequence(rng, int(n)) for n in rng.integers(8, 90, 12)]
    weights = token_weights(torch.tensor([s.actions for s in seqs]), "token-mean").tolist()
    results = []
    for budget in (64, 200, 100_000):
        ours = learner(token_budget=budget)
        done = ours.step(seqs, weights, negative_logprob, lr=1e-3)
        results.append((done, gradients(ours)))
    for done, params in results[1:]:
        assert done.loss == pytest.approx(results[0][0].loss, rel=1e-5)
        assert done.grad_norm == pytest.approx(results[0][0].grad_norm, rel=1e-4)
        for got, want in zip(params, results[0][1], strict=True):
            torch.testing.assert_close(
                got, want, atol=2e-4, rtol=0
            )  # Adam's first step is a sign: 1e-3 apart at worst


def test_gradient_by_finite_differences():
    rng = np.random.default_rng(3)
    seqs = [sequence(rng, 12), sequence(rng, 20)]
    model = make_model(VOCAB, hidden=64, layers=1, heads=2, kv_heads=1, seed=1).double()
    model.set_attn_implementation(NAME)
    ours = Learner(model, LearnerSettings(), Accelerator(cpu=True))
    batch = make_batch(seqs, [0.1, 0.2])
    weight = model.model.layers[0].self_attn.k_proj.weight

    def loss() -> torch.Tensor:
        hidden = model.model(
            input_ids=batch.ids_T[None],
            position_ids=batch.packed.positions[None],
            ragged=batch.packed,
            use_cache=False,
        ).last_hidden_state[0]
        lp = model.lm_head(hidden[batch.predict_N]).log_softmax(-1).gather(-1, batch.target_N[:, None])[:, 0]
        return -(lp * batch.weight_N.double()).sum()

    loss().backward()
    for place in [(0, 0), (7, 3), (31, 60)]:
        want = weight.grad[place].item()
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight[place] += sign * 1e-3
                values.append(loss().item())
                weight[place] -= sign * 1e-3
        assert (values[0] - values[1]) / 2e-3 == pytest.approx(want, rel=1e-2)  # norms are float32 inside
    assert ours.updates == 0


def test_observation_tokens_carry_no_loss():
    rng = np.random.default_rng(4)
    seq = sequence(rng, 40)
    batch = make_batch([seq], [1.0])
    assert batch.actions == int(seq.action.sum())
    assert set(batch.target_N.tolist()) == set(seq.ids[seq.action].tolist())
    # An observation after the last action changes nothing at all.
    tail = np.concatenate([seq.action, np.zeros(5, dtype=bool)])
    longer = [
        TokenSequence(
            np.concatenate([seq.ids, rng.integers(0, VOCAB, 5)]),
            tail,
            tail * 0.0,
            tail * 1.0,
            tail * 0,
            tail * 0,
        )
        for _ in range(2)
    ]
    ours = learner()
    a, b = (ours.logprobs(make_batch([s], [1.0]))[0] for s in longer)
    assert torch.equal(a, b)


@given(st.lists(st.integers(2, 50), min_size=1, max_size=30), st.integers(2, 120))
def test_cutting_keeps_every_sequence_once_and_the_budget(lengths, budget):
    rng = np.random.default_rng(0)
    seqs = [sequence(rng, n, gap=False) for n in lengths]
    bins = cut(seqs, budget)
    assert sorted(i for chosen in bins for i in chosen) == list(range(len(seqs)))
    assert all(sum(seqs[i].tokens for i in chosen) <= budget or len(chosen) == 1 for chosen in bins)


def test_a_gradient_that_is_not_finite_skips_the_step():
    ours = learner()
    before = gradients(ours)
    seq = sequence(np.random.default_rng(5), 20)
    done = ours.step([seq], [float("nan")], negative_logprob, lr=1e-3)
    assert done.skipped and ours.updates == 0
    assert all(torch.equal(a, b) for a, b in zip(before, gradients(ours), strict=True))
    assert ours.step([], [], negative_logprob, lr=1e-3).skipped


def turn(prompt: tuple[int, ...], said: tuple[int, ...], segment: int = 0, version: int = 0) -> Turn:
    n = len(said)
    lps = tuple(-0.1 * (i + 1) for i in range(n))
    return Turn((Message("user", "?"),), "", (), prompt, said, lps, (version,) * n, segment)


def test_sequences_hold_exactly_the_sampled_tokens():
    task = TaskSpec.make("toy/Toy-v0", "1", "train", 0)
    turns = (turn((1, 2), (3, 4)), turn((5,), (6,), version=1), turn((7, 8), (9,), segment=1, version=2))
    episode = Episode(task, turns, "terminated")
    one, two = sequences_of(episode, advantage=0.5)
    assert one.ids.tolist() == [1, 2, 3, 4, 5, 6] and two.ids.tolist() == [7, 8, 9]
    assert one.action.tolist() == [False, False, True, True, False, True]
    np.testing.assert_allclose(one.mu, [0, 0, -0.1, -0.2, 0, -0.1], rtol=1e-6)
    assert one.turn.tolist() == [0, 0, 0, 0, 1, 1] and two.version.tolist() == [0, 0, 2]
    masked = sequences_of(episode, [True, False, True], 1.0)
    assert masked[0].action.tolist() == [False, False, True, True, False, False]
    fresh = sequences_of(episode, oldest=1)
    assert fresh[0].action.tolist() == [False] * 5 + [True]


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 5))
def test_every_epoch_of_sft_shows_every_demonstration_once(count, batch, seed):
    steps = -(-3 * count // batch)
    picked = [i for step in range(steps) for i in chosen(step, count, batch, seed)]
    for epoch in range(3):
        assert sorted(picked[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_schedules():
    assert [schedule(s, 1.0, 4, 10) for s in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert schedule(10, 1.0, 0, 10, "cosine") == pytest.approx(0.1)
    assert schedule(10, 1.0, 0, 10, "linear") == pytest.approx(0.1)
    with pytest.raises(ValueError, match="constant, linear or cosine"):
        schedule(5, 1.0, 0, 10, "steep")
