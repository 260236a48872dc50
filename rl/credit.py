"""Credit: from groups of episodes to what every sampled token is worth.

Shapes: P groups of at most G episodes of at most K turns; B = P * G episodes of at most T sampled tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch

from gymrl.agents.records import Episode
from gymrl.envs.records import message_to_json, stable_hash
from gymrl.rl.algorithms import Algorithm, AlgorithmFault
from gymrl.rl.groups import Group

Credit = Literal["episode", "turn"]
"""Of methods that compare a group's rewards: compare the episodes' sums, or the rewards-to-go of all their turns."""

GROUP_INPUTS = frozenset({"rewards_PG", "counted_PG"})
TOKEN_INPUTS = frozenset({"token_rewards_BT", "sampled_BT", "values_BT"})


@dataclass(frozen=True)
class Judged:
    """What advantages are computed from. `turn_rewards[p][g]` has the (shaped) reward of every turn, `token_costs` what
    is taken off at every sampled token (KL in the reward), `values` the critic's value of every sampled token and
    after the last one."""

    groups: Sequence[Group]
    counted_PG: torch.Tensor
    turn_rewards: list[list[np.ndarray]]
    greedy_P: torch.Tensor | None = None
    token_costs: list[list[np.ndarray]] | None = None
    values: list[list[np.ndarray]] | None = None

    def episode(self, p: int, g: int) -> Episode:
        return self.groups[p].episodes[g]

    def places(self) -> list[tuple[int, int]]:
        return [(p, g) for p, group in enumerate(self.groups) for g in range(len(group.episodes))]


Worth = dict[tuple[int, int], float | list[Any]]
"""Of episode (p, g): one advantage, or one for every turn, or arrays over the sampled tokens of every turn."""


def assign(
    judged: Judged, algorithm: Algorithm, settings: dict[str, Any], credit: Credit = "episode"
) -> tuple[Worth, dict[tuple[int, int], list[np.ndarray]] | None]:
    """Advantages of every episode, and the critic's targets where there is one (NaN: none)."""
    if credit == "turn":
        table = turn_tables(judged)
        togo_PGK = table["turn_rewards_PGK"].flip(-1).cumsum(-1).flip(-1)
        counted_PGK = judged.counted_PG[..., None] & table["turns_PGK"]
        flat = {"rewards_PG": togo_PGK.flatten(1), "counted_PG": counted_PGK.flatten(1)}
        found = algorithm.bind(settings)(flat).view(togo_PGK.shape)
        return {(p, g): found[p, g].tolist() for p, g in judged.places()}, None
    tensors: dict[str, Any] = {"counted_PG": judged.counted_PG, "greedy_P": judged.greedy_P}
    if "rewards_PG" in algorithm.inputs:
        tensors["rewards_PG"] = reward_sums(judged)
    if {"turn_rewards_PGK", "turns_PGK", "states_PGK"} & set(algorithm.inputs):
        tensors |= turn_tables(judged)
    if TOKEN_INPUTS & set(algorithm.inputs):
        tensors |= token_tables(judged)
    result = algorithm.bind(settings)(tensors)
    advantages, returns = result if isinstance(result, tuple) else (result, None)
    _check(algorithm, advantages, tensors)
    if "sampled_BT" in tensors and advantages.shape == tensors["sampled_BT"].shape:
        worth: Worth = {place: _per_turn(judged, place, advantages) for place in judged.places()}
        if returns is None:
            return worth, None
        return worth, {place: _per_turn(judged, place, returns) for place in judged.places()}
    if tuple(advantages.shape) == tuple(judged.counted_PG.shape):
        return {(p, g): float(advantages[p, g]) for p, g in judged.places()}, None
    if advantages.dim() == 3:
        return {(p, g): advantages[p, g].tolist() for p, g in judged.places()}, None
    raise _shapeless(algorithm, advantages)


def _shapeless(algorithm: Algorithm, advantages: Any) -> AlgorithmFault:
    form = f"the shape {list(advantages.shape)}" if isinstance(advantages, torch.Tensor) else type(advantages).__name__
    return AlgorithmFault(
        f"advantage {algorithm.name!r} ({algorithm.file}) returned {form}: return [P, G], [P, G, K] or [B, T]"
    )


def _check(algorithm: Algorithm, advantages: Any, tensors: dict[str, Any]) -> None:
    """Raise AlgorithmFault for what is no tensor, and for numbers that are not finite though those it had were."""
    if not isinstance(advantages, torch.Tensor):
        raise _shapeless(algorithm, advantages)
    had = [tensors[name] for name in algorithm.inputs if name != "greedy_P"]
    counted_PG = tensors["counted_PG"]
    if advantages.shape[: counted_PG.dim()] == counted_PG.shape:
        used = advantages[counted_PG]
    elif "sampled_BT" in tensors and advantages.shape == tensors["sampled_BT"].shape:
        used = advantages[tensors["sampled_BT"] & counted_PG.flatten()[:, None]]
    else:
        return
    if not bool(torch.isfinite(used).all()) and all(bool(torch.isfinite(t).all()) for t in had):
        raise AlgorithmFault(
            f"advantage {algorithm.name!r} ({algorithm.file}) returned numbers that are not finite, of finite ones: "
            "look for divisions by zero and groups without any episode that counts"
        )


def reward_sums(judged: Judged) -> torch.Tensor:
    """Rewards of episodes, [P, G] float64, 0 where there is none; token costs taken off."""
    rewards_PG = torch.zeros(judged.counted_PG.shape, dtype=torch.float64)
    for p, g in judged.places():
        # A plain sum in the turns' order, as Episode.reward is.
        total = float(sum(judged.turn_rewards[p][g].tolist()))
        if judged.token_costs is not None:
            total -= float(judged.token_costs[p][g].sum())
        rewards_PG[p, g] = total
    return rewards_PG


def turn_tables(judged: Judged) -> dict[str, torch.Tensor]:
    """Rewards of turns [P, G, K] float64, which of them there are [P, G, K] bool, and the states they answered
    [P, G, K] int64: equal within a group where the observation is identical."""
    p_, g_ = judged.counted_PG.shape
    k_ = max((len(row) for rows in judged.turn_rewards for row in rows), default=0)
    rewards = torch.zeros(p_, g_, k_, dtype=torch.float64)
    there = torch.zeros(p_, g_, k_, dtype=torch.bool)
    states = torch.full((p_, g_, k_), -1, dtype=torch.int64)
    for p, g in judged.places():
        seen = judged.turn_rewards[p][g]
        row = torch.from_numpy(seen.copy())
        episode = judged.episode(p, g)
        if judged.token_costs is not None:
            ends = np.cumsum([len(turn.completion_ids) for turn in episode.turns])
            row -= torch.tensor([part.sum() for part in np.split(judged.token_costs[p][g], ends[:-1])])
        rewards[p, g, : len(seen)] = row
        there[p, g, : len(seen)] = True
        for k, turn in enumerate(episode.turns[: len(seen)]):
            states[p, g, k] = stable_hash([message_to_json(message) for message in turn.messages])
    return {"turn_rewards_PGK": rewards, "turns_PGK": there, "states_PGK": states}


def token_tables(judged: Judged) -> dict[str, torch.Tensor]:
    """Of the sampled tokens of every episode, observations left out: rewards [B, T] float64 (a turn's sits on its last
    token), which there are [B, T], their turns [B, T] int64, values [B, T] float64 and [B] after the last."""
    p_, g_ = judged.counted_PG.shape
    t_ = max((judged.episode(p, g).tokens for p, g in judged.places()), default=0)
    rewards = torch.zeros(p_ * g_, t_, dtype=torch.float64)
    sampled = torch.zeros(p_ * g_, t_, dtype=torch.bool)
    turns = torch.zeros(p_ * g_, t_, dtype=torch.int64)
    values = torch.zeros(p_ * g_, t_, dtype=torch.float64)
    bootstrap = torch.zeros(p_ * g_, dtype=torch.float64)
    for p, g in judged.places():
        b, at = p * g_ + g, 0
        episode = judged.episode(p, g)
        for k, (turn, reward) in enumerate(zip(episode.turns, judged.turn_rewards[p][g], strict=False)):
            many = len(turn.completion_ids)
            turns[b, at:] = k  # padding too: indices never fall
            sampled[b, at : at + many] = True
            at += many
            if at:
                rewards[b, at - 1] += reward
        if judged.token_costs is not None:
            rewards[b, :at] -= torch.from_numpy(judged.token_costs[p][g][:at])
        if judged.values is not None and at:
            values[b, :at] = torch.from_numpy(judged.values[p][g][:at])
            if episode.ending == "truncated":
                bootstrap[b] = float(judged.values[p][g][at])
    return {
        "token_rewards_BT": rewards, "sampled_BT": sampled, "turn_BT": turns, "values_BT": values,
        "bootstrap_B": bootstrap, "counted_B": judged.counted_PG.flatten(),
    }  # fmt: skip


def _per_turn(judged: Judged, place: tuple[int, int], values_BT: torch.Tensor) -> list[np.ndarray]:
    """The row of an episode, cut into its turns."""
    p, g = place
    row = values_BT[p * judged.counted_PG.shape[1] + g].numpy()
    ends = np.cumsum([0, *(len(turn.completion_ids) for turn in judged.episode(p, g).turns)])
    return [row[a:b] for a, b in pairwise(ends)]
