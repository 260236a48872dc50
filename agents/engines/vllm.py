"""vLLM on this machine, in a process of its own.

Python runs one thread at a time: were vLLM in this process, every turn of an environment would make it wait, and the
other way round. Apart, both have a core. It also keeps vLLM's seeds, thread counts and preloaded libraries out of
here, and a crash of vLLM is a fault and no more.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import itertools
import os
import pickle
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from gymrl.agents.engines.base import (
    Engine,
    EngineFault,
    EngineSettings,
    Generation,
    GenerationRequest,
    OnDone,
    Seats,
    gathered,
)
from gymrl.agents.engines.handover import Handover
from gymrl.agents.engines.vllm_common import environment, limits_of, require_vllm, tail, token_limit
from gymrl.agents.engines.vllm_process import OPENED

CLOSED = "the vLLM engine is closed: open another one"
CLOSE_SECONDS = 10.0
"""How long the process gets to end by itself."""
SMALL = 20 * 2**20
"""Bytes of weights below which one thread is faster: on two CPU cores 0.8M parameters gave 13,600 tokens/s with one and
9,400 with two, 6.4M the same with both, 25M gave 1,800 and 2,400."""
OF_A_LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables that would make vLLM join the learner's processes."""


class VllmEngine(Engine):
    """vLLM's engine core, stepped in a process of its own, which ends with this one, however that ends.

    Opening blocks until the model is loaded (seconds). `generate_batch` adds its requests together and in order: with
    nothing else running and weights just loaded, the result depends on them alone.

    `load_weights` may come at any time: it takes effect between two tokens, and requests that are running are
    recomputed, so that their later log-probabilities are those of the new weights.
    """

    name = "vllm"

    def __init__(self, settings: EngineSettings) -> None:
        """Raises EngineFault, naming the mend, if vLLM is missing or cannot serve the model."""
        require_vllm()
        self.max_context, self._vocabulary = limits_of(settings)
        self._numbers = itertools.count(OPENED + 1)
        self._paces = itertools.count()
        self._lock = threading.Lock()
        self._opened: Future[None] = Future()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._fault = ""
        """Why nothing can be asked any more; '' while it can."""
        self._handover = Handover()
        self._outbox: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()
        self.log = Path(tempfile.mkdtemp(prefix="gymrl-vllm-")) / "vllm.log"
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = _started(theirs.fileno(), self.log, _threads(settings))
        self._connection = Connection(ours.detach())
        self._threads = [
            threading.Thread(target=work, args=arguments, name=f"gymrl-vllm-{what}", daemon=True)
            for what, work, arguments in (("out", self._write, (settings,)), ("in", self._read, ()))
        ]
        atexit.register(_stop_at_exit, weakref.ref(self))
        for thread in self._threads:
            thread.start()
        try:
            self._opened.result()
        except BaseException as error:
            self._stop(at_once=not isinstance(error, Exception))
            if not isinstance(error, Exception):
                raise
            memory = any(word in str(error) for word in ("KV cache", "kv-cache", "KVCACHE"))
            mend = "set engine.memory_gb to what there is, or lower engine.max_context; " if memory else ""
            raise EngineFault(f"vLLM cannot serve {str(settings.model)!r}: {mend}{error}") from error

    @property
    def pid(self) -> int:
        """Of vLLM's process."""
        return self._process.pid

    # -- the contract ----------------------------------------------------------------------------------

    async def generate(self, request: GenerationRequest) -> Generation:
        return (await self.generate_batch([request]))[0]

    async def generate_batch(
        self, requests: Sequence[GenerationRequest], on_done: OnDone | None = None
    ) -> list[Generation]:
        for request in requests:
            token_limit(request, self.max_context, self._vocabulary)
        asked = [self._expect() for _ in requests]
        self._outbox.put(
            ("start", [(number, request) for (number, _), request in zip(asked, requests, strict=True)])
        )
        try:
            return await gathered([future for _, future in asked], on_done)
        except BaseException:
            # Cancelled, or one of them failed: nobody waits for the others any more.
            self._drop([number for number, _ in asked])
            raise

    def open_pace(self, lag: int) -> Seats:
        return _RemotePace(next(self._paces), lag, self._outbox)

    async def generate_at(self, request: GenerationRequest, pace: Seats, seat: int) -> Generation:
        assert isinstance(pace, _RemotePace)
        token_limit(request, self.max_context, self._vocabulary)
        number, future = self._expect()
        self._outbox.put(("start_at", number, request, pace.number, seat))
        try:
            return await future  # type: ignore[no-any-return]
        except asyncio.CancelledError:
            self._drop([number])
            raise

    async def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Raises ValueError if weights are missing or unknown; the engine then needs a complete set."""
        path = await asyncio.to_thread(self._handover.write, dict(weights))
        try:
            await self._call("load", str(path), version)
        finally:
            path.unlink(missing_ok=True)
        self.version = version

    async def pause(self) -> None:
        await self._call("pause")

    async def resume(self) -> None:
        await self._call("resume")

    async def close(self) -> None:
        await asyncio.to_thread(self._stop)

    # -- this side of the socket -----------------------------------------------------------------------

    def _expect(self) -> tuple[int, asyncio.Future[Any]]:
        """A number that the process will answer. Raises EngineFault if it is gone."""
        number, future = next(self._numbers), asyncio.get_running_loop().create_future()
        with self._lock:
            if self._fault:
                raise EngineFault(self._fault)
            self._waiting[number] = future
        return number, future

    def _drop(self, numbers: list[int]) -> None:
        """Nobody waits for these any more."""
        with self._lock:
            for number in numbers:
                self._waiting.pop(number, None)
        self._outbox.put(("drop", numbers))

    async def _call(self, what: str, *arguments: Any) -> Any:
        number, future = self._expect()
        self._outbox.put((what, number, *arguments))
        return await future

    def _write(self, settings: EngineSettings) -> None:
        """Send what is in the outbox, all that has gathered at once."""
        try:
            self._connection.send_bytes(pickle.dumps(settings))
            last = False
            while not last:
                messages = [self._outbox.get()]
                while not self._outbox.empty():
                    messages.append(self._outbox.get())
                last = None in messages
                sent = [message for message in messages if message is not None]
                if sent:
                    self._connection.send_bytes(pickle.dumps(sent, pickle.HIGHEST_PROTOCOL))
        except OSError:
            return  # the reader tells why

    def _read(self) -> None:
        try:
            ((_, failed),) = pickle.loads(self._connection.recv_bytes())
            if failed is not None:
                self._opened.set_exception(failed)
            else:
                self._opened.set_result(None)
            while True:
                answers = pickle.loads(self._connection.recv_bytes())
                with self._lock:
                    told = [
                        (future, result)
                        for number, result in answers
                        if (future := self._waiting.pop(number, None)) is not None
                    ]
                _tell(told)
        except (EOFError, OSError):
            self._process.wait()
            code = self._process.returncode
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
            self._bury(
                f"vLLM's process ended {how}: start again from the checkpoint; its log {self.log} ends with\n"
                f"{tail(self.log)}"
            )

    def _bury(self, reason: str) -> None:
        """Fail everybody who waits, now and later."""
        with self._lock:
            self._fault = self._fault or reason
            waiting, self._waiting = self._waiting, {}
        if not self._opened.done():
            self._opened.set_exception(EngineFault(self._fault))
        _tell([(future, EngineFault(self._fault)) for future in waiting.values()])

    def _stop(self, at_once: bool = False) -> None:
        """End the process; at_once: it is still opening, and listens to nobody until it has."""
        by_itself = self._process.poll() is not None
        with self._lock:
            if self._fault == CLOSED:
                return
        self._bury(CLOSED)
        self._fault = CLOSED
        self._outbox.put(("close",))
        self._outbox.put(None)
        try:
            self._process.wait(0.0 if at_once else CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # with what it has started
            self._process.wait()
        for thread in self._threads:
            thread.join(CLOSE_SECONDS)
        self._connection.close()
        self._handover.close()
        if not by_itself:  # else somebody may want to read why
            shutil.rmtree(self.log.parent, ignore_errors=True)


def _tell(told: list[tuple[asyncio.Future[Any], Any]]) -> None:
    """Hand results, or exceptions, to those who wait: each event loop is woken once."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
    for future, result in told:
        by_loop.setdefault(future.get_loop(), []).append((future, result))
    for loop, its in by_loop.items():
        with contextlib.suppress(RuntimeError):  # closed: nobody waits there any more
            loop.call_soon_threadsafe(_settle, its)


def _settle(told: list[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, result in told:
        if future.done():
            continue  # cancelled
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)


class _RemotePace:
    """The seats of a pace that vLLM's process keeps."""

    def __init__(self, number: int, lag: int, outbox: queue.SimpleQueue[tuple[Any, ...] | None]) -> None:
        if lag < 1:
            raise ValueError(f"a lag is 1 step or more, not {lag}")
        self.number, self._outbox = number, outbox
        outbox.put(("pace", number, lag))

    def enter(self, seat: int) -> None:
        self._outbox.put(("enter", self.number, seat))

    def leave(self, seat: int) -> None:
        self._outbox.put(("leave", self.number, seat))


def _threads(settings: EngineSettings) -> int:
    """Threads of vLLM's operators on the CPU: torch's, but one alone for a small model, which gains nothing from
    handing work around, and leaves the other processors to environments. OMP_NUM_THREADS overrules it."""
    files = list(Path(settings.model).glob("*.safetensors"))
    small = bool(files) and sum(file.stat().st_size for file in files) < SMALL
    return 1 if small and "OMP_NUM_THREADS" not in os.environ else torch.get_num_threads()


def _started(fd: int, log: Path, threads: int) -> subprocess.Popen[bytes]:
    variables = {name: value for name, value in os.environ.items() if name not in OF_A_LAUNCHER}
    variables |= environment() | {
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if isinstance(path, str) and path),
    }
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "gymrl.agents.engines.vllm_process", str(fd)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=variables,
            pass_fds=(fd,),
            process_group=0,  # Ctrl-C at the terminal is the trainer's to answer
        )


def _stop_at_exit(reference: weakref.ref[VllmEngine]) -> None:
    engine = reference()
    if engine is not None:
        engine._stop()
