"""The environment `gymrl/CodeInterpreter-v0`."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from gymrl.envs.code_interpreter.problems import Arithmetic, Problem, ProblemSource
from gymrl.envs.environment import Environment
from gymrl.envs.marks import answer, code_blocks
from gymrl.envs.records import Action, Message, Observation, TaskSpec
from gymrl.sandboxes import Result, Session, shared_sandbox

INSTRUCTIONS = "Write Python in a ```python block to run it. End with <answer>...</answer>."


class CodeInterpreter(Environment):
    """Answer a question with the help of Python.

    A turn with a code block runs it (all blocks of the turn, as one program) and shows the output; a turn with
    <answer>...</answer> ends the episode with reward 1 where the answer is right and 0 where it is not. A turn
    with neither is void and is told so.

    tasks: `arithmetic`, `reasoning-gym` (all sound families) or `reasoning-gym:FAMILY,FAMILY`.
    terms, digits: size of the arithmetic expressions. stateful: whether variables live on over turns.
    max_calls: turns after which the episode is truncated. timeout: seconds for one run. sandbox: the name of a
    sandbox (`auto`: the best that isolates). from_head: share of tasks whose oracle answers at once, without running
    code (for demonstrations of mixed habits).
    """

    version = "1"
    runs = "inline"

    def __init__(
        self, tasks: str = "arithmetic", terms: int = 3, digits: int = 2, stateful: bool = False,
        max_calls: int = 8, timeout: float = 5.0, sandbox: str = "auto", from_head: float = 0.0,
    ) -> None:  # fmt: skip
        self.source = problem_source(tasks, terms, digits)
        self.stateful, self.timeout, self.sandbox, self.max_turns = stateful, timeout, sandbox, max_calls
        self.from_head = from_head
        self.session: Session | None = None

    async def reset(self) -> Observation:
        if self.session:
            await self.session.reset()
        await asyncio.to_thread(shared_sandbox, self.sandbox)  # built once, which takes a moment
        self.problem: Problem = self.source.draw(self.task, self.rng)
        self.knows = self.rng.random() < self.from_head or not self.problem.solution
        self.output: str | None = None
        return Observation((Message("system", INSTRUCTIONS), Message("user", self.problem.question)))

    async def step(self, action: Action) -> tuple[Any, ...]:
        said = answer(action.text)
        if said is not None:
            score = self.source.score(self.problem, said)
            return f"The answer is {'right' if score >= 1 else 'wrong'}.", score, True, {"answer": said}
        blocks = code_blocks(action.text)
        if not blocks:
            return "Write a ```python block or <answer>...</answer>.", 0.0, False
        result = await self._run("\n".join(blocks))
        shown = show(result)
        self.output = result.stdout.strip()
        info = {"exit": result.exit, "sandbox": result.backend, "sandbox_seconds": result.seconds}
        return f"```output\n{shown}\n```", 0.0, False, info

    async def _run(self, code: str) -> Result:
        sandbox = shared_sandbox(self.sandbox)
        if not self.stateful:
            return await sandbox.run(code, self.timeout)
        if self.session is None:
            self.session = await sandbox.session()
        return await self.session.run(code, self.timeout)

    def oracle(self) -> str:
        if self.output is None and not self.knows:
            return f"```python\n{self.problem.solution}\n```"
        return f"<answer>{self.output if self.output is not None else self.problem.answer}</answer>"

    def random_action(self, rng: random.Random) -> str:
        return f"<answer>{rng.randrange(-1000, 10000)}</answer>"

    def describe_task(self, task: TaskSpec) -> str:
        drawn = self.source.draw(task, task.rng())
        return f"{drawn.kind}\n{drawn.question}"

    def task_families(self) -> tuple[dict[str, Any], ...]:
        return tuple({"tasks": name} for name in self.source.families_by_name())

    async def close(self) -> None:
        if self.session:
            await self.session.close()


def problem_source(tasks: str, terms: int, digits: int) -> ProblemSource:
    """The source of that name. Raises ValueError for an unknown one."""
    if tasks == "arithmetic":
        return Arithmetic(terms, digits)
    if tasks == "reasoning-gym" or tasks.startswith("reasoning-gym:"):
        from gymrl.envs.code_interpreter.reasoning import ReasoningTasks

        families = tuple(name.strip() for name in tasks.partition(":")[2].split(",") if name.strip())
        return ReasoningTasks(families or None)
    raise ValueError(f"unknown tasks {tasks!r}: take arithmetic, reasoning-gym or reasoning-gym:FAMILY,FAMILY")


def show(result: Result, limit: int = 2000) -> str:
    """What the agent sees of a run: its output, then the last lines of its errors, cut to `limit` characters."""
    text = result.stdout.rstrip("\n")
    if result.value:
        text = f"{text}\n{result.value}" if text else result.value
    if result.killed_by:
        text = f"{text}\n[stopped: {result.killed_by}]".lstrip("\n")
    elif result.exit:
        text = f"{text}\n{result.stderr.rstrip()[-500:]}".lstrip("\n")
    return text if len(text) <= limit else f"{text[:limit]}\n[{len(text) - limit} characters more]"
