"""One step's learning: from groups of episodes to new weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from gymrl.agents.evaluation import summarise
from gymrl.agents.records import Episode
from gymrl.rl.algorithms import find
from gymrl.rl.batches import Batch, TokenSequence, at_actions, kept_only, sequences_of
from gymrl.rl.credit import Judged, assign
from gymrl.rl.critic import Critic, with_targets
from gymrl.rl.filters import FilterSettings, Verdict, judge, reward_table
from gymrl.rl.groups import Group
from gymrl.rl.learner import Cause, Learner, schedule
from gymrl.rl.losses.aggregation import token_weights
from gymrl.rl.losses.kl import kl
from gymrl.rl.losses.length import overlong
from gymrl.rl.objective import SAMPLED, loss_of_settings
from gymrl.rl.recipes.models import RlSection
from gymrl.rl.reference import Reference


@dataclass
class Helpers:
    """The models that learning may need beside the policy's."""

    reference: Reference | None = None
    critic: Critic | None = None
    insight: int = 0
    """Steps between looks at what makes the gradient (0: none)."""


def learn(
    learner: Learner, groups: list[Group], settings: RlSection, temperature: float, step: int,
    helpers: Helpers | None = None, shown: Sequence[TokenSequence] = (),
) -> dict[str, Any]:  # fmt: skip
    """Update the policy on groups of episodes, and on demonstrations `shown` beside them, whose tokens weigh what their
    advantages say, or 1 where none has any; returns metrics."""
    helpers = helpers or Helpers()
    algorithm = find("advantage", settings.advantage.name)
    groups, greedy_P = _without_greedy(groups, settings) if "greedy_P" in algorithm.inputs else (groups, None)
    filters = filters_of(settings)
    verdicts = [[judge(episode, filters) for episode in group.episodes] for group in groups]
    rewards_PG, counted_PG = reward_table(groups, verdicts)
    judged = Judged(
        groups, counted_PG, [[shaped(e, settings) for e in group.episodes] for group in groups], greedy_P
    )
    kl_in_reward = settings.kl is not None and settings.kl.place == "reward"
    if kl_in_reward or helpers.critic is not None:
        judged = _with_models(judged, learner, helpers, settings, temperature)
    worth, targets = assign(judged, algorithm, settings.advantage.settings, settings.credit)
    oldest = None if settings.max_staleness is None else learner.updates - settings.max_staleness
    sequences: list[TokenSequence] = []
    for p, g in judged.places():
        if any(verdicts[p][g].trained):
            sequences += sequences_of(judged.episode(p, g), verdicts[p][g].trained, worth[p, g], oldest)
    if not any(s.actions for s in sequences):
        learner.troubles.append("no token is left to train on after the filters")
    lr = schedule(step, settings.lr, settings.schedule.warmup, settings.steps, settings.schedule.name)
    metrics = _group_metrics(groups, verdicts, rewards_PG, counted_PG) | {"lr": lr}
    if helpers.critic is not None and targets is not None and settings.critic is not None:
        taught = _teach(helpers.critic, judged, targets, settings)
        if taught["value_skipped"]:
            learner.troubles.append("the critic's values or its gradient are not finite")
        metrics |= taught
        if step < settings.critic.warmup:
            return metrics
    look = helpers.insight > 0 and step % helpers.insight == 0
    metrics |= _update(learner, sequences, settings, temperature, lr, helpers.reference, shown, look)
    if helpers.reference is not None:
        helpers.reference.follow(learner)
    return metrics


def filters_of(settings: RlSection) -> FilterSettings:
    """The filters that the settings ask for."""
    return FilterSettings(settings.void.name, settings.void.in_baseline, settings.mask_truncated)


def shaped(episode: Episode, settings: RlSection) -> np.ndarray:
    """The rewards of an episode's turns [K] float64, shaped; 0 for an invalid one, whose rewards mean nothing."""
    if not episode.valid:
        return np.zeros(len(episode.turns))
    rewards = np.array([turn.reward for turn in episode.turns], dtype=np.float64)
    if settings.overlong is not None and len(rewards):
        o = settings.overlong
        rewards[-1] += overlong(episode.tokens, o.limit, o.buffer, o.factor)
    return rewards


def _without_greedy(groups: list[Group], settings: RlSection) -> tuple[list[Group], torch.Tensor]:
    """The groups without their greedy episodes, and those episodes' shaped rewards [P], NaN where invalid."""
    found, rest = [], []
    for group in groups:
        greedy = [e for e in group.episodes if e.sample == settings.group]
        rest.append(Group(group.task, tuple(e for e in group.episodes if e.sample != settings.group)))
        valid = [float(shaped(e, settings).sum()) for e in greedy if e.valid]
        found.append(valid[0] if valid else float("nan"))
    return rest, torch.tensor(found, dtype=torch.float64)


def _with_models(
    judged: Judged, learner: Learner, helpers: Helpers, settings: RlSection, temperature: float
) -> Judged:
    """With the critic's values and the KL's costs of every sampled token, trained or not."""
    pieces = {place: sequences_of(judged.episode(*place)) for place in judged.places()}
    flat = [sequence for parts in pieces.values() for sequence in parts]

    def rows(of_sequence: list[Any], empty: Any, join: Any) -> list[list[np.ndarray]]:
        values = iter(of_sequence)
        table: list[list[np.ndarray]] = [[] for _ in judged.groups]
        for (p, _), parts in pieces.items():
            found = [next(values) for _ in parts]
            table[p].append(join(found) if found else empty)
        return table

    if settings.kl is not None and settings.kl.place == "reward":
        assert helpers.reference is not None
        scored = zip(
            learner.score(flat, temperature), helpers.reference.score(flat, temperature), strict=True
        )
        costs = [
            settings.kl.coefficient * kl(own, ref, settings.kl.estimator).double().numpy()
            for own, ref in scored
        ]
        judged = replace(judged, token_costs=rows(costs, np.zeros(0), np.concatenate))
    if helpers.critic is not None:
        values = helpers.critic.values(flat)

        def join(found: list[tuple[np.ndarray, float]]) -> np.ndarray:
            return np.append(np.concatenate([own for own, _ in found]), found[-1][1])

        judged = replace(judged, values=rows(values, np.zeros(1), join))
    return judged


def _teach(
    critic: Critic, judged: Judged, targets: dict[tuple[int, int], list[np.ndarray]], settings: RlSection
) -> dict[str, float]:
    """The critic's steps on the returns of the episodes that count, as many as the policy's."""
    assert settings.critic is not None
    sequences: list[TokenSequence] = []
    for (p, g), found in targets.items():
        if not bool(judged.counted_PG[p, g]):
            continue
        wanted = np.concatenate(found)
        at = 0
        for sequence in sequences_of(judged.episode(p, g)):
            sequences.append(with_targets(sequence, wanted[at : at + sequence.actions]))
            at += sequence.actions
    seen: dict[str, float] = {}
    skipped = 0
    parts = _parts(settings, sequences)
    for part in range(parts * settings.epochs):
        seen = critic.step(sequences[part % parts :: parts], settings.critic.lr)
        skipped += int(seen["value_skipped"])
    lost = any(not np.isfinite(values).all() for row in judged.values or [] for values in row)
    return seen | {"value_skipped": max(skipped, int(lost))}


def _parts(settings: RlSection, sequences: Sequence[TokenSequence]) -> int:
    """How many disjoint parts a step's sequences are cut into, each for an optimiser step: none without a sequence."""
    return max(1, min(settings.updates, len(sequences)))


def _update(
    learner: Learner, sequences: list[TokenSequence], settings: RlSection, temperature: float, lr: float,
    reference: Reference | None = None, shown: Sequence[TokenSequence] = (), look: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """The optimiser steps on one step's sequences: `updates` disjoint parts of them, one after the other, and that
    `epochs` times."""
    corrector = find("correction", settings.correction.name)
    sampled = len(sequences)
    ones = [np.where(s.action, np.float32(1), np.float32(0)) for s in shown]
    sequences = sequences + [
        replace(s, guided=True, advantage=s.advantage if s.advantage.any() else one)
        for s, one in zip(shown, ones, strict=True)
    ]
    # The policy before the update: with one update it is the policy that is being differentiated.
    if settings.updates * settings.epochs > 1 or corrector.masks:
        scored = learner.score(sequences, temperature)
        sequences = [replace(s, old=at_actions(s, lp)) for s, lp in zip(sequences, scored, strict=True)]
    if reference is not None:
        scored = reference.score(sequences, temperature)
        sequences = [replace(s, ref=at_actions(s, lp)) for s, lp in zip(sequences, scored, strict=True)]
    rejected = 0
    if corrector.masks:
        before = sum(s.actions for s in sequences)
        correct = corrector.bind(settings.correction.settings)
        sequences = [s if s.guided else _masked(s, correct) for s in sequences]
        rejected = before - sum(s.actions for s in sequences)
        if rejected and not any(s.actions for s in sequences):
            learner.troubles.append(_all_corrected(settings))
    loss_of = loss_of_settings(settings)
    everywhere = loss_of.refers or loss_of.penalty is not None
    sums: dict[str, float] = {}
    totals = {"loss": 0.0, "grad_norm": 0.0, "tokens": 0, "actions": 0, "skipped": 0}
    parts = _parts(settings, sequences[:sampled])
    updates = parts * settings.epochs
    for update in range(updates):
        number = update % parts
        part = sequences[:sampled][number::parts]
        counts = torch.tensor([s.actions for s in part], dtype=torch.long)
        weights_S = token_weights(counts, settings.aggregation.name, settings.aggregation.length).tolist()
        guides = sequences[sampled:][number::parts]
        told = float(sum(s.advantage.sum(dtype=np.float64) for s in guides))
        share = settings.sft_weight / told if told else 0.0
        part, weights_S = part + guides, weights_S + [share] * len(guides)
        # Tokens without advantage have a gradient only of a reference: they count in the weights all the same.
        live = [i for i, s in enumerate(part) if s.actions and (everywhere or s.advantage.any())]
        if look and update == 0:
            norms = learner.gradient_norms(
                [part[i] for i in live],
                [weights_S[i] for i in live],
                loss_of,
                causes(learner.updates),
                temperature,
            )
            totals |= {f"grad_norm/{name}": norm for name, norm in norms.items()}
        result = learner.step([part[i] for i in live], [weights_S[i] for i in live], loss_of, lr, temperature)
        totals["loss"] += result.loss / updates
        totals["grad_norm"] += result.grad_norm / updates
        totals["tokens"] += result.tokens
        totals["actions"] += result.actions
        totals["skipped"] += int(result.skipped)
        for name, value in result.sums.items():
            sums[name] = (
                max(sums.get(name, 0.0), value) if name.endswith("_max") else sums.get(name, 0.0) + value
            )
    many = max(1.0, sums.pop(SAMPLED, 0.0))
    if not corrector.masks and loss_of.cap is None and sums.get("importance_truncated", 0.0) == many:
        learner.troubles.append(_all_corrected(settings))
    found = totals | {name: value if name.endswith("_max") else value / many for name, value in sums.items()}
    return found | ({"rejected_tokens": rejected} if corrector.masks else {})


def _all_corrected(settings: RlSection) -> str:
    return (
        f"rl.correction={settings.correction.name} leaves no token: what the engine and the learner say of every one "
        "lies outside its bounds (see mismatch_mean; wider bounds, or rl.correction=tis)"
    )


UNLIKELY = 0.1
"""Probability below which a token is an unlikely one."""


def causes(version: int) -> dict[str, Cause]:
    """What may make a gradient: void turns, unlikely tokens, those of weights older than `version`; and all of them."""
    return {"all": _all, "void": _void, "unlikely": _unlikely, "stale": partial(_stale, version)}


def _all(batch: Batch, lp_N: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(lp_N, dtype=torch.bool)


def _void(batch: Batch, lp_N: torch.Tensor) -> torch.Tensor:
    return batch.void_N


def _unlikely(batch: Batch, lp_N: torch.Tensor) -> torch.Tensor:
    return lp_N < math.log(UNLIKELY)


def _stale(version: int, batch: Batch, lp_N: torch.Tensor) -> torch.Tensor:
    # Demonstrated tokens have a version too, below 0: no weights sampled them, so none that grew old.
    return (batch.version_N >= 0) & (batch.version_N < version) & ~batch.guided_N


def _masked(sequence: TokenSequence, correct: Any) -> TokenSequence:
    """The sequence without the action tokens that the correction takes out of the mask."""
    if not sequence.actions or sequence.old is None:
        return sequence
    old_N = torch.from_numpy(sequence.old[sequence.action])
    mu_N = torch.from_numpy(sequence.mu[sequence.action])
    tensors = {"old_lp_N": old_N, "mu_lp_N": mu_N, "sequence_N": torch.zeros(len(old_N), dtype=torch.long)}
    return kept_only(sequence, correct(tensors)[1])


def _group_metrics(
    groups: list[Group], verdicts: Sequence[Sequence[Verdict]], rewards_PG: torch.Tensor, counted_PG: torch.Tensor
) -> dict[str, Any]:  # fmt: skip
    episodes = [episode for group in groups for episode in group.episodes]
    spread = [len(set(rewards_PG[p][counted_PG[p]].tolist())) > 1 for p in range(len(groups))]
    return episode_metrics(episodes) | {
        "trained_episodes": sum(any(v.trained) for row in verdicts for v in row) / max(1, len(episodes)),
        "flat_groups": 1 - sum(spread) / max(1, len(groups)),
    }


def episode_metrics(episodes: Sequence[Episode]) -> dict[str, Any]:
    """What episodes that were played came to, whether or not anything is learnt from them. `entropy_sampled` (nats a
    token) is the mean of -logprob over their sampled tokens, as the engine gave it: the entropy's own estimate."""
    count = summarise(list(episodes))
    turns = [turn for episode in episodes if episode.valid for turn in episode.turns]
    said = [lp for turn in turns for lp, v in zip(turn.logprobs, turn.versions, strict=True) if v >= 0]
    return {
        "reward": count.reward,
        "success": count.success,
        "turns": count.turns,
        "turn_reward": count.reward / max(1.0, count.turns),
        "sampled_tokens": count.tokens * sum(episode.valid for episode in episodes),
        "entropy_sampled": -sum(said) / max(1, len(said)),
        "void_turns": count.void_turns,
        "void_episodes": sum(episode.valid and episode.void for episode in episodes) / max(1, len(episodes)),
        "invalid": sum(count.invalid.values()),
    }
