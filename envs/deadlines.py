"""Time limits for an environment's answers that do not run while it waits for its turn.

A caller that grants an environment some seconds writes `async with within(seconds)` in the place of
`asyncio.timeout`. A world that lets only a few of its calls run at once (the pages of one browser, the starts of
servers) holds the limit with `turn = wait_turn()` until the call's own work begins, and then says `turn.begun()`; so
that a call is not late because others were before it. Where nobody is told when the work begins, `ask` of the limit
(see `limit_of_call`) is asked when the time is over.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from contextvars import ContextVar
from types import TracebackType


class NoTurn(TimeoutError):
    """The time was over before the call's own work had its turn: others held it up."""


class Turn:
    """A wait for one's turn. `begun` may be called from any thread, and more than once."""

    def __init__(self, limit: within | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._limit, self._left = limit, 0.0
        if limit is not None and (when := limit.when()) is not None:
            self._left = when - self._loop.time()
            limit.reschedule(None)
        else:  # no limit, or one that another wait of the same call holds
            self._limit = None

    def begun(self) -> None:
        if asyncio._get_running_loop() is self._loop:
            self._run()
        else:
            with contextlib.suppress(RuntimeError):  # the caller's loop is closed
                self._loop.call_soon_threadsafe(self._run)

    def _run(self) -> None:
        limit, self._limit = self._limit, None
        if limit is not None:
            limit.reschedule(self._loop.time() + self._left)


class within:
    """`asyncio.timeout(seconds)`, which stands still while a world that is called inside waits for its turn.

    What held up the event loop beyond the limit is late too, once it has ended. Raises NoTurn, which is a TimeoutError,
    if the call was still waiting.
    """

    def __init__(self, seconds: float) -> None:
        self.ask: Callable[[float], tuple[float, bool]] | None = None
        """Asked when the time is over, with `seconds`: what is left of them after all, and whether the call waits."""
        self._seconds, self._waits = seconds, False
        self._timeout = asyncio.timeout(None)
        self._when: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._ended = False

    def when(self) -> float | None:
        """The loop's time at which it is over; None while it is held."""
        return self._when

    def expired(self) -> bool:
        return self._timeout.expired()

    def reschedule(self, when: float | None) -> None:
        """Let it be over at another time; None holds it. Does nothing after the call."""
        if self._ended:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._when = when
        self._timer = None if when is None else self._loop.call_at(when, self._ring)

    def _ring(self) -> None:
        left, self._waits = self.ask(self._seconds) if self.ask is not None else (0.0, False)
        if left > 0:
            self.reschedule(self._loop.time() + left)
        elif not self.expired():
            self._timeout.reschedule(self._when)

    async def __aenter__(self) -> within:
        self._loop = asyncio.get_running_loop()
        await self._timeout.__aenter__()
        self.reschedule(self._loop.time() + self._seconds)
        self._before = _LIMIT.set(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _LIMIT.reset(self._before)
        try:
            if error is None and self._overdue():
                try:
                    await asyncio.sleep(60.0)  # the loop has had no chance to end it: it does so now
                except BaseException as late:
                    await self._timeout.__aexit__(type(late), late, late.__traceback__)
                    raise
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError as late:
            if self._waits and self.expired():
                raise NoTurn(*late.args) from late
            raise
        finally:
            self.reschedule(None)
            self._ended = True

    def _overdue(self) -> bool:
        return self._when is not None and self._loop.time() >= self._when and not self.expired()


_LIMIT: ContextVar[within | None] = ContextVar("gymrl_deadline", default=None)


def wait_turn() -> Turn:
    """Hold the limit of the call that is under way on this task, if it has one."""
    return Turn(_LIMIT.get())


def limit_of_call() -> within | None:
    """The limit of the call that is under way on this task, if it has one."""
    return _LIMIT.get()
