"""Gymnasium's environments as ours, and OpenEnv in both directions, with openenv-core at the other end."""

from __future__ import annotations

import asyncio
import importlib
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from gymrl.agents.players import Job, ScriptedAgent
from gymrl.agents.rollout import rollout
from gymrl.envs import Action, Environment, EnvironmentFault, Tool, ToolCall, make, register
from gymrl.envs.adapters import acting, showing
from gymrl.envs.check import Settings, check
from gymrl.envs.processes import ProcessHandle
from gymrl.envs.workers import EnvPool

ID, OPEN = "gymrl/Gymnasium-v0", "gymrl/OpenEnv-v0"
WORLDS = "adapted_worlds"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def until(holds, seconds=60.0):
    """Wait until a condition holds; a busy machine has a minute for it."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def played(env, choose, index=0):
    observation, _ = env.reset(options={"index": index})
    seen, total, over = [observation.text], 0.0, False
    while not over:
        observation, reward, terminated, truncated, info = env.step(choose(env))
        seen.append(observation.text)
        total, over = total + reward, terminated or truncated
    return seen, total, terminated, truncated, info


# -- Gymnasium ---------------------------------------------------------------------------------------------------


def test_the_example_keeps_the_laws():
    settings = Settings(seconds=0.5, tasks=6, split_tasks=60, resets=200, garbage=100)
    laws = ["globals", "splits", "players", "rewards", "garbage", "endings", "close", "gymnasium"]
    report = check(ID, laws=laws, settings=settings, isolate=False)
    assert report.sound, report.verdicts


@pytest.mark.parametrize("index", range(5))
def test_lakes_show_their_map_and_have_an_oracle(index):
    env = make(ID, split="test")
    seen, total, terminated, truncated, _ = played(env, lambda env: env.oracle(), index)
    assert "[S]" in seen[0] and total == 1.0 and terminated and not truncated
    env.close()


def test_taxi_by_names_and_numbers():
    env = make(
        ID,
        world="Taxi-v4",
        actions=["down", "up", "right", "left", "take", "drop"],
        observation="ansi",
        success=0,
    )
    first, _ = env.reset(options={"index": 4})
    assert first.text.splitlines()[0].startswith("Write one action") and "+---------+" in first.text
    assert "\x1b" not in first.text and "[" in first.text
    one = env.step("I go\n\n**UP**")
    env.reset(options={"index": 4})
    assert env.step("<answer>1</answer>")[:2] == one[:2] and one[1] == -1.0 and not one[4]["void"]
    text, reward, terminated, truncated, info = env.step("fly")
    assert info["void"] and reward == 0.0 and not terminated and not truncated and "down, up" in text.text
    env.close()


def test_the_same_task_is_the_same_world_and_seeds_stay_private():
    before = random.getstate(), np.random.get_state()[1].tolist()
    env, other = make(ID, world="Taxi-v4"), make(ID, world="Taxi-v4")
    shown = [env.reset(options={"index": index})[0].text for index in range(20)]
    assert [other.reset(options={"index": index})[0].text for index in reversed(range(20))] == shown[::-1]
    assert len(set(shown)) > 10
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_a_time_limit_truncates_and_does_not_terminate():
    env = make(
        ID, world="CliffWalking-v1", make={"max_episode_steps": 3}, actions=["up", "right", "down", "left"]
    )
    seen, total, terminated, truncated, info = played(env, lambda env: "up")
    assert truncated and not terminated and total == -3.0 and info.get("cut") is None and len(seen) == 4
    short = make(ID, world="CliffWalking-v1", max_turns=2)
    assert played(short, lambda env: "0")[4]["cut"] == "max_turns"


def test_blackjack_with_functions_of_the_users():
    env = make(
        ID, world="Blackjack-v1", observation=f"{WORLDS}:blackjack", actions=f"{WORLDS}:hit_or_stick",
        oracle=f"{WORLDS}:stick", prompt="Say 'hit me' or 'enough'.",
    )  # fmt: skip
    observation, _ = env.reset(options={"index": 0})
    assert observation.messages[0].text == "Say 'hit me' or 'enough'."
    assert "the dealer shows" in observation.messages[1].text
    assert env.step("what?")[4]["void"]
    assert env.step("Enough")[2] and env.world.oracle() == "0"


def test_a_text_world_of_the_users_is_played_by_rollouts():
    pool = EnvPool(ID, {"world": f"{WORLDS}:adapted/Secret-v0", "oracle": f"{WORLDS}:word"})
    agent = ScriptedAgent("oracle")
    episodes = asyncio.run(rollout([Job(pool.task("train", index)) for index in range(8)], agent, pool))
    pool.close()
    assert all(episode.success for episode in episodes), episodes
    info = make(ID, world="adapted/Secret-v0").reset(options={"index": 0})[1]["gymnasium"]
    assert set(info) == {"seed"} and 0 <= info["seed"] < 2**63
    narrow = make(ID, world="adapted/Secret-v0", seed_bits=32).reset(options={"index": 0})[1]["gymnasium"]
    assert 0 <= narrow["seed"] < 2**32


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("string", "a reward is a finite number, not '1.0'"),
        ("nan reward", "a reward is a finite number"),
        ("object", "an observation that is a object has no text: give observation"),
        ("nan", "NaN is no observation"),
        ("large", "too large to be a text: give observation = 'image'"),
        ("terminated", "both have to be bools"),
    ],
)
def test_a_faulty_world_is_a_fault_in_one_sentence(trouble, said):
    env = make(ID, world=f"{WORLDS}:adapted/Secret-v0", make={"trouble": trouble})
    env.reset(options={"index": 0})
    with pytest.raises(EnvironmentFault) as raised:
        env.step("hello")
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_tasks_of_the_users_make_the_world():
    env = make(ID, world=f"{WORLDS}:adapted/Secret-v0", tasks=f"{WORLDS}:seeds")
    env.reset(options={"index": 7})
    assert env.world.env.unwrapped.trouble == "none 7"
    assert env.world.describe_task(env.task_spec(3)) == '{"trouble": "none 3"}'


def test_pixels_are_png_and_actions_json():
    image = pytest.importorskip("PIL.Image")
    env = make(ID, world=f"{WORLDS}:adapted/Pixels-v0", observation="image")
    observation, _ = env.reset(options={"index": 0})
    (png,) = observation.messages[-1].images
    assert np.array_equal(np.asarray(image.open(io.BytesIO(png))), env.world.env.unwrapped.frame)
    for void in ("", "up", "[1, 2]", '{"move": [0, 0]}', '{"move": [0, 2], "jump": 0}',
                 '{"move": [0, 0], "jump": true}', '{"move": [NaN, 0], "jump": 0}', "[" * 100_000,
                 "9" * 10_000):  # fmt: skip
        assert env.step(void)[4]["void"], void
    result = env.step('I jump.\n{"move": [0.5, -1], "jump": 1}')
    assert result[1] == 1.0 and result[2]
    rendered = make(ID, world="adapted/Pixels-v0", observation="render")
    assert rendered.reset(options={"index": 0})[0].messages[-1].images


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(5, start=-2), spaces.MultiDiscrete([3, 4]), spaces.MultiBinary(3), spaces.Box(-2, 2, (2, 2)),
        spaces.Box(0, 255, (3,), np.uint8), spaces.Text(8),
        spaces.Dict({"a": spaces.Discrete(3), "b": spaces.Tuple((spaces.Discrete(2), spaces.Box(0, 1, (1,))))}),
    ],
    ids=str,
)  # fmt: skip
def test_every_random_action_is_written_and_read_back(space):
    rng, state = random.Random(0), str(space.np_random.bit_generator.state)
    for _ in range(50):
        action = acting.sample(space, rng)
        text = acting.write(space, action)
        if isinstance(space, spaces.Text) and not text.strip():
            continue
        assert space.contains(acting.parse(space, text))
        assert acting.write(space, acting.parse(space, text)) == text
    assert str(space.np_random.bit_generator.state) == state


def test_observations_as_text():
    value = {
        "cards": (np.int64(3), True),
        "at": np.array([0.123456789, -1e-9, np.inf]),
        "name": "Ann",
        "deep": {"a": []},
    }
    assert showing.as_text(value) == "cards: (3, True)\nat: [0.123457, -1e-09, inf]\nname: Ann\ndeep: {a: []}"
    assert showing.plain("a\x1b[34;1mB\x1b[0mc\x1b[2K") == "a[B]c"
    with pytest.raises(showing.Unshown, match="no picture"):
        showing.as_png(np.zeros((2, 2, 3)))


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"world": "FrozenLake-v7"}, "FrozenLake"),
        ({"world": "FrozenLak-v1"}, "did you mean 'FrozenLake-v1'?"),
        ({"world": "no_such_module:A-v0"}, "no module 'no_such_module' on Python's path, nor in the w"),
        ({"world": "Taxi-v4", "actions": ["a", "b"]}, "has 6 actions, and actions names 2"),
        ({"world": "Taxi-v4", "actions": ["a"] * 6}, "texts that differ"),
        ({"world": f"{WORLDS}:adapted/Secret-v0", "actions": ["a"]}, "Discrete"),
        ({"world": "Taxi-v4", "make": {"size": 3}}, "cannot be made with size = 3"),
        ({"world": f"{WORLDS}:adapted/Secret-v0", "observation": "ansi"}, "ansi"),
        ({"observation": "ansy"}, "did you mean 'ansi'?"),
        ({"oracle": "walk"}, "write module:function"),
        ({"oracle": f"{WORLDS}:wlk"}, "cannot be imported"),
        ({"make": [1]}, "a table of keyword arguments"),
        ({"world": "gymrl/CodeInterpreter-v0"}, "an environment of gymrl already"),
        ({"max_turns": 0}, "max_turns"),
    ],
)
def test_bad_parameters_are_said_in_one_sentence(params, said):
    with pytest.raises(ValueError) as raised:
        make(ID, **params)
    assert said in str(raised.value) and "\n" not in str(raised.value)


# -- OpenEnv: ours served ----------------------------------------------------------------------------------------

pytest.importorskip("starlette")
pytest.importorskip("websockets")
if find_spec("openenv") is None:
    pytest.skip("needs openenv-core", allow_module_level=True)
import uvicorn  # noqa: E402

from gymrl.envs.adapters import openenv_server  # noqa: E402
from gymrl.envs.adapters.openenv_client import socket_url  # noqa: E402


def their_client(**arguments):
    from openenv.core import GenericEnvClient  # takes seconds, which a collection of tests need not

    return GenericEnvClient(**arguments)


class Teller(Environment):
    """Call `tell` to win. Says how often it was closed."""

    max_turns = 3
    closed = 0
    sizes = {"train": 5, "val": 5, "test": 5}  # noqa: RUF012

    def reset(self):
        return f"task {self.task.split} {self.task.index}"

    def step(self, action):
        if action.text == "crash":
            raise RuntimeError("the teller is gone")
        called = [call.arguments.get("what") for call in action.tool_calls if call.name == "tell"]
        return f"called {called}", float(called == ["all"]), called == ["all"]

    def tools(self):
        return (Tool("tell", "tells", {"type": "object", "properties": {"what": {"type": "string"}}}),)

    def recognises(self, action):
        return bool(action.text)

    def close(self):
        type(self).closed += 1


register("test/Teller-v0", Teller)


@contextmanager
def running(app):
    """A server in a thread, on a free port; gives its URL."""
    config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            until(lambda: server.started)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
    assert not thread.is_alive()


def test_their_client_plays_our_environment_and_many_at_once():
    app = openenv_server.create_app(ID, split="test")
    env = make(ID, split="test")

    async def episode(url, index):
        reference, _ = env.reset(options={"index": index})
        async with their_client(base_url=url) as client:
            result = await client.reset(index=index)
            assert result.observation["text"] == reference.text and result.reward is None and not result.done
            steps, total = 0, 0.0
            while not result.done:
                action = oracles[index][steps]
                result, steps = await client.step({"text": action}), steps + 1
                total += result.reward
                await asyncio.sleep(0)
            state = await client.state()
        assert total == 1.0 and not result.observation["truncated"]
        assert (state["step_count"], state["split"], state["index"]) == (steps, "test", index)

    oracles = {}
    for index in range(12):
        env.reset(options={"index": index})
        said, over = [], False
        while not over:
            said.append(env.oracle().text)
            over = env.step(said[-1])[2]
        oracles[index] = said

    async def all_of_them(url):
        await asyncio.gather(*(episode(url, index) for index in range(12)))

    with running(app) as url:
        asyncio.run(all_of_them(url))
        pool = app.state.pool
        until(lambda: pool.closed == pool.opened)
        assert pool.opened == 12


def test_seeds_tools_and_bad_input():
    with (
        running(openenv_server.create_app("test/Teller-v0")) as url,
        their_client(base_url=url).sync() as client,
    ):
        with pytest.raises(RuntimeError, match="send reset first"):
            client.step({"text": "a"})
        assert (
            client.reset(seed=8).observation["text"]
            == client.reset(index=3).observation["text"]
            == "task train 3"
        )
        assert client.reset(split="val", index=1).observation["tools"][0]["function"]["name"] == "tell"
        for bad, said in [
            ({"index": 5}, "has 5 tasks"), ({"index": "a"}, "whole number"), ({"split": "tset"}, "did you mean 'test'"),
            ({"sed": 1}, "not 'sed'"), ({"seed": -1}, "0 or more"), ({"split": [1]}, "split"),
        ]:  # fmt: skip
            with pytest.raises(RuntimeError, match=said):
                client.reset(**bad)
        client.reset(seed=0)
        for action in ({"txt": "a"}, {"text": 1}, {"tool_calls": 3}, {"tool_calls": [{"arguments": {}}]}):
            with pytest.raises(RuntimeError, match="VALIDATION_ERROR"):
                client.step(action)
        assert client.step({"text": " \udcff", "metadata": {}}).observation["void"] is False
        assert client.step({}).observation["void"]
        result = client.step({"tool_calls": [{"name": "tell", "arguments": {"what": "all"}}]})
        assert result.done and result.reward == 1.0 and result.observation["text"] == "called ['all']"
        with pytest.raises(RuntimeError, match="reset first"):
            client.step({"text": "a"})
        client.reset(seed=0)
        cut = [client.step({"text": "a"}) for _ in range(3)][-1]
        assert cut.done and cut.observation["truncated"]
        client.reset(seed=0)
        with pytest.raises(RuntimeError, match="the teller is gone"):
            client.step({"text": "crash"})
        assert client.reset(seed=1).observation["text"] == "task train 1"  # another world, the same session


def test_messages_that_are_none_and_too_many_sessions():
    import httpx
    from openenv.core.env_server import types
    from websockets.sync.client import connect

    app = openenv_server.create_app("test/Teller-v0", sessions=1)
    with running(app) as url:
        closed = Teller.closed
        with connect(socket_url(url), proxy=None) as one:
            for raw in (
                "{",
                "[" * 100_000,
                b"\xff\xfe",
                "3",
                '{"type": "fly"}',
                '{"type": "reset", "data": 3}',
            ):
                one.send(raw)
                assert json.loads(one.recv())["type"] == "error", raw
            one.send('{"type": "reset", "data": {}}')
            assert json.loads(one.recv())["type"] == "observation"
            with connect(socket_url(url), proxy=None) as two:
                assert json.loads(two.recv())["data"]["code"] == "CAPACITY_REACHED"
            one.socket.shutdown(socket.SHUT_RDWR)  # gone without a word
        until(lambda: Teller.closed == closed + 1)
        with httpx.Client(base_url=url, trust_env=False) as http:
            types.SchemaResponse.model_validate(http.get("/schema").json())
            types.EnvironmentMetadata.model_validate(http.get("/metadata").json())
            types.State.model_validate(http.get("/state").json())
            assert http.get("/health").json() == {"status": "healthy"}
            assert http.post("/reset", json={"index": 2}).json()["observation"]["text"] == "task train 2"
            assert http.post("/reset", content=b"{").status_code == 422
            assert http.post("/reset", json={"index": 9}).status_code == 422
            assert "/ws" in http.post("/step", json={}).json()["detail"]
        assert Teller.closed == closed + 2


def test_the_command_serves_and_ends_on_ctrl_c():
    words = [sys.executable, "-m", "gymrl.cli.main", "envs", "serve", ID, "max_turns=9", "--port", "0"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        url = next(word for word in process.stdout.readline().split() if word.startswith("http://"))
        with their_client(base_url=url, connect_timeout_s=60).sync() as client:
            assert "frozen lake" in client.reset(seed=0).observation["text"]
            taken = [*words[:-1], url.rpartition(":")[2]]
            again = subprocess.run(taken, capture_output=True, text=True, timeout=120)
            assert again.returncode != 0 and "take another --host or --port" in again.stderr
            process.send_signal(signal.SIGINT)  # while a session is open
            out, err = process.communicate(timeout=120)
        assert process.returncode == 0 and "ended" in out and "Traceback" not in err, err
    finally:
        process.kill()
        process.wait()


# -- OpenEnv: theirs played --------------------------------------------------------------------------------------


def their_server():
    return importlib.import_module("guess_server").create_app()


def their_closed():
    return importlib.import_module("guess_server").GuessEnvironment.closed


def test_their_server_is_played_as_an_environment():
    with running(their_server()) as url:
        env = make(
            OPEN, url=url, action="", observation="hint", prompt="Guess.", reset={"greeting": "Hello."}
        )
        observation, _ = env.reset(options={"index": 0})
        assert [message.text for message in observation.messages] == ["Guess.", "Guess. Hello."]
        for void in ("", "five", "3", "[" * 50_000):
            assert env.step(void)[4]["void"]
        text, reward, terminated, *_ = env.step('{"nummer": 3}')
        assert "nummer" in text.text and reward == 0.0 and not terminated
        low, high, terminated = 1, 9, False
        while not terminated:
            guess = (low + high) // 2
            text, reward, terminated, truncated, _ = env.step(json.dumps({"number": guess}))
            low, high = (guess + 1, high) if text.text == "Higher." else (low, guess - 1)
        assert text.text == "Right." and reward == 1.0 and not truncated
        closed = their_closed()
        env.close()
        until(lambda: their_closed() == closed + 1)
        plain = make(OPEN, url=url, action="number")
        assert plain.reset(options={"index": 0})[0].text == "hint: Guess. \ntries: 0"
        assert plain.step("3")[0].text.endswith("tries: 1")  # pydantic reads the number
        plain.reset(options={"index": 0})
        with pytest.raises(EnvironmentFault, match="unlucky"):
            plain.step("13")
        plain.close()


def test_the_same_task_is_the_same_world_there_and_many_are_played_at_once():
    async def first(pool, index):
        handle = await pool.open()
        await handle.reset(pool.task("train", index))
        texts = [(await handle.step(Action(str(number)))).observation.text for number in (5,)]
        await pool.release(handle)
        return texts

    async def both(url):
        pool = EnvPool(OPEN, {"url": url, "action": "number"})
        one = await asyncio.gather(*(first(pool, index) for index in range(8)))
        other = await asyncio.gather(*(first(pool, index) for index in range(8)))
        await pool.aclose()
        return one, other

    with running(their_server()) as url:
        one, other = asyncio.run(both(url))
    assert one == other and len({str(texts) for texts in one}) > 1


def test_ours_is_played_through_the_wire_as_it_is():
    with running(openenv_server.create_app("test/Teller-v0")) as url:
        env = make(OPEN, split="val", url=url, send="task", max_turns=9)
        observation, _ = env.reset(options={"index": 2})
        assert observation.text == "task val 2" and observation.tools[0].name == "tell"
        result = env.step(Action("", (ToolCall("tell", {"what": "all"}, "c"),)))
        assert result[1] == 1.0 and result[2] and not result[4]["void"]
        env.reset(options={"index": 2})
        last = [env.step("a") for _ in range(3)][-1]
        assert last[3] and not last[2]
        with pytest.raises(EnvironmentFault, match="has 5 tasks"):
            env.reset(options={"index": 7})
        env.close()


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (
            '{"type": "observation", "data": {"observation": "a", "reward": "1.0"}}',
            "finite number, not '1.0'",
        ),
        ('{"type": "observation", "data": {"observation": "a", "reward": NaN}}', "finite number, not nan"),
        ('{"type": "observation", "data": {"observation": "a", "done": "yes"}}', "says done = 'yes'"),
        ('{"type": "observation", "data": {"reward": 1}}', "with no observation"),
        ('{"type": "observation", "data": {"observation": NaN}}', "NaN is no observation"),
        (
            '{"type": "observation", "data": {"observation": {"messages": [1], "tools": []}}}',
            "cannot be read",
        ),
        ('{"type": "error", "data": {"message": "gone", "code": "EXECUTION_ERROR"}}', "refused step: gone"),
        ("[", "what is no JSON"),
        ("3", "with no observation"),
        (None, "was lost"),
    ],
)
def test_what_an_odd_server_answers_is_a_fault(said, why):
    from websockets.sync.server import serve

    def answer(connection):
        connection.recv()
        connection.send('{"type": "observation", "data": {"observation": {"hint": "Go."}}}')
        connection.recv()
        if said is not None:
            connection.send(said)
            connection.recv()

    with serve(answer, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        env = make(OPEN, url=f"http://127.0.0.1:{server.socket.getsockname()[1]}")
        assert env.reset(options={"index": 0})[0].text == "Go."
        with pytest.raises(EnvironmentFault) as raised:
            env.step("hello")
        assert why in str(raised.value) and "\n" not in str(raised.value)
        assert env.world.session._socket is None
        server.shutdown()


def test_a_lost_server_is_an_invalid_episode():
    with running(their_server()) as url:
        env = make(OPEN, url=url, action="number", timeout=20)
        env.reset(options={"index": 0})
    with pytest.raises(EnvironmentFault, match=r"was lost|refused|did not answer"):
        env.step("5")
    with pytest.raises(EnvironmentFault, match="cannot be reached"):
        env.reset(options={"index": 0})
    env.close()


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({}, "give url"),
        ({"url": "ftp://x"}, "write http://HOST:PORT"),
        ({"url": "http://x:99999999"}, "write http://HOST:PORT"),
        ({"url": "http://x", "send": "all"}, "'seed' or 'task'"),
        ({"url": "http://x", "action": "no_such:f"}, "cannot be imported"),
    ],
)
def test_bad_parameters_of_openenv(params, said):
    with pytest.raises(ValueError, match=said):
        make(OPEN, **params)


def test_addresses():
    assert socket_url("localhost:8000") == socket_url("http://localhost:8000/") == "ws://localhost:8000/ws"
    assert socket_url("https://a.b/c/ws") == "wss://a.b/c/ws"


def test_gymnasium_knows_the_adapter():
    env = gymnasium.make("gymrl.envs:gymrl/Gymnasium-v0", split="val")
    assert "frozen lake" in env.reset(seed=3)[0].text
    env.close()
    taxi = gymnasium.make("gymrl.envs:gymrl/Gymnasium-v0", world="Taxi-v4")
    assert taxi.reset(seed=3)[0].messages[-1].text.isdigit()
    taxi.close()


def test_quick_worlds_are_played_on_the_loop_and_others_in_threads() -> None:
    def runs(**params: object) -> str:
        pool = EnvPool("gymrl/Gymnasium-v0", params)
        try:
            return pool.runs
        finally:
            pool.close()

    assert (
        runs()
        == runs(world="Taxi-v4", quick=True)
        == runs(wrappers=[{"name": "turn_limit", "turns": 8}])
        == "inline"
    )
    assert runs(quick=False) == runs(world="Taxi-v4") == "thread"


async def test_a_world_of_the_users_in_worker_processes() -> None:
    params = {"world": "adapted_worlds:adapted/Secret-v0", "oracle": "adapted_worlds:word", "run": "process"}
    pool = EnvPool("gymrl/Gymnasium-v0", params, workers=2)
    try:
        jobs = [Job(pool.task("train", index)) for index in range(6)]
        episodes = await rollout(jobs, ScriptedAgent("oracle"), pool)
        assert all(episode.success for episode in episodes), episodes
        handle = await pool.open()
        assert isinstance(handle, ProcessHandle) and handle.worker.pid != os.getpid()
        task = pool.task("train", 0)
        there, _ = await handle.reset(task)
        assert there == (await pool.template.areset(task))[0]
        assert (await handle.step(Action(""))).info["void"]
        os.kill(handle.worker.pid, signal.SIGKILL)
        with pytest.raises(EnvironmentFault, match="SIGKILL"):
            await handle.step(Action("x"))
        again = await rollout(jobs[:2], ScriptedAgent("oracle"), pool)
        assert all(episode.success for episode in again), again
    finally:
        await pool.aclose()


async def test_worker_processes_have_to_find_the_world() -> None:
    """One that only this process has registered: the reason names the mend."""
    gymnasium.register("adapted/Here-v0", entry_point="gymnasium.envs.toy_text:FrozenLakeEnv")
    pool = EnvPool("gymrl/Gymnasium-v0", {"world": "adapted/Here-v0", "run": "process"})
    with pytest.raises(ValueError, match="write module:Id-v0 to import the module that registers it"):
        await pool.open()
    await pool.aclose()
    with pytest.raises(ValueError, match="run is one of inline, thread, process, without quick"):
        make("gymrl/Gymnasium-v0", run="process", quick=True)
    with pytest.raises(ValueError, match=r"run is one of inline, thread, process, .* not 'thraed'"):
        make("gymrl/Gymnasium-v0", run="thraed")
