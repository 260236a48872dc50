"""One SFT update on the same demonstrations, gymrl's learner and TRL's SFTTrainer with packing: tokens/s.

    python benchmarks/sft.py [--episodes 32] [--vocab 512] [--row 1024] [--repeats 5]

Same weights, optimiser and loss (the mean over said tokens). TRL packs to rows of `--row` tokens (bfd, its default),
one row a micro-batch, through its own data loader, `training_step`, clipping and the optimiser's step; gymrl packs to
`--budget` tokens. Before anything is measured, the two gradients are compared. Needs trl (see peers.py).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from common import alternate  # first: it sets how torch's threads wait
from peers import check_alike, episodes, model, tokenizer, trainer_settings

# isort: split

import torch
from accelerate import Accelerator

from gymrl.rl.batches import TokenSequence
from gymrl.rl.learner import Learner, LearnerSettings
from gymrl.rl.memory import keep_freed_memory
from gymrl.rl.recipes.models import SftSection
from gymrl.rl.trainers.sft import sft_step

Update = Callable[[], None]


def gymrl_update(data: list[TokenSequence], args: argparse.Namespace) -> tuple[Update, torch.nn.Module]:
    learner = Learner(
        model(args.vocab, args.hidden, args.layers), LearnerSettings(args.budget), Accelerator(cpu=True)
    )
    settings = SftSection(batch=len(data), lr=1e-4, schedule={"name": "constant", "warmup": 0})
    shown = [[sequence] for sequence in data]
    return lambda: sft_step(learner, shown, settings, 0, 0) and None, learner.model


def trl_update(data: list[TokenSequence], args: argparse.Namespace) -> tuple[Update, torch.nn.Module]:
    settings = trainer_settings()
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = [
        {"input_ids": s.ids.tolist(), "labels": [int(i) if on else -100 for i, on in zip(s.ids, s.action, strict=True)]}
        for s in data
    ]  # fmt: skip
    config = SFTConfig(**settings, packing=True, max_length=args.row, per_device_train_batch_size=1)
    trainer = SFTTrainer(
        model(args.vocab, args.hidden, args.layers, "sdpa"), config, train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
    )  # fmt: skip
    trainer.create_optimizer()
    trainer.model.train()
    loader = trainer.get_train_dataloader()
    trainer.current_gradient_accumulation_steps = len(loader)
    counted = torch.tensor(sum(s.actions for s in data))

    def update() -> None:
        for batch in loader:
            trainer.training_step(trainer.model, batch, num_items_in_batch=counted)
        trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), 1.0)
        for group in trainer.optimizer.param_groups:
            group["lr"] = 1e-4
        trainer.optimizer.step()
        trainer.optimizer.zero_grad(set_to_none=True)

    return update, trainer.model


SIDES = {"gymrl": gymrl_update, "trl": trl_update}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--episodes", type=int, default=32)
    parser.add_argument("--vocab", type=int, default=512)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--budget", type=int, default=8192)
    parser.add_argument("--row", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    keep_freed_memory()
    data = [s for s in episodes(2 * args.episodes, args.vocab) if s.tokens <= args.row][: args.episodes]
    check_alike({side: make(data[:6], args) for side, make in SIDES.items()})
    updates = {side: make(data, args)[0] for side, make in SIDES.items()}
    tokens, actions = sum(s.tokens for s in data), sum(s.actions for s in data)

    def speed(update: Update) -> Callable[[], float]:
        def run() -> float:
            began = time.perf_counter()
            update()
            return tokens / (time.perf_counter() - began)

        return run

    found = alternate({side: speed(update) for side, update in updates.items()}, args.repeats)
    print(
        f"{len(data)} demonstrations, {tokens} tokens, {actions} said, vocabulary {args.vocab}: gymrl "
        f"{found['gymrl']:.0f} tokens/s, TRL {found['trl']:.0f}; ratio {found['gymrl'] / found['trl']:.2f}"
    )


if __name__ == "__main__":
    main()
