"""`gymrl report`: a run as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
) -> None:
    """Write a run's report.html anew: curves, and episodes to read turn by turn."""
    from gymrl.rl.report import write_report

    if not run.is_dir():
        raise typer.BadParameter(f"there is no folder {run}: give a run's folder, such as runs/NAME")
    if not any(
        (run / name).exists() for name in ("recipe.toml", "summary.json", "metrics.jsonl", "episodes")
    ):
        raise typer.BadParameter(f"{run} holds no run: give a run's folder, such as runs/NAME")
    typer.echo(f"written to {write_report(run)}")
