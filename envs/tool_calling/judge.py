"""The verdict on one request, by BFCL's own checks of state and responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import response_checker, state_checker


@dataclass(frozen=True)
class Verdict:
    """Whether a request was met. `fault` is `empty` (no call), `state` or `response` where it was not, `words` what
    that means."""

    right: bool
    fault: str = ""
    words: str = ""


RIGHT = Verdict(True)


def judge(
    turn: int, called: bool, instances: Mapping[str, Any], expected: Mapping[str, Any],
    responses: Sequence[str], wanted: Sequence[str],
) -> Verdict:  # fmt: skip
    """The verdict on a request that asks for calls.

    called: whether any was made since the request. instances, expected: the agent's backends and those on which the
    right calls were made. responses: all results so far, of earlier requests too; wanted: those of the right calls.
    """
    if not called:
        return Verdict(False, "empty", "No tool was called.")
    try:
        state = state_checker(dict(instances), dict(expected))
    except RecursionError:  # directories that hold themselves, which the right calls never make
        return Verdict(False, "state", "A state is not what was asked for.")
    if not state["valid"]:
        differing = sorted(state["details"]["differences"])
        return Verdict(False, "state", f"What was asked for is not so: {', '.join(differing)}.")
    if not response_checker(list(responses), list(wanted), turn)["valid"]:
        return Verdict(False, "response", "What was asked about was not looked up.")
    return RIGHT
