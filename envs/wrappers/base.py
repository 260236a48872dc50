"""What all wrappers share: a world around a world."""

from __future__ import annotations

import copy
import inspect
import json
import random
from collections.abc import Awaitable, Coroutine, Generator, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

from gymrl.envs.environment import Environment, StepReturn
from gymrl.envs.gym import EnvironmentFault, GymEnv, StepResult, normal_reset, normal_step
from gymrl.envs.records import Action, Message, Observation, TaskSpec, Tool

T = TypeVar("T")
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
        given: Any = world
        if not isinstance(given, Environment):
            mend = "name it in make(..., wrappers=[...])" if isinstance(given, GymEnv) else "give it one"
            raise TypeError(
                f"{type(self).__name__} goes around an Environment, not a {type(given).__name__}: {mend}"
            )
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

    def inner_reset(self) -> Awaitable[tuple[Observation, dict[str, Any]]]:
        """Begin the inner world's task: `observation, info = await self.inner_reset()`."""
        return Awaited(self._inner_reset(), type(self).__name__, "inner_reset()")

    def inner_step(self, action: Action) -> Awaitable[StepResult]:
        """Play an action in the inner world: `result = await self.inner_step(action)`. Raises EnvironmentFault where
        that breaks its contract."""
        return Awaited(self._inner_step(action), type(self).__name__, "inner_step(action)")

    async def _inner_reset(self) -> tuple[Observation, dict[str, Any]]:
        self._check_whole()
        self.world.task = inner_task(self.task)
        self.world.rng = self.world.task.rng()
        value = await settled(self.world.reset())
        self.follow()
        return normal_reset(type(self.world).__name__, value)

    async def _inner_step(self, action: Action) -> StepResult:
        value = await settled(self.world.step(Action.of(action)))
        self.follow()
        return normal_step(type(self.world).__name__, value)

    def _check_whole(self) -> None:
        if not is_whole(self):
            name = type(self).__name__
            raise EnvironmentFault(
                f"{name} is not made whole: call super().__init__(world) first in {name}.__init__()"
            )

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
        mine = type(self).__name__
        if name == "world":  # not made yet
            mend = f"call super().__init__(world) first in {mine}.__init__()"
            raise AttributeError(f"{mine} has no world: {mend}", name=name, obj=self)
        try:
            return getattr(self.world, name)
        except AttributeError as error:
            if error.name != name or error.obj is not self.world:
                raise  # it is there, and lacks something itself
            text = f"neither {mine} nor the {type(core(self)).__name__} in it has {name!r}: set it in {mine}.reset()"
            raise AttributeError(text, name=name, obj=self) from None


class Awaited(Awaitable[T]):
    """A coroutine that says what to do where it is taken for what it gives."""

    __slots__ = ("_mend", "_work")

    def __init__(self, work: Coroutine[Any, Any, T], name: str, call: str) -> None:
        self._work, self._mend = (
            work,
            f"{name} uses {call} without await: write await self.{call} in an async def",
        )

    def __await__(self) -> Generator[Any, Any, T]:
        return self._work.__await__()

    def __getattr__(self, name: str) -> Any:
        raise self._fault()

    def __iter__(self) -> Iterator[Any]:
        raise self._fault()

    def __getitem__(self, index: Any) -> Any:
        raise self._fault()

    def _fault(self) -> EnvironmentFault:
        self._work.close()
        return EnvironmentFault(self._mend)


def is_whole(wrapper: Wrapper) -> bool:
    """Whether `Wrapper.__init__` was called."""
    return {"world", "followed"} <= vars(wrapper).keys()


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
    """A result as `step` returns it. Raises TypeError for what is none."""
    given: Any = result
    if not isinstance(given, StepResult):
        came = f"{type(given).__name__}: what step() returns anyway is returned as it is"
        raise TypeError(f"as_return takes the StepResult of inner_step(action), not a {came}")
    return result.observation, result.reward, result.terminated, result.truncated, result.info


def with_note(observation: Observation | Message | str, note: str) -> Observation:
    """The observation with a line more at the end of its last message, or in a message of its own after another's.
    Raises TypeError for what is no observation."""
    try:
        observation = Observation.of(observation)
    except TypeError:
        raise TypeError(f"with_note takes an observation, not {_kind(observation)}") from None
    *before, last = observation.messages or (Message("user", ""),)
    if last.role != "user":
        return replace(observation, messages=(*observation.messages, Message("user", note)))
    text = f"{last.text}\n{note}" if last.text else note
    return replace(observation, messages=(*before, replace(last, text=text)))


def _kind(value: Any) -> str:
    """What was given in the place of something else, with what to give instead."""
    if isinstance(value, StepResult):
        return "the StepResult of inner_step(action): give its .observation"
    if isinstance(value, tuple):
        unpack = ": write observation, info = await self.inner_reset()" * (len(value) == 2)
        return f"a tuple of {len(value)}{unpack}"
    return f"a {type(value).__name__}"


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
