"""What an answer to a reasoning-gym problem has to be, where the package's verifier takes too much for right.

Found by giving each family a thousand wrong answers of its own kind: letters of the right answer changed, more words
around it, the answers to other problems. `FORMS` is what an answer has to look like before the package's verifier
sees it; `OWN` are verdicts of ours in its place.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

from gymrl.envs.code_interpreter.propositions import concludes
from gymrl.envs.code_interpreter.solvers import leaves

Metadata = Mapping[str, Any]

_NAMES = "a?(?:sin|cos|tan)h?|sec|csc|cot|exp|log|ln|sqrt|Abs|pi|[A-Za-z]"
_MATHEMATICS = (
    r"(?!.*(?:\*\*|\^)\s*\(?\s*-?\d{3})(?!.*\*\*[^+*/]*\*\*)"  # no towers
    rf"(?:\b(?:{_NAMES})\b|\b\d{{1,12}}(?:\.\d{{1,12}})?\b|[-+*/^() ]){{1,400}}"
)
"""Formulas of known functions and single letters: nothing that sympy's parser could evaluate as a program."""
_FRACTION = r"\s*(?:\d+\s*/\s*\d+|\\d?frac\s*\{\s*\d+\s*\}\s*\{\s*\d+\s*\})\s*"
_SQUARE = r"\[\d+(?:\.\d+)?, ?\d+(?:\.\d+)?\]"

FORMS: dict[str, re.Pattern[str]] = {
    name: re.compile(form)
    for name, form in {
        "advanced_geometry": r"[\d.,()/°\s+-]{1,100}",  # reads what stands before the second comma
        "complex_arithmetic": r"[\d+\-.ij() ]{1,100}",  # pays for nan
        "fraction_simplification": rf"\$?{_FRACTION}\$?|\\\({_FRACTION}\\\)",  # reads how a text begins
        "intermediate_integration": _MATHEMATICS,
        "kakurasu": r"[01\s]+",  # reads the digits of any text, as do survo and sokoban
        "knights_knaves": r"\w+ is an? \w+(?:,? and \w+ is an? \w+|, \w+ is an? \w+)*\.?",
        "n_queens": r"[Q_\s]*",  # evaluates what is no board
        "polynomial_multiplication": _MATHEMATICS,
        "prime_factorization": r"\d{1,9}(\s*[×*x]\s*\d{1,9})*",  # raises on all else
        "quantum_lock": r"[A-Ca-c](?:(?: ?(?:→|->) ?|, ?| )?[A-Ca-c])*",
        "rubiks_cube": r"[A-Za-z]w?['\d]{0,2}(?:\s+[A-Za-z]w?['\d]{0,2})*",  # passes over what is no move
        "simple_integration": _MATHEMATICS,
        "sokoban": r"[UDLR\s]+",
        "survo": r"[\d\s]+",
        "tower_of_hanoi": r"(?:Move disk \d+ from Peg \d+ to Peg \d+\s*)+",
    }.items()
}

EXACT = frozenset({"binary_matrix", "game_of_life_halting", "spiral_matrix", "string_insertion"})
"""Families with one right answer whose verifiers evaluate any other text, or (game_of_life_halting) pay for any text
where the answer is False; compared word by word."""

_HUGE = re.compile(r"\d[eE][+-]?\d{3,}")  # numbers that fill the memory when they are written out
_NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d{1,40})?(?:\.\d{0,40})?(?:[eE][+-]?\d{1,3})?")
_EXPRESSION = re.compile(r"[\d+\-*/() ]{1,200}")


def presentable(family: str, answer: str, right: str) -> bool:
    """Whether an answer may be shown to a verifier: of the family's form, and of a size that cannot hurt."""
    form = FORMS.get(family)
    return (
        0 < len(answer) <= 1000 + 10 * len(right)
        and not _HUGE.search(answer)
        and (form is None or form.fullmatch(answer) is not None)
        and (family != "boxnet" or _plan(answer))
    )


def own_verdict(family: str, answer: str, right: str, metadata: Metadata) -> bool | None:
    """Our verdict, or None where the package's is taken."""
    if family == "composite":  # an item of another family
        family = str(metadata["source_dataset"])
    if family in EXACT:
        return answer.split() == right.split()
    judge = OWN.get(family)
    if judge is None:
        return None
    try:
        return judge(answer, right, metadata)
    except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError, SyntaxError):
        return False


def _number(text: str) -> Decimal:
    """A number as people write it. Raises ValueError for anything else, nan and infinity too."""
    if not _NUMBER.fullmatch(text := text.strip()):
        raise ValueError(f"{text[:40]!r} is no number")
    return Decimal(text.replace(",", ""))


def _near(tolerance: str) -> Callable[[str, str, Metadata], bool]:
    """Whether a number is no farther than that from the right one."""
    return lambda answer, right, _: abs(_number(answer) - _number(right)) <= Decimal(tolerance)


def _digits(answer: str, right: str, _: Metadata) -> bool:
    """Twelve digits are asked for, of which rounding on the way may cost the last two; the package takes 0.001."""
    wanted = _number(right)
    return abs(_number(answer) - wanted) <= Decimal("2e-10") * max(Decimal(1), abs(wanted))


def _amount(answer: str, right: str, _: Metadata) -> bool:
    """The package reads the first number in any text, and no sign."""
    return _number(answer.replace("$", "").removesuffix("%").removesuffix(".")) == _number(right)


def _word(answer: str, right: str, _: Metadata) -> bool:
    """The package adds up shares of letters, and the sum may be 1 where more letters follow."""
    return answer.split() == right.split() or answer.casefold().split() == right.casefold().split()


def _sorted_numbers(answer: str, right: str, _: Metadata) -> bool:
    """The package takes numbers that are off by a tenth and more for the same."""
    said, wanted = (json.loads(text.replace("'", '"')) for text in (answer, right))
    return isinstance(said, list) and [_number(str(n)) for n in said] == [_number(str(n)) for n in wanted]


def _matrix(answer: str, right: str, _: Metadata) -> bool:
    """Correct to two places, as is asked; the package lets a hundredth part pass."""
    said, wanted = ([line.split() for line in text.strip().splitlines()] for text in (answer, right))
    return [len(row) for row in said] == [len(row) for row in wanted] and all(
        abs(_number(a) - _number(b)) <= Decimal("0.0051")
        for row, other in zip(said, wanted, strict=True)
        for a, b in zip(row, other, strict=True)
    )


def _roots(answer: str, right: str, _: Metadata) -> bool:
    """All of them, to four places; the package passes over what is no number, and takes no other rounding."""
    said, wanted = (sorted(map(_number, text.rstrip(" ,").split(","))) for text in (answer, right))
    return len(said) == len(wanted) and all(
        abs(a - b) <= Decimal("0.00011") for a, b in zip(said, wanted, strict=True)
    )


def _share(answer: str, right: str, _: Metadata) -> bool:
    """A probability, also as a fraction; the package goes on to pay for a first digit in common."""
    if not re.fullmatch(r"\d{1,9}(\.\d{1,12})?|\d{1,9}/\d{1,9}", answer):
        return answer == right
    return abs(Fraction(answer) - Fraction(right)) <= Fraction(1, 10_000)


def _makes(target: int | None) -> Callable[[str, str, Metadata], bool]:
    """Whether an expression takes each given number once and makes the target.

    The package asks of an expression for 24 only that it holds four numbers, whichever, and drops fractions.
    """

    def judge(answer: str, right: str, metadata: Metadata) -> bool:
        if not _EXPRESSION.fullmatch(answer) or "**" in answer or "//" in answer:
            return False
        used: list[int] = []
        value = _value(ast.parse(answer.strip(), mode="eval").body, used)
        wanted = metadata["target"] if target is None else target
        return value == wanted and sorted(used) == sorted(metadata["numbers"])

    return judge


def _value(node: ast.expr, used: list[int]) -> Fraction:
    """The value of an expression of whole numbers, which are noted. Raises ValueError for any other."""
    match node:
        case ast.Constant(value=int() as number):
            used.append(number)
            return Fraction(number)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=inner):
            value = _value(inner, used)
            return -value if isinstance(sign, ast.USub) else value
        case ast.BinOp(left=left, op=sign, right=right):
            one, other = _value(left, used), _value(right, used)
            match sign:
                case ast.Add():
                    return one + other
                case ast.Sub():
                    return one - other
                case ast.Mult():
                    return one * other
                case ast.Div():
                    return one / other
    raise ValueError("this is more than whole numbers and + - * /")


def _plan(answer: str) -> bool:
    """Whether an answer is a plan for boxnet, all steps told as they are asked for (the package passes over others)."""
    try:
        steps = json.loads(answer)
    except (ValueError, RecursionError):
        return False
    return isinstance(steps, list) and all(
        isinstance(step, dict)
        and all(
            re.fullmatch(rf"Agent{_SQUARE}", agent)
            and isinstance(act, str)
            and re.fullmatch(rf"move\(box_\w+, (?:square{_SQUARE}|target_\w+)\)", act)
            for agent, act in step.items()
        )
        for step in steps
    )


OWN: dict[str, Callable[[str, str, Metadata], bool]] = {
    "coin_flip": _share,
    "countdown": _makes(None),
    "decimal_arithmetic": _digits,
    "gsm_symbolic": _amount,
    "letter_jumble": _word,
    "number_format": _near("0.0005"),  # the package's is 0.01, and candidates may be nearer to one another
    "number_sorting": _sorted_numbers,
    "polynomial_equations": _roots,
    "pool_matrix": _matrix,
    "propositional_logic": lambda answer, _, metadata: concludes(answer, metadata),
    "puzzle24": _makes(24),
    "rush_hour": lambda answer, _, metadata: leaves(answer, metadata),
    "spell_backward": _word,
}
"""Verdicts that take the place of the package's."""
