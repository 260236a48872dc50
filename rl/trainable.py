"""Which parameters a step trains: all, half of them (half fine-tuning), or a few layers at a time (LISA)."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from typing import Literal, get_args

from gymrl.envs.records import stable_hash
from gymrl.rl.choices import Adapter

Trainable = Literal["all", "half", "lisa"]

ADAPTERS: tuple[str, ...] = get_args(Adapter)

_LAYER = re.compile(r"\.layers?\.(\d+)\.")


class AdapterFault(ValueError):
    """Adapters cannot be trained; the text names the mend."""


def require_peft() -> None:
    """Raises AdapterFault where peft is not installed."""
    if importlib.util.find_spec("peft") is None:
        raise AdapterFault(
            'LoRA and its relatives need the package peft: pip install "gymrl[peft]", or set learner.trainable=all'
        )


def trainable(names: Sequence[str], kind: Trainable, round_: int, layers: int, seed: int) -> set[str]:
    """The names of the parameters that are trained in a round, a pure function of the arguments.

    `half` (Hui et al. 2024): of all parameters of one kind (such as every layer's `q_proj`) a random half; of kinds
    with an odd number of members the odd one, and of those with one member every other kind, falls to chance too.
    `lisa` (Pan et al. 2024): embeddings, head, and `layers` random layers.
    """
    if kind == "all":
        return set(names)
    if kind == "lisa":
        numbers = sorted({int(found[1]) for name in names if (found := _LAYER.search(name))})
        drawn = sorted(numbers, key=lambda n: stable_hash("lisa", seed, round_, n))[:layers]
        ends = {name for name in names if "embed" in name or "lm_head" in name}
        return ends | {name for name in names if (found := _LAYER.search(name)) and int(found[1]) in drawn}
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(_LAYER.sub(".layers.*.", name), []).append(name)
    chosen: set[str] = set()
    odd: list[str] = []
    for members in kinds.values():
        order = sorted(members, key=lambda name: stable_hash("half", seed, round_, name))
        half = len(order) // 2
        chosen |= set(order[:half])
        odd += order[2 * half :]
    order = sorted(odd, key=lambda name: stable_hash("half", seed, round_, name))
    return chosen | set(order[: -(-len(order) // 2)])
