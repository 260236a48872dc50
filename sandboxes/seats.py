"""Who is next: so many at once, the others in the order in which they asked."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from typing import Protocol


class Waiting(Protocol):
    """Somebody who asks for a seat, on an event loop of its own."""

    loop: asyncio.AbstractEventLoop

    def begin(self) -> bool:
        """Take the seat, on that loop. False: it is not wanted any more."""


class Seats:
    """So many at once, the others in the order in which they asked; from any thread and any event loop."""

    def __init__(self, size: int) -> None:
        self._lock, self._free = threading.Lock(), size
        self._waiting: deque[Waiting] = deque()

    def ask(self, who: Waiting) -> None:
        """Let somebody begin, now or later; call it on their event loop."""
        with self._lock:
            if not self._free:
                self._waiting.append(who)
                return
            self._free -= 1
        if not who.begin():
            self.leave()

    def leave(self) -> None:
        """A seat is free: whoever waits longest takes it, at once where that is possible."""
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        while True:
            with self._lock:
                if not self._waiting:
                    self._free += 1
                    return
                who = self._waiting.popleft()
            if who.loop is here:
                if who.begin():
                    return
            else:
                with contextlib.suppress(RuntimeError):  # closed: nobody waits there any more
                    who.loop.call_soon_threadsafe(self._offer, who)
                    return

    def _offer(self, who: Waiting) -> None:
        if not who.begin():
            self.leave()

    async def enter(self) -> None:
        """Take a seat, in turn."""
        claim = _Claim()
        self.ask(claim)
        try:
            await claim.given
        except BaseException:
            if claim.given.done() and not claim.given.cancelled():
                self.leave()
            raise


class _Claim:
    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.given: asyncio.Future[None] = self.loop.create_future()

    def begin(self) -> bool:
        if self.given.done():
            return False
        self.given.set_result(None)
        return True
