"""Policies by name, and chat completions against a real HTTP server on this machine."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from gymrl.agents.engines.base import EngineFault, Sampling
from gymrl.agents.engines.openai import ChatAgent, read_tool_calls, split_url
from gymrl.agents.evaluation import evaluate, evaluation_jobs
from gymrl.agents.players import Agent, Job, ModelAgent, Usage
from gymrl.agents.policies import UnknownPolicy, fitting_slots, open_policy
from gymrl.agents.records import Episode
from gymrl.agents.rendering import RenderingFault
from gymrl.agents.rollout import RolloutSettings, rollout
from gymrl.envs import Action, Environment, Message, Observation, Tool, register
from gymrl.envs.workers import EnvPool
from gymrl.rl.tiny import make_model, make_tokenizer, save_policy


class Echo(Environment):
    """Say the word shown."""

    max_turns = 2

    def reset(self) -> str:
        self.word = f"word{self.rng.randrange(100)}"
        return f"Say {self.word}."

    def step(self, action: Action) -> tuple[Any, ...]:
        right = self.word in action.text
        return "Right." if right else f"No, {self.word}.", float(right), right

    def oracle(self) -> str:
        return self.word


ADD = Tool(
    "add", "Adds.", {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}
)


class Calculator(Environment):
    """Call the tool, then repeat its result."""

    def reset(self) -> str:
        self.sum: int | None = None
        return "What is 2 + 3?"

    def step(self, action: Action) -> tuple[Any, ...]:
        for call in action.tool_calls:
            self.sum = call.arguments["a"] + call.arguments["b"]
            return Message("tool", str(self.sum), name="add"), 0.0, False
        return "Done.", float(action.text == "5" and self.sum == 5), True

    def tools(self) -> tuple[Tool, ...]:
        return (ADD,)


register("test/Echo-v0", Echo)
register("test/Calculator-v0", Calculator)

Reply = tuple[int, Any]
"""An HTTP status and a JSON value, raw bytes, or None for a connection that is dropped."""


class Server:
    """A small OpenAI-compatible server; `answer` maps a request's body to a Reply."""

    def __init__(self, answer: Callable[[dict[str, Any]], Reply]) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.reply(200, {"data": [{"id": "canned"}, {"id": "other"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.requests.append(body)
                outer.keys.append(self.headers.get("authorization"))
                self.reply(*answer(body))

            def reply(self, status: int, value: Any) -> None:
                if value is None:
                    self.close_connection = True
                    self.connection.shutdown(2)
                    return
                data = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                if status == 429:
                    self.send_header("retry-after", "0.01")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                return

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[dict[str, Any]], Reply]], Server]]:
    servers: list[Server] = []

    def start(answer: Callable[[dict[str, Any]], Reply]) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def said(text: str | None, calls: list[Any] | None = None, finish: str = "stop") -> Reply:
    message = {"role": "assistant", "content": text, **({"tool_calls": calls} if calls else {})}
    return 200, {
        "choices": [{"message": message, "finish_reason": finish}],
        "usage": {"completion_tokens": 7},
    }


def echo(body: dict[str, Any]) -> Reply:
    return said(body["messages"][-1]["content"].split()[-1].strip("."))


async def play(agent: Agent, count: int = 6, env: str = "test/Echo-v0") -> list[Episode]:
    pool = EnvPool(env)
    jobs = evaluation_jobs([pool.task("test", index) for index in range(count)], 1, 0)
    _, episodes = await evaluate(agent, pool, jobs, RolloutSettings(concurrency=3))
    await pool.aclose()
    return episodes


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = make_tokenizer(["Say word12.", "No, word7."], 320)
    model = make_model(len(tokenizer), hidden=32, layers=2, heads=2, kv_heads=1, context=128, seed=1)
    return save_policy(tmp_path_factory.mktemp("policies") / "tiny", model, tokenizer)


# -- names -------------------------------------------------------------------------------------------------


async def test_scripted_policies() -> None:
    async with open_policy("oracle") as agent:
        assert all(episode.success for episode in await play(agent))
    async with open_policy("null") as agent:
        assert not any(episode.success for episode in await play(agent))
    assert open_policy("random").agent.name == "random"


async def test_a_checkpoint_plays_and_its_context_caps(checkpoint: Path) -> None:
    opened = open_policy(str(checkpoint), sampling=Sampling(max_tokens=8), max_context=4096, slots=4)
    agent = opened.agent
    assert isinstance(agent, ModelAgent)
    assert agent.engine.max_context == 128
    assert agent.renderer.stop_ids == (2,) and agent.name == str(checkpoint)
    episodes = await play(agent)
    assert all(episode.valid and episode.tokens > 0 for episode in episodes)
    await opened.close()
    await opened.close()
    with pytest.raises(EngineFault, match="closed"):
        await play_one(agent)


async def play_one(agent: Agent) -> None:
    pool = EnvPool("test/Echo-v0")
    (episode,) = await rollout([Job(pool.task("test", 0))], agent, pool)
    await pool.aclose()
    raise EngineFault(episode.reason)


async def test_every_end_of_turn_id_of_the_generation_config_stops(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "two")
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 2]}')
    async with open_policy(str(folder)) as agent:
        assert isinstance(agent, ModelAgent)
        assert set(agent.renderer.stop_ids) == {0, 2}


def test_unknown_names_get_the_nearest(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "best" / "checkpoints" / "rl-10").mkdir(parents=True)
    (tmp_path / "a-file").write_text("")
    shutil.copy(checkpoint / "config.json", tmp_path / "runs" / "best" / "checkpoints" / "rl-10")
    for name, sentence in {
        "oracel": "unknown policy 'oracel': did you mean 'oracle'?",
        "zzzzzz": "unknown policy 'zzzzzz': a policy is oracle, random, null, a checkpoint folder, a hub name",
        "runs/bets": "unknown policy 'runs/bets': did you mean 'runs/best'?",
        "a-file": "is a file: give a checkpoint's folder",
        "runs/best": "holds no config.json: did you mean 'runs/best/checkpoints/rl-10'?",
        "runs/best/checkpoints/rl-1": "did you mean 'runs/best/checkpoints/rl-10'?",
    }.items():
        with pytest.raises(UnknownPolicy) as caught:
            open_policy(name)
        assert sentence in str(caught.value) and "\n" not in str(caught.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        UnknownPolicy, match=r"holds no config\.json: give a checkpoint in Hugging Face format"
    ):
        open_policy("empty")
    with pytest.raises(ValueError, match="unknown engine 'cobol'"):
        open_policy(str(checkpoint), engine="cobol")


def test_broken_checkpoints_name_the_mend(checkpoint: Path, tmp_path: Path) -> None:
    def spoilt(name: str, spoil: Callable[[Path], Any]) -> str:
        folder = shutil.copytree(checkpoint, tmp_path / name)
        spoil(folder)
        return str(folder)

    def lose_a_weight(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        weights = load_file(folder / "model.safetensors")
        weights.pop("model.norm.weight")
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    def cut(folder: Path) -> None:
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[: len(data) // 2])

    cases: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
        "config": (lambda f: (f / "config.json").write_text("{"), EngineFault, "config.json cannot be read"),
        "cut": (cut, EngineFault, "cannot be loaded"),
        "gone": (lambda f: (f / "model.safetensors").unlink(), EngineFault, "cannot be loaded"),
        "lacking": (lose_a_weight, EngineFault, r"lacks 1 weights, model\.norm\.weight among them"),
        "words": (
            lambda f: [path.unlink() for path in f.glob("tokenizer*")], EngineFault, "put tokenizer.json",
        ),
        "template": (lambda f: (f / "chat_template.jinja").unlink(), RenderingFault, "has no chat template"),
    }  # fmt: skip
    for name, (spoil, kind, sentence) in cases.items():
        with pytest.raises(kind, match=sentence) as caught:
            open_policy(spoilt(name, spoil))
        assert "\n" not in str(caught.value)


def test_slots_fit_the_memory(checkpoint: Path) -> None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(checkpoint)
    assert fitting_slots(config, 128, "float32", 7) == 7
    config.num_hidden_layers = 10**9
    with pytest.raises(EngineFault, match="lower max_context"):
        fitting_slots(config, 4096, "float32", 7)


# -- chat completions --------------------------------------------------------------------------------------


def test_urls() -> None:
    assert split_url("http://host:8000") == ("http://host:8000/v1", "")
    assert split_url("http://host:8000/v1/#org/model") == ("http://host:8000/v1", "org/model")
    assert split_url("https://host/api/openai") == ("https://host/api/openai", "")
    with pytest.raises(EngineFault, match="names no host"):
        split_url("http://")


async def test_a_server_plays(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server = serve(echo)
    async with open_policy(server.url, sampling=Sampling(0.5, 0.9, max_tokens=11)) as agent:
        episodes = await play(agent)
        assert isinstance(agent, ChatAgent)
        assert agent.usage == Usage(6, 0, 7 * 6) and agent.name == f"{server.url}/v1#canned"
    assert all(episode.success for episode in episodes)
    assert all(not turn.completion_ids and turn.stop == "stop" for e in episodes for turn in e.turns)
    assert set(server.keys) == {"Bearer secret"}
    for request in server.requests:
        assert (request["model"], request["temperature"], request["top_p"]) == ("canned", 0.5, 0.9)
        assert request["max_tokens"] == 11 and "tools" not in request
    assert len({request["seed"] for request in server.requests}) == 6
    async with open_policy(f"{server.url}#other") as agent:
        await play(agent, 1)
    assert server.requests[-1]["model"] == "other"


async def test_the_embedded_engine_behind_http_says_what_it_says_in_process(
    checkpoint: Path, serve: Any
) -> None:
    opened = open_policy(str(checkpoint), sampling=Sampling(temperature=0.0, max_tokens=8), slots=4)
    agent = opened.agent
    assert isinstance(agent, ModelAgent)

    def answer(body: dict[str, Any]) -> Reply:
        from gymrl.agents.engines.base import GenerationRequest

        messages = [Message(m["role"], m["content"]) for m in body["messages"]]
        ids = agent.renderer.encode(agent.renderer.text(messages, ()))
        sampling = Sampling(body["temperature"], max_tokens=body["max_tokens"], seed=body["seed"])
        done = asyncio.run(agent.engine.generate(GenerationRequest(ids, sampling, agent.renderer.stop_ids)))
        return said(agent.renderer.spoken(done.ids), finish=done.stop)

    server = serve(answer)
    async with open_policy(server.url, sampling=Sampling(temperature=0.0, max_tokens=8)) as remote:
        over_http = await play(remote)
    here = await play(agent)
    assert [e.turns[0].text for e in over_http] == [e.turns[0].text for e in here]
    assert {turn.stop for e in over_http for turn in e.turns} <= {"stop", "length"}
    await opened.close()


async def test_trouble_that_passes_is_waited_out(serve: Any) -> None:
    count = 0
    lock = threading.Lock()
    troubles: list[Reply] = [
        (500, {"error": {"message": "oh"}}), (429, {"error": "slow down"}), (200, b"{broken"), (0, None), (503, b""),
        (200, {"choices": []}), (200, {"choices": [{"message": None}]}),
    ]  # fmt: skip

    def answer(body: dict[str, Any]) -> Reply:
        nonlocal count
        with lock:
            count += 1
            if count % 3:
                return troubles[count % len(troubles)]
        return echo(body)

    server = serve(answer)
    agent = ChatAgent(server.url, Sampling(), patience=0.001)
    episodes = [(await play(agent, 1))[0] for _ in range(5)]
    await agent.close()
    assert all(episode.success for episode in episodes)
    assert count == 15


async def test_a_server_that_stays_broken_makes_invalid_episodes(serve: Any) -> None:
    server = serve(lambda body: (502, {"error": {"message": "bad gateway"}}))
    agent = ChatAgent(server.url, Sampling(), patience=0.001)
    episodes = await play(agent, 12)
    await agent.close()
    assert len({episode.reason for episode in episodes}) == 1
    assert episodes[0].reason.startswith(
        f"engine: {server.url}/v1 gave no answer in 6 tries (HTTP 502: bad gateway)"
    )
    assert "check that the server is running" in episodes[0].reason
    assert len(server.requests) < 36  # after the first three, nobody waits for it: not 12 times 6


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"error": {"message": "overloaded"}}, "overloaded"),
        ({"error": None, "choices": []}, '{"error": null, "choices": []}'),
        ({"choices": [{"message": {}}], "usage": 3}, '{"choices": [{"message": {}}], "usage": 3}'),
        (b"<html>\n<title>Welcome</title>", "<html> <title>Welcome</title>"),
        (b"", "nothing"),
    ],
)
async def test_an_answer_that_is_no_completion_is_shown(serve: Any, answer: Any, words: str) -> None:
    server = serve(lambda body: (200, answer))
    agent = ChatAgent(server.url, Sampling(), patience=0.001)
    (episode,) = await play(agent, 1)
    await agent.close()
    assert f"in 6 tries (no chat completion but: {words}): check" in episode.reason


async def test_a_server_that_goes_away(serve: Any) -> None:
    server = Server(echo)
    agent = ChatAgent(server.url, Sampling(), patience=0.001)
    server.close()
    episodes = await play(agent, 4)
    await agent.close()
    assert all(
        episode.reason.startswith("engine: ") and "in 6 tries" in episode.reason for episode in episodes
    )
    with pytest.raises(EngineFault, match="no server answers at"):
        open_policy(server.url)


async def test_refusals_are_not_tried_again(serve: Any) -> None:
    for status, message, reason in [
        (401, "bad key", "refused the key: set OPENAI_API_KEY"),
        (404, "no such model", "has no model 'canned'"),
        (400, "temperature is 0 to 2", "refused the request (HTTP 400: temperature is 0 to 2)"),
        (400, "this model's maximum context length is 10 tokens", "policy: the first prompt does not fit"),
    ]:
        server = serve(lambda body, s=status, m=message: (s, {"error": {"message": m}}))
        async with open_policy(server.url) as agent:
            (episode,) = await play(agent, 1)
        assert not episode.valid and reason in episode.reason and len(server.requests) == 1


async def test_servers_that_want_other_fields(serve: Any) -> None:
    def answer(body: dict[str, Any]) -> Reply:
        if "max_tokens" in body:
            return 400, {"error": {"message": "'max_tokens' is gone, use 'max_completion_tokens'"}}
        if "seed" in body:
            return 422, {"detail": "seed: extra fields not permitted"}
        return echo(body)

    server = serve(answer)
    async with open_policy(server.url) as agent:
        episodes = await play(agent, 4)
    assert all(episode.success for episode in episodes)
    assert "max_completion_tokens" in server.requests[-1]


async def test_tool_calls_go_there_and_back(serve: Any) -> None:
    def answer(body: dict[str, Any]) -> Reply:
        assert body["tools"] == [ADD.schema()]
        if body["messages"][-1]["role"] == "tool":
            return said(body["messages"][-1]["content"])
        function = {"name": "add", "arguments": '{"a": 2, "b": 3}'}
        return said(None, [{"id": "call-9", "type": "function", "function": function}], "tool_calls")

    server = serve(answer)
    async with open_policy(server.url) as agent:
        (episode,) = await play(agent, 1, "test/Calculator-v0")
    assert episode.success and episode.turns[0].tool_calls[0].arguments == {"a": 2, "b": 3}
    assert not episode.turns[0].void
    _, assistant, tool = server.requests[-1]["messages"]
    assert assistant["tool_calls"][0]["id"] == tool["tool_call_id"] == "call-9"
    assert json.loads(assistant["tool_calls"][0]["function"]["arguments"]) == {"a": 2, "b": 3}


def test_tool_calls_that_are_not_complete_are_none() -> None:
    def entry(name: Any, arguments: Any) -> Any:
        return {"id": "x", "function": {"name": name, "arguments": arguments}}

    calls, broken = read_tool_calls(
        [entry("a", '{"x": 1}'), entry("b", "{"), entry("c", "[1]"), entry(None, "{}"), 3, entry("d", "")], 0
    )
    assert [(call.name, call.arguments) for call in calls] == [("a", {"x": 1}), ("d", {})]
    assert broken == ["b({)", "c([1])", "?({})", "?(None)"]


async def test_an_unanswered_tool_call_is_closed_before_the_user_speaks(serve: Any) -> None:
    function = {"name": "add", "arguments": "{}"}
    server = serve(lambda body: said("hm \ud800", [{"id": "c1", "type": "function", "function": function}]))
    agent = ChatAgent(server.url, Sampling())
    pool = EnvPool("test/Echo-v0")
    env = await pool.open()
    player = agent.player(Job(pool.task("test", 0)), None)
    first = await player.act(Observation.of("one"), env)
    await player.act(Observation((Message("user", "two", images=(b"\x89PNG",)),)), env)
    await agent.close()
    await pool.aclose()
    assert first.text == "hm ?"
    roles = [message["role"] for message in server.requests[-1]["messages"]]
    assert roles == ["user", "assistant", "tool", "user"]
    assert server.requests[-1]["messages"][-1]["content"][1]["image_url"]["url"].startswith(
        "data:image/png;base64,"
    )


def test_the_engine_belongs_to_what_a_policy_is_where_one_of_ours_serves_it():
    from gymrl.agents.policies import serving_engine

    for name in ("folder/of/a/checkpoint", "OWNER/MODEL"):
        assert serving_engine(name, "vllm") == "vllm" != serving_engine(name, "transformers")
    assert serving_engine("http://host", "vllm-server") == "vllm-server"
    assert serving_engine("http://host", "transformers") == serving_engine("oracle", "transformers") == ""
