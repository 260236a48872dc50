"""One GRPO update on the same given rollouts, gymrl's learner and TRL's GRPOTrainer: tokens/s and peak memory.

    python benchmarks/grpo.py [--episodes 24] [--vocab 512] [--repeats 5]
    python benchmarks/grpo.py --memory --vocab 32768

Same weights, optimiser, loss (token-mean over the batch, clip 0.2 / 0.28) and room for a micro-batch: `--budget`
tokens, which TRL fills with padded rows. Before anything is measured, the two gradients are compared. TRL's part is its
`compute_loss`, the backward pass, clipping and the optimiser's step; generation and rewards are left out on both sides.
Tokens are those of the episodes, padding not counted. The memory is the highest that a process of its own takes in an
update, less what it had before it. Needs trl (see peers.py).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable

from common import alternate  # first: it sets how torch's threads wait
from peers import check_alike, episodes, forget_peak, memory, model, tokenizer, trainer_settings

# isort: split

import torch
from accelerate import Accelerator

from gymrl.rl.batches import TokenSequence
from gymrl.rl.learner import Learner, LearnerSettings
from gymrl.rl.losses.aggregation import token_weights
from gymrl.rl.memory import keep_freed_memory
from gymrl.rl.objective import loss_of_settings
from gymrl.rl.recipes.models import RlSection

Update = Callable[[], None]


def gymrl_update(data: list[TokenSequence], args: argparse.Namespace) -> tuple[Update, torch.nn.Module]:
    learner = Learner(
        model(args.vocab, args.hidden, args.layers), LearnerSettings(args.budget), Accelerator(cpu=True)
    )
    loss_of = loss_of_settings(RlSection(correction="none", loss={"name": "clip", "dual": 0.0}))

    def update() -> None:
        weights = token_weights(torch.tensor([s.actions for s in data]), "token-mean").tolist()
        learner.step(data, weights, loss_of, 1e-4)

    return update, learner.model


def trl_update(data: list[TokenSequence], args: argparse.Namespace) -> tuple[Update, torch.nn.Module]:
    settings = trainer_settings()
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer
    from trl.trainer.utils import pad

    starts = [int(s.action.argmax()) for s in data]
    prompts = [torch.from_numpy(s.ids[:n]) for s, n in zip(data, starts, strict=True)]
    said = [torch.from_numpy(s.ids[n:]) for s, n in zip(data, starts, strict=True)]
    kept = [torch.from_numpy(s.action[n:]).long() for s, n in zip(data, starts, strict=True)]
    width = max(map(len, prompts)) + max(map(len, said))
    rows = max(1, args.budget // width)
    parts = [slice(start, start + rows) for start in range(0, len(data), rows)]
    config = GRPOConfig(
        **settings, per_device_train_batch_size=2, gradient_accumulation_steps=len(parts), num_generations=2,
        epsilon=0.2, epsilon_high=0.28, beta=0.0, loss_type="dapo", temperature=1.0,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model(args.vocab, args.hidden, args.layers, "sdpa"), lambda completions, **_: [0.0] * len(completions),
        config, Dataset.from_list([{"prompt": "x"}] * 8), processing_class=tokenizer(),
    )  # fmt: skip
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = len(parts)
    trainer.model.train()

    def update() -> None:
        # As the trainer pads what it generated: prompts on the left, the rest on the right, the whole batch alike.
        batch = {
            "prompt_ids": pad(prompts, 0, "left"),
            "prompt_mask": pad([torch.ones_like(ids) for ids in prompts], 0, "left"),
            "completion_ids": pad(said, 0, "right"),
            "completion_mask": pad([torch.ones_like(ids) for ids in said], 0, "right"),
            "tool_mask": pad(kept, 1, "right"),
            "advantages": torch.tensor([float(s.advantage[s.action][0]) for s in data]),
        }
        counted = (batch["completion_mask"] * batch["tool_mask"]).sum()
        for part in parts:
            micro = {name: value[part] for name, value in batch.items()} | {"num_items_in_batch": counted}
            trainer.accelerator.backward(trainer.compute_loss(trainer.model, micro))
        trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), 1.0)
        for group in trainer.optimizer.param_groups:
            group["lr"] = 1e-4
        trainer.optimizer.step()
        trainer.optimizer.zero_grad(set_to_none=True)

    return update, trainer.model


SIDES = {"gymrl": gymrl_update, "trl": trl_update}


def peak(side: str, args: argparse.Namespace) -> None:
    keep_freed_memory()
    update, _ = SIDES[side](episodes(args.episodes, args.vocab), args)
    before = memory("VmRSS")
    forget_peak()
    update()
    print(f"PEAK {memory('VmHWM') - before:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--episodes", type=int, default=24)
    parser.add_argument("--vocab", type=int, default=512)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--budget", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        return peak(args.side, args)
    data = episodes(args.episodes, args.vocab)
    tokens, actions = sum(s.tokens for s in data), sum(s.actions for s in data)
    what = f"{len(data)} episodes, {tokens} tokens, {actions} sampled, vocabulary {args.vocab}"
    if args.memory:
        found = {}
        for side in SIDES:
            own = [sys.executable, __file__, *sys.argv[1:], "--side", side]
            done = subprocess.run(own, capture_output=True, text=True, check=True)
            found[side] = float(done.stdout.rpartition("PEAK ")[2])
        shares = ", ".join(f"{side} {mib:.0f} MiB" for side, mib in found.items())
        print(f"{what}: peak memory of an update {shares}; ratio {found['gymrl'] / found['trl']:.2f}")
        return None
    keep_freed_memory()
    check_alike({side: make(episodes(6, args.vocab, 1), args) for side, make in SIDES.items()})
    updates = {side: make(data, args)[0] for side, make in SIDES.items()}

    def speed(update: Update) -> Callable[[], float]:
        def run() -> float:
            began = time.perf_counter()
            update()
            return tokens / (time.perf_counter() - began)

        return run

    found = alternate({side: speed(update) for side, update in updates.items()}, args.repeats)
    print(
        f"{what}: gymrl {found['gymrl']:.0f} tokens/s, TRL {found['trl']:.0f}; "
        f"ratio {found['gymrl'] / found['trl']:.2f}"
    )
    return None


if __name__ == "__main__":
    main()
