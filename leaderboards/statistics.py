"""How sure a comparison is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gymrl.envs.intervals import wilson

__all__ = ["Comparison", "compare", "mcnemar_exact", "paired_interval", "wilson"]

Z95 = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""


@dataclass(frozen=True)
class Comparison:
    """Two policies on the same tasks. `difference` is success of a minus that of b, `low` and `high` its 95 %
    interval; `p` is the exact two-sided chance of a split as uneven as that of `only_a` and `only_b` if neither were
    better. `left_out` tasks had an invalid episode or were played by one of the two only."""

    tasks: int
    success_a: float
    success_b: float
    difference: float
    low: float
    high: float
    only_a: int
    """Tasks on which a was better."""
    only_b: int
    p: float
    left_out: int


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """The two-sided exact p-value of McNemar's test: a binomial test at 1/2 of the pairs that differ (McNemar 1947;
    Agresti, Categorical Data Analysis, 3rd ed., section 11.1.4)."""
    total = only_a + only_b
    tail = sum(math.comb(total, k) for k in range(min(only_a, only_b) + 1))
    p: float = min(1.0, 2 * tail / 2**total)
    return p


def paired_interval(only_a: int, only_b: int, pairs: int) -> tuple[float, float]:
    """The 95 % interval of the difference of two paired shares, only_a/pairs - only_b/pairs: Wald's, after 1/2 has been
    added to each of the four counts (Agresti and Min 2005, Statistics in Medicine 24:729-740)."""
    if pairs == 0:
        return -1.0, 1.0
    a, b, n = only_a + 0.5, only_b + 0.5, pairs + 2.0
    centre = (a - b) / n
    spread = Z95 * math.sqrt(a + b - (a - b) ** 2 / n) / n
    return max(-1.0, centre - spread), min(1.0, centre + spread)


def compare(a: Mapping[int, Sequence[bool | None]], b: Mapping[int, Sequence[bool | None]]) -> Comparison:
    """Compare two policies task by task; both map a task's index to the successes of its samples (None: invalid).

    With one sample a task the interval is `paired_interval`'s and p is McNemar's. With more, a task counts with its
    mean: the interval is the normal one of the mean difference over tasks, p that of the exact sign test.
    """
    shared = [index for index in a if index in b and None not in a[index] and None not in b[index]]
    left_out = len(set(a) | set(b)) - len(shared)
    means = [(sum(map(bool, a[i])) / len(a[i]), sum(map(bool, b[i])) / len(b[i])) for i in shared]
    count = len(means)
    differences = [x - y for x, y in means]
    only_a = sum(d > 0 for d in differences)
    only_b = sum(d < 0 for d in differences)
    mean = sum(differences) / max(1, count)
    if all(len(a[i]) == len(b[i]) == 1 for i in shared):
        low, high = paired_interval(only_a, only_b, count)
    elif count < 2:
        low, high = -1.0, 1.0
    else:
        deviation = math.sqrt(sum((d - mean) ** 2 for d in differences) / (count - 1))
        spread = Z95 * deviation / math.sqrt(count)
        low, high = max(-1.0, mean - spread), min(1.0, mean + spread)
    return Comparison(
        count, sum(x for x, _ in means) / max(1, count), sum(y for _, y in means) / max(1, count), mean, low, high,
        only_a, only_b, mcnemar_exact(only_a, only_b), left_out,
    )  # fmt: skip
