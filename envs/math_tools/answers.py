r"""Which answers may be shown to the verifier, and which need not be.

math-verify finds equal what has the same value, so it also pays for a question said again (`\boxed{17 \cdot 23}`, an
integral that nobody solved), takes the right side of any equation (`1 = 5`), and computes towers of powers. What asks
for a number has to be answered by one.
"""

from __future__ import annotations

import re

_SPACES = re.compile(r"\\[,;:! ]|\s|~|\\left|\\right|\$")
_WHOLE = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+|[-+]?\d+")
_PLAIN = r"(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?"
_SIGNED = rf"[-+]?{_PLAIN}"
_NUMBER = re.compile(
    rf"\(?[-+]?(?:{_SIGNED}|{_SIGNED}/{_SIGNED}|{_PLAIN}\\[dt]?frac\{{{_SIGNED}\}}\{{{_SIGNED}\}}|\\[dt]?frac\d\d"
    rf"|{_SIGNED}(?:\\times|\\cdot|\*)10\^(?:\d|\{{-?\d{{1,2}}\}}))\)?"
    r"(?:\\?%|\^\\circ|\^\{\\circ\}|\\(?:text|mathrm|mbox)\{[^{}]*\}|[a-zA-Z]{1,12}(?:\^\d)?)?"
)
_OPERATORS = re.compile(
    r"\\(?:[io]?int|sum|prod|lim|binom|tbinom|dbinom|pmod|bmod|gcd|max|min|det)(?![a-zA-Z])|!"
)
_POWERS = re.compile(r"(?:\^|\*\*)\s*[({]*\s*[-+]?\s*(?:\d{4,}|[^})]*(?:\^|\*\*))|\d[eE][+-]?\d{3,}")
_NAME = re.compile(r"\s*\\?[A-Za-z](?:'|_\{?\w{1,3}\}?|\([A-Za-z]\))?\s*")
_PARTS = re.compile(r",|;|\\text\{\s*(?:and|or)\s*\}|\b(?:and|or)\b|\\\\|&")


def plain(text: str) -> str:
    """An answer without white space, dollars and LaTeX's spacing: equal ones are equal answers."""
    return _SPACES.sub("", text).rstrip(".")


def whole(text: str) -> int | None:
    """The whole number that an answer is, None where it is anything else."""
    found = plain(text)
    return int(found.replace(",", "")) if len(found) < 4000 and _WHOLE.fullmatch(found) else None


def is_number(text: str) -> bool:
    """Whether a text is one number: whole, decimal, a fraction, times a power of ten; with a unit or per cent."""
    found = plain(text)
    return any(letter.isdigit() for letter in found[:100]) and _NUMBER.fullmatch(found) is not None


def presentable(gold: str, answer: str) -> bool:
    """Whether an answer has a form in which the right one could be given, and cannot hurt the verifier."""
    if not answer or len(answer) > 200 + 4 * len(gold) or not answer.isprintable():
        return False
    asked = plain(gold)
    if is_number(asked):
        value = answer
        if answer.count("=") == 1 and _NAME.fullmatch(answer.partition("=")[0]):
            value = answer.partition("=")[2]
        return is_number(value)
    if _OPERATORS.search(answer) and not _OPERATORS.search(gold):
        return False
    if _POWERS.search(answer) and not _POWERS.search(gold):
        return False
    if re.search(r"\d{40}", answer) and not re.search(r"\d{40}", gold):
        return False
    numbers = [part for part in _PARTS.split(re.sub(r"\\?[{}()\[\]]", "", asked)) if part]
    if (
        len(numbers) > 1
        and all(map(is_number, numbers))
        and "\\" not in asked.replace("\\{", "").replace("\\}", "")
    ):
        given = _PARTS.split(re.sub(r"^\\?[{(\[]|\\?[})\]]$", "", answer.strip("$ ")))
        return all(is_number(_value(part)) for part in given)
    return "=" in gold or all(
        part.count("=") == 0 or (part.count("=") == 1 and _NAME.fullmatch(part.partition("=")[0]))
        for part in _PARTS.split(answer)
    )


def _value(part: str) -> str:
    name, sign, value = part.partition("=")
    return value if sign and _NAME.fullmatch(name) else part
