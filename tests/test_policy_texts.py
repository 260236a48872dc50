"""What a policy writes is never to an environment's blame: halves of surrogate pairs, and calls nested without end."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gymrl.agents.engines.base import Generation
from gymrl.agents.engines.openai import read_tool_calls
from gymrl.agents.parsers import DEEPEST, parse_action
from gymrl.agents.players import Job, ModelAgent, Sampling
from gymrl.agents.rendering import Renderer
from gymrl.agents.rollout import RolloutSettings, rollout
from gymrl.envs import Action, Environment, register
from gymrl.envs.workers import EnvPool
from gymrl.rl.tiny import make_tokenizer


class Repeats(Environment):
    """Repeats every word of a call, as an honest environment may."""

    def reset(self) -> str:
        return "Call something."

    def step(self, action: Action) -> tuple[Any, ...]:
        (call,) = action.tool_calls
        return f"{action.text} {call.name} {json.dumps(call.arguments, ensure_ascii=False)}", 1.0, True


register("test/Repeats-v0", Repeats)
BODY = '{"name": "say\\udc00", "arguments": {"a\\ud800": ["x \\ud83d", {"b": "\\ud83d\\ude42 é"}]}}'
HALF = f"<tool_call>{BODY}</tool_call>"
CLEANED = ("say?", {"a?": ["x ?", {"b": "\U0001f642 é"}]})


class Parrot:
    """Says one text always, token by token."""

    name, max_context = "parrot", 4096

    def __init__(self, ids: tuple[int, ...]) -> None:
        self.ids = ids

    async def generate(self, job: Job, request: Any) -> Generation:
        n = len(self.ids)
        return Generation(self.ids, (-0.5,) * n, (0,) * n, "stop")


async def test_half_a_pair_in_a_call_breaks_no_environment_and_changes_no_token() -> None:
    tokenizer = make_tokenizer(["Call something.", HALF], 320)
    renderer = Renderer(tokenizer)
    ids = (*renderer.encode(HALF), renderer.stop_ids[0])
    engine = Parrot(ids)
    agent = ModelAgent("parrot", engine, renderer, Sampling())  # type: ignore[arg-type]
    agent.player = lambda job, generator: ModelAgent.player(agent, job, engine)  # type: ignore[method-assign, assignment]
    pool = EnvPool("test/Repeats-v0")
    engine.open_pace = lambda lag: None  # type: ignore[attr-defined]
    (episode,) = await rollout([Job(pool.task("test", 0))], agent, pool, RolloutSettings())
    await pool.aclose()
    (turn,) = episode.turns
    assert episode.valid and turn.reward == 1.0
    assert turn.completion_ids == ids and turn.text == HALF
    assert [(call.name, call.arguments) for call in turn.tool_calls] == [CLEANED]
    episode.closing[0].text.encode()


def test_a_servers_calls_are_cleaned_too() -> None:
    body = json.loads(BODY)
    for arguments in (json.dumps(body["arguments"]), body["arguments"]):
        entry = {"id": "c\ud800", "function": {"name": body["name"], "arguments": arguments}}
        ((call,), broken) = read_tool_calls([entry], 0)
        assert (call.name, call.arguments) == CLEANED and call.id == "c?" and not broken


def nested(depth: int) -> str:
    return '{"a": ' + "[" * (depth - 1) + '"\\ud800"' + "]" * (depth - 1) + "}"


@pytest.mark.parametrize("depth", [DEEPEST + 1, 600, 980, 100_000])
def test_a_call_that_is_nested_too_deep_is_none(depth: int) -> None:
    text = '<tool_call>{"name": "x", "arguments": %s}</tool_call>'
    assert parse_action(text % nested(depth)).tool_calls == ()
    assert len(parse_action(text % nested(DEEPEST)).tool_calls) == 1
    entry = {"id": "x", "function": {"name": "x", "arguments": nested(depth)}}
    calls, broken = read_tool_calls([entry], 0)
    assert calls == () and len(broken) == 1


JSON = st.recursive(
    st.none() | st.integers() | st.text(st.characters()) | st.text("\ud800\udfffa"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("a\udc00b"), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text("ab"), JSON, max_size=3), st.text("\ud800x"))
def test_actions_can_be_written_down(arguments: dict[str, Any], spoken: str) -> None:
    call = json.dumps({"name": "x", "arguments": arguments})
    action = parse_action(f"{spoken}<tool_call>{call}</tool_call>")
    action.text.encode()
    json.dumps(action.tool_calls[0].arguments, ensure_ascii=False).encode()
    try:
        json.dumps(arguments, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return
    assert action.tool_calls[0].arguments == arguments
