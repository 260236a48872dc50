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
from gymrl.envs.blame import told
from gymrl.envs.gym import StepResult
from gymrl.envs.records import Action, Message, Observation, TaskSpec, Tool
from gymrl.envs.workers import EnvHandle, EnvPool

T = TypeVar("T")


@dataclass(frozen=True)
class RolloutSettings:
    """How episodes are played.

    `lockstep` hands the engine one batch a round, when every running episode waits for it: results then depend on
    the jobs alone, not on timing. Without it requests go to the engine as they come. `deadline` is the time
    (s) an environment has for one answer. `max_turns` cuts earlier than the environment does. `void_ends` ends an
    episode at its first void turn.
    """

    concurrency: int = 128
    lockstep: bool = True
    deadline: float = 60.0
    max_turns: int | None = None
    void_ends: bool = False

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.deadline <= 0 or (self.max_turns is not None and self.max_turns < 1):
            raise ValueError(
                "a rollout takes a concurrency and max_turns of 1 or more, and a deadline above 0 s"
            )


class _Broken(Exception):
    """The environment raised, or missed its deadline; the text is the episode's reason."""


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
            async with asyncio.timeout(self.deadline) as limit:
                return await call
        except Exception as error:
            late = f"TimeoutError: {what}() gave no answer in {self.deadline:g} s"
            raise _Broken(f"environment: {late if limit.expired() else told(error)}") from error


class _Busy:
    """Counts the time in which an engine has at least one request into its `busy_seconds`."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.calls, self.since = engine, 0, 0.0

    def __enter__(self) -> None:
        if self.calls == 0:
            self.since = time.perf_counter()
        self.calls += 1

    def __exit__(self, *_: object) -> None:
        self.calls -= 1
        if self.calls == 0:
            self.engine.busy_seconds += time.perf_counter() - self.since


class DirectGenerator:
    """Hands every request to the engine as it comes."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._busy = _Busy(engine)

    async def generate(self, job: Job, request: GenerationRequest) -> Generation:
        with self._busy:
            return await self.engine.generate(request)

    def enter(self) -> None: ...

    def leave(self) -> None: ...


class LockstepGenerator:
    """Waits until every episode that runs has asked, then submits all requests at once, in the jobs' order."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._busy = _Busy(engine)
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
        fault: BaseException

        def answer(place: int, result: Generation) -> None:
            """What is done goes to its environment while the others are still being written."""
            future = batch[place][2]
            if not future.done():
                future.set_result(result)

        try:
            with self._busy:
                await self.engine.generate_batch([request for _, request, _ in batch], answer)
        except (Exception, asyncio.CancelledError) as error:  # whoever waits must hear of it
            cancelled = isinstance(error, asyncio.CancelledError)
            fault = EngineFault("the engine dropped its requests") if cancelled else error
            for _, _, future in batch:
                if not future.done():
                    future.set_exception(fault)


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
    generator: Any = None
    if isinstance(agent, ModelAgent):
        generator = (LockstepGenerator if settings.lockstep else DirectGenerator)(agent.engine)
    episodes: list[Episode | None] = [None] * len(jobs)
    queue = iter(jobs)

    async def work() -> None:
        handle: EnvHandle | None = None
        try:
            for job in queue:
                try:
                    taken = handle or await pool.take()
                except Exception as error:
                    episode = _invalid(job, agent.name, f"environment: {told(error)}")
                else:
                    handle = None  # not given back while it is in use, should this task be cancelled
                    episode, broken = await play(job, agent, taken, settings, generator, pool.success_reward)
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
            if generator is not None:
                generator.leave()

    count = min(settings.concurrency, len(jobs))
    if generator is not None:
        for _ in range(count):
            generator.enter()
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(work())
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
            turns.append(turn if offered == before else replace(turn, tools=offered))
            if end is not None:
                ending, reason = end
                closing = observation.messages
                break
    except ContextFull as full:
        if not turns:
            return invalid(f"policy: the first prompt does not fit ({full}): raise max_context"), False
        ending, reason = "truncated", "context"
        closing = observation.messages
    except _Broken as broken:
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
    result = await env.step(said.action)
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
