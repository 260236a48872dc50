"""What the code interpreter asks: problems, and where they come from."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Protocol

from gymrl.envs.records import TaskSpec


@dataclass(frozen=True, slots=True)
class Problem:
    """A question and its right answer; `solution` is Python that prints it, `data` what a verifier needs."""

    question: str
    answer: str
    kind: str
    data: Any = None
    solution: str = ""


class ProblemSource(Protocol):
    """Draws problems, and scores answers in [0, 1]."""

    @property
    def waits(self) -> bool:
        """Whether drawing or scoring may take long, so that it must not be done on the event loop."""
        ...

    def draw(self, task: TaskSpec, rng: random.Random) -> Problem: ...

    def score(self, problem: Problem, answer: str) -> float: ...

    def families_by_name(self) -> tuple[str, ...]:
        """What `tasks` has to be for each of the families that are drawn from; () where there is but one."""
        ...


class Arithmetic:
    """Expressions of `terms` whole numbers of up to `digits` digits, under +, - and *.

    No expression is in two splits.
    """

    waits = False

    def __init__(self, terms: int = 3, digits: int = 2) -> None:
        if terms < 2 or digits < 1:
            raise ValueError("arithmetic takes terms of 2 or more and digits of 1 or more")
        self.terms, self.digits = terms, digits

    def draw(self, task: TaskSpec, rng: random.Random) -> Problem:
        expression = self._expression(rng)
        while not task.owns(expression):
            expression = self._expression(rng)
        value = str(eval(expression, {"__builtins__": {}}))  # our own digits and operators
        return Problem(f"What is {expression}?", value, "arithmetic", solution=f"print({expression})")

    def score(self, problem: Problem, answer: str) -> float:
        return float(answer.strip() == problem.answer)

    def families_by_name(self) -> tuple[str, ...]:
        return ()

    def _expression(self, rng: random.Random) -> str:
        numbers = [str(rng.randrange(10 ** (self.digits - 1), 10**self.digits)) for _ in range(self.terms)]
        signs = [rng.choice("+-*") for _ in range(self.terms - 1)]
        return " ".join(part for pair in zip(numbers, [*signs, ""], strict=True) for part in pair if part)
