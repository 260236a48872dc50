"""What the benchmarks share: a policy that plays the quickstart, and medians of runs that take turns."""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

for setting in (
    "OMP_WAIT_POLICY=passive",
    "TOKENIZERS_PARALLELISM=false",
):  # as the `gymrl` command sets them
    os.environ.setdefault(*setting.split("="))

import torch
from accelerate import Accelerator
from transformers.utils import logging

from gymrl.agents.players import ModelAgent
from gymrl.agents.ragged import NAME
from gymrl.agents.rollout import RolloutSettings
from gymrl.envs.workers import EnvPool
from gymrl.rl.batches import sequences_of
from gymrl.rl.demonstrations import demonstrate, tokenise
from gymrl.rl.learner import Learner, LearnerSettings
from gymrl.rl.memory import keep_freed_memory
from gymrl.rl.policy import load_renderer, start_policy
from gymrl.rl.recipes import Recipe, load
from gymrl.rl.recipes.models import TinySection
from gymrl.rl.trainers.sft import sft_step


def quickstart(*overrides: str) -> Recipe:
    keep_freed_memory()
    logging.disable_progress_bar()
    return load("quickstart", ["log.trackers=[]", *overrides])


def warm_policy(recipe: Recipe, steps: int = 240) -> Path:
    """A policy that plays the quickstart after a minute or two of SFT, kept for the next benchmark."""
    tiny = recipe.model.tiny or TinySection()
    folder = Path(tempfile.gettempdir()) / f"gymrl-benchmark-policy-{steps}-{tiny.hidden}-{tiny.layers}"
    if (folder / "done").exists():
        return folder
    print(f"warming up a policy: {steps} SFT steps ...", flush=True)
    pool = EnvPool(recipe.env.id, recipe.env.params)

    async def play() -> list:
        try:
            return await demonstrate(pool, recipe.sft.demonstrations, RolloutSettings())
        finally:
            await pool.aclose()

    episodes = asyncio.run(play())
    start_policy(recipe, episodes, folder)
    renderer = load_renderer(folder)
    data = [sequences_of(tokenise(episode, renderer)) for episode in episodes]
    learner = Learner(folder, LearnerSettings(), Accelerator(cpu=not torch.cuda.is_available()))
    settings = recipe.sft.model_copy(update={"steps": steps})
    for step in range(steps):
        sft_step(learner, data, settings, step, 0)
    learner.save(folder)
    (folder / "done").touch()
    return folder


def alternate(runs: dict[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """Median of each run's value; the runs take turns, so that a noisy machine disturbs all alike."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            found[name].append(run())
    return {name: statistics.median(values) for name, values in found.items()}


__all__ = ["NAME", "ModelAgent", "alternate", "quickstart", "warm_policy"]
