"""How a run is asked to stop: Ctrl-C, or the SIGTERM that a cluster sends before it takes a machine away."""

from __future__ import annotations

import contextlib
import re
import signal
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gymrl.agents.records import Episode

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 and the signal's number."""
TERMINATED = 143
"""Exit code after SIGTERM."""

_TAKEN = re.compile(r"\bdied\b|\bSIGTERM\b")


class Interrupted(Exception):
    """The run was asked to stop, and what it was at is finished or can be done again."""


class Stop:
    """While it is entered, the first Ctrl-C or SIGTERM asks the run to stop where it can go on from; it is told with
    `note`. A second Ctrl-C stops at once. A second SIGTERM does nothing, as `timeout`, Slurm and launchers send it both
    to a process and to its group. A SIGTERM that the program has a handler of its own for is left to that."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self.note = note
        self.by: signal.Signals | None = None
        """The signal that asked first."""
        self._before: list[tuple[signal.Signals, Any]] = []

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():  # no other may handle signals
            self._take(signal.SIGINT)
            if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
                self._take(signal.SIGTERM)
        return self

    def _take(self, number: signal.Signals) -> None:
        self._before.append((number, signal.signal(number, self._heard)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before:
            signal.signal(number, handler)

    def _heard(self, number: int, frame: object) -> None:
        if self.by is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.by = signal.Signals(number)
        said = "stopping after this step (again to stop at once) ..."
        if number == signal.SIGTERM:
            said = "SIGTERM: stopping after this step (Ctrl-C to stop at once) ..."
        with contextlib.suppress(
            RuntimeError, OSError
        ):  # it came in the middle of another line, or nobody reads
            self.note(said)

    @property
    def asked(self) -> bool:
        return self.by is not None

    @property
    def code(self) -> int:
        return TERMINATED if self.by == signal.SIGTERM else INTERRUPTED

    def check(self, *_: object) -> None:
        """Raise Interrupted if the run was asked to stop."""
        if self.asked:
            raise Interrupted

    def took(self, episodes: Sequence[Episode]) -> bool:
        """Whether the SIGTERM went to all processes of the machine, and worlds of these episodes died of it: they are
        not what they would have been."""
        return self.by == signal.SIGTERM and any(not e.valid and _TAKEN.search(e.reason) for e in episodes)


def leave_to_the_first() -> None:
    """Of several processes only the first one is asked to stop, whoever gets the signal: it tells the others."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
