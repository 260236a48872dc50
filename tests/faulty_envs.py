"""A sound environment, and one for each fault that the checker has to find in it."""

from __future__ import annotations

import asyncio
import math
import os
import random
import threading
import time
from typing import Any, ClassVar

import numpy as np

from gymrl.envs import Action, Environment, Message, Observation, Tool, ToolCall, answer, register
from gymrl.envs.records import TaskSpec, stable_hash


class Sound(Environment):
    """Say the sum of two numbers in answer marks; two turns."""

    max_turns = 2

    def __init__(self, largest: int = 999) -> None:
        self.largest = largest

    def draw(self, rng: Any) -> tuple[int, int]:
        return rng.randint(0, self.largest), rng.randint(0, self.largest)

    def numbers(self, task: TaskSpec, rng: random.Random) -> tuple[int, int]:
        while True:
            pair = self.draw(rng)
            if task.owns(str(pair)):
                return pair

    def reset(self) -> Any:
        self.a, self.b = self.numbers(self.task, self.rng)
        return f"What is {self.a} + {self.b}?"

    def step(self, action: Action) -> Any:
        said = answer(action.text)
        if said is None:
            return "Answer in <answer>...</answer>.", 0.0, False
        return "Done.", self.score(said), True

    def score(self, said: str) -> Any:
        return float(said == str(self.a + self.b))

    def oracle(self) -> str:
        return f"<answer>{self.a + self.b}</answer>"

    def random_action(self, rng: random.Random) -> str:
        return f"<answer>{rng.randint(0, 2 * self.largest)}</answer>"


class Waits(Sound):
    runs = "thread"


class ThreeTasks(Sound):
    """A split has three tasks and no more."""

    sizes: ClassVar[dict[str, int]] = {"train": 3, "val": 3, "test": 3}  # type: ignore[misc]


class OverlappingSeeds(Sound):
    """Item i of seed s is item i - 1 of seed s + 1."""

    seeds: ClassVar[dict[str, int]] = {"train": 42, "val": 43, "test": 44}

    def numbers(self, task: TaskSpec, rng: random.Random) -> tuple[int, int]:
        return self.draw(random.Random(self.seeds[task.split] + task.index))


class FarOverlap(OverlappingSeeds):
    """The test split begins where nobody looks: at the millionth training task."""

    seeds: ClassVar[dict[str, int]] = {"train": 0, "val": 2_000_000, "test": 1_000_000}


class HiddenOverlap(Sound):
    """All first observations are alike, and so are many of the ten worlds behind them."""

    def numbers(self, task: TaskSpec, rng: random.Random) -> tuple[int, int]:
        return rng.randrange(10), 0

    def reset(self) -> str:
        super().reset()
        return "Guess."


class HiddenApart(HiddenOverlap):
    """All first observations are alike, but no two splits share what is hidden."""

    def numbers(self, task: TaskSpec, rng: random.Random) -> tuple[int, int]:
        while not task.owns(str(number := rng.randrange(10**6))):
            pass
        return number, 0


class LyingProblem(OverlappingSeeds):
    """Says of every task that it is another problem."""

    def describe_task(self, task: TaskSpec) -> str:
        return str(task.seed)


class ProblemOverlap(HiddenApart):
    def describe_task(self, task: TaskSpec) -> str:
        return str(task.index)


class HashSeed(Sound):
    """The order of a set of texts changes with PYTHONHASHSEED."""

    def reset(self) -> str:
        return super().reset() + " ".join({f"{word}{self.a}" for word in "abcdefgh"})


class ProcessSeed(Sound):
    """Every process has a world of its own."""

    def numbers(self, task: TaskSpec, rng: random.Random) -> tuple[int, int]:
        return self.draw(random.Random(stable_hash(os.getpid(), task.seed)))


class Clock(Sound):
    def numbers(self, task: TaskSpec, rng: random.Random) -> tuple[int, int]:
        return self.draw(random.Random(time.time_ns()))


class OrderMatters(Sound):
    """The last episode is remembered."""

    turns = 0

    def step(self, action: Action) -> Any:
        self.turns += 1
        _, reward, end = super().step(action)
        return f"Turn {self.turns}.", reward, end


class ThreadUnsafe(Sound):
    """Seeds the global generator, draws from it and puts it back: right only while nobody else does."""

    def numbers(self, task: TaskSpec, rng: random.Random) -> tuple[int, int]:
        state = random.getstate()
        random.seed(task.seed)
        for _ in range(2000):
            pair = self.draw(random)
        random.setstate(state)
        return pair


class SharedState(Sound):
    """All environments of a process share what should be an attribute."""

    shared: ClassVar[dict[str, int]] = {}

    async def reset(self) -> str:
        text = super().reset()
        self.shared["sum"] = self.a + self.b
        await asyncio.sleep(0)
        return text

    async def step(self, action: Action) -> Any:
        await asyncio.sleep(0)
        return f"It was {self.shared['sum']}.", *super().step(action)[1:]


class GlobalRandom(Sound):
    def numbers(self, task: TaskSpec, rng: random.Random) -> tuple[int, int]:
        random.seed(task.seed)
        return self.draw(random)


class GlobalRandomNoOracle(GlobalRandom):
    """The same task leaves the generator in the same state, and there is no oracle to begin it the first time."""

    def oracle(self) -> str:
        raise NotImplementedError


class GlobalNumpy(Sound):
    def step(self, action: Action) -> Any:
        np.random.rand()
        return super().step(action)


class StringReward(Sound):
    def score(self, said: str) -> Any:
        return str(super().score(said))


class StringRewardOnGarbage(Sound):
    def score(self, said: str) -> Any:
        return super().score(said) if said.isdigit() else "0"


class NanReward(Sound):
    def score(self, said: str) -> float:
        return math.nan if said.startswith("zq") else super().score(said)


class ObjectReward(Sound):
    """An array of one number: a number only by courtesy."""

    def score(self, said: str) -> Any:
        return np.array([super().score(said)])[0:1].reshape(())


class PaysForGarbage(Sound):
    """Anything but digits is right."""

    def score(self, said: str) -> float:
        return super().score(said) if said.isdigit() else 1.0


class PaysForLength(Sound):
    def score(self, said: str) -> float:
        return max(super().score(said), min(0.01 * len(said), 0.5) if len(said) > 40 else 0.0)


class PaysForMention(Sound):
    """The right answer anywhere in a text, and a shotgun list holds it."""

    def __init__(self) -> None:
        super().__init__(4)

    def score(self, said: str) -> float:
        return float(str(self.a + self.b) in said)


class PaysForOne(Sound):
    """A way around the task: one fixed answer is always right."""

    def score(self, said: str) -> float:
        return 1.0 if said == "0" else super().score(said)


class PaysForOtherAnswers(Sound):
    """Two numbers that sum to what is asked for are right, and so are any two."""

    def score(self, said: str) -> float:
        return float(len(parts := said.split("+")) == 2 and all(part.isdigit() for part in parts))

    def oracle(self) -> str:
        return f"<answer>{self.a}+{self.b}</answer>"


class PaysForGarbageInOneFamily(Sound):
    def __init__(self, family: str = "all") -> None:
        super().__init__()
        self.family = family

    def task_families(self) -> tuple[dict[str, Any], ...]:
        return ({"family": "good"}, {"family": "bad"}) if self.family == "all" else ()

    def score(self, said: str) -> float:
        return 1.0 if self.family == "bad" and not said.isdigit() else super().score(said)


class PaysForWrongCall(Sound):
    """Any call of its tool wins, whatever the arguments."""

    schema: ClassVar[dict[str, Any]] = {"type": "object", "properties": {"sum": {"type": "integer"}}}

    def tools(self) -> tuple[Tool, ...]:
        return (Tool("submit", "Submit the sum.", self.schema),)

    def step(self, action: Action) -> Any:
        return "Done.", float(any(call.name == "submit" for call in action.tool_calls)), True

    def oracle(self) -> Action:  # type: ignore[override]
        return Action("", (ToolCall("submit", {"sum": self.a + self.b}),))


class RaisesOnGarbage(Sound):
    def score(self, said: str) -> float:
        return float(int(said) == self.a + self.b) if len(said) < 20 else 0.0


class RaisesOnSurrogates(Sound):
    def score(self, said: str) -> float:
        return float(said.encode() == str(self.a + self.b).encode())


class OracleLoses(Sound):
    def oracle(self) -> str:
        return f"<answer>{self.a + self.b + (self.task.index % 4 == 3)}</answer>"


class NoOracle(Sound):
    def oracle(self) -> str:
        raise NotImplementedError


class SomeOracles(Sound):
    def oracle(self) -> str:
        if self.task.index % 2:
            raise NotImplementedError
        return super().oracle()


class NullWins(Sound):
    def step(self, action: Action) -> Any:
        return super().step(action) if action.text else ("Done.", 1.0, True)


class RandomWins(Sound):
    def __init__(self) -> None:
        super().__init__(9)

    def random_action(self, rng: random.Random) -> str:
        return self.oracle() if rng.random() < 0.9 else "no"


class GrowingObservations(Sound):
    """Each observation holds the whole history."""

    max_turns = 8

    def reset(self) -> str:
        self.history = super().reset()
        return self.history

    def step(self, action: Action) -> Any:
        text, reward, end = super().step(action)
        self.history += f"\n{action.text}\n{text}"
        return self.history, reward, end and reward == 1.0


class GrowingFirstObservation(Sound):
    """Messages of earlier episodes stay."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[Message] = []

    def reset(self) -> Observation:
        self.messages.append(Message("user", super().reset()))
        return Observation(tuple(self.messages))


_KEPT: list[Any] = []


class LeaksMemory(Sound):
    def reset(self) -> str:
        _KEPT.append(bytearray(2000))
        return super().reset()


class LeaksDescriptors(Sound):
    """Opens a file in each reset and forgets it."""

    def reset(self) -> str:
        self.files = [*getattr(self, "files", []), os.open(os.devnull, os.O_RDONLY)]
        return super().reset()

    def close(self) -> None:
        for fd in getattr(self, "files", []):
            os.close(fd)


class LeaksThreads(Sound):
    def reset(self) -> str:
        self.done = getattr(self, "done", threading.Event())
        threading.Thread(target=self.done.wait, daemon=True).start()
        return super().reset()

    def close(self) -> None:
        if hasattr(self, "done"):
            self.done.set()


class ForgetsToClose(Sound):
    def __init__(self) -> None:
        super().__init__()
        self.fd = os.open(os.devnull, os.O_RDONLY)


class CloseRaises(Sound):
    def close(self) -> None:
        raise OSError("nothing to close")


class BlocksTheLoop(Sound):
    def step(self, action: Action) -> Any:
        time.sleep(0.1)
        return super().step(action)


class WaitsPolitely(Sound):
    async def step(self, action: Action) -> Any:
        await asyncio.sleep(0.1)
        return super().step(action)


class Crashes(Sound):
    """Takes its process with it on one task."""

    def reset(self) -> str:
        if self.task.index == 3:
            os.kill(os.getpid(), 9)
        return super().reset()


class Hangs(Sound):
    def reset(self) -> str:
        while self.task.index == 3:
            time.sleep(0.1)
        return super().reset()


class Raises(Sound):
    def step(self, action: Action) -> Any:
        if self.task.index == 2:
            raise KeyError("lost")
        return super().step(action)


class BadObservation(Sound):
    def reset(self) -> Any:
        return 3


class Slow(Sound):
    def reset(self) -> str:
        time.sleep(0.03)
        return super().reset()


def _kinds(cls: type[Environment]) -> list[type[Environment]]:
    return [cls, *(kind for child in cls.__subclasses__() for kind in _kinds(child))]


for _kind in _kinds(Sound):
    register(f"faulty/{_kind.__name__}-v0", _kind, source="test")
