"""Adapters: LoRA and its relatives, through the package `peft`. The model's own weights are frozen; small matrices
beside its linear layers are trained, and merged into them wherever somebody else reads the weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from gymrl.rl.choices import Adapter
from gymrl.rl.trainable import AdapterFault, require_peft


@dataclass(frozen=True)
class AdapterSettings:
    """`rank` of the matrices; their product is scaled by alpha / rank (rsLoRA: alpha / sqrt(rank)), alpha is 2 rank if
    it is left out. `targets` are names of layers, such as q_proj; without any it is every linear layer but the head."""

    kind: Adapter = "lora"
    rank: int = 16
    alpha: float | None = None
    targets: tuple[str, ...] = ()


def with_adapter(model: PreTrainedModel, settings: AdapterSettings, seed: int) -> Any:
    """The model (PeftModel) with a fresh adapter that changes nothing yet, drawn from the seed. Raises AdapterFault."""
    require_peft()
    import peft

    s = settings
    alpha = 2 * s.rank if s.alpha is None else s.alpha
    targets: Any = list(s.targets) or "all-linear"
    common: dict[str, Any] = {"r": s.rank, "target_modules": targets, "task_type": "CAUSAL_LM"}
    config: Any
    if s.kind == "loha":
        config = peft.LoHaConfig(alpha=alpha, **common)
    elif s.kind == "lokr":
        config = peft.LoKrConfig(alpha=alpha, **common)
    else:
        config = peft.LoraConfig(
            lora_alpha=alpha, use_rslora=s.kind == "rslora", use_dora=s.kind == "dora", **common
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return peft.get_peft_model(model, config)
        except ValueError as error:
            if not s.targets:
                raise
            raise AdapterFault(
                f"learner.trainable.targets = {list(s.targets)} names no layer of the model: take of "
                f"{', '.join(_linear_names(model))}, or leave it out"
            ) from error


def _linear_names(model: torch.nn.Module) -> list[str]:
    found = {n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    return sorted(found)


def adapter_state(model: Any) -> dict[str, torch.Tensor]:
    """The adapter's own tensors (copies), by their names in the model."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def load_adapter_state(model: Any, state: dict[str, torch.Tensor]) -> None:
    """Raises AdapterFault if the state is of another adapter."""
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if {n: p.shape for n, p in own.items()} != {n: t.shape for n, t in state.items()}:
        raise AdapterFault(
            "the checkpoint's adapter is of another kind, rank or targets: resume with the learner settings it was "
            "trained with"
        )
    for name, parameter in own.items():
        parameter.copy_(state[name])


def merged_weights(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors as in the state dict of the model without adapter, with the adapter merged in. The model
    itself stays as it is, bit for bit."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    base = model.get_base_model()
    layers = {name: module for name, module in base.named_modules() if isinstance(module, BaseTunerLayer)}
    for name, tensor in base.state_dict().items():
        owner, inside, leaf = name.rpartition(".base_layer.")
        if inside:
            yield f"{owner}.{leaf}", _merged(layers[owner]) if leaf == "weight" else tensor
        elif not any(name.startswith(f"{layer}.") for layer in _above(name, layers)):
            yield name, tensor


def _above(name: str, layers: dict[str, Any]) -> list[str]:
    """Those of the layers that the tensor of this name is a part of."""
    parts = name.split(".")
    return [prefix for n in range(1, len(parts)) if (prefix := ".".join(parts[:n])) in layers]


@torch.no_grad()
def _merged(layer: Any) -> torch.Tensor:
    """The weight of a layer with its adapter in it. Merging and taking out again would leave rounding errors in the
    frozen weight: it is put back from a copy."""
    weight = layer.get_base_layer().weight
    kept = weight.detach().clone()
    try:
        layer.merge()
        found: torch.Tensor = weight.detach().clone()
        layer.unmerge()
    finally:
        weight.copy_(kept)
    return found


def save_merged(model: Any, folder: Path) -> None:
    """Write the model in Hugging Face form with the adapter merged in, and the adapter alone, in peft's form, in the
    folder `adapter` beside it."""
    model.get_base_model().save_pretrained(folder, state_dict=dict(merged_weights(model)))
    model.save_pretrained(folder / "adapter", save_embedding_layers=False)
