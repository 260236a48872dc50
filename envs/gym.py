"""`GymEnv`: an author's `Environment` as a `gymnasium.Env` that keeps the contract for it."""

from __future__ import annotations

import asyncio
import difflib
import inspect
import math
import threading
from collections.abc import Awaitable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import gymnasium
import numpy as np

from gymrl.envs.environment import Environment, with_tools
from gymrl.envs.records import Action, Message, Observation, TaskSpec, Tool
from gymrl.envs.spaces import ActionSpace, ObservationSpace

T = TypeVar("T")
FORMS = (
    "(observation, reward, terminated), (observation, reward, terminated, info) or "
    "(observation, reward, terminated, truncated, info)"
)
"""What `step` may return."""


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

    def __iter__(self) -> Iterator[Any]:
        raise TypeError(
            "a StepResult is no tuple: take result.observation, result.reward and so on, or as_return(result)"
        )

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
        wrapper: str = "",
    ) -> None:
        """`wrapper`: the name of the outermost one, for messages: what its world returned has been looked at before."""
        self._author = f"{env_id} in {wrapper}" if wrapper else env_id
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
        value = await self._called("reset")
        first, info = normal_reset(self._author, value)
        offered = _tools(self.env_id, await self._called("tools") or ())
        observation = with_tools(first, offered)
        if not observation.messages:
            raise EnvironmentFault(
                f"{self.env_id}: reset() returned an observation without a message: return the task's text, or "
                "Observation((Message('user', text),))"
            )
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
        try:
            known: Any = bool(action.tool_calls) or self.world.recognises(action)
            if known is not True and known is not False and not isinstance(known, np.bool_):
                raise self._undecided(known)
            void = not known
            value = self.world.step(action)
        except SystemExit as error:
            raise self._left("step", error) from None
        if type(value) is not tuple and inspect.isawaitable(value):
            return self._awaited_step(value, void, action)
        return self._stepped(value, void, action)

    async def _awaited_step(self, value: Awaitable[Any], void: bool, action: Action) -> StepResult:
        try:
            value = await value
        except SystemExit as error:
            raise self._left("step", error) from None
        return self._stepped(value, void, action)

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
        return self._action("oracle", await self._called("oracle"))

    async def arandom(self, rng: Any) -> Action:
        return self._action("random_action", await self._called("random_action", rng))

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            await self._called("close")

    # -- helpers ---------------------------------------------------------------------------------------

    def task_spec(self, index: int, split: str | None = None) -> TaskSpec:
        """The task of that index. Raises ValueError for a wrong split and beyond its end."""
        split = split or self.split
        self._check_split(split)
        size = self.world.sizes[split]
        if not 0 <= index < size:
            have = f"{self.env_id} has {size or 'no'} task{'s' * (size != 1)} in {split}"
            if not size:
                raise ValueError(f"{have}: take another split, or give it tasks")
            raise ValueError(
                f"{have}: index {index} is not one of them (they begin with 0; ask for {size} or fewer: --n {size})"
            )
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

    async def _called(self, method: str, *args: Any) -> Any:
        """What a method of the world returns, awaited if it has to be."""
        try:
            value = getattr(self.world, method)(*args)
            return await value if inspect.isawaitable(value) else value
        except SystemExit as error:
            raise self._left(method, error) from None

    def _action(self, method: str, value: Any) -> Action:
        try:
            return Action.of(value)
        except TypeError:
            mend = "return a text, or an Action"
            raise EnvironmentFault(f"{self.env_id}: {method}() returned {_shown(value)}: {mend}") from None

    def _undecided(self, known: Any) -> EnvironmentFault:
        if inspect.iscoroutine(known):
            known.close()  # else Python complains that nobody awaited it
        return EnvironmentFault(f"{self.env_id}: recognises() returned {_shown(known)}: return True or False")

    def _left(self, method: str, error: SystemExit) -> EnvironmentFault:
        """SystemExit as a fault, which ends an episode and not the program; with the place where it was raised."""
        text = f"{method}() raised SystemExit({error.code!r}): raise an exception that says what is wrong"
        return EnvironmentFault(f"{self.env_id}: {text}").with_traceback(error.__traceback__)

    def _step_result(self, value: Any, void: bool) -> StepResult:
        result = normal_step(self._author, value)
        result.info["void"] = void  # a dict of its own
        return result


def normal_reset(name: str, value: Any) -> tuple[Observation, dict[str, Any]]:
    """What a `reset` returned, in its one form. Raises EnvironmentFault, which begins with the environment's name."""
    info: dict[str, Any] = {}
    if isinstance(value, tuple):
        if len(value) != 2 or not isinstance(value[1], dict):
            raise EnvironmentFault(f"{name}: reset() returns an observation or (observation, dict)")
        value, info = value[0], dict(value[1])
    return _observation(name, value), info


def normal_step(name: str, value: Any) -> StepResult:
    """What a `step` returned, in its one form, with an info dict of its own. Raises EnvironmentFault, which begins
    with the environment's name, for what is no step's value, and for a reward that is no finite number."""
    if not isinstance(value, tuple) or not 3 <= len(value) <= 5:
        if isinstance(value, StepResult):
            mend = "return as_return(result), from gymrl.envs.wrappers, or its five values as a tuple"
            raise EnvironmentFault(f"{name}: step() returned a StepResult, as inner_step() gives it: {mend}")
        came = f"a tuple of {len(value)}" if isinstance(value, tuple) else _shown(value)
        raise EnvironmentFault(f"{name}: step() returned {came}: return {FORMS}")
    told: Any = {}
    truncated = False
    if len(value) == 5:
        truncated, told = _flag(name, "truncated", value[3]), value[4]
    elif len(value) == 4:
        told = value[3]
    if not isinstance(told, Mapping):
        raise EnvironmentFault(f"{name}: info is a dict, not {_shown(told)}: step() returns {FORMS}")
    reward = value[1] if type(value[1]) is float else _number(value[1])
    if not math.isfinite(reward):
        mend = "" if isinstance(value[1], float) else ": step() returns float(reward) as its second value"
        raise EnvironmentFault(f"{name}: a reward is a finite number, not {_shown(value[1])}{mend}")
    terminated = _flag(name, "terminated", value[2])
    return StepResult(_observation(name, value[0]), reward, terminated, truncated, dict(told))


def _number(reward: Any) -> float:
    """A reward as a float; nan for texts, truth values, arrays with dimensions and all that is no number."""
    kind = str(getattr(reward, "dtype", ""))
    if isinstance(reward, (str, bytes, bool)) or kind.endswith("bool") or getattr(reward, "shape", ()) != ():
        return math.nan
    try:
        return float(reward)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _flag(name: str, what: str, value: Any) -> bool:
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise EnvironmentFault(f"{name}: {what} is True or False, not {_shown(value)}: step() returns {FORMS}")


def _observation(name: str, value: Any) -> Observation:
    try:
        observation = Observation.of(value)
    except TypeError as error:
        raise EnvironmentFault(f"{name}: {error}") from None
    for message in observation.messages:
        if not isinstance(message, Message):
            raise EnvironmentFault(
                f"{name}: an observation's messages are gymrl.envs.Message objects, not {_shown(message)}"
            )
        if not isinstance(message.text, str):
            raise EnvironmentFault(f"{name}: a message's text is a str, not {_shown(message.text)}")
        if not message.text.isascii():  # the quick check, as most texts are
            _check_characters(name, message.text)
    if observation.tools:
        _tools(name, observation.tools)
    return observation


def _check_characters(name: str, text: str) -> None:
    """Raise EnvironmentFault for a text that no tokenizer and no file takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        mend = "text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')"
        raise EnvironmentFault(
            f"{name}: the observation holds half of a surrogate pair, {text[error.start]!r}, which is no character: "
            f"return {mend}"
        ) from None


def _tools(name: str, offered: Any) -> tuple[Tool, ...]:
    wrong = [offered]
    if isinstance(offered, (tuple, list)):
        wrong = [tool for tool in offered if not isinstance(tool, Tool)]
    if wrong:
        form = "a tuple of gymrl.envs.Tool(name, description, parameters)"
        raise EnvironmentFault(f"{name}: tools are {form}, not {_shown(wrong[0])}")
    return tuple(offered)


def _shown(value: Any) -> str:
    """A value and its type, for the author who returned it."""
    if value is None or isinstance(value, float):
        return repr(value)
    text = repr(value)
    return f"{text if len(text) <= 100 else text[:100] + '...'} ({type(value).__name__})"


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
