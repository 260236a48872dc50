"""Arithmetic on the weights of checkpoints in Hugging Face form: soups, task vectors, DARE, LiNeS.

All of it is computed in float64 and stored in the base's (or first model's) dtype.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from gymrl.envs.records import stable_hash

Weights = dict[str, torch.Tensor]


class MergeFault(ValueError):
    """The checkpoints cannot be merged; the text names the mend."""


def read_weights(folder: Path) -> Weights:
    """All tensors of a checkpoint, shards included."""
    files = sorted(folder.glob("model*.safetensors")) if folder.is_dir() else []
    if not files:
        raise MergeFault(f"{folder} is no checkpoint: it holds no model*.safetensors")
    found: Weights = {}
    for file in files:
        found |= load_file(file)
    return found


def write_weights(weights: Weights, like: Path, out: Path) -> None:
    """A checkpoint with these weights and everything else (config, tokenizer) of `like`. Raises MergeFault if `out`
    holds something already."""
    if out.exists() and any(out.iterdir()):
        raise MergeFault(f"{out} is not empty: name a folder that is")
    draft = out.with_name(out.name + ".part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    for file in like.iterdir():
        if file.is_file() and not re.match(r"model.*\.safetensors|.*\.index\.json|trainer\.pt", file.name):
            shutil.copy2(file, draft / file.name)
    save_file(
        {name: tensor.contiguous() for name, tensor in weights.items()},
        draft / "model.safetensors",
        {"format": "pt"},
    )
    if out.exists():
        out.rmdir()
    draft.rename(out)


def check_alike(models: Sequence[Weights], names: Sequence[str]) -> None:
    """Raise MergeFault, naming the first difference, unless all have the same tensors in the same shapes."""
    for other, name in zip(models[1:], names[1:], strict=True):
        for key in sorted(set(models[0]) ^ set(other)):
            raise MergeFault(f"{name} and {names[0]} are not of one architecture: only one of them has {key}")
        for key, tensor in models[0].items():
            if tensor.shape != other[key].shape:
                raise MergeFault(
                    f"{name} and {names[0]} are not of one architecture: {key} is {list(other[key].shape)} and "
                    f"{list(tensor.shape)}"
                )


def soup(models: Sequence[Weights], shares: Sequence[float] | None = None) -> Weights:
    """The weighted mean of models (Wortsman et al. 2022); shares are divided by their sum, and equal by default."""
    given = list(shares) if shares is not None else [1.0] * len(models)
    if len(given) != len(models):
        raise MergeFault(f"{len(given)} weights for {len(models)} models: give one for each")
    if sum(given) == 0:
        raise MergeFault("the weights of a soup sum to 0: their mean is not defined")
    whole = sum(given)

    def mean(key: str) -> torch.Tensor:
        return sum(
            (s / whole * m[key].double() for s, m in zip(given, models, strict=True)),
            torch.zeros(()).double(),
        )

    return {key: mean(key).to(tensor.dtype) for key, tensor in models[0].items()}


@dataclass(frozen=True)
class Trial:
    """One model's turn in a greedy soup: what it scores alone, what the soup scores with it, and whether it stayed.
    `model` is its index; the first trial is the best model's, alone."""

    model: int
    alone: float
    soup: float
    joined: bool


@dataclass(frozen=True)
class GreedySoup:
    """A soup, and how it came about, in the order of trial."""

    weights: Weights
    trials: tuple[Trial, ...]

    @property
    def joined(self) -> list[int]:
        return [trial.model for trial in self.trials if trial.joined]


def greedy_soup(models: Sequence[Weights], score: Callable[[Weights], float]) -> GreedySoup:
    """Greedy soup (Wortsman et al. 2022): models from the best on (of equals the first given) join the uniform soup if
    its score does not fall. Raises MergeFault where a score is not a number."""

    def scored(weights: Weights, what: str) -> float:
        found = score(weights)
        if math.isnan(found):
            raise MergeFault(f"{what} has no score: look at why none of its episodes counts")
        return found

    scores = [scored(model, f"model {i + 1}") for i, model in enumerate(models)]
    order = sorted(range(len(models)), key=lambda i: (-scores[i], i))
    joined, best, mixed = [order[0]], scores[order[0]], models[order[0]]
    trials = [Trial(order[0], best, best, True)]
    for i in order[1:]:
        tried = soup([models[j] for j in [*joined, i]])
        reached = scored(tried, f"the soup with model {i + 1}")
        if reached >= best:
            joined, best, mixed = [*joined, i], reached, tried
        trials.append(Trial(i, scores[i], reached, reached >= best))
    return GreedySoup(mixed, tuple(trials))


def task_vectors(base: Weights, models: Sequence[Weights], scales: Sequence[float]) -> Weights:
    """base + sum_i scale_i (model_i - base) (Ilharco et al. 2023); a negative scale takes a skill away."""
    if len(scales) != len(models):
        raise MergeFault(f"{len(scales)} weights for {len(models)} models: give one for each")
    return apply(base, combined([delta(base, model) for model in models], scales))


def delta(base: Weights, model: Weights) -> Weights:
    """model - base, float64."""
    return {key: model[key].double() - tensor.double() for key, tensor in base.items()}


def combined(deltas: Sequence[Weights], scales: Sequence[float]) -> Weights:
    """The scaled sum of task vectors."""
    return {
        key: sum((s * d[key] for s, d in zip(scales, deltas, strict=True)), torch.zeros_like(tensor))
        for key, tensor in deltas[0].items()
    }


def apply(base: Weights, change: Mapping[str, torch.Tensor]) -> Weights:
    """base + change, in the base's dtype."""
    return {key: (tensor.double() + change[key]).to(tensor.dtype) for key, tensor in base.items()}


def dare(change: Weights, drop: float, seed: int = 0) -> Weights:
    """DARE (Yu et al. 2023): each number of a task vector is dropped with probability `drop`, the rest rescaled by
    1 / (1 - drop). The same seed drops the same, tensor by tensor."""
    if not 0 <= drop < 1:
        raise MergeFault(f"the share to drop is at least 0 and below 1, not {drop}")
    found = {}
    for key, tensor in change.items():
        generator = torch.Generator().manual_seed(stable_hash("dare", seed, key))
        kept = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) >= drop
        found[key] = tensor * kept / (1 - drop)
    return found


def lines(change: Weights, low: float, high: float) -> Weights:
    """LiNeS (Wang et al. 2024): a task vector scaled linearly with depth, `low` at the first layer (and what comes
    before it), `high` at the last (and what comes after it)."""
    layers = [int(found[1]) for key in change if (found := re.search(r"\.layers?\.(\d+)\.", key))]
    if not layers:
        raise MergeFault("LiNeS goes by depth, and no tensor's name holds '.layers.N.'")
    last = max(layers)

    def scale(key: str) -> float:
        found = re.search(r"\.layers?\.(\d+)\.", key)
        if found is None:
            return low if "embed" in key else high
        return low + (high - low) * (int(found[1]) / last if last else 1.0)

    return {key: tensor * scale(key) for key, tensor in change.items()}


def describe(out: Path, recipe: Mapping[str, object]) -> None:
    """Note in the merged checkpoint how it was made."""
    (out / "merge.json").write_text(json.dumps(dict(recipe), indent=1) + "\n", encoding="utf-8")
