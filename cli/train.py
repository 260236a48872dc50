"""`gymrl train`: run a recipe."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from gymrl.cli.values import loading

HELP = """Train a policy: `gymrl train [RECIPE] [key.sub=value ...]`.

RECIPE is the name of a shipped recipe (`gymrl train --list`) or a TOML file; without one it is quickstart. Arguments
with a '=' set keys of the recipe."""


def train(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[RECIPE] [KEY.SUB=VALUE]...", show_default=False)
    ] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Go on with an interrupted run.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="RUN", help="The new run's folder.")] = None,
    processes: Annotated[
        int,
        typer.Option(metavar="N", min=1, help="Processes that share the learning; the result is the same."),
    ] = 1,
    shard: Annotated[
        bool,
        typer.Option(
            "--shard", help="Split the model over the processes, instead of a copy on each (FSDP2)."
        ),
    ] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the shipped recipes.")] = False,
    keys: Annotated[bool, typer.Option("--keys", help="List a recipe's keys, what they mean, their defaults.")] = False,
) -> None:
    if list_:
        list_recipes()
        return
    if keys:
        list_keys()
        return
    if os.environ.get("WORLD_SIZE", "1") != "1" and os.environ.get("RANK", "0") != "0":
        from gymrl.rl.crew import follow  # started by a launcher beside the process that leads

        follow()
        return
    recipe, overrides = split_arguments(arguments or [])
    if resume is not None and (recipe is not None or out is not None):
        raise typer.BadParameter(
            "a run that is resumed has its recipe and its folder: name neither", param_hint="--resume"
        )
    if resume is None:  # a wrong recipe or environment is told at once, before the heavy imports
        from gymrl.envs.registry import entry
        from gymrl.rl.recipes import load

        entry(load(recipe or "quickstart", overrides).env.id)
    loading()
    from gymrl.rl.crew import crew
    from gymrl.rl.run import train as run

    with crew(processes, shard):
        code = run(recipe, overrides, resume, out)
    if code:
        raise typer.Exit(code)


def split_arguments(arguments: list[str]) -> tuple[str | None, list[str]]:
    """The recipe, if there is one, and the overrides: the arguments that hold a '='."""
    named = [argument for argument in arguments if "=" not in argument]
    if len(named) > 1:
        raise typer.BadParameter(
            f"one recipe, not {len(named)}: {', '.join(named)}; an override is KEY.SUB=VALUE"
        )
    return (named[0] if named else None), [argument for argument in arguments if "=" in argument]


def list_recipes() -> None:
    from rich.console import Console
    from rich.table import Table

    from gymrl.rl.recipes import shipped

    table = Table("recipe", "what it does")
    for name, path in shipped().items():
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        table.add_row(name, first.lstrip("# ").strip() if first.startswith("#") else "")
    Console().print(table)


def list_keys() -> None:
    """Every key with its default and meaning, a line each; the settings of an optional table or a choice indented."""
    from gymrl.rl.recipes import described

    section = ""
    for key in described():
        first = key.name.partition(".")[0]
        if section and first != section and "." in key.name:
            typer.echo("")
        section = first
        typer.echo(f"{'  ' * bool(key.of) + key.name} = {key.default}".ljust(44) + f"  # {key.meaning}")
