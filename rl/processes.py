"""What the processes that train one policy do together: share out sequences, and add up what each of them found.

Every process calls the same functions with the same arguments, in the same order. One process alone talks to nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from gymrl.rl.batches import TokenSequence, cut

BUCKET = 2**24
"""Gradients (numbers) that are added up in one message."""


class Processes:
    """`rank` of `size` processes; `alone` is for a model of which the others know nothing."""

    def __init__(self, alone: bool = False) -> None:
        together = dist.is_available() and dist.is_initialized() and not alone
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)

    # -- sharing out -----------------------------------------------------------------------------------

    def share(self, sequences: Sequence[TokenSequence], budget: int) -> list[list[int]]:
        """The micro-batches of this process, as indices of sequences. Every process has equally many: where it has
        less to do the last ones are empty. Together they hold each sequence once."""
        if self.size == 1:
            return cut(sequences, budget)
        plans = []
        for chosen in dealt([s.tokens for s in sequences], self.size):
            bins = cut([sequences[i] for i in chosen], budget)
            plans.append([[chosen[i] for i in one] for one in bins])
        most = max(len(plan) for plan in plans)
        own = plans[self.rank]
        return own + [[] for _ in range(most - len(own))]

    # -- adding up -------------------------------------------------------------------------------------

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def add_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Every process gets the sum of all gradients. What has none anywhere still has none."""
        if self.size == 1:
            return
        asked = [p for p in parameters if p.requires_grad]
        if not asked:
            return
        there = torch.tensor([p.grad is not None for p in asked], dtype=torch.int32, device=asked[0].device)
        asked = [p for p, some in zip(asked, self.add(there).tolist(), strict=True) if some]
        for parameter in asked:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets([p.grad for p in asked if p.grad is not None]):
            flat = self.add(torch.cat([grad.reshape(-1) for grad in bucket]))
            for grad, part in zip(bucket, flat.split([grad.numel() for grad in bucket]), strict=True):
                grad.copy_(part.view_as(grad))

    def add_reports(self, reports: Mapping[str, float]) -> dict[str, float]:
        """Sums over processes by name, the largest where the name ends in `_max`; the same everywhere."""
        if self.size == 1:
            return dict(reports)
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, dict(reports))
        found: dict[str, float] = {}
        for one in gathered:
            add_reports(found, one)
        return found


def add_reports(found: dict[str, float], more: Mapping[str, float]) -> None:
    """Add up reports in place, by name; those that end in `_max` are not added: the largest stays."""
    for name, value in more.items():
        known = found.get(name, 0.0)
        found[name] = max(known, value) if name.endswith("_max") else known + value


def dealt(sizes: Sequence[int], hands: int) -> list[list[int]]:
    """Indices of sizes for each of several hands, their sums as even as dealing the largest first to the hand that has
    least makes them."""
    found: list[list[int]] = [[] for _ in range(hands)]
    held = [0] * hands
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        hand = held.index(min(held))
        found[hand].append(i)
        held[hand] += sizes[i]
    return found


def _buckets(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """The tensors in order, of one dtype and at most BUCKET numbers together, or one alone."""
    bucket: list[torch.Tensor] = []
    held = 0
    for tensor in tensors:
        if bucket and (held + tensor.numel() > BUCKET or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, held = [], 0
        bucket.append(tensor)
        held += tensor.numel()
    if bucket:
        yield bucket
