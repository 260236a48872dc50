"""Deadlines stand still while a world waits for its turn, and run while it works."""

from __future__ import annotations

import asyncio
import threading

import pytest

from gymrl.agents.players import Job, ScriptedAgent
from gymrl.agents.rollout import RolloutSettings, rollout
from gymrl.envs import Action, Environment, register
from gymrl.envs.deadlines import wait_turn, within
from gymrl.envs.workers import EnvPool


class Queueing(Environment):
    """Its resets go one by one and take a while each."""

    turns = asyncio.Semaphore(1)

    def __init__(self, held: bool = True, works: float = 0.3) -> None:
        self.held, self.works = held, works

    async def reset(self) -> str:
        turn = wait_turn()
        if not self.held:
            turn.begun()
        async with self.turns:
            turn.begun()
            await asyncio.sleep(self.works)
        return "say end"

    def step(self, action: Action) -> tuple[str, float, bool]:
        return "", 1.0, True

    def oracle(self) -> str:
        return "<answer>end</answer>"


register("test/Queueing-v0", Queueing, source="test")


@pytest.mark.parametrize(("params", "valid"), [({}, 12), ({"held": False}, 0), ({"works": 30.0}, 0)])
async def test_only_work_counts(params, valid):
    Queueing.turns = asyncio.Semaphore(1)
    if not valid:
        await Queueing.turns.acquire()  # nobody's turn comes
        if "works" in params:
            Queueing.turns.release()
    pool = EnvPool("test/Queueing-v0", params)
    jobs = [Job(pool.task("train", index)) for index in range(12 if valid else 1)]
    seconds = 1.5 if valid else 0.2
    episodes = await rollout(jobs, ScriptedAgent("oracle"), pool, RolloutSettings(deadline=seconds))
    assert sum(episode.valid for episode in episodes) == valid
    assert valid or "gave no answer in 0.2 s" in str(episodes[0])
    await pool.aclose()


async def test_a_wait_of_any_length_leaves_the_limit_as_it_was():
    async with within(0.5) as limit:
        turn = wait_turn()
        assert limit.when() is None
        inner = wait_turn()  # of a world inside: the outer wait goes on
        inner.begun()
        assert limit.when() is None
        await asyncio.sleep(0.8)
        threading.Thread(target=turn.begun).start()
        while limit.when() is None:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        turn.begun()
    with pytest.raises(TimeoutError):
        async with within(0.01):
            wait_turn().begun()
            await asyncio.sleep(30)
    wait_turn().begun()  # without a limit there is nothing to hold
