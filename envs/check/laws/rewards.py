"""Every reward is a finite number, never a string."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

from gymrl.envs.check import play
from gymrl.envs.check.laws.garbage import answers, form_of, winning
from gymrl.envs.check.records import Fault, Settings, Subject
from gymrl.envs.gym import GymEnv
from gymrl.envs.records import Action, stable_hash

CLAIM = "rewards are finite numbers"


async def check(subject: Subject, settings: Settings) -> tuple[str, Sequence[Fault]]:
    env, lowest, highest, count = subject.make_held_out("val"), 0.0, 0.0, 0
    odd: list[str] = []
    texts = answers(0, 400)
    form = form_of((await winning(env, env.task_spec(0)))[-1:])
    _watch(env, odd)

    async def chatter(env: GymEnv, turn: int) -> Action:
        drawn = stable_hash(env.world.task.index, turn)
        return Action(form.say(texts[drawn % len(texts)]) if drawn % 3 else texts[drawn % len(texts)])

    for index in play.within(range(min(settings.tasks, env.world.sizes[env.split])), settings.seconds, 4):
        for choose in (*play.PLAYERS.values(), chatter):
            task = env.task_spec(index)
            try:
                done = await play.play(env, task, choose)
            except play.NoOracle:
                continue
            if odd:
                return "", [Fault(f"the reward is {odd[0]}, not a number", task.split, index)]
            count += done.turns
            lowest, highest = min(lowest, *done.rewards), max(highest, *done.rewards)
    await play.closed(env)
    return f"{count} steps, rewards from {lowest:g} to {highest:g}", []


def _watch(env: GymEnv, odd: list[str]) -> None:
    """Note rewards that only become numbers by float(): texts and other objects."""
    judged = env._step_result

    def judge(value: Any, void: bool) -> Any:
        if isinstance(value, tuple) and len(value) > 1 and not isinstance(value[1], Real):
            odd.append(f"{value[1]!r} of type {type(value[1]).__name__}")
        return judged(value, void)

    env._step_result = judge  # type: ignore[method-assign]
