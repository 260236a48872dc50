"""Episodes that share a worker process with one that brings it down: who is blamed, and who plays again."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gymrl.agents.engines.base import EngineSettings, Sampling
from gymrl.agents.engines.transformers import TransformersEngine
from gymrl.agents.evaluation import evaluation_jobs, invalid_causes
from gymrl.agents.players import Agent, Job, ModelAgent, Said, ScriptedAgent
from gymrl.agents.records import Episode, episode_from_json, episode_to_json
from gymrl.agents.rendering import Renderer
from gymrl.agents.rollout import REPLAYS, RolloutSettings, rollout
from gymrl.envs import Action, EnvironmentFault, TaskSpec, processes, register
from gymrl.envs.deadlines import NoTurn, within
from gymrl.envs.logbook import ProcessLost
from gymrl.envs.processes import ProcessPool
from gymrl.envs.workers import EnvPool
from gymrl.rl.tiny import make_model, make_tokenizer

WORLDS = """
import asyncio, ctypes, os, signal, threading, time
from gymrl.envs import Environment

def harm(way):
    match way:
        case "exit":
            os._exit(1)
        case "segfault":
            ctypes.string_at(0)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            while True:
                pass

class Shared(Environment):
    '''Four turns. The tasks that BAD names do harm, in their second turn or where else PLACE says.'''
    runs = "process"
    def __init__(self):
        if os.environ.get("PLACE") == "init" and os.getpid() != int(os.environ["PARENT"]):
            if not os.path.exists(os.environ["ONCE"]):
                open(os.environ["ONCE"], "w").close()
                harm(os.environ["WAY"])
    def bad(self, place):
        if os.environ.get("PLACE", "step") != place or str(self.task.index) not in os.environ.get("BAD", "").split():
            return False
        if not (once := os.environ.get("ONCE")):
            return True
        if os.path.exists(once):
            return False
        open(once, "w").close()
        return True
    def reset(self):
        self.left = 4
        if self.bad("reset"):
            harm(os.environ["WAY"])
        return f"world {self.rng.randrange(10**6)}"
    def step(self, action):
        self.left -= 1
        if self.left == 2 and self.bad("step"):
            harm(os.environ["WAY"])
        time.sleep(0.002)
        return f"{self.left} left, {self.rng.randrange(10**6)}", 0.25, self.left == 0
    def oracle(self):
        return "<answer>on</answer>"
    def random_action(self, rng):
        return f"<answer>{rng.randrange(10**6)}</answer>"

class Awaiting(Shared):
    '''Its steps await; harm is done by the step itself, or by a thread when the first six tasks all await.'''
    met = 0
    def strike(self):
        if once := os.environ.get("ONCE"):
            open(once, "w").close()
        harm(os.environ["WAY"])
    async def step(self, action):
        await asyncio.sleep(0.05)
        if self.left == 3 and os.environ.get("PLACE") == "thread" and self.task.index < 6:
            if not os.path.exists(os.environ.get("ONCE", "nowhere")):
                Awaiting.met += 1
                if Awaiting.met == 6:
                    threading.Timer(0.1, self.strike).start()
                await asyncio.sleep(600)
        if self.left == 3 and self.bad("meeting"):
            await asyncio.sleep(0.3)
            harm(os.environ["WAY"])
        return super().step(action)

class Between(Shared):
    '''A thread of it does harm between its calls.'''
    def reset(self):
        if self.bad("between"):
            threading.Timer(0.2, harm, (os.environ["WAY"],)).start()
        return super().reset()

class Slow(Shared):
    def step(self, action):
        if action.text == "hang":
            harm("hang")
        time.sleep(0.25)
        return "done", 0.0, False
"""
SHARED, AWAITING, BETWEEN, SLOW = (f"test/{name}-v0" for name in ("Shared", "Awaiting", "Between", "Slow"))


@pytest.fixture(autouse=True)
def worlds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"gymrl_lost_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(WORLDS)
    monkeypatch.syspath_prepend(str(tmp_path))
    for env_id in (SHARED, AWAITING, BETWEEN, SLOW):
        register(env_id, f"{name}:{env_id[5:-3]}", source="test")
    for key in ("WAY", "BAD", "PLACE", "ONCE"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setattr(processes, "LATE_SECONDS", 0.5)


@pytest.fixture
def harm(monkeypatch: pytest.MonkeyPatch) -> Any:
    def do(way: str, bad: Sequence[int] = (3,), **more: str) -> None:
        for key, value in {
            "way": way,
            "bad": " ".join(map(str, bad)),
            "parent": str(os.getpid()),
            **more,
        }.items():
            monkeypatch.setenv(key.upper(), value)

    return do


async def play(
    env_id: str = SHARED, count: int = 12, agent: Agent | None = None, **given: Any
) -> list[Episode]:
    """Play tasks in one process; whatever comes of them, nothing may be left behind."""
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    pool = EnvPool(env_id, workers=1)
    settings = RolloutSettings(**{"concurrency": 6, "deadline": 20.0, **given})
    jobs = jobs_of(pool, count)
    try:
        async with asyncio.timeout(200):
            episodes = await rollout(jobs, agent or ScriptedAgent("random"), pool, settings)
    finally:
        await pool.aclose()
    await nothing_left(pool, before)
    assert [episode.task for episode in episodes] == [job.task for job in jobs]
    return episodes


def jobs_of(pool: EnvPool, count: int) -> list[Job]:
    return evaluation_jobs([pool.task("test", index) for index in range(count)], 1, 0)


async def nothing_left(pool: EnvPool, before: tuple[int, int]) -> None:
    assert pool.opened == pool.closed > 0
    assert not pool._processes.workers and not children() - EARLIER
    await asyncio.sleep(0.05)  # loops give back their descriptors as they turn
    assert len(os.listdir("/proc/self/fd")) <= before[0]
    assert threading.active_count() <= before[1] + 4  # asyncio's own, which stop the workers


EARLIER: set[int] = set()
"""What tests of other files have left."""


@pytest.fixture(autouse=True, scope="module")
def earlier() -> None:
    EARLIER.update(children())


def children() -> set[int]:
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            boot = b"gymrl.envs.process_worker" in (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == os.getpid() and (boot or fields[0] == "Z"):
            found.add(int(folder.name))
    return found


def content(episode: Episode) -> Any:
    """What was played: everything but the clock and the count of tries."""
    turns = [replace(turn, timings={}) for turn in episode.turns]
    metrics = {key: value for key, value in episode.metrics.items() if key not in ("seconds", "replays")}
    return replace(episode, turns=tuple(turns), metrics=metrics)


def replays(episodes: Sequence[Episode]) -> list[float]:
    return [episode.metrics.get("replays", 0) for episode in episodes]


REASONS = {
    "exit": r"environment: EnvironmentFault: test/Shared-v0.step: the worker process N died (exit status 1)",
    "segfault": r"environment: EnvironmentFault: test/Shared-v0.step: the worker process N died (killed by SIGSEGV)",
    "kill": r"environment: EnvironmentFault: test/Shared-v0.step: the worker process N died (killed by SIGKILL)",
    "hang": "environment: TimeoutError: step() gave no answer in 2 s",
}


@pytest.mark.parametrize("way", list(REASONS))
async def test_one_that_brings_its_process_down_is_invalid_and_no_other(way: str, harm: Any) -> None:
    calm = await play()
    assert all(episode.valid for episode in calm) and not any(replays(calm))
    assert all("replays" not in episode.metrics for episode in calm)
    harm(way)
    episodes = await play(deadline=2.0)
    assert list(invalid_causes(episodes)) == [REASONS[way].replace("process N", "process")]
    assert [episode.task.index for episode in episodes if not episode.valid] == [3]
    assert replays(episodes)[3] == 0 and len(episodes[3].turns) == 2  # the one it broke over is shown
    for before, after in zip(calm, episodes, strict=True):
        assert content(before) == content(after) or not after.valid
    assert max(replays(episodes)) == 1 and 3 <= sum(replays(episodes)) <= 5
    for episode in episodes:
        assert episode_from_json(episode_to_json(episode)) == episode


@pytest.mark.parametrize("place", ["reset", "init"])
async def test_one_that_dies_before_its_first_turn_costs_no_other(
    place: str, harm: Any, tmp_path: Path
) -> None:
    harm("exit", place=place, **({"once": str(tmp_path / "once")} if place == "init" else {}))
    episodes = await play()
    (reason,) = invalid_causes(episodes)
    what = {"reset": "reset", "init": "open"}[place]
    assert (
        reason == f"environment: EnvironmentFault: {SHARED}.{what}: the worker process died (exit status 1)"
    )
    assert sum(not episode.valid for episode in episodes) == 1 and max(replays(episodes)) == 1


async def test_several_of_them_are_told_apart(harm: Any) -> None:
    calm = await play(AWAITING)
    harm("segfault", (1, 4, 9), place="meeting")
    episodes = await play(AWAITING)  # all calls of all seats are under way, and one is worked on
    assert [episode.task.index for episode in episodes if not episode.valid] == [1, 4, 9]
    assert set(replays(episodes)) <= {0, 1, 2, 3}
    assert all(content(a) == content(b) for a, b in zip(calm, episodes, strict=True) if b.valid)


async def test_one_that_awaits_is_not_late_because_another_hangs(harm: Any) -> None:
    harm("hang", place="meeting")
    episodes = await play(AWAITING, 6, deadline=2.0)
    assert [episode.reason for episode in episodes if not episode.valid] == [
        "environment: TimeoutError: step() gave no answer in 2 s"
    ]
    assert episodes[3].reason and replays(episodes)[3] == 0


async def test_suspects_play_once_more(harm: Any, tmp_path: Path) -> None:
    calm = await play(AWAITING, 6)
    harm("kill", place="thread", once=str(tmp_path / "once"))
    episodes = await play(AWAITING, 6)
    assert replays(episodes) == [1] * 6
    assert [content(episode) for episode in episodes] == [content(episode) for episode in calm]


async def test_suspects_whose_process_dies_twice_are_invalid(harm: Any) -> None:
    harm("exit", place="thread")
    episodes = await play(AWAITING, 12)
    assert [episode.valid for episode in episodes] == [False] * 6 + [True] * 6
    assert replays(episodes) == [1] * 6 + [0] * 6
    (cause,) = invalid_causes(episodes)
    assert cause == (
        "environment: its process was lost 2 times, twice with calls of it and of others under way; the last time: "
        f"ProcessLost: {AWAITING}.step: the worker process died (exit status 1)"
    )


async def test_a_death_between_calls_is_nobodys_and_bounded(harm: Any) -> None:
    harm("exit", (0,), place="between")

    class Thinking(ScriptedAgent):
        def player(self, job: Job, generator: Any) -> Any:
            return self

        async def act(self, observation: Any, env: Any) -> Said:
            await asyncio.sleep(0.6)
            return Said(Action("hm"), "hm")

    (episode,) = await play(BETWEEN, 1, Thinking("null"))
    assert episode.ending == "invalid" and replays([episode]) == [REPLAYS]
    assert episode.reason.startswith(
        f"environment: its process was lost {REPLAYS + 1} times, each time over no call of its own; the last time: "
        f"ProcessLost: {BETWEEN}.step: the worker process "
    )


async def test_worlds_that_always_die_end_all_the_same(harm: Any) -> None:
    harm("exit", range(10))
    seen: list[int] = []
    pool = EnvPool(SHARED, workers=2)
    async with asyncio.timeout(200):
        episodes = await rollout(
            jobs_of(pool, 10), ScriptedAgent("oracle"), pool, RolloutSettings(concurrency=5),
            lambda episode: seen.append(episode.task.index),
        )  # fmt: skip
    await pool.aclose()
    assert not any(episode.valid for episode in episodes) and sorted(seen) == list(range(10))
    assert max(replays(episodes)) <= REPLAYS
    assert pool.opened == pool.closed and not children() - EARLIER


@pytest.mark.parametrize(("pace", "way"), [(2, "segfault"), (2, "hang"), ("lockstep", "segfault")])
async def test_a_model_says_the_same_again_whatever_the_pace(pace: Any, way: str, harm: Any) -> None:
    async def tokens() -> tuple[list[Episode], list[list[tuple[int, ...]]]]:
        tokenizer = make_tokenizer(["world 123456", "3 left, 78901"])
        model = make_model(len(tokenizer), hidden=32, layers=2, heads=2, kv_heads=1, context=512, seed=3)
        model.config._attn_implementation = "gymrl_ragged"
        engine = TransformersEngine(EngineSettings(max_context=512, slots=3), model)
        agent = ModelAgent("tiny", engine, Renderer(tokenizer, [5]), Sampling(max_tokens=5))
        try:
            episodes = await play(SHARED, 6, agent, pace=pace, concurrency=4, deadline=2.0)
        finally:
            await engine.close()
        return episodes, [[turn.completion_ids for turn in episode.turns] for episode in episodes]

    _, calm = await tokens()
    harm(way, (2,))
    episodes, again = await tokens()
    assert [episode.task.index for episode in episodes if not episode.valid] == [2]
    assert again[:2] + again[3:] == calm[:2] + calm[3:] and all(calm)
    assert again[2] == calm[2][:2]
    assert 1 <= sum(replays(episodes)) <= 3 and replays(episodes)[2] == 0


async def test_a_process_that_dies_between_episodes_costs_none() -> None:
    pool = EnvPool(SHARED, workers=1)

    def kill(episode: Episode) -> None:
        (worker,) = pool._processes.workers
        os.kill(worker.pid, signal.SIGKILL)
        worker.thread.join()

    settings = RolloutSettings(concurrency=1)
    episodes = await rollout(jobs_of(pool, 3), ScriptedAgent("oracle"), pool, settings, kill)
    await pool.aclose()
    assert all(episode.valid for episode in episodes) and replays(episodes) == [0, 0, 0]
    assert pool.opened == pool.closed == 3


@pytest.mark.parametrize("ended", [1, 2, 4])
async def test_an_interruption_in_between_leaves_nothing_behind(ended: int, harm: Any) -> None:
    harm("exit", range(0, 40, 2))
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    pool, seen, enough = EnvPool(SHARED, workers=1), [], asyncio.Event()

    def count(episode: Episode) -> None:
        seen.append(episode)
        if len(seen) >= ended:
            enough.set()

    playing = asyncio.create_task(
        rollout(jobs_of(pool, 40), ScriptedAgent("oracle"), pool, RolloutSettings(concurrency=8), count)
    )
    await enough.wait()
    await asyncio.sleep(0.1 * ended)
    assert playing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await playing
    await pool.aclose()
    await nothing_left(pool, before)


# -- beneath -------------------------------------------------------------------------------------------------


async def test_no_deadline_runs_while_others_in_the_process_are_at_work() -> None:
    pool = ProcessPool(1)
    handles = [await pool.open(SLOW, {}) for _ in range(10)]
    task = TaskSpec.make(SLOW, "1", "train", 0)
    await asyncio.gather(*(handle.reset(task) for handle in handles))

    async def step(number: int, text: str, seconds: float) -> str:
        async with within(seconds):
            return (await handles[number].step(Action(text))).observation.text

    assert await asyncio.gather(*(step(i, "on", 1.0) for i in range(10))) == ["done"] * 10  # 2.5 s in all
    with pytest.raises(TimeoutError) as late:
        await step(0, "on", 0.1)
    assert not isinstance(late.value, NoTurn)
    steps = (step(i, "hang" if i == 0 else "on", 1.0) for i in range(3))
    hung, *behind = await asyncio.gather(*steps, return_exceptions=True)
    assert type(hung) is TimeoutError
    assert all(isinstance(error, (NoTurn, ProcessLost)) for error in behind)
    await pool.aclose()


async def test_a_pool_that_is_closed_is_no_accident() -> None:
    pool = ProcessPool(1)
    handle = await pool.open(SLOW, {})
    await pool.aclose()
    with pytest.raises(EnvironmentFault, match="was closed") as caught:
        await handle.reset(TaskSpec.make(SLOW, "1", "train", 0))
    assert not isinstance(caught.value, ProcessLost)
