"""`gymrl merge`: arithmetic on checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gymrl.cli.values import loading, parameters

METHODS = ("soup", "greedy", "task")

HELP = """Merge checkpoints of one architecture: `gymrl merge MODEL MODEL... --out FOLDER`.

soup: their mean, or with --weights their weighted mean. greedy: from the best on, each joins the soup if success on
held-out tasks does not fall (--env, --tasks). task: --base plus the --weights times what each model learnt; --drop
(DARE) and --lines LOW HIGH (LiNeS) work on what was learnt."""


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
    env: Annotated[str, typer.Option(help="Environment whose success decides (greedy).")] = "",
    param: Annotated[
        list[str],
        typer.Option("--param", metavar="KEY=VALUE", help="A parameter of the environment (greedy)."),
    ] = [],  # noqa: B006
    tasks: Annotated[int, typer.Option(help="Its held-out tasks, of the split val (greedy).")] = 64,
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
    if (method == "greedy") != bool(env):
        raise typer.BadParameter("--env goes with --method greedy, and that with it", param_hint="--env")
    if method == "greedy" and weights:
        raise typer.BadParameter(
            "a greedy soup weighs its models equally: leave --weights out", param_hint="--weights"
        )
    shares = _numbers(weights)
    loading()
    from gymrl.rl import merging as m

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
            joined, merged = m.greedy_soup(found, _scorer(env, parameters(param), tasks, models[0]))
            how |= {"joined": [names[i] for i in joined], "env": env, "tasks": tasks}
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
        return [float(part) for part in text.split(",")] if text else []
    except ValueError:
        raise typer.BadParameter(f"{text!r} are no numbers: write 0.7,0.3", param_hint="--weights") from None


def _scorer(env: str, params: dict[str, Any], tasks: int, like: Path) -> Any:
    """A function from weights to greedy success on the first held-out tasks of an environment."""
    import asyncio
    import tempfile

    from gymrl.agents import evaluation as ev
    from gymrl.agents.policies import OpenPolicy, open_policy
    from gymrl.agents.rollout import RolloutSettings
    from gymrl.envs.workers import EnvPool
    from gymrl.rl import merging as m

    async def play(policy: OpenPolicy) -> float:
        pool = EnvPool(env, params)
        count = min(tasks, pool.template.world.sizes["val"])
        jobs = ev.evaluation_jobs([pool.task("val", index) for index in range(count)], 1, 0, greedy=True)
        try:
            result, _ = await ev.evaluate(policy.agent, pool, jobs, RolloutSettings())
        finally:
            await pool.aclose()
            await policy.close()
        return result.success

    def score(weights: Any) -> float:
        with tempfile.TemporaryDirectory() as folder:
            where = Path(folder) / "model"
            m.write_weights(weights, like, where)
            return asyncio.run(play(open_policy(str(where))))

    return score
