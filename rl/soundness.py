"""Whether the weights of a checkpoint are whole, and their numbers finite."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open


def damage(folder: Path) -> str:
    """Which weights file of a checkpoint is not whole, as the beginning of a sentence; '' if all are. No more than the
    files' heads are read."""
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            return f"{file} is damaged ({first_line(error)})"
    return ""


def not_finite(named: Iterable[tuple[str, torch.Tensor]]) -> str:
    """The first tensor that holds NaN or an infinite number, as a phrase; '' if none does."""
    for name, tensor in named:
        wide = tensor if tensor.element_size() > 1 else tensor.float()  # float8 has no isfinite
        if lost := int((~torch.isfinite(wide)).sum()):
            return f"{name}, of whose {tensor.numel():,} numbers {lost:,} are NaN or infinite"
    return ""


def first_line(error: BaseException) -> str:
    """What an error says, cut to the length that a sentence can hold."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")[:300]
