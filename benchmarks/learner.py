"""Trained tokens/s of the learner over bare torch loops on the same model, sequences and optimiser.

    python benchmarks/learner.py [--sequences 64] [--repeats 7]

`bare packed` runs the learner's own kernel in a plain loop: what gymrl adds around it. `bare padded` is what one writes
first: a padded batch, the model's own attention, cross entropy.
"""

from __future__ import annotations

import argparse
import time

from common import NAME, alternate, quickstart  # isort: skip  # before torch: it sets how OpenMP waits

import numpy as np
import torch
from accelerate import Accelerator
from torch.nn.functional import cross_entropy

from gymrl.rl.batches import TokenSequence, cut, make_batch
from gymrl.rl.learner import Learner, LearnerSettings
from gymrl.rl.losses.aggregation import token_weights
from gymrl.rl.recipes.models import TinySection
from gymrl.rl.tiny import make_model
from gymrl.rl.trainers.online import _loss_of

VOCAB = 334


def sequences(count: int) -> list[TokenSequence]:
    """Two-turn episodes of unequal length, about two thirds of the tokens shown and one third said."""
    rng = np.random.default_rng(0)
    found = []
    for length in rng.integers(60, 160, count):
        action = np.zeros(length, dtype=bool)
        action[length // 3 : length // 2] = True
        action[-length // 6 :] = True
        ids = rng.integers(0, VOCAB, length)
        zeros = np.zeros(length, dtype=np.float32)
        advantage = np.where(action, rng.choice([-1.0, 1.0]), 0).astype(np.float32)
        found.append(TokenSequence(ids, action, zeros - 5.8, advantage, ids * 0, ids * 0))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    recipe = quickstart()
    data = sequences(args.sequences)
    tokens = sum(s.tokens for s in data)
    weights = token_weights(torch.tensor([s.actions for s in data]), "token-mean").tolist()
    m, budget = recipe.model.tiny or TinySection(), recipe.learner.token_budget

    def model(attention: str):
        made = make_model(VOCAB, m.hidden, m.layers, m.heads, m.kv_heads)
        made.set_attn_implementation(attention)
        return made

    learner = Learner(model(NAME), LearnerSettings(budget), Accelerator(cpu=True))
    loss_of = _loss_of(recipe.rl)

    def ours() -> float:
        began = time.perf_counter()
        learner.step(data, weights, loss_of, 1e-4)
        return tokens / (time.perf_counter() - began)

    packed_model = model(NAME)
    packed_optimizer = torch.optim.AdamW(packed_model.parameters(), lr=1e-4, fused=True)

    def bare_packed() -> float:
        began = time.perf_counter()
        for chosen in cut(data, budget):
            batch = make_batch([data[i] for i in chosen], [weights[i] for i in chosen])
            logits = packed_model(
                input_ids=batch.ids_T[None], position_ids=batch.packed.positions[None], ragged=batch.packed,
                use_cache=False, logits_to_keep=batch.predict_N,
            ).logits[0]  # fmt: skip
            (cross_entropy(logits, batch.target_N, reduction="none") * batch.weight_N).sum().backward()
        torch.nn.utils.clip_grad_norm_(packed_model.parameters(), 1.0)
        packed_optimizer.step()
        packed_optimizer.zero_grad()
        return tokens / (time.perf_counter() - began)

    padded_model = model("sdpa")
    padded_optimizer = torch.optim.AdamW(padded_model.parameters(), lr=1e-4, fused=True)

    def bare_padded() -> float:
        began = time.perf_counter()
        order = list(range(len(data)))
        width = max(s.tokens for s in data)
        rows = max(1, budget // width)
        for start in range(0, len(order), rows):
            part = [data[i] for i in order[start : start + rows]]
            ids = torch.zeros(len(part), width, dtype=torch.long)
            mask = torch.zeros(len(part), width, dtype=torch.long)
            labels = torch.full((len(part), width), -100)
            for row, s in enumerate(part):
                ids[row, : s.tokens] = torch.from_numpy(s.ids)
                mask[row, : s.tokens] = 1
                labels[row, : s.tokens] = torch.where(
                    torch.from_numpy(s.action), torch.from_numpy(s.ids), -100
                )
            logits = padded_model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            loss = cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum", ignore_index=-100
            )
            (loss * weights[0]).backward()
        torch.nn.utils.clip_grad_norm_(padded_model.parameters(), 1.0)
        padded_optimizer.step()
        padded_optimizer.zero_grad()
        return tokens / (time.perf_counter() - began)

    speed = alternate({"ours": ours, "packed": bare_packed, "padded": bare_padded}, args.repeats)
    print(
        f"{args.sequences} sequences, {tokens} tokens: learner {speed['ours']:.0f} tokens/s; "
        f"{speed['ours'] / speed['packed']:.2f} of the bare packed loop, "
        f"{speed['ours'] / speed['padded']:.2f} of the bare padded loop"
    )


if __name__ == "__main__":
    main()
