"""What the metrics mean: titles, units, and which of them are read together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean
from typing import Literal

from gymrl.rl.report.files import Curve

Unit = Literal["", "share", "s", "tokens", "nats"]

GROUPS = (
    "Reward and success",
    "Loss, entropy, KL",
    "Lengths, turns, void",
    "Engine and learner",
    "Time",
    "Other",
)
SMOOTHING = 0.8


@dataclass(frozen=True)
class Metric:
    """How a metric is shown. `always` ones are drawn even where they never change."""

    title: str
    note: str
    unit: Unit
    group: str
    always: bool = False


_REWARD, _LOSS, _LENGTH, _ENGINE, _TIME, _OTHER = GROUPS
_KNOWN = {
    "reward": Metric("Reward", "mean of an episode", "", _REWARD, True),
    "success": Metric("Success", "share of episodes", "share", _REWARD, True),
    "validation": Metric("Validation", "success on held-out tasks", "share", _REWARD),
    "val/success": Metric("Success on val", "held-out tasks, on the way", "share", _REWARD, True),
    "val/reward": Metric("Reward on val", "held-out tasks, on the way", "", _REWARD),
    "accuracy": Metric("Accuracy", "share of preferences that are kept", "share", _REWARD),
    "loss": Metric("Loss", "token mean", "", _LOSS, True),
    "entropy_sampled": Metric("Entropy, all sampled tokens", "mean of -logprob", "nats", _LOSS),
    "entropy": Metric("Entropy, trained tokens", "mean of a token", "nats", _LOSS),
    "margin": Metric("Margin", "success over failure, against the reference", "nats", _LOSS),
    "value_loss": Metric("Critic's loss", "mean squared error, halved", "", _LOSS),
    "kl": Metric("KL", "to the reference, mean of a token", "nats", _LOSS),
    "approx_kl": Metric("KL, of the step", "to the policy before it, mean of a token", "nats", _LOSS),
    "grad_norm": Metric("Gradient norm", "before clipping", "", _LOSS),
    "clip_share": Metric("Clipped", "share of tokens", "share", _LOSS),
    "ratio_max": Metric("Largest ratio", "new over old probability", "", _LOSS),
    "lr": Metric("Learning rate", "", "", _LOSS),
    "turn_reward": Metric("Reward of a turn", "mean", "", _REWARD),
    "turns": Metric("Turns", "mean of an episode", "", _LENGTH),
    "tokens": Metric("Tokens", "of the step", "tokens", _LENGTH),
    "sampled_tokens": Metric("Sampled tokens", "of the step", "tokens", _LENGTH),
    "actions": Metric("Trained tokens", "of the step", "tokens", _LENGTH),
    "val/turns": Metric("Turns on val", "mean of an episode", "", _LENGTH),
    "val/void_turns": Metric("Void turns on val", "share of turns", "share", _LENGTH),
    "void_turns": Metric("Void turns", "share of turns", "share", _LENGTH),
    "void_episodes": Metric("Void episodes", "share of episodes", "share", _LENGTH),
    "trained_episodes": Metric("Trained episodes", "share of episodes", "share", _LENGTH),
    "flat_groups": Metric("Flat groups", "share without spread in reward", "share", _LENGTH),
    "invalid": Metric("Invalid episodes", "of the step", "", _LENGTH),
    "dropped_groups": Metric("Dropped groups", "of the step", "", _LENGTH),
    "mismatch_mean": Metric("Mismatch, mean", "|engine - learner| of a token", "nats", _ENGINE),
    "mismatch_max": Metric("Mismatch, largest", "|engine - learner| of a token", "nats", _ENGINE),
    "importance_truncated": Metric("Importance weight at its cap", "share of tokens", "share", _ENGINE),
    "time/step": Metric("Whole step", "wall-clock", "s", _TIME, True),
    "time/rollout": Metric("Rollout", "wall-clock", "s", _TIME),
    "time/generate": Metric("Generate", "wall-clock", "s", _TIME),
    "time/learn": Metric("Learn", "wall-clock", "s", _TIME),
    "time/wait": Metric("Wait for rollouts", "while nothing is learnt, wall-clock", "s", _TIME),
    "time/sync": Metric("Weight sync", "wall-clock", "s", _TIME),
    "time/tokens_per_second": Metric("Sampled tokens/s", "over the whole step", "", _TIME),
    "time/trained_per_second": Metric("Trained tokens/s", "while it learns", "", _TIME),
    "time/environment": Metric("Environment", "wall-clock while the engine idles", "s", _TIME),
}
_ORDER = {key: place for place, key in enumerate(_KNOWN)}


def describe(curve: Curve) -> Metric:
    """How to show a metric, by its name; shares outside [0, 1] are shown as plain numbers."""
    found = _KNOWN.get(curve.key)
    if found is None:
        key = curve.key.lower()
        if key.startswith("time/"):
            return Metric(curve.key.partition("/")[2], "wall-clock", "s", _TIME)
        if key.startswith("grad_norm/"):
            return Metric(
                f"Gradient norm, {key.partition('/')[2]} tokens", "alone, before clipping", "", _LOSS
            )
        group = _OTHER
        if "reward" in key or "success" in key:
            group = _REWARD
        elif "kl" in key.replace("/", "_").split("_") or "loss" in key or "entropy" in key:
            group = _LOSS
        elif "mismatch" in key or "importance" in key:
            group = _ENGINE
        elif any(word in key for word in ("turn", "token", "void", "length")):
            group = _LENGTH
        return Metric(curve.key, "", "", group)
    if found.unit == "share" and any(value < 0 or value > 1 for value in curve.values):
        return Metric(found.title, "", "", found.group, found.always)
    return found


def rank(curve: Curve) -> tuple[int, str]:
    """Order within a group: the known ones first, then by name."""
    return _ORDER.get(curve.key, len(_ORDER)), curve.key


@dataclass(frozen=True)
class Points:
    """A curve thinned out: every point is the mean of `stride` or fewer steps `first` to `last`, with their least
    and largest value. NaN where no value was finite. `ends` are the first and the last finite value as they were
    logged: a mean of several steps is not what the run began or ended with."""

    first: list[float]
    last: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]
    stride: int
    lost: int
    """How many values were not finite."""
    ends: tuple[float, float]

    def __len__(self) -> int:
        return len(self.first)


def thin(curve: Curve, most: int) -> Points:
    """At most `most` points of a curve."""
    stride = max(1, -(-len(curve.steps) // most))
    columns: list[tuple[float, float, float, float, float]] = []
    for start in range(0, len(curve.steps), stride):
        part = curve.values[start : start + stride]
        finite = [value for value in part if not math.isnan(value)]
        steps = curve.steps[start : start + stride]
        if finite:
            columns.append((steps[0], steps[-1], fmean(finite), min(finite), max(finite)))
        else:
            columns.append((steps[0], steps[-1], math.nan, math.nan, math.nan))
    first, last, middle, low, high = (list(column) for column in zip(*columns, strict=True))
    known = [value for value in curve.values if not math.isnan(value)] or [math.nan]
    lost = sum(math.isnan(value) for value in curve.values)
    return Points(first, last, middle, low, high, stride, lost, (known[0], known[-1]))


def smooth(values: Sequence[float], weight: float) -> list[float]:
    """Each value averaged with its neighbours on both sides, those n away counting weight**n, so that a trend is not
    shown late. NaN stays NaN and is not averaged."""
    before = _decayed(values, weight)
    after = reversed(_decayed(list(reversed(values)), weight))
    return [
        math.nan if math.isnan(value) else (a + b - value) / (m + n - 1)
        for value, (a, m), (b, n) in zip(values, before, after, strict=True)
    ]


def _decayed(values: Sequence[float], weight: float) -> list[tuple[float, float]]:
    """At every place the decaying sum of the values so far, and of their weights."""
    found, total, share = [], 0.0, 0.0
    for value in values:
        if not math.isnan(value):
            total, share = weight * total + value, weight * share + 1
        found.append((total, share))
    return found


@dataclass(frozen=True)
class Shares:
    """Parts of the step's wall-clock: `seconds[p][i]` of part p (`names[p]`) at point i; `now[p]` at the last step."""

    first: list[float]
    last: list[float]
    names: list[str]
    seconds: list[list[float]]
    now: list[float]


def time_shares(curves: Sequence[Curve], most: int) -> Shares | None:
    """What a stage's steps spent their time on; None where there is nothing to compare.

    `time/environment` is the rollout's wall-clock in which the engine had nothing to do: where that of the whole
    rollout is known it is no part of the sum. What the parts leave of `time/step` is `rest`.
    """
    timed = (c for c in curves if c.key.startswith("time/") and not c.key.endswith("_per_second"))
    found = {c.key.partition("/")[2]: c for c in timed}
    whole = found.pop("step", None)
    if "rollout" in found:
        found.pop("environment", None)
    if "wait" in found:  # the rollouts ran beside the learning of the step before (`rl.overlap`)
        for beside in ("rollout", "generate", "environment"):
            found.pop(beside, None)
    order = ("rollout", "generate", "environment", "learn", "wait", "sync")
    names = sorted(found, key=lambda n: (order.index(n) if n in order else len(order), n))[:7]
    if len(names) < 2:
        return None
    table = [dict(zip(found[n].steps, found[n].values, strict=True)) for n in names]
    total = dict(zip(whole.steps, whole.values, strict=True)) if whole else {}
    rows: list[tuple[float, list[float]]] = []
    for step in sorted(set().union(*table)):
        parts = [max(0.0, _finite(column.get(step))) for column in table]
        rest = max(0.0, _finite(total.get(step)) - sum(parts))
        if sum(parts) + rest > 0:
            rows.append((step, [*parts, rest]))
    if len(rows) < 2:
        return None
    stride = max(1, -(-len(rows) // most))
    chunks = [
        [row for _, row in chunk] for _, chunk in groupby(enumerate(rows), lambda pair: pair[0] // stride)
    ]
    names = [*names, "rest"]
    seconds = [[fmean([row[1][p] for row in chunk]) for chunk in chunks] for p in range(len(names))]
    if max(seconds[-1]) == 0:
        names, seconds = names[:-1], seconds[:-1]
    now = rows[-1][1][: len(names)]
    return Shares([chunk[0][0] for chunk in chunks], [chunk[-1][0] for chunk in chunks], names, seconds, now)


def _finite(value: float | None) -> float:
    return 0.0 if value is None or math.isnan(value) else value
