"""Admission by the engine's own step count: continuous batching whose batches depend on the requests alone.

An engine that takes requests as they come batches whatever happens to be there, and its results then follow, in their
last bits, from the timing of the environments. Waiting until everybody has asked removes that, and leaves the engine
idle while environments work and half empty while the last ones finish. A pace removes it otherwise: a seat (one
episode at a time) whose request was completed in step s is due again in step s + lag. What comes earlier is held until
then, and where it comes later the engine waits. Which requests share a step then follows from their lengths, never from
a clock.

With more seats than the engine runs requests at once, seats that are due queue up, first due first, and the engine
waits for none that it has no room for: environments work while others generate, and the engine's batch stays full.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Pace(Generic[Item]):
    """The seats of one rollout. `enter`, `leave` and `offer` belong to whoever plays and may come from any thread; the
    engine's thread calls the others, holding `wake`."""

    def __init__(self, lag: int, wake: threading.Condition, slots: int) -> None:
        """`lag` is in engine steps, 1 or more; `slots` is how many requests run at once. `wake` guards what is here and
        is notified of what changes."""
        if lag < 1:
            raise ValueError(f"a lag is 1 step or more, not {lag}")
        self.lag, self.slots, self.step = lag, slots, 0
        self._wake = wake
        self._seats: set[int] = set()
        self.closed = False
        """Every seat has left."""
        self._due: dict[int, int] = {}
        self._offered: dict[int, Item] = {}
        self._running: set[int] = set()

    # -- whoever plays ---------------------------------------------------------------------------------

    def enter(self, seat: int) -> None:
        """The seat will offer a request: the engine's next step waits for it."""
        with self._wake:
            self._seats.add(seat)
            self._due[seat] = self.step

    def offer(self, seat: int, item: Item) -> None:
        with self._wake:
            self._offered[seat] = item
            self._wake.notify_all()

    def leave(self, seat: int) -> None:
        """The seat will offer nothing more, and what it has offered and is not running is forgotten."""
        with self._wake:
            self._seats.discard(seat)
            self.closed = not self._seats
            self._running.discard(seat)
            self._due.pop(seat, None)
            self._offered.pop(seat, None)
            self._wake.notify_all()

    # -- the engine ------------------------------------------------------------------------------------

    def missing(self) -> bool:
        """Whether a seat whose turn it is has not offered yet. With nothing running the count jumps to the first that
        is due."""
        if self._due and not self._running:
            self.step = max(self.step, min(self._due.values()))
        return any(seat not in self._offered for seat in self._next())

    def admit(self) -> list[Item]:
        """What joins now, first due first, then in the order of the seats; ask `missing` before."""
        seats = self._next()
        for seat in seats:
            del self._due[seat]
            self._running.add(seat)
        return [self._offered.pop(seat) for seat in seats]

    def _next(self) -> list[int]:
        """The seats that are due now and that there is room for."""
        queue = sorted((due, seat) for seat, due in self._due.items() if due <= self.step)
        return [seat for _, seat in queue[: max(0, self.slots - len(self._running))]]

    def done(self, seat: int) -> None:
        """The seat's request is completed, or was dropped."""
        if seat in self._running:
            self._running.discard(seat)
            self._due[seat] = self.step + self.lag

    def drain(self) -> list[Item]:
        """All that was offered and not admitted: the engine ends."""
        items, self._offered = list(self._offered.values()), {}
        return items


@dataclass(frozen=True)
class Place(Generic[Item]):
    """A request's seat; of one that is not paced there is none."""

    pace: Pace[Item]
    seat: int


class Paces(Generic[Item]):
    """The paces of one engine. All but `open` is the engine's, under `wake`."""

    def __init__(self, wake: threading.Condition, slots: int) -> None:
        """`slots` is how many requests the engine runs at once."""
        self._wake, self._slots = wake, slots
        self._open: list[Pace[Item]] = []

    def open(self, lag: int) -> Pace[Item]:
        pace: Pace[Item] = Pace(lag, self._wake, self._slots)
        with self._wake:
            self._open.append(pace)
        return pace

    def admit(self) -> list[Item] | None:
        """What joins the next step; None: the engine has to wait for somebody (it is notified)."""
        self._open = [pace for pace in self._open if not pace.closed]
        if any(pace.missing() for pace in self._open):
            return None
        return [item for pace in self._open for item in pace.admit()]

    def done(self, place: Place[Item] | None) -> None:
        """The request of that place is completed, or was dropped."""
        if place is not None:
            place.pace.done(place.seat)

    def tick(self) -> None:
        """A step was made."""
        for pace in self._open:
            pace.step += 1

    def drain(self) -> list[Item]:
        return [item for pace in self._open for item in pace.drain()]
