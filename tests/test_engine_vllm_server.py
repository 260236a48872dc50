"""A real vLLM server, started, joined, fed with weights and killed."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from gymrl.agents.engines import EngineFault, EngineSettings, GenerationRequest, Sampling, open_engine
from gymrl.agents.engines.vllm_guard import __file__ as guard_file
from gymrl.agents.engines.vllm_server import VllmServerEngine

needs_vllm = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]
CONTEXT = 512


def tiny_model(folder: Path, seed: int) -> str:
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=512, hidden_size=128, intermediate_size=384, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=1024, tie_word_embeddings=True,
        initializer_range=0.15, eos_token_id=2, bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return str(folder)


def reference(folder: str, request: GenerationRequest, ids: tuple[int, ...]) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(torch.tensor([[*request.prompt_ids, *ids]])).logits[
            0, len(request.prompt_ids) - 1 : -1
        ]
    logprobs = (logits / request.sampling.temperature).log_softmax(-1)
    return logprobs.gather(-1, torch.tensor(ids)[:, None])[:, 0]


def group(leader: int) -> list[int]:
    """The living processes of a process group."""
    living = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, number = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            except OSError:
                continue
            if int(number) == leader and state != "Z":
                living.append(int(entry.name))
    return living


def gone(leader: int, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while group(leader) and time.monotonic() < end:
        time.sleep(0.05)
    return not group(leader)


ASKED = [
    GenerationRequest(tuple(range(5, 45)), Sampling(seed=2**62, max_tokens=30), (2,)),
    GenerationRequest((9, 8, 7), Sampling(seed=1, max_tokens=30, temperature=0.7), (2,)),
]


def test_the_guard_ends_the_group_with_its_parent(tmp_path: Path) -> None:
    """Also where the parent is killed, and children of the command that ignore it."""
    note = tmp_path / "pid"
    command = ["sh", "-c", "trap '' INT; sleep 1000 & sleep 1000"]
    parent = (
        "import os, pathlib, subprocess, sys, time\n"
        f"words = [sys.executable, {guard_file!r}, str(os.getpid()), *{command!r}]\n"
        "p = subprocess.Popen(words, start_new_session=True)\n"
        f"pathlib.Path({str(note)!r}).write_text(str(p.pid)); time.sleep(1000)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent])
    try:
        while not (note.exists() and note.read_text() and len(group(int(note.read_text()))) == 4):
            assert process.poll() is None
            time.sleep(0.02)
        leader = int(note.read_text())
    finally:
        process.kill()
        process.wait()
    assert gone(leader)


def test_nobody_at_the_url() -> None:
    with pytest.raises(EngineFault, match=r"no vLLM server answers at http://127\.0\.0\.1:9 "):
        open_engine(EngineSettings(kind="vllm-server", url="http://127.0.0.1:9/v1"))


class TestServer:
    pytestmark = needs_vllm

    @pytest.fixture(scope="class")
    @classmethod
    def models(cls, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
        folder = tmp_path_factory.mktemp("models")
        return tiny_model(folder / "old", 0), tiny_model(folder / "new", 1)

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, models: tuple[str, str]) -> Iterator[VllmServerEngine]:
        engine = open_engine(
            EngineSettings(kind="vllm-server", model=models[0], max_context=CONTEXT, slots=16, memory_gb=0.1)
        )
        assert isinstance(engine, VllmServerEngine)
        yield engine
        asyncio.run(engine.close())

    async def test_new_weights(self, engine: VllmServerEngine, models: tuple[str, str]) -> None:
        for version, folder in ((0, models[0]), (5, models[1])):
            if version:
                state = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
                await engine.load_weights(state.items(), version)
            for asked, generation in zip(ASKED, await engine.generate_batch(ASKED), strict=True):
                error = reference(folder, asked, generation.ids) - torch.tensor(generation.logprobs)
                assert float(error.abs().max()) < 1e-3
                assert set(generation.versions) == {version}
        with pytest.raises(ValueError, match="lack"):
            await engine.load_weights([("model.norm.weight", torch.ones(128))], 6)
        await engine.load_weights(state.items(), 5)

    async def test_weights_change_under_a_running_request(
        self, engine: VllmServerEngine, models: tuple[str, str]
    ) -> None:
        asked = GenerationRequest((8, 9, 10), Sampling(seed=5, max_tokens=CONTEXT), ())
        running = asyncio.create_task(engine.generate(asked))
        await asyncio.sleep(0.3)
        await engine.pause()
        state = AutoModelForCausalLM.from_pretrained(models[0], dtype=torch.float32).state_dict()
        await engine.load_weights(state.items(), 8)
        done, _ = await asyncio.wait([running], timeout=0.3)
        assert not done
        await engine.resume()
        generation = await running
        assert (generation.stop, len(generation.ids)) == ("context", CONTEXT - 3)
        assert set(generation.versions) == {5, 8}
        change = generation.versions.index(8)
        got = torch.tensor(generation.logprobs)
        old, new = (reference(models[i], asked, generation.ids) for i in (1, 0))
        assert torch.allclose(got[:change], old[:change], atol=1e-3)
        assert torch.allclose(got[change:], new[change:], atol=1e-3)

    async def test_joining_by_url(self, engine: VllmServerEngine) -> None:
        joined = open_engine(EngineSettings(kind="vllm-server", url=engine.url + "/v1", max_context=9999))
        assert (joined.max_context, joined.version) == (CONTEXT, engine.version)
        mine, theirs = await engine.generate(ASKED[0]), await joined.generate(ASKED[0])
        assert (mine.ids, mine.logprobs, mine.versions) == (theirs.ids, theirs.logprobs, theirs.versions)
        await joined.close()
        assert (await engine.generate(ASKED[0])).ids == mine.ids

    async def test_a_killed_server_is_a_fault_and_leaves_nothing(self, engine: VllmServerEngine) -> None:
        assert engine._server is not None
        leader = engine._server.process.pid
        asked = [GenerationRequest((5, i), Sampling(seed=i, max_tokens=400), ()) for i in range(8)]
        waiting = [asyncio.create_task(engine.generate(one)) for one in asked]
        await asyncio.sleep(0.2)
        (server,) = (int(pid) for pid in Path(f"/proc/{leader}/task/{leader}/children").read_text().split())
        os.kill(server, signal.SIGKILL)
        for result in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(result, EngineFault)
            assert "start again from the checkpoint" in str(result)
            assert str(engine._server.log) in str(result)
        assert gone(leader)
        shutil.rmtree(engine._server.log.parent)
        await engine.close()
        await engine.close()
        with pytest.raises(EngineFault, match="closed"):
            await engine.generate(ASKED[0])

    def test_a_server_that_cannot_start_shows_its_log(
        self, models: tuple[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        monkeypatch.setenv("PYTHONHASHSEED", "nonsense")  # Python itself refuses this
        with pytest.raises(EngineFault, match="could not start") as caught:
            open_engine(EngineSettings(kind="vllm-server", model=models[0]))
        assert "PYTHONHASHSEED must be" in str(caught.value)
