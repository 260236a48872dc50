"""Servers that accept a connection and then say nothing: nobody waits for them for long, and users hear of it."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gymrl.agents.engines import EngineFault, EngineSettings, GenerationRequest, Sampling, open_engine
from gymrl.agents.engines.openai import ChatAgent, served_models
from gymrl.agents.engines.vllm_health import MISSES
from gymrl.agents.engines.vllm_server import VllmServerEngine, served_window
from gymrl.agents.evaluation import evaluate, evaluation_jobs
from gymrl.agents.policies import open_policy
from gymrl.agents.records import Episode
from gymrl.agents.rollout import RolloutSettings
from gymrl.cli.main import run
from gymrl.envs.workers import EnvPool

sys.path.insert(0, str(Path(__file__).parent))
from silent_server import Server


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(**counts: int) -> Server:
        servers.append(Server(**counts))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


async def play(agent: Any, count: int, concurrency: int = 4) -> list[Episode]:
    pool = EnvPool("test/Word-v0")
    jobs = evaluation_jobs([pool.task("test", index) for index in range(count)], 1, 0)
    _, episodes = await evaluate(agent, pool, jobs, RolloutSettings(concurrency=concurrency))
    await pool.aclose()
    return episodes


# -- chat completions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("trickles", [False, True])
async def test_a_request_that_timed_out_is_not_sent_again(serve: Any, trickles: bool) -> None:
    server, told = serve(completions=0, trickles=trickles), []
    agent = ChatAgent(server.url, Sampling(), timeout=0.4, quiet=0.1, tell=told.append)
    (episode,) = await play(agent, 1)
    await agent.close()
    assert server.requests.count("completions") == 1
    assert episode.reason == (
        f"engine: {server.url}/v1 gave no answer in 0.4 s: check that the server is well, lower the concurrency or "
        "max_tokens, or raise the timeout"
    )
    assert told == [f"{server.url}/v1 has been silent for 0.1 s; each answer is waited for 0.4 s"]


async def test_after_three_time_outs_in_a_row_nobody_waits(serve: Any) -> None:
    server = serve(completions=0)
    agent = ChatAgent(server.url, Sampling(), timeout=0.2)
    episodes = await play(agent, 12, concurrency=1)
    await agent.close()
    assert server.requests.count("completions") == 3 and len({episode.reason for episode in episodes}) == 1


async def test_a_server_that_answers_others_is_not_told_of(serve: Any) -> None:
    server, told = serve(), []
    agent = ChatAgent(server.url, Sampling(), quiet=30.0, tell=told.append)
    assert all(episode.success for episode in await play(agent, 6))
    await agent.close()
    assert told == []


async def test_overload_is_told_once_and_tried_again(serve: Any) -> None:
    server, told = serve(), []
    server.status = 503
    agent = ChatAgent(server.url, Sampling(), patience=0.001, tell=told.append)
    episodes = await play(agent, 2)
    await agent.close()
    assert server.requests.count("completions") == 12
    assert "gave no answer in 6 tries (HTTP 503" in episodes[0].reason
    assert len(told) == 1 and told[0].startswith(f"{server.url}/v1 is asked again, 6 times in all (HTTP 503")


async def test_an_address_that_takes_no_connection_is_given_up_in_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as full:  # nobody accepts, and there is no room to wait
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        monkeypatch.setattr("gymrl.agents.engines.openai.CONNECT_SECONDS", 0.1)
        agent = ChatAgent(f"{url}#model", Sampling(), patience=0.001)
        (episode,) = await play(agent, 1)
        await agent.close()
        for one in waiting:
            one.close()
    assert f"{url}/v1 gave no answer in 6 tries (no connection in 0.1 s): check" in episode.reason


def test_a_list_of_models_that_does_not_come(serve: Any) -> None:
    server = serve(models=0)
    words = rf"no server answers at {server.url}/v1 \(no answer in 0\.2 s\): check the address"
    with pytest.raises(EngineFault, match=words):
        served_models(f"{server.url}/v1", timeout=0.2)
    with pytest.raises(
        EngineFault, match=rf"no vLLM server answers at {server.url} \(no answer in 0\.2 s\): start"
    ):
        served_window(server.url, timeout=0.2)


def test_the_commands_take_a_timeout_and_tell(
    serve: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gymrl.agents.engines.openai.QUIET_SECONDS", 0.1)
    monkeypatch.setattr(ChatAgent.__init__, "__defaults__", (300.0, 0.5, 0.1, None))
    for words in (
        ["eval", "--env", "test/Word-v0", "-n", "2"],
        ["collect", "test/Word-v0", "-n", "2", "--out", str(tmp_path / "x.jsonl")],
    ):
        server = serve(completions=0)
        assert run([*words, "--policy", server.url, "--timeout", "0.3"]) == 1
        out, err = capsys.readouterr()
        assert "gave no answer in 0.3 s" in " ".join((out + err).split())
        assert err.count("has been silent for 0.1 s; each answer is waited for 0.3 s") == 1
        assert server.requests.count("completions") == 2


@pytest.mark.parametrize(
    ("policy", "options", "words"),
    [
        ("oracle", {"timeout": 3.0}, "a timeout is of a server of chat completions, .*: leave it out"),
        (
            "http://h",
            {"timeout": 3.0, "engine": "vllm-server"},
            "a timeout is of a server of chat completions",
        ),
        ("http://h", {"timeout": 0.0}, "a timeout is a number of seconds above 0, not 0"),
        ("http://h", {"timeout": float("nan")}, "a timeout is a number of seconds above 0, not nan"),
    ],
)
def test_a_timeout_that_means_nothing(policy: str, options: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        open_policy(policy, **options)


# -- vLLM's server ------------------------------------------------------------------------------------------

ASKED = GenerationRequest((1, 2), Sampling(max_tokens=1), ())


def joined(server: Server, quiet: float) -> tuple[VllmServerEngine, list[str]]:
    engine, told = VllmServerEngine(EngineSettings("vllm-server", url=server.url, max_context=64), quiet), []
    engine.tell = told.append
    return engine, told


async def test_a_vllm_server_that_hangs_fails_all_that_wait(serve: Any) -> None:
    server = serve(generate=2, health=1)
    engine, told = joined(server, 0.1)
    assert (await engine.generate(ASKED)).versions == (3,)
    began = time.monotonic()
    waiting = [asyncio.create_task(engine.generate(ASKED)) for _ in range(3)]
    for one in waiting:
        with pytest.raises(
            EngineFault,
            match=rf"the vLLM server at {server.url} hangs \(it has answered nothing, not .* s\): start it again",
        ):
            await one
    assert time.monotonic() - began < 10
    assert server.requests.count("generate") == 2 + 3
    assert told == [f"the vLLM server at {server.url} has answered nothing for 0.2 s, and is asked again"]
    with pytest.raises(EngineFault, match="hangs"):  # at once
        await engine.generate(ASKED)
    assert server.requests.count("generate") == 2 + 3
    await engine.close()


async def test_a_vllm_server_that_takes_its_time_is_waited_for(serve: Any) -> None:
    server = serve(generate=1)
    engine, told = joined(server, 0.3)
    waiting = asyncio.create_task(engine.generate(ASKED))
    while server.requests.count("health") < MISSES + 2:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert not waiting.done() and not told
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await engine.close()
    assert len(asyncio.all_tasks()) == 1


async def test_a_vllm_server_that_goes_away_is_no_hung_one(serve: Any) -> None:
    server = Server()
    engine, _ = joined(server, 0.02)
    server.close()
    with pytest.raises(
        EngineFault, match=r"does not answer .*: start it again, or leave the engine's url empty"
    ):
        await engine.generate(ASKED)
    await engine.close()


def test_a_probe_without_an_answer(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(generate=0)
    monkeypatch.setattr("gymrl.agents.engines.vllm_server.COMMAND_SECONDS", 0.2)
    with pytest.raises(
        EngineFault, match=rf"{server.url} does not answer \(no answer in 0\.2 s\): start it again"
    ):
        open_engine(EngineSettings("vllm-server", url=server.url))
