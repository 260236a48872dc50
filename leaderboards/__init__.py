"""Leaderboards: suites of tasks as data, results with intervals, and tables of them."""

from gymrl.leaderboards.results import Result, compare_results, find_results, read_result
from gymrl.leaderboards.runner import run_suite
from gymrl.leaderboards.suite import Suite, SuiteError, load_suite, shipped

__all__ = [
    "Result",
    "Suite",
    "SuiteError",
    "compare_results",
    "find_results",
    "load_suite",
    "read_result",
    "run_suite",
    "shipped",
]
