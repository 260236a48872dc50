"""The rollout loop: many episodes at once on one event loop."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from gymrl.agents.engines.base import EngineFault
from gymrl.agents.gates import Gate, gate_for
from gymrl.agents.players import Agent, ContextFull, Generator, Job, ModelAgent, Player, Said
from gymrl.agents.records import Ending, Episode, Turn
from gymrl.envs.blame import told
from gymrl.envs.deadlines import within
from gymrl.envs.gym import StepResult
from gymrl.envs.records import Action, Message, Observation, TaskSpec, Tool
from gymrl.envs.workers import EnvHandle, EnvPool

T = TypeVar("T")


@dataclass(frozen=True)
class RolloutSettings:
    """How episodes are played.

    `pace` says when requests join the engine's batch, see `gymrl.agents.gates`. `deadline` is the time (s) an
    environment has for one answer, waits for its turn left out. `max_turns` cuts earlier than the environment does.
    `void_ends` ends an episode at its first void turn.
    """

    concurrency: int = 128
    pace: int | Literal["lockstep", "free"] = 2
    deadline: float = 60.0
    max_turns: int | None = None
    void_ends: bool = False

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.deadline <= 0 or (self.max_turns is not None and self.max_turns < 1):
            raise ValueError(
                "a rollout takes a concurrency and max_turns of 1 or more, and a deadline above 0 s"
            )
        if self.pace not in ("lockstep", "free") and not (isinstance(self.pace, int) and self.pace >= 1):
            raise ValueError(
                f"pace is a number of engine steps from 1 on, lockstep or free, not {self.pace!r}"
            )


class _Broken(Exception):
    """The environment raised, or missed its deadline; the text is the episode's reason. turn: what it broke over."""

    turn: Turn | None = None


class _Guarded:
    """An environment whose every answer has a deadline, and whose failures cannot be taken for the policy's."""

    def __init__(self, env: EnvHandle, deadline: float) -> None:
        self.env, self.deadline = env, deadline

    async def reset(self, task: TaskSpec) -> tuple[Observation, dict[str, Any]]:
        return await self._within(self.env.reset(task), "reset")

    async def step(self, action: Action) -> StepResult:
        return await self._within(self.env.step(action), "step")

    async def oracle(self) -> Action:
        return await self._within(self.env.oracle(), "oracle")

    async def random_action(self, seed: int) -> Action:
        return await self._within(self.env.random_action(seed), "random_action")

    async def close(self) -> None:
        await self._within(self.env.close(), "close")

    async def _within(self, call: Awaitable[T], what: str) -> T:
        try:
            async with within(self.deadline) as limit:
                return await call
        except Exception as error:
            late = f"TimeoutError: {what}() gave no answer in {self.deadline:g} s"
            raise _Broken(f"environment: {late if limit.expired() else told(error)}") from error


async def rollout(
    jobs: Sequence[Job],
    agent: Agent,
    pool: EnvPool,
    settings: RolloutSettings | None = None,
    on_episode: Callable[[Episode], None] | None = None,
) -> list[Episode]:
    """Play the jobs; returns their episodes in the jobs' order.

    An environment that raises, or misses its deadline, makes its episode `invalid`; so do an engine that fails and a
    policy that cannot answer. The reason begins with `environment:`, `engine:` or `policy:`. `on_episode` is called
    on the event loop as each episode ends; what it raises ends the rollout and is raised here.
    """
    settings = settings or RolloutSettings()
    jobs = [replace(job, order=order) for order, job in enumerate(jobs)]
    episodes: list[Episode | None] = [None] * len(jobs)
    count = min(settings.concurrency, len(jobs))
    gate: Gate | None = None
    if isinstance(agent, ModelAgent):
        gate = gate_for(agent.engine, settings.pace, count)
    shared = iter(jobs)

    async def work(seat: int) -> None:
        queue = iter(jobs[seat::count]) if gate is not None and gate.seated else shared
        handle: EnvHandle | None = None
        try:
            for job in queue:
                try:
                    taken = handle or await pool.take()
                except Exception as error:
                    episode = _invalid(job, agent.name, f"environment: {told(error)}")
                else:
                    handle = None  # not given back while it is in use, should this task be cancelled
                    episode, broken = await play(job, agent, taken, settings, gate, pool.success_reward)
                    if broken:
                        await _discard(pool, taken, settings.deadline)
                    else:
                        handle = taken
                episodes[job.order] = episode
                if on_episode:
                    on_episode(episode)
        finally:
            if handle is not None:
                pool.give(handle)
            if gate is not None:
                gate.leave(seat)

    if gate is not None:
        for seat in range(count):
            gate.enter(seat)
    try:
        async with asyncio.TaskGroup() as group:
            for seat in range(count):
                group.create_task(work(seat))
    except BaseExceptionGroup as errors:  # of on_episode, or an interruption: the first one tells the story
        raise errors.exceptions[0] from None
    return [episode for episode in episodes if episode is not None]


async def play(
    job: Job, agent: Agent, env: EnvHandle, settings: RolloutSettings, generator: Generator | None,
    success_reward: float,
) -> tuple[Episode, bool]:  # fmt: skip
    """Play one episode. Returns it, and whether the environment can no longer be used."""
    guarded = _Guarded(env, settings.deadline)
    turns: list[Turn] = []
    tools: tuple[Tool, ...] = ()
    closing: tuple[Message, ...] = ()
    ending: Ending
    so_far = 0.0
    began = time.perf_counter()

    def invalid(reason: str) -> Episode:
        return replace(_invalid(job, agent.name, reason), turns=tuple(turns), tools=tools)

    try:
        player = agent.player(job, generator)
        observation, _ = await guarded.reset(job.task)
        tools = offered = observation.tools
        while True:
            before, offered = offered, observation.tools or offered
            turn, observation, end = await _turn(player, guarded, observation, settings, len(turns))
            if not math.isfinite(so_far := so_far + turn.reward):
                text = f"environment: the rewards of {len(turns) + 1} turns sum to {so_far}: return smaller rewards"
                return invalid(text), True
            turns.append(turn if offered == before else replace(turn, tools=offered))
            if end is not None:
                ending, reason = end
                closing = observation.messages
                break
    except ContextFull as full:
        if not turns:
            mend = "raise max_context, or take a model with a wider one"
            return invalid(f"policy: the first prompt does not fit ({full}): {mend}"), False
        ending, reason = "truncated", "context"
        closing = observation.messages
    except _Broken as broken:
        turns += [broken.turn] if broken.turn is not None else []
        return invalid(str(broken)), True
    except EngineFault as error:
        return invalid(f"engine: {error}"), False
    except Exception as error:
        return invalid(f"policy: {_describe(error)}"), False
    total = sum(turn.reward for turn in turns)
    episode = Episode(
        job.task, tuple(turns), ending, reason, ending == "terminated" and total >= success_reward, closing, tools,
        agent.name, job.group, job.sample, job.seed,
        {
            "turns": len(turns),
            "tokens": sum(len(turn.completion_ids) for turn in turns),
            "void_turns": sum(turn.void for turn in turns),
            "seconds": time.perf_counter() - began,
        },
    )  # fmt: skip
    return episode, False


async def _turn(
    player: Player, env: EnvHandle, observation: Observation, settings: RolloutSettings, index: int
) -> tuple[Turn, Observation, tuple[Ending, str] | None]:
    said: Said = await player.act(observation, env)
    began = time.perf_counter()

    def turn_of(reward: float, void: bool, info: dict[str, Any]) -> Turn:
        return Turn(
            observation.messages, said.text, said.action.tool_calls, said.prompt_ids, said.completion_ids,
            said.logprobs, said.versions, said.segment, said.stop, reward, void,
            {"generate": said.seconds, "environment": time.perf_counter() - began}, info,
        )  # fmt: skip

    try:
        result = await env.step(said.action)
    except _Broken as broken:
        broken.turn = turn_of(0.0, False, {"broken": True})  # its author wants to see it; it counts for nothing
        raise
    info = dict(result.info)
    turn = turn_of(result.reward, bool(info.pop("void")), info)
    end: tuple[Ending, str] | None = None
    if result.terminated:
        end = ("terminated", "")
    elif result.truncated:
        end = ("truncated", str(info.get("cut", "environment")))
    elif turn.void and settings.void_ends:
        end = ("terminated", "void")
    elif said.stop == "context":
        end = ("truncated", "context")
    elif settings.max_turns is not None and index + 1 >= settings.max_turns:
        end = ("truncated", "max_turns")
    return turn, result.observation, end


async def _discard(pool: EnvPool, handle: EnvHandle, deadline: float) -> None:
    """Close an environment that broke. It may not even close: then it is left behind, and the pool has counted it."""
    try:
        async with asyncio.timeout(deadline):
            await pool.release(handle)
    except Exception:
        return


def _invalid(job: Job, policy: str, reason: str) -> Episode:
    return Episode(
        job.task, (), "invalid", reason, policy=policy, group=job.group, sample=job.sample, seed=job.seed
    )


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:500]
