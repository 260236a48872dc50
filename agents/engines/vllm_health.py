"""Whether a server that takes its time for an answer is there at all.

An honest completion may take an hour, so that no time-out of one tells a slow server from one that hangs. A vLLM server
answers /health at once, however busy it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import httpx

SECONDS = 20.0
"""How long a server may be silent before it is asked, and how long it has for its answer."""
MISSES = 3
"""So many questions in a row without an answer, and it counts as hung."""


class Hung(Exception):
    """The server accepts requests, or did, and answers nothing. seconds: for so long."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"it has answered nothing, not even /health, for {seconds:g} s")


class Health:
    """Watches a server while requests wait; one event loop's."""

    def __init__(self, client: httpx.AsyncClient, seconds: float, tell: Callable[[str], None]) -> None:
        """`tell` hears of the first question that has no answer."""
        self.client, self.seconds, self._tell = client, seconds, tell
        self._waiting = 0
        self._watch: asyncio.Task[None] | None = None

    async def wait(self, request: Coroutine[Any, Any, httpx.Response]) -> httpx.Response:
        """The request's answer. Raises Hung, and cancels the request, if the server hangs."""
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._look())
        asked, watch = asyncio.ensure_future(request), self._watch
        self._waiting += 1
        try:
            await asyncio.wait((asked, watch), return_when=asyncio.FIRST_COMPLETED)
            if asked.done():
                return await asked
            raise Hung(self.seconds * (MISSES + 1))
        finally:
            asked.cancel()
            self._waiting -= 1
            if not self._waiting:
                watch.cancel()
                self._watch = None

    async def _look(self) -> None:
        """Ends when the server hangs."""
        misses = 0
        while misses < MISSES:
            if not misses:
                await asyncio.sleep(self.seconds)
            try:
                async with asyncio.timeout(self.seconds):
                    await self.client.get("/health")
            except TimeoutError:
                misses += 1
                if misses == 1:
                    self._tell(f"has answered nothing for {2 * self.seconds:g} s, and is asked again")
            except (httpx.HTTPError, RuntimeError):  # the requests themselves fail of that
                await asyncio.sleep(self.seconds)
            else:
                misses = 0
