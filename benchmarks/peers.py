"""What the comparisons with TRL share: ragged multi-turn episodes, a model, and the most memory that a step takes.

TRL is no dependency of gymrl. In an environment of its own beside gymrl's: `pip install trl==1.16`.
"""

from __future__ import annotations

import os
import re
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import NAME

from gymrl.rl.batches import TokenSequence
from gymrl.rl.tiny import make_model, make_tokenizer

LONGEST = 8192


def episodes(count: int, vocab: int, seed: int = 0, scale: float = 1.0) -> list[TokenSequence]:
    """Episodes of one to six turns: tasks of 30 to 80 tokens, answers of 10 to 60, observations of 10 to 150. Every
    episode has an advantage, so nothing is left out of the update. `scale` stretches the same episodes."""
    rng, words = np.random.default_rng(seed), np.random.default_rng(seed + 1)

    def length(low: int, high: int) -> int:
        return max(1, round(rng.integers(low, high) * scale))

    found = []
    for _ in range(count):
        action = [np.zeros(length(30, 80), dtype=bool)]
        for turn in range(int(rng.integers(1, 7))):
            action += [np.zeros(length(10, 150), dtype=bool)] if turn else []
            action.append(np.ones(length(10, 60), dtype=bool))
        flat = np.concatenate(action)
        ids = words.integers(3, vocab, len(flat))
        zeros = np.zeros(len(flat), dtype=np.float32)
        worth = np.where(flat, np.float32(rng.choice([-1.3, -0.4, 0.6, 1.7])), np.float32(0))
        found.append(TokenSequence(ids, flat, zeros, worth, ids * 0, ids * 0))
    return found


def model(vocab: int, hidden: int, layers: int, attention: str = NAME):
    """The same weights every time; `attention` is gymrl's unless it is named."""
    made = make_model(vocab, hidden, layers, 4, 2, LONGEST)
    made.set_attn_implementation(attention)
    return made


def tokenizer():
    """TRL wants one; the episodes are ids already."""
    return make_tokenizer(["nothing is said in words"])


def trainer_settings() -> dict[str, object]:
    """What makes TRL's trainers work quietly on the CPU in float32, with gymrl's optimiser."""
    warnings.filterwarnings("ignore")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return {
        "output_dir": tempfile.mkdtemp(), "use_cpu": True, "bf16": False, "report_to": [], "save_strategy": "no",
        "logging_strategy": "no", "disable_tqdm": True, "learning_rate": 1e-4, "lr_scheduler_type": "constant",
        "adam_beta2": 0.95, "max_grad_norm": 1.0, "gradient_checkpointing": False, "dataloader_pin_memory": False,
    }  # fmt: skip


def forget_peak() -> None:
    """Begin to measure the process's highest memory anew."""
    Path("/proc/self/clear_refs").write_text("5")


def memory(what: str) -> float:
    """Of this process, MiB: `VmHWM`, the highest since `forget_peak`, or `VmRSS`, now."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def check_alike(sides: dict[str, tuple[Callable[[], None], torch.nn.Module]]) -> None:
    """Let every side make its first update, from the same weights: the gradients its optimiser gets must agree."""
    grads = []
    for update, trained in sides.values():
        found: dict[str, torch.Tensor] = {}
        for name, parameter in trained.named_parameters():
            parameter.register_post_accumulate_grad_hook(
                lambda p, name=name, found=found: found.__setitem__(name, p.grad.detach().clone())
            )
        update()
        grads.append(found)
    one, two = grads
    gap = max(float((one[name] - two[name]).norm() / two[name].norm()) for name in two)
    print(f"gradients of {' and '.join(sides)}: relative difference {gap:.1e} at most", flush=True)
    assert gap < 1e-3, "the two updates are not the same"
