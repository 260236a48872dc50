"""`gymrl leaderboard`: run suites, and look at what came of it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from gymrl.cli.evaluate import ENGINE, INTERRUPTED, POLICY, TIMEOUT, going_on, play_again, show, tell
from gymrl.cli.values import loading, progress

app = typer.Typer(
    help="Run suites of tasks and compare policies.", no_args_is_help=True, rich_markup_mode=None
)
SuiteName = Annotated[str, typer.Argument(metavar="SUITE", help="A suite's name, or its TOML file.")]
Results = Annotated[Path, typer.Option("--out", help="The folder of results.")]


@app.command("list")
def list_() -> None:
    """List the suites."""
    from rich.console import Console
    from rich.table import Table

    from gymrl.leaderboards.suite import read_suite, shipped

    table = Table()
    table.add_column("suite", no_wrap=True)
    table.add_column("tasks", no_wrap=True)
    table.add_column("environment, and what it is", overflow="fold")
    for name in shipped():
        suite = read_suite(name)
        tasks = f"{len(suite.task_indices())} {suite.split}"
        what = f"{suite.env}\n{suite.title}. {suite.description} Hash {suite.hash}."
        table.add_row(name, tasks, what.replace("[", r"\["))
    # A name is typed as it stands here, so that none is cut: what is narrower than this breaks the lines itself.
    Console(width=max(Console().width, 80)).print(table)


@app.command()
def run(
    suite: SuiteName,
    policy: Annotated[str, typer.Option(metavar="P", help=POLICY)],
    engine: Annotated[str, typer.Option(help=ENGINE)] = "transformers",
    max_context: Annotated[int | None, typer.Option(min=1, help="Tokens an episode may have.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Episodes at once.")] = 64,
    timeout: Annotated[float | None, typer.Option(help=TIMEOUT)] = None,
    out: Results = Path("results"),
) -> None:
    """Play a suite with a policy and write the result. Run it again after an interruption and it goes on."""
    from gymrl.leaderboards.suite import load_suite

    chosen = load_suite(suite, out)
    loading()
    from gymrl.leaderboards.runner import run_suite

    command = ["gymrl", "leaderboard", "run", suite, "--policy", policy]
    if engine != "transformers":
        command += ["--engine", engine]
    if max_context is not None:
        command += ["--max-context", str(max_context)]
    if dtype is not None:
        command += ["--dtype", dtype]
    if timeout is not None:
        command += ["--timeout", f"{timeout:g}"]
    before: list[object] = []

    def taken_up(done: Sequence[object], jobs: Sequence[object]) -> None:
        before.extend(done)
        going_on(done, jobs)

    try:
        with progress(f"{policy} on {chosen.name}", len(chosen.task_indices()) * chosen.samples) as watch:
            path, result = run_suite(
                chosen, policy, command=shlex.join(command), engine=engine, max_context=max_context, dtype=dtype,
                concurrency=concurrency, timeout=timeout, tell=tell, out=out, watch=watch, going_on=taken_up,
            )  # fmt: skip
    except KeyboardInterrupt:
        kept = "nothing was played yet"
        if any((out / chosen.name).glob("*.partial")):
            kept = f"what was played is kept in {out / chosen.name}, the same command goes on"
        typer.echo(f"interrupted; {kept}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    summary = result.summary
    speed = summary.tokens * summary.episodes / max(summary.seconds, 1e-9)
    show(f"{result.policy} on {chosen.title}", summary, None if before else speed, result.usage)
    typer.echo(
        f"written to {path} and {result.episodes} beside it; `gymrl leaderboard show {suite}` ranks it"
    )
    play_again(summary)
    if sum(summary.invalid.values()) == summary.episodes:
        typer.echo(f"gymrl: no episode was valid; the first cause is {next(iter(summary.invalid))}", err=True)
        raise typer.Exit(1)


@app.command("show")
def show_(
    suite: Annotated[str | None, typer.Argument(metavar="[SUITE]", help="Without one: all of them.")] = None,
    out: Results = Path("results"),
    markdown: Annotated[bool, typer.Option("--markdown", help="As a Markdown table.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show the leaderboard: published results and your own, the newest of each policy."""
    from rich.console import Console

    from gymrl.leaderboards import tables
    from gymrl.leaderboards.results import find_results
    from gymrl.leaderboards.suite import sealed_suite, shipped

    everything: dict[str, object] = {}
    for name in [suite] if suite else list(shipped()):
        chosen = sealed_suite(name, out)
        found, left_out = find_results(chosen, out)
        lines = tables.rows([result for _, result in found])
        for reason in left_out:
            typer.echo(f"left out: {reason}", err=True)
        if as_json:
            everything[chosen.name] = tables.plain(lines)
        elif not lines:
            typer.echo(f"{chosen.name} has no results yet: gymrl leaderboard run {name} --policy P")
        elif markdown:
            typer.echo(f"### {chosen.title}\n\n{tables.markdown(lines)}\n")
        else:
            Console().print(tables.terminal(f"{chosen.name}: {chosen.title}", lines))
            typer.echo(f"made by:\n{tables.commands(lines)}\n")
    if as_json:
        typer.echo(json.dumps(everything, indent=2))


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="A result file.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another one of the same suite.")],
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Compare two results on the same tasks: the difference with its interval, and how likely chance is."""
    from gymrl.leaderboards.results import compare_results, read_result, same_result

    first, second = read_result(a), read_result(b)
    found = compare_results(first, second)
    if same_result(first, second):
        typer.echo("gymrl: A and B are the same result: name that of another policy or run as B", err=True)
    if as_json:
        typer.echo(json.dumps({"a": first.policy, "b": second.policy, **asdict(found)}, indent=2))
        return
    typer.echo(f"A {first.policy}: {found.success_a:.3f}")
    typer.echo(f"B {second.policy}: {found.success_b:.3f}")
    typer.echo(f"A - B {found.difference:+.3f} (95 % interval {found.low:+.3f} to {found.high:+.3f})")
    typer.echo(
        f"{found.tasks} tasks: A was better on {found.only_a}, B on {found.only_b}; exact p = {found.p:.2g}"
    )
    if found.left_out:
        typer.echo(f"{found.left_out} tasks are left out: invalid, or played by one of the two only")


@app.command("hash")
def hash_(
    file: Annotated[Path, typer.Argument(metavar="SUITE_FILE", exists=True, dir_okay=False)],
    update: Annotated[bool, typer.Option("--update", help="Write it into the file.")] = False,
) -> None:
    """Print the hash of a suite's content, for those who make suites."""
    from gymrl.leaderboards.suite import read_suite, update_hash

    typer.echo(update_hash(file) if update else read_suite(file).content_hash())


@app.command(hidden=True)
def publish(
    file: Annotated[Path, typer.Argument(metavar="RESULT", exists=True, dir_okay=False)],
    folder: Annotated[Path, typer.Option(help="Where published results lie.")] = Path(
        "leaderboards/published"
    ),
) -> None:
    """Copy a result without its episodes to the published ones, for those who make releases."""
    from gymrl.leaderboards.results import read_result, write_result

    result = read_result(file)
    path = folder / result.suite / file.name
    write_result(path, result.model_copy(update={"episodes": ""}))
    typer.echo(str(path))
