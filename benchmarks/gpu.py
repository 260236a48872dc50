"""The learner on a GPU: tokens/s and MFU of GRPO and SFT updates of a 0.5B Qwen3 of random weights.

    python benchmarks/gpu.py [--size 0.5b] [--episodes 64] [--repeats 5] [--precision bf16] [--json FILE]

Beside it, on the same tokens, bare loops: the same packed forward and backward without the learner around it, and a
padded batch with the model's own attention. And seconds against tokens, as episodes grow from 1x to 16x. Runs on
the CPU too, where --size tiny takes seconds.

MFU counts what the mathematics needs, not what is computed again: 6 operations for each weight of the layers and
token, 6 for each weight of the head and token that is said (a loss needs no other logits), and for attention over the
causal half 6 for each layer, number of a query's heads and token squared. Divided by --peak TFLOP/s; without it by the
device's published dense peak, or where none is known by what a large matrix product reaches.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common import NAME, alternate  # first: it sets how torch's threads wait
from peers import episodes
from scaling import slope

# isort: split

import numpy as np
import torch
from accelerate import Accelerator
from torch.nn.functional import cross_entropy
from transformers import Qwen3Config, Qwen3ForCausalLM

from gymrl.rl.batches import TokenSequence, cut, make_batch
from gymrl.rl.learner import Learner, LearnerSettings, LossOf
from gymrl.rl.losses.aggregation import token_weights
from gymrl.rl.objective import loss_of_settings
from gymrl.rl.recipes.models import RlSection
from gymrl.rl.trainers.sft import negative_logprob

PEAKS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "L40S": 362.0, "RTX 4090": 165.0}
"""Dense bfloat16 TFLOP/s as the makers publish them."""

TIMES = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Size:
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    inner: int
    vocab: int


SIZES = {
    "tiny": Size(64, 2, 4, 2, 16, 192, 512),
    "0.5b": Size(1024, 22, 16, 8, 128, 3072, 151_936),  # Qwen3-0.6B with 22 of its 28 layers: 0.50B
}


@dataclass(frozen=True)
class Speed:
    """Of one way to make an update. `memory_gb` is the device's peak, 0 where it is not known."""

    name: str
    seconds: float
    tokens_per_second: float
    mfu: float
    memory_gb: float


def make(size: Size, attention: str, device: torch.device) -> Qwen3ForCausalLM:
    """The model in float32, made on the device, with the same weights every time."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=size.vocab, hidden_size=size.hidden, intermediate_size=size.inner, num_hidden_layers=size.layers,
        num_attention_heads=size.heads, num_key_value_heads=size.kv_heads, head_dim=size.head_size,
        max_position_embeddings=32_768, tie_word_embeddings=True,
    )  # fmt: skip
    with device:
        made = Qwen3ForCausalLM(config)
    made.set_attn_implementation(attention)
    return made.float()


def operations(size: Size, data: Sequence[TokenSequence]) -> float:
    """Floating-point operations that one forward and backward pass over the episodes needs."""
    attention = size.hidden * size.head_size * (2 * size.heads + 2 * size.kv_heads)
    layer = attention + 3 * size.hidden * size.inner
    tokens, said = sum(s.tokens for s in data), sum(s.actions for s in data)
    squares = sum(s.tokens**2 for s in data)
    return (
        6.0 * size.layers * layer * tokens
        + 6.0 * size.hidden * size.vocab * said
        + 6.0 * size.layers * size.heads * size.head_size * squares
    )


def peak_of(device: torch.device, precision: str) -> tuple[float, str]:
    """TFLOP/s to compare with, and where the figure is from."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    for known, peak in PEAKS.items():
        if known in name and precision == "bf16":
            return peak, f"{known}, published"
    n, kind = (8192, 20) if device.type == "cuda" else (1024, 3)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.randn(n, n, device=device, dtype=dtype)
    best = math.inf
    for _ in range(kind):
        best = min(best, timed(lambda: a @ a, device))
    return 2 * n**3 / best / 1e12, f"a product of {n} x {n} matrices, measured"


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds until the device has done it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def with_old(data: Sequence[TokenSequence]) -> list[TokenSequence]:
    """The episodes as of the second update of a step: the policy's own old log-probabilities are given."""
    flat = [np.where(s.action, np.float32(-6.0), np.float32(0)) for s in data]
    return [
        TokenSequence(s.ids, s.action, old, s.advantage, s.version, s.turn, old)
        for s, old in zip(data, flat, strict=True)
    ]


class Bench:
    """The ways to make an update of one model on one device."""

    def __init__(self, size: Size, precision: str, budget: int, checkpointing: bool) -> None:
        self.size, self.budget = size, budget
        self.accelerator = Accelerator(mixed_precision=precision, cpu=not torch.cuda.is_available())
        self.device = self.accelerator.device
        settings = LearnerSettings(
            token_budget=budget, mixed_precision=precision, gradient_checkpointing=checkpointing
        )
        self.learner = Learner(make(size, NAME, self.device), settings, self.accelerator)

    def update(self, data: Sequence[TokenSequence], loss_of: LossOf) -> None:
        """One optimiser step of the learner."""
        weights = token_weights(torch.tensor([s.actions for s in data]), "token-mean").tolist()
        self.learner.step(data, weights, loss_of, 1e-6)

    def bare_packed(self, data: Sequence[TokenSequence]) -> None:
        """The same packed tokens through the same model and optimiser, with nothing of the learner around them."""
        model, many = self.learner.model, sum(s.actions for s in data)
        for chosen in cut(data, self.budget):
            batch = make_batch([data[i] for i in chosen], [1 / many] * len(chosen), self.device)
            with self.accelerator.autocast():
                hidden = model.model(
                    input_ids=batch.ids_T[None], position_ids=batch.packed.positions[None], ragged=batch.packed,
                    use_cache=False,
                ).last_hidden_state[0]  # fmt: skip
            logits = model.lm_head(hidden[batch.predict_N]).float()
            (cross_entropy(logits, batch.target_N, reduction="none") * batch.weight_N).sum().backward()
        self._descend(model, self.learner.optimizer)

    def bare_padded(self, data: Sequence[TokenSequence], model: Any, optimizer: Any) -> None:
        """What one writes first: padded rows, the model's own attention, the logits of every position."""
        width = max(s.tokens for s in data)
        rows, many = max(1, self.budget // width), sum(s.actions for s in data)
        for start in range(0, len(data), rows):
            part = data[start : start + rows]
            ids, mask = (torch.zeros(len(part), width, dtype=torch.long) for _ in range(2))
            labels = torch.full((len(part), width), -100)
            for row, s in enumerate(part):
                ids[row, : s.tokens], mask[row, : s.tokens] = torch.from_numpy(s.ids), 1
                labels[row, : s.tokens] = torch.where(
                    torch.from_numpy(s.action), torch.from_numpy(s.ids), -100
                )
            ids, mask, labels = (x.to(self.device) for x in (ids, mask, labels))
            with self.accelerator.autocast():
                logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            flat = logits[:, :-1].float().flatten(0, 1)
            (
                cross_entropy(flat, labels[:, 1:].flatten(), reduction="sum", ignore_index=-100) / many
            ).backward()
        self._descend(model, optimizer)

    def _descend(self, model: Any, optimizer: Any) -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-6
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def speed(
        self, name: str, seconds: float, data: Sequence[TokenSequence], peak: float, memory: float
    ) -> Speed:
        tokens = sum(s.tokens for s in data)
        return Speed(
            name, seconds, tokens / seconds, operations(self.size, data) / seconds / peak / 1e12, memory
        )


def measure(
    size: Size, count: int, repeats: int, precision: str, budget: int, peak: float | None = None,
    times: Sequence[int] = TIMES, checkpointing: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """All figures, as plain data."""
    bench = Bench(size, precision, budget, checkpointing)
    device = bench.device
    whole, source = (peak, "given") if peak else peak_of(device, precision)
    data = episodes(count, size.vocab)
    grpo, sft, old = loss_of_settings(RlSection(correction="none")), negative_logprob, with_old(data)
    plain = make(size, "sdpa", device)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.0, fused=True)
    ways: dict[str, Callable[[], None]] = {
        "GRPO update": lambda: bench.update(old, grpo),
        "SFT update": lambda: bench.update(data, sft),
        "bare packed loop": lambda: bench.bare_packed(data),
        "bare padded loop": lambda: bench.bare_padded(data, plain, optimizer),
    }
    most = dict.fromkeys(ways, 0.0)

    def watched(name: str) -> float:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        seconds = timed(ways[name], device)
        if device.type == "cuda":
            most[name] = max(most[name], torch.cuda.max_memory_allocated(device) / 1e9)
        return seconds

    spent = alternate({name: (lambda name=name: watched(name)) for name in ways}, repeats)
    speeds = [bench.speed(name, spent[name], data, whole, most[name]) for name in ways]
    # Longer and longer episodes, as many micro-batches as the budget asks for.
    grown = {str(n): episodes(4, size.vocab, scale=0.25 * n) for n in times}
    runs = {
        n: (lambda part=part: timed(lambda: bench.update(part, sft), device)) for n, part in grown.items()
    }
    lengths = [(sum(s.tokens for s in grown[n]), found) for n, found in alternate(runs, repeats).items()]
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "precision": precision, "parameters": sum(p.numel() for p in bench.learner.model.parameters()),
        "episodes": count, "tokens": sum(s.tokens for s in data), "said": sum(s.actions for s in data),
        "peak_tflops": whole, "peak_from": source, "speeds": [asdict(speed) for speed in speeds],
        "over_packed": spent["bare packed loop"] / spent["SFT update"],
        "over_padded": spent["bare padded loop"] / spent["SFT update"],
        "lengths": lengths, "slope": slope(lengths) if len(lengths) > 1 else math.nan,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="0.5b")
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", choices=("bf16", "no"), default="bf16")
    parser.add_argument("--budget", type=int, default=16_384, help="tokens of one micro-batch")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing in the learner")
    parser.add_argument("--peak", type=float, help="TFLOP/s that MFU is measured against")
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    found = measure(
        SIZES[a.size], a.episodes, a.repeats, a.precision, a.budget, a.peak, checkpointing=a.checkpointing
    )
    print(
        f"{found['device']}, {found['precision']}, {found['parameters'] / 1e6:.1f}M parameters; {found['episodes']} "
        f"episodes, {found['tokens']} tokens, {found['said']} of them said; peak {found['peak_tflops']:.4g} TFLOP/s "
        f"({found['peak_from']})"
    )
    for s in found["speeds"]:
        memory = f", {s['memory_gb']:.1f} GB" if s["memory_gb"] else ""
        print(f"{s['name']}: {s['tokens_per_second']:.0f} tokens/s, MFU {s['mfu']:.1%}{memory}")
    print(
        f"SFT update over the bare packed loop {found['over_packed']:.2f}, padded {found['over_padded']:.2f}"
    )
    for tokens, seconds in found["lengths"]:
        print(f"{tokens} tokens: {seconds:.3f} s, {tokens / seconds:.0f} tokens/s")
    print(f"longer episodes: seconds grow as tokens^{found['slope']:.2f}")
    if a.json:
        a.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
