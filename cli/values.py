"""Values given on the command line."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from gymrl.agents.records import Episode


def parameters(given: Sequence[str]) -> dict[str, Any]:
    """`key=value` texts; a value that is TOML (3, 0.5, true, "x", [1]) is read as such, else taken as it is."""
    found: dict[str, Any] = {}
    for item in given:
        key, sign, value = item.partition("=")
        if not sign or not key:
            raise typer.BadParameter(f"{item!r} is no parameter: write KEY=VALUE")
        try:
            found[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[key] = value
    return found


def loading() -> None:
    """Say on the terminal (standard error) that torch is being loaded, where it is not yet: it takes seconds, and on a
    busy machine a minute."""
    if "torch" not in sys.modules and sys.stderr.isatty():
        typer.echo("loading torch ...", err=True)


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[Episode], None]]:
    """A bar on the terminal (standard error), nothing where there is none; gives what to call for each episode."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[tally]}"),
    )  # fmt: skip
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=total, tally="")
        counts = {"won": 0, "valid": 0, "invalid": 0}

        def watch(episode: Episode) -> None:
            counts["won"] += episode.success
            counts["valid" if episode.valid else "invalid"] += 1
            tally = f"success {counts['won'] / max(1, counts['valid']):.2f}"
            if counts["invalid"]:
                tally += f", {counts['invalid']} invalid"
            bar.update(task, advance=1, tally=tally)

        yield watch
