"""Wrappers: named in `wrappers`, part of the task, and each does what it says."""

from __future__ import annotations

import json
import random
import struct
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from gymrl.envs import (
    Action,
    Environment,
    EnvironmentFault,
    GymEnv,
    Message,
    Observation,
    Tool,
    ToolCall,
    make,
    register,
)
from gymrl.envs.check import Settings, check
from gymrl.envs.workers import EnvPool
from gymrl.envs.wrappers import Wrapper, names, specifications, wrap, wrapper_class


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"\x00" + b"\x00" * width * height)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


class Walk(Environment):
    """Walk from 0 to the end of a corridor; `east` and `west` are steps, and any text ends in a long sigh."""

    max_turns = 20

    def __init__(self, length: int = 4) -> None:
        self.length = length

    def reset(self) -> str:
        self.at = 0
        self.door = self.rng.randrange(1000)
        return f"Corridor {self.door}, {self.length} long."

    def step(self, action: Action) -> Any:
        self.at = max(0, self.at + {"east": 1, "west": -1}.get(action.text, 0))
        return f"You are at {self.at}. Si{'g' * 50}h.", float(self.at == self.length), self.at == self.length

    def recognises(self, action: Action) -> bool:
        return action.text in ("east", "west")

    def oracle(self) -> str:
        return "east"

    def random_action(self, rng: random.Random) -> str:
        return rng.choice(("east", "west"))

    def give_hint(self) -> str:
        return "The sun rises there."

    def measure_progress(self) -> float:
        return self.at / self.length

    def snapshot(self) -> Any:
        return self.at

    def restore(self, state: Any) -> None:
        self.at = state


class Plain(Environment):
    """Has none of the optional methods."""

    def reset(self) -> str:
        return "?"

    def step(self, action: Action) -> Any:
        return "!", 0.0, False


class Shop(Environment):
    """Buy the right fruit with a tool."""

    max_turns = 3
    tool = Tool(
        "buy", "Buy.",
        {"type": "object", "properties": {"fruit": {"type": "string"}, "number": {"type": "integer"}},
         "required": ["fruit"]},
    )  # fmt: skip

    def reset(self) -> str:
        self.fruit = self.rng.choice(("apple", "pear", "plum"))
        return f"Buy 2 {self.fruit}s."

    def step(self, action: Action) -> Any:
        if not action.tool_calls:
            return "Call buy.", 0.0, False
        right = dict(action.tool_calls[0].arguments) == {"fruit": self.fruit, "number": 2}
        return Observation((Message("tool", "Bought.", name="buy"),)), float(right), True

    def tools(self) -> tuple[Tool, ...]:
        return (self.tool,)

    def oracle(self) -> Action:  # type: ignore[override]
        return Action("", (ToolCall("buy", {"fruit": self.fruit, "number": 2}),))


class Picture(Environment):
    def reset(self) -> Observation:
        return Observation((Message("user", "Look:", (png(3, 2),)), Message("user", "", (b"\xff\xd8jpeg",))))

    def step(self, action: Action) -> Any:
        return Message("user", "Again:", (png(5, 4),)), 0.0, False


class DescribedPicture(Picture):
    async def describe_image(self, image: bytes) -> str:
        return f"a cat of {len(image)} bytes"


for cls in (Walk, Plain, Shop, Picture, DescribedPicture):
    register(f"wrap/{cls.__name__}-v0", cls, source="test")


def walk(*wrappers: Any, split: str = "train", **params: Any) -> GymEnv:
    return make("wrap/Walk-v0", split=split, wrappers=list(wrappers), **params)


def texts(env: GymEnv, *actions: str, index: int = 0) -> list[str]:
    found = [env.reset(options={"index": index})[0].text]
    return found + [env.step(action)[0].text for action in actions]


# -- naming and identity -----------------------------------------------------------------------------------


def test_every_wrapper_is_found_by_its_name() -> None:
    assert set(names()) == {
        "hints", "horizon", "image_to_text", "language_feedback", "progress", "tool_noise", "truncate_observation",
        "turn_limit",
    }  # fmt: skip
    for name in names():
        assert issubclass(wrapper_class(name), Wrapper) and wrapper_class(name).__doc__


def test_wrappers_are_part_of_the_task_and_the_problem_stays_the_same() -> None:
    plain, hinted = walk(), walk("hints", {"name": "turn_limit", "turns": 3})
    assert "wrappers" not in plain.params and plain.task_spec(3).params == "{}"
    assert json.loads(hinted.task_spec(3).params) == {
        "wrappers": [{"name": "hints"}, {"name": "turn_limit", "turns": 3}]
    }
    assert hinted.task_spec(3) != plain.task_spec(3)
    for index in range(10):
        assert texts(plain, index=index) == texts(hinted, index=index)
    with pytest.raises(ValueError, match="make it with the task's parameters"):
        plain.reset(options={"task": hinted.task_spec(0)})
    assert specifications(["hints"]) == specifications([{"name": "hints"}])


async def test_a_pool_plays_wrapped_worlds() -> None:
    pool = EnvPool("wrap/Walk-v0", {"wrappers": [{"name": "turn_limit", "turns": 2}]})
    assert pool.max_turns == 2
    handle = await pool.open()
    await handle.reset(pool.task("test", 1))
    assert not (await handle.step(await handle.oracle())).truncated
    assert (await handle.step(Action("west"))).truncated
    await pool.aclose()


def test_a_wrapper_of_ones_own_and_around_a_world_in_python() -> None:
    env = make("wrap/Walk-v0", wrappers=[{"name": "own_wrappers:Shout", "mark": "?"}])
    assert texts(env, "east")[1].startswith("YOU ARE AT 1.") and texts(env, "east")[1].endswith("?")
    world = wrap(Walk(2), ["hints"])
    assert isinstance(world, Wrapper) and world.length == 2 and world.max_turns == 20


def test_a_wrapped_world_can_be_branched() -> None:
    env = walk({"name": "horizon", "turns": 9})
    texts(env, "east", "east")
    state = env.world.snapshot()
    assert "Turns left: 6." in env.step("east")[0].text
    env.world.restore(state)
    assert env.step("east")[0].text.startswith("You are at 3.") and env.world.left == 6


@pytest.mark.parametrize(
    ("wrappers", "words"),
    [
        ("hints", "a list of names and tables"),
        ([3], "a name or a table with a name"),
        ([{"turns": 3}], "a name or a table with a name"),
        (["hint"], "did you mean 'hints'"),
        (["no.such:Thing"], "cannot be imported"),
        (["json:dumps"], "is no wrapper"),
        (["turn_limit"], "needs turns: write {name = .turn_limit., turns = ...}"),
        ([{"name": "turn_limit", "turn": 3}], "no option 'turn': did you mean 'turns'"),
        ([{"name": "turn_limit", "turns": 0}], "turns of 1 or more"),
        ([{"name": "turn_limit", "turns": "3"}], "takes a whole number as turns, not '3'"),
        ([{"name": "horizon", "turns": 3, "tell": "no"}], "takes true or false as tell, not 'no'"),
        ([{"name": "tool_noise", "errors": "0.1"}], "takes a number as errors"),
        ([{"name": "horizon", "turns": 0}], "turns of 1 or more"),
        ([{"name": "hints", "kind": "map"}], "hint or oracle"),
        ([{"name": "progress", "weight": 0}], "a weight above 0"),
        ([{"name": "tool_noise", "errors": 2}], "errors from 0 to 1"),
        ([{"name": "truncate_observation", "keep": "middle"}], "keeps head, tail, both"),
        ([{"name": "language_feedback", "critic": "bob"}], "write http://HOST:PORT/v1#MODEL"),
        (["image_to_text"], r"no describe_image\(image\)"),
        ([{"name": "image_to_text", "by": "no.such:thing"}], "cannot be imported"),
    ],
)
def test_wrong_wrappers_name_the_mend(wrappers: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make("wrap/Walk-v0", wrappers=wrappers)


@pytest.mark.parametrize(
    ("outside", "won"),
    [
        (["truncate_observation", {"name": "hints", "text": "East."}], True),
        (["language_feedback"], True),
        ([{"name": "turn_limit", "turns": 6}], False),
    ],
)
def test_turns_that_a_wrapper_gives_back_reach_those_around_it(outside: list[Any], won: bool) -> None:
    env = make("wrap/Walk-v0", wrappers=[{"name": "tool_noise", "errors": 1.0}, *outside])
    for index in range(3):
        env.reset(options={"index": index})
        limit, turns, ended = env.world.max_turns, 0, False
        while not ended:
            *_, terminated, truncated, _ = env.step(env.oracle())
            turns, ended = turns + 1, terminated or truncated
        assert terminated == won
        assert env.world.max_turns == (limit + turns - turns // 3 if won else limit)
        env.reset(options={"index": index})
        assert env.world.max_turns == limit  # and are gone with the episode
    env.close()


def test_a_world_without_what_a_wrapper_needs_is_told_so() -> None:
    with pytest.raises(ValueError, match=r"Plain has no measure_progress\(\)"):
        make("wrap/Plain-v0", wrappers=["progress"])
    with pytest.raises(ValueError, match=r"Plain has no give_hint\(\)"):
        make("wrap/Plain-v0", wrappers=[{"name": "turn_limit", "turns": 2}, "hints"])
    with pytest.raises(ValueError, match=r"Plain has no oracle\(\)"):
        make("wrap/Plain-v0", wrappers=[{"name": "hints", "kind": "oracle"}])


# -- what each one does ------------------------------------------------------------------------------------


def test_a_turn_limit_cuts_and_a_horizon_ends() -> None:
    env = walk({"name": "turn_limit", "turns": 2})
    texts(env, "west")
    assert env.step("west")[2:4] == (False, True)
    env = walk({"name": "horizon", "turns": 2})
    seen = texts(env, "west")
    assert [text.splitlines()[-1] for text in seen] == ["Turns left: 2.", "Turns left: 1."]
    observation, _, terminated, truncated, info = env.step("west")
    assert (terminated, truncated, info["horizon"]) == (True, False, True)
    assert observation.text.endswith("Time is up.")
    env = walk({"name": "horizon", "turns": 9, "tell": False}, length=1)
    seen = texts(env, "east")
    assert not any("left" in text for text in seen)


def test_observations_are_cut_where_it_is_asked() -> None:
    whole = texts(walk(), "east")[1]
    for keep, shown in (("head", whole[:10]), ("tail", whole[-10:]), ("both", whole[:5])):
        env = walk({"name": "truncate_observation", "characters": 10, "keep": keep})
        first, cut = texts(env, "east")
        assert first == texts(walk())[0]
        assert f"[{len(whole) - 10} characters left out]" in cut and shown in cut
        assert len(cut.replace(f"[{len(whole) - 10} characters left out]", "").replace("\n", "")) == 10
    env = walk({"name": "truncate_observation", "characters": 3, "first": True})
    assert texts(env)[0].startswith("Cor\n")
    assert texts(walk({"name": "truncate_observation"}), "east")[1] == whole


def test_hints_come_after_turns_without_reward_and_not_for_ever() -> None:
    env = walk({"name": "hints", "after": 2, "most": 2})
    hinted = ["Hint: The sun rises there." in text for text in texts(env, *["west"] * 8)]
    assert hinted == [False, False, True, False, True, False, False, False, False]
    assert texts(walk({"name": "hints", "after": 1, "kind": "oracle"}), "west")[1].endswith("Hint: east")
    assert texts(walk({"name": "hints", "after": 1, "text": "Go."}), "west")[1].endswith("Hint: Go.")


@pytest.mark.parametrize("path", [("east",) * 4, ("east", "west", "east", "east", "east", "east")])
def test_shaping_leaves_the_sum_of_rewards_alone(path: tuple[str, ...]) -> None:
    env = walk({"name": "progress", "weight": 0.5})
    env.reset(options={"index": 0})
    results = [env.step(action) for action in path]
    assert results[0][1] == pytest.approx(0.125) and results[-1][2]
    assert sum(result[1] for result in results) == pytest.approx(1.0)


def test_kept_progress_pays_lost_episodes_in_part() -> None:
    for path, total in ((("east",) * 4, 1.0), (("east", "east"), 0.25), (("east", "west"), 0.0)):
        env = walk({"name": "progress", "weight": 0.5, "keep": True})
        env.reset(options={"index": 0})
        assert sum(env.step(action)[1] for action in path) == pytest.approx(total)


def test_the_scripted_critic_says_what_a_turn_was() -> None:
    env = walk("language_feedback")
    _, void, good, bad, *_, last = texts(env, "hm", "east", "west", *["east"] * 4)
    assert void.endswith("Use the form that the task asks for.")
    assert good.endswith("Feedback: That was a good step.")
    assert bad.endswith("Feedback: An expert would have done something else.")
    assert "Feedback" not in last
    env = walk({"name": "language_feedback", "informed": False, "every": 2})
    one, two = texts(env, "east", "west")[1:]
    assert "Feedback" not in one and two.endswith("That changed nothing that counts.")


Reply = tuple[int, Any]


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[dict[str, Any]], Reply]], str]]:
    """Starts a server of chat completions from a function of the request; gives its address."""
    servers: list[ThreadingHTTPServer] = []

    def start(answer: Callable[[dict[str, Any]], Reply]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                status, text = answer(body)
                data = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                return

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}#critic"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_model_is_asked_for_feedback_and_a_lost_one_is_a_fault(serve: Any) -> None:
    asked: list[dict[str, Any]] = []

    def answer(body: dict[str, Any]) -> Reply:
        asked.append(body)
        return (200, "Mind the door.") if len(asked) != 1 else (503, "")

    url = serve(answer)
    env = walk({"name": "language_feedback", "critic": url})
    assert texts(env, "west")[1].endswith("Feedback: Mind the door.")
    body = asked[-1]
    assert len(asked) == 2 and body["model"] == "critic" and body["temperature"] == 0
    assert "Assistant: west" in body["messages"][1]["content"]
    assert body["messages"][1]["content"].endswith("an expert would have said in its last turn:\neast")
    texts(walk({"name": "language_feedback", "critic": url, "informed": False}), "west")
    assert "expert" not in asked[-1]["messages"][1]["content"]
    refusing = serve(lambda body: (400, "no"))
    with pytest.raises(EnvironmentFault, match=r"gave no answer .*400"):
        texts(walk({"name": "language_feedback", "critic": refusing}), "west")


def test_failing_tools_are_tried_again_and_lost_turns_given_back() -> None:
    env = make("wrap/Shop-v0", wrappers=[{"name": "tool_noise", "errors": 0.3, "timeouts": 0.3}])
    failed = []
    for index in range(60):
        env.reset(options={"index": index})
        row, done = 0, False
        while not done:
            observation, reward, terminated, truncated, info = env.step(env.oracle())
            row += "noise" in info
            done = terminated or truncated
            if "noise" in info:
                assert observation.messages[0].role == "tool" and "try again" in observation.text
        assert (reward, terminated) == (1.0, True)
        failed.append(row)
    assert set(failed) == {0, 1, 2} and 30 < sum(failed) < 80
    again = make("wrap/Shop-v0", wrappers=[{"name": "tool_noise", "errors": 0.3, "timeouts": 0.3}])
    again.reset(options={"index": failed.index(2)})
    assert "noise" in again.step(again.oracle())[4]  # the same task fails in the same way


def test_renamed_parameters_are_those_that_work() -> None:
    env = make("wrap/Shop-v0", wrappers=[{"name": "tool_noise", "errors": 0, "renamed": 1.0}])
    observation, _ = env.reset(options={"index": 0})
    schema = observation.tools[0].parameters
    fruit, number = schema["properties"]
    assert fruit.startswith("fruit_") and number.startswith("number_") and schema["required"] == [fruit]
    wanted = env.world.fruit
    observation, reward, terminated, *_ = env.step(
        Action("", (ToolCall("buy", {"fruit": wanted, "number": 2}),))
    )
    assert (reward, terminated) == (0.0, False) and f"It takes {fruit!r}" in observation.text
    assert set(env.oracle().tool_calls[0].arguments) == {fruit, number}
    assert env.step(env.oracle())[1] == 1.0


def test_noise_in_a_world_without_tools_spares_what_is_void() -> None:
    env = walk({"name": "tool_noise", "errors": 1.0, "in_a_row": 1})
    env.reset(options={"index": 0})
    assert "noise" not in env.step("hm")[4]
    assert ["noise" in env.step("east")[4] for _ in range(4)] == [True, False, True, False]


def test_images_become_words() -> None:
    env = make("wrap/Picture-v0", wrappers=[{"name": "image_to_text", "by": "size"}])
    observation, _ = env.reset(options={"index": 0})
    assert [m.text for m in observation.messages] == ["Look:\n[image: 3 x 2 pixels]", "[image: 6 bytes]"]
    assert not any(message.images for message in observation.messages)
    assert env.step("")[0].text == "Again:\n[image: 5 x 4 pixels]"
    env = make("wrap/DescribedPicture-v0", wrappers=["image_to_text"])
    assert "[image: a cat of " in env.reset(options={"index": 0})[0].text
    world = wrap(Picture(), [{"name": "image_to_text", "by": "own_wrappers:caption"}])
    assert isinstance(world, Wrapper) and world.describe(b"") == "a dog"


def test_a_model_that_sees_describes_images(serve: Any) -> None:
    asked: list[Any] = []
    url = serve(lambda body: (200, asked.append(body) or "a button"))
    env = make("wrap/Picture-v0", wrappers=[{"name": "image_to_text", "by": url}])
    assert "[image: a button]" in env.reset(options={"index": 0})[0].text
    kinds = {body["messages"][0]["content"][1]["image_url"]["url"][:15] for body in asked}
    assert kinds == {"data:image/png;", "data:image/jpeg"}


@pytest.mark.parametrize(
    "wrappers",
    [
        ["language_feedback", {"name": "hints", "kind": "oracle"}, {"name": "horizon", "turns": 2}],
        [
            {"name": "tool_noise", "errors": 0.3, "timeouts": 0.2},
            {"name": "truncate_observation", "characters": 60},
        ],
    ],
    ids=["talk", "noise"],
)
def test_a_sound_world_in_wrappers_passes_the_check(wrappers: list[Any]) -> None:
    import faulty_envs  # noqa: F401 - registers faulty/...

    settings = Settings(seconds=1, tasks=16, split_tasks=100, resets=40, garbage=150)
    report = check("faulty/Sound-v0", {"wrappers": wrappers}, settings=settings, isolate=False)
    assert report.sound, [verdict.faults for verdict in report.verdicts if verdict.faults]
