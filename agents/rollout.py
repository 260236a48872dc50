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
from gymrl.envs.deadlines import NoTurn, within
from gymrl.envs.gym import StepResult
from gymrl.envs.logbook import ProcessLost
from gymrl.envs.records import Action, Message, Observation, TaskSpec, Tool
from gymrl.envs.workers import EnvHandle, EnvPool

T = TypeVar("T")

REPLAYS = 5
"""How often an episode is played again because its worker process was lost over another's call."""


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


Lost = Literal["", "bystander", "suspect"]
"""Whether an episode broke because its process was lost over another's call, or perhaps over its own, or neither."""


class _Broken(Exception):
    """The environment raised, or missed its deadline; the text is the episode's reason. turn: what it broke over."""

    turn: Turn | None = None

    def __init__(self, reason: str, lost: Lost = "") -> None:
        super().__init__(reason)
        self.lost = lost


@dataclass(frozen=True)
class Played:
    """What a try came to. broken: the environment can no longer be used."""

    episode: Episode
    broken: bool = False
    lost: Lost = ""


class _Tries:
    """The tries of one episode."""

    def __init__(self) -> None:
        self.replays = self._suspected = 0

    def again(self, played: Played) -> bool:
        """Whether there is another one: the last was lost, and may be so once over a call of its own, perhaps."""
        self._suspected += played.lost == "suspect"
        if not played.lost or self._suspected > 1 or self.replays >= REPLAYS:
            return False
        self.replays += 1
        return True

    def told(self, played: Played) -> Episode:
        """The episode of the last try, with the number of the others."""
        if not self.replays:
            return played.episode
        metrics = {**played.episode.metrics, "replays": self.replays}
        if not played.lost:
            return replace(played.episode, metrics=metrics)
        how = "each time over no call of its own"
        if self._suspected > 1:
            how = "twice with calls of it and of others under way"
        reason = played.episode.reason.removeprefix("environment: ")
        text = f"environment: its process was lost {self.replays + 1} times, {how}; the last time: {reason}"
        return replace(played.episode, reason=text, metrics=metrics)


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
            raise _Broken(f"environment: {late if limit.expired() else told(error)}", _lost(error)) from error


def _lost(error: Exception) -> Lost:
    if isinstance(error, ProcessLost):
        return "suspect" if error.suspect else "bystander"
    return "bystander" if isinstance(error, NoTurn) else ""


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

    Where an environment brings down the worker process that it shares with others, or hangs there, only its own episode
    is `invalid`: the others are played again from their start, in the same seat and with the same seeds, at most
    `REPLAYS` times (once where it cannot be told whose call it was). Their `metrics` then count the `replays`; turns,
    timings and `seconds` are those of the last try. A seat that plays again offers its requests again, so that which
    requests share a step of the engine depends on such an accident, whatever the pace; what is sampled depends on the
    jobs alone, up to the last bits of sums.
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
        try:
            for job in queue:
                tries, played = _Tries(), None
                while played is None or tries.again(played):
                    try:
                        handle = await pool.take()
                    except Exception as error:
                        reason = f"environment: {told(error)}"
                        played = Played(_invalid(job, agent.name, reason), lost=_lost(error))
                        continue
                    played = await play(job, agent, handle, settings, gate, pool.success_reward)
                    if played.broken:
                        await _discard(pool, handle, settings.deadline)
                    else:
                        pool.give(handle)  # and not while it is in use, should this task be cancelled
                episodes[job.order] = episode = tries.told(played)
                if on_episode:
                    on_episode(episode)
        finally:
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
) -> Played:  # fmt: skip
    """Play one episode, once."""
    guarded = _Guarded(env, settings.deadline)
    turns: list[Turn] = []
    tools: tuple[Tool, ...] = ()
    closing: tuple[Message, ...] = ()
    ending: Ending
    so_far = 0.0
    began = time.perf_counter()

    def invalid(reason: str, broken: bool = False, lost: Lost = "") -> Played:
        episode = replace(_invalid(job, agent.name, reason), turns=tuple(turns), tools=tools)
        return Played(episode, broken, lost)

    try:
        player = agent.player(job, generator)
        observation, _ = await guarded.reset(job.task)
        tools = offered = observation.tools
        while True:
            before, offered = offered, observation.tools or offered
            turn, observation, end = await _turn(player, guarded, observation, settings, len(turns))
            if not math.isfinite(so_far := so_far + turn.reward):
                text = f"environment: the rewards of {len(turns) + 1} turns sum to {so_far}: return smaller rewards"
                return invalid(text, broken=True)
            turns.append(turn if offered == before else replace(turn, tools=offered))
            if end is not None:
                ending, reason = end
                closing = observation.messages
                break
    except ContextFull as full:
        if not turns:
            mend = "raise max_context, or take a model with a wider one"
            return invalid(f"policy: the first prompt does not fit ({full}): {mend}")
        ending, reason = "truncated", "context"
        closing = observation.messages
    except _Broken as broken:
        turns += [broken.turn] if broken.turn is not None else []
        return invalid(str(broken), True, broken.lost)
    except EngineFault as error:
        return invalid(f"engine: {error}")
    except Exception as error:
        return invalid(f"policy: {_describe(error)}")
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
    return Played(episode)


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
        # Its author wants to see the turn; it counts for nothing.
        broken.turn = turn_of(0.0, False, {"broken": True})
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
