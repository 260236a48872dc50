"""Leaderboards to look at: for the terminal, as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table

from gymrl.leaderboards.results import Result

COLUMNS = (
    "rank",
    "policy",
    "success",
    "95 % interval",
    "reward",
    "turns",
    "tokens",
    "invalid",
    "n",
    "date",
    "command",
)


@dataclass(frozen=True)
class Row:
    """One line. Policies whose success is equal share a rank. `tokens` is None where no token was counted."""

    rank: int
    policy: str
    success: float
    low: float
    high: float
    reward: float
    turns: float
    tokens: float | None
    invalid: int
    n: int
    date: str
    command: str

    def cells(self) -> tuple[str, ...]:
        tokens = "-" if self.tokens is None else f"{self.tokens:.0f}"
        figures = [f"{self.success:.3f}", f"{self.low:.3f} to {self.high:.3f}", f"{self.reward:.3f}"]
        figures.append(f"{self.turns:.1f}")
        if not self.n:  # a crash is no success of 0
            figures = ["-"] * len(figures)
        return (
            str(self.rank), self.policy, *figures, tokens, str(self.invalid), str(self.n), self.date[:10], self.command,
        )  # fmt: skip


def rows(results: Sequence[Result]) -> list[Row]:
    """Ranked by success, ties by name. A result without a valid episode comes last."""
    ordered = sorted(results, key=lambda r: (not r.valid, -r.summary.success, r.policy))
    found: list[Row] = []
    for place, result in enumerate(ordered, 1):
        summary = result.summary
        tied = bool(found) and found[-1].success == summary.success and result.valid > 0
        found.append(
            Row(
                found[-1].rank if tied else place, _named(result), summary.success, summary.low, summary.high,
                summary.reward, summary.turns, summary.tokens or None, sum(summary.invalid.values()), result.valid,
                result.date, result.command,
            )
        )  # fmt: skip
    return found


def _named(result: Result) -> str:
    """The policy, and how it was served where that is not as usual."""
    served = [result.engine] if result.engine not in ("", "transformers") else []
    served += [result.dtype] if result.dtype else []
    served += [f"max_context {result.max_context}"] if result.max_context is not None else []
    return f"{result.policy} ({', '.join(served)})" if served else result.policy


def terminal(title: str, lines: Sequence[Row]) -> Table:
    """A table that fits 80 columns; the commands are not in it (see `commands`)."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=0)
    for column in ("#", "policy", "success", "reward", "turns", "tokens", "invalid", "n", "date"):
        table.add_column(column, justify="left" if column == "policy" else "right", overflow="fold")
        table.columns[-1].no_wrap = column != "policy"
        table.columns[-1].min_width = 12 if column == "policy" else None
    for line in lines:
        rank, policy, success, _, *rest, _ = line.cells()
        share = f"{success} [{line.low:.3f}, {line.high:.3f}]" if line.n else "-"
        table.add_row(*(cell.replace("[", r"\[") for cell in (rank, policy, share, *rest)))
    return table


def commands(lines: Sequence[Row]) -> str:
    """How each row was made, one a line."""
    return "\n".join(f"{line.rank}  {line.command}" for line in lines)


def markdown(lines: Sequence[Row]) -> str:
    """A Markdown table; commands as code."""
    text = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for line in lines:
        *cells, command = (cell.replace("|", r"\|") for cell in line.cells())
        text.append(f"| {' | '.join([*cells, f'`{command}`'])} |")
    return "\n".join(text)


def plain(lines: Sequence[Row]) -> list[dict[str, object]]:
    """The rows as JSON data."""
    return [asdict(line) for line in lines]
