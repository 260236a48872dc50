"""The rollout loop with scripted agents and with a tiny random model, and episodes on disk."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gymrl.agents.engines.base import (
    Engine,
    EngineFault,
    EngineSettings,
    Generation,
    GenerationRequest,
    Sampling,
)
from gymrl.agents.engines.transformers import TransformersEngine
from gymrl.agents.episodes import read_jsonl, read_parquet, write_jsonl, write_parquet
from gymrl.agents.evaluation import evaluate, evaluation_jobs
from gymrl.agents.players import Job, ModelAgent, ScriptedAgent
from gymrl.agents.records import Episode, Turn
from gymrl.agents.rendering import Renderer
from gymrl.agents.rollout import RolloutSettings, rollout
from gymrl.envs import Action, Environment, Message, TaskSpec, Tool, ToolCall, register
from gymrl.envs.intervals import wilson
from gymrl.envs.workers import EnvPool
from gymrl.rl.tiny import make_model, make_tokenizer


class Countdown(Environment):
    """Say the number shown, three times."""

    naps = 0.0
    """The longest random pause (s) before an answer."""

    async def reset(self) -> str:
        self.left = 3
        self.number = self.rng.randrange(1000)
        return f"Say {self.number}."

    async def step(self, action: Action) -> tuple[Any, ...]:
        if self.naps:
            await asyncio.sleep(random.random() * self.naps)
        if action.text.strip() == f"<answer>{self.number}</answer>":
            self.left -= 1
        return f"{self.left} more: say {self.number}.", float(self.left == 0), self.left == 0

    def oracle(self) -> str:
        return f"<answer>{self.number}</answer>"


class Trouble(Environment):
    """Does wrong what its task's index modulo 6 says; every sixth task is in order."""

    KINDS = ("fine", "raises", "hangs", "string", "nan", "reset")

    async def reset(self) -> str:
        self.kind = self.KINDS[self.task.index % 6]
        if self.kind == "reset":
            raise OSError("no world today")
        return "Hello"

    async def step(self, action: Action) -> tuple[Any, ...]:
        if self.kind == "raises":
            raise KeyError("lost")
        if self.kind == "hangs":
            await asyncio.sleep(600)
        reward: Any = {"string": "1.0", "nan": float("nan")}.get(self.kind, 1.0)
        return "Bye", reward, True

    def oracle(self) -> str:
        return "<answer>yes</answer>"


class ThreadTrouble(Trouble):
    runs = "thread"

    async def step(self, action: Action) -> tuple[Any, ...]:
        if self.kind == "hangs":
            time.sleep(0.5)  # noqa: ASYNC251 - the world misbehaves
        return await super().step(action)


class SleepyOracle(Countdown):
    async def oracle(self) -> str:  # type: ignore[override]
        await asyncio.sleep(600)
        return ""


register("test/Countdown-v0", Countdown)
register("test/Trouble-v0", Trouble)
register("test/ThreadTrouble-v0", ThreadTrouble)
register("test/SleepyOracle-v0", SleepyOracle)

TEXTS = ["Say 123.", "2 more: say 45.", "<answer>678</answer>"]


class Recorder(Engine):
    """Passes requests to an engine and keeps what it was asked and what it said; fails from request `fails_at` on."""

    name = "recorder"

    def __init__(self, engine: Engine, fails_at: int | None = None) -> None:
        self.engine, self.fails_at, self.max_context = engine, fails_at, engine.max_context
        self.seen: list[tuple[GenerationRequest, Generation]] = []

    async def generate(self, request: GenerationRequest) -> Generation:
        if self.fails_at is not None and len(self.seen) >= self.fails_at:
            raise EngineFault("the power is gone: plug it in")
        done = await self.engine.generate(request)
        self.seen.append((request, done))
        return done

    def open_pace(self, lag: int) -> Any:
        return self.engine.open_pace(lag)

    async def generate_at(self, request: GenerationRequest, pace: Any, seat: int) -> Generation:
        if self.fails_at is not None and len(self.seen) >= self.fails_at:
            raise EngineFault("the power is gone: plug it in")
        done = await self.engine.generate_at(request, pace, seat)
        self.seen.append((request, done))
        return done

    async def load_weights(self, weights: Any, version: int) -> None:
        await self.engine.load_weights(weights, version)

    async def pause(self) -> None:
        await self.engine.pause()

    async def resume(self) -> None:
        await self.engine.resume()

    async def close(self) -> None:
        await self.engine.close()


def tiny_agent(
    max_context: int = 256, max_tokens: int = 12, fails_at: int | None = None, slots: int = 8
) -> ModelAgent:
    tokenizer = make_tokenizer(TEXTS, 320)
    model = make_model(len(tokenizer), hidden=32, layers=2, heads=2, kv_heads=1, context=256, seed=3)
    model.config._attn_implementation = "gymrl_ragged"
    engine = TransformersEngine(EngineSettings(max_context=max_context, slots=slots), model)
    renderer = Renderer(tokenizer, [5])  # a second stop id, so that some turns of a random model end early
    return ModelAgent("tiny", Recorder(engine, fails_at), renderer, Sampling(max_tokens=max_tokens))


def jobs_of(pool: EnvPool, count: int, samples: int = 1, seed: int = 0) -> list[Job]:
    return evaluation_jobs([pool.task("test", index) for index in range(count)], samples, seed)


def content(episode: Episode) -> Any:
    """Everything but the clock."""
    turns = [replace(turn, timings={}) for turn in episode.turns]
    metrics = {key: value for key, value in episode.metrics.items() if key != "seconds"}
    return replace(episode, turns=tuple(turns), metrics=metrics)


# -- scripted agents ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 5, 100])
async def test_oracle_wins_null_loses_and_everything_is_closed(concurrency: int) -> None:
    for kind, success in (("oracle", 1.0), ("null", 0.0)):
        pool = EnvPool("test/Countdown-v0")
        evaluation, episodes = await evaluate(
            ScriptedAgent(kind), pool, jobs_of(pool, 12, 2), RolloutSettings(concurrency=concurrency)
        )
        await pool.aclose()
        assert evaluation.success == success and evaluation.episodes == 24 and not evaluation.invalid
        assert (evaluation.low, evaluation.high) == wilson(int(24 * success), 24)
        assert 1 <= pool.opened == pool.closed <= min(concurrency, 24)
        assert [(e.group, e.sample) for e in episodes] == [(g, s) for g in range(12) for s in range(2)]
        assert len({e.seed for e in episodes}) == 24
        assert all(turn.stop == "scripted" and not turn.completion_ids for e in episodes for turn in e.turns)
        assert all(turn.void == (kind == "null") for e in episodes for turn in e.turns)
        ending = "terminated" if kind == "oracle" else "truncated:max_turns"
        assert evaluation.endings == {ending: 24}


@pytest.mark.parametrize("env_id", ["test/Trouble-v0", "test/ThreadTrouble-v0"])
async def test_an_environment_that_fails_is_invalid_and_never_a_reward(env_id: str) -> None:
    pool = EnvPool(env_id)
    evaluation, episodes = await evaluate(
        ScriptedAgent("oracle"), pool, jobs_of(pool, 12), RolloutSettings(concurrency=4, deadline=0.2)
    )
    await pool.aclose()
    assert pool.opened == pool.closed
    starts = {
        1: "environment: KeyError: 'lost'",
        2: "environment: TimeoutError: step() gave no answer in 0.2 s",
        3: "environment: EnvironmentFault",
        4: "environment: EnvironmentFault",
        5: "environment: OSError: no world today",
    }
    for index, episode in enumerate(episodes):
        if index % 6 == 0:
            assert episode.valid and episode.success and episode.reward == 1.0
            continue
        assert (
            episode.ending == "invalid"
            and not episode.success
            and episode.reason.startswith(starts[index % 6])
        )
        assert episode.task.index == index
        with pytest.raises(ValueError, match="has no reward"):
            _ = episode.reward
    assert sum(evaluation.invalid.values()) == 10
    assert evaluation.success == 1.0 and (evaluation.low, evaluation.high) == wilson(2, 2)


async def test_an_oracle_that_hangs_has_a_deadline_too() -> None:
    pool = EnvPool("test/SleepyOracle-v0")
    (episode,) = await rollout(
        jobs_of(pool, 1), ScriptedAgent("oracle"), pool, RolloutSettings(deadline=0.05)
    )
    await pool.aclose()
    assert episode.reason == "environment: TimeoutError: oracle() gave no answer in 0.05 s"


async def test_max_turns_and_void_ends_cut() -> None:
    pool = EnvPool("test/Countdown-v0")
    (cut,) = await rollout(jobs_of(pool, 1), ScriptedAgent("null"), pool, RolloutSettings(max_turns=2))
    (void,) = await rollout(jobs_of(pool, 1), ScriptedAgent("null"), pool, RolloutSettings(void_ends=True))
    await pool.aclose()
    assert (cut.ending, cut.reason, len(cut.turns)) == ("truncated", "max_turns", 2)
    assert (void.ending, void.reason, len(void.turns), void.success) == ("terminated", "void", 1, False)


async def test_what_on_episode_raises_ends_the_rollout() -> None:
    def full(episode: Episode) -> None:
        raise OSError(28, "No space left on device")

    pool = EnvPool("test/Countdown-v0")
    with pytest.raises(OSError, match="No space left"):
        await rollout(jobs_of(pool, 8), ScriptedAgent("oracle"), pool, RolloutSettings(concurrency=4), full)
    await pool.aclose()
    assert pool.opened == pool.closed


def test_settings_that_would_play_nothing_are_refused() -> None:
    for wrong in ({"concurrency": 0}, {"deadline": 0.0}, {"max_turns": 0}):
        with pytest.raises(ValueError, match="a rollout takes"):
            RolloutSettings(**wrong)  # type: ignore[arg-type]
    for pace in (0, -1, 1.5, "fast"):
        with pytest.raises(ValueError, match="pace is a number of engine steps"):
            RolloutSettings(pace=pace)  # type: ignore[arg-type]


# -- a model -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pace", [4, "lockstep", "free"])
async def test_every_episode_is_token_exact(pace: Any) -> None:
    agent, pool = tiny_agent(), EnvPool("test/Countdown-v0")
    episodes = await rollout(jobs_of(pool, 6, 2), agent, pool, RolloutSettings(concurrency=5, pace=pace))
    await pool.aclose()
    await agent.engine.close()
    assert isinstance(agent.engine, Recorder)
    asked = {(request.prompt_ids, done.ids): done for request, done in agent.engine.seen}
    assert sum(len(e.turns) for e in episodes) == len(agent.engine.seen)
    for episode in episodes:
        seen: list[int] = []
        segment = 0
        for turn in episode.turns:
            if turn.segment != segment:
                seen, segment = [], turn.segment
            seen += turn.prompt_ids
            done = asked[tuple(seen), turn.completion_ids]
            assert (
                done.logprobs == turn.logprobs and done.versions == turn.versions and done.stop == turn.stop
            )
            seen += turn.completion_ids
            assert len(turn.logprobs) == len(turn.versions) == len(turn.completion_ids) > 0
            assert turn.text == agent.renderer.spoken(turn.completion_ids)
        assert episode.tokens == sum(len(turn.completion_ids) for turn in episode.turns)


@pytest.mark.parametrize("pace", [1, 2, 5, "lockstep"])
@pytest.mark.parametrize("slots", [8, 4])  # with 4 some of the 6 episodes wait for the engine
async def test_what_is_sampled_depends_on_the_jobs_alone(
    pace: Any, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play(naps: float, concurrency: int) -> list[Episode]:
        monkeypatch.setattr(Countdown, "naps", naps)
        agent, pool = tiny_agent(slots=slots), EnvPool("test/Countdown-v0")
        episodes = await rollout(
            jobs_of(pool, 6, 2), agent, pool, RolloutSettings(concurrency, pace, max_turns=4)
        )
        await pool.aclose()
        await agent.engine.close()
        return [content(episode) for episode in episodes]

    calm = await play(0.0, 6)
    assert await play(0.01, 6) == calm
    # In other batches float32 sums may differ in their last bits; the sampled ids do not.
    alone = await play(0.0, 1)
    assert [[t.completion_ids for t in e.turns] for e in alone] == [
        [t.completion_ids for t in e.turns] for e in calm
    ]


async def test_an_engine_that_dies_makes_invalid_episodes() -> None:
    agent, pool = tiny_agent(fails_at=4), EnvPool("test/Countdown-v0")
    evaluation, episodes = await evaluate(agent, pool, jobs_of(pool, 6), RolloutSettings(concurrency=2))
    await pool.aclose()
    await agent.engine.close()
    assert {e.reason for e in episodes if not e.valid} == {"engine: the power is gone: plug it in"}
    assert evaluation.invalid == {"engine: the power is gone: plug it in": 6}
    assert pool.opened == pool.closed == 2  # a broken engine is no fault of the environments


@pytest.mark.parametrize("pace", [4, "lockstep", "free"])
async def test_closing_the_engine_under_a_rollout_ends_it(pace: Any) -> None:
    agent, pool = tiny_agent(max_tokens=200), EnvPool("test/Countdown-v0")
    playing = asyncio.create_task(rollout(jobs_of(pool, 4), agent, pool, RolloutSettings(pace=pace)))
    await asyncio.sleep(0.05)
    await agent.engine.close()
    episodes = await asyncio.wait_for(playing, 30)
    await pool.aclose()
    assert len(episodes) == 4
    assert {e.reason for e in episodes if not e.valid} <= {"engine: the embedded engine is closed"}
    assert any(not e.valid for e in episodes)


async def test_an_interrupted_rollout_leaves_an_engine_that_serves_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent, pool = tiny_agent(max_tokens=100), EnvPool("test/Countdown-v0")
    for wait in (0.0, 0.02, 0.1):
        playing = asyncio.create_task(rollout(jobs_of(pool, 8), agent, pool, RolloutSettings(3)))
        await asyncio.sleep(wait)
        playing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await playing
    episodes = await asyncio.wait_for(rollout(jobs_of(pool, 4), agent, pool, RolloutSettings(3)), 60)
    assert len(episodes) == 4 and all(episode.valid for episode in episodes)
    await pool.aclose()
    await agent.engine.close()


async def test_a_world_that_hangs_is_not_waited_for_beyond_its_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent, pool = tiny_agent(), EnvPool("test/Countdown-v0")
    step, stuck = Countdown.step, []

    async def hanging(self: Countdown, action: Action) -> Any:
        if not stuck:
            stuck.append(self)
        if stuck[0] is self:
            await asyncio.sleep(3600)
        return await step(self, action)

    monkeypatch.setattr(Countdown, "step", hanging)
    settings = RolloutSettings(concurrency=4, deadline=0.3, max_turns=3)
    episodes = await asyncio.wait_for(rollout(jobs_of(pool, 8), agent, pool, settings), 60)
    assert [e.reason for e in episodes if not e.valid] == [
        "environment: TimeoutError: step() gave no answer in 0.3 s"
    ]
    await pool.aclose()
    await agent.engine.close()


async def test_a_full_context_truncates_and_a_first_prompt_that_does_not_fit_names_the_mend() -> None:
    agent, pool = tiny_agent(max_context=90, max_tokens=40), EnvPool("test/Countdown-v0")
    episodes = await rollout(jobs_of(pool, 4), agent, pool)
    assert all(e.ending == "truncated" and e.reason == "context" for e in episodes)
    sizes: Counter[tuple[int, int]] = Counter()
    for episode in episodes:
        for turn in episode.turns:
            sizes[episode.group, turn.segment] += len(turn.prompt_ids) + len(turn.completion_ids)
    assert max(sizes.values()) == 90
    agent.engine.max_context = 8
    episodes = await rollout(jobs_of(pool, 2), agent, pool)
    assert all(e.reason.startswith("policy: the first prompt does not fit") for e in episodes)
    assert all("raise max_context" in e.reason for e in episodes)
    await pool.aclose()
    await agent.engine.close()


# -- on disk -------------------------------------------------------------------------------------------------

text = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
number = st.floats(allow_nan=False, allow_infinity=False)
small = st.integers(0, 2**31 - 1)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | number | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=5,
)
tool_calls = st.builds(ToolCall, text, st.dictionaries(text, values, max_size=2), text)
messages = st.builds(
    Message, st.sampled_from(["system", "user", "assistant", "tool"]), text,
    st.lists(st.binary(max_size=9), max_size=2).map(tuple), st.lists(tool_calls, max_size=2).map(tuple),
    st.none() | text,
)  # fmt: skip


@st.composite
def turns(draw: Any) -> Turn:
    count = draw(st.integers(0, 4))
    many = {"min_size": count, "max_size": count}
    return Turn(
        tuple(draw(st.lists(messages, max_size=2))), draw(text), tuple(draw(st.lists(tool_calls, max_size=2))),
        tuple(draw(st.lists(small, max_size=3))), tuple(draw(st.lists(small, **many))),
        tuple(draw(st.lists(number, **many))), tuple(draw(st.lists(small, **many))), draw(st.integers(0, 9)),
        draw(st.sampled_from(["stop", "length", "context", "abort", "scripted"])), draw(number), draw(st.booleans()),
        draw(st.dictionaries(text, number, max_size=2)), draw(st.dictionaries(text, values, max_size=2)),
    )  # fmt: skip


episodes_strategy = st.builds(
    Episode,
    st.builds(
        TaskSpec.make, text, text, st.sampled_from(["train", "val", "test"]), small,
        st.dictionaries(text, values, max_size=2),
    ),
    st.lists(turns(), max_size=3).map(tuple),
    st.sampled_from(["terminated", "truncated", "invalid"]),
    text.map(lambda reason: reason or "some reason"),
    st.booleans(),
    st.lists(messages, max_size=2).map(tuple),
    st.lists(st.builds(Tool, text, text, st.dictionaries(text, values, max_size=2)), max_size=2).map(tuple),
    text, small, small, st.integers(0, 2**63 - 1), st.dictionaries(text, number, max_size=2),
)  # fmt: skip


@settings(max_examples=40)
@given(st.lists(episodes_strategy, max_size=3))
def test_jsonl_and_parquet_round_trip(
    tmp_path_factory: pytest.TempPathFactory, episodes: list[Episode]
) -> None:
    folder = tmp_path_factory.mktemp("episodes")
    assert write_jsonl(folder / "a.jsonl", episodes) == len(episodes)
    assert list(read_jsonl(folder / "a.jsonl")) == episodes
    assert write_parquet(folder / "a.parquet", episodes) == len(episodes)
    assert list(read_parquet(folder / "a.parquet")) == episodes
    assert not list(folder.glob("*.part"))


def test_infos_of_numpy_and_half_surrogates_are_written(tmp_path: Path) -> None:
    import numpy as np

    turn = Turn(
        (Message("user", "\ud800"),), "x\udc00", info={"a": np.float32(0.5), "b": np.arange(2), "c": {1}}
    )
    episode = Episode(TaskSpec("e", "1", "test", 0), (turn,), "terminated")
    write_jsonl(tmp_path / "a.jsonl", [episode])
    (read,) = read_jsonl(tmp_path / "a.jsonl")
    assert read.turns[0].info == {"a": 0.5, "b": [0, 1], "c": "{1}"} and read.turns[0].text == "x\udc00"
    write_parquet(tmp_path / "a.parquet", [episode])
    (read,) = read_parquet(tmp_path / "a.parquet")
    assert read.turns[0].text == "x?"


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [Episode(TaskSpec("e", "1", "test", 0), (), "terminated")])
    path.write_text(path.read_text() + '{"format": 99}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: not an episode \(episode format 99"):
        list(read_jsonl(path))
