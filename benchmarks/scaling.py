"""What an update costs as the batch or the episodes grow from 1x to 16x, and the plot of it.

    python benchmarks/scaling.py [--plot docs/scaling.svg] [--repeats 3]

Batch: 1 to 16 times as many episodes. Length: the same number of episodes, of 1 to 16 times as many tokens. The
exponent is the slope of log seconds over log tokens: 1 is linear. Attention grows with the square of an episode's
length.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from statistics import fmean

from common import alternate  # first: it sets how torch's threads wait
from peers import episodes, model

# isort: split

import torch
from accelerate import Accelerator

from gymrl.rl.batches import TokenSequence
from gymrl.rl.learner import Learner, LearnerSettings
from gymrl.rl.losses.aggregation import token_weights
from gymrl.rl.memory import keep_freed_memory
from gymrl.rl.objective import loss_of_settings
from gymrl.rl.recipes.models import RlSection

TIMES = (1, 2, 4, 8, 16)
VOCAB = 512


def lengths(times: int) -> list[TokenSequence]:
    """Four episodes, of so many times the tokens."""
    return episodes(4, VOCAB, scale=0.25 * times)


def batches(times: int) -> list[TokenSequence]:
    """So many times as many episodes: the same four, again and again."""
    return episodes(4, VOCAB, scale=0.25) * times


def seconds(learner: Learner, data: list[TokenSequence]) -> float:
    loss_of = loss_of_settings(RlSection(correction="none"))
    weights = token_weights(torch.tensor([s.actions for s in data]), "token-mean").tolist()
    began = time.perf_counter()
    learner.step(data, weights, loss_of, 1e-4)
    return time.perf_counter() - began


def slope(points: list[tuple[int, float]]) -> float:
    """Of the straight line nearest to the points' logarithms."""
    xs, ys = ([math.log(point[i]) for point in points] for i in (0, 1))
    x, y = fmean(xs), fmean(ys)
    top = sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True))
    return top / sum((a - x) ** 2 for a in xs)


def plot(lines: dict[str, list[tuple[int, float]]]) -> str:
    """Seconds over tokens, both logarithmic, with a straight line of slope 1, as an SVG."""
    width, height, left, low = 560, 340, 60, 290
    points = [point for line in lines.values() for point in line]
    x0, x1 = math.log(min(p[0] for p in points)), math.log(max(p[0] for p in points))
    y0, y1 = math.log(min(p[1] for p in points)), math.log(max(p[1] for p in points))

    def at(tokens: float, spent: float) -> tuple[float, float]:
        x = left + (math.log(tokens) - x0) / (x1 - x0) * (width - left - 30)
        return round(x, 1), round(low - (math.log(spent) - y0) / (y1 - y0) * (low - 30), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<path d="M{left} 20V{low}H{width - 20}" fill="none" stroke="#888"/>',
        f'<text x="{width / 2}" y="{height - 12}" text-anchor="middle">tokens of one update</text>',
        f'<text transform="translate(16 {low / 2}) rotate(-90)" text-anchor="middle">seconds</text>',
    ]
    first = next(iter(lines.values()))
    ideal = [at(tokens, first[0][1] * tokens / first[0][0]) for tokens in (first[0][0], first[-1][0])]
    parts.append(
        f'<path d="M{ideal[0][0]} {ideal[0][1]}L{ideal[1][0]} {ideal[1][1]}" stroke="#bbb" stroke-dasharray="4 4"/>'
    )
    for tokens, spent in first:
        x, y = at(tokens, spent)
        parts.append(f'<text x="{x}" y="{low + 16}" text-anchor="middle">{tokens}</text>')
        parts.append(f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{spent:.2g}</text>')
    for number, (name, line) in enumerate(lines.items()):
        colour = ("#1f77b4", "#d95f02")[number]
        path = "L".join(f"{x} {y}" for x, y in (at(*point) for point in line))
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in (at(*p) for p in line)]
        label = f"{name}: tokens^{slope(line):.2f}"
        parts.append(f'<text x="{left + 14}" y="{36 + 18 * number}" fill="{colour}">{label}</text>')
    parts.append(
        f'<text x="{left + 14}" y="{36 + 18 * len(lines)}" fill="#888">dashed: tokens^1</text></svg>'
    )
    return "\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    keep_freed_memory()
    learner = Learner(model(VOCAB, 128, 3), LearnerSettings(), Accelerator(cpu=True))
    sets = {
        f"{name} x{n}": make(n)
        for name, make in (("more episodes", batches), ("longer episodes", lengths))
        for n in TIMES
    }
    runs = {name: (lambda data=data: seconds(learner, data)) for name, data in sets.items()}
    found = alternate(runs, args.repeats)
    lines: dict[str, list[tuple[int, float]]] = {}
    for name, spent in found.items():
        tokens = sum(s.tokens for s in sets[name])
        lines.setdefault(name.rpartition(" ")[0], []).append((tokens, spent))
        print(f"{name}: {tokens} tokens, {spent:.3f} s, {tokens / spent:.0f} tokens/s")
    for name, line in lines.items():
        print(f"{name}: seconds grow as tokens^{slope(line):.2f}")
    if args.plot:
        args.plot.write_text(plot(lines))


if __name__ == "__main__":
    main()
