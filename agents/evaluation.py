"""How good an agent is: success with its interval, over held-out tasks."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gymrl.agents.players import Agent, Job
from gymrl.agents.records import Episode
from gymrl.agents.rollout import RolloutSettings, rollout
from gymrl.envs.intervals import wilson
from gymrl.envs.records import TaskSpec, stable_hash
from gymrl.envs.workers import EnvPool


@dataclass(frozen=True)
class Evaluation:
    """`success` is the share of valid episodes that succeeded, `low` and `high` its 95 % Wilson interval. Invalid
    episodes are counted by cause and are in no average. `seconds` is the wall-clock of the whole evaluation."""

    episodes: int
    success: float
    low: float
    high: float
    reward: float
    turns: float
    tokens: float
    void_turns: float
    """Share of turns that were void."""
    invalid: dict[str, int]
    endings: dict[str, int]
    seconds: float


def summarise(episodes: Sequence[Episode], seconds: float = 0.0) -> Evaluation:
    """Count a set of episodes."""
    valid = [episode for episode in episodes if episode.valid]
    wins = sum(episode.success for episode in valid)
    low, high = wilson(wins, len(valid))
    turns = sum(len(episode.turns) for episode in valid)
    void = sum(turn.void for episode in valid for turn in episode.turns)
    many = max(1, len(valid))
    return Evaluation(
        episodes=len(episodes),
        success=wins / many,
        low=low,
        high=high,
        reward=sum(episode.reward for episode in valid) / many,
        turns=turns / many,
        tokens=sum(episode.tokens for episode in valid) / many,
        void_turns=void / max(1, turns),
        invalid=invalid_causes(episodes),
        endings=dict(
            Counter(f"{e.ending}:{e.reason}" if e.valid and e.reason else e.ending for e in episodes)
        ),
        seconds=seconds,
    )


def invalid_causes(episodes: Sequence[Episode]) -> dict[str, int]:
    """How many episodes were invalid, by the first line of the reason. Reasons that differ in figures alone (seconds,
    addresses, a process's number) are one cause, which goes by the first of them."""
    return merged_causes(*({e.reason.splitlines()[0][:500]: 1} for e in episodes if not e.valid))


def merged_causes(*counts: Mapping[str, int]) -> dict[str, int]:
    """Counts by cause as one, see `invalid_causes`."""
    named: dict[str, str] = {}
    total: Counter[str] = Counter()
    for cause, count in (item for each in counts for item in each.items()):
        cause = _PROCESS.sub(r"\1", cause)
        total[named.setdefault(_FIGURE.sub("#", cause), cause)] += count
    return dict(total)


_PROCESS = re.compile(r"(the worker process) \d+")
_FIGURE = re.compile(
    r"(?<![\w.:])(?<!HTTP )(?<!status )(?<!signal )(?<!line )(?<!code )(?<!exit )(?<!rrno )[-+]?"
    r"(0x[0-9a-f]+|\d[\d.,]*(e[-+]?\d+)?)(?!(?!(ms|s|min|h|[KMG]i?B)\b)\w)"
)
"""Not those that tell causes apart: of statuses, of ports, and of lines of code."""


def evaluation_jobs(tasks: Sequence[TaskSpec], samples: int, seed: int, greedy: bool = False) -> list[Job]:
    """One job for every task and sample, with seeds of their own."""
    return [
        Job(task, group, sample, stable_hash("evaluation", seed, task.seed, sample), greedy=greedy)
        for group, task in enumerate(tasks)
        for sample in range(samples)
    ]


async def evaluate(
    agent: Agent, pool: EnvPool, jobs: Sequence[Job], settings: RolloutSettings,
    on_episode: Callable[[Episode], None] | None = None,
) -> tuple[Evaluation, list[Episode]]:  # fmt: skip
    """Play the jobs and count what came of them."""
    began = time.perf_counter()
    episodes = await rollout(jobs, agent, pool, settings, on_episode)
    return summarise(episodes, time.perf_counter() - began), episodes
