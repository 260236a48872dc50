"""The environment `gymrl/Gymnasium-v0`."""

from __future__ import annotations

import difflib
import json
import math
import random
from typing import Any

import gymnasium
import numpy as np

from gymrl.envs import imports
from gymrl.envs.adapters import acting, lakes, showing
from gymrl.envs.adapters.functions import load
from gymrl.envs.environment import Environment
from gymrl.envs.gym import EnvironmentFault
from gymrl.envs.records import Action, Message, Observation, TaskSpec
from gymrl.envs.registry import MissingExtra

MODES = {"auto": None, "ansi": "ansi", "image": None, "render": "rgb_array"}
"""Ways to show an observation, with the render mode that each needs."""
RUNS = ("inline", "thread", "process")


class GymnasiumText(Environment):
    """Play any Gymnasium environment in text.

    A turn that is no action of the environment's is void and is told so. What a task is follows from its seed, which
    `reset(seed=...)` of the environment is given.

    world: `lakes`, an example (FrozenLake-v1, not slippery, a map for every task, with an oracle), or any id that is
    registered with Gymnasium, `module:Id-v0` to import a module first. make: keyword arguments of `gymnasium.make`.
    actions: names of a Discrete space's actions, in order, or `module:function`, from the agent's text to an action
    or None; by default numbers, JSON, or the text itself, as the space has it. observation: `auto` (texts, numbers,
    dicts), `ansi` (what the environment draws as text), `image` (arrays of pixels as PNG), `render` (its picture as
    PNG, and the observation), or `module:function`, from an observation to a text. prompt: what the agent is told
    first. tasks: `module:function`, from a TaskSpec to keyword arguments of `gymnasium.make` for that task alone.
    oracle: `module:function`, from the unwrapped environment to its best action. success: an episode whose rewards
    sum to at least this succeeds. max_turns: turns after which the episode is truncated. fresh: make the environment
    anew for every episode. seed_bits: bits of the seed, 32 for environments that take no more. quick: whether a step
    takes well under a millisecond, so that it need not wait for a thread; by default only of `lakes`. run: where it is
    played: `inline` (as quick), `thread`, or `process`, in worker processes, for environments that compute for long or
    are not safe in threads; by default in a thread, unless it is quick.
    """

    version = "1"
    runs = "thread"

    def __init__(
        self, world: str = "lakes", make: dict[str, Any] | None = None, actions: str | list[str] = "",
        observation: str = "auto", prompt: str = "", tasks: str = "", oracle: str = "", success: float = 1.0,
        max_turns: int = 100, fresh: bool = False, seed_bits: int = 63, quick: bool | None = None,
        run: str = "",
    ) -> None:  # fmt: skip
        if max_turns < 1 or not 1 <= seed_bits <= 63 or not math.isfinite(success):
            raise ValueError("max_turns is 1 or more, seed_bits 1 to 63, success a finite number")
        make = {} if make is None else make
        if not isinstance(make, dict):
            raise ValueError(f"make is a table of keyword arguments, not {make!r}")
        self._draw = load("tasks", tasks) if tasks else None
        self._play = load("oracle", oracle) if oracle else None
        if run and (quick is not None or run not in RUNS):
            raise ValueError(f"run is one of {', '.join(RUNS)}, without quick beside it, not {run!r}")
        quick = world == "lakes" if quick is None else quick
        self.__dict__["runs"] = run or ("inline" if quick else "thread")
        if world == "lakes":
            world, make = "FrozenLake-v1", {"is_slippery": False, **make}
            actions, prompt = actions or list(lakes.ACTIONS), prompt or lakes.PROMPT
            observation = "ansi" if observation == "auto" else observation
            self._draw, self._play = self._draw or lakes.draw, self._play or lakes.walk
        self.id, self.kwargs = world, make
        self.success_reward, self.max_turns = float(success), max_turns  # type: ignore[misc]
        self.fresh, self.seed_bits, self.prompt = fresh or self._draw is not None, seed_bits, prompt
        self._show = None if observation in MODES else load("observation", _known_mode(observation))
        self.mode = observation
        self.last_parsed: tuple[str, Any] | None = None
        self._read = load("actions", actions) if isinstance(actions, str) and actions else None
        self.names = tuple(actions) if isinstance(actions, list) else ()
        if (drawn := MODES.get(observation)) is not None:
            self.kwargs = {**make, "render_mode": drawn}
        self.env: gymnasium.Env[Any, Any] | None = make_env(self.id, self.kwargs)
        try:
            self.space = self.env.action_space
            if self.names:
                acting.check_names(self.space, self.names)
            if drawn and self.env.render_mode != drawn:
                raise ValueError(f"{world} cannot be rendered as {drawn!r}: leave observation out")
        except BaseException:
            self.close()
            raise

    def reset(self) -> Any:
        self.last_parsed = None
        if self.env is None or self.fresh:
            self.close()
            drawn = {} if self._draw is None else self._draw(self.task)
            if not isinstance(drawn, dict):
                raise EnvironmentFault(f"tasks returns keyword arguments in a dict, not {drawn!r}"[:300])
            self.env = make_env(self.id, {**self.kwargs, **drawn})
            self.space = self.env.action_space
        value, info = self.env.reset(seed=self.task.seed >> (63 - self.seed_bits))
        shown = self._shown(value)
        system = "\n\n".join(filter(None, [self.prompt, "" if self._read else self.form]))
        messages = (Message("system", system), *shown.messages) if system else shown.messages
        return Observation(messages, shown.tools), {"gymnasium": _plain_info(info)}

    def step(self, action: Action) -> tuple[Any, ...]:
        if self.env is None:
            raise EnvironmentFault(f"{self.id} is closed: call reset()")
        chosen, self.last_parsed = self._parsed(action.text), None  # a step may change what it is given
        if isinstance(chosen, acting.Misfit):
            return self._misfit(chosen), 0.0, False, False, {}
        value, reward, terminated, truncated, info = self.env.step(chosen)
        if not isinstance(terminated, (bool, np.bool_)) or not isinstance(truncated, (bool, np.bool_)):
            raise EnvironmentFault(
                f"{self.id} says terminated = {terminated!r}, truncated = {truncated!r}: both have to be bools"[
                    :300
                ]
            )
        told = {"gymnasium": _plain_info(info)}
        return self._shown(value), reward, bool(terminated), bool(truncated and not terminated), told

    @property
    def form(self) -> str:
        """How an action is written, as a sentence."""
        return acting.form(self.space, self.names)

    def _parsed(self, text: str) -> Any:
        """What a text means, or the Misfit that it is; `recognises` and `step` ask one after the other."""
        if self.last_parsed is None or self.last_parsed[0] is not text:
            try:
                self.last_parsed = text, self._parse(text)
            except acting.Misfit as misfit:
                self.last_parsed = text, misfit
        return self.last_parsed[1]

    def _parse(self, text: str) -> Any:
        if self._read is None:
            return acting.parse(self.space, text, self.names)
        chosen = self._read(text)
        if chosen is None:
            raise acting.Misfit("it is no action")
        if not acting.takes_text(self.space) and not self.space.contains(chosen):
            raise EnvironmentFault(f"actions returned {chosen!r}, which is not of {self.space}"[:300])
        return chosen

    def _misfit(self, misfit: acting.Misfit) -> str:
        return "That is no action." if self._read else f"That is no action: {misfit}. {self.form}"[:1000]

    def _shown(self, value: Any) -> Observation:
        try:
            if self._show is not None:
                return Observation.of(self._show(value))
            assert self.env is not None
            if self.mode == "ansi":
                drawn = self.env.render()
                if not isinstance(drawn, str):
                    raise showing.Unshown(
                        f"render() gave a {type(drawn).__name__}, no text: leave observation out"
                    )
                return Observation.of(showing.plain(drawn))
            if self.mode == "image":
                return Observation((Message("user", "", (showing.as_png(value),)),))
            text = showing.as_text(value)
            if self.mode == "render":
                return Observation((Message("user", text, (showing.as_png(self.env.render()),)),))
            return Observation.of(text)
        except (showing.Unshown, TypeError) as error:
            raise EnvironmentFault(f"{self.id}: {error}") from error

    # -- players -------------------------------------------------------------------------------------------------

    def recognises(self, action: Action) -> bool:
        return not isinstance(self._parsed(action.text), acting.Misfit)

    def oracle(self) -> str:
        if self._play is None:
            raise NotImplementedError(f"{self.id} has no oracle: give one with oracle = 'module:function'")
        assert self.env is not None
        chosen = self._play(self.env.unwrapped)
        return chosen if isinstance(chosen, str) else acting.write(self.space, chosen, self.names)

    def random_action(self, rng: random.Random) -> str:
        return acting.write(self.space, acting.sample(self.space, rng), self.names)

    def describe_task(self, task: TaskSpec) -> str | None:
        return None if self._draw is None else json.dumps(self._draw(task), sort_keys=True, default=str)

    def close(self) -> None:
        env, self.env = self.env, None
        if env is not None:
            env.close()


def make_env(env_id: str, kwargs: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    """Make it. Raises ValueError for an id that is unknown, which names the nearest, and for wrong arguments;
    MissingExtra where a package it needs is not there."""
    module, sign, _ = env_id.partition(":")
    if sign:
        imports.module_of(f"world = {env_id!r}", module)
    try:
        env = gymnasium.make(env_id, disable_env_checker=True, **kwargs)
    except ModuleNotFoundError as error:
        raise MissingExtra(f"{env_id} needs a package that is not there ({error}): install it") from error
    except gymnasium.error.DependencyNotInstalled as error:
        raise MissingExtra(f"{env_id} needs a package that is not there: {error}") from error
    except (gymnasium.error.UnregisteredEnv, gymnasium.error.DeprecatedEnv, gymnasium.error.Error) as error:
        known = [name for name in gymnasium.registry if not name.startswith("gymrl/")]
        near = difflib.get_close_matches(env_id.rpartition(":")[2], known, 1, 0.5)
        hint = (
            f"did you mean {near[0]!r}?"
            if near
            else "write module:Id-v0 to import the module that registers it"
        )
        raise ValueError(f"{env_id!r} cannot be made by Gymnasium ({_first_line(error)}): {hint}") from error
    except (TypeError, ValueError, KeyError, AssertionError) as error:
        given = ", ".join(f"{name} = {value!r}" for name, value in kwargs.items()) or "no arguments"
        raise ValueError(f"{env_id} cannot be made with {given}: {_first_line(error)}"[:500]) from error
    from gymrl.envs.gym import GymEnv

    if isinstance(env.unwrapped, GymEnv):
        env.close()
        raise ValueError(f"{env_id!r} is an environment of gymrl already: make it by itself")
    return env


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")


def _known_mode(observation: str) -> str:
    if ":" in observation:
        return observation
    near = difflib.get_close_matches(observation, MODES, 1, 0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"take {', '.join(MODES)}, or module:function"
    raise ValueError(f"there is no observation = {observation!r}: {hint}")


def _plain_info(info: Any) -> dict[str, Any]:
    """What of an info dict is a text, a bool or a finite number."""
    found = {}
    for name, value in info.items() if isinstance(info, dict) else ():
        value = value.item() if isinstance(value, np.generic) else value
        if isinstance(value, (str, bool, int)) or (isinstance(value, float) and math.isfinite(value)):
            found[str(name)] = value
    return found
