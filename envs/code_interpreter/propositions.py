"""Propositional logic: formulas, and the conclusions that take more than one premise.

The package's verifier finds any formula right that follows, and everything follows from premises that contradict one
another (a fifth of its problems): the weak `(P ∨ Q)` wins nearly always. Here the premises can all be true, and a
conclusion must not follow from one of them alone.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Model = Mapping[str, bool]
Formula = Callable[[Model], bool]

RULE = "Your conclusion must take more than one premise: it must not follow from any of them alone."
_TOKENS = re.compile(r"[A-Z∧∨→↔¬()]")
_JOIN: dict[str, Callable[[bool, bool], bool]] = {
    "↔": lambda a, b: a == b, "→": lambda a, b: not a or b, "∨": lambda a, b: a or b, "∧": lambda a, b: a and b,
}  # fmt: skip
LONGEST = 200
"""Characters of a conclusion; longer ones are not read."""


def formula(text: str) -> Formula:
    """The formula that a text says; ↔ binds least, then →, ∨ and ∧. Raises ValueError for what is none."""
    text = re.sub(r"\s+", "", text)
    tokens = _TOKENS.findall(text)
    if len(text) > LONGEST or len(tokens) != len(text) or not tokens:
        raise ValueError("this is no formula")
    found, rest = _joined(tokens, list(_JOIN))
    if rest:
        raise ValueError(f"the formula goes on with {rest[0]!r}")
    return found


def _joined(tokens: Sequence[str], symbols: Sequence[str]) -> tuple[Formula, Sequence[str]]:
    if not symbols:
        return _single(tokens)
    left, rest = _joined(tokens, symbols[1:])
    while rest and rest[0] == symbols[0]:
        right, rest = _joined(rest[1:], symbols[1:])
        left = _join(_JOIN[symbols[0]], left, right)
    return left, rest


def _single(tokens: Sequence[str]) -> tuple[Formula, Sequence[str]]:
    if not tokens:
        raise ValueError("the formula ends too early")
    head, rest = tokens[0], tokens[1:]
    if head == "¬":
        inner, rest = _single(rest)
        return (lambda model: not inner(model)), rest
    if head == "(":
        inner, rest = _joined(rest, list(_JOIN))
        if not rest or rest[0] != ")":
            raise ValueError("a ) is missing")
        return inner, rest[1:]
    if not head.isalpha():
        raise ValueError(f"{head!r} stands where a letter has to")
    return (lambda model: model[head]), rest


def _join(symbol: Callable[[bool, bool], bool], left: Formula, right: Formula) -> Formula:
    return lambda model: symbol(left(model), right(model))


def concludes(text: str, metadata: Mapping[str, Any]) -> bool:
    """Whether a formula follows from the premises together, and from none of them alone."""
    try:
        wanted = formula(text)
        return _follows(wanted, metadata)
    except (ValueError, KeyError, RecursionError):
        return False


def conclusion(metadata: Mapping[str, Any]) -> str:
    """The first short conclusion there is; '' where there is none, or the premises contradict one another."""
    if not any(all(premise(model) for premise in _premises(metadata)) for model in _models(metadata)):
        return ""
    return next((text for text in _short(metadata) if _follows(formula(text), metadata)), "")


def _follows(wanted: Formula, metadata: Mapping[str, Any]) -> bool:
    premises, models = _premises(metadata), _models(metadata)
    together = all(wanted(model) for model in models if all(premise(model) for premise in premises))
    return together and not any(
        all(wanted(model) for model in models if premise(model)) for premise in premises
    )


def _premises(metadata: Mapping[str, Any]) -> list[Formula]:
    return [formula(text) for text in metadata["premises"]]


def _models(metadata: Mapping[str, Any]) -> list[Model]:
    names = metadata["variables"]
    return [
        dict(zip(names, values, strict=True))
        for values in itertools.product((False, True), repeat=len(names))
    ]


def _short(metadata: Mapping[str, Any]) -> Iterator[str]:
    """Letters, negated letters, and two of them joined."""
    literals = [f"{sign}{name}" for name in metadata["variables"] for sign in ("", "¬")]
    yield from literals
    for symbol in ("→", "∨", "∧", "↔"):
        for left, right in itertools.permutations(literals, 2):
            if left[-1] != right[-1]:
                yield f"({left} {symbol} {right})"
