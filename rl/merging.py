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
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from gymrl.envs.records import stable_hash
from gymrl.rl.soundness import damage, first_line, not_finite

Weights = dict[str, torch.Tensor]


class MergeFault(ValueError):
    """The checkpoints cannot be merged; the text names the mend."""


def read_weights(folder: Path) -> Weights:
    """All tensors of a checkpoint, shards included. Raises MergeFault where one of its files or numbers is broken."""
    files = sorted(folder.glob("model*.safetensors")) if folder.is_dir() else []
    if not files:
        raise MergeFault(f"{folder} is no checkpoint: it holds no model*.safetensors")
    if broken := damage(folder):
        raise MergeFault(f"{broken}: copy it again, or leave the checkpoint out")
    found: Weights = {}
    for file in files:
        found |= load_file(file)
    if broken := not_finite(found.items()):
        raise MergeFault(
            f"{folder} has a broken tensor, {broken}: the run that wrote it had broken down, take an earlier checkpoint"
        )
    return found


def check_out(out: Path) -> None:
    """Raise MergeFault if a checkpoint cannot be written there: something is there already."""
    if out.exists() and not out.is_dir():
        raise MergeFault(f"{out} is a file: name a folder that is empty, or none yet")
    if out.exists() and any(out.iterdir()):
        raise MergeFault(f"{out} is not empty: name a folder that is")


def write_weights(weights: Weights, like: Path, out: Path) -> None:
    """A checkpoint with these weights and everything else (config, tokenizer) of `like`. Raises MergeFault if `out`
    holds something already, or a tensor is not finite."""
    check_out(out)
    if broken := not_finite(weights.items()):
        raise MergeFault(
            f"the merged checkpoint would have a broken tensor, {broken}, and is not written: take smaller weights"
        )
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


Tokens = dict[str, int]


@dataclass(frozen=True)
class Vocabulary:
    """What a tokenizer.json says that decides which text a token id means, and into which ids a text falls."""

    tokens: Tokens
    added: Tokens
    merges: list[tuple[str, ...]]


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """The vocabulary of a checkpoint; None if it has no tokenizer.json. Raises MergeFault if that is damaged."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return None
    try:
        data: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        model = data["model"]
        tokens = model.get("vocab", {})
        if isinstance(tokens, list):  # Unigram: pairs of token and score, the id is the place
            tokens = {token: number for number, (token, _) in enumerate(tokens)}
        added = {token["content"]: token["id"] for token in data.get("added_tokens") or []}
        # Older files write a pair as one text.
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model.get("merges") or []]
        return Vocabulary({**tokens, **added}, added, [tuple(pair) for pair in pairs])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise MergeFault(f"{file} is damaged ({first_line(error)}): copy it again") from error


def check_vocabularies(folders: Sequence[Path]) -> None:
    """Raise MergeFault, naming the first difference, unless the checkpoints that have a tokenizer.json have the same
    vocabulary, merges and added tokens."""
    found = [(folder, vocabulary) for folder in folders if (vocabulary := read_vocabulary(folder)) is not None]
    for folder, vocabulary in found[1:]:
        first, known = found[0]
        if difference := _difference(known, vocabulary):
            raise MergeFault(
                f"{first} and {folder} have different tokenizers ({difference}), so that the same token id means "
                "different text in them: merge checkpoints that were trained from one model"
            )


def _difference(one: Vocabulary, two: Vocabulary) -> str:
    """The first difference, by id; '' if there is none."""
    for what, ours, theirs in (("token", one.tokens, two.tokens), ("added token", one.added, two.added)):
        if ours != theirs:
            number, token = min((n, t) for t, n in ours.items() ^ theirs.items())
            names = [{n: t for t, n in tokens.items()}.get(number) for tokens in (ours, theirs)]
            if None in names:
                return f"only one has the {what} {token!r} with the id {number}"
            return f"{what} {number} is {names[0]!r} in the one and {names[1]!r} in the other"
    if one.merges != two.merges:
        place = next((n for n, (a, b) in enumerate(zip(one.merges, two.merges, strict=False)) if a != b), -1)
        return f"their merges differ from number {place} on" if place >= 0 else "one has more merges"
    return ""


def check_numbers(numbers: Sequence[float], what: str) -> None:
    """Raise MergeFault unless all are finite."""
    for number in numbers:
        if not math.isfinite(number):
            raise MergeFault(f"{what} must be finite numbers, not {number}")


def soup(models: Sequence[Weights], shares: Sequence[float] | None = None) -> Weights:
    """The weighted mean of models (Wortsman et al. 2022); shares are divided by their sum, and equal by default."""
    given = list(shares) if shares is not None else [1.0] * len(models)
    if len(given) != len(models):
        raise MergeFault(f"{len(given)} weights for {len(models)} models: give one for each")
    whole = sum(given)
    check_numbers([*given, whole], "the weights of a soup and their sum")
    if whole == 0:
        raise MergeFault("the weights of a soup sum to 0: their mean is not defined")

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


def greedy_soup(
    models: Sequence[Weights], score: Callable[[Weights], float], floor: float = -math.inf
) -> GreedySoup:
    """Greedy soup (Wortsman et al. 2022): models from the best on (of equals the first given) join the uniform soup if
    its score does not fall. Raises MergeFault where a score is not a number, or no model alone scores above `floor`,
    the score of a model that can do nothing."""

    def scored(weights: Weights, what: str) -> float:
        found = score(weights)
        if math.isnan(found):
            raise MergeFault(f"{what} has no score: look at why none of its episodes counts")
        return found

    scores = [scored(model, f"model {i + 1}") for i, model in enumerate(models)]
    if max(scores) <= floor:
        raise MergeFault(
            f"the best model alone scores {max(scores):.3f}, so these tasks cannot tell the models apart: measure them "
            "on tasks like those they were trained on, by --param KEY=VALUE for those of --env, or by another --suite"
        )
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
    check_numbers(scales, "the weights of task vectors")
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
    check_numbers((low, high), "the scales of LiNeS")
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
