"""The rollout loop: many episodes at once on one event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from gymrl.agents.engines.base import Engine, EngineFault, Generation, GenerationRequest
from gymrl.agents.players import Agent, ContextFull, Generator, Job, ModelAgent, Player, Said
from gymrl.agents.records import Ending, Episode, Turn
from gymrl.envs.records import Message, Observation, Tool
from gymrl.envs.workers import EnvHandle, EnvPool

T = TypeVar("T")


@dataclass(frozen=True)
class RolloutSettings:
    """How episodes are played.

    `lockstep` hands the engine one batch a round, when every running episode waits for it: results then depend on
    the jobs alone, not on timing. Without it requests go to the engine as they come. `deadline` is the time
    (s) an environment has for one call. `max_turns` cuts earlier than the environment does. `void_ends` ends an
    episode at its first void turn.
    """

    concurrency: int = 128
    lockstep: bool = True
    deadline: float = 60.0
    max_turns: int | None = None
    void_ends: bool = False


class DirectGenerator:
    """Hands every request to the engine as it comes."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    async def generate(self, job: Job, request: GenerationRequest) -> Generation:
        return await self.engine.generate(request)

    def enter(self) -> None: ...

    def leave(self) -> None: ...


class LockstepGenerator:
    """Waits until every episode that runs has asked, then submits all requests at once, in the jobs' order."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._active = 0
        self._waiting: list[tuple[int, GenerationRequest, asyncio.Future[Generation]]] = []
        self._batches: set[asyncio.Task[None]] = set()

    def enter(self) -> None:
        self._active += 1

    def leave(self) -> None:
        self._active -= 1
        self._submit()

    async def generate(self, job: Job, request: GenerationRequest) -> Generation:
        future: asyncio.Future[Generation] = asyncio.get_running_loop().create_future()
        self._waiting.append((job.order, request, future))
        self._submit()
        return await future

    def _submit(self) -> None:
        if self._waiting and len(self._waiting) >= self._active:
            batch, self._waiting = sorted(self._waiting, key=lambda item: item[0]), []
            task = asyncio.get_running_loop().create_task(self._run(batch))
            self._batches.add(task)
            task.add_done_callback(self._batches.discard)

    async def _run(self, batch: list[tuple[int, GenerationRequest, asyncio.Future[Generation]]]) -> None:
        try:
            results = await self.engine.generate_batch([request for _, request, _ in batch])
        except Exception as error:
            for _, _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, _, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)


async def rollout(
    jobs: Sequence[Job],
    agent: Agent,
    pool: EnvPool,
    settings: RolloutSettings | None = None,
    on_episode: Callable[[Episode], None] | None = None,
) -> list[Episode]:
    """Play the jobs; returns their episodes in the jobs' order.

    An environment that raises, or misses its deadline, makes its episode `invalid`; so does an engine that fails.
    `on_episode` is called on the event loop as each episode ends.
    """
    settings = settings or RolloutSettings()
    jobs = [replace(job, order=order) for order, job in enumerate(jobs)]
    generator: Any = None
    if isinstance(agent, ModelAgent):
        generator = (LockstepGenerator if settings.lockstep else DirectGenerator)(agent.engine)
    episodes: list[Episode | None] = [None] * len(jobs)
    queue = iter(jobs)

    async def work() -> None:
        handle: EnvHandle | None = None
        try:
            for job in queue:
                episode, broken = Episode(job.task, (), "invalid", "never played"), True
                try:
                    handle = handle or await pool.take()
                    episode, broken = await play(job, agent, handle, settings, generator, pool.success_reward)
                except Exception as error:
                    episode = _invalid(job, agent.name, f"environment: {_describe(error)}")
                if broken and handle is not None:
                    await pool.release(handle)
                    handle = None
                episodes[job.order] = episode
                if on_episode:
                    on_episode(episode)
        finally:
            if handle is not None:
                pool.give(handle)
            if generator is not None:
                generator.leave()

    count = min(settings.concurrency, len(jobs))
    if generator is not None:
        for _ in range(count):
            generator.enter()
    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(work())
    return [episode for episode in episodes if episode is not None]


async def play(
    job: Job, agent: Agent, env: EnvHandle, settings: RolloutSettings, generator: Generator | None,
    success_reward: float,
) -> tuple[Episode, bool]:  # fmt: skip
    """Play one episode. Returns it, and whether the environment can no longer be used."""
    player = agent.player(job, generator)
    turns: list[Turn] = []
    tools: tuple[Tool, ...] = ()
    closing: tuple[Message, ...] = ()
    ending: Ending
    began = time.perf_counter()
    try:
        observation, _ = await _within(env.reset(job.task), settings.deadline, "reset")
        while True:
            tools = observation.tools or tools
            turn, observation, end = await _turn(player, env, observation, settings, len(turns))
            turns.append(turn)
            if end is not None:
                ending, reason = end
                closing = observation.messages
                break
    except ContextFull as full:
        if not turns:
            raise ValueError(f"the first prompt does not fit: {full}; raise engine.max_context") from full
        ending, reason = "truncated", "context"
        closing = observation.messages
    except EngineFault as error:
        return replace(_invalid(job, agent.name, f"engine: {error}"), turns=tuple(turns), tools=tools), False
    except asyncio.CancelledError:
        raise
    except Exception as error:
        reason = f"environment: {_describe(error)}"
        return replace(_invalid(job, agent.name, reason), turns=tuple(turns), tools=tools), True
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
    result = await _within(env.step(said.action), settings.deadline, "step")
    info = dict(result.info)
    void = bool(info.pop("void"))
    turn = Turn(
        observation.messages, said.text, said.action.tool_calls, said.prompt_ids, said.completion_ids, said.logprobs,
        said.versions, said.segment, said.stop, result.reward, void,
        {"generate": said.seconds, "environment": time.perf_counter() - began}, info,
    )  # fmt: skip
    end: tuple[Ending, str] | None = None
    if result.terminated:
        end = ("terminated", "")
    elif result.truncated:
        end = ("truncated", str(info.get("cut", "environment")))
    elif void and settings.void_ends:
        end = ("terminated", "void")
    elif said.stop == "context":
        end = ("truncated", "context")
    elif settings.max_turns is not None and index + 1 >= settings.max_turns:
        end = ("truncated", "max_turns")
    return turn, result.observation, end


async def _within(call: Awaitable[T], deadline: float, what: str) -> T:
    try:
        async with asyncio.timeout(deadline):
            return await call
    except TimeoutError:
        raise TimeoutError(f"{what}() gave no answer in {deadline:g} s") from None


def _invalid(job: Job, policy: str, reason: str) -> Episode:
    return Episode(
        job.task, (), "invalid", reason, policy=policy, group=job.group, sample=job.sample, seed=job.seed
    )


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:500]
