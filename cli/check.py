"""`gymrl envs check`: try every law on an environment, and say what is broken and how to see it."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gymrl.cli.values import parameters

if TYPE_CHECKING:
    from gymrl.envs.check import Fault, Report, Verdict

COLOURS = {"holds": "green", "fault": "red", "unchecked": "yellow"}


def check(
    env_id: Annotated[
        str, typer.Argument(metavar="ID", help="The environment's id, such as gymrl/CodeInterpreter-v0.")
    ],
    given: Annotated[
        list[str], typer.Argument(metavar="[KEY=VALUE]...", help="Parameters of the environment.")
    ] = [],  # noqa: B006
    law: Annotated[list[str], typer.Option(help="Only this law (may be given again).")] = [],  # noqa: B006
    seconds: Annotated[
        float, typer.Option(min=0.1, help="Time for one measurement of a law; more is more thorough.")
    ] = 20.0,
    tasks: Annotated[int, typer.Option(min=1, help="Tasks that each player plays.")] = 64,
    garbage: Annotated[int, typer.Option(min=1, help="Garbage answers to each task family.")] = 1000,
    stall: Annotated[
        float, typer.Option(min=1.0, help="Seconds without any progress after which a law's trial is given up.")
    ] = 300.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdicts as JSON.")] = False,
) -> None:
    """Try the laws that every environment has to keep; the exit code is 1 where one is broken."""
    from gymrl.envs.check import Settings, check

    settings = Settings(seconds=seconds, tasks=tasks, garbage=garbage, stall_seconds=stall)
    if not as_json:
        typer.echo(f"trying {env_id}; a law that comes no further for {stall:g} s (--stall) is given up", err=True)
    seen = (lambda verdict: None) if as_json else _show
    report = check(env_id, parameters(given), laws=law or None, settings=settings, on_verdict=seen)
    if as_json:
        typer.echo(json.dumps({**asdict(report), "sound": report.sound}, indent=2))
    else:
        _close(report)
    if not report.sound:
        raise typer.Exit(1)


def _show(verdict: Verdict) -> None:
    status = typer.style(f"{verdict.status:9}", fg=COLOURS[verdict.status])
    typer.echo(f"{status} {verdict.law:10} {verdict.claim} ({verdict.seconds:.1f} s)")
    if verdict.measured:
        typer.echo(f"{'':21}{verdict.measured}")
    for fault in verdict.faults:
        said = f", saying {_short(fault.action)}" if fault.action is not None else ""
        where = f"{fault.where}{said}: " if fault.where else ""
        typer.secho(f"{'':21}{where}{fault.what}", fg="red")
    sys.stdout.flush()


def _close(report: Report) -> None:
    broken = [verdict for verdict in report.verdicts if verdict.status == "fault"]
    if not broken:
        typer.echo(f"\n{report.env_id} keeps all {len(report.verdicts)} laws.")
        return
    laws = ", ".join(verdict.law for verdict in broken)
    typer.echo(f"\n{report.env_id} breaks {len(broken)} of {len(report.verdicts)} laws: {laws}.")
    shown = [fault for verdict in broken for fault in verdict.faults if fault.where]
    if shown:
        typer.echo(f"To see the first: {_command(report, shown[0])}")


def _command(report: Report, fault: Fault) -> str:
    """The command that shows a fault's task."""
    params: dict[str, Any] = {**report.params, **fault.params}
    words = ["gymrl", "envs", "play", report.env_id, "--split", str(fault.split), "--index", str(fault.index)]
    for name, value in params.items():
        words += ["--param", f"{name}={value if isinstance(value, str) else _toml(value)}"]
    return shlex.join(words)


def _toml(value: Any) -> str:
    """A value as TOML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)


def _short(text: str, most: int = 60) -> str:
    return repr(text) if len(text) <= most else f"{text[:most]!r}... ({len(text)} characters)"
