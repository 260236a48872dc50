"""The typed form of a recipe. Every key has a default but `name`; unknown keys are refused."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gymrl.rl.choices import Adapter, Aggregation, Decay, Pace, VoidMode


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class Choice(Section):
    """One of some names, with settings that go with it: `"constant"`, or `{ name = "constant", length = 4096 }`."""

    name: str

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return _named(value)


class Part(BaseModel):
    """An algorithm by name, with settings of its own: `"gspo"`, or `{ name = "gspo", low = 1e-4 }`. They are checked
    against the algorithm itself (see gymrl.rl.recipes.checks)."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return _named(value)

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Void(Choice):
    """What is done about void turns."""

    name: VoidMode = "drop_episode"
    in_baseline: bool | None = Field(None, description="whether such episodes count in the group's baseline")


class Mean(Choice):
    """How the losses of single tokens become one number."""

    name: Aggregation = "token-mean"
    length: float = Field(1.0, gt=0, description="divisor of constant")


class Trainable(Choice):
    """Which parameters are trained; of an adapter (LoRA and its relatives) rank, alpha and targets are settings."""

    name: Literal["all", "half", "lisa"] | Adapter = "all"
    redraw: int = Field(20, ge=1, description="updates after which half and lisa draw other parameters")
    layers: int = Field(2, ge=1, description="layers that lisa trains at a time")
    rank: int = Field(16, ge=1, description="of an adapter's matrices")
    alpha: float | None = Field(None, gt=0, description="an adapter counts alpha / rank; left out: 2 rank")
    targets: list[str] = Field([], description="layers with an adapter, such as q_proj; []: every linear one")


class SftSchedule(Choice):
    """How the learning rate goes over the steps."""

    name: Decay = "cosine"
    warmup: int = Field(20, ge=0, description="steps in which the rate rises")


class RlSchedule(Choice):
    """How the learning rate goes over the steps."""

    name: Decay = "constant"
    warmup: int = Field(5, ge=0, description="steps in which the rate rises")


class EnvSection(Section):
    """What is played."""

    id: str = Field("gymrl/CodeInterpreter-v0", description="an environment of `gymrl envs list`")
    params: dict[str, Any] = Field(
        default_factory=dict, description="the environment's own parameters (`gymrl envs info ID`)"
    )
    max_turns: int | None = Field(None, ge=1, description="cut episodes earlier than the environment does")
    deadline: float = Field(60.0, gt=0, description="seconds an environment has for one call")
    workers: int = Field(2, ge=1, description="processes or threads for environments that need them")
    concurrency: int = Field(128, ge=1, description="episodes played at once")


class TinySection(Section):
    """The sizes of a model made from scratch."""

    hidden: int = Field(128, ge=32, description="width")
    layers: int = Field(4, ge=1, description="depth")
    heads: int = Field(4, ge=1, description="attention heads")
    kv_heads: int = Field(2, ge=1, description="heads of keys and values")
    vocab: int = Field(
        512, ge=300, description="tokens, at most: fewer where the demonstrations' texts give no more"
    )

    @model_validator(mode="after")
    def _fits(self) -> TinySection:
        if self.hidden % self.heads or self.heads % self.kv_heads:
            raise ValueError("hidden is a multiple of heads, and that one of kv_heads")
        return self


class ModelSection(Section):
    """The policy."""

    path: str = Field("tiny", description="a folder or hub name; tiny: a small Qwen3 from scratch")
    tiny: TinySection | None = None


class EngineSection(Section):
    """What serves the policy during rollouts."""

    kind: Literal["transformers", "vllm", "vllm-server"] = Field(
        "transformers", description="transformers (embedded), vllm (in its own process), vllm-server"
    )
    url: str = Field("", description="of a vLLM server that runs already; empty: one is started")
    max_context: int = Field(512, ge=16, description="tokens of prompt and completion, at most")
    slots: int = Field(128, ge=1, description="requests that run at the same time")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="of the engine's weights")
    memory_gb: float = Field(0.5, gt=0, description="key/value memory of vLLM on the CPU")
    pace: Pace = Field(2, description="engine steps from an answer to the next request; lockstep, free")


class SamplingSection(Section):
    """How the policy samples, in training and evaluation."""

    temperature: float = Field(1.0, gt=0, description="in training and in evaluation")
    max_tokens: int = Field(96, ge=1, description="tokens of one turn")


class TokensSection(Section):
    """How demonstrated tokens are weighed, and how much of them is shown."""

    dft: bool = Field(False, description="tokens weigh their probability (dynamic fine-tuning)")
    turn_discount: float = Field(
        1.0, gt=0, le=1, description="a turn weighs this to the number of turns after it"
    )
    masked: float = Field(0.0, ge=0, lt=1, description="rate at which they are not shown (masked thought)")
    blank: int = Field(0, ge=0, description="the token id that is shown instead")
    key: str = Field(
        "", description="a regular expression: tokens of what it finds are key tokens (TL-Training)"
    )
    key_most: float = Field(9.0, gt=0, description="what a key token weighs at most, others weighing 1")
    anchor: float = Field(0.0, ge=0, description="of KL(ref, pi) to the stage's first weights (anchored DFT)")


class SftSection(Section):
    """The warm start on demonstrations: the oracle's, or a file's."""

    demonstrations: int = Field(
        200, ge=1, description="tasks that the oracle plays, from the head of the training split"
    )
    params: dict[str, Any] = Field(
        default_factory=dict, description="environment parameters of the demonstrations alone, over env.params"
    )
    data: str = Field("", description="a file of episodes; its successes are learnt from, not the oracle")
    steps: int = Field(300, ge=1, description="optimiser steps")
    batch: int = Field(32, ge=1, description="demonstrations a step")
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    schedule: SftSchedule = SftSchedule()
    tokens: TokensSection | None = None


class KlSection(Section):
    """Staying close to a reference policy."""

    estimator: Literal["k1", "k2", "k3"] = Field("k3", description="Schulman 2020; k1 in the reward alone")
    coefficient: float = Field(1e-3, ge=0, description="0: for rl.loss alone, or to be seen")
    place: Literal["loss", "reward"] = Field("loss", description="in the loss, or taken from the reward")
    ref: str = Field(
        "start",
        description="start (the stage's first weights), base (the run's), average (moving), a folder, soup(A, B)",
    )
    decay: float = Field(0.99, gt=0, lt=1, description="of ref = average, per step")


class OverlongSection(Section):
    """Soft punishment of episodes whose sampled tokens exceed limit - buffer (DAPO)."""

    limit: int = Field(ge=1, description="sampled tokens of an episode")
    buffer: int = Field(ge=1, description="tokens before the limit from which it is punished")
    factor: float = Field(1.0, gt=0, description="the punishment at the limit")


class CriticSection(Section):
    """The value model of PPO: the stage's first policy with a head of one number."""

    lr: float = Field(1e-3, gt=0, description="learning rate")
    warmup: int = Field(0, ge=0, description="steps in which the critic alone learns")


class CurriculumSection(Section):
    """Stages of difficulty within RL: `horizon` (turns), `difficulty` (tasks by 4p(1-p), a quarter more each stage), or
    `staged` (environment parameters)."""

    kind: Literal["horizon", "difficulty", "staged"] = Field(
        "horizon", description="horizon, difficulty or staged"
    )
    stages: list[int] | list[dict[str, Any]] = Field([], description="turns, or tables over env.params")
    every: int = Field(100, ge=1, description="steps of a stage, or of a look for a plateau")
    advance: Literal["step", "plateau"] = Field(
        "step", description="after `every` steps, or when success stops rising"
    )
    gain: float = Field(0.01, description="success by which a look must beat the one before, or it is a plateau")
    validate_on: int = Field(0, ge=0, description="val tasks a look plays; 0: it takes the training episodes")
    tasks: int = Field(256, ge=4, description="training tasks of kind = difficulty")
    samples: int = Field(4, ge=2, description="episodes of each, from which p is taken")


class PrefixSection(Section):
    """One rollout of each group begins as the oracle's does, and the policy goes on from there (Prefix-RFT)."""

    first: float = Field(
        0.95, ge=0, le=1, description="share of the demonstration that is told at the first step"
    )
    last: float = Field(0.05, ge=0, le=1, description="and at the last one, along half a cosine")
    entropy: float = Field(
        0.2, gt=0, le=1, description="share of its tokens, the least certain, with a gradient"
    )


class RlSection(Section):
    """Multi-turn policy optimisation: GRPO unless parts are named."""

    steps: int = Field(120, ge=1, description="each of tasks x group episodes")
    tasks: int = Field(16, ge=1, description="tasks (groups) a step")
    group: int = Field(8, ge=1, description="rollouts of each task")
    lr: float = Field(1e-4, gt=0, description="peak learning rate")
    schedule: RlSchedule = RlSchedule()
    updates: int = Field(1, ge=1, description="parts of each step's rollouts, each an optimiser step")
    epochs: int = Field(1, ge=1, description="times that each step's rollouts are gone through")
    advantage: Part = Field(
        Part(name="grpo"),
        description="grpo, drgrpo, rloo, maxrl, remax, reinforce++, gigpo, gae, turn-gae, two-level-gae, or your own",
    )
    credit: Literal["episode", "turn"] = Field(
        "episode", description="what a group's rewards are: sums, or to go"
    )
    loss: Part = Field(
        Part(name="clip"),
        description="clip (with low, high, dual), gspo, cispo, reinforce, or one of your own",
    )
    correction: Part = Field(
        Part(name="tis"), description="of the engine's probabilities: tis (with cap), icepop, reject, none"
    )
    aggregation: Mean = Mean()
    kl: KlSection | None = None
    critic: CriticSection | None = None
    overlong: OverlongSection | None = None
    curriculum: CurriculumSection | None = None
    sft_weight: float = Field(0.0, ge=0, description="of SFT's loss on sft.batch demonstrations, beside RL")
    prefix: PrefixSection | None = None
    overlap: bool = Field(False, description="sample the next step while learning (one step off-policy)")
    resample: int = Field(0, ge=0, description="times that groups without spread are sampled anew")
    max_staleness: int | None = Field(None, ge=0, description="updates after which a token is masked")
    void: Void = Void()
    mask_truncated: bool = Field(False, description="episodes that were cut carry no loss")


class NotesSection(Section):
    """Failures are learnt from too: a note on the task tells them from successes, and every task that is played holds
    the note of success (NAT)."""

    success: str = Field("Answer correctly.", min_length=1, description="the note of a success")
    failure: str = Field("Answer wrongly.", min_length=1, description="the note of a failure")
    keep: int = Field(2, ge=1, description="failures kept of each task, shortest first, equal ones once")


class RftSection(Section):
    """Rejection sampling: sample, keep what succeeded, fine-tune on it, again."""

    rounds: int = Field(2, ge=1, description="of sampling and training")
    tasks: int = Field(64, ge=1, description="tasks sampled in a round")
    samples: int = Field(4, ge=1, description="episodes of each")
    keep: int = Field(2, ge=1, description="successes kept of each task, shortest first, equal ones once")
    steps: int = Field(20, ge=1, description="optimiser steps of a round")
    batch: int = Field(32, ge=1, description="episodes a step")
    lr: float = Field(1e-4, gt=0, description="learning rate")
    notes: NotesSection | None = None


class PreferenceSection(Section):
    """Sample, compare, train; the reference is the policy at the round's start."""

    loss: Part = Field(Part(name="dpo"), description="dpo, ipo, simpo, kto, or one of your own")
    rounds: int = Field(1, ge=1, description="of sampling and training")
    tasks: int = Field(64, ge=1, description="tasks sampled in a round")
    samples: int = Field(4, ge=2, description="episodes of each")
    longest: int | None = Field(None, ge=1, description="sampled tokens beyond which an episode is left out")
    steps: int = Field(20, ge=1, description="optimiser steps of a round")
    batch: int = Field(16, ge=1, description="pairs (or single episodes) a step")
    lr: float = Field(3e-5, gt=0, description="learning rate")
    data: str = Field("", description="a file of episodes or preferences to learn from, not sampling")


class EsSection(Section):
    """Evolution strategies: forward passes only."""

    steps: int = Field(50, ge=1, description="updates")
    tasks: int = Field(16, ge=1, description="tasks that every member plays, greedily")
    population: int = Field(30, ge=2, description="members, each with noise of its own")
    sigma: float = Field(1e-3, gt=0, description="size of the noise")
    alpha: float = Field(5e-4, gt=0, description="learning rate")


class LearnerSection(Section):
    """How updates are computed."""

    token_budget: int = Field(8192, ge=64, description="tokens of one micro-batch")
    grad_clip: float = Field(1.0, gt=0, description="largest norm of a gradient")
    spike: float = Field(
        100.0, ge=0, description="times its usual norm at which a gradient is not taken; 0: never"
    )
    weight_decay: float = Field(0.0, ge=0, description="of AdamW")
    mixed_precision: Literal["no", "bf16"] = Field(
        "no", description="bf16: forward and backward in bfloat16, weights in float32"
    )
    gradient_checkpointing: bool = Field(False, description="less memory, a third more time")
    trainable: Trainable = Trainable()


class EvalSection(Section):
    """Held-out evaluation, before training and after each stage."""

    split: Literal["val", "test"] = Field("test", description="the tasks that are held out")
    tasks: int = Field(256, ge=1, description="how many of them")
    samples: int = Field(1, ge=1, description="episodes of each task")
    every: int = Field(0, ge=0, description="steps between looks at the split val; the best is kept; 0: none")


class LogSection(Section):
    """What is kept."""

    checkpoint_every: int = Field(20, ge=1, description="optimiser or RL steps")
    episodes_every: int = Field(1, ge=1, description="RL steps whose episodes are kept")
    insight_every: int = Field(0, ge=0, description="RL steps between looks at gradients' causes; 0: none")
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(
        ["tensorboard"], description="that draw the curves too"
    )


class Recipe(Section):
    """A whole run: stages in order, each starting from where the last one ended."""

    name: str = Field(description="the run's name, and its folder's")
    algo: str = Field("", description="an algorithm whose recipe is laid under this one")
    seed: int = Field(0, ge=0, lt=2**63, description="what everything random of the run follows from")
    stages: list[Literal["sft", "rl", "rft", "preference", "es"]] = Field(
        ["sft", "rl"],
        min_length=1,
        description="in order, each from where the last one ended: sft, rl, rft, preference, es",
    )
    env: EnvSection = EnvSection()
    model: ModelSection = ModelSection()
    engine: EngineSection = EngineSection()
    sampling: SamplingSection = SamplingSection()
    sft: SftSection = SftSection()
    rl: RlSection = RlSection()
    rft: RftSection | None = None
    preference: PreferenceSection | None = None
    es: EsSection | None = None
    learner: LearnerSection = LearnerSection()
    eval: EvalSection = EvalSection()
    log: LogSection = LogSection()

    @model_validator(mode="before")
    @classmethod
    def _with_tables(cls, value: Any) -> Any:
        """A stage that is named has its table, with defaults if it is not written."""
        if isinstance(value, dict) and isinstance(value.get("stages"), (list, tuple)):
            named: dict[str, Any] = {
                stage: {} for stage in ("rft", "preference", "es") if stage in value["stages"]
            }
            return {**named, **value}
        return value

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        if len(set(self.stages)) != len(self.stages):
            twice = next(stage for stage in self.stages if self.stages.count(stage) > 1)
            raise ValueError(f"`stages` names {twice!r} twice: each may come once")
        if not self.name or self.name[0] in ".- " or not self.name.isprintable() or set(self.name) & set("/\\"):
            raise ValueError(f"name = {self.name!r} names a folder too: write it without slashes, a letter first")
        return self
