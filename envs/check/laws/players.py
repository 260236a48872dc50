"""The oracle wins, the null player never does, and the random player does not often."""

from __future__ import annotations

from collections.abc import Sequence

from gymrl.envs.check import play
from gymrl.envs.check.records import Fault, Settings, Subject, rate
from gymrl.envs.intervals import wilson

CLAIM = "oracle wins, null and random do not"


async def check(subject: Subject, settings: Settings) -> tuple[str, Sequence[Fault]]:
    env = subject.make_held_out("test")
    size = min(settings.tasks, env.world.sizes[env.split])
    measured, faults = [], []
    for name, choose in play.PLAYERS.items():
        wins = total = without = 0
        rewards = 0.0
        for index in play.within(range(size), settings.seconds / 2, 8):
            task = env.task_spec(index)
            try:
                done = await play.play(env, task, choose)
            except play.NoOracle:
                without += 1
                continue
            wins, total, rewards = wins + done.won, total + 1, rewards + done.total
            if name == "oracle" and not done.won:
                how = "ended" if done.terminated else "was cut"
                what = f"the oracle loses: it {how} after {done.turns} turns with reward {done.total:g}"
                faults.append(Fault(what, task.split, index))
            elif name == "null" and done.won:
                faults.append(Fault("the null player, who says nothing, wins", task.split, index, ""))
        if name == "oracle" and not total:
            faults.append(Fault("there is no oracle: write oracle(), which plays the task"))
            measured.append("no oracle")
            continue
        measured.append(f"{name} {rate(wins, total)}, mean reward {rewards / max(1, total):.2f}")
        if without:
            measured[-1] += f", {without} tasks without an oracle"
        if name == "random" and wilson(wins, total)[0] > settings.random_limit:
            faults.append(
                Fault(f"the random player wins {rate(wins, total)}, more than {settings.random_limit:g}")
            )
    await play.closed(env)
    return "; ".join(measured), _few(faults)


def _few(faults: list[Fault], most: int = 3) -> list[Fault]:
    """The first faults of a kind; the measured rates say how many there are."""
    kept: list[Fault] = []
    for fault in faults:
        kind = fault.what[:12]
        if sum(other.what[:12] == kind for other in kept) < most:
            kept.append(fault)
    return kept
