"""Playing tasks for the checker: players, plays, and a task's trace."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from gymrl.envs.check.records import Broke, Fault
from gymrl.envs.gym import GymEnv
from gymrl.envs.records import Action, Observation, TaskSpec, message_to_json, stable_hash

T = TypeVar("T")
Choose = Callable[[GymEnv, int], Awaitable[Action]]
"""A player: the environment and the turn (from 0) to an action."""

Trace = list[tuple[str, int]]
"""What a task was like, step by step: a step's name and a hash of what was seen."""

_CRUMB: list[int] = []
"""The descriptor of the file that tells the process which started this one where the check stands."""


class NoOracle(Exception):
    """The environment has no oracle for this task."""


@dataclass
class Play:
    """One episode as it was played."""

    total: float = 0.0
    won: bool = False
    turns: int = 0
    terminated: bool = False
    observations: list[Observation] = field(default_factory=list)
    actions: list[Action] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)


async def oracle(env: GymEnv, turn: int) -> Action:
    try:
        return await env.aoracle()
    except NotImplementedError:
        raise NoOracle from None


async def null(env: GymEnv, turn: int) -> Action:
    return Action("")


async def at_random(env: GymEnv, turn: int) -> Action:
    return await env.arandom(random.Random(stable_hash("random", env.world.task.seed, turn)))


PLAYERS: dict[str, Choose] = {"oracle": oracle, "random": at_random, "null": null}


async def reset(env: GymEnv, task: TaskSpec) -> Observation:
    """Start a task. Raises Broke."""
    leave_crumb(task)
    return (await _guarded(env.areset(task), task, "reset()"))[0]


async def step(env: GymEnv, action: Action) -> Any:
    """Play an action. Raises Broke, which names it."""
    return await _guarded(env.astep(action), env.world.task, "step()", action)


async def closed(env: GymEnv) -> None:
    """Close it; what that raises is the law `close`'s to tell, and no other's."""
    with contextlib.suppress(Exception):
        await env.aclose()


async def play(env: GymEnv, task: TaskSpec, choose: Choose, limit: int | None = None) -> Play:
    """Play a task to its end, or for `limit` turns. Raises Broke, and NoOracle where there is none."""
    done = Play(observations=[await reset(env, task)])
    ended = False
    while not ended and (limit is None or done.turns < limit):
        action = await _guarded(choose(env, done.turns), task, f"the {choose.__name__} player")
        result = await step(env, action)
        done.actions.append(action)
        done.observations.append(result.observation)
        done.rewards.append(result.reward)
        done.total += result.reward
        done.turns += 1
        ended, done.terminated = result.terminated or result.truncated, result.terminated
    done.won = done.terminated and done.total >= env.world.success_reward
    return done


async def trace(env: GymEnv, task: TaskSpec, turns: int = 8) -> Trace:
    """What a task shows to one player: the oracle for tasks of even index, the random player for odd ones."""
    seen: Trace = [("the first observation", digest(await reset(env, task)))]
    choose = at_random if task.index % 2 else oracle
    for turn in range(turns):
        try:
            action = await _guarded(choose(env, turn), task, f"the {choose.__name__} player")
        except NoOracle:
            choose = at_random
            action = await _guarded(choose(env, turn), task, "the random player")
        calls = [[call.name, dict(call.arguments)] for call in action.tool_calls]
        seen.append(
            (f"the {choose.__name__} player's action in turn {turn + 1}", stable_hash(action.text, calls))
        )
        result = await step(env, action)
        seen.append((f"the observation after turn {turn + 1}", digest(result.observation)))
        outcome = (repr(result.reward), result.terminated, result.truncated)
        seen.append((f"the reward or ending of turn {turn + 1}", stable_hash(*outcome)))
        if result.terminated or result.truncated:
            break
    return seen


def digest(observation: Observation) -> int:
    """A hash of all that an observation holds."""
    messages = [message_to_json(message) for message in observation.messages]
    return stable_hash(messages, [tool.schema() for tool in observation.tools])


def difference(one: Trace, other: Trace) -> str | None:
    """The name of the first step in which two traces differ; None where they are the same."""
    for (name, a), (_, b) in zip(one, other, strict=False):
        if a != b:
            return name
    return None if len(one) == len(other) else "the number of turns"


def within(items: Iterable[T], seconds: float, least: int = 2) -> Iterator[T]:
    """The items until `seconds` have passed, and `least` of them however long they take."""
    began = time.monotonic()
    for count, item in enumerate(items):
        if count >= least and time.monotonic() - began > seconds:
            return
        yield item


def tell_crumbs(fd: int) -> None:
    """From now on write every task that is begun to the start of this file."""
    _CRUMB[:] = [fd]


def leave_crumb(task: TaskSpec) -> None:
    if _CRUMB:
        os.pwrite(_CRUMB[0], f"{task.split} {task.index} {time.monotonic()}".ljust(96).encode(), 0)


async def _guarded(call: Awaitable[T], task: TaskSpec, what: str, action: Action | None = None) -> T:
    try:
        return await call
    except (Broke, NoOracle):
        raise
    except Exception as error:
        text = None if action is None else action.text
        said = f"{type(error).__name__}: {error}"[:300]
        raise Broke(Fault(f"{what} raised {said}", task.split, task.index, text)) from error
