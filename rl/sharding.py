"""A model whose parameters, gradients and moments lie in parts on several processes (FSDP2)."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(module: torch.nn.Module, model: Any, device: torch.device) -> None:
    """Split `module`, which calls `model`, over all processes: each layer is put together when it is needed. Gradients
    are summed over processes, not averaged."""
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for layer in model.get_decoder().layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sum


def whole(value: Any) -> Any:
    """The same with every part-tensor put together, on the CPU; all processes call it."""
    if isinstance(value, DTensor):
        return value.full_tensor().cpu()
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [whole(item) for item in value]
    return value


def whole_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of whole tensors, on the CPU; what was one tensor under two names (tied weights) still is."""
    known: dict[int, torch.Tensor] = {}
    found = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in known:
            known[id(tensor)] = whole(tensor.detach())
        found[name] = known[id(tensor)]
    return found


def split_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """An optimiser's state dict of whole tensors with each split as its parameter is."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {
        index: {name: _like(item, parameters[index]) for name, item in own.items()}
        for index, own in state["state"].items()
    }
    return {**state, "state": moments}


def _like(value: Any, parameter: torch.Tensor) -> Any:
    if isinstance(parameter, DTensor) and isinstance(value, torch.Tensor) and value.shape == parameter.shape:
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value
