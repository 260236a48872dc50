"""A procedural set of math problems: each kind a function of a random generator and a difficulty from 1 to 5.

Answers are numbers, or the numbers of a set; every solution is a Python program that prints the answer.
"""

from __future__ import annotations

import difflib
import math
import random
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from types import MappingProxyType

from gymrl.envs.code_interpreter.problems import Problem
from gymrl.envs.gym import EnvironmentFault
from gymrl.envs.records import TaskSpec

Drawn = tuple[str, str, str]
"""Question, answer, and the program that prints it."""
MAX_DRAWS = 1000


class Procedural:
    """Problems of the given kinds (of all, where none is named), drawn evenly. No problem is in two splits.

    Raises ValueError for an unknown kind and a difficulty that there is not.
    """

    def __init__(self, kinds: tuple[str, ...] = (), difficulty: int = 2) -> None:
        for name in kinds:
            if name not in KINDS:
                near = difflib.get_close_matches(name, KINDS, 1, 0.3)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(KINDS)}"
                raise ValueError(f"unknown kind of math problem {name!r}: {hint}")
        if not 1 <= difficulty <= 5:
            raise ValueError(f"difficulty is 1 to 5, not {difficulty}")
        self.kinds, self.difficulty = kinds or tuple(KINDS), difficulty

    def draw(self, task: TaskSpec, rng: random.Random) -> Problem:
        kind = rng.choice(self.kinds)
        for _ in range(MAX_DRAWS):
            question, answer, solution = KINDS[kind](rng, self.difficulty)
            if task.owns(question):
                return Problem(question, answer, kind, solution=solution)
        raise EnvironmentFault(f"no problem of the kind {kind} for {task.split} in {MAX_DRAWS} draws")


def _arithmetic(rng: random.Random, d: int) -> Drawn:
    def number() -> int:
        return rng.randint(10, 99 if d < 3 else 999)

    text = f"({number()} {rng.choice('+-')} {number()}) * {number()}"
    for _ in range(d):
        text += f" {rng.choice('+-')} {number()} * ({number()} {rng.choice('+-')} {number()})"
    value = int(eval(text, {"__builtins__": {}}))  # our own digits and operators
    return f"Calculate {text}.", str(value), f"print({text})"


def _fractions(rng: random.Random, d: int) -> Drawn:
    parts = [Fraction(rng.randint(1, 9 * d + 9), rng.randint(2, 5 * d + 7)) for _ in range(d + 1)]
    signs = [rng.choice("+-") for _ in parts[1:]]
    total, text, code = parts[0], _tex(parts[0]), f"F({parts[0].numerator}, {parts[0].denominator})"
    for sign, part in zip(signs, parts[1:], strict=True):
        total = total + part if sign == "+" else total - part
        text += f" {sign} {_tex(part)}"
        code += f" {sign} F({part.numerator}, {part.denominator})"
    return (
        f"Simplify ${text}$ to one fraction.",
        str(total),
        f"from fractions import Fraction as F\nprint({code})",
    )


def _remainder(rng: random.Random, d: int) -> Drawn:
    base, exponent, modulus = (
        rng.randint(3, 99),
        rng.randint(10**d, 10 ** (d + 1)),
        rng.randint(11, 10 ** (d + 1)),
    )
    question = f"What is the remainder when {base}^{exponent} is divided by {modulus}?"
    return question, str(pow(base, exponent, modulus)), f"print(pow({base}, {exponent}, {modulus}))"


def _divisible(rng: random.Random, d: int) -> Drawn:
    top, (a, b, c) = (
        rng.randint(10 ** (min(d, 4) + 1), 10 ** (min(d, 4) + 2)),
        rng.sample(range(2, 8 + 4 * d), 3),
    )
    condition = f"(n % {a} == 0 or n % {b} == 0) and n % {c} != 0"
    shares = [(a, 1), (b, 1), (math.lcm(a, b), -1)]
    count = sum(sign * (top // k - top // math.lcm(k, c)) for k, sign in shares)
    question = f"How many integers from 1 to {top} are divisible by {a} or by {b}, but not by {c}?"
    return question, str(count), f"print(sum(1 for n in range(1, {top} + 1) if {condition}))"


def _system(rng: random.Random, d: int) -> Drawn:
    names = "xyz"[: 2 if d < 3 else 3]
    size = len(names)
    while True:
        rows = [[rng.randint(-4 - 2 * d, 4 + 2 * d) or 1 for _ in names] for _ in names]
        values = [Fraction(rng.randint(-9, 9), rng.choice((1, 1, 2, 3)[: 1 + d])) for _ in names]
        scale = math.lcm(*(value.denominator for value in values))
        if _determinant(rows):
            break
    rows = [[scale * k for k in row] for row in rows]
    right = [int(sum(k * v for k, v in zip(row, values, strict=True))) for row in rows]
    lines = [
        f"{_sum([(k, n) for k, n in zip(row, names, strict=True)])} = {r}"
        for row, r in zip(rows, right, strict=True)
    ]
    question = f"Solve the system {', '.join(lines)}. What is {' + '.join(names)}?"
    code = (
        f"from fractions import Fraction as F\nA = {[[*row, r] for row, r in zip(rows, right, strict=True)]}\n"
        f"A = [[F(k) for k in row] for row in A]\nfor i in range({size}):\n"
        f"    p = next(j for j in range(i, {size}) if A[j][i])\n    A[i], A[p] = A[p], A[i]\n"
        f"    A[i] = [k / A[i][i] for k in A[i]]\n    for j in range({size}):\n        if j != i:\n"
        "            A[j] = [a - A[j][i] * b for a, b in zip(A[j], A[i])]\nprint(sum(row[-1] for row in A))"
    )
    return question, str(sum(values, Fraction())), code


def _roots(rng: random.Random, d: int) -> Drawn:
    """A polynomial as the product of (q x - p); its roots are distinct."""
    found: set[Fraction] = set()
    while len(found) < (2 if d < 4 else 3):
        found.add(Fraction(rng.randint(-6 - 4 * d, 6 + 4 * d), rng.randint(1, d + 1)))
    factor = [rng.choice((1, 1, 2, 3, -1))]
    for root in sorted(found):
        factor = [
            a * root.denominator - b * root.numerator for a, b in zip([*factor, 0], [0, *factor], strict=True)
        ]
    degree = len(factor) - 1
    terms = [
        (k, f"x^{degree - i}" if degree - i > 1 else "x" * (degree - i))
        for i, k in enumerate(factor)
        if k or not i
    ]
    question = f"Find all real solutions of {_sum(terms)} = 0. Separate them by commas."
    code = (
        f"from fractions import Fraction as F\nc = {factor}\n"
        "def value(x):\n    total = 0\n    for k in c:\n        total = total * x + k\n    return total\n"
        "roots = {F(p, q) for q in range(1, 40) if c[0] % q == 0 for p in range(-40 * q, 40 * q + 1)}\n"
        "print(', '.join(str(x) for x in sorted(roots) if value(x) == 0))"
    )
    return question, ", ".join(map(str, sorted(found))), code


def _coefficient(rng: random.Random, d: int) -> Drawn:
    a, b, n = (
        rng.randint(1, 3 + d),
        rng.choice((-1, 1)) * rng.randint(1, 4 + 2 * d),
        rng.randint(4 + d, 6 + 3 * d),
    )
    k = rng.randint(1, n - 1)
    value = math.comb(n, k) * a**k * b ** (n - k)
    question = f"What is the coefficient of x^{k} in the expansion of ({_sum([(a, 'x'), (b, '')])})^{n}?"
    return question, str(value), f"from math import comb\nprint(comb({n}, {k}) * {a}**{k} * ({b})**{n - k})"


def _dice(rng: random.Random, d: int) -> Drawn:
    count, sides = rng.randint(2, 2 + (d + 1) // 2), rng.randint(4, 8 + 6 * d)
    least = rng.randint(count + 1, count * sides)
    ways = [1]
    for _ in range(count):
        ways = [sum(ways[max(0, s - sides) : s]) for s in range(len(ways) + sides)]
    chance = Fraction(sum(ways[least:]), sides**count)
    thrown = f"{count} fair dice with {sides} sides each are thrown."
    question = f"{thrown} What is the probability that the sum is at least {least}?"
    code = (
        f"from fractions import Fraction\nways = {{0: 1}}\nfor _ in range({count}):\n    new = {{}}\n"
        f"    for s, n in ways.items():\n        for k in range(1, {sides} + 1):\n"
        "            new[s + k] = new.get(s + k, 0) + n\n    ways = new\n"
        f"print(Fraction(sum(n for s, n in ways.items() if s >= {least}), {sides}**{count}))"
    )
    return question, str(chance), code


def _area(rng: random.Random, d: int) -> Drawn:
    """A simple polygon: points around a centre, ordered by angle."""
    reach = 5 + 5 * d
    while True:
        points = {(rng.randint(-reach, reach), rng.randint(-reach, reach)) for _ in range(2 + d)} - {(0, 0)}
        ring = sorted(points, key=lambda p: (math.atan2(p[1], p[0]), p))
        angles = [math.atan2(y, x) for x, y in ring]
        gaps = [b - a for a, b in pairwise([*angles, angles[0] + 2 * math.pi])] if ring else [9.0]
        if len(ring) >= 3 and min(gaps) > 1e-6 and max(gaps) < math.pi - 1e-6:
            break
    twice = abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in pairwise([*ring, ring[0]])))
    question = f"What is the area of the polygon with the corners {', '.join(map(str, ring))}, in this order?"
    code = (
        f"from fractions import Fraction\np = {ring}\n"
        "twice = sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(p, p[1:] + p[:1]))\nprint(Fraction(abs(twice), 2))"
    )
    return question, str(Fraction(twice, 2)), code


def _recurrence(rng: random.Random, d: int) -> Drawn:
    p, q = rng.randint(1, 2 + d), rng.choice((-1, 1)) * rng.randint(1, 2 + d)
    first, second, n = rng.randint(0, 9), rng.randint(1, 9), rng.randint(6, 8 + 4 * d)
    a, b = first, second
    for _ in range(n - 1):
        a, b = b, p * b + q * a
    rule = _sum([(p, "a_{n-1}"), (q, "a_{n-2}")])
    question = f"A sequence has a_0 = {first}, a_1 = {second} and a_n = {rule} for n >= 2. What is a_{{{n}}}?"
    return (
        question,
        str(b),
        (f"a, b = {first}, {second}\nfor _ in range({n - 1}):\n    a, b = b, {p} * b + ({q}) * a\nprint(b)"),
    )


def _digits(rng: random.Random, d: int) -> Drawn:
    base, exponent = rng.randint(3, 99), rng.randint(10 * d, 40 * d + 20)
    value = sum(map(int, str(base**exponent)))
    return (
        f"What is the sum of the digits of {base}^{exponent}?",
        str(value),
        (f"print(sum(int(c) for c in str({base}**{exponent})))"),
    )


def _paths(rng: random.Random, d: int) -> Drawn:
    width, height = rng.randint(3, 5 + 2 * d), rng.randint(3, 5 + 2 * d)
    inner = [(x, y) for x in range(width + 1) for y in range(height + 1) if 0 < x + y < width + height]
    holes = sorted(rng.sample(inner, min(d + 1, 4)))
    ways: dict[tuple[int, int], int] = {}
    for x in range(width + 1):
        for y in range(height + 1):
            before = ways.get((x - 1, y), 0) + ways.get((x, y - 1), 0)
            ways[x, y] = 0 if (x, y) in holes else before or int(x == y == 0)
    question = (
        f"How many ways lead from (0, 0) to ({width}, {height}) in steps of 1 to the right or up, if the points "
        f"{', '.join(map(str, holes))} are not to be touched?"
    )
    code = (
        f"holes = {holes}\nways = {{}}\nfor x in range({width + 1}):\n    for y in range({height + 1}):\n"
        "        before = ways.get((x - 1, y), 0) + ways.get((x, y - 1), 0)\n"
        "        ways[x, y] = 0 if (x, y) in holes else before or int(x == y == 0)\n"
        f"print(ways[{width}, {height}])"
    )
    return question, str(ways[width, height]), code


def _determinant(rows: list[list[int]]) -> int:
    if len(rows) == 1:
        return rows[0][0]
    return sum(
        (-1) ** i * rows[0][i] * _determinant([row[:i] + row[i + 1 :] for row in rows[1:]])
        for i in range(len(rows))
    )


def _tex(value: Fraction) -> str:
    return (
        f"\\frac{{{value.numerator}}}{{{value.denominator}}}"
        if value.denominator > 1
        else str(value.numerator)
    )


def _sum(terms: list[tuple[int, str]]) -> str:
    """`2x - 3y` for [(2, "x"), (-3, "y")]."""
    text = ""
    for factor, name in terms:
        size = "" if abs(factor) == 1 and name else str(abs(factor))
        text += (" - " if factor < 0 else " + ") + size + name if text else "-" * (factor < 0) + size + name
    return text


KINDS: MappingProxyType[str, Callable[[random.Random, int], Drawn]] = MappingProxyType({
    "arithmetic": _arithmetic, "fractions": _fractions, "remainder": _remainder, "divisible": _divisible,
    "system": _system, "roots": _roots, "coefficient": _coefficient, "dice": _dice, "area": _area,
    "recurrence": _recurrence, "digits": _digits, "paths": _paths,
})  # fmt: skip
"""The kinds of problems by name."""
