"""The environment `gymrl/MathTools-v0`."""

from __future__ import annotations

import random
from typing import Any

from gymrl.envs.code_interpreter.problems import Problem
from gymrl.envs.environment import Environment
from gymrl.envs.marks import boxed, code_blocks
from gymrl.envs.math_tools.files import FileProblems
from gymrl.envs.math_tools.judge import shared_judge
from gymrl.envs.math_tools.problems import KINDS, Procedural
from gymrl.envs.programs import Programs, show, told
from gymrl.envs.records import Action, Message, Observation, TaskSpec

INSTRUCTIONS = (
    "Solve the problem. Write Python in a ```python block to run it and see what it prints. "
    "Give the final answer in \\boxed{}."
)
VOID = "Write a ```python block, or the final answer in \\boxed{}."


class MathTools(Environment):
    r"""Solve a math problem with the help of Python, turn by turn.

    A turn with \boxed{...} outside of code ends the episode, with reward 1 where the answer is right and 0 where it is
    not; else a turn with a code block runs it (all blocks of the turn, as one program) and shows what came out. A turn
    with neither is void and is told so.

    problems: `procedural`, a JSONL file of problems, or the folder of a Hugging Face dataset. kinds: of the procedural
    ones, with commas between; all of them where it is empty. difficulty: of the procedural ones, 1 to 5. question,
    answer: the fields of a file's problems, where they have unusual names. stateful: whether variables live on over
    turns. max_turns: turns after which the episode is truncated. output_cap: characters of a run's output that are
    shown. timeout: seconds for one run. sandbox: the name of a sandbox (`auto`: the best that isolates).
    """

    version = "1"
    runs = "inline"

    def __init__(
        self, problems: str = "procedural", kinds: str = "", difficulty: int = 2, question: str = "", answer: str = "",
        stateful: bool = False, max_turns: int = 5, output_cap: int = 512, timeout: float = 5.0, sandbox: str = "auto",
    ) -> None:  # fmt: skip
        if max_turns < 1 or output_cap < 1:
            raise ValueError("max_turns and output_cap are 1 or more")
        self.source: Procedural | FileProblems
        if problems == "procedural":
            self.source = Procedural(tuple(k.strip() for k in kinds.split(",") if k.strip()), difficulty)
        elif kinds:
            raise ValueError("kinds are of the procedural problems: leave them out, or leave out problems")
        else:
            self.source = FileProblems(problems, question, answer)
            self.sizes = self.source.sizes
        self.max_turns, self.output_cap = max_turns, output_cap
        self.programs = Programs(sandbox, timeout, stateful)

    async def reset(self) -> Observation:
        await self.programs.begin()
        await shared_judge().off_loop(shared_judge().warm)  # once, which takes a moment
        self.problem: Problem = self.source.draw(self.task, self.rng)
        self.output: str | None = None
        return Observation((Message("system", INSTRUCTIONS), Message("user", self.problem.question)))

    async def step(self, action: Action) -> tuple[Any, ...]:
        said = boxed(action.text)
        if said is not None:
            right = await shared_judge().right(self.problem.answer, said)
            return f"The answer is {'right' if right else 'wrong'}.", float(right), True, {"answer": said}
        blocks = code_blocks(action.text)
        if not blocks:
            return VOID, 0.0, False
        result = await self.programs.run(blocks)
        self.output = result.stdout.strip()
        return f"```output\n{show(result, self.output_cap)}\n```", 0.0, False, told(result)

    def recognises(self, action: Action) -> bool:
        return boxed(action.text) is not None or bool(code_blocks(action.text))

    def oracle(self) -> str:
        if self.output is None and self.problem.solution:
            return f"```python\n{self.problem.solution}\n```"
        return f"\\boxed{{{self.output or self.problem.answer}}}"

    def random_action(self, rng: random.Random) -> str:
        return f"\\boxed{{{rng.randrange(-100, 1000)}}}"

    def describe_task(self, task: TaskSpec) -> str:
        drawn = self.source.draw(task, task.rng())
        return f"{drawn.kind}\n{drawn.question}"

    def task_families(self) -> tuple[dict[str, Any], ...]:
        if isinstance(self.source, FileProblems):
            return ()
        return tuple({"kinds": kind} for kind in self.source.kinds) if len(self.source.kinds) > 1 else ()

    async def close(self) -> None:
        await self.programs.close()


__all__ = ["KINDS", "MathTools"]
