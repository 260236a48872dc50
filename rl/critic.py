"""The critic of PPO: a model of the policy's form whose head gives one number, the value before each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from gymrl.agents.ragged import NAME
from gymrl.rl.batches import Batch, TokenSequence, at_actions, cut, make_batch
from gymrl.rl.opening import read_model, steadied


@dataclass(frozen=True)
class CriticSettings:
    """`token_budget` bounds the tokens of one micro-batch, `grad_clip` the gradient's norm."""

    token_budget: int = 8192
    grad_clip: float = 1.0


class Critic:
    """V_t of every sampled token: the value of what stood before it was sampled. A fresh head says 0 of everything."""

    def __init__(
        self, model: str | Path | PreTrainedModel, settings: CriticSettings, accelerator: Accelerator
    ) -> None:
        self.settings, self.accelerator = settings, accelerator
        if not isinstance(model, PreTrainedModel):
            model = read_model(model, torch.float32, attn_implementation=NAME)
        decoder: Any = model.get_decoder() if hasattr(model, "get_decoder") else model.model
        self.decoder = steadied(decoder.to(accelerator.device))
        self.head = torch.nn.Linear(model.config.hidden_size, 1).to(accelerator.device)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)
        self.optimizer = torch.optim.AdamW(self.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=0.0)

    def parameters(self) -> list[torch.nn.Parameter]:
        return [*self.decoder.parameters(), *self.head.parameters()]

    def _values_T(self, batch: Batch) -> torch.Tensor:
        with self.accelerator.autocast():
            hidden_T = self.decoder(
                input_ids=batch.ids_T[None], position_ids=batch.packed.positions[None], ragged=batch.packed,
                use_cache=False,
            ).last_hidden_state[0]  # fmt: skip
            values: torch.Tensor = self.head(hidden_T)[:, 0].float()
        return values

    @torch.no_grad()
    def values(self, sequences: Sequence[TokenSequence]) -> list[tuple[np.ndarray, float]]:
        """Of each sequence the values [actions] float64 before its action tokens, and the one after its last token."""
        found: list[tuple[np.ndarray, float]] = [(np.zeros(0), 0.0)] * len(sequences)
        for chosen in cut(sequences, self.settings.token_budget):
            batch = make_batch([sequences[i] for i in chosen], [0.0] * len(chosen), self.accelerator.device)
            values_T = self._values_T(batch).cpu().double()
            at_N, owner_N = values_T[batch.predict_N.cpu()], batch.sequence_N.cpu()
            ends = np.cumsum([sequences[i].tokens for i in chosen]) - 1
            for row, i in enumerate(chosen):
                found[i] = (at_N[owner_N == row].numpy(), float(values_T[ends[row]]))
        return found

    def step(self, sequences: Sequence[TokenSequence], lr: float) -> dict[str, float]:
        """One step on the mean of (V - return)^2 / 2 over the action tokens, whose `advantage` is the return.

        A gradient that is not finite skips the step. Returns what was seen: loss, share of variance explained, and
        whether the step was skipped.
        """
        many = max(1, sum(s.actions for s in sequences))
        self.optimizer.zero_grad(set_to_none=True)
        total, targets, errors = 0.0, list[torch.Tensor](), list[torch.Tensor]()
        for chosen in cut(sequences, self.settings.token_budget):
            batch = make_batch(
                [sequences[i] for i in chosen], [1 / many] * len(chosen), self.accelerator.device
            )
            if not batch.actions:
                continue
            error_N = self._values_T(batch)[batch.predict_N] - batch.advantage_N
            loss = (error_N.square() / 2 * batch.weight_N).sum()
            self.accelerator.backward(loss)
            total += loss.item()
            targets.append(batch.advantage_N.detach().cpu())
            errors.append(error_N.detach().cpu())
        norm = torch.nn.utils.clip_grad_norm_(self.parameters(), self.settings.grad_clip)
        sound = bool(norm.isfinite())
        if targets and sound:
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if not targets:
            return {"value_loss": 0.0, "value_explained": 0.0, "value_skipped": 0}
        spread = torch.cat(targets).var(correction=0)
        explained = 1 - torch.cat(errors).var(correction=0) / spread if spread > 0 else torch.zeros(())
        return {"value_loss": total, "value_explained": float(explained), "value_skipped": int(not sound)}

    def state(self) -> dict[str, Any]:
        return {
            "decoder": self.decoder.state_dict(), "head": self.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }  # fmt: skip

    def load_state(self, state: dict[str, Any]) -> None:
        self.decoder.load_state_dict(state["decoder"])
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])


def with_targets(sequence: TokenSequence, targets_n: np.ndarray) -> TokenSequence:
    """A sequence that the critic learns from: its action tokens with a target (not NaN) carry it."""
    there = ~np.isnan(targets_n)
    action = sequence.action.copy()
    action[sequence.action] = there
    bare = replace(sequence, action=action)
    return replace(bare, advantage=at_actions(bare, torch.from_numpy(targets_n[there].astype(np.float32))))
