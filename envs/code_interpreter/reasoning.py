"""The task families of the `reasoning-gym` package as problems of the code interpreter.

The package's own seeds are not used as they come (item i of seed s is item i-1 of seed s+1): every problem is the
only item of a data set whose seed is hashed from the task. Its verifiers judge the answers, behind guards: an answer
is right or it is not, because the partial scores pay for length, format or a common first digit.
"""

from __future__ import annotations

import decimal
import difflib
import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from gymrl.envs.code_interpreter.maker import ITEMS, MAKER
from gymrl.envs.code_interpreter.problems import Problem
from gymrl.envs.code_interpreter.propositions import RULE
from gymrl.envs.code_interpreter.solvers import SOLVERS
from gymrl.envs.code_interpreter.verdicts import own_verdict, presentable
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

MAX_DRAWS = 2000
RULES = {"propositional_logic": (RULE,)}
"""What our verdict asks for and the package's question does not say."""
HELD_OUT = 25
"""Percent of the families that are in no training split where families are split."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What verdicts need: `where` the item is (seed and index in the other process, or data set and item), and the
    item's `metadata`."""

    where: Any
    metadata: Mapping[str, Any]


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
        """A problem of the task's split; `data` is what the verdict needs.

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
        own = answer == problem.answer
        if not own and not presentable(problem.kind, answer, problem.answer):
            return 0.0
        try:
            return float(_right(problem, answer))
        except EnvironmentFault:
            raise
        except Exception as error:
            if own:
                raise EnvironmentFault(
                    f"reasoning-gym's {problem.kind} cannot judge its own answer"
                ) from error
            return 0.0

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
            item, where = MAKER.item(family, seed, index), (seed, index)
        else:
            seed = stable_hash("reasoning-gym", family, task.seed, attempt)
            item, where = _made_here(family, seed)
        question = "\n".join([str(item["question"]), *RULES.get(family, ())])
        if not task.owns(f"{family}\n{question}"):
            continue
        solve = SOLVERS.get(family)
        known = str(item["answer"]).strip() if solve is None else solve(item["metadata"]).strip()
        problem = Problem(question, known, family, Judged(where, item["metadata"]))
        # What the oracle will say has to be right: some stored answers are empty, or their verifiers refuse them.
        if known and _agreed(problem):
            return problem
    raise EnvironmentFault(f"reasoning-gym's {family} has no problem for {task.split} in {MAX_DRAWS} draws")


def _made_here(family: str, seed: int) -> tuple[dict[str, Any], Any]:
    """An item, and what its verifier needs."""
    try:
        with _MAKING, decimal.localcontext():  # decimal_arithmetic sets the precision of all that follows
            config = _CONFIGS[family]() if family in _CONFIGS else {}
            dataset = create_dataset(family, seed=seed, size=1, **config)
            item: dict[str, Any] = dataset[0]
    except Exception as error:
        raise EnvironmentFault(f"reasoning-gym's {family} failed for seed {seed}: {error!r}") from error
    return item, (dataset, item)


def _agreed(problem: Problem) -> bool:
    """Whether the known answer is judged right. Raises EnvironmentFault."""
    try:
        return _right(problem, problem.answer)
    except EnvironmentFault:
        raise
    except Exception:
        return False


def _right(problem: Problem, answer: str) -> bool:
    """Our verdict where we have one, else the package's. Raises what that raises."""
    verdict = own_verdict(problem.kind, answer, problem.answer, problem.data.metadata)
    return _judge(problem, answer) >= 1.0 if verdict is None else verdict


def _judge(problem: Problem, answer: str) -> float:
    """What the package's verifier says. Raises what it raises."""
    if problem.kind in APART:
        seed, index = problem.data.where
        return MAKER.score(problem.kind, seed, index, answer)
    dataset, item = problem.data.where
    with decimal.localcontext():
        return float(dataset.score_answer(answer, item))
