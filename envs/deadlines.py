"""Time limits for an environment's answers that do not run while it waits for its turn.

A caller that grants an environment some seconds writes `async with within(seconds)` in the place of
`asyncio.timeout`. A world that lets only a few of its calls run at once (the pages of one browser, the resets in one
worker process, the starts of servers) holds the limit with `turn = wait_turn()` until the call's own work begins, and
then says `turn.begun()`; so that a call is not late because others were before it.
"""

from __future__ import annotations

import asyncio
import contextlib
from contextvars import ContextVar
from types import TracebackType


class Turn:
    """A wait for one's turn. `begun` may be called from any thread, and more than once."""

    def __init__(self, limit: asyncio.Timeout | None) -> None:
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
            with contextlib.suppress(RuntimeError):  # the call is over, or was cancelled
                limit.reschedule(self._loop.time() + self._left)


_LIMIT: ContextVar[asyncio.Timeout | None] = ContextVar("gymrl_deadline", default=None)


class within:
    """`asyncio.timeout(seconds)`, which stands still while a world that is called inside waits for its turn.

    What held up the event loop beyond the limit is late too, once it has ended.
    """

    def __init__(self, seconds: float) -> None:
        self._limit = asyncio.timeout(seconds)

    async def __aenter__(self) -> asyncio.Timeout:
        await self._limit.__aenter__()
        self._before = _LIMIT.set(self._limit)
        return self._limit

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _LIMIT.reset(self._before)
        if error is None and self._overdue():
            try:
                await asyncio.sleep(60.0)  # the loop has had no chance to end it: it does so now
            except BaseException as late:
                await self._limit.__aexit__(type(late), late, late.__traceback__)
                raise
        await self._limit.__aexit__(kind, error, trace)

    def _overdue(self) -> bool:
        when = self._limit.when()
        return when is not None and asyncio.get_running_loop().time() >= when and not self._limit.expired()


def wait_turn() -> Turn:
    """Hold the limit of the call that is under way on this task, if it has one."""
    return Turn(_LIMIT.get())
