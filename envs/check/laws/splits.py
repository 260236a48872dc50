"""Splits share nothing, measured over thousands of tasks."""

from __future__ import annotations

import itertools
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gymrl.envs.check import play
from gymrl.envs.check.records import Fault, Settings, Subject
from gymrl.envs.gym import GymEnv
from gymrl.envs.records import TaskSpec, stable_hash

CLAIM = "splits share nothing"

OFFSETS = (0, 10**3, 10**4, 10**5, 10**6, 10**7, 10**8, 10**9, 2**16, 2**20, 2**24, 2**30)
"""Where tasks are drawn from: splits made of one row of seeds are often so many apart."""
PAIRS = 50


async def check(subject: Subject, settings: Settings) -> tuple[str, Sequence[Fault]]:
    env = subject.make()
    measured, faults = [], []
    if env.world.describe_task(env.task_spec(0)) is not None:
        found, counts = await _draw(env, settings, problems=True)
        measured.append(f"problems: {counts}")
        faults += [
            Fault(f"the problem is also that of {other.split} {other.index}", task.split, task.index)
            for task, other in _shared(found)[:3]
        ]
    found, counts = await _draw(env, settings, problems=False)
    measured.append(f"first observations: {counts}")
    shared, same = _shared(found), 0
    likely = await _likely(env, found, settings.seconds / 2) if shared else []
    for task, other in play.within((likely + shared)[: 2 * PAIRS], settings.seconds, 5):
        if await _one_world(env, task, other):
            same += 1
            if same <= 3:
                what = f"it is the same world as {other.split} {other.index}"
                faults.append(Fault(what, task.split, task.index))
    if shared and not same:
        measured.append(f"{len(shared)} observations in two splits, of worlds that differ in what is hidden")
    elif same:
        measured.append(f"{len(shared)} in two splits")
    await play.closed(env)
    return "; ".join(measured), faults


async def _draw(env: GymEnv, settings: Settings, problems: bool) -> tuple[dict[int, list[TaskSpec]], str]:
    """The tasks by what they show, and how many tasks were drawn and distinct in each split."""
    found: dict[int, list[TaskSpec]] = defaultdict(list)
    wanted = {split: list(_indices(size, settings.split_tasks)) for split, size in env.world.sizes.items()}
    most = max(map(len, wanted.values()))
    drawn = dict.fromkeys(wanted, 0)
    distinct: dict[str, set[int]] = {split: set() for split in wanted}
    for number in play.within(range(most), settings.seconds * (3 if problems else 1), 8):
        for split, indices in wanted.items():
            if number >= len(indices):
                continue
            task = env.task_spec(indices[number], split)
            if problems:
                play.leave_crumb(task)
                key = stable_hash(env.world.describe_task(task))
            else:
                key = play.digest(await play.reset(env, task))
            found[key].append(task)
            drawn[split] += 1
            distinct[split].add(key)
    counts = ", ".join(f"{split} {drawn[split]} ({len(distinct[split])} distinct)" for split in wanted)
    return found, counts


def _indices(size: int, wanted: int) -> Iterator[int]:
    """Half of the indices from 0 on, the rest in rows from the other offsets on; mixed, in case time runs out."""
    rows = [offset for offset in OFFSETS if offset < size]
    first = wanted // 2 if len(rows) > 1 else wanted
    rest = math.ceil((wanted - first) / max(1, len(rows) - 1))
    given: set[int] = set()
    for step in range(max(first, rest)):
        row = [step] if step < first else []
        if step < rest:
            row += [offset + step for offset in rows[1:]]
        for index in row:
            if index < size and index not in given:
                given.add(index)
                yield index


def _shared(found: Mapping[Any, list[TaskSpec]]) -> list[tuple[TaskSpec, TaskSpec]]:
    """Pairs of tasks of two splits that show the same; of very many, some."""
    pairs: list[tuple[TaskSpec, TaskSpec]] = []
    for tasks in found.values():
        by_split: dict[str, list[TaskSpec]] = defaultdict(list)
        for task in tasks:
            by_split[task.split].append(task)
        for one, other in itertools.combinations(by_split.values(), 2):
            pairs += list(zip(one, other, strict=False))[:PAIRS]
    return pairs


async def _likely(
    env: GymEnv, found: Mapping[int, list[TaskSpec]], seconds: float
) -> list[tuple[TaskSpec, TaskSpec]]:
    """Pairs that show the same and that the oracle begins alike: the first ones to look into."""
    alike: dict[tuple[int, str], list[TaskSpec]] = defaultdict(list)
    tasks = [
        (key, task) for key, tasks in found.items() if len({t.split for t in tasks}) > 1 for task in tasks
    ]
    for key, task in play.within(tasks, seconds, 8):
        await play.reset(env, task)
        try:
            action = await play.oracle(env, 0)
        except play.NoOracle:
            continue
        alike[key, repr((action.text, action.tool_calls))].append(task)
    return _shared(alike)


async def _one_world(env: GymEnv, task: TaskSpec, other: TaskSpec, turns: int = 16) -> bool:
    """Whether the oracle's way through one task is answered alike in the other; so, too, where there is no oracle."""
    began = time.monotonic()
    try:
        one = await play.play(env, task, play.oracle, turns)
    except play.NoOracle:
        return True
    observation = await play.reset(env, other)
    seen, rewards = [observation], []
    for action in one.actions:
        result = await play.step(env, action)
        seen.append(result.observation)
        rewards.append(result.reward)
        if result.terminated or result.truncated or time.monotonic() - began > 30:
            break
    return rewards == one.rewards and [*map(play.digest, seen)] == [*map(play.digest, one.observations)]
