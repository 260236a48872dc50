"""The process that holds vLLM: `python -P -m gymrl.agents.engines.vllm_process FD`, started by the engine `vllm`.

Both ways over one socket go lists of plain tuples. It is asked with

- `("start", [(number, request), ...])`, `("pace", pace, lag)`, `("enter" | "leave", pace, seat)`,
  `("start_at", number, request, pace, seat)`, `("drop", [number, ...])`;
- `("pause" | "resume", number)`, `("load", number, path, version)`, `("close",)`;

and answers `(number, result)` for every number, a generation or None, or the exception that it ended with. The first
message is the settings, and its answer has the number 0.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import threading
import time
from concurrent.futures import CancelledError, Future
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from gymrl.agents.engines.base import EngineFault, EngineSettings
from gymrl.agents.engines.pace import Pace, Place

OPENED = 0
"""The number under which opening is answered."""


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the trainer says when to end
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    process = Process(Connection(int(sys.argv[1])))
    with contextlib.suppress(EOFError, OSError):  # the other side is gone
        process.serve()
    sys.stdout.flush()
    os._exit(0)  # vLLM's threads and atexit handlers are not waited for


class Process:
    """Hands what comes over the connection to vLLM, and its answers back."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._lock = threading.Lock()
        self._runs: dict[int, Any] = {}
        self._paces: dict[int, Pace[Any]] = {}
        self._core: Any = None

    def serve(self) -> None:
        """Until told to close, or the connection ends (then EOFError)."""
        settings: EngineSettings = pickle.loads(self.connection.recv_bytes())
        try:
            from gymrl.agents.engines.vllm_core import VllmCore

            self._core = VllmCore(settings)
        except BaseException as error:  # SystemExit too: a library's exit is not ours
            self._answer(OPENED, error)
            return
        self._answer(OPENED, None)
        while True:
            for message in pickle.loads(self.connection.recv_bytes()):
                if message[0] == "close":
                    self._core.stop()
                    return
                getattr(self, "_on_" + message[0])(*message[1:])

    # -- what is asked ---------------------------------------------------------------------------------

    def _on_start(self, requests: list[tuple[int, Any]]) -> None:
        runs = []
        for number, request in requests:
            try:
                runs.append(self._watched(number, self._core.run(request)))
            except ValueError as error:
                self._answer(number, error)
        try:
            self._core.start(runs)
        except EngineFault as fault:
            self._fail([number for number, _ in requests], fault)

    def _on_pace(self, number: int, lag: int) -> None:
        self._paces[number] = self._core.open_pace(lag)

    def _on_enter(self, pace: int, seat: int) -> None:
        self._paces[pace].enter(seat)

    def _on_leave(self, pace: int, seat: int) -> None:
        self._paces[pace].leave(seat)
        if self._paces[pace].closed:
            del self._paces[pace]

    def _on_start_at(self, number: int, request: Any, pace: int, seat: int) -> None:
        try:
            run = self._core.run(request, Place(self._paces[pace], seat))
            self._core.start_at(self._watched(number, run))
        except (ValueError, EngineFault) as error:
            self._fail([number], error)

    def _on_drop(self, numbers: list[int]) -> None:
        runs = [self._runs.pop(number) for number in numbers if number in self._runs]
        with contextlib.suppress(EngineFault):  # then they have been told
            self._core.drop(runs)

    def _on_pause(self, number: int) -> None:
        self._command(number, self._core.pause)

    def _on_resume(self, number: int) -> None:
        self._command(number, self._core.resume)

    def _on_load(self, number: int, path: str, version: int) -> None:
        from safetensors.torch import load_file

        self._command(number, lambda: self._core.load_weights(load_file(path).items(), version))

    # -- answers ---------------------------------------------------------------------------------------

    def _command(self, number: int, call: Any) -> None:
        try:
            call().add_done_callback(partial(self._done, number))
        except Exception as error:
            self._answer(number, error)

    def _watched(self, number: int, run: Any) -> Any:
        self._runs[number] = run
        run.future.add_done_callback(partial(self._done, number))
        return run

    def _done(self, number: int, future: Future[Any]) -> None:
        self._runs.pop(number, None)
        try:
            self._answer(number, future.result())
        except CancelledError:
            pass  # dropped: nobody waits
        except Exception as error:
            self._answer(number, error)

    def _fail(self, numbers: list[int], error: Exception) -> None:
        for number in numbers:
            self._runs.pop(number, None)
            self._answer(number, error)

    def _answer(self, number: int, result: Any) -> None:
        if isinstance(result, BaseException) and not isinstance(result, ValueError | EngineFault):
            result = EngineFault(f"{type(result).__name__}: {result}")  # others may not survive the way
        with self._lock:
            try:
                self.connection.send_bytes(pickle.dumps((number, result), pickle.HIGHEST_PROTOCOL))
            except OSError:
                os._exit(1)


def _end_with(parent: int) -> None:
    """The socket may be held open by others whom the parent has started; its death is not."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    main()
