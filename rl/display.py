"""What a run shows while it works: a live bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import threading
import time
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table


class Display:
    """One phase at a time: `begin`, `advance` ..., `end`. Notes may be printed at any time. Where there is no terminal,
    a phase that does not advance says that it is still there, until `close`."""

    def __init__(self, console: Console | None = None, every: float = 10.0) -> None:
        self.console = console or Console(highlight=False)
        self.every = every
        self._bar: Progress | None = None
        self._task: Any = None
        self._name, self._facts, self._total, self._done, self._said, self._began = "", "", 0, 0, 0.0, 0.0
        self._invalid = 0
        self._over = threading.Event()
        """Of the phase."""

    def begin(self, name: str, total: int, done: int = 0) -> None:
        self._name, self._total, self._done, self._facts = name, total, done, ""
        self._invalid = 0
        self._began = self._said = time.perf_counter()
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(24 if self.console.width >= 100 else 6),
                MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[facts]}"), console=self.console, transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task(name, total=total, completed=done, facts="")
            self._bar.start()
        else:
            self.close()
            self._over = threading.Event()
            threading.Thread(target=self._still_there, args=(self._over,), daemon=True).start()

    def _still_there(self, over: threading.Event) -> None:
        while not over.wait(max(0.05, self._said + self.every - time.perf_counter())):
            if time.perf_counter() - self._said >= self.every:
                self._say()

    def _say(self) -> None:
        self._said = time.perf_counter()
        self.console.print(
            f"{self._name}: {self._done}/{self._total}  {self._facts}  ({self._said - self._began:.0f} s)"
        )

    def close(self) -> None:
        """Whatever goes on now, the phase says no more of itself."""
        self._over.set()

    def invalid(self, count: int) -> None:
        """So many more episodes of this phase were invalid: said from the next `advance` on."""
        self._invalid += count

    def advance(self, done: int, **facts: float) -> None:
        self._done = done
        if self._invalid:
            facts["invalid"] = self._invalid
        self._facts = text = "  ".join(f"{name} {value:.3g}" for name, value in facts.items())
        if self._bar is not None:
            self._bar.update(self._task, completed=done, facts=text)
        elif time.perf_counter() - self._said >= self.every:
            self._say()

    def count(self, episode: object = None) -> None:
        """One more is done; if it is an episode, those that are invalid are counted."""
        self.invalid(not getattr(episode, "valid", True))
        self.advance(self._done + 1)

    def end(self) -> None:
        self.close()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        took = time.perf_counter() - self._began
        self.console.print(
            f"{self._name}: {self._done}/{self._total} in {took:.1f} s  {self._facts}".rstrip()
        )

    def note(self, text: str) -> None:
        self.console.print(text, soft_wrap=True)

    def stages(self, stages: list[dict[str, Any]]) -> None:
        """The table of what each stage came to."""
        invalid = any(stage["invalid"] for stage in stages)
        table = Table(
            title="success on held-out tasks, 95 % interval", box=box.SIMPLE_HEAD, pad_edge=False,
            padding=(0, 0) if invalid else (0, 1),  # nothing is cut at 80 columns
        )  # fmt: skip
        for column in ("policy", "success", "turns", "void", "episodes", *["invalid"] * invalid, "eval s"):
            table.add_column(column, justify="left" if column == "policy" else "right", no_wrap=True)
        names = {"base": "before training", "sft": "after SFT", "rl": "after RL", "es": "after ES"}
        names |= {"rft": "after RFT", "preference": "after preferences"}
        for stage in stages:
            table.add_row(
                names.get(stage["name"], stage["name"]),
                f"{stage['success']:.3f} \\[{stage['low']:.3f}, {stage['high']:.3f}]",
                f"{stage['turns']:.2f}", f"{stage['void_turns']:.3f}", str(stage["episodes"]),
                *[str(sum(stage["invalid"].values()))] * invalid, f"{stage['seconds']:.1f}",
            )  # fmt: skip
        self.console.print(table)
