"""vLLM in this process: one thread owns it and steps it, the event loop only waits."""

from __future__ import annotations

import asyncio
import atexit
import itertools
import os
import random
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gymrl.agents.engines.base import (
    Engine,
    EngineFault,
    EngineSettings,
    Generation,
    GenerationRequest,
    OnDone,
    gathered,
)
from gymrl.agents.engines.pace import Pace, Paces, Place
from gymrl.agents.engines.vllm_common import (
    engine_options,
    environment,
    finished,
    limits_of,
    require_vllm,
    sampling_options,
    token_limit,
)
from gymrl.agents.engines.vllm_weights import load_into_worker

_open = threading.Lock()
"""vLLM keeps its distributed state in module globals: a process holds one engine at a time."""


@dataclass(eq=False)
class _Run:
    """A request that somebody waits for."""

    request: GenerationRequest
    limit: int
    future: Future[Generation]
    began: float
    name: str = ""
    place: Place[_Run] | None = None


@dataclass(eq=False)
class _Command:
    """Work for the engine's thread, done between two steps, and where its result goes."""

    work: Callable[[], Any]
    future: Future[Any]


class VllmEngine(Engine):
    """vLLM's engine core, stepped by a thread of its own.

    Opening blocks until the model is loaded (seconds) and leaves this process's random states, thread counts
    and library paths as they were. `generate_batch` adds its requests together and in order: with nothing else
    running and weights just loaded, the result depends on them alone.

    `load_weights` may come at any time: it takes effect between two tokens, and requests that are running are
    recomputed, so that their later log-probabilities are those of the new weights.
    """

    name = "vllm"

    def __init__(self, settings: EngineSettings) -> None:
        """Raises EngineFault, naming the mend, if vLLM is missing or cannot serve the model."""
        require_vllm()
        self.max_context, self._vocabulary = limits_of(settings)
        if not _open.acquire(blocking=False):
            raise EngineFault(
                "a process holds one vLLM engine at a time: close the other one, or take the engine 'vllm-server'"
            )
        self._wake = threading.Condition()
        """Guards the commands; held for moments only, so that the event loop may take it."""
        self._commands: deque[_Command] = deque()
        self._runs: dict[str, _Run] = {}
        self._paces: Paces[_Run] = Paces(self._wake)
        self._names = itertools.count()
        self._paused = self._closing = False
        self._fault: EngineFault | None = None
        self._llm: Any = None
        ready: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._live, args=(settings, ready), name="gymrl-vllm", daemon=True
        )
        with _surroundings_kept():
            self._thread.start()
            try:
                ready.result()
            except Exception as error:
                self._thread.join()
                mend = (
                    "raise engine.memory_gb or lower engine.max_context; " if "KV cache" in str(error) else ""
                )
                raise EngineFault(f"vLLM cannot serve {str(settings.model)!r}: {mend}{error}") from error
        # A daemon thread that is inside vLLM when the interpreter goes away would crash it.
        atexit.register(_stop_at_exit, weakref.ref(self))

    # -- the contract ----------------------------------------------------------------------------------

    async def generate(self, request: GenerationRequest) -> Generation:
        return (await self.generate_batch([request]))[0]

    async def generate_batch(
        self, requests: Sequence[GenerationRequest], on_done: OnDone | None = None
    ) -> list[Generation]:
        limits = [token_limit(request, self.max_context, self._vocabulary) for request in requests]
        now = time.perf_counter()
        runs = [_Run(request, limit, Future(), now) for request, limit in zip(requests, limits, strict=True)]
        added = self._submit(lambda: self._add(runs))
        try:
            await asyncio.wrap_future(added)
            return await gathered([asyncio.wrap_future(run.future) for run in runs], on_done)
        except BaseException:
            # Cancelled, or one of them failed: nobody waits for the others any more.
            if self._fault is None:
                self._submit(lambda: self._drop(runs))
            raise

    def open_pace(self, lag: int) -> Pace[_Run]:
        return self._paces.open(lag)

    async def generate_at(self, request: GenerationRequest, pace: Pace[_Run], seat: int) -> Generation:
        limit = token_limit(request, self.max_context, self._vocabulary)
        run = _Run(request, limit, Future(), time.perf_counter(), place=Place(pace, seat))
        with self._wake:
            if self._fault is not None:
                raise EngineFault(str(self._fault)) from self._fault
            pace.offer(seat, run)
        try:
            return await asyncio.wrap_future(run.future)
        except asyncio.CancelledError:
            if self._fault is None:
                self._submit(lambda: self._drop([run]))
            raise

    async def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Raises ValueError if weights are missing or unknown; the engine then needs a complete set."""
        tensors = list(weights)
        await asyncio.wrap_future(self._submit(lambda: self._load(tensors, version)))

    async def pause(self) -> None:
        await asyncio.wrap_future(self._submit(lambda: setattr(self, "_paused", True)))

    async def resume(self) -> None:
        await asyncio.wrap_future(self._submit(lambda: setattr(self, "_paused", False)))

    async def close(self) -> None:
        await asyncio.to_thread(self._stop)

    def _stop(self, timeout: float | None = None) -> None:
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(timeout)

    def _submit(self, work: Callable[[], Any]) -> Future[Any]:
        """Have `work` done on the engine's thread. Raises EngineFault if that is gone."""
        command = _Command(work, Future())
        with self._wake:
            if self._fault is not None:
                raise EngineFault(str(self._fault)) from self._fault
            self._commands.append(command)
            self._wake.notify()
        return command.future

    # -- the thread ------------------------------------------------------------------------------------

    def _live(self, settings: EngineSettings, ready: Future[None]) -> None:
        end = "the vLLM engine is closed: open another one"
        try:
            try:
                self._llm = _open_llm(settings, self.max_context)
            except BaseException as error:  # SystemExit too: a library's exit is not ours
                ready.set_exception(error if isinstance(error, Exception) else RuntimeError(repr(error)))
                return
            ready.set_result(None)
            while self._turn():
                pass
        except BaseException as error:
            end = f"vLLM crashed in this process ({type(error).__name__}: {error}): start again from the checkpoint"
        finally:
            self._end(end)
            _open.release()

    def _turn(self) -> bool:
        """Do what was asked for, then draw one token for everything that runs. False when closing."""
        with self._wake:
            while True:
                # None: somebody whose request belongs to the next step has not come yet.
                paced = [] if self._paused or self._closing else self._paces.admit()
                steps = paced is not None and bool(self._runs or paced) and not self._paused
                if self._closing or self._commands or steps:
                    break
                self._wake.wait()
            commands = list(self._commands)
            self._commands.clear()
            if self._closing:
                self._commands.extend(commands)
                return False
        for command in commands:
            if command.future.set_running_or_notify_cancel():
                try:
                    command.future.set_result(command.work())
                except Exception as error:
                    command.future.set_exception(error)
        for run in paced or ():
            try:
                self._add([run])
            except Exception as error:
                run.future.set_exception(error)
                with self._wake:
                    self._paces.done(run.place)
        if self._runs and not self._paused and paced is not None:
            finished = [output for output in self._llm.step() if output.finished]
            with self._wake:
                for output in finished:
                    self._paces.done(self._runs[output.request_id].place)
                self._paces.tick()
            for output in finished:
                self._deliver(output)
        return True

    def _end(self, reason: str) -> None:
        """Fail everybody who waits, now and later, and release vLLM."""
        with self._wake:
            self._fault = EngineFault(reason)
            commands = list(self._commands)
            self._commands.clear()
            held = self._paces.drain()
        waiting: list[Future[Any]] = [run.future for run in self._runs.values()]
        waiting += [run.future for run in held if run.future.set_running_or_notify_cancel()]
        waiting += [command.future for command in commands if command.future.set_running_or_notify_cancel()]
        self._runs.clear()
        for future in waiting:
            future.set_exception(EngineFault(reason))
        llm, self._llm = self._llm, None
        if llm is not None:
            llm.engine_core.shutdown()

    def _add(self, runs: Sequence[_Run]) -> None:
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        for run in runs:
            if not run.future.set_running_or_notify_cancel():
                with self._wake:
                    self._paces.done(run.place)
                continue
            options = sampling_options(run.request, run.limit)
            params = SamplingParams(**options, flat_logprobs=True, output_kind=RequestOutputKind.FINAL_ONLY)
            name = str(next(self._names))
            # vLLM knows a request by a name that it makes from ours; it is this one that aborts.
            run.name = self._llm.add_request(name, tokens_input(list(run.request.prompt_ids)), params)
            self._runs[name] = run

    def _drop(self, runs: Sequence[_Run]) -> None:
        waited = {name: run for name, run in self._runs.items() if run in runs}
        self._llm.abort_request([run.name for run in waited.values()], internal=True)
        with self._wake:
            for name in waited:
                self._paces.done(self._runs.pop(name).place)

    def _deliver(self, output: Any) -> None:
        run = self._runs.pop(output.request_id)
        completion = output.outputs[0]
        flat = completion.logprobs
        generation = finished(
            run.request,
            completion.token_ids,
            [flat.logprobs[start] for start in flat.start_indices],
            [(span.version, span.start, span.end) for span in completion.weight_versions or ()],
            completion.finish_reason,
            time.perf_counter() - run.began,
        )
        run.future.set_result(generation)

    def _load(self, tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        try:
            (wrong,) = self._llm.collective_rpc(load_into_worker, args=(tensors,))
        finally:
            # Also when it failed half-way: nothing computed with other weights may be reused.
            self._llm.reset_prefix_cache(reset_running_requests=True)
        if wrong:
            raise ValueError(wrong)
        self._llm.set_weight_version(str(version))
        self.version = version


def _open_llm(settings: EngineSettings, max_context: int) -> Any:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # what "in this process" means
    os.environ.update(environment())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from vllm import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        options = engine_options(settings, max_context, shared=True)
        llm = LLMEngine.from_engine_args(EngineArgs(**options, disable_log_stats=True))
    llm.set_weight_version("0")
    return llm


@contextmanager
def _surroundings_kept() -> Iterator[None]:
    """vLLM seeds every global generator, disables `torch.set_num_threads`, and preloads libraries into whatever
    this process starts later (sandboxes among them): put all that back."""
    names = ("LD_PRELOAD", "LD_LIBRARY_PATH", "LOCAL_WORLD_SIZE")
    variables = {name: os.environ.get(name) for name in names}
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    set_num_threads, threads = torch.set_num_threads, torch.get_num_threads()
    try:
        yield
    finally:
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        torch.set_num_threads = set_num_threads
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


def _stop_at_exit(reference: weakref.ref[VllmEngine]) -> None:
    engine = reference()
    if engine is not None:
        engine._stop(timeout=10.0)
