"""Which episodes count, which are trained on, and which of their turns: invalid, void and truncated ones.

A void turn holds neither a complete tool call, nor a complete code block, nor anything the environment
recognises (SimpleTIR, Xue et al. 2025); the environment's wrapper says so in `Turn.void`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gymrl.agents.records import Episode
from gymrl.rl.choices import VoidMode
from gymrl.rl.groups import Group


@dataclass(frozen=True)
class FilterSettings:
    """`void`: what is done about void turns. `keep`: nothing. `end_episode`: the rollout ends there (the episode is
    then kept). `mask_turn`: void turns carry no loss. `mask_episode`: an episode with a void turn carries no loss.
    `drop_episode`: it also leaves the group's baseline. `void_in_baseline` overrides the latter: whether such
    episodes' rewards count in their group's statistics. `mask_truncated`: truncated episodes carry no loss.
    """

    void: VoidMode = "drop_episode"
    void_in_baseline: bool | None = None
    mask_truncated: bool = False


@dataclass(frozen=True)
class Verdict:
    """What is left of an episode: does its reward count in the baseline, which turns carry loss."""

    counted: bool
    trained: tuple[bool, ...]


def judge(episode: Episode, settings: FilterSettings) -> Verdict:
    """Apply the filters to one episode."""
    turns = len(episode.turns)
    if not episode.valid:
        return Verdict(False, (False,) * turns)
    trained = [True] * turns
    counted = True
    if episode.void and settings.void in ("mask_turn", "mask_episode", "drop_episode"):
        whole = settings.void != "mask_turn"
        trained = [not whole and not turn.void for turn in episode.turns]
        counted = (
            settings.void != "drop_episode"
            if settings.void_in_baseline is None
            else settings.void_in_baseline
        )
    if settings.mask_truncated and episode.ending == "truncated":
        trained = [False] * turns
    return Verdict(counted, tuple(trained))


def reward_table(groups: list[Group], verdicts: list[list[Verdict]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rewards [P, G] (float64, 0 where there is none) and which of them count [P, G] (bool), P groups padded to
    G episodes."""
    width = max((len(group.episodes) for group in groups), default=0)
    rewards_PG = torch.zeros(len(groups), width, dtype=torch.float64)
    counted_PG = torch.zeros(len(groups), width, dtype=torch.bool)
    for p, (group, found) in enumerate(zip(groups, verdicts, strict=True)):
        for g, (episode, verdict) in enumerate(zip(group.episodes, found, strict=True)):
            if episode.valid:
                rewards_PG[p, g] = episode.reward
                counted_PG[p, g] = verdict.counted
    return rewards_PG, counted_PG
