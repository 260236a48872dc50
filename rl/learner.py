"""The learner: a Hugging Face model, its optimiser, and steps over packed batches."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from gymrl.agents.ragged import NAME
from gymrl.rl import sharding
from gymrl.rl.adapters import (
    AdapterSettings,
    adapter_state,
    load_adapter_state,
    merged_weights,
    save_merged,
    with_adapter,
)
from gymrl.rl.batches import Batch, TokenSequence, make_batch
from gymrl.rl.logprobs import LogProbs
from gymrl.rl.opening import check_packing, read_model, steadied
from gymrl.rl.processes import Processes, add_reports
from gymrl.rl.trainable import AdapterFault, Trainable, trainable

REMEMBERED, KNOWN = 32, 8
"""How many gradient norms are remembered, and how many must be known before one can be a spike."""

LossOf = Callable[[Batch, torch.Tensor], tuple[torch.Tensor, dict[str, torch.Tensor]]]
"""(batch, lp_N) -> loss of every action token [N], and sums over tokens to be reported."""


Cause = Callable[[Batch, torch.Tensor], torch.Tensor]
"""(batch, lp_N) -> which action tokens belong to it, [N] bool."""


@dataclass(frozen=True)
class LearnerSettings:
    """`token_budget` bounds the tokens of one micro-batch; it changes memory and speed, not results."""

    token_budget: int = 8192
    grad_clip: float = 1.0
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    mixed_precision: str = "no"
    gradient_checkpointing: bool = False
    spike: float = 100.0
    """A gradient norm of more than so many times the median of the last ones skips the step; 0: never."""
    trainable: Trainable = "all"
    """Which parameters are trained; `half` and `lisa` draw others every `redraw` updates, by `seed`."""
    redraw: int = 20
    layers: int = 2
    adapter: AdapterSettings | None = None
    """An adapter (LoRA and its relatives) is trained instead of the parameters; its first values follow from `seed`."""
    seed: int = 0
    shard: bool = False
    """With several processes: parameters, gradients and moments lie in parts on them (FSDP2), not whole on each."""
    logits_budget: int = 2**24
    """Logits (numbers) held at once; more are computed in chunks and again in the backward pass."""


@dataclass(frozen=True)
class StepResult:
    """One optimiser step: `sums` are what the loss reported, summed over all action tokens."""

    loss: float
    grad_norm: float
    tokens: int
    actions: int
    skipped: bool
    sums: dict[str, float]


class Learner:
    """Trains one policy. All randomness lies outside: the same calls give the same weights, bit for bit on the CPU.

    Where several processes are up (torch.distributed), each has such a learner and makes the same calls with the same
    arguments: it works through its share of the sequences, and what they find is added up. Results differ from one
    process's by rounding alone.
    """

    def __init__(
        self, model: str | Path | PreTrainedModel, settings: LearnerSettings, accelerator: Accelerator,
        alone: bool = False,
    ) -> None:  # fmt: skip
        """`alone`: the other processes have no such learner."""
        self.settings, self.accelerator = settings, accelerator
        self.processes = Processes(alone)
        if not isinstance(model, PreTrainedModel):
            model = read_model(model, torch.float32, attn_implementation=NAME)
            check_packing(model.eval())
        wrapped = model if settings.adapter is None else with_adapter(model, settings.adapter, settings.seed)
        self.model: Any = steadied(wrapped.to(accelerator.device), settings.gradient_checkpointing)
        self.scorer = LogProbs(self.model, settings.logits_budget, accelerator.autocast)
        self.sharded = settings.shard and self.processes.size > 1
        if self.sharded:
            if settings.adapter is not None or settings.trainable != "all":
                raise ValueError(
                    "learner.shard is for models trained whole: set learner.trainable=all, or learner.shard=false"
                )
            sharding.shard(self.scorer, self.model, accelerator.device)
        self.optimizer = self._fresh_optimizer()
        self.updates = 0
        """Optimiser steps taken: the policy's version."""
        self.norms: list[float] = []
        """Gradient norms of the last steps of this stage, by which a spike is known."""
        self.troubles: list[str] = []
        """Why steps were skipped; whoever reads them empties the list."""

    def trained(self) -> list[tuple[str, torch.nn.Parameter]]:
        """Names and parameters that are trained at one time or another: the adapter's where there is one, else all."""
        alone = self.settings.adapter is not None
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad or not alone]

    def _fresh_optimizer(self) -> torch.optim.Optimizer:
        s = self.settings
        return torch.optim.AdamW(
            [p for _, p in self.trained()],
            lr=0.0,
            betas=(s.beta1, s.beta2),
            weight_decay=s.weight_decay,
            fused=True,
        )

    def reset_optimizer(self) -> None:
        """Forget the moments: a new stage begins."""
        self.optimizer = self._fresh_optimizer()
        self.norms = []

    # -- forward ---------------------------------------------------------------------------------------

    def logprobs(
        self, batch: Batch, temperature: float = 1.0, entropy: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Log-probabilities [N] (float32, nats) of the action tokens at the sampling temperature, and
        their entropy [N]."""
        found: tuple[torch.Tensor, torch.Tensor | None] = self.scorer(batch, temperature, entropy)
        return found

    def _batches(
        self, sequences: Sequence[TokenSequence], weights_S: Sequence[float]
    ) -> Iterator[tuple[list[int], Batch, bool]]:
        """This process's micro-batches, as indices of sequences and packed. Parts of a sharded model are gathered by
        all processes together: one that has nothing to do is given a sequence that does not count (False)."""
        for chosen in self.processes.share(sequences, self.settings.token_budget):
            counts = any(sequences[i].actions for i in chosen)
            if not counts and not self.sharded:
                continue
            rows = chosen or [min(range(len(sequences)), key=lambda i: sequences[i].tokens)]
            packed = make_batch(
                [sequences[i] for i in rows], [weights_S[i] for i in rows], self.accelerator.device
            )
            yield chosen, packed, counts

    def _backward(
        self, sequences: Sequence[TokenSequence], weights_S: Sequence[float], loss_of: LossOf, temperature: float,
        entropy: bool, cause: Cause | None = None,
    ) -> dict[str, float]:  # fmt: skip
        """The gradient of the weighted sum of token losses, of all processes; returns sums over tokens."""
        sums = {"loss": 0.0, "tokens": 0.0, "actions": 0.0}
        for _, batch, counts in self._batches(sequences, weights_S):
            lp_N, entropy_N = self.logprobs(batch, temperature, entropy)
            if not counts:
                self.accelerator.backward(lp_N.sum() * 0)
                continue
            loss_N, reports = loss_of(batch, lp_N)
            weight_N = batch.weight_N if cause is None else batch.weight_N * cause(batch, lp_N.detach())
            loss = (loss_N * weight_N).sum()
            self.accelerator.backward(loss)
            if entropy_N is not None:
                reports = {"entropy": entropy_N.detach()[~batch.guided_N].sum(), **reports}
            seen = {"loss": loss.item(), "tokens": batch.tokens, "actions": batch.actions}
            add_reports(sums, seen | {name: value.item() for name, value in reports.items()})
        if not self.sharded:
            self.processes.add_gradients(p for _, p in self.trained())
        return self.processes.add_reports(sums)

    def _norm(self) -> torch.Tensor:
        """The norm of the whole gradient."""
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads) if grads else torch.zeros(())
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    # -- one optimiser step ----------------------------------------------------------------------------

    def step(
        self, sequences: Sequence[TokenSequence], weights_S: Sequence[float], loss_of: LossOf, lr: float,
        temperature: float = 1.0,
    ) -> StepResult:  # fmt: skip
        """One optimiser step on the weighted sum of token losses over all sequences, whatever their number.

        A gradient that is not finite, or a spike, skips the step: weights and moments stay as they were, and `troubles`
        says why.
        """
        self.optimizer.zero_grad(set_to_none=True)
        self._draw()
        sums = self._backward(sequences, weights_S, loss_of, temperature, entropy=True)
        total, tokens, actions = sums.pop("loss"), int(sums.pop("tokens")), int(sums.pop("actions"))
        if not actions:
            return StepResult(0.0, 0.0, tokens, 0, True, sums)
        whole = self._norm()
        torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.settings.grad_clip, whole)
        norm = float(whole)
        trouble = self._trouble(norm)
        if trouble:
            self.troubles.append(trouble)
        else:
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
            self.updates += 1
        self.optimizer.zero_grad(set_to_none=True)
        return StepResult(total, norm, tokens, actions, bool(trouble), sums)

    def _draw(self) -> None:
        """Freeze what this round of updates does not train."""
        s = self.settings
        if s.trainable == "all":
            return
        named = dict(self.model.named_parameters())
        chosen = trainable(list(named), s.trainable, self.updates // s.redraw, s.layers, s.seed)
        for name, parameter in named.items():
            parameter.requires_grad_(name in chosen)

    def _trouble(self, norm: float) -> str:
        """Why a step with this gradient norm is not taken; empty where it is."""
        if not math.isfinite(norm):
            return f"the gradient is not finite (its norm is {norm})"
        usual = statistics.median(self.norms) if len(self.norms) >= KNOWN else 0.0
        self.norms = [*self.norms, norm][-REMEMBERED:]
        if self.settings.spike and usual and norm > self.settings.spike * usual:
            return f"the gradient's norm {norm:.3g} is {norm / usual:.0f} times its usual {usual:.3g}"
        return ""

    def gradient_norms(
        self, sequences: Sequence[TokenSequence], weights_S: Sequence[float], loss_of: LossOf,
        causes: Mapping[str, Cause], temperature: float = 1.0,
    ) -> dict[str, float]:  # fmt: skip
        """The norm of the gradient that the tokens of each cause make alone. Nothing is updated."""
        found = {}
        self._draw()
        for name, cause in causes.items():
            self.optimizer.zero_grad(set_to_none=True)
            self._backward(sequences, weights_S, loss_of, temperature, entropy=False, cause=cause)
            found[name] = float(self._norm())
        self.optimizer.zero_grad(set_to_none=True)
        return found

    @torch.no_grad()
    def score(
        self, sequences: Sequence[TokenSequence], temperature: float = 1.0, adapter: bool = True
    ) -> list[torch.Tensor]:
        """Log-probabilities of each sequence's action tokens, [n_i] float32 on the CPU, in the sequences' order;
        without `adapter` those of the model that it started from."""
        counts = [s.actions for s in sequences]
        parts = torch.zeros(sum(counts)).split(counts)
        with nullcontext() if adapter else self.model.disable_adapter():
            for chosen, batch, counts_ in self._batches(sequences, [0.0] * len(sequences)):
                lp_N, _ = self.logprobs(batch, temperature)
                for row, i in enumerate(chosen if counts_ else ()):
                    parts[i].copy_(lp_N[batch.sequence_N == row])
        if self.processes.size == 1:
            return list(parts)
        flat = torch.cat(parts) if parts else torch.zeros(0)
        return list(self.processes.add(flat.to(self.accelerator.device)).cpu().split(counts))

    # -- weights ---------------------------------------------------------------------------------------

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and tensors as in the Hugging Face state dict, for `Engine.load_weights`; an adapter is merged in."""
        if self.settings.adapter is not None:
            return merged_weights(self.model)
        return iter((sharding.whole_state(self.model) if self.sharded else self.model.state_dict()).items())

    def save(self, folder: Path) -> None:
        """Write the model in Hugging Face form (the first process does); an adapter is merged in, and kept in
        `folder/adapter` too."""
        weights = dict(self.weights()) if self.sharded else None
        if self.processes.rank:
            return
        if self.settings.adapter is not None:
            save_merged(self.model, folder)
        else:
            self.model.save_pretrained(folder, state_dict=weights)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds beside the weights, whatever the number of processes. An adapter is part of it: the
        learner goes on from the weights it was laid beside, not from the merged ones."""
        adapter = {} if self.settings.adapter is None else {"adapter": adapter_state(self.model)}
        optimizer = self.optimizer.state_dict()
        return {
            "optimizer": sharding.whole(optimizer) if self.sharded else optimizer, "updates": self.updates,
            "norms": list(self.norms), **adapter,
        }  # fmt: skip

    def load_state(self, state: dict[str, Any]) -> None:
        """Raises AdapterFault where the state is of another adapter, or of none, or has one that is not wanted."""
        if ("adapter" in state) != (self.settings.adapter is not None):
            raise AdapterFault(
                "the checkpoint was trained with another learner.trainable: resume with the one it was trained with"
            )
        if "adapter" in state:
            load_adapter_state(self.model, state["adapter"])
        moments = state["optimizer"]
        self.optimizer.load_state_dict(
            sharding.split_state(self.optimizer, moments) if self.sharded else moments
        )
        self.updates = state["updates"]
        self.norms = list(state.get("norms", []))


def schedule(step: int, lr: float, warmup: int, steps: int, decay: str = "constant") -> float:
    """The learning rate of a step (from 0): linear warm-up, then constant, or linear or cosine to a tenth."""
    if step < warmup:
        return lr * (step + 1) / warmup
    share = (step - warmup) / max(1, steps - warmup)
    if decay == "constant":
        return lr
    if decay == "linear":
        return lr * (1 - 0.9 * share)
    if decay == "cosine":
        return lr * (0.1 + 0.45 * (1 + torch.cos(torch.tensor(share * torch.pi)).item()))
    raise ValueError(f"unknown decay {decay!r}: take constant, linear or cosine")
