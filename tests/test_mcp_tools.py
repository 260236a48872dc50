"""MCP servers as environments: real server processes, task files, checks, and what goes wrong."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import pytest

from gymrl.agents.players import Job, ScriptedAgent
from gymrl.agents.records import episode_to_json
from gymrl.agents.rollout import rollout
from gymrl.envs import Action, EnvironmentFault, ToolCall, make
from gymrl.envs.check import LAWS, Settings, check
from gymrl.envs.mcp_tools.calls import from_text, sendable
from gymrl.envs.mcp_tools.checks import made, number, right_answer, right_result
from gymrl.envs.mcp_tools.problems import KINDS, Accounts, _draw
from gymrl.envs.mcp_tools.records import Expected, Use
from gymrl.envs.records import TaskSpec
from gymrl.envs.workers import EnvPool

pytest.importorskip("mcp")
from gymrl.envs.mcp_tools import accounts
from gymrl.envs.mcp_tools.connection import counts

ID = "gymrl/Mcp-v0"
ROOT = Path(__file__).parents[1]
FOLDER = str(Path(accounts.__file__).parent)
ODD = [sys.executable, "-I", "-S", str(Path(__file__).with_name("odd_mcp_server.py")), FOLDER]
TASK = {"id": "t", "prompt": "Do it.", "split": "train", "check": {"answer": "right"}}


def tasks(tmp_path, *rows, name="tasks.jsonl"):
    path = tmp_path / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def call(name, **arguments):
    return Action("", (ToolCall(name, arguments, "c0"),))


def started(tmp_path, *trouble, task=TASK, **params):
    env = make(ID, tasks=tasks(tmp_path, task), server=[*ODD, *trouble], **params)
    env.reset(options={"index": 0})
    return env


def gone(pid):
    """Whether a process is gone, at once or within a time that a busy machine may need."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


# -- the tasks that come with it ---------------------------------------------------------------------------------


def test_an_episode_of_calls_and_an_answer():
    env = make(ID)
    shown, _ = env.reset(options={"index": 3})
    assert [m.role for m in shown.messages] == ["system", "user"]
    assert [tool.name for tool in shown.tools] == ["list_owners", "get_balance", "transfer"]
    assert shown.tools[1].parameters["required"] == ["owner"]
    shown, reward, terminated, truncated, info = env.step(call("list_owners"))
    assert shown.messages[0].role == "tool" and shown.messages[0].name == "list_owners" and ", " in shown.text
    assert (reward, terminated, truncated, info["void"]) == (0.0, False, False, False)
    shown, *_ = env.step(call("get_balance", owner="Nobody"))
    assert shown.text.startswith("Error: Nobody has no account")
    shown, *_, info = env.step("Let me think.")
    assert info["void"] and "<answer>" in shown.text
    assert env.step("<answer>nothing</answer>")[1:3] == (0.0, True)
    env.close()


def test_what_is_hidden_cannot_be_called():
    env = make(ID)
    env.reset(options={"index": 0})
    for name in ("open_bank", "all_balances", "nonsense"):
        assert "there is no tool" in env.step(call(name, balances={}))[0].text
    env.close()


def test_every_check_counts():
    for wrong in ("answer", "state"):
        env = make(ID)
        index = next(i for i in range(50) if _kind(env, i) == "empty")
        env.reset(options={"index": index})
        for use in env.world.asked.solution:
            env.step(call(use.tool, **use.arguments))
        if wrong == "state":  # money moved back and forth is fine, moved on is not
            end = dict(env.world.asked.state[0].expected.value[0])
            rich = max(end, key=lambda owner: end[owner])
            env.step(call("transfer", sender=rich, receiver=next(o for o in end if o != rich), amount=1))
        said = env.world.asked.said + ("1" if wrong == "answer" else "")
        _, reward, terminated, _, info = env.step(f"<answer>{said}</answer>")
        assert (reward, terminated) == (0.0, True)
        assert (info["answer_right"], info["state_right"]) == (wrong != "answer", wrong != "state")
        env.close()


def _kind(env, index):
    task = env.task_spec(index)
    return env.world.source.draw(task, task.rng()).id.split()[0]


def test_the_oracle_wins_every_kind_and_nobody_else():
    for seed in range(200):
        task = _draw(random.Random(seed))
        kind, money = task.id.split(" ", 1)
        before, after = json.loads(money), task.state[0].expected.value[0]
        assert kind in KINDS and sum(before.values()) == sum(after.values()) and min(after.values()) >= 0
        assert right_answer(task.answer, task.said) and 1 <= len(task.solution) <= 8
    spec = TaskSpec.make(ID, "1", "val", 7)
    assert spec.owns(Accounts().draw(spec, spec.rng()).prompt)


async def test_rollouts_share_nothing_and_close_all():
    opened, closed = counts()
    assert opened == closed
    pool = EnvPool(ID, {"fresh": True})
    jobs = [Job(pool.task("test", index), index) for index in range(6)]
    for episode in await rollout(jobs, ScriptedAgent("oracle"), pool):
        assert episode.success and episode.reward == 1.0, episode
    assert not any(episode.success for episode in await rollout(jobs, ScriptedAgent("null"), pool))
    await rollout(jobs, ScriptedAgent("random"), pool)
    await pool.aclose()
    opened, closed = counts()
    assert opened == closed >= 18


# -- calls -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('<tool_call>{"name": "a", "arguments": {"x": 1}}</tool_call>', [("a", {"x": 1})]),
        ('I do.\n<tool_call>\n{"name": "b"}\n</tool_call> <tool_call>{"name": 3}</tool_call>', [("b", {})]),
        ('a {"x": [1]}', [("a", {"x": [1]})]), ("a", [("a", {})]), ("a {x}", []), ("c {}", []), ("", []),
        ("say a", []), ("<tool_call>{}</tool_call>", []), ("a {" + '"x":' * 10_000, []), ("a " * 600_000, []),
        ("<tool_call>{" * 20_000 + "</tool_call>", []),
    ],
)  # fmt: skip
def test_calls_are_read_from_words(text, calls):
    assert [(found.name, found.arguments) for found in from_text(text, ["a", "b"])] == calls


def test_calls_in_words_are_made_and_too_many_are_not():
    env = make(ID)
    env.reset(options={"index": 0})
    shown, *_, info = env.step("list_owners")
    assert not info["void"] and shown.messages[0].name == "list_owners"
    owner = shown.text.split(", ")[0]
    shown, *_, info = env.step(f'get_balance {{"owner": "{owner}"}}')
    assert not info["void"] and int(shown.text) >= 0
    shown, *_ = env.step(Action("", tuple(ToolCall("list_owners") for _ in range(50))))
    assert len(shown.messages) == 17 and "only the first 16" in shown.messages[-1].text
    env.close()


def test_garbage_is_answered(tmp_path):
    env = started(tmp_path, max_turns=100)
    deep = {}
    for _ in range(100_000):
        deep = {"x": deep}
    for text in ("", "x" * 1_000_000, "\udcff", "\x00", "<answer>", "<tool_call>" * 100_000):
        assert env.step(text)[1:3] == (0.0, False)
        shown, reward, terminated, *_ = env.step(call("get_balance", owner=text))
        assert (reward, terminated) == (0.0, False) and shown.text.startswith("Error")
    for arguments in (
        {"owner": deep},
        {"owner": float("nan")},
        {"owner": b"1"},
        {"owner": "x" * 2_000_000},
        {1: 2},
        {"a": {"b": [{3: 4}]}},
    ):
        shown, *_ = env.step(Action("", (ToolCall("get_balance", arguments),)))
        assert shown.text.startswith("Error")
    assert env.step(call("\udcff" * 1000))[0].text.startswith("Error: there is no tool")
    assert env.step(call("get_balance", owner="x"))[0].text.startswith(
        "Error: x has no account"
    )  # still alive
    env.close()
    assert sendable({"a": [1, "é"]}) == {"a": [1, "é"]} and "nested" in sendable(deep)


# -- checks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "right", "wrong"),
    [
        (Expected("equals", ["a b", "c"]), ["a b", " a\n b ", "c"], ["a", "a b c", "A B", ""]),
        (Expected("number", 1234.5), ["1234.5", "1,234.50", "$1234.5", "1.2345e3"],
         ["1234", "", "1234.5 or 2", "12,34.5", "nan"]),
        (Expected("regex", "[ab]+"), ["ab", " a "], ["abc", ""]),
        (Expected("done"), ["done", "Done."], ["", "not done", "yes"]),
    ],
)  # fmt: skip
def test_answers(expected, right, wrong):
    assert all(right_answer(expected, said) for said in right), right
    assert not any(right_answer(expected, said) for said in (*wrong, "x" * 10_000)), wrong


@pytest.mark.parametrize(
    ("value", "text", "structured", "fits"),
    [
        ([1, 2], "[1, 2.0]", None, True), ([1, 2], "1 2", {"result": [1, 2]}, True), ([1], "[true]", None, False),
        ({"a": 1}, "", {"a": 1}, True), ({"a": 1}, '{"a": 1, "b": 2}', None, False), ("x", " x\n", None, True),
        (5, "5", None, True), (5, "55", None, False), (True, "true", None, True), ([], "", {"result": []}, True),
    ],
)  # fmt: skip
def test_results(value, text, structured, fits):
    assert right_result(Expected("equals", [value]), text, structured, False) is fits
    assert not right_result(Expected("equals", [value]), text, structured, True)
    assert right_result(Expected("error"), text, structured, True)
    assert not right_result(Expected("error"), text, structured, False)


def test_calls_that_had_to_be_made():
    assert made(Use("a", {"x": 1}), Use("a", {"x": 1.0, "y": 2})) and made(Use("a"), Use("a", {"x": 1}))
    assert not made(Use("a", {"x": 1}), Use("a", {"x": 2})) and not made(Use("a"), Use("b"))
    assert [number(text) for text in ("7", "1,000", "5 %", "x", "", ".5", "--1")] == [
        7,
        1000,
        5,
        None,
        None,
        0.5,
        None,
    ]


def test_a_call_that_failed_was_not_made(tmp_path):
    task = {**TASK, "check": {"must_call": [{"tool": "get_balance", "arguments": {"owner": "Ann"}}]},
            "setup": [{"tool": "open_bank", "arguments": {"balances": {"Ann": 5}}}]}  # fmt: skip
    for owner, reward in (("Bob", 0.0), ("Ann", 1.0)):
        env = started(tmp_path, task=task)
        env.step(call("get_balance", owner=owner))
        assert env.step("<answer>done</answer>")[1] == reward
        env.close()


# -- servers -----------------------------------------------------------------------------------------------------


def test_results_of_all_kinds_are_shown(tmp_path):
    env = started(tmp_path, output_cap=100)
    shown, *_ = env.step(call("look"))
    assert shown.text == "see\n[audio]" and shown.messages[0].images[0].startswith(b"\x89PNG")
    assert env.step(call("data"))[0].text == "(nothing)"
    assert env.step(call("long"))[0].text == "x" * 100 + "\n... (99900 characters more)"
    assert "no method refuse" in env.step(call("refuse"))[0].text
    env.close()


def test_a_call_that_takes_too_long_is_told_and_the_server_lives(tmp_path):
    env = started(tmp_path, tool_timeout=0.4)
    shown, reward, terminated, *_ = env.step(call("nap", milliseconds=1000))
    assert shown.text == "Error: the call took longer than 0.4 s." and (reward, terminated) == (0.0, False)
    deadline = time.monotonic() + 60  # it is busy with the nap for a while
    while "slept" not in env.step(call("nap", milliseconds=1))[0].text:
        assert time.monotonic() < deadline
        env.reset(options={"index": 0})
    env.close()
    env = started(tmp_path, tool_timeout=2.0, fresh=False)
    pid = int(env.step(call("pid"))[0].text)
    assert "longer" in env.step(call("nap", milliseconds=600_000))[0].text
    env.reset(options={"index": 0})  # with another server, for this one is at the nap for long
    assert gone(pid)
    env.close()


def test_a_server_that_dies_makes_the_episode_invalid_and_the_next_one_has_another(tmp_path):
    for fresh in (True, False):
        env = started(tmp_path, fresh=fresh)
        with pytest.raises(EnvironmentFault, match=r"is gone; its last words: .*I die of it"):
            env.step(call("die"))
        env.reset(options={"index": 0})
        pid = int(env.step(call("pid"))[0].text)
        with pytest.raises(EnvironmentFault, match="failed over nonsense"):
            env.step(call("nonsense"))
        assert gone(pid)
        env.reset(options={"index": 0})
        assert env.step("<answer>right</answer>")[1] == 1.0
        env.close()


async def test_an_invalid_episode_is_counted_and_gets_no_reward(tmp_path):
    task = {**TASK, "solution": {"calls": ["die"], "answer": "right"}}
    pool = EnvPool(ID, {"tasks": tasks(tmp_path, task), "server": ODD})
    (episode,) = await rollout([Job(pool.task("train", 0))], ScriptedAgent("oracle"), pool)
    assert not episode.valid and "is gone" in str(episode)
    await pool.aclose()


def test_processes_are_fresh_or_kept_and_end_with_the_environment(tmp_path):
    for fresh, same in ((True, False), (False, True)):
        env = started(tmp_path, fresh=fresh)
        first = int(env.step(call("pid"))[0].text)
        env.reset(options={"index": 0})
        second = int(env.step(call("pid"))[0].text)
        assert (first == second) is same and (same or gone(first))
        env.close()
        assert gone(second)


def test_a_server_ends_with_its_loop_and_another_loop_gets_another(tmp_path):
    env = make(ID, tasks=tasks(tmp_path, TASK), server=ODD, fresh=False)
    spec = env.task_spec(0, "train")

    async def begin() -> int:
        await env.areset(spec)
        return int((await env.astep(call("pid"))).observation.text)

    first = asyncio.run(begin())
    assert gone(first)
    with pytest.raises(EnvironmentFault, match="is gone"):
        asyncio.run(env.astep(call("pid")))
    second = env.reset(options={"index": 0}) and int(env.step(call("pid"))[0].text)
    assert asyncio.run(begin()) == second  # there and back, as the loop of synchronous calls lives on
    env.close()
    assert gone(second) and len(set(counts())) == 1


@pytest.mark.slow
def test_a_server_that_does_not_want_to_go_is_killed(tmp_path):
    env = started(tmp_path, "stubborn")
    pid = int(env.step(call("pid"))[0].text)
    env.close()
    assert gone(pid)


@pytest.mark.parametrize(
    ("trouble", "words"),
    [("exits", "cannot be used.*odd server is here"), ("silent", "did not answer within 2 s"),
     ("endless", "without end")],
)  # fmt: skip
def test_a_server_that_does_not_start_says_why(trouble, words, tmp_path):
    with pytest.raises(EnvironmentFault, match=words):
        started(tmp_path, trouble, start_timeout=2.0 if trouble == "silent" else 60.0)
    opened, closed = counts()
    assert opened == closed


def test_a_folder_and_variables_for_the_server(tmp_path):
    row = {
        "server": {
            "command": ["{python}", *ODD[1:], "none", "{dir}"],
            "env": {"COLOUR": "blue"},
            "hide": ["die"],
        }
    }
    env = make(ID, tasks=tasks(tmp_path, row, TASK))
    env.reset(options={"index": 0})
    shown = env.step(call("file"))[0].text
    folder = Path(shown.removeprefix("[]"))
    assert shown.startswith("[]/") and folder.is_dir()
    assert env.step(call("environ"))[0].text == "blue" and "no tool" in env.step(call("die"))[0].text
    env.close()
    assert not folder.exists()


def test_what_a_task_names_has_to_be_there(tmp_path):
    for row, params, words in (
        ({**TASK, "setup": ["open_bnk"]}, {}, "line 1: .* has no tool 'open_bnk': did you mean 'open_bank'"),
        (
            {**TASK, "setup": ["open_bank"]},
            {},
            r"line 1: the setup call open_bank\({}\) failed: open_bank takes balances",
        ),
        ({**TASK, "check": {"must_call": ["pid"]}}, {"hide": "die,pid"}, "'pid', which is hidden"),
        (
            {**TASK, "setup": [{"tool": "nap", "arguments": {"milliseconds": 3000}}]},
            {"tool_timeout": 0.3},
            "longer than",
        ),
    ):
        with pytest.raises(EnvironmentFault, match=words):
            started(tmp_path, task=row, **params)
    opened, closed = counts()
    assert opened == closed


def test_a_task_without_a_solution_has_no_oracle(tmp_path):
    env = started(tmp_path)
    with pytest.raises(NotImplementedError, match="line 1 has no solution"):
        env.oracle()
    env.close()


def test_a_server_of_the_mcp_package_over_http_and_its_death(tmp_path):
    uvicorn = pytest.importorskip("uvicorn")
    from mcp.server import MCPServer

    made_of = MCPServer("adder", instructions="It adds.", log_level="ERROR")
    made_of.tool()(_add)
    served = uvicorn.Server(uvicorn.Config(made_of.streamable_http_app(), port=0, log_level="error"))
    thread = threading.Thread(target=served.run, daemon=True)
    thread.start()
    until = time.monotonic() + 60
    while not served.started and time.monotonic() < until:
        time.sleep(0.02)
    url = f"http://127.0.0.1:{served.servers[0].sockets[0].getsockname()[1]}/mcp"
    task = {**TASK, "solution": {"calls": [{"tool": "_add", "arguments": {"a": 1, "b": 2}}]},
            "check": {"answer": "right", "state": [
                {"tool": "_add", "arguments": {"a": 2, "b": 2}, "equals": 4}]}}  # fmt: skip
    env = make(ID, tasks=tasks(tmp_path, task), server=url, tool_timeout=10.0)
    try:
        for _ in range(2):
            shown, _ = env.reset(options={"index": 0})
            assert "It adds." in shown.messages[0].text
            assert env.step(env.oracle())[0].text == "3"
            assert env.step(call("_add", a="x", b=1))[0].text.startswith("Error")
            assert env.step(env.oracle())[1] == 1.0
        env.reset(options={"index": 0})
    finally:
        served.should_exit = served.force_exit = True
        thread.join(30)
    with pytest.raises(EnvironmentFault):
        env.step(env.oracle())
    with pytest.raises(EnvironmentFault, match="cannot be used"):
        env.reset(options={"index": 0})
    env.close()


@pytest.fixture
def guarded(tmp_path, monkeypatch):
    """A server of the mcp package that wants a token and a key; its address, and what it was sent."""
    uvicorn = pytest.importorskip("uvicorn")
    from mcp.server import MCPServer

    made_of = MCPServer("guarded", log_level="CRITICAL")
    seen, wants = [], {"authorization": "Bearer s3cret-token", "x-api-key": "s3cret-key"}

    def tell() -> str:
        """What it was sent, as servers do that explain too much."""
        return str(seen[-1])

    made_of.tool()(tell)
    inner = made_of.streamable_http_app()

    async def app(scope, receive, send):
        if scope["type"] == "http":
            seen.append({name.decode(): value.decode() for name, value in scope["headers"]})
            if any(seen[-1].get(name) != value for name, value in wants.items()):
                said = f"no entry with {seen[-1].get('authorization')}".encode()
                await send({"type": "http.response.start", "status": 401, "headers": []})
                await send({"type": "http.response.body", "body": said})
                return
        await inner(scope, receive, send)

    served = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical"))
    thread = threading.Thread(target=served.run, daemon=True)
    thread.start()
    until = time.monotonic() + 60
    while not served.started and time.monotonic() < until:
        time.sleep(0.02)
    monkeypatch.setenv("GUARD_TOKEN", "s3cret-token")
    monkeypatch.setenv("GUARD_KEY", "s3cret-key")
    yield f"http://127.0.0.1:{served.servers[0].sockets[0].getsockname()[1]}/mcp", seen, wants
    served.should_exit = served.force_exit = True
    thread.join(30)


async def test_headers_and_tokens_of_variables_are_sent_and_shown_nowhere(guarded, tmp_path):
    url, seen, wants = guarded
    entry = {"url": url, "token_env": "GUARD_TOKEN", "headers_env": {"X-Api-Key": "GUARD_KEY"},
             "headers": {"X-Team": "red"}}  # fmt: skip
    task = {**TASK, "solution": {"calls": ["tell"]}}
    given = {"server": url, **{name: entry[name] for name in ("token_env", "headers_env", "headers")}}
    for params in (
        {"tasks": tasks(tmp_path, {"server": entry}, task)},
        {"tasks": tasks(tmp_path, task, name="b.jsonl"), **given},
    ):
        pool = EnvPool(ID, params)
        (episode,) = await rollout([Job(pool.task("train", 0))], ScriptedAgent("oracle"), pool)
        await pool.aclose()
        assert episode.valid and sum(turn.reward for turn in episode.turns) == 1.0
        assert seen[-1]["x-team"] == "red" and "authorization" in seen[-1]
        written = json.dumps(episode_to_json(episode))
        assert (
            "Bearer [secret]" in written
            and "s3cret" not in written
            and "s3cret" not in repr(pool.task("train", 0))
        )
    wants["authorization"] = "Bearer another"
    env = make(ID, **params)
    with pytest.raises(
        EnvironmentFault, match=r"refuses access \(HTTP 401\): see whether GUARD_TOKEN, GUARD_KEY"
    ) as caught:
        env.reset(options={"index": 0})
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))
    env.close()


def test_access_that_is_lost_makes_the_episode_invalid(guarded, tmp_path):
    url, _, wants = guarded
    env = make(ID, tasks=tasks(tmp_path, TASK), server=url, token_env="GUARD_TOKEN",
               headers_env={"x-api-key": "GUARD_KEY"})  # fmt: skip
    env.reset(options={"index": 0})
    assert "[secret]" in env.step(call("tell"))[0].text
    wants["authorization"] = "Bearer another"
    with pytest.raises(EnvironmentFault, match=r"failed over tell: it refuses access \(HTTP 401\)"):
        env.step(call("tell"))
    env.close()


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"token_env": "GYMRL_UNSET"}, "GYMRL_UNSET, for the header Authorization, is not set: export it"),
        ({"token_env": "s3cret-token"}, "take the names of environment variables"),
        ({"headers": {"Authorization": "Bearer s3cret"}}, "is a secret, .* write headers_env"),
        ({"headers": {"X-Api-Key": "s3cret"}}, "is a secret"),
        ({"headers": {"X-Team": "a\nb"}}, "one line of ASCII"), ({"headers": {"x y": "a"}}, "no name of a header"),
        ({"token_env": "HOME", "headers_env": {"authorization": "HOME"}}, "given twice"),
        ({"headers": "red"}, "a table of texts"),
        ({"server": "http://me:s3cret@localhost/mcp"}, "the url holds a secret"),
        ({"server": "http://localhost/mcp?api_key=s3cret"}, "the url holds a secret"),
        ({"server": ODD, "token_env": "HOME"}, "for a server with a url"),
    ],
)  # fmt: skip
def test_headers_that_cannot_be_sent_name_the_mend_and_no_secret(params, words, tmp_path):
    with pytest.raises(ValueError, match=words) as caught:
        make(ID, **{"tasks": tasks(tmp_path, TASK), "server": "http://localhost/mcp", **params})
    assert "s3cret" not in str(caught.value)
    row = {"server": {"url": "http://localhost/mcp", "headers": {"cookie": "s3cret"}}}
    with pytest.raises(ValueError, match="line 1: server: the header cookie is a secret"):
        make(ID, tasks=tasks(tmp_path, row, TASK))


def test_a_server_elsewhere_is_not_sent_the_secrets_of_the_files_own(tmp_path):
    row = {"server": {"url": "http://localhost/mcp", "token_env": "HOME", "headers": {"X-Team": "red"}}}
    env = make(ID, tasks=tasks(tmp_path, row, TASK), server="http://127.0.0.1:9/mcp")
    assert not env.world.spec.token_env and not env.world.spec.headers
    env.close()


def _add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def test_the_example_of_notes():
    env = make(ID, tasks=str(ROOT / "examples" / "mcp-notes" / "tasks.toml"))
    for split, size in env.world.sizes.items():
        for index in range(size):
            shown, _ = env.reset(options={"task": env.task_spec(index, split)})
            assert "clear" not in [tool.name for tool in shown.tools] and "Notes have" in shown.text
            ended, reward = False, 0.0
            while not ended:
                _, reward, ended, *_ = env.step(env.oracle())
            assert reward == 1.0, (split, index)
    assert env.world.sizes == {"train": 2, "val": 1, "test": 1}
    env.close()


# -- task files --------------------------------------------------------------------------------------------------


def test_ids_say_the_split_and_a_task_of_its_own_goes_before(tmp_path):
    rows = [{"id": f"task {i}", "prompt": f"Say {i}.", "check": {"answer": str(i)}} for i in range(200)]
    first = make(ID, tasks=tasks(tmp_path, *rows), server=ODD).world.source.by_split
    assert (
        sum(map(len, first.values())) == 200
        and 130 < len(first["train"]) < 190
        and first["val"]
        and first["test"]
    )
    rows = [{**row, "split": "test"} if row["id"] == first["train"][0].id else row for row in rows[::-1]]
    second = make(ID, tasks=tasks(tmp_path, *rows, name="b.jsonl"), server=ODD).world.source.by_split
    assert {task.id for task in second["val"]} == {task.id for task in first["val"]}
    assert {task.id for task in second["test"]} == {task.id for task in first["test"]} | {
        first["train"][0].id
    }


SERVER = '[server]\ncommand = ["x"]\n'
GOOD = '[[task]]\nid = "a"\nprompt = "p"\ncheck = { answer = "1" }\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (SERVER + "[[task]\n", "tasks.toml, line 3: not TOML"),
        (SERVER, "holds no task"),
        (SERVER + GOOD + GOOD, "line 7: a second task with the id 'a', as at .*line 3"),
        (SERVER + GOOD + GOOD.replace('"a"', '"b"'), "line 7: the same task as at"),
        (SERVER + GOOD.replace("prompt", "promt"), "line 3: 'prompt' is missing"),
        (SERVER + GOOD + 'slit = "test"\n', "unknown field 'slit': did you mean 'split'"),
        (SERVER + GOOD + 'split = "dev"\n', "split is one of train, val, test"),
        (SERVER + GOOD.replace('answer = "1"', ""), "check asks for nothing"),
        (SERVER + GOOD.replace("answer", "answer_regex").replace('"1"', '"("'), "no regular expression"),
        (SERVER + GOOD.replace("answer", "answer_number").replace('"1"', '"one"'), "take a number"),
        (SERVER + GOOD.replace('answer = "1"', 'answer = "1", answer_number = 1'), "two ways"),
        (SERVER + GOOD.replace('answer = "1"', 'state = [{ tool = "x" }]'), "what x has to return"),
        (SERVER + GOOD.replace('"1"', "[]"), "answer is a text"),
        (SERVER + GOOD + "setup = [{ tool = 3 }]\n", "setup: tool is a text"),
        (SERVER + GOOD + "setup = [{ tool = 'x', arguments = { d = 2024-01-01 } }]\n", "write it as a text"),
        (
            SERVER + GOOD.replace("answer", "answer_regex") + "solution = { calls = [] }\n",
            "write the answer that fits",
        ),
        ('server = "python x.py"\n' + GOOD, "line 1: server: take a table"),
        ('[server]\nurl = "ftp://x"\n' + GOOD, "http://"),
        ('[server]\ncommand = "python x.py"\n' + GOOD, "list of words"),
        ('[server]\ncommand = ["x"]\nurl = "http://x"\n' + GOOD, "one of the two"),
        ("[servr]\n" + GOOD, "did you mean 'server'"),
        (GOOD + 'split = "train"\n', "names no server: give the parameter"),
        ("[task]\n", "two brackets"),
    ],
)
def test_a_broken_toml_file_names_the_line_and_the_mend(text, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        make(ID, tasks=tasks(tmp_path, text, name="tasks.toml"))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([TASK, "{"], "line 2: not JSON"), ([TASK, "[1]"], "line 2: a task is an object"),
        (["[" * 100_000], "line 1: not JSON"),
        ([TASK, "", {**TASK, "id": "u", "check": []}], "line 3: check: take a table"), ([], "holds no task"),
        ([{**TASK, "split": "val"}], "no task for training"),
    ],
)  # fmt: skip
def test_a_broken_jsonl_file_names_the_line(rows, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        make(ID, tasks=tasks(tmp_path, *rows), server=ODD)
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "é"}'.encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8"):
        make(ID, tasks=str(tmp_path / "latin.jsonl"), server=ODD)


def test_wrong_parameters_name_the_mend():
    for params, words in (
        ({"tasks": "nowhere"}, "no such file"), ({"max_turns": 0}, "1 or more"), ({"server": "a 'b"}, "is no command"),
        ({"server": [1]}, "a list of words"), ({"tool_timeout": 0}, "above 0"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            make(ID, **params)
    env = make(ID, server="/no/such/program --now")
    with pytest.raises(EnvironmentFault, match="'/no/such/program --now' cannot be used: FileNotFoundError"):
        env.reset()
    env.close()


def test_without_the_package_the_extra_is_named():
    code = (
        "import sys; sys.modules['mcp'] = None\nfrom gymrl.envs import make\n"
        "try:\n    make('gymrl/Mcp-v0')\nexcept ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "gymrl[mcp]"' in done.stdout


def test_tasks_are_the_same_in_any_process():
    code = (
        "from gymrl.envs.mcp_tools.problems import Accounts\nfrom gymrl.envs.records import TaskSpec, stable_hash\n"
        "specs = [TaskSpec.make('gymrl/Mcp-v0', '1', s, i) for s in ('train', 'val', 'test') for i in range(20)]\n"
        "print(stable_hash([Accounts().draw(spec, spec.rng()).problem() for spec in specs]))"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True,
            check=True,
        ).stdout
        for seed in ("0", "42")
    ]  # fmt: skip
    assert said[0] == said[1] != ""


def test_it_keeps_the_laws():
    quick = Settings(seconds=0.3, tasks=6, garbage=60, split_tasks=40, resets=32)
    laws = [law for law in LAWS if law != "worlds"]  # three processes more, which import mcp for seconds
    report = check(ID, laws=laws, settings=quick)
    assert report.sound, [verdict for verdict in report.verdicts if verdict.faults]
