"""The embedded engine: exact ids, exact log-probabilities, weights that change while it runs."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen3ForCausalLM

from gymrl.agents.engines import EngineFault, EngineSettings, GenerationRequest, Sampling
from gymrl.agents.engines.sampling import draw, truncate, uniforms
from gymrl.agents.engines.slots import SlotTable
from gymrl.agents.engines.transformers import TransformersEngine
from gymrl.agents.ragged import NAME
from gymrl.rl.tiny import make_model

VOCAB = 320


def policy(seed: int = 0) -> Qwen3ForCausalLM:
    return make_model(VOCAB, hidden=64, layers=2, heads=2, kv_heads=1, context=128, seed=seed)


def engine(seed: int = 0, slots: int = 16, max_context: int = 128) -> TransformersEngine:
    model = policy(seed)
    model.set_attn_implementation(NAME)
    return TransformersEngine(EngineSettings(slots=slots, max_context=max_context), model)


def requests(count: int, seed: int = 0, **sampling) -> list[GenerationRequest]:
    rng = random.Random(seed)
    return [
        GenerationRequest(
            tuple(rng.randrange(VOCAB) for _ in range(rng.randrange(1, 60))),
            Sampling(**{"max_tokens": 12, "seed": rng.randrange(2**62), **sampling}),
            (7, 8),
        )
        for _ in range(count)
    ]


def check_logprobs(model: Qwen3ForCausalLM, request: GenerationRequest, done) -> None:
    s = request.sampling
    ids = torch.tensor([request.prompt_ids + done.ids])
    lp = truncate(model(ids).logits[0] / s.temperature, s.top_k, s.top_p).log_softmax(-1)
    start = len(request.prompt_ids)
    want = lp[start - 1 : -1].gather(-1, ids[0, start:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(done.logprobs), want, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 0.7}, {"temperature": 0.7, "top_k": 9}, {"top_p": 0.6}]
)
async def test_logprobs_are_those_of_the_distribution_sampled_from(sampling):
    served = engine()
    asked = requests(20, **sampling)  # more than there are slots
    asked[3] = asked[5]
    done = await served.generate_batch(asked)
    assert done[3].ids == done[5].ids
    for request, generation in zip(asked, done, strict=True):
        check_logprobs(policy(), request, generation)
        assert set(generation.versions) == {0}
    longer = [  # a second turn: the slots remember the first
        GenerationRequest((*r.prompt_ids, *g.ids, 11, 12), r.sampling, r.stop_ids)
        for r, g in zip(asked, done, strict=True)
    ]
    for request, generation in zip(longer, await served.generate_batch(longer), strict=True):
        check_logprobs(policy(), request, generation)
    await served.close()


async def test_a_seed_gives_the_same_tokens_in_any_company():
    served = engine()
    asked = requests(12)
    together = await served.generate_batch(asked)
    shuffled = asked[::-1]
    again = await asyncio.gather(*(served.generate(request) for request in shuffled))
    alone = [await served.generate(request) for request in asked]
    assert [g.ids for g in together] == [g.ids for g in again[::-1]] == [g.ids for g in alone]
    await served.close()


async def test_the_same_batch_gives_the_same_bits():
    results = []
    for _ in range(2):
        served = engine()
        results.append([(g.ids, g.logprobs) for g in await served.generate_batch(requests(20))])
        await served.close()
    assert results[0] == results[1]


async def test_stop_reasons():
    served = engine(max_context=64)
    (request,) = requests(1, temperature=0.0)
    free = await served.generate(GenerationRequest(request.prompt_ids, Sampling(0.0, max_tokens=5), ()))
    assert free.stop == "length" and len(free.ids) == 5
    stopped = await served.generate(
        GenerationRequest(request.prompt_ids, Sampling(0.0, max_tokens=5), (free.ids[2],))
    )
    assert stopped.stop == "stop" and stopped.ids == free.ids[: free.ids.index(free.ids[2]) + 1]
    full = await served.generate(GenerationRequest((1,) * 60, Sampling(seed=1, max_tokens=50), ()))
    assert full.stop == "context" and len(full.ids) == 4
    with pytest.raises(ValueError, match="max_context"):
        await served.generate(GenerationRequest((1,) * 64, Sampling(), ()))
    await served.close()


async def test_new_weights_serve_as_a_fresh_engine_would():
    served, fresh = engine(0), engine(1)
    asked = requests(8)
    before = await served.generate_batch(asked)
    await served.load_weights(policy(1).state_dict().items(), 5)
    after = await served.generate_batch(asked)
    want = await fresh.generate_batch(asked)
    assert [(g.ids, g.logprobs) for g in after] == [(g.ids, g.logprobs) for g in want]
    assert [g.ids for g in after] != [g.ids for g in before]
    assert {v for g in after for v in g.versions} == {5}
    with pytest.raises(ValueError, match="lack"):
        await served.load_weights([("model.norm.weight", torch.zeros(64))], 6)
    await served.close()
    await fresh.close()


def wait_for(condition: Callable[[], object]) -> None:
    while not condition():
        time.sleep(0.001)


async def test_weights_change_under_running_requests():
    served = engine(0)
    request = GenerationRequest((3, 4, 5), Sampling(seed=3, max_tokens=100), ())
    running = asyncio.ensure_future(served.generate(request))
    await asyncio.to_thread(wait_for, lambda: served._running)
    await served.pause()
    await served.load_weights(policy(1).state_dict().items(), 1)
    await served.resume()
    done = await running
    switch = done.versions.index(1)
    assert switch > 0 and done.versions == (0,) * switch + (1,) * (100 - switch)
    ids = torch.tensor([request.prompt_ids + done.ids])
    for model, part in ((policy(0), slice(0, switch)), (policy(1), slice(switch, None))):
        lp = model(ids).logits[0].log_softmax(-1)[2:-1].gather(-1, ids[0, 3:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(done.logprobs)[part], lp[part], atol=1e-4, rtol=0)
    await served.close()


async def test_a_cancelled_request_frees_its_slot():
    served = engine(slots=1)
    running = asyncio.ensure_future(
        served.generate(GenerationRequest((3,), Sampling(seed=1, max_tokens=120), ()))
    )
    await asyncio.sleep(0.01)
    running.cancel()
    done = await asyncio.wait_for(served.generate(requests(1)[0]), 30)
    assert done.ids
    await served.close()


async def test_a_broken_model_fails_every_caller_and_says_so():
    served = engine()

    def broken(*_, **__):
        raise RuntimeError("out of memory")

    served.model.forward = broken
    with pytest.raises(EngineFault, match="out of memory"):
        await served.generate(requests(1)[0])
    with pytest.raises(EngineFault, match="out of memory"):
        await served.generate(requests(1)[0])
    await served.close()
    with pytest.raises(EngineFault):
        await served.generate(requests(1)[0])


async def test_weights_that_are_no_numbers_are_a_fault_and_no_policy():
    served = engine()
    good = policy().state_dict()
    await served.load_weights({name: torch.full_like(w, torch.nan) for name, w in good.items()}.items(), 1)
    with pytest.raises(EngineFault, match="no numbers"):
        await served.generate(requests(1)[0])
    await served.load_weights(good.items(), 2)
    assert (await served.generate(requests(1)[0])).ids
    await served.close()


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(EngineFault, match="cannot be loaded"):
        TransformersEngine(EngineSettings(model=tmp_path))


def test_draws_follow_the_distribution():
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]]).repeat(20_000, 1)
    u = torch.from_numpy(uniforms(np.arange(20_000), np.zeros(20_000)))
    assert u.min() >= 0 and u.max() < 1 and abs(u.mean().item() - 0.5) < 0.01
    ids, _ = draw(logits, 0.7, 0, 1.0, u)
    want = (logits[0] / 0.7).softmax(-1)
    got = torch.bincount(ids, minlength=4) / 20_000
    torch.testing.assert_close(got, want, atol=0.015, rtol=0)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=9), st.floats(0.05, 1.0), st.integers(0, 9))
def test_truncation_keeps_the_smallest_sufficient_set(logits, top_p, top_k):
    row = torch.tensor([logits], dtype=torch.float64)
    kept = truncate(row, top_k, top_p)[0].isfinite()
    probs = row[0].softmax(-1)
    if top_k == 0:
        assert probs[kept].sum() >= top_p - 1e-9
        if kept.sum() > 1:
            assert probs[kept].sum() - probs[kept].min() < top_p + 1e-9
    assert probs[kept].min() >= probs[~kept].max() - 1e-12 if (~kept).any() else True


@settings(max_examples=60)
@given(
    st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=5), min_size=1, max_size=25), st.integers(1, 4)
)
def test_slots_hand_back_the_longest_memory(prompts, slots):
    table = SlotTable(slots)
    held: dict[int, tuple[int, ...]] = {}
    for prompt in prompts:
        full = (9, *prompt)
        slot, known = table.take(full)
        best = max((len(t) for t in held.values() if len(t) < len(full) and full[: len(t)] == t), default=0)
        assert known == best
        if known:
            assert full[:known] == held[slot]
        held.pop(slot, None)
        table.give(slot, full)
        held[slot] = full
        assert len(table) == slots
    table.clear()
    assert table.take((9, 0, 0))[1] == 0
