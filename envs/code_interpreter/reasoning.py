"""The task families of the `reasoning-gym` package as problems of the code interpreter.

The package's own seeds are not used as they come (item i of seed s is item i-1 of seed s+1): every problem is the
only item of a data set whose seed is hashed from the task. Its verifiers judge the answers, behind guards: an answer
is right or it is not, because the partial scores pay for length, format or a common first digit.
"""

from __future__ import annotations

import difflib
import random
import re
import threading
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any

from gymrl.envs.code_interpreter.maker import ITEMS, MAKER
from gymrl.envs.code_interpreter.problems import Problem
from gymrl.envs.code_interpreter.solvers import SOLVERS
from gymrl.envs.gym import EnvironmentFault
from gymrl.envs.records import TaskSpec, stable_hash

_STATE = random.getstate()
from reasoning_gym.composite import DatasetSpec  # noqa: E402 - the package draws from Python's global generator
from reasoning_gym.factory import DATASETS, create_dataset  # noqa: E402

random.setstate(_STATE)

_MAKING = threading.Lock()
"""The package is not known to be safe in threads: one item at a time."""

APART: dict[str, str] = {
    **dict.fromkeys(
        ("isomorphic_strings", "polynomial_multiplication", "ransom_note", "word_ladder"),
        "the same seed gives other items under another PYTHONHASHSEED",
    ),
    **dict.fromkeys(("list_functions", "pool_matrix"), "draws from a global random generator"),
    **dict.fromkeys(
        (
            "arc_agi",
            "figlet_font",
            "futoshiki",
            "group_anagrams",
            "knight_swap",
            "rush_hour",
            "zebra_puzzles",
        ),
        "one item takes from a tenth of a second to several seconds to make",
    ),
    **dict.fromkeys(
        ("intermediate_integration", "simple_integration"), "the verifier computes with the agent's text"
    ),
    "codeio": "runs programs that the package stores",
    "bf": "prints to the terminal while it makes an item",
}
"""Families whose problems are made and judged in a process of their own (see `maker`), and why."""

_PARTS = ("basic_arithmetic", "leg_counting", "letter_counting", "number_sorting")
_CONFIGS: dict[str, Callable[[], dict[str, Any]]] = {
    "composite": lambda: {"datasets": [DatasetSpec(name, 1, {}) for name in _PARTS]}
}
"""Parameters of the families that cannot do without: `composite` mixes others."""

_ARITHMETIC = re.compile(r"(?!.*\*\*)[\d+\-*/(). ]{1,200}", re.DOTALL)
_NAMES = "a?(?:sin|cos|tan)h?|sec|csc|cot|exp|log|ln|sqrt|Abs|pi|[A-Za-z]"
_MATHEMATICS = re.compile(
    r"(?!.*(?:\*\*|\^)\s*\(?\s*-?\d{3})(?!.*\*\*[^+*/]*\*\*)"  # no towers
    rf"(?:\b(?:{_NAMES})\b|\b\d{{1,12}}(?:\.\d{{1,12}})?\b|[-+*/^() ]){{1,400}}"
)
"""Formulas of known functions and single letters: nothing that sympy's parser could evaluate as a program."""
_FORMS: dict[str, re.Pattern[str]] = {
    "complex_arithmetic": re.compile(r"[\d+\-.ij() ]{1,100}"),  # pays for nan
    "countdown": _ARITHMETIC,  # sympy's parser evaluates Python
    "puzzle24": _ARITHMETIC,
    "coin_flip": re.compile(r"\d{1,9}(\.\d{1,12})?|\d{1,9}/\d{1,9}"),
    "intermediate_integration": _MATHEMATICS,
    "polynomial_multiplication": _MATHEMATICS,
    "rush_hour": re.compile(r"([A-Z][+-]\d\s*){1,200}"),
    "simple_integration": _MATHEMATICS,
    "gsm_symbolic": re.compile(r"-?\$?\d[\d,]*(\.\d+)?%?"),  # reads the first number in any text
    "n_queens": re.compile(r"[Q_\s]*"),  # evaluates what is no board
    "prime_factorization": re.compile(r"\d{1,9}(\s*[×*x]\s*\d{1,9})*"),  # raises on all else
}
"""What an answer has to look like before the package's verifier sees it."""

_EXACT = frozenset({"binary_matrix", "game_of_life_halting", "spiral_matrix", "string_insertion"})
"""Families with one right answer whose verifiers evaluate any other text, or (game_of_life_halting) pay for any text
where the answer is False; compared here instead."""

_HUGE = re.compile(r"\d[eE][+-]?\d{3,}")  # numbers that fill the memory when they are written out
MAX_DRAWS = 2000
TOLERANCE = 1e-4
"""How far a probability may be off in coin_flip; the package goes on to pay for a first digit in common."""
HELD_OUT = 25
"""Percent of the families that are in no training split where families are split."""


class ReasoningTasks:
    """Problems of the given families, drawn evenly (None: of all).

    by_family: whether three quarters of the families are for training and the others for validation and test, so that
    what is measured is the skill and not the family. Raises ValueError for an unknown family.
    """

    def __init__(self, families: tuple[str, ...] | None = None, by_family: bool = False) -> None:
        for name in families or ():
            if name not in DATASETS:
                near = difflib.get_close_matches(name, DATASETS, 1, 0.3)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(all_families())}."
                raise ValueError(f"unknown reasoning-gym family {name!r}: {hint}")
        self.families = tuple(families or all_families())
        self.by_family = by_family
        if by_family:
            for split in ("train", "test"):
                if not self._of_split(split):
                    raise ValueError(
                        f"none of {len(self.families)} families is in {split}: name more of them"
                    )

    @property
    def waits(self) -> bool:
        """Whether drawing and scoring may take long: they wait for another process."""
        return any(name in APART for name in self.families)

    def draw(self, task: TaskSpec, rng: random.Random) -> Problem:
        """A problem of the task's split; `data` is (data set, item), which the verifier needs.

        Raises EnvironmentFault if the package fails, or has no problem for that split.
        """
        return _problem(rng.choice(self._of_split(task.split) if self.by_family else self.families), task)

    def families_by_name(self) -> tuple[str, ...]:
        return tuple(f"reasoning-gym:{name}" for name in self.families) if len(self.families) > 1 else ()

    def score(self, problem: Problem, answer: str) -> float:
        """1.0 for a right answer, else 0.0.

        A verifier that raises finds the answer wrong, unless the answer is the stored one: that is
        EnvironmentFault.
        """
        answer = answer.strip()
        if problem.kind in _EXACT:
            return float(answer.split() == problem.answer.split())
        if answer != problem.answer and not _presentable(problem, answer):
            return 0.0
        try:
            score = _judge(problem, answer)
        except EnvironmentFault:
            raise
        except Exception as error:
            if answer == problem.answer:
                raise EnvironmentFault(
                    f"reasoning-gym's {problem.kind} cannot judge its own answer"
                ) from error
            return 0.0
        return float(score >= 1.0)

    def _of_split(self, split: str) -> tuple[str, ...]:
        return tuple(name for name in self.families if held_out(name) == (split != "train"))


def held_out(family: str) -> bool:
    """Whether a family is kept for validation and test where families are split."""
    return stable_hash("reasoning-gym", "held out", family) % 100 < HELD_OUT


def all_families() -> tuple[str, ...]:
    """Every family of the package, in alphabetical order."""
    return tuple(sorted(DATASETS))


@lru_cache(32)
def _problem(family: str, task: TaskSpec) -> Problem:
    """The family's problem for a task; kept for a while, as the rollouts of a group all ask for one."""
    apart = family in APART
    for attempt in range(MAX_DRAWS):
        if apart:
            row, index = divmod(attempt, ITEMS)
            seed = stable_hash("reasoning-gym", family, task.seed, row) % 2**31
            item, data = MAKER.item(family, seed, index), (seed, index)
        else:
            seed = stable_hash("reasoning-gym", family, task.seed, attempt)
            item, data = _made_here(family, seed)
        question = str(item["question"])
        if not task.owns(f"{family}\n{question}"):
            continue
        solve = SOLVERS.get(family)
        known = str(item["answer"]).strip() if solve is None else solve(item["metadata"]).strip()
        problem = Problem(question, known, family, data)
        # Where the answer is one of many that we found ourselves, the verifier has to agree.
        if solve is None or _judge(problem, known) >= 1.0:
            return problem
    raise EnvironmentFault(f"reasoning-gym's {family} has no problem for {task.split} in {MAX_DRAWS} draws")


def _made_here(family: str, seed: int) -> tuple[dict[str, Any], Any]:
    """An item, and what its verifier needs."""
    try:
        with _MAKING:
            config = _CONFIGS[family]() if family in _CONFIGS else {}
            dataset = create_dataset(family, seed=seed, size=1, **config)
            item: dict[str, Any] = dataset[0]
    except Exception as error:
        raise EnvironmentFault(f"reasoning-gym's {family} failed for seed {seed}: {error!r}") from error
    return item, (dataset, item)


def _judge(problem: Problem, answer: str) -> float:
    """What the package's verifier says. Raises what it raises."""
    if problem.kind == "coin_flip":
        return float(abs(Fraction(answer) - Fraction(problem.answer)) <= TOLERANCE)
    if problem.kind in APART:
        seed, index = problem.data
        return MAKER.score(problem.kind, seed, index, answer)
    dataset, item = problem.data
    return float(dataset.score_answer(answer, item))


def _presentable(problem: Problem, answer: str) -> bool:
    """Whether an answer may be shown to the verifier: of the family's form, and of a size that cannot hurt."""
    form = _FORMS.get(problem.kind)
    return (
        0 < len(answer) <= 1000 + 10 * len(problem.answer)
        and not _HUGE.search(answer)
        and (form is None or form.fullmatch(answer) is not None)
    )
