"""Which settings go together: combinations that make no sense are refused, with the reason."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from gymrl.envs.servers import USER, names_user
from gymrl.rl.choices import Adapter
from gymrl.rl.recipes.models import (
    CurriculumSection,
    KlSection,
    Part,
    PreferenceSection,
    Recipe,
    RlSection,
    TokensSection,
    Trainable,
)

if TYPE_CHECKING:
    from gymrl.rl.algorithms import Algorithm

DEFAULTS = RlSection()


def check(recipe: Recipe, kept: Collection[str] = ()) -> None:
    """Raise ValueError with the reason where the recipe's settings do not go together, or a part is not known.
    `kept`: keys of files that the run has its own copies of, whatever became of them."""
    _trainable(recipe.learner.trainable)
    if recipe.sft.tokens is not None:
        _tokens(recipe.sft.tokens)
    if recipe.sft.data and "sft.data" not in kept and not Path(recipe.sft.data).is_file():
        raise ValueError(
            f"sft.data = {recipe.sft.data!r}: there is no such file; `gymrl collect` writes one, as JSONL or Parquet"
        )
    taught = "sft" in recipe.stages or ("rl" in recipe.stages and recipe.rl.sft_weight > 0)
    if recipe.sft.data and not taught and recipe.model.path != "tiny":
        raise ValueError(
            "sft.data is what the stage sft learns from, or RL beside its rollouts: add sft to `stages`, set "
            "rl.sft_weight, or leave it out"
        )
    if names_user(recipe.engine.url):
        raise ValueError(f"engine.url: {USER}")
    if "es" in recipe.stages and recipe.learner.trainable.name in ("half", "lisa"):
        raise ValueError(
            f"learner.trainable={recipe.learner.trainable.name} freezes parameters of a gradient's step, and es has "
            "none: leave it out, or take an adapter"
        )
    if "rl" in recipe.stages:
        _rl(recipe)
    else:
        for kind in ("advantage", "loss", "correction"):
            if getattr(recipe.rl, kind) != getattr(DEFAULTS, kind):
                _found(kind, getattr(recipe.rl, kind))
    if recipe.preference is not None:
        _preference(recipe.preference, kept)


def _trainable(t: Trainable) -> None:
    if t.name in get_args(Adapter):
        from gymrl.rl.trainable import require_peft

        require_peft()
    elif (t.rank, t.alpha, t.targets) != (Trainable().rank, None, []):
        raise ValueError(
            f"learner.trainable.rank, alpha and targets are of adapters, not of {t.name!r}: leave them out, or take "
            f"learner.trainable={', '.join(get_args(Adapter))}"
        )
    if t.redraw != Trainable().redraw and t.name not in ("half", "lisa"):
        raise ValueError(
            f"learner.trainable.redraw is of half and lisa, not of {t.name!r}: leave it out, or take one of them"
        )
    if t.layers != Trainable().layers and t.name != "lisa":
        raise ValueError(
            f"learner.trainable.layers is of lisa, not of {t.name!r}: leave it out, or take learner.trainable=lisa"
        )


def _tokens(t: TokensSection) -> None:
    for name, of in (("blank", "masked"), ("key_most", "key")):
        if getattr(t, name) != getattr(TokensSection(), name) and not getattr(t, of):
            raise ValueError(
                f"sft.tokens.{name} is a setting of sft.tokens.{of}: set that one too, or leave it out"
            )
    try:
        re.compile(t.key)
    except re.error as error:
        raise ValueError(f"sft.tokens.key = {t.key!r} is no regular expression: {error}") from None


def _preference(p: PreferenceSection, kept: Collection[str]) -> None:
    if p.loss != PreferenceSection().loss:
        _found("preference", p.loss)
    if p.data and p.rounds > 1:
        raise ValueError(
            "preference.data is what is learnt from, preference.rounds > 1 samples anew in each: leave one of them out"
        )
    if p.data and "preference.data" not in kept and not Path(p.data).is_file():
        raise ValueError(
            f"preference.data = {p.data!r}: there is no such file; name one of episodes, or of TRL's preference forms"
        )


def _rl(recipe: Recipe) -> None:
    rl = recipe.rl
    if rl.void.in_baseline is not None and rl.void.name in ("keep", "end_episode"):
        raise ValueError(
            f"rl.void.in_baseline says nothing where rl.void = {rl.void.name!r}: such episodes always count; "
            "leave it out, or take mask_turn, mask_episode or drop_episode"
        )
    if rl.aggregation.length != DEFAULTS.aggregation.length and rl.aggregation.name != "constant":
        raise ValueError(
            f"rl.aggregation.length is the divisor of rl.aggregation = 'constant', not of {rl.aggregation.name!r}"
        )
    if rl.loss.name == "reinforce" and rl.updates * rl.epochs > 1:
        raise ValueError(
            "rl.loss = 'reinforce' has no ratio: from the second update on the samples are of another policy; "
            "set rl.updates=1 and rl.epochs=1, or take rl.loss = 'clip'"
        )
    anchored = recipe.sft.tokens is not None and recipe.sft.tokens.anchor > 0
    if rl.sft_weight and anchored and "sft" not in recipe.stages:
        raise ValueError(
            "sft.tokens.anchor is of the stage sft, and no part of the loss that rl.sft_weight adds to: leave it out, "
            "and set rl.kl, which holds RL near its start"
        )
    if rl.kl is not None and rl.kl.decay != KlSection().decay and rl.kl.ref != "average":
        raise ValueError(
            f"rl.kl.decay is of a moving reference, not of rl.kl.ref = {rl.kl.ref!r}: leave it out, or take average"
        )
    if rl.kl is not None:
        _kl(rl.kl)
    if rl.critic is not None and rl.critic.warmup >= rl.steps:
        raise ValueError(
            f"rl.critic.warmup={rl.critic.warmup} of rl.steps={rl.steps}: the critic alone would learn, the policy "
            "never; set fewer, or more steps"
        )
    if rl.overlong is not None and rl.overlong.buffer > rl.overlong.limit:
        raise ValueError(
            "rl.overlong.buffer is counted back from rl.overlong.limit: it cannot be more than the limit"
        )
    if rl.overlap:
        _overlap(rl)
    if rl.curriculum is not None:
        _curriculum(recipe, rl.curriculum)
    if rl.prefix is not None:
        _prefix(rl)
    parts = (("advantage", rl.advantage), ("loss", rl.loss), ("correction", rl.correction))
    usual = (DEFAULTS.advantage, DEFAULTS.loss, DEFAULTS.correction)
    if rl.credit == "episode" and tuple(part for _, part in parts) == usual:
        if rl.group < 2:
            raise ValueError(_alone("grpo"))
        if rl.critic is not None:
            raise ValueError(_no_critic("grpo"))
        return
    found = {kind: _found(kind, part, rl.group) for kind, part in parts}  # this loads torch
    _advantage(rl, found["advantage"])
    if "ref_lp_N" in found["loss"].inputs and rl.kl is None:
        raise ValueError(
            f"rl.loss = {rl.loss.name!r} asks for ref_lp_N, a reference's log-probabilities: set rl.kl.coefficient=0 "
            "for a reference alone, or more for a penalty beside it"
        )


def _overlap(rl: RlSection) -> None:
    if rl.correction.name == "none":
        raise ValueError(
            "rl.overlap samples with weights that are a step old, and rl.correction = 'none' takes them for today's: "
            "take rl.correction = 'tis'"
        )
    if rl.max_staleness is not None and rl.max_staleness < rl.updates * rl.epochs:
        raise ValueError(
            f"rl.max_staleness={rl.max_staleness} would mask every token of rl.overlap, whose samples are "
            f"{rl.updates * rl.epochs} updates old: set {rl.updates * rl.epochs} or more"
        )
    if rl.curriculum is not None and rl.curriculum.advance == "plateau":
        raise ValueError(
            "rl.overlap plays a step before the last one has shown whether the curriculum goes on: set "
            "rl.curriculum.advance = 'step', or leave rl.overlap out"
        )


def _kl(kl: KlSection) -> None:
    if kl.estimator == "k1" and kl.place == "loss":
        raise ValueError(
            "rl.kl.estimator = 'k1' has no gradient in the loss: take k2 or k3, or rl.kl.place = 'reward'"
        )
    if kl.ref.startswith("soup("):
        if not kl.ref.endswith(")") or not kl.ref[5:-1].strip():
            raise ValueError(f"rl.kl.ref = {kl.ref!r}: a soup is written soup(FOLDER, FOLDER)")
        named = [part.strip() for part in kl.ref[5:-1].split(",")]
    else:
        named = [kl.ref]
    for name in named:
        if name not in ("start", "base", "average") and not (Path(name) / "config.json").is_file():
            raise ValueError(
                f"rl.kl.ref names {name!r}, which is no checkpoint's folder: take start, base, average, a folder, or "
                "soup(FOLDER, FOLDER)"
            )


def _prefix(rl: RlSection) -> None:
    if rl.prefix is not None and rl.prefix.last > rl.prefix.first:
        raise ValueError(
            "rl.prefix.last is above rl.prefix.first: what is told grows fewer, so that the policy stands alone at last"
        )
    if rl.critic is not None or (rl.kl is not None and rl.kl.place == "reward"):
        raise ValueError(
            "rl.prefix tells tokens that no policy sampled, and a critic, or a KL in the reward, would judge them too: "
            "take an advantage of groups, and rl.kl.place = 'loss'"
        )
    if rl.group < 2:
        raise ValueError(
            "rl.group=1 and rl.prefix leave no rollout of the policy's own: set rl.group=2 or more"
        )


def _curriculum(recipe: Recipe, c: CurriculumSection) -> None:
    wanted = {"horizon": int, "staged": dict}.get(c.kind)
    if wanted is None and c.stages:
        raise ValueError(
            "rl.curriculum.stages is not for kind = 'difficulty', which goes by quarters: leave it out"
        )
    if wanted is not None and (not c.stages or not all(isinstance(stage, wanted) for stage in c.stages)):
        kind = (
            "numbers of turns, such as [10, 20, 30]" if wanted is int else "tables of environment parameters"
        )
        raise ValueError(f"rl.curriculum.stages of kind = {c.kind!r} are {kind}")
    if c.validate_on and c.advance != "plateau":
        raise ValueError(
            "rl.curriculum.validate_on says what a plateau is seen by: set rl.curriculum.advance = 'plateau', or "
            "leave it out"
        )
    if c.kind == "horizon" and recipe.env.max_turns is not None:
        raise ValueError(
            "env.max_turns and a horizon curriculum both bound the turns: leave env.max_turns out"
        )
    if c.kind == "horizon" and min(stage for stage in c.stages if isinstance(stage, int)) < 1:
        raise ValueError("rl.curriculum.stages: an episode has 1 turn or more")


def _found(kind: str, part: Part, group: int = 2) -> Algorithm:
    from gymrl.rl.algorithms import find
    from gymrl.rl.rehearsal import rehearse

    algorithm = find(kind, part.name)
    settings = algorithm.check(part.settings)
    low, high = settings.get("low"), settings.get("high")
    if kind == "correction" and low is not None and high is not None and low > high:
        raise ValueError(f"rl.correction.low={low:g} is above rl.correction.high={high:g}: no token would be left")
    if part.name in ("clip", "gspo", "cispo") and low is not None and low > 1:
        raise ValueError(f"rl.loss.low={low:g} clips ratios at 1 - low, below 0 where none is: set 1 or less")
    if part.name in ("clip", "gspo") and 0 < settings["dual"] <= 1:
        raise ValueError(
            f"rl.loss.dual={settings['dual']:g} is a bound of ratios above 1: set more than 1, or 0 for none"
        )
    rehearse(algorithm, part.settings, group)
    return algorithm


def _advantage(rl: RlSection, algorithm: Algorithm) -> None:
    from gymrl.rl.credit import GROUP_INPUTS

    inputs, name = set(algorithm.inputs), algorithm.name
    compares = "counted_PG" in inputs and "greedy_P" not in inputs
    if rl.credit == "turn" and not (inputs <= GROUP_INPUTS and compares):
        raise ValueError(
            f"rl.credit = 'turn' is for advantages that compare a group's rewards; {name!r} deals with turns or "
            "baselines itself: leave rl.credit out"
        )
    if rl.prefix is not None and not compares:
        raise ValueError(
            f"rl.prefix is for advantages that compare a group's rewards, which {name!r} does not: take grpo, for one"
        )
    if compares and rl.group < 2:
        raise ValueError(_alone(name))
    if rl.resample and rl.group < 2 and "greedy_P" not in inputs:
        raise ValueError(
            "rl.resample samples groups without spread anew, and one episode alone never has any: set rl.group=2 or "
            "more"
        )
    if "values_BT" in inputs and rl.critic is None:
        raise ValueError(f"rl.advantage = {name!r} needs values: add [rl.critic]")
    if "values_BT" not in inputs and rl.critic is not None:
        raise ValueError(_no_critic(name))


def _alone(name: str) -> str:
    return f"rl.group=1: {name!r} compares a group's episodes, one alone says nothing: set rl.group=2 or more"


def _no_critic(name: str) -> str:
    return f"[rl.critic] is never asked: rl.advantage = {name!r} uses no values; leave it out, or take gae"
