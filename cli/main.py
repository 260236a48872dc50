"""The `gymrl` command: parses, calls the rest, and turns errors into one sentence and an exit code."""

from __future__ import annotations

import errno
import os
import re
import sys
from typing import Annotated

import typer

from gymrl.cli import collect, envs, episodes, evaluate, leaderboard, merge, report, sandbox, train

USAGE, FAILURE, INTERRUPTED = 2, 1, 130
FULL_DISK = re.compile(r"no space left on device|\bos error 28\b", re.IGNORECASE)

app = typer.Typer(
    name="gymrl",
    help="A gym and a trainer for language-model agents.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train", help=train.HELP)(train.train)
app.command("eval")(evaluate.evaluate)
app.command("collect")(collect.collect)
app.add_typer(envs.app, name="envs")
app.add_typer(leaderboard.app, name="leaderboard")
app.command("merge", help=merge.HELP)(merge.merge)
app.command("report")(report.report)
app.add_typer(sandbox.app, name="sandbox")
app.command("episodes")(episodes.episodes)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"gymrl {version('gymrl')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks (also: GYMRL_DEBUG=1).")] = False,
) -> None:
    """A gym and a trainer for language-model agents."""
    if debug:
        os.environ["GYMRL_DEBUG"] = "1"


def run(arguments: list[str] | None = None) -> int:
    """Run the command with these arguments (without its own name); returns the exit code: 0, 2 for a wrong use, 1 for
    a failure, 130 after Ctrl-C, 143 of a training run after SIGTERM."""
    for name in (
        "OMP_WAIT_POLICY=passive",  # a thread that waits leaves its core to the environments
        "TRANSFORMERS_VERBOSITY=error",
        "HF_HUB_DISABLE_PROGRESS_BARS=1",
        "TOKENIZERS_PARALLELISM=false",
    ):
        os.environ.setdefault(*name.split("="))
    try:
        app(args=sys.argv[1:] if arguments is None else arguments, prog_name="gymrl")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if os.environ.get("GYMRL_DEBUG", "0") not in ("", "0"):
            raise
        print(f"gymrl: {sentence(error)}", file=sys.stderr)
        return USAGE if isinstance(error, ValueError) else FAILURE
    return 0


def sentence(error: BaseException) -> str:
    """An error as one line: what a user can mend in its own words, anything else by name."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, OSError) and error.strerror:
        where = f" ({error.filename})" if error.filename else ""
        if error.errno == errno.ENOSPC:
            return f"no space is left on the disk{where}: free some and run it again"
        return f"{error.strerror.lower()}{where}"
    text = " ".join(str(error).split())
    if FULL_DISK.search(text):  # libraries in other languages raise no OSError
        return "no space is left on the disk: free some and run it again"
    known = type(error).__module__.startswith("gymrl.") or isinstance(
        error, (ValueError, ImportError, OSError)
    )
    if known and text:
        return text
    return f"unexpected {type(error).__name__}: {text} (`gymrl --debug ...` shows where)"


def main() -> None:
    sys.exit(run())


if __name__ == "__main__":
    main()
