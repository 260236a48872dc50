"""Online policy optimisation: rollouts of groups, filters, advantages, clipped updates, new weights for the engine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from gymrl.agents.engines.base import EngineFault
from gymrl.agents.evaluation import summarise
from gymrl.agents.players import Job, ModelAgent
from gymrl.agents.records import Episode
from gymrl.agents.rollout import RolloutSettings, rollout
from gymrl.envs.records import stable_hash
from gymrl.envs.workers import EnvPool
from gymrl.rl.advantages import ADVANTAGES
from gymrl.rl.batches import Batch, TokenSequence, sequences_of
from gymrl.rl.filters import FilterSettings, judge, reward_table
from gymrl.rl.groups import Group, group_by_task
from gymrl.rl.learner import Learner, schedule
from gymrl.rl.losses.aggregation import token_weights
from gymrl.rl.losses.clip import clipped_loss
from gymrl.rl.losses.mismatch import truncated_importance
from gymrl.rl.recipes.models import RlSection


@dataclass(frozen=True)
class OnlineStep:
    """What one step came to."""

    episodes: list[Episode]
    metrics: dict[str, Any]


def jobs_of_step(pool: EnvPool, settings: RlSection, step: int, seed: int, first: int) -> list[Job]:
    """The rollouts of a step, a pure function of its arguments: the next `tasks` training tasks from index `first`
    on (around again at the end of the split), each `group` times."""
    size = pool.template.world.sizes["train"]
    jobs = []
    for number in range(settings.tasks):
        task = pool.task("train", (first + step * settings.tasks + number) % size)
        for sample in range(settings.group):
            jobs.append(Job(task, number, sample, stable_hash("rollout", seed, step, number, sample)))
    return jobs


async def online_step(
    learner: Learner, agent: ModelAgent, pool: EnvPool, rollouts: RolloutSettings, settings: RlSection,
    temperature: float, step: int, seed: int, first: int,
) -> OnlineStep:  # fmt: skip
    """Play, learn, and serve the new weights. Raises EngineFault if the engine failed (its episodes are lost, the
    weights are as before)."""
    began, busy = time.perf_counter(), agent.engine.busy_seconds
    episodes = await rollout(jobs_of_step(pool, settings, step, seed, first), agent, pool, rollouts)
    played = time.perf_counter()
    check_engine(episodes)
    metrics = learn(learner, group_by_task(episodes), settings, temperature, step)
    learned = time.perf_counter()
    await agent.engine.load_weights(learner.weights(), learner.updates)
    synced = time.perf_counter()
    generating = agent.engine.busy_seconds - busy
    metrics |= {
        "time/generate": generating,
        "time/environment": played - began - generating,
        "time/learn": learned - played,
        "time/sync": synced - learned,
        "time/step": synced - began,
    }
    return OnlineStep(episodes, metrics)


def check_engine(episodes: Sequence[Episode]) -> None:
    """Raise EngineFault if the engine failed any of the episodes: a run cannot go on without it."""
    for episode in episodes:
        if episode.reason.startswith("engine: "):
            raise EngineFault(episode.reason.removeprefix("engine: "))


def learn(
    learner: Learner, groups: list[Group], settings: RlSection, temperature: float, step: int
) -> dict[str, Any]:
    """Update the policy on groups of episodes; returns the step's metrics."""
    filters = FilterSettings(settings.void, settings.void_in_baseline, settings.mask_truncated)
    verdicts = [[judge(episode, filters) for episode in group.episodes] for group in groups]
    rewards_PG, counted_PG = reward_table(groups, verdicts)
    advantages_PG = ADVANTAGES[settings.advantage](rewards_PG, counted_PG)
    sequences: list[TokenSequence] = []
    for p, group in enumerate(groups):
        for g, (episode, verdict) in enumerate(zip(group.episodes, verdicts[p], strict=True)):
            if any(verdict.trained):
                sequences += sequences_of(episode, verdict.trained, float(advantages_PG[p, g]))
    lr = schedule(step, settings.lr, settings.warmup, settings.steps, settings.decay)
    metrics = _episode_metrics(groups, verdicts, rewards_PG, counted_PG)
    return metrics | {"lr": lr} | _update(learner, sequences, settings, temperature, lr, step)


def _update(
    learner: Learner,
    sequences: list[TokenSequence],
    settings: RlSection,
    temperature: float,
    lr: float,
    step: int,
) -> dict[str, Any]:
    """The optimiser steps on one step's sequences: `updates` disjoint parts of them, one after the other."""
    parts = [sequences[i :: settings.updates] for i in range(settings.updates)]
    # The policy before the update: with one update it is the policy that is being differentiated.
    old = None if settings.updates == 1 else [learner.score(part, temperature) for part in parts]
    sums: dict[str, float] = {}
    totals = {"loss": 0.0, "grad_norm": 0.0, "tokens": 0, "actions": 0, "skipped": 0}
    for number, part in enumerate(parts):
        counts = torch.tensor([s.actions for s in part], dtype=torch.long)
        weights_S = token_weights(counts, settings.aggregation, settings.aggregation_length).tolist()
        # Tokens without advantage have no gradient: they count in the weights, but need no forward pass.
        live = [i for i, s in enumerate(part) if s.actions and s.advantage.any()]
        chosen = [part[i] for i in live]
        if old is not None:
            chosen = [_with_old(part[i], old[number][i]) for i in live]
        result = learner.step(chosen, [weights_S[i] for i in live], _loss_of(settings), lr, temperature)
        totals["loss"] += result.loss / settings.updates
        totals["grad_norm"] += result.grad_norm / settings.updates
        totals["tokens"] += result.tokens
        totals["actions"] += result.actions
        totals["skipped"] += int(result.skipped)
        for name, value in result.sums.items():
            sums[name] = (
                max(sums.get(name, 0.0), value) if name.endswith("_max") else sums.get(name, 0.0) + value
            )
    many = max(1, totals["actions"])
    return totals | {name: value if name.endswith("_max") else value / many for name, value in sums.items()}


def _with_old(sequence: TokenSequence, old_lp: torch.Tensor) -> TokenSequence:
    old = np.zeros(sequence.tokens, dtype=np.float32)
    old[sequence.action] = old_lp.numpy()
    return replace(sequence, old=old)


def _loss_of(settings: RlSection) -> Any:
    def loss_of(batch: Batch, lp_N: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        old_N = lp_N.detach() if batch.old_N is None else batch.old_N
        loss_N, clipped_N = clipped_loss(
            lp_N, old_N, batch.advantage_N, settings.clip_low, settings.clip_high, settings.dual_clip
        )
        rho_N = truncated_importance(old_N, batch.mu_N, settings.importance_cap)
        gap_N = (old_N - batch.mu_N).abs()
        reports = {
            "clip_share": clipped_N.sum(),
            "mismatch_mean": gap_N.sum(),
            "mismatch_max": gap_N.max(),
            "importance_truncated": (rho_N >= settings.importance_cap).sum(),
        }
        return loss_N * rho_N, reports

    return loss_of


def _episode_metrics(
    groups: list[Group], verdicts: Sequence[Sequence[Any]], rewards_PG: torch.Tensor, counted_PG: torch.Tensor
) -> dict[str, Any]:
    episodes = [episode for group in groups for episode in group.episodes]
    count = summarise(episodes)
    spread = [len(set(rewards_PG[p][counted_PG[p]].tolist())) > 1 for p in range(len(groups))]
    return {
        "reward": count.reward,
        "success": count.success,
        "turns": count.turns,
        "sampled_tokens": count.tokens * sum(episode.valid for episode in episodes),
        "void_turns": count.void_turns,
        "void_episodes": sum(episode.valid and episode.void for episode in episodes) / max(1, len(episodes)),
        "trained_episodes": sum(any(v.trained) for row in verdicts for v in row) / max(1, len(episodes)),
        "flat_groups": 1 - sum(spread) / max(1, len(groups)),
        "invalid": sum(count.invalid.values()),
    }
