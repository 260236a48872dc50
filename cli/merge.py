"""`gymrl merge`: arithmetic on checkpoints."""

from __future__ import annotations

import asyncio
import math
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gymrl.cli.values import loading, parameters

if TYPE_CHECKING:
    from gymrl.agents import evaluation as ev
    from gymrl.agents.engines.base import Sampling
    from gymrl.agents.policies import OpenPolicy

    Play = Callable[[OpenPolicy, Path], Awaitable[ev.Evaluation]]

METHODS = ("soup", "greedy", "task")
CONCURRENCY = 64
"""Episodes at once."""

HELP = """Merge checkpoints of one architecture: `gymrl merge MODEL MODEL... --out FOLDER`.

soup: their mean, or with --weights their weighted mean. greedy: from the best on, each joins the soup if success on
held-out tasks does not fall: those of a leaderboard's suite (--suite), or an environment's (--env, --param, --tasks),
some of which the models must solve.
task: --base plus the --weights times what each model learnt; --drop (DARE) and --lines LOW HIGH (LiNeS) work on what
was learnt."""


def merge(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL...", help="Folders in Hugging Face form.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the merged checkpoint goes.")],
    method: Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}.")] = "soup",
    weights: Annotated[str, typer.Option(help="One number for each model: 0.7,0.3.")] = "",
    base: Annotated[
        Path | None, typer.Option(metavar="MODEL", help="What the models were before (task).")
    ] = None,
    drop: Annotated[float, typer.Option(help="Share of what was learnt that is dropped (DARE).")] = 0.0,
    lines: Annotated[tuple[float, float], typer.Option(help="Scales of first and last layer (LiNeS).")] = (
        1.0,
        1.0,
    ),
    seed: Annotated[int, typer.Option(help="Of what is dropped.")] = 0,
    suite: Annotated[
        str, typer.Option(help="Suite, by name or TOML file, whose success decides (greedy).")
    ] = "",
    env: Annotated[str, typer.Option(help="Environment whose success decides (greedy).")] = "",
    param: Annotated[
        list[str],
        typer.Option("--param", metavar="KEY=VALUE", help="A parameter of the environment (greedy)."),
    ] = [],  # noqa: B006
    tasks: Annotated[int, typer.Option(min=1, help="Its held-out tasks, of the split val (greedy).")] = 64,
) -> None:
    if method not in METHODS:
        raise typer.BadParameter(
            f"there is no method {method!r}: take {', '.join(METHODS)}", param_hint="--method"
        )
    if (method == "task") != (base is not None):
        raise typer.BadParameter("--base goes with --method task, and that with it", param_hint="--base")
    if method != "task" and (drop or lines != (1.0, 1.0)):
        raise typer.BadParameter(
            "--drop and --lines work on what was learnt since a base: take --method task"
        )
    if (method == "greedy") != bool(env or suite) or (env and suite):
        raise typer.BadParameter(
            "--method greedy goes with one of --suite and --env, and those with it", param_hint="--method"
        )
    if suite and param:
        raise typer.BadParameter("a suite has its parameters: leave --param out", param_hint="--param")
    if method == "greedy" and weights:
        raise typer.BadParameter(
            "a greedy soup weighs its models equally: leave --weights out", param_hint="--weights"
        )
    shares = _numbers(weights)
    for name, number in (("--drop", drop), ("--lines", lines[0]), ("--lines", lines[1])):
        if not math.isfinite(number):
            raise typer.BadParameter(f"{number} is no finite number", param_hint=name)
    loading()
    from gymrl.rl import merging as m

    m.check_out(out)
    m.check_vocabularies([base, *models] if base is not None else models)
    found = [m.read_weights(path) for path in models]
    names = [str(path) for path in models]
    how: dict[str, Any] = {"method": method, "models": names}
    if base is not None:
        start = m.read_weights(base)
        m.check_alike([start, *found], [str(base), *names])
        scales = shares or [1.0 / len(found)] * len(found)
        if len(scales) != len(found):
            raise m.MergeFault(f"{len(scales)} weights for {len(found)} models: give one for each")
        deltas = [m.delta(start, model) for model in found]
        if drop:
            deltas = [m.dare(one, drop, seed + n) for n, one in enumerate(deltas)]
        change = m.combined(deltas, scales)
        if lines != (1.0, 1.0):
            change = m.lines(change, *lines)
        merged = m.apply(start, change)
        how |= {"base": str(base), "weights": scales, "drop": drop, "lines": list(lines), "seed": seed}
    else:
        m.check_alike(found, names)
        if method == "greedy":
            if suite:
                score = _suite_scorer(suite, models[0])
                how |= {"suite": suite}
            else:
                score = _scorer(env, parameters(param), tasks, models[0])
                how |= {"env": env, "params": parameters(param), "tasks": tasks}
            greedy = m.greedy_soup(found, score, floor=0.0)
            merged = greedy.weights
            how["joined"] = [names[i] for i in greedy.joined]
            how["trials"] = [{**asdict(trial), "model": names[trial.model]} for trial in greedy.trials]
            _show(how["trials"])
        else:
            merged = m.soup(found, shares or None)
            how |= {"weights": shares or [1.0] * len(found)}
    m.write_weights(merged, base or models[0], out)
    m.describe(out, how)
    typer.echo(
        f"{out}: {len(merged)} tensors" + (f"; joined: {', '.join(how['joined'])}" if "joined" in how else "")
    )


def _numbers(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")] if text else []
    except ValueError:
        found = [math.nan]
    if not all(map(math.isfinite, found)):
        raise typer.BadParameter(f"{text!r} are no finite numbers: write 0.7,0.3", param_hint="--weights")
    return found


def _show(trials: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "alone", "soup with it", "")
    for trial in trials:
        verdict = "joined" if trial["joined"] else "left out"
        table.add_row(trial["model"], f"{trial['alone']:.3f}", f"{trial['soup']:.3f}", verdict)
    Console().print(table)


def _scorer(env: str, params: dict[str, Any], tasks: int, like: Path) -> Callable[[Any], float]:
    """A function from weights to greedy success on the first held-out tasks of an environment."""
    from gymrl.agents import evaluation as ev
    from gymrl.agents.rollout import RolloutSettings
    from gymrl.envs.workers import EnvPool

    async def play(policy: OpenPolicy, folder: Path) -> ev.Evaluation:
        pool = EnvPool(env, params)
        count = min(tasks, pool.template.world.sizes["val"])
        jobs = ev.evaluation_jobs([pool.task("val", index) for index in range(count)], 1, 0, greedy=True)
        try:
            result, _ = await ev.evaluate(policy.agent, pool, jobs, RolloutSettings())
        finally:
            await pool.aclose()
        return result

    return _scored(play, like, None)


def _suite_scorer(name: str, like: Path) -> Callable[[Any], float]:
    """A function from weights to success on a suite, played as the leaderboard plays it."""
    from gymrl.agents import evaluation as ev
    from gymrl.leaderboards.runner import play_suite
    from gymrl.leaderboards.suite import load_suite

    suite = load_suite(name)
    if suite.split == "test":
        typer.echo(
            f"note: the soup is chosen on {suite.name}'s test tasks: its place on that leaderboard is then no "
            "measurement on tasks it has not seen",
            err=True,
        )

    async def play(policy: OpenPolicy, folder: Path) -> ev.Evaluation:
        return ev.summarise(await play_suite(suite, policy.agent, folder / "episodes.partial", CONCURRENCY))

    return _scored(play, like, suite.sampling.sampling())


def _scored(play: Play, like: Path, sampling: Sampling | None) -> Callable[[Any], float]:
    """A function that writes weights as a checkpoint like `like`, has them played, and returns the success."""
    from gymrl.agents.policies import open_policy
    from gymrl.rl import merging as m

    async def played(policy: OpenPolicy, folder: Path) -> ev.Evaluation:
        try:
            return await play(policy, folder)
        finally:
            await policy.close()

    def score(weights: Any) -> float:
        with tempfile.TemporaryDirectory() as folder:
            where = Path(folder) / "model"
            m.write_weights(weights, like, where)
            policy = open_policy(str(where), sampling=sampling, slots=CONCURRENCY)
            found = asyncio.run(played(policy, Path(folder)))
        if sum(found.invalid.values()) == found.episodes:
            raise m.MergeFault(f"no episode was valid; the first cause is {next(iter(found.invalid))}")
        return found.success

    return score
