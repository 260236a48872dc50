"""Garbage gets no reward and is answered in-world: a thousand answers that nobody can mean, for each task family.

The garbage is said as such, and in the form of an answer: what the oracle's last text holds between its marks
(`<answer>...</answer>`, `\\boxed{...}`, `<<<...>>>`) is replaced. Single fixed answers ("0", "True", "A", and what is
right for another task) may be right now and then; one that is right nearly always is a fault too.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from gymrl.envs.check import play
from gymrl.envs.check.records import Fault, Settings, Subject
from gymrl.envs.gym import GymEnv
from gymrl.envs.intervals import wilson
from gymrl.envs.records import Action, TaskSpec, ToolCall

CLAIM = "garbage gets no reward"

TASKS = 25
"""Tasks of a family over which its garbage is spread."""
CONSTANTS = ("0", "1", "-1", "2", "True", "False", "yes", "no", "Yes", "No", "A", "None", "[]", "{}")
OTHERS = 5
"""Tasks whose right answers are given to the other tasks too."""
CONSTANT_LIMIT = 0.75
"""A fixed answer whose share of wins is surely above this is a way around the task."""

_MARKS = (
    re.compile(r"<([A-Za-z_]\w*)>(?P<content>.*?)</\1>", re.DOTALL),
    re.compile(r"\\boxed\{(?P<content>.*)\}", re.DOTALL),
    re.compile(r"<<<(?P<content>.*?)>>>", re.DOTALL),
)
FIXED = ("", " ", "\n\n", "\x00\x07", "\udcff\udc80", "((((((", "[[[[", "{{{", "\\", "```", "```python\n", "<answer>",
          "</answer><answer>", "é∂ƒ 你好 🙃", "nan", "inf", "1e9999999999", "9**9**9**9",
          "__import__('os').getpid()", "[print(1) for _ in ()]", "'; DROP TABLE answers; --", "{{7*7}}", "%s%n%x",
          '{"name": "zq", "arguments": {"a": 1}}', "<tool_call>{}</tool_call>", "None of these", "I do not know",
          "The answer is right.", "True False", "yes no Yes No true false", "A B C D E F G", "0 1 2 3 4 5 6 7 8 9",
          "x" * 5000, "(" * 2000)  # fmt: skip
_CHARACTERS = string.ascii_letters + string.digits + string.punctuation + " \n\täß中🙂\u202e\u0000"


@dataclass(frozen=True)
class Form:
    """How an answer is said: `before` and `after` it, and what the oracle says there."""

    before: str = ""
    after: str = ""
    content: str = ""
    marked: bool = False

    def say(self, text: str) -> str:
        return f"{self.before}{text}{self.after}"


async def check(subject: Subject, settings: Settings) -> tuple[str, Sequence[Fault]]:
    template = subject.make()
    variants: Sequence[Mapping[str, Any]] = template.world.task_families() or ({},)
    await play.closed(template)
    faults: list[Fault] = []
    answered = families = 0
    for variant in variants:
        families += 1
        env = subject.make(**variant)
        given, found = await _family(env, settings, variant)
        answered, faults = answered + given, faults + found[:2]
        await play.closed(env)
        if len(faults) >= 20:
            break
    many = f"{families} task families" if len(variants) > 1 else "one task family"
    return f"{answered} answers to {many}", faults


async def _family(env: GymEnv, settings: Settings, variant: Mapping[str, Any]) -> tuple[int, list[Fault]]:
    tasks = [env.task_spec(index) for index in range(min(TASKS, env.world.sizes[env.split]))]
    form = form_of((await winning(env, tasks[0]))[-1:])
    said = [(text, order) for order, text in enumerate(answers(1, settings.garbage))]
    share = -(-len(said) // len(tasks))
    faults: list[Fault] = []
    given = 0
    for number, task in play.within(enumerate(tasks), settings.seconds * 3, 3):
        won = await winning(env, task)
        right = _plain(form_of(won[-1:]).content)
        ended, observation = True, None
        mine = said[number * share : (number + 1) * share]
        if number == 0:  # the fixed ones are said as an answer and as such
            mine = [(text, order) for text in FIXED for order in (0, 3)] + mine
        for text, order in mine:
            if _plain(text) == right:
                continue
            if ended:
                observation = await play.reset(env, task)
                if form.marked and order % 5 == 4:  # after a perfect game but for its last word
                    for action in won[:-1]:
                        observation = (await play.step(env, action)).observation
            assert observation is not None
            action = _action(observation.tools, form, text, order)
            result = await play.step(env, action)
            given += 1
            ended, observation = result.terminated or result.truncated, result.observation
            if result.reward > 0:
                what = f"garbage gets reward {result.reward:g}"
                faults.append(Fault(what, task.split, task.index, _shown(action), variant))
                break
        if number == 0:
            await play.reset(env, task)
            await play.step(env, Action("zq " * 350_000))  # 1 MB is answered too
            given += 1
    faults += await _constants(env, tasks, form, settings, variant)
    return given, faults


async def _constants(
    env: GymEnv, tasks: Sequence[TaskSpec], form: Form, settings: Settings, variant: Mapping[str, Any]
) -> list[Fault]:
    """Fixed answers that win nearly every task."""
    if len(tasks) < 20:
        return []
    others = [form_of((await winning(env, task))[-1:]).content for task in tasks[:OTHERS]]
    for text in play.within(dict.fromkeys((*CONSTANTS, *filter(None, others))), settings.seconds / 2, 2):
        wins = total = 0
        for task in tasks:
            await play.reset(env, task)
            result = await play.step(env, Action(form.say(text)))
            total += 1
            wins += result.terminated and result.reward >= env.world.success_reward
            if total - wins > 2:
                break
        if wilson(wins, total)[0] > CONSTANT_LIMIT:
            what = f"always answering {text!r} wins {wins} of {total} tasks"
            return [Fault(what, tasks[0].split, tasks[0].index, form.say(text), variant)]
    return []


async def winning(env: GymEnv, task: TaskSpec) -> list[Action]:
    """The oracle's actions; none where there is no oracle."""
    try:
        return (await play.play(env, task, play.oracle)).actions
    except play.NoOracle:
        return []


def form_of(actions: Sequence[Action]) -> Form:
    """The form of the oracle's answer: around the last mark in its text, else the whole text."""
    if not actions:
        return Form()
    text = actions[-1].text
    for mark in _MARKS:
        found = list(mark.finditer(text))
        if found:
            start, end = found[-1].span("content")
            return Form(text[:start], text[end:], text[start:end], True)
    return Form(content=text)


@cache
def answers(seed: int, count: int) -> tuple[str, ...]:
    """`count` pieces of garbage, the same for the same seed; the fixed ones lie among them in a drawn order."""
    rng = random.Random(seed)
    found = list(FIXED)
    while len(found) < count:
        kind = rng.randrange(6)
        if kind == 0:
            found.append(" ".join("zq" + _word(rng) for _ in range(rng.randint(1, 5))))
        elif kind == 1:
            found.append("".join(rng.choice(_CHARACTERS) for _ in range(rng.randint(2, 60))))
        elif kind == 2:
            found.append(f"-{rng.randrange(10**11, 10**12)}.{rng.randrange(10**5)}7")
        elif kind == 3:
            found.append(
                ", ".join(f"zq{_word(rng)}={rng.randrange(10**6)}" for _ in range(rng.randint(2, 6)))
            )
        elif kind == 4:
            rows = [[f"zq{rng.randrange(1000)}" for _ in range(3)] for _ in range(rng.randint(1, 3))]
            found.append(str(rows).replace("'", '"'))
        else:
            found.append(f"The answer could be {_word(rng)}, or zq{_word(rng)}; all {_word(rng)} are alike.")
    rng.shuffle(found)
    return tuple(found[:count])


def _word(rng: random.Random) -> str:
    return "".join(rng.choice(string.ascii_lowercase) for _ in range(rng.randint(2, 9)))


def _plain(text: str) -> str:
    return re.sub(r"[\s\[\]{}\"',.]+", "", text).casefold()


def _action(tools: Sequence[Any], form: Form, text: str, order: int) -> Action:
    """Garbage as a plain text, in the form of an answer, or in the arguments of a call of a tool on offer."""
    if tools and order % 3 == 2:
        tool = tools[order % len(tools)]
        names = list(tool.parameters.get("properties", {})) if order % 2 else ["zq", text[:20]]
        name = tool.name if order % 4 else f"zq_{tool.name}"
        return Action("", (ToolCall(name, dict.fromkeys(names, text), f"call-{order}"),))
    if form.marked and order % 4 != 3:
        return Action(form.say(text))
    return Action(text)


def _shown(action: Action) -> str:
    return (
        action.text
        if not action.tool_calls
        else f"{action.tool_calls[0].name}({action.tool_calls[0].arguments})"
    )
