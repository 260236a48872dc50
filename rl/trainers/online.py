"""Online policy optimisation: rollouts of groups, filters, advantages, updates, new weights for the engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gymrl.agents.engines.base import EngineFault
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

__all__ = ["OnlineStep", "_loss_of", "check_engine", "jobs_of_step", "learn", "online_step"]


@dataclass(frozen=True)
class OnlineStep:
    """What one step came to."""

    episodes: list[Episode]
    metrics: dict[str, Any]


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


async def online_step(
    learner: Learner, agent: ModelAgent, pool: EnvPool, rollouts: RolloutSettings, settings: RlSection,
    temperature: float, step: int, seed: int, first: int, helpers: Helpers | None = None,
    among: Sequence[int] | None = None, shown: Sequence[TokenSequence] = (),
    ready: Callable[[list[Group]], list[Group]] | None = None,
) -> OnlineStep:  # fmt: skip
    """Play, learn, and serve the new weights. `ready` makes the groups that were played ready to learn from. Raises
    EngineFault if the engine failed (its episodes are lost, the weights are as before)."""
    began, busy = time.perf_counter(), agent.engine.busy_seconds
    groups: list[Group] = []
    episodes: list[Episode] = []
    dropped = 0
    for attempt in range(settings.resample + 1):
        jobs = jobs_of_step(pool, settings, step, seed, first, attempt, settings.tasks - len(groups), among)
        played_now = await rollout(jobs, agent, pool, rollouts)
        check_engine(played_now)
        episodes += played_now
        fresh = group_by_task(played_now)
        if settings.resample:
            some = [group for group in fresh if has_spread(group, settings)]
            dropped += len(fresh) - len(some)
            fresh = some
        groups += fresh
        if len(groups) >= settings.tasks:
            break
    played = time.perf_counter()
    if ready is not None:
        groups = ready(groups)
    metrics = learn(learner, groups, settings, temperature, step, helpers, shown)
    if settings.resample:  # groups that were dropped were played too, and are part of how well the policy does
        metrics |= episode_metrics([e for e in episodes if e.sample != settings.group])
        metrics |= {"dropped_groups": dropped, "drop_rate": dropped / max(1, dropped + len(groups))}
    learned = time.perf_counter()
    await agent.engine.load_weights(learner.weights(), learner.updates)
    synced = time.perf_counter()
    generating = agent.engine.busy_seconds - busy
    metrics |= {
        "time/generate": generating,
        "time/environment": played - began - generating,
        "time/learn": learned - played,
        "time/sync": synced - learned,
        "time/step": synced - began,
        "time/tokens_per_second": metrics["sampled_tokens"] / (synced - began),
        "time/trained_per_second": metrics.get("tokens", 0) / (learned - played),
    }
    return OnlineStep([replace_greedy(e, settings) for e in episodes], metrics)


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
