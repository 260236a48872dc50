"""`gymrl sandbox`: does it hold here, run a file in it, how fast is it."""

from __future__ import annotations

import asyncio
import codecs
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gymrl.sandboxes import Result, Sandbox

app = typer.Typer(help="Check, use and measure the sandboxes.", no_args_is_help=True, rich_markup_mode=None)

Backend = Annotated[str, typer.Option(help="auto, namespaces, confined, docker or none.")]


@app.command()
def check(
    backend: Backend = "auto",
    only: Annotated[str, typer.Option(help="Only the attacks whose group or name contains this.")] = "",
    shell: Annotated[bool, typer.Option("--shell", help="Attack by way of a shell.")] = False,
) -> None:
    """Attack the sandbox, here and now: one line for each attack; the exit code is not 0 if one gets through."""
    raise typer.Exit(asyncio.run(_check(backend, only, shell)))


async def _check(backend: str, only: str, shell: bool) -> int:
    from gymrl.sandboxes import open_sandbox
    from gymrl.sandboxes.attacks import ATTACKS, check
    from gymrl.sandboxes.attacks.shells import ShellSandbox

    if backend == "none":
        raise ValueError(
            "the sandbox 'none' stops nothing: the attacks would be carried out on this machine; "
            "check auto, namespaces, confined or docker"
        )
    attacks = [attack for attack in ATTACKS if only in f"{attack.group}: {attack.name}"]
    if not attacks:
        raise ValueError(f"no attack has {only!r} in its name: leave --only away to see them all")
    box = open_sandbox(backend, workers=1)
    described = box.description
    if shell:
        box = ShellSandbox(box)
    stopped = 0
    try:
        async for verdict in check(box, attacks):
            stopped += verdict.stopped
            line = f"{verdict.attack.group}: {verdict.attack.name}"
            print(f"{'stopped' if verdict.stopped else 'NOT STOPPED':<12}{line}", flush=True)
            if not verdict.stopped:
                print(f"{'':<12}{' '.join(verdict.how.split())}", flush=True)
    finally:
        await box.close()
    print(
        f"{stopped} of {len(attacks)} stopped by the sandbox {box.backend!r}{' in a shell' if shell else ''}"
    )
    print(described)
    return 0 if stopped == len(attacks) else 1


@app.command()
def run(
    file: Annotated[Path, typer.Argument(help="A Python program; - reads it from stdin.")],
    backend: Backend = "auto",
    timeout: Annotated[float, typer.Option(help="Seconds.")] = 10.0,
    memory: Annotated[int, typer.Option(help="MiB.", min=1)] = 512,
) -> None:
    """Run a Python program in a sandbox; the exit code is the program's (1 if it was stopped)."""
    source = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    code = source.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")
    result = asyncio.run(_run(backend, code, timeout, memory))
    sys.stdout.write(result.stdout)
    sys.stderr.write(result.stderr)
    sys.stdout.flush()
    why = f"stopped: {result.killed_by}" if result.killed_by else f"exit status {result.exit}"
    print(f"[{result.backend}] {why}, {result.seconds:.3f} s", file=sys.stderr)
    raise typer.Exit(result.exit if result.exit > 0 and not result.killed_by else int(not result.ok))


async def _run(backend: str, code: str, timeout: float, memory: int) -> Result:
    from gymrl.sandboxes import Limits, open_sandbox

    box: Sandbox = open_sandbox(backend, workers=1)
    try:
        return await box.run(code, timeout, Limits(memory=memory * 2**20, output=2**20))
    finally:
        await box.close()


@app.command()
def bench(
    rounds: Annotated[int, typer.Option(help="How often each thing is timed.", min=1)] = 100,
) -> None:
    """Print how fast the sandboxes are here, as ratios to `subprocess python3 -I -S` in the same run."""
    from gymrl.sandboxes.bench import measure, table

    print(table(asyncio.run(measure(rounds))))


@app.command()
def image() -> None:
    """Make the docker sandbox's image from this machine's Python, where no registry is in reach; print its name."""
    from gymrl.sandboxes.container import connect
    from gymrl.sandboxes.image import ensure_image

    client = connect()
    try:
        print(ensure_image(client))
    finally:
        client.close()
