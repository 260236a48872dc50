"""Keeps the opening of a page apart from what is done to the other pages."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator


class Gate:
    """Openings go one by one while no input is under way; inputs go together while no page opens; first come, first
    served.

    The pages share one process. While a new one waits for the debugger, as playwright has every new one do, Chromium
    ignores the mouse and the keys of all pages in that process, and says that they were taken: a click is lost.
    """

    def __init__(self) -> None:
        self._queue: deque[tuple[bool, asyncio.Future[None]]] = deque()
        self._inputs = 0
        self._opens = False

    @contextlib.asynccontextmanager
    async def opening(self) -> AsyncIterator[None]:
        """Enter with no input under way, and keep others out."""
        await self._enter(True)
        try:
            yield
        finally:
            self._leave(True)

    @contextlib.asynccontextmanager
    async def input(self) -> AsyncIterator[None]:
        """Enter while no page opens."""
        await self._enter(False)
        try:
            yield
        finally:
            self._leave(False)

    async def _enter(self, opens: bool) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._queue.append((opens, turn))
        self._serve()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was let in, and cancelled before it knew
                self._leave(opens)
            else:
                self._serve()
            raise

    def _leave(self, opens: bool) -> None:
        if opens:
            self._opens = False
        else:
            self._inputs -= 1
        self._serve()

    def _serve(self) -> None:
        while self._queue and not self._opens:
            opens, turn = self._queue[0]
            if opens and self._inputs and not turn.done():
                return
            self._queue.popleft()
            if turn.done():  # cancelled while it waited
                continue
            self._opens = opens
            self._inputs += not opens
            turn.set_result(None)
