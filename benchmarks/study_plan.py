"""What the learning study asks: its questions, the arms of each, and where an arm starts from. Nothing here runs."""

from __future__ import annotations

from dataclasses import dataclass

COMMON = (
    # The embedded engine's probabilities are the learner's own to 1e-5: there is nothing to correct.
    "rl.correction=none",
    "rl.tasks=8",
    "rl.group=8",
    "rl.steps=40",
    "rl.schedule.warmup=2",
    "eval.tasks=200",
    "log.trackers=[]",
    "log.episodes_every=1000",
    "log.checkpoint_every=8",
)
"""Laid over every run: 40 steps of 64 episodes, and 200 held-out tasks."""

CODE = ("env.params.timeout=120", "env.deadline=3600")
"""Over the quickstart: a busy machine never makes a program late."""

RATES = {"grpo": "2e-4", "rloo": "2e-4", "ppo": "2e-4", "reinforce++": "2e-4"}
"""Learning rates: of each algorithm the best of TRIED in the questions `rates-...`, on a seed of their own, or within
0.005 of it."""

TRIED = ("1e-4", "2e-4", "4e-4")
SEARCH_SEED = 7


@dataclass(frozen=True)
class Arm:
    """One way to train. `start` is the arm whose policy it goes on from, of the same seed; without one it is the
    recipe from scratch. `unmasked` gives the episode's advantage to the observation tokens after the first answer,
    too."""

    name: str
    recipe: str
    start: str
    settings: tuple[str, ...]
    unmasked: bool = False


@dataclass(frozen=True)
class Question:
    """Arms that are compared; the first is what the others are held against. `seeds`: its own, whatever is asked
    for."""

    name: str
    title: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...] = ()


def _sft(name: str, steps: int) -> Arm:
    """One budget for `shares`: an RL step took about as long as eight of these."""
    return Arm(name, "quickstart", "", ('stages=["sft"]', f"sft.steps={steps}", *CODE))


def _rl(name: str, *settings: str, start: str = "sft-360", algo: str = "grpo", rate: str = "") -> Arm:
    given = (f"algo={algo}", f"rl.lr={rate or RATES[algo]}", *CODE, *settings)
    return Arm(name, "quickstart", start, given)


VOIDS = ("keep", "end_episode", "mask_episode", "drop_episode")
DRIFT = ("sampling.temperature=1.25", "log.insight_every=2")
"""Hot enough that the policy leaves what it was taught: turns that are neither code nor an answer."""

GAMES = ("env.params.games=400", "env.deadline=3600", "eval.tasks=100", "rl.lr=2e-4")


def _games(name: str, *settings: str) -> Arm:
    return Arm(name, "textworld", "games", ("rl.steps=16", *GAMES, *settings))


ARMS = {
    a.name: a
    for a in (
        *(_sft(f"sft-{steps}", steps) for steps in (360, 240, 120)),
        Arm(
            "games",
            "textworld",
            "",
            ('stages=["sft"]', "sft.steps=400", "sft.batch=32", "sft.demonstrations=400", *GAMES),
        ),
        *(_rl(f"{algo}@{rate}", algo=algo, rate=rate) for algo in RATES for rate in TRIED),
        *(_rl(algo, algo=algo) for algo in RATES),
        *(_rl(f"void-{mode}", f"rl.void={mode}", *DRIFT) for mode in VOIDS),
        Arm("unmasked", "quickstart", "sft-360", _rl("", rate=RATES["grpo"]).settings, unmasked=True),
        _rl("sft-240-rl-15", "rl.steps=15", start="sft-240"),
        _rl("sft-120-rl-30", "rl.steps=30", start="sft-120"),
        _games("sparse"),
        _games("dense", "env.params.rewards=dense"),
        _games("fixed", "env.params.max_turns=6"),
        _games(
            "staged", "env.params.max_turns=6", 'rl.curriculum={kind="horizon", stages=[3, 4, 6], every=4}'
        ),
    )
}

QUESTIONS = (
    *(
        Question(
            f"rates-{algo}", f"Learning rates of {algo}", tuple(f"{algo}@{r}" for r in TRIED), (SEARCH_SEED,)
        )
        for algo in RATES
    ),
    Question("algorithms", "One budget, four algorithms", tuple(RATES)),
    Question(
        "algorithms-4e-4", "Four algorithms at twice the learning rate", tuple(f"{algo}@4e-4" for algo in RATES)
    ),
    Question("void", "Void turns: what is done about them", tuple(f"void-{mode}" for mode in VOIDS)),
    Question("observations", "Tool output: masked (grpo), or trained on", ("grpo", "unmasked")),
    Question("rewards", "TextWorld: sparse or dense rewards", ("sparse", "dense")),
    Question("horizon", "TextWorld: 6 turns from the start, or 3, 4, 6 in stages", ("fixed", "staged")),
    Question("shares", "SFT : RL shares of one budget", ("sft-360", "sft-240-rl-15", "sft-120-rl-30")),
)
