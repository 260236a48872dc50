"""The example of the Gymnasium adapter: FrozenLake-v1, not slippery, with a map of its own for every task."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

from gymrl.envs.records import TaskSpec

SIZE = 5
FROZEN = 0.75
"""The chance that a field is no hole."""
ACTIONS = ("left", "down", "right", "up")
PROMPT = (
    "You stand on a frozen lake, on the field in brackets. S is the start, F is ice, H is a hole, G is the goal. Walk "
    "to the goal and into no hole, one field a turn."
)
_MOVES = ((0, -1), (1, 0), (0, 1), (-1, 0))


def draw(task: TaskSpec) -> dict[str, Any]:
    """The task's map, one that has a way and that the task's split owns."""
    rng = task.rng()
    while True:
        rows = _rows(rng)
        if _way(rows, 0, 0) is not None and task.owns("".join(rows)):
            return {"desc": rows}


def walk(env: Any) -> int:
    """The first move of a shortest way from where the FrozenLake env's player stands."""
    rows = ["".join(cell.decode() for cell in row) for row in env.desc]
    way = _way(rows, *divmod(int(env.s), len(rows[0])))
    assert way, "a lake always has a way, and the player is not at its end"
    return way[0]


def _rows(rng: random.Random) -> list[str]:
    cells = [["F" if rng.random() < FROZEN else "H" for _ in range(SIZE)] for _ in range(SIZE)]
    cells[0][0], cells[-1][-1] = "S", "G"
    return ["".join(row) for row in cells]


def _way(rows: list[str], row: int, column: int) -> list[int] | None:
    """The moves of a shortest way to the goal; None where there is none."""
    seen, waiting = {(row, column)}, deque([(row, column, [])])  # type: ignore[var-annotated]
    while waiting:
        row, column, moves = waiting.popleft()
        if rows[row][column] == "G":
            return moves
        for number, (down, right) in enumerate(_MOVES):
            there = row + down, column + right
            if not (0 <= there[0] < len(rows) and 0 <= there[1] < len(rows[0])) or there in seen:
                continue
            if rows[there[0]][there[1]] != "H":
                seen.add(there)
                waiting.append((*there, [*moves, number]))
    return None
