"""`gymrl eval`: how good a policy is on an environment."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gymrl.cli.values import loading, parameters, progress

if TYPE_CHECKING:
    from gymrl.agents.evaluation import Evaluation
    from gymrl.agents.players import Usage

POLICY = "oracle, random, null, a checkpoint folder, a hub name (OWNER/MODEL), or a server's URL (http://HOST:PORT#MODEL)."
ENGINE = "What serves a checkpoint: transformers, vllm or vllm-server."
TIMEOUT = "Seconds a server (a policy by URL) has for one answer; 300 without."
INTERRUPTED = 130
CAUSES = 6
"""Causes of invalid episodes that a table names."""


def evaluate(
    env: Annotated[str, typer.Option(metavar="ID", help="The environment's id.")],
    policy: Annotated[str, typer.Option(metavar="P", help=POLICY)],
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="How many tasks.")] = 256,
    first: Annotated[int, typer.Option(min=0, help="The first task's index.")] = 0,
    samples: Annotated[int, typer.Option(min=1, help="Episodes a task.")] = 1,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 1.0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0)] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="0 cuts nothing.")] = 0,
    greedy: Annotated[bool, typer.Option("--greedy", help="The most likely token always.")] = False,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens a turn.")] = 256,
    max_turns: Annotated[int | None, typer.Option(min=1, help="Cut episodes after so many turns.")] = None,
    max_context: Annotated[int | None, typer.Option(min=1, help="Tokens an episode may have.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Episodes at once.")] = 64,
    deadline: Annotated[float, typer.Option(help="Seconds an environment has for one answer.")] = 60.0,
    timeout: Annotated[float | None, typer.Option(help=TIMEOUT)] = None,
    engine: Annotated[str, typer.Option(help=ENGINE)] = "transformers",
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    param: Annotated[
        list[str], typer.Option("--param", metavar="KEY=VALUE", help="A parameter of the environment.")
    ] = [],  # noqa: B006
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Write every episode to FILE.jsonl or FILE.parquet.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Evaluate a policy on held-out tasks: success with its 95 % interval, and what went wrong.

    With --out, the same command goes on where it was interrupted (Ctrl-C, or killed).
    """
    if out is not None and out.suffix not in (".jsonl", ".parquet"):
        raise typer.BadParameter(f"{out} is neither FILE.jsonl nor FILE.parquet", param_hint="--out")
    if not top_p:
        raise typer.BadParameter(
            "0 leaves no token: take more, or --greedy for the likeliest", param_hint="--top-p"
        )
    greedy = greedy or temperature == 0
    if greedy and samples > 1 and "://" not in policy:
        raise typer.BadParameter("greedy samples of a task are all the same: take 1", param_hint="--samples")
    import asyncio

    loading()
    from gymrl.agents import collection
    from gymrl.agents import evaluation as ev
    from gymrl.agents.engines.base import Sampling
    from gymrl.agents.players import usage_of
    from gymrl.agents.policies import open_policy
    from gymrl.agents.records import Episode
    from gymrl.agents.rollout import RolloutSettings
    from gymrl.envs.workers import EnvPool

    settings = RolloutSettings(concurrency=concurrency, deadline=deadline, max_turns=max_turns)
    pool = EnvPool(env, parameters(param))
    if other := trained_otherwise(policy, env, pool.params):
        typer.echo(f"gymrl: this policy's run had other parameters: {other}", err=True)
    tasks = [pool.task(split, index) for index in range(first, first + n)]
    jobs = ev.evaluation_jobs(tasks, samples, seed, greedy)
    sampling = Sampling(temperature, top_p, top_k, max_tokens)
    slots = min(concurrency, len(jobs))
    if out is not None:
        collection.require_new(out)
    done: Sequence[Episode] = []

    async def play() -> tuple[ev.Evaluation, list[Episode]]:
        nonlocal done
        try:
            if out is not None:
                about = {
                    "env": env, "params": json.loads(tasks[0].params), "split": split, "policy": opened.agent.name,
                    "seed": seed, "temperature": 0.0 if greedy else temperature, "top_p": top_p, "top_k": top_k,
                    "max_tokens": max_tokens, "max_turns": max_turns,
                    **served_by(policy, engine, max_context, dtype),
                }  # fmt: skip
                begun = collection.begin(out, jobs, about)
                done = begun.done
                going_on(done, jobs)
            with progress(f"{policy} on {env}", len(jobs)) as watch:
                if out is None:
                    return await ev.evaluate(opened.agent, pool, jobs, settings, watch)
                began = time.perf_counter()
                played = await collection.play(begun, jobs, opened.agent, pool, settings, watch)
                return ev.summarise(played, time.perf_counter() - began), played
        finally:
            await pool.aclose()
            await opened.close()

    try:
        opened = open_policy(
            policy, engine=engine, sampling=sampling, max_context=max_context, slots=slots, dtype=dtype,
            timeout=timeout, tell=tell,
        )  # fmt: skip
        result, episodes = asyncio.run(play())
    except KeyboardInterrupt:
        raise interrupted(out) from None
    if out is not None:
        write_episodes(out, episodes)
        if not result.invalid:
            collection.journal_of(out).unlink()
    tokens = sum(episode.tokens for episode in episodes) - sum(episode.tokens for episode in done)
    tokens_per_second = tokens / max(result.seconds, 1e-9)
    usage = usage_of(opened.agent)
    if as_json:
        about = {"env": env, "params": pool.params, "split": split, "policy": opened.agent.name, "seed": seed}
        said = {"usage": asdict(usage)} if usage else {}
        found = {**about, **asdict(result), "tokens_per_second": tokens_per_second, **said}
        typer.echo(json.dumps(found, indent=2))
    else:
        show(f"{opened.agent.name} on {env} ({split})", result, tokens_per_second, usage)
    if out is not None:
        play_again(result)
    if sum(result.invalid.values()) == result.episodes:
        cause = next(iter(result.invalid))
        typer.echo(f"gymrl: no episode was valid; the first cause is {cause}", err=True)
        raise typer.Exit(1)


def tell(text: str) -> None:
    """Trouble that is waited out; not by click, which would write into a bar that runs."""
    print(f"gymrl: {text}", file=sys.stderr, flush=True)


def interrupted(out: Path | None) -> typer.Exit:
    """Say what Ctrl-C has left of a collection into this file."""
    from gymrl.agents.collection import journal_of

    kept = "nothing was played yet"
    if out is None:
        kept = "nothing was kept: with --out FILE the same command goes on where it was"
    elif journal_of(out).exists():
        kept = f"what was played is in {journal_of(out)}, the same command goes on"
    typer.echo(f"interrupted; {kept}", err=True)
    return typer.Exit(INTERRUPTED)


def served_by(policy: str, engine: str, max_context: int | None, dtype: str | None) -> dict[str, Any]:
    """What the answers of a policy follow from besides its name: episodes of other ones are not of the same policy."""
    from gymrl.agents.policies import policy_digest, serving_engine

    served = {"engine": serving_engine(policy, engine), "max_context": max_context, "dtype": dtype}
    return {"digest": policy_digest(policy), **served}


def play_again(result: Evaluation) -> None:
    """Say what becomes of invalid episodes, where the valid ones are kept."""
    if lost := sum(result.invalid.values()):
        what = "1 episode is" if lost == 1 else f"{lost} episodes are"
        typer.echo(
            f"gymrl: {what} invalid; the same command plays {'it' if lost == 1 else 'them'} again", err=True
        )


def going_on(done: Sequence[Any], jobs: Sequence[Any]) -> None:
    if done:
        typer.echo(f"going on: {len(done)} of {len(jobs)} episodes were played before", err=True)


def trained_otherwise(policy: str, env: str, params: dict[str, Any]) -> str:
    """The options that give this environment the parameters of the run that the policy lies in, where others were
    given. One that is written out makes other tasks than one that is left out, even where it is the default."""
    import shlex
    import tomllib

    for run in list(Path(policy).expanduser().resolve().parents)[:2]:
        try:
            trained = tomllib.loads((run / "recipe.toml").read_text(encoding="utf-8"))["env"]
            given = dict(trained.get("params", {}))
            if trained["id"] != env or given == params:
                return ""
        except (OSError, ValueError, KeyError, TypeError):  # no run folder, or a broken one
            continue
        texts = [
            (name, value if isinstance(value, str) else json.dumps(value)) for name, value in given.items()
        ]
        return " ".join(f"--param {shlex.quote(f'{name}={text}')}" for name, text in texts) or "none"
    return ""


def show(
    title: str, result: Evaluation, tokens_per_second: float | None = None, usage: Usage | None = None
) -> None:
    """Print an evaluation as a table of two columns; without its speed where that is not known."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False)
    some = result.episodes > sum(result.invalid.values())  # of none there is nothing to say
    interval = f"  (95 % interval {result.low:.3f} to {result.high:.3f})"
    lines: dict[str, Any] = {
        "success": f"{result.success:.3f}{interval}" if some else "-  (no episode is valid)",
        "episodes": result.episodes,
        "reward": f"{result.reward:.3f}" if some else "-",
        "turns": f"{result.turns:.2f}" if some else "-",
        "tokens": f"{result.tokens:.1f}" if some and result.tokens else "-",  # a server's are not seen
        "void turns": f"{result.void_turns:.3f}" if some else "-",
        "endings": ", ".join(f"{count} {ending}" for ending, count in sorted(result.endings.items())),
    }
    if tokens_per_second is not None:
        lines["seconds"] = f"{result.seconds:.1f}"
        if result.tokens:  # a scripted policy has none
            lines["tokens/s"] = f"{tokens_per_second:.0f}"
    if usage is not None:
        counted = f", {usage.prompt_tokens} prompt and {usage.completion_tokens} completion tokens"
        some_tokens = usage.prompt_tokens + usage.completion_tokens
        lines["server"] = f"{usage.requests} requests{counted if some_tokens else ''}"
    causes = sorted(result.invalid.items(), key=lambda item: (-item[1], item[0]))
    rows = [*lines.items(), *((f"invalid: {count}", cause) for cause, count in causes[:CAUSES])]
    if others := causes[CAUSES:]:
        rows.append((f"invalid: {sum(count for _, count in others)}", f"of {len(others)} other causes"))
    for name, value in rows:
        table.add_row(name, str(value).replace("[", r"\["))
    Console().print(table)


def write_episodes(path: Path, episodes: Any) -> int:
    """Write episodes in the form that the file's ending says; returns how many."""
    from gymrl.agents.episodes import write_jsonl, write_parquet

    return write_parquet(path, episodes) if path.suffix == ".parquet" else write_jsonl(path, episodes)
