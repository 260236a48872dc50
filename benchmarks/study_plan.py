"""What the learning study asks: its questions, the arms of each, and where an arm starts from. Nothing here runs."""

from __future__ import annotations

from dataclasses import dataclass

COMMON = (
    # The embedded engine's probabilities are the learner's own to 1e-5: there is nothing to correct.
    "rl.correction=none",
    "rl.tasks=8",
    "rl.group=8",
    "rl.steps=40",
    "rl.lr=2e-4",
    "rl.schedule.warmup=2",
    "eval.tasks=200",
    "log.trackers=[]",
    "log.episodes_every=1000",
    "log.checkpoint_every=12",
)
"""Laid over every run: 40 steps of 64 episodes, and 200 held-out tasks."""


@dataclass(frozen=True)
class Start:
    """A policy after SFT alone, made once for every seed."""

    name: str
    recipe: str
    settings: tuple[str, ...]


@dataclass(frozen=True)
class Arm:
    """One way to train. `start` is the policy it goes on from; without one it is the recipe from scratch. `unmasked`
    gives the episode's advantage to the observation tokens after the first answer, too."""

    name: str
    recipe: str
    start: str
    settings: tuple[str, ...]
    unmasked: bool = False


@dataclass(frozen=True)
class Question:
    """Arms that are compared; the first is what the others are held against."""

    name: str
    title: str
    arms: tuple[str, ...]


STARTS = {
    s.name: s
    for s in (
        Start("warm", "quickstart", ("sft.steps=240",)),
        Start("games", "textworld", ("sft.steps=160", "sft.demonstrations=600", "eval.tasks=100")),
    )
}

DRIFT = ("sampling.temperature=1.5", "log.insight_every=4")
"""Hot enough that the policy leaves what it was taught: turns that are neither code nor an answer."""

GAMES = ("rl.steps=16", "eval.tasks=100")


def _share(name: str, sft: int, rl: int) -> Arm:
    stages = '["sft", "rl"]' if rl else '["sft"]'
    return Arm(name, "quickstart", "", (f"stages={stages}", f"sft.steps={sft}", f"rl.steps={max(1, rl)}"))


ARMS = {
    a.name: a
    for a in (
        Arm("grpo", "quickstart", "warm", ("algo=grpo",)),
        Arm("rloo", "quickstart", "warm", ("algo=rloo",)),
        Arm("ppo", "quickstart", "warm", ("algo=ppo",)),
        Arm("reinforce++", "quickstart", "warm", ("algo=reinforce++",)),
        Arm("void-kept", "quickstart", "warm", ("rl.void=keep", *DRIFT)),
        Arm("void-dropped", "quickstart", "warm", ("rl.void=drop_episode", *DRIFT)),
        Arm("unmasked", "quickstart", "warm", ("algo=grpo",), unmasked=True),
        Arm("staged", "quickstart", "warm", ('rl.curriculum={kind="horizon", stages=[2, 3, 4], every=8}',)),
        _share("sft-240", 240, 0),
        _share("sft-160-rl-16", 160, 16),
        _share("sft-80-rl-32", 80, 32),
        Arm("sparse", "textworld", "games", ("env.params.rewards=sparse", *GAMES)),
        Arm("dense", "textworld", "games", ("env.params.rewards=dense", *GAMES)),
    )
}

QUESTIONS = (
    Question("algorithms", "One budget, four algorithms", ("grpo", "rloo", "ppo", "reinforce++")),
    Question("void", "Void turns: kept, or their episodes dropped", ("void-kept", "void-dropped")),
    Question("observations", "Tool output: masked (grpo), or trained on", ("grpo", "unmasked")),
    Question("horizon", "Horizon: fixed (grpo), or staged 2, 3, 4 turns", ("grpo", "staged")),
    Question("rewards", "TextWorld: sparse or dense rewards", ("sparse", "dense")),
    Question("shares", "SFT : RL shares of one budget", ("sft-240", "sft-160-rl-16", "sft-80-rl-32")),
)
