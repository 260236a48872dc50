"""Online policy optimisation: rollouts of groups, filters, advantages, updates, new weights for the engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gymrl.agents.engines.base import Engine, EngineFault
from gymrl.agents.players import Job, ModelAgent
from gymrl.agents.records import Episode
from gymrl.agents.rollout import RolloutSettings, rollout
from gymrl.envs.records import stable_hash
from gymrl.envs.workers import EnvPool
from gymrl.rl.algorithms import find
from gymrl.rl.batches import TokenSequence
from gymrl.rl.filters import judge
from gymrl.rl.groups import Group, group_by_task
from gymrl.rl.learner import Learner
from gymrl.rl.objective import loss_of_settings as _loss_of
from gymrl.rl.recipes.models import RlSection
from gymrl.rl.trainers.update import Helpers, episode_metrics, filters_of, learn, shaped

__all__ = [
    "OnlineStep", "Played", "_loss_of", "check_engine", "jobs_of_step", "learn", "online_step", "play_step",
]  # fmt: skip


@dataclass(frozen=True)
class Played:
    """A step's rollouts. `seconds` is their wall-clock, in `generating` of which the engine had something to do."""

    episodes: list[Episode]
    seconds: float
    generating: float


@dataclass(frozen=True)
class OnlineStep:
    """What one step came to; `ahead` is what was played beside its learning."""

    episodes: list[Episode]
    metrics: dict[str, Any]
    ahead: Played | None = None


@dataclass(frozen=True)
class Ahead:
    """How a step learns while the next one's rollouts are played: `play` plays them with the weights that the engine
    has, `executor` has a thread for learning."""

    play: Callable[[], Awaitable[Played]]
    executor: Executor


def jobs_of_step(
    pool: EnvPool, settings: RlSection, step: int, seed: int, first: int, attempt: int = 0, tasks: int | None = None,
    among: Sequence[int] | None = None,
) -> list[Job]:  # fmt: skip
    """The rollouts of a step, a pure function of its arguments: the next `tasks` training tasks from index `first`
    on (around again at the end of the split), each `group` times, and once more greedily where the advantage asks
    for it. `among` are the indices to take tasks from instead. Attempt 1 and later, of groups sampled anew, take
    tasks beyond those of all steps."""
    size = pool.template.world.sizes["train"]
    tasks = settings.tasks if tasks is None else tasks
    start = first + step * settings.tasks
    if attempt:
        start += (settings.steps * attempt) * settings.tasks
    greedy = "greedy_P" in find("advantage", settings.advantage.name).inputs
    jobs = []
    for number in range(tasks):
        index = (start + number) % size if among is None else among[(start - first + number) % len(among)]
        task = pool.task("train", index)
        group = attempt * settings.tasks + number
        for sample in range(settings.group):
            jobs.append(Job(task, group, sample, stable_hash("rollout", seed, step, group, sample)))
        if greedy:
            jobs.append(
                Job(task, group, settings.group, stable_hash("greedy", seed, step, group), greedy=True)
            )
    return jobs


async def play_step(
    agent: ModelAgent, pool: EnvPool, rollouts: RolloutSettings, settings: RlSection, step: int, seed: int,
    first: int, among: Sequence[int] | None = None,
) -> Played:  # fmt: skip
    """Play the rollouts of a step, groups without spread anew where the settings say so. Raises EngineFault if the
    engine failed (its episodes are lost)."""
    began, busy = time.perf_counter(), agent.engine.busy_seconds
    episodes: list[Episode] = []
    kept = 0
    for attempt in range(settings.resample + 1):
        jobs = jobs_of_step(pool, settings, step, seed, first, attempt, settings.tasks - kept, among)
        played_now = await rollout(jobs, agent, pool, rollouts)
        check_engine(played_now)
        episodes += played_now
        kept = len(_groups(episodes, settings))
        if kept >= settings.tasks:
            break
    return Played(episodes, time.perf_counter() - began, agent.engine.busy_seconds - busy)


async def online_step(
    learner: Learner, engine: Engine, play: Callable[[], Awaitable[Played]], settings: RlSection, temperature: float,
    step: int, helpers: Helpers | None = None, shown: Sequence[TokenSequence] = (),
    ready: Callable[[list[Group]], list[Group]] | None = None, ahead: Ahead | None = None,
) -> OnlineStep:  # fmt: skip
    """Play, learn, and serve the new weights. `play` gives the step's rollouts (see `play_step`), `ready` makes their
    groups ready to learn from, and `ahead` says what is to be played while the learner works; the new weights are
    served when that is done. Raises EngineFault if the engine failed (its episodes are lost, the engine's weights are
    as before)."""
    began = time.perf_counter()
    played = await play()
    groups = _groups(played.episodes, settings)
    waited = time.perf_counter()

    def learning() -> tuple[dict[str, Any], float]:
        found = learn(learner, ready(groups) if ready else groups, settings, temperature, step, helpers, shown)
        return found, time.perf_counter()

    following = None
    if ahead is None:
        metrics, learned = learning()
    else:
        (metrics, learned), following = await _beside(learning, ahead)
    there = time.perf_counter()
    if settings.resample:  # groups that were dropped were played too, and are part of how well the policy does
        metrics |= episode_metrics([e for e in played.episodes if e.sample != settings.group])
        whole = len(group_by_task(played.episodes))
        metrics |= {"dropped_groups": whole - len(groups), "drop_rate": 1 - len(groups) / max(1, whole)}
    await engine.load_weights(learner.weights(), learner.updates)
    synced = time.perf_counter()
    metrics |= {
        "time/generate": played.generating,
        "time/environment": played.seconds - played.generating,
        "time/learn": learned - waited,
        "time/sync": synced - there,
        "time/step": synced - began,
        "time/tokens_per_second": metrics["sampled_tokens"] / (synced - began),
        "time/trained_per_second": metrics.get("tokens", 0) / (learned - waited),
    }
    if settings.overlap:
        metrics["time/wait"] = waited - began + there - learned
    return OnlineStep([replace_greedy(e, settings) for e in played.episodes], metrics, following)


async def _beside(
    learning: Callable[[], tuple[dict[str, Any], float]], ahead: Ahead
) -> tuple[tuple[dict[str, Any], float], Played]:
    """Learn in a thread while rollouts are played; both are over when this is, whatever happens."""
    playing = asyncio.ensure_future(ahead.play())
    thread = asyncio.get_running_loop().run_in_executor(ahead.executor, learning)
    both: list[asyncio.Future[Any]] = [playing, thread]
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_EXCEPTION)
        return await thread, await playing
    finally:
        playing.cancel()
        await asyncio.wait(both)


def _groups(episodes: Sequence[Episode], settings: RlSection) -> list[Group]:
    """The groups that are learnt from: with `resample` those with spread."""
    groups = group_by_task(episodes)
    return [group for group in groups if has_spread(group, settings)] if settings.resample else groups


def has_spread(group: Group, settings: RlSection) -> bool:
    """Whether the episodes of a group that count, the greedy one included, differ in what they are compared by: their
    (shaped) reward, or the rewards of their turns where the advantage looks at those."""
    inputs, filters = find("advantage", settings.advantage.name).inputs, filters_of(settings)
    by_turn = settings.credit == "turn" or "rewards_PG" not in inputs
    counted = [shaped(e, settings).tolist() for e in group.episodes if judge(e, filters).counted]
    return len({tuple(np.trim_zeros(row, "b")) if by_turn else sum(row) for row in counted}) > 1


def replace_greedy(episode: Episode, settings: RlSection) -> Episode:
    """The episode, named as greedy if it is the group's baseline."""
    return (
        replace(episode, policy=f"{episode.policy} (greedy)") if episode.sample == settings.group else episode
    )


def check_engine(episodes: Sequence[Episode]) -> None:
    """Raise EngineFault if the engine failed any of the episodes: a run cannot go on without it."""
    for episode in episodes:
        if episode.reason.startswith("engine: "):
            raise EngineFault(episode.reason.removeprefix("engine: "))
