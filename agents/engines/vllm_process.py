"""The process that holds vLLM: `python -P -m gymrl.agents.engines.vllm_process FD`, started by the engine `vllm`.

Both ways over one socket go lists of plain tuples. It is asked with

- `("start", [(number, request), ...])`, `("pace", pace, lag)`, `("enter" | "leave", pace, seat)`,
  `("start_at", number, request, pace, seat)`, `("drop", [number, ...])`;
- `("pause" | "resume", number)`, `("load", number, path, version)`, `("close",)`;

and answers lists of `(number, result)`, one for every number: a generation or None, or the exception that it ended
with. The first message is the settings, and its answer has the number 0.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import safe_open

from gymrl.agents.engines.base import EngineFault, EngineSettings
from gymrl.agents.engines.pace import Pace

OPENED = 0
"""The number under which opening is answered."""


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the trainer says when to end, whoever else is told to
    signal.signal(signal.SIGTERM, lambda *_: None)  # not SIG_IGN, which programs started from here would inherit
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    process = Process(Connection(int(sys.argv[1])))
    with contextlib.suppress(EOFError, OSError):  # the other side is gone
        process.serve()
    sys.stdout.flush()
    os._exit(0)  # vLLM's threads and atexit handlers are not waited for


class Process:
    """Hands what comes over the connection to vLLM, and its answers back.

    One thread does both: it reads what is there between two steps. A thread that read beside the steps would take
    Python's lock from them, again and again, and keep it while it waits for a processor.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._asked = select.poll()
        self._asked.register(connection.fileno(), select.POLLIN)
        self._paces: dict[int, Pace[Any]] = {}
        self._core: Any = None

    def serve(self) -> None:
        """Until told to close, or the connection ends (then EOFError)."""
        settings: EngineSettings = pickle.loads(self.connection.recv_bytes())
        try:
            from gymrl.agents.engines.vllm_core import VllmCore

            self._core = VllmCore(settings)
        except BaseException as error:  # SystemExit too: a library's exit is not ours
            self._send([(OPENED, broken_weights(settings.model) or error)])
            return
        self._send([(OPENED, None)])
        goes_on = True
        while goes_on:
            busy = self._core.step()
            self._tell()
            goes_on = self._hear(wait=not busy)

    def _hear(self, wait: bool) -> bool:
        """Do all that has been asked, having waited for something where told to. False: the end was asked for."""
        while self._asked.poll(None if wait else 0):
            wait = False
            for message in pickle.loads(self.connection.recv_bytes()):
                if message[0] == "close":
                    self._core.stop()
                    return False
                getattr(self, "_on_" + message[0])(*message[1:])
            self._tell()
        return True

    # -- what is asked ---------------------------------------------------------------------------------

    def _on_start(self, requests: list[tuple[int, Any]]) -> None:
        self._core.start(requests)

    def _on_pace(self, number: int, lag: int) -> None:
        self._paces[number] = self._core.open_pace(lag)

    def _on_enter(self, pace: int, seat: int) -> None:
        self._paces[pace].enter(seat)

    def _on_leave(self, pace: int, seat: int) -> None:
        self._paces[pace].leave(seat)
        if self._paces[pace].closed:
            del self._paces[pace]

    def _on_start_at(self, number: int, request: Any, pace: int, seat: int) -> None:
        self._core.start_at(number, request, self._paces[pace], seat)

    def _on_drop(self, numbers: list[int]) -> None:
        self._core.drop(numbers)

    def _on_pause(self, number: int) -> None:
        self._command(number, lambda: setattr(self._core, "paused", True))

    def _on_resume(self, number: int) -> None:
        self._command(number, lambda: setattr(self._core, "paused", False))

    def _on_load(self, number: int, path: str, version: int) -> None:
        from safetensors.torch import load_file

        self._command(number, lambda: self._core.load_weights(load_file(path).items(), version))

    def _command(self, number: int, work: Callable[[], None]) -> None:
        result: Exception | None = None
        try:
            if self._core.fault:
                raise EngineFault(self._core.fault)
            work()
        except Exception as error:
            result = error
        self._core.answers.append((number, result))

    # -- answers ---------------------------------------------------------------------------------------

    def _tell(self) -> None:
        """Send the answers that there are, all at once."""
        if self._core.answers:
            answers, self._core.answers = self._core.answers, []
            self._send(answers)

    def _send(self, answers: list[tuple[int, Any]]) -> None:
        sent = [
            (number, portable(result) if isinstance(result, BaseException) else result)
            for number, result in answers
        ]
        self.connection.send_bytes(pickle.dumps(sent, pickle.HIGHEST_PROTOCOL))


def portable(error: BaseException) -> ValueError | EngineFault:
    """The error as it can be sent: what a library raises may hold objects that no pickle takes, subclasses of
    ValueError (pydantic's) included, so only its words go, under a type that is there on the other side."""
    if type(error) is ValueError or type(error) is EngineFault:
        return type(error)(str(error))  # not itself: its arguments and notes may hold such objects too
    words = str(error)
    if isinstance(error, ValidationError):  # its own words repeat vLLM's whole configuration
        words = "; ".join(entry["msg"] for entry in error.errors(include_input=False, include_context=False))
    return EngineFault(f"{type(error).__name__}: {words}")


def broken_weights(model: str | Path) -> EngineFault | None:
    """The file of a checkpoint that cannot be read, if there is one: vLLM's own error does not name it."""
    for path in sorted(Path(model).glob("*.safetensors")):
        try:
            with safe_open(path, "pt"):
                continue
        except Exception as error:  # safetensors has a type of its own
            return EngineFault(
                f"its {path.name} cannot be read ({error}): take another checkpoint or copy this one again"
            )
    return None


def _end_with(parent: int) -> None:
    """The socket may be held open by others whom the parent has started; its death is not."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    main()
