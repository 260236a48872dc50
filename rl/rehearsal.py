"""A user's own function is called once before a run begins: what it cannot do shows now, not after the warm start."""

from __future__ import annotations

from typing import Any

import torch

from gymrl.rl.algorithms import Algorithm, AlgorithmFault

OURS = "gymrl.rl."
P, K, T, N, Q = 2, 3, 6, 5, 4


def rehearse(algorithm: Algorithm, settings: dict[str, Any], group: int = 2) -> None:
    """Call a function that is not gymrl's own on small tensors of the right shapes and dtypes, `group` episodes a task.

    Raises AlgorithmFault where it fails, or what it returns has not the form of its kind.
    """
    if algorithm.function.__module__.startswith(OURS):
        return
    group = max(2, group)
    tensors = _tensors(group)
    result = algorithm.bind(settings)(tensors)
    if algorithm.kind == "loss":
        _learnable(algorithm, result[0])
    if algorithm.kind != "advantage":
        return
    pair = "values_BT" in algorithm.inputs
    parts = result if isinstance(result, tuple) else (result,)
    batch = tensors["sampled_BT"].shape
    shapes = {batch} if pair else {tensors["counted_PG"].shape, tensors["turns_PGK"].shape, batch}
    if len(parts) != 1 + pair or any(getattr(part, "shape", None) not in shapes for part in parts):
        wanted = "(advantages_BT, returns_BT)" if pair else "[P, G], [P, G, K] or [B, T]"
        sizes = f"P = {P}, G = {group}, K = {K}, B = {batch[0]}, T = {T}"
        forms = ", ".join(
            str(list(part.shape)) if isinstance(part, torch.Tensor) else type(part).__name__ for part in parts
        )
        raise AlgorithmFault(
            f"advantage {algorithm.name!r} ({algorithm.file}) returned {forms} where {sizes}: return {wanted}"
        )
    if not bool(torch.isfinite(parts[0]).all()):
        raise AlgorithmFault(
            f"advantage {algorithm.name!r} ({algorithm.file}) returned numbers that are not finite, of finite ones"
        )


def _learnable(algorithm: Algorithm, loss_N: torch.Tensor) -> None:
    """Raise AlgorithmFault for a loss that no policy can learn from."""
    of = f"loss {algorithm.name!r} ({algorithm.file})"
    if not loss_N.requires_grad:
        raise AlgorithmFault(f"{of} has no gradient: make it of lp_N, without detach()")
    if not bool(torch.isfinite(loss_N).all()):
        raise AlgorithmFault(f"{of} returned numbers that are not finite, of finite ones")


def _tensors(group: int) -> dict[str, torch.Tensor]:
    """Something of every tensor that functions may ask for."""
    draw = torch.Generator().manual_seed(0)
    b_ = P * group

    def some(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=draw, dtype=torch.float64)

    def below(*shape: int) -> torch.Tensor:
        return -some(*shape).float()

    half = torch.arange(group).expand(P, group) % 2 == 0
    of_sequences = {name: -10 * some(2 * Q) for name in ("lp_S", "ref_lp_S")}
    pairs = {name: -10 * some(Q) for name in ("win_Q", "lose_Q", "ref_win_Q", "ref_lose_Q")}
    lengths = {name: torch.full((Q,), 8.0, dtype=torch.float64) for name in ("win_length_Q", "lose_length_Q")}
    return {
        "rewards_PG": half.double(), "counted_PG": torch.ones(P, group, dtype=torch.bool),
        "greedy_P": some(P), "turn_rewards_PGK": some(P, group, K),
        "turns_PGK": torch.ones(P, group, K, dtype=torch.bool),
        "states_PGK": torch.arange(P * group * K).view(P, group, K) % 4,
        "token_rewards_BT": some(b_, T), "sampled_BT": torch.ones(b_, T, dtype=torch.bool),
        "turn_BT": (torch.arange(T) // 2).expand(b_, T).clone(), "values_BT": some(b_, T), "bootstrap_B": some(b_),
        "counted_B": torch.ones(b_, dtype=torch.bool), "lp_N": below(N).requires_grad_(), "old_lp_N": below(N),
        "mu_lp_N": below(N), "ref_lp_N": below(N), "advantages_N": some(N).float() - 0.5,
        "sequence_N": torch.tensor([0, 0, 0, 1, 1]),
        "desirable_S": torch.arange(2 * Q) % 2 == 0, "mismatched_S": some(2 * Q), **of_sequences, **pairs, **lengths,
    }  # fmt: skip
