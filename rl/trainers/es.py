"""Evolution strategies (Salimans et al. 2017; Qiu et al. 2025, Evolution Strategies at Scale): forward passes only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from gymrl.envs.records import stable_hash

Named = Sequence[tuple[str, torch.Tensor]]


def noise(shape: torch.Size, *key: object) -> torch.Tensor:
    """Standard normal noise, float32 on the CPU, a pure function of the key: the tensor's name is part of it."""
    generator = torch.Generator().manual_seed(stable_hash("es", *key))
    return torch.randn(shape, generator=generator)


def z_scores(rewards: Sequence[float]) -> list[float]:
    """(r - mean) / std of the members' rewards, with the population's std; NaN ones (nothing valid) and equal ones
    give 0."""
    known = [r for r in rewards if r == r]
    mean = sum(known) / max(1, len(known))
    std = (sum((r - mean) ** 2 for r in known) / max(1, len(known))) ** 0.5
    return [(r - mean) / std if r == r and std > 0 else 0.0 for r in rewards]


@torch.no_grad()
def es_step(
    parameters: Iterable[tuple[str, torch.Tensor]], play: Callable[[int], float], population: int, sigma: float,
    alpha: float, *key: object,
) -> list[float]:  # fmt: skip
    """theta += alpha / N sum_n z_n noise_n. For each member n the parameters are set in place to theta + sigma *
    noise_n, `play(n)` gives its reward (NaN: none), and theta is restored exactly. Returns the rewards."""
    named: Named = list(parameters)
    before = [tensor.detach().clone() for _, tensor in named]
    rewards = []
    for member in range(population):
        try:
            for (name, tensor), own in zip(named, before, strict=True):
                tensor.copy_(own + sigma * noise(tensor.shape, *key, member, name).to(own))
            rewards.append(play(member))
        finally:
            for (_, tensor), own in zip(named, before, strict=True):
                tensor.copy_(own)
    scores = z_scores(rewards)
    for name, tensor in named:
        change = torch.zeros(tensor.shape)
        for member, z in enumerate(scores):
            if z:
                change += z * noise(tensor.shape, *key, member, name)
        tensor.add_((alpha / population * change).to(tensor))
    return rewards
