"""Gates between episodes and an engine: when does a request join the engine's batch?

- a number: in the engine step that many after the same seat's last completion, wherever its environment is by then
  (`gymrl.agents.engines.pace`). Continuous batching, and yet results depend on the jobs alone.
- `lockstep`: one batch a round, when every running episode has asked. Results depend on the jobs alone; the engine
  idles while environments work. What serves where an engine's steps cannot be counted (a server's).
- `free`: at once. Nothing waits for anything; results follow, in their last bits, from timing.
"""

from __future__ import annotations

import asyncio
import time
from typing import Literal, Protocol

from gymrl.agents.engines.base import Engine, EngineFault, Generation, GenerationRequest, Seats
from gymrl.agents.players import Generator, Job


class Gate(Generator, Protocol):
    """Seats are numbered from 0; each plays one episode at a time."""

    seated: bool
    """Whether the jobs of a seat have to be known beforehand: job i is then seat i modulo the number of seats."""

    def enter(self, seat: int) -> None:
        """All seats enter before the first of them asks."""

    def leave(self, seat: int) -> None: ...


def gate_for(engine: Engine, pace: int | Literal["lockstep", "free"], seats: int) -> Gate:
    if pace == "free":
        return DirectGate(engine)
    if pace != "lockstep" and (kept := engine.open_pace(pace)) is not None:
        return PacedGate(engine, kept, seats)
    return LockstepGate(engine)


class _Busy:
    """Counts the time in which an engine has at least one request into its `busy_seconds`."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.calls, self.since = engine, 0, 0.0

    def __enter__(self) -> None:
        if self.calls == 0:
            self.since = time.perf_counter()
        self.calls += 1

    def __exit__(self, *_: object) -> None:
        self.calls -= 1
        if self.calls == 0:
            self.engine.busy_seconds += time.perf_counter() - self.since


class DirectGate:
    """Hands every request to the engine as it comes."""

    seated = False

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._busy = _Busy(engine)

    async def generate(self, job: Job, request: GenerationRequest) -> Generation:
        with self._busy:
            return await self.engine.generate(request)

    def enter(self, seat: int) -> None: ...

    def leave(self, seat: int) -> None: ...


class LockstepGate:
    """Waits until every episode that runs has asked, then submits all requests at once, in the jobs' order."""

    seated = False

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._busy = _Busy(engine)
        self._active = 0
        self._waiting: list[tuple[int, GenerationRequest, asyncio.Future[Generation]]] = []
        self._batches: set[asyncio.Task[None]] = set()

    def enter(self, seat: int) -> None:
        self._active += 1

    def leave(self, seat: int) -> None:
        self._active -= 1
        self._submit()

    async def generate(self, job: Job, request: GenerationRequest) -> Generation:
        future: asyncio.Future[Generation] = asyncio.get_running_loop().create_future()
        self._waiting.append((job.order, request, future))
        self._submit()
        return await future

    def _submit(self) -> None:
        if self._waiting and len(self._waiting) >= self._active:
            batch, self._waiting = sorted(self._waiting, key=lambda item: item[0]), []
            task = asyncio.get_running_loop().create_task(self._run(batch))
            self._batches.add(task)
            task.add_done_callback(self._batches.discard)

    async def _run(self, batch: list[tuple[int, GenerationRequest, asyncio.Future[Generation]]]) -> None:
        fault: BaseException

        def answer(place: int, result: Generation) -> None:
            """What is done goes to its environment while the others are still being written."""
            future = batch[place][2]
            if not future.done():
                future.set_result(result)

        try:
            with self._busy:
                await self.engine.generate_batch([request for _, request, _ in batch], answer)
        except (Exception, asyncio.CancelledError) as error:  # whoever waits must hear of it
            cancelled = isinstance(error, asyncio.CancelledError)
            fault = EngineFault("the engine dropped its requests") if cancelled else error
            for _, _, future in batch:
                if not future.done():
                    future.set_exception(fault)


class PacedGate:
    """Gives every seat its steps of the engine."""

    seated = True

    def __init__(self, engine: Engine, pace: Seats, seats: int) -> None:
        self.engine, self.pace, self.seats = engine, pace, seats
        self._busy = _Busy(engine)

    def enter(self, seat: int) -> None:
        self.pace.enter(seat)

    def leave(self, seat: int) -> None:
        self.pace.leave(seat)

    async def generate(self, job: Job, request: GenerationRequest) -> Generation:
        with self._busy:
            return await self.engine.generate_at(request, self.pace, job.order % self.seats)
