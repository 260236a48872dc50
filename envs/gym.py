"""`GymEnv`: an author's `Environment` as a `gymnasium.Env` that keeps the contract for it."""

from __future__ import annotations

import asyncio
import difflib
import inspect
import math
import threading
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import gymnasium

from gymrl.envs.environment import Environment, with_tools
from gymrl.envs.records import Action, Observation, TaskSpec
from gymrl.envs.spaces import ActionSpace, ObservationSpace

T = TypeVar("T")


class EnvironmentFault(RuntimeError):
    """The environment broke its contract (not the agent): the episode is invalid."""


@dataclass(frozen=True)
class StepResult:
    """What a step came to. `info["void"]` says whether the action held anything the world reacts to."""

    observation: Observation
    reward: float
    terminated: bool
    truncated: bool = False
    info: dict[str, Any] = field(default_factory=dict)

    def __reduce__(self) -> tuple[Any, ...]:
        return StepResult, (self.observation, self.reward, self.terminated, self.truncated, self.info)


class GymEnv(gymnasium.Env[Any, Any]):
    """Wraps one `Environment`: tasks from seeds, normal forms for what its methods return, checks of both.

    `reset(options={"index": 17})` plays task 17 of the split, `reset(options={"task": spec})` that very task,
    `reset(seed=s)` a task drawn from s, and a bare `reset()` the next one drawn.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012 - Gymnasium's own form

    def __init__(
        self,
        env_id: str,
        world: Environment,
        params: dict[str, Any],
        split: str = "train",
        render_mode: str | None = None,
    ) -> None:
        self.env_id, self.world, self.params, self.split = env_id, world, params, split
        self._check_split(split)
        self._params = TaskSpec.make(env_id, world.version, split, 0, params).params
        self.render_mode = render_mode
        self.action_space = ActionSpace()
        self.observation_space = ObservationSpace()
        self._turns = 0
        self._ended = True
        self._closed = False
        self._transcript: list[str] = []

    # -- the synchronous, Gymnasium side ---------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        return run_sync(self.areset(self._task_of(options or {})))

    def step(self, action: Action | str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        result = run_sync(self.astep(action))
        return result.observation, result.reward, result.terminated, result.truncated, result.info

    def oracle(self) -> Action:
        """The perfect player's next action."""
        return run_sync(self.aoracle())

    def close(self) -> None:
        run_sync(self.aclose())

    def render(self) -> str | None:
        return "\n".join(self._transcript) if self.render_mode == "ansi" else None

    # -- the asynchronous side, which rollouts use ----------------------------------------------------

    async def areset(self, task: TaskSpec) -> tuple[Observation, dict[str, Any]]:
        """Start the episode of `task`. Raises ValueError for a task of another environment, version or parameters,
        EnvironmentFault if the world returns no observation."""
        world = self.world
        mine = (self.env_id, world.version, self._params)
        if (task.env, task.version, task.params) != mine:
            raise ValueError(
                f"the task is of {task.env} {task.version} with {task.params}, this environment is "
                f"{self.env_id} {world.version} with {self._params}: make it with the task's parameters"
            )
        world.task, world.rng = task, task.rng()
        self._turns, self._ended, self._transcript = 0, False, []
        value = await _result(world.reset())
        info: dict[str, Any] = {}
        if isinstance(value, tuple):
            if len(value) != 2 or not isinstance(value[1], dict):
                raise EnvironmentFault(
                    f"{self.env_id}: reset() returns an observation or (observation, dict)"
                )
            value, info = value[0], dict(value[1])
        observation = with_tools(self._observation(value), world.tools())
        if self.render_mode is not None:
            self._transcript.append(observation.text)
        return observation, info

    async def astep(self, action: Action | str) -> StepResult:
        """Play one action. Raises EnvironmentFault after the end and where the world breaks its contract."""
        begun = self.begin_step(action)
        return begun if isinstance(begun, StepResult) else await begun

    def begin_step(self, action: Action | str) -> StepResult | Coroutine[Any, Any, StepResult]:
        """`astep` for callers that need no coroutine where the world needs none."""
        if self._ended:
            raise EnvironmentFault(f"{self.env_id}: the episode is over; call reset() before step()")
        action = Action.of(action)
        void = not action.tool_calls and not self.world.recognises(action)
        value = self.world.step(action)
        if type(value) is not tuple and inspect.isawaitable(value):
            return self._awaited_step(value, void, action)
        return self._stepped(value, void, action)

    async def _awaited_step(self, value: Awaitable[Any], void: bool, action: Action) -> StepResult:
        return self._stepped(await value, void, action)

    def _stepped(self, value: Any, void: bool, action: Action) -> StepResult:
        result = self._step_result(value, void)
        self._turns += 1
        if self.render_mode is not None:
            self._transcript += [f"> {action.text}", result.observation.text]
        if not result.terminated and not result.truncated and self._turns >= self.world.max_turns:
            result = StepResult(
                result.observation, result.reward, False, True, {**result.info, "cut": "max_turns"}
            )
        self._ended = result.terminated or result.truncated
        return result

    async def aoracle(self) -> Action:
        return Action.of(await _result(self.world.oracle()))

    async def arandom(self, rng: Any) -> Action:
        return Action.of(await _result(self.world.random_action(rng)))

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            await _result(self.world.close())

    # -- helpers ---------------------------------------------------------------------------------------

    def task_spec(self, index: int, split: str | None = None) -> TaskSpec:
        """The task of that index. Raises ValueError for a wrong split and beyond its end."""
        split = split or self.split
        self._check_split(split)
        size = self.world.sizes[split]
        if not 0 <= index < size:
            raise ValueError(f"{self.env_id} has {size} tasks in {split}: index {index} is not one of them")
        return TaskSpec.make(self.env_id, self.world.version, split, index, self.params)

    def _check_split(self, split: str) -> None:
        sizes = self.world.sizes
        if split not in sizes:
            near = difflib.get_close_matches(split, sizes, 1, 0.3)
            hint = f"did you mean {near[0]!r}?" if near else f"take one of {', '.join(sizes)}"
            raise ValueError(f"{self.env_id} has no split {split!r}: {hint}")

    def _task_of(self, options: dict[str, Any]) -> TaskSpec:
        if unknown := set(options) - {"index", "task"}:
            raise ValueError(f"unknown reset option {min(unknown)!r}: take 'index' or 'task'")
        if "task" in options:
            task = options["task"]
            if not isinstance(task, TaskSpec):
                raise TypeError("reset option 'task' takes a TaskSpec")
            return task
        if "index" in options:
            return self.task_spec(int(options["index"]))
        return self.task_spec(int(self.np_random.integers(self.world.sizes[self.split])))

    def _observation(self, value: Any) -> Observation:
        try:
            return Observation.of(value)
        except TypeError as error:
            raise EnvironmentFault(f"{self.env_id}: {error}") from None

    def _step_result(self, value: Any, void: bool) -> StepResult:
        result = normal_step(self.env_id, value)
        result.info["void"] = void  # a dict of its own
        return result


def normal_step(name: str, value: Any) -> StepResult:
    """What a `step` returned, in its one form, with an info dict of its own. Raises EnvironmentFault, which begins
    with the environment's name, for what is no step's value, and for a reward that is no finite number."""
    if not isinstance(value, tuple) or not 3 <= len(value) <= 5:
        raise EnvironmentFault(f"{name}: step() returns (observation, reward, terminated[, info])")
    info: dict[str, Any] = {}
    truncated = False
    if len(value) == 5:
        truncated, info = bool(value[3]), dict(value[4])
    elif len(value) == 4:
        info = dict(value[3])
    reward = value[1]
    try:
        reward = math.nan if isinstance(reward, (str, bytes)) else float(reward)
    except (TypeError, ValueError, OverflowError):
        reward = math.nan
    if not math.isfinite(reward):
        raise EnvironmentFault(f"{name}: a reward is a finite number, not {value[1]!r}")
    try:
        observation = Observation.of(value[0])
    except TypeError as error:
        raise EnvironmentFault(f"{name}: {error}") from None
    return StepResult(observation, reward, bool(value[2]), truncated, info)


async def _result(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


class _Loop:
    """One event loop in a thread of its own, for synchronous callers of asynchronous worlds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def get(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None or self._loop.is_closed():
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="gymrl-env-loop", daemon=True).start()
            return self._loop


_LOOP = _Loop()


def run_sync(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end from synchronous code, also from inside a running event loop's thread."""
    return asyncio.run_coroutine_threadsafe(coroutine, _LOOP.get()).result()
