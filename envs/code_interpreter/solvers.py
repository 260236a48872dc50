"""Right answers for the reasoning-gym families that store none."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gymrl.envs.code_interpreter.propositions import conclusion

SIDE = 6
"""Squares along a side of a Rush Hour board; the red car A leaves on the right of the third row."""

MOVE = re.compile(r"([A-Z])([+-]\d)")

Car = tuple[int, int, bool]
"""Length, the row or column that it keeps to, and whether it stands upright."""


def graph_color(metadata: dict[str, Any]) -> str:
    return json.dumps(metadata["possible_answer"])


def propositional_logic(metadata: dict[str, Any]) -> str:
    return conclusion(metadata)


def rubiks_cube(metadata: dict[str, Any]) -> str:
    return str(metadata["example_correct_answer"])


def boxnet(metadata: dict[str, Any]) -> str:
    """One box after another: square by square to its target, rows first, and into it."""
    squares: dict[str, list[str]] = metadata["initial_state"]
    places = {item: tuple(map(float, name.split("_"))) for name, items in squares.items() for item in items}
    plan: list[dict[str, str]] = []
    for box in sorted(item for item in places if item.startswith("box_")):
        target = box.replace("box_", "target_")
        (row, column), (end_row, end_column) = places[box], places[target]
        while (row, column) != (end_row, end_column):
            before = f"Agent[{row}, {column}]"
            if row != end_row:
                row += 1 if end_row > row else -1
            else:
                column += 1 if end_column > column else -1
            plan.append({before: f"move({box}, square[{row}, {column}])"})
        plan.append({f"Agent[{row}, {column}]": f"move({box}, {target})"})
    return json.dumps(plan)


def rush_hour(metadata: dict[str, Any]) -> str:
    """A shortest way out, by breadth-first search over where the cars are."""
    letters, cars, walls, begin = _board(metadata)
    came: dict[tuple[int, ...], tuple[tuple[int, ...], str] | None] = {begin: None}
    waiting = deque([begin])
    while waiting:
        state = waiting.popleft()
        if state[0] == SIDE - cars[0][0]:
            moves: list[str] = []
            while (step := came[state]) is not None:
                state, move = step
                moves.append(move)
            return " ".join(reversed(moves))
        for after, car, by in _moves(state, cars, walls):
            if after not in came:
                came[after] = (state, f"{letters[car]}{by:+d}")
                waiting.append(after)
    raise ValueError("this board has no way out")


def leaves(answer: str, metadata: Mapping[str, Any]) -> bool:
    """Whether moves such as `F+2 A-1` can all be made, and the red car is at the exit after them.

    The package passes over moves that cannot be made, and stops a car before what is in its way.
    """
    letters, cars, walls, state = _board(metadata)
    for move in answer.split():
        found = MOVE.fullmatch(move)
        if found is None:
            return False
        wanted = found[1], int(found[2])
        after = next((to for to, car, by in _moves(state, cars, walls) if (letters[car], by) == wanted), None)
        if after is None:
            return False
        state = after
    return state[0] == SIDE - cars[0][0]


def _board(metadata: Mapping[str, Any]) -> tuple[list[str], list[Car], int, tuple[int, ...]]:
    """The cars' letters, the cars, the walls as a mask, and where the cars are."""
    board = str(metadata["board_config"])
    letters = sorted(set(board) - {"o", "x"})
    cells = {letter: [i for i, c in enumerate(board) if c == letter] for letter in letters}
    walls = sum(1 << i for i, c in enumerate(board) if c == "x")
    cars: list[Car] = []
    start = []
    for letter in letters:
        first, second, *_ = cells[letter]
        upright = second - first == SIDE
        cars.append((len(cells[letter]), first % SIDE if upright else first // SIDE, upright))
        start.append(first // SIDE if upright else first % SIDE)
    return letters, cars, walls, tuple(start)


def _moves(state: tuple[int, ...], cars: list[Car], walls: int) -> Iterator[tuple[tuple[int, ...], int, int]]:
    """Every state one move away, with the car that moved and by how much."""
    masks = [_mask(car, at) for car, at in zip(cars, state, strict=True)]
    taken = walls
    for mask in masks:
        taken |= mask
    for number, (car, at) in enumerate(zip(cars, state, strict=True)):
        others = taken & ~masks[number]
        for way in (-1, 1):
            to = at + way
            while 0 <= to <= SIDE - car[0] and not _mask(car, to) & others:
                yield (*state[:number], to, *state[number + 1 :]), number, to - at
                to += way


def _mask(car: Car, at: int) -> int:
    length, line, upright = car
    first, stride = (at * SIDE + line, SIDE) if upright else (line * SIDE + at, 1)
    return sum(1 << (first + stride * i) for i in range(length))


SOLVERS: dict[str, Callable[[dict[str, Any]], str]] = {
    solve.__name__: solve for solve in (boxnet, graph_color, propositional_logic, rubiks_cube, rush_hour)
}
"""The family's right answer from an item's metadata."""
