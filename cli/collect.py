"""`gymrl collect`: episodes into a file, to learn from or to look at."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from gymrl.cli.evaluate import (
    ENGINE,
    POLICY,
    TIMEOUT,
    going_on,
    interrupted,
    served_by,
    tell,
    trained_otherwise,
)
from gymrl.cli.values import loading, parameters, progress


def collect(
    env: Annotated[str, typer.Argument(metavar="ID", help="The environment's id.")],
    policy: Annotated[str, typer.Option(metavar="P", help=POLICY)] = "oracle",
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="How many tasks.")] = 256,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "train",
    first: Annotated[int, typer.Option(min=0, help="The first task's index.")] = 0,
    samples: Annotated[int, typer.Option(min=1, help="Episodes a task.")] = 1,
    won: Annotated[bool, typer.Option("--won", help="Write only the episodes that succeeded.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="FILE.jsonl or FILE.parquet (named after what it holds)."),
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens a turn.")] = 256,
    max_turns: Annotated[int | None, typer.Option(min=1, help="Cut episodes after so many turns.")] = None,
    max_context: Annotated[int | None, typer.Option(min=1, help="Tokens an episode may have.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Episodes at once.")] = 64,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes or threads for environments that need them.")
    ] = 2,
    deadline: Annotated[float, typer.Option(help="Seconds an environment has for one answer.")] = 60.0,
    timeout: Annotated[float | None, typer.Option(help=TIMEOUT)] = None,
    engine: Annotated[str, typer.Option(help=ENGINE)] = "transformers",
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    param: Annotated[
        list[str], typer.Option("--param", metavar="KEY=VALUE", help="A parameter of the environment.")
    ] = [],  # noqa: B006
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
) -> None:
    """Play tasks and write the episodes: for `gymrl train algo=sft data=FILE`, or for others.

    Interrupted (Ctrl-C, or killed), the same command goes on where it was.
    """
    import asyncio

    from gymrl.envs.workers import EnvPool

    pool = EnvPool(env, parameters(param), workers)
    tasks = [pool.task(split, index) for index in range(first, first + n)]
    path = out or Path(f"{_slug(env)}-{_slug(policy)}-{split}.jsonl")
    loading()
    from gymrl.agents.collection import Collection, begin, require_new
    from gymrl.agents.collection import collect as play_and_write
    from gymrl.agents.engines.base import Sampling
    from gymrl.agents.evaluation import evaluation_jobs, invalid_causes
    from gymrl.agents.policies import open_policy
    from gymrl.agents.rollout import RolloutSettings

    settings = RolloutSettings(concurrency=concurrency, deadline=deadline, max_turns=max_turns)
    if other := trained_otherwise(policy, env, pool.params):
        typer.echo(f"gymrl: this policy's run had other parameters: {other}", err=True)
    jobs = evaluation_jobs(tasks, samples, seed, temperature == 0)
    about = {
        "env": env, "params": json.loads(tasks[0].params), "split": split, "policy": policy, "seed": seed,
        "temperature": temperature, "max_tokens": max_tokens, "max_turns": max_turns,
        **served_by(policy, engine, max_context, dtype),
    }  # fmt: skip
    sampling = Sampling(temperature, max_tokens=max_tokens)
    require_new(path)

    async def play() -> Collection:
        try:
            begun = begin(path, jobs, {**about, "policy": opened.agent.name})
            going_on(begun.done, jobs)
            with progress(f"{policy} on {env}", len(jobs)) as watch:
                return await play_and_write(begun, jobs, opened.agent, pool, settings, won, watch)
        finally:
            await pool.aclose()
            await opened.close()

    try:
        opened = open_policy(
            policy, engine=engine, sampling=sampling, max_context=max_context,
            slots=min(concurrency, len(jobs)), dtype=dtype, timeout=timeout, tell=tell,
        )  # fmt: skip
        result = asyncio.run(play())
    except KeyboardInterrupt:
        raise interrupted(path) from None
    valid = [episode for episode in result.episodes if episode.valid]
    if valid:
        wins = sum(episode.success for episode in valid)
        typer.echo(f"{result.written} episodes written to {path} ({wins} of {len(valid)} succeeded)")
    for cause, count in invalid_causes(result.episodes).items():
        typer.echo(
            f"gymrl: {count} invalid, not written: {cause}; the same command plays them again", err=True
        )
    if not valid:
        raise typer.Exit(1)


def _slug(text: str) -> str:
    last = re.sub(r"^https?://", "", text).rstrip("/").rpartition("/")[2]
    return re.sub(r"[^a-zA-Z0-9.]+", "-", last).strip("-") or "policy"
