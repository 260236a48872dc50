"""The task families of the `reasoning-gym` package as problems of the code interpreter.

The package's own seeds are not used as they come (item i of seed s is item i-1 of seed s+1): every problem is the
only item of a data set whose seed is hashed from the task. Its verifiers judge the answers, behind guards: an answer
is right or it is not, because the partial scores pay for length, format or a common first digit.
"""

from __future__ import annotations

import difflib
import random
import re
from functools import lru_cache
from typing import Any

from gymrl.envs.code_interpreter.problems import Problem
from gymrl.envs.gym import EnvironmentFault
from gymrl.envs.records import TaskSpec, stable_hash

_STATE = random.getstate()
from reasoning_gym.factory import DATASETS, create_dataset  # noqa: E402 - draws from Python's global generator

random.setstate(_STATE)

_NO_ANSWER = "no stored answer, hence no oracle"
_HASHSEED = "the same seed gives other items under another PYTHONHASHSEED"
_GLOBAL = "draws from a global random generator"
_EVAL = "the verifier evaluates the agent's text as Python"
_SLOW = "one item takes from a quarter of a second to several seconds to make"

EXCLUDED: dict[str, str] = {
    "boxnet": _NO_ANSWER,
    "graph_color": _NO_ANSWER,
    "propositional_logic": _NO_ANSWER,
    "rubiks_cube": _NO_ANSWER,
    "rush_hour": _NO_ANSWER,
    "isomorphic_strings": _HASHSEED,
    "polynomial_multiplication": f"{_HASHSEED}; {_EVAL}",
    "ransom_note": _HASHSEED,
    "word_ladder": _HASHSEED,
    "list_functions": _GLOBAL,
    "pool_matrix": _GLOBAL,
    "intermediate_integration": f"{_EVAL}; {_SLOW}",
    "simple_integration": f"{_EVAL}; {_SLOW}",
    "arc_agi": _SLOW,
    "figlet_font": _SLOW,
    "futoshiki": _SLOW,
    "group_anagrams": _SLOW,
    "knight_swap": _SLOW,
    "zebra_puzzles": _SLOW,
    "coin_flip": "the verifier pays 1 for '0' whatever the probability, as the common first digit",
    "codeio": "runs the package's stored programs in our process",
    "bf": "prints to the terminal while it makes an item",
    "composite": "is made of other families and needs them named",
}
"""Families left out of the default list, and why. They cannot be had by name either."""

_ARITHMETIC = re.compile(r"(?!.*\*\*)[\d+\-*/(). ]{1,200}", re.DOTALL)
_FORMS: dict[str, re.Pattern[str]] = {
    "complex_arithmetic": re.compile(r"[\d+\-.ij() ]{1,100}"),  # pays for nan
    "countdown": _ARITHMETIC,  # sympy's parser evaluates Python
    "puzzle24": _ARITHMETIC,
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


class ReasoningTasks:
    """Problems of the given families, drawn evenly (None: of all sound ones).

    Raises ValueError for an unknown family, and for one that is left out, with the reason.
    """

    def __init__(self, families: tuple[str, ...] | None = None) -> None:
        for name in families or ():
            if name not in DATASETS:
                near = difflib.get_close_matches(name, DATASETS, 1, 0.3)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sound_families())}."
                raise ValueError(f"unknown reasoning-gym family {name!r}: {hint}")
            if name in EXCLUDED:
                raise ValueError(
                    f"reasoning-gym family {name!r} is left out ({EXCLUDED[name]}): take another"
                )
        self.families = tuple(families or sound_families())

    def draw(self, task: TaskSpec, rng: random.Random) -> Problem:
        """A problem of the task's split; `data` is (data set, item), which the verifier needs.

        Raises EnvironmentFault if the package fails, or has no problem for that split.
        """
        return _problem(rng.choice(self.families), task)

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
        dataset, item = problem.data
        try:
            score = float(dataset.score_answer(answer, item))
        except Exception as error:
            if answer == problem.answer:
                raise EnvironmentFault(
                    f"reasoning-gym's {problem.kind} cannot judge its own answer"
                ) from error
            return 0.0
        return float(score >= 1.0)


@lru_cache(32)
def _problem(family: str, task: TaskSpec) -> Problem:
    """The family's problem for a task; kept for a while, as the rollouts of a group all ask for one."""
    for attempt in range(MAX_DRAWS):
        seed = stable_hash("reasoning-gym", family, task.seed, attempt)
        try:
            dataset = create_dataset(family, seed=seed, size=1)
            item: dict[str, Any] = dataset[0]
        except Exception as error:
            raise EnvironmentFault(f"reasoning-gym's {family} failed for seed {seed}: {error!r}") from error
        question = str(item["question"])
        if task.owns(f"{family}\n{question}"):
            return Problem(question, str(item["answer"]).strip(), family, (dataset, item))
    raise EnvironmentFault(f"reasoning-gym's {family} has no problem for {task.split} in {MAX_DRAWS} draws")


def sound_families() -> tuple[str, ...]:
    """The families of the default list, in alphabetical order."""
    return tuple(sorted(name for name in DATASETS if name not in EXCLUDED))


def _presentable(problem: Problem, answer: str) -> bool:
    """Whether an answer may be shown to the verifier: of the family's form, and of a size that cannot hurt."""
    form = _FORMS.get(problem.kind)
    return (
        0 < len(answer) <= 1000 + 10 * len(problem.answer)
        and not _HUGE.search(answer)
        and (form is None or form.fullmatch(answer) is not None)
    )
