"""An episode ends, a step outside of one is refused, and the next reset begins another."""

from __future__ import annotations

from collections.abc import Sequence

from gymrl.envs.check import play
from gymrl.envs.check.records import Broke, Fault, Settings, Subject
from gymrl.envs.gym import EnvironmentFault
from gymrl.envs.records import Action

CLAIM = "a step after the end is refused"


async def check(subject: Subject, settings: Settings) -> tuple[str, Sequence[Fault]]:
    env, faults, episodes = subject.make(), [], 0
    try:
        await env.astep(Action(""))
        faults.append(Fault("step() before the first reset() is answered"))
    except EnvironmentFault:
        pass
    for index in play.within(range(min(8, env.world.sizes["train"])), settings.seconds, 2):
        for choose in play.PLAYERS.values():
            task = env.task_spec(index)
            try:
                done = await play.play(env, task, choose)
            except play.NoOracle:
                continue
            episodes += 1
            if done.turns > env.world.max_turns:
                faults.append(Fault(f"{done.turns} turns, of at most {env.world.max_turns}", "train", index))
            for action in (Action(""), done.actions[-1]):
                try:
                    await env.astep(action)
                except EnvironmentFault:
                    continue
                except Exception as error:
                    raise Broke(Fault(f"step() after the end raised {error!r}", "train", index)) from error
                what = f"a step after the {choose.__name__} player's episode is answered"
                faults.append(Fault(what, "train", index, action.text))
    await play.closed(env)
    return f"{episodes} episodes", faults[:3]
