"""What all wrappers share: a world around a world."""

from __future__ import annotations

import copy
import inspect
import json
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from gymrl.envs.environment import Environment, StepReturn
from gymrl.envs.gym import EnvironmentFault, StepResult, normal_step
from gymrl.envs.records import Action, Message, Observation, TaskSpec, Tool

_KEPT = ("rng", "max_turns", "followed")


class Wrapper(Environment):
    """A world that plays another one and changes what goes in or comes out.

    Subclass it and override `reset` and `step`, calling `inner_reset` and `inner_step`; everything else is the inner
    world's. The inner world plays the very task that it would play unwrapped: task 17 with hints and task 17 without
    are one problem. What the wrapper draws comes from `self.rng`, which is seeded from the whole task, wrappers and
    all. Keyword parameters of `__init__` are the wrapper's options: JSON values, as they are part of the task.
    """

    state: ClassVar[tuple[str, ...]] = ()
    """The attributes that an episode changes, for snapshots."""
    followed: int
    """The inner world's limit of turns, as it was taken over last."""

    def __init__(self, world: Environment) -> None:
        self.world = world
        self.__dict__.update(
            version=world.version, runs=world.runs, max_turns=world.max_turns, sizes=world.sizes,
            success_reward=world.success_reward, followed=world.max_turns,
        )  # fmt: skip

    def follow(self) -> None:
        """Take over the inner world's limit of turns, which may be another for each task and grow as turns are given
        back; a wrapper that has set `max_turns` keeps its own."""
        if self.max_turns == self.followed:
            self.max_turns = self.followed = self.world.max_turns

    async def inner_reset(self) -> tuple[Observation, dict[str, Any]]:
        """Begin the inner world's task."""
        self.world.task = inner_task(self.task)
        self.world.rng = self.world.task.rng()
        value = await settled(self.world.reset())
        self.follow()
        info: dict[str, Any] = {}
        if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], dict):
            value, info = value[0], dict(value[1])
        try:
            return Observation.of(value), info
        except TypeError as error:
            raise EnvironmentFault(f"{type(self.world).__name__}: {error}") from None

    async def inner_step(self, action: Action) -> StepResult:
        """Play an action in the inner world. Raises EnvironmentFault where that breaks its contract."""
        value = await settled(self.world.step(action))
        self.follow()
        return normal_step(type(self.world).__name__, value)

    async def reset(self) -> Any:
        return await self.inner_reset()

    async def step(self, action: Action) -> StepReturn:
        return as_return(await self.inner_step(action))

    async def oracle(self) -> str | Action:  # type: ignore[override]
        return await settled(self.world.oracle())  # type: ignore[no-any-return]

    async def random_action(self, rng: random.Random) -> str | Action:  # type: ignore[override]
        return await settled(self.world.random_action(rng))  # type: ignore[no-any-return]

    def recognises(self, action: Action) -> bool:
        return self.world.recognises(action)

    def tools(self) -> tuple[Tool, ...]:
        return self.world.tools()

    def describe_task(self, task: TaskSpec) -> str | None:
        return self.world.describe_task(inner_task(task))

    def task_families(self) -> tuple[Mapping[str, Any], ...]:
        return self.world.task_families()

    def give_hint(self) -> str:
        return self.world.give_hint()

    def measure_progress(self) -> float:
        return self.world.measure_progress()

    def snapshot(self) -> Any:
        mine = {name: copy.deepcopy(getattr(self, name)) for name in (*_KEPT, *self.state)}
        return self.world.snapshot(), mine

    def restore(self, state: Any) -> None:
        inner, mine = state
        self.world.restore(inner)
        self.__dict__.update(copy.deepcopy(mine))

    async def close(self) -> None:
        await settled(self.world.close())

    def __getattr__(self, name: str) -> Any:
        if name == "world":  # not made yet
            raise AttributeError(name)
        return getattr(self.world, name)


def inner_task(task: TaskSpec) -> TaskSpec:
    """The task without its last wrapper."""
    params = json.loads(task.params)
    if not params.get("wrappers"):
        return task
    params["wrappers"] = params["wrappers"][:-1]
    if not params["wrappers"]:
        del params["wrappers"]
    return replace(task, params=json.dumps(params, sort_keys=True))


def as_return(result: StepResult) -> StepReturn:
    """A result as `step` returns it."""
    return result.observation, result.reward, result.terminated, result.truncated, result.info


def with_note(observation: Observation, note: str) -> Observation:
    """The observation with a line more at the end of its last message, or in a message of its own after another's."""
    *before, last = observation.messages or (Message("user", ""),)
    if last.role != "user":
        return replace(observation, messages=(*observation.messages, Message("user", note)))
    text = f"{last.text}\n{note}" if last.text else note
    return replace(observation, messages=(*before, replace(last, text=text)))


def core(world: Environment) -> Environment:
    """The world inside all wrappers."""
    while isinstance(world, Wrapper):
        world = world.world
    return world


def offers(world: Environment, method: str) -> bool:
    """Whether the world inside all wrappers has written an optional method."""
    return getattr(type(core(world)), method) is not getattr(Environment, method)


async def settled(value: Any) -> Any:
    """What the value is, awaited if it has to be."""
    return await value if inspect.isawaitable(value) else value
