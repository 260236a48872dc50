"""The judge: math-verify in processes of its own: it needs a main thread for its alarms, and may be killed there.

`python -m gymrl.envs.math_tools.judge` answers lines of JSON, [gold, answer], with `true` or `false`.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import importlib.util
import json
import os
import queue
import resource
import select
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

from gymrl.envs.gym import EnvironmentFault
from gymrl.envs.math_tools.answers import plain, presentable, whole

if importlib.util.find_spec("math_verify") is None:
    raise ImportError("No module named 'math_verify'")

T = TypeVar("T")
SECONDS = 30.0
"""What a verdict may take before its process is killed; math-verify itself gives up after 5 s a step."""
MEMORY = 2 * 2**30


class Judge:
    """Says whether answers are right. `size` processes, started when they are needed, shared by all threads."""

    def __init__(self, size: int = 2) -> None:
        self.size = size
        self._lock = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._owner = os.getpid()
        self._idle: queue.LifoQueue[_Process | None] = queue.LifoQueue()
        for _ in range(self.size):
            self._idle.put(None)
        self._threads = ThreadPoolExecutor(self.size, "gymrl-judge")
        gate = threading.Barrier(self.size)  # all of them now, so that their number is the same from here on
        for _ in range(self.size):
            self._threads.submit(gate.wait)

    async def off_loop(self, call: Callable[[], T]) -> T:
        """Make a call that waits in a thread of the judge's."""
        if self._owner != os.getpid():  # a fork shares neither pipes nor threads
            self._begin()
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    async def right(self, gold: str, answer: str) -> bool:
        """Whether an answer means what the right one does. One that the verifier fails on, twice, is wrong.

        Raises EnvironmentFault if the verifier cannot be started.
        """
        if plain(gold) == plain(answer):
            return True
        if not presentable(gold, answer):
            return False
        one, other = whole(gold), whole(answer)
        if one is not None and other is not None:
            return one == other
        return await self.off_loop(lambda: self.ask(gold, answer))

    def ask(self, gold: str, answer: str) -> bool:
        """`right` by math-verify itself, blocking."""
        for _ in range(2):
            process = self._take()
            verdict = process.ask(gold, answer)
            if verdict is not None:
                self._idle.put(process)
                return verdict
            process.close()
            self._idle.put(None)
        return False

    def warm(self) -> None:
        """Have one process ready. Raises EnvironmentFault if it cannot be started."""
        with self._lock:
            if self._owner == os.getpid() and any(item is not None for item in list(self._idle.queue)):
                return
            self._idle.put(self._take())

    def _take(self) -> _Process:
        if self._owner != os.getpid():
            self._begin()
        process = self._idle.get()
        if process is None:
            try:
                return _Process()
            except BaseException:
                self._idle.put(None)
                raise
        return process

    def close(self) -> None:
        """End the processes that are idle."""
        if self._owner == os.getpid():
            with contextlib.suppress(queue.Empty):
                while True:
                    process = self._idle.get_nowait()
                    if process is not None:
                        process.close()
            self._threads.shutdown(wait=False)


class _Process:
    def __init__(self) -> None:
        self.child = subprocess.Popen(
            [sys.executable, "-m", "gymrl.envs.math_tools.judge"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )  # fmt: skip
        if self.ask("1", "1", 300.0) is not True:
            self.close()
            raise EnvironmentFault("math-verify does not start: reinstall it (pip install 'gymrl[math]')")

    def ask(self, gold: str, answer: str, seconds: float = SECONDS) -> bool | None:
        """The verdict; None where the process died or took too long."""
        assert self.child.stdin is not None and self.child.stdout is not None
        try:
            self.child.stdin.write(json.dumps([gold, answer]).encode() + b"\n")
            self.child.stdin.flush()
            ready, _, _ = select.select([self.child.stdout], [], [], seconds)
            line = self.child.stdout.readline() if ready else b""
        except OSError:
            return None
        return json.loads(line) is True if line.endswith(b"\n") else None

    def close(self) -> None:
        self.child.kill()
        self.child.wait()
        for pipe in (self.child.stdin, self.child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


@cache
def shared_judge() -> Judge:
    """The one judge of this process's environments; it ends with the process."""
    judge = Judge()
    atexit.register(judge.close)
    return judge


def serve() -> None:
    """Answer lines until there are no more."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print is no verdict
    import logging

    logging.disable(logging.CRITICAL)
    import math_verify

    for line in sys.stdin:
        gold, answer = json.loads(line)
        try:
            parsed = [math_verify.parse(f"\\boxed{{{text}}}") for text in (gold, answer)]
            verdict = all(parsed) and bool(math_verify.verify(parsed[0], parsed[1]))
        except Exception:  # it raises whatever sympy does
            verdict = False
        out.write(json.dumps(verdict) + "\n")
        out.flush()


if __name__ == "__main__":
    serve()
