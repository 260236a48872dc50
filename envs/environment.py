"""The class that an author of an environment writes, and what it may leave out."""

from __future__ import annotations

import random
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from gymrl.envs.marks import answer, code_blocks
from gymrl.envs.records import Action, Observation, TaskSpec, Tool

StepReturn = tuple[Any, ...]
"""(observation, reward, terminated), optionally followed by an info dict; or Gymnasium's 5-tuple."""


class Environment:
    """One text world. Subclass it, write `reset` and `step`, and register the class.

    There is no base `__init__` to call. Keyword parameters of your own `__init__` become the
    environment's parameters and part of every task's identity, so they have to be JSON values.
    `reset` and `step` may be `async`. Before `reset` is called `self.task` and `self.rng` are set: draw
    everything random from `self.rng` and the same task is the same world everywhere.
    """

    version: ClassVar[str] = "1"
    """A text: raise it whenever the same task would become another world."""
    runs: ClassVar[Literal["inline", "thread", "process"]] = "inline"
    """`inline` for worlds that answer in well under a millisecond (or are async), `thread` for worlds that wait
    or release the GIL, `process` for worlds that compute for long or are not safe in threads."""
    max_turns: int = 8
    """Turns after which an episode is truncated."""
    sizes: Mapping[str, int] = MappingProxyType({"train": 2**31, "val": 2**31, "test": 2**31})
    """How many tasks each of the three splits has: 1 or more in train, 0 in val or test where there are none."""
    success_reward: ClassVar[float] = 1.0
    """An episode whose rewards sum to at least this counts as a success."""

    task: TaskSpec
    rng: random.Random

    def reset(self) -> Any:
        """Build the world of `self.task`; return the first observation (a str is one user message)."""
        raise NotImplementedError(
            f"{type(self).__name__} has no reset(): write one that returns the first observation"
        )

    def step(self, action: Action) -> Any:
        """Answer an action: (observation, reward, terminated), plus an info dict if you like.

        The reward is a finite number. If the world itself fails, raise: the episode is then `invalid`, which
        is counted and never becomes a reward.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no step(): write one that returns (observation, reward, terminated)"
        )

    def oracle(self) -> str | Action:
        """The action of a perfect player in the world's present state. Demonstrations come from here."""
        raise NotImplementedError(f"{type(self).__name__} has no oracle(): write one that plays the task")

    def random_action(self, rng: random.Random) -> str | Action:
        """The action of a player who knows the rules and nothing else; the random baseline plays it."""
        return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz 0123456789") for _ in range(16))

    def recognises(self, action: Action) -> bool:
        """Whether the text holds something this world reacts to. A turn without it, and without a complete
        tool call, is void. True or False, nothing else. By default: a complete code block or an answer mark."""
        return bool(code_blocks(action.text)) or answer(action.text) is not None

    def tools(self) -> tuple[Tool, ...]:
        """The tools on offer from the first observation on."""
        return ()

    def describe_task(self, task: TaskSpec) -> str | None:
        """Optional: all that makes the problem of `task`, hidden parts included, without building the world.

        The checker compares it over thousands of tasks to see that splits share nothing. None: it compares first
        observations.
        """
        return None

    def task_families(self) -> tuple[Mapping[str, Any], ...]:
        """Optional: for a world that draws from several task families, the parameters that select each of them.
        The checker tries the verifier of each family by itself."""
        return ()

    def give_hint(self) -> str:
        """Optional: what a teacher would say in the world's present state, for the `hints` wrapper."""
        raise NotImplementedError(f"{type(self).__name__} gives no hints: it has no give_hint()")

    def measure_progress(self) -> float:
        """Optional: how far the task has come, from 0 (begun) to 1 (done), for the `progress` wrapper."""
        raise NotImplementedError(
            f"{type(self).__name__} does not know its progress: it has no measure_progress()"
        )

    def snapshot(self) -> Any:
        """Optional: the world's state as a value that `restore` takes back, for branching."""
        raise NotImplementedError(f"{type(self).__name__} cannot be branched: it has no snapshot()")

    def restore(self, state: Any) -> None:
        raise NotImplementedError(f"{type(self).__name__} cannot be branched: it has no restore()")

    def close(self) -> Any:
        """Release what was opened. Called once; may be `async`."""


def with_tools(observation: Observation, tools: tuple[Tool, ...]) -> Observation:
    """The observation, offering `tools` if it offers none of its own."""
    return observation if observation.tools or not tools else Observation(observation.messages, tools)
