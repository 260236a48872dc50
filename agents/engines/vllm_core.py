"""vLLM's engine core in the process that `gymrl.agents.engines.vllm` starts: one thread owns it and steps it."""

from __future__ import annotations

import itertools
import os
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch

from gymrl.agents.engines.base import EngineFault, EngineSettings, Generation, GenerationRequest
from gymrl.agents.engines.pace import Pace, Paces, Place
from gymrl.agents.engines.vllm_common import (
    engine_options,
    environment,
    finished,
    limits_of,
    sampling_options,
    token_limit,
)
from gymrl.agents.engines.vllm_weights import load_into_worker


@dataclass(eq=False)
class Run:
    """A request that somebody waits for; one with a place has a seat of a pace."""

    request: GenerationRequest
    limit: int
    future: Future[Generation]
    began: float
    name: str = ""
    place: Place[Run] | None = None


@dataclass(eq=False)
class _Command:
    """Work for the engine's thread, done between two steps, and where its result goes."""

    work: Callable[[], Any]
    future: Future[Any]


class VllmCore:
    """Takes requests from any thread; opening returns when vLLM can serve.

    Requests that are started together are added together and in order: with nothing else running and weights just
    loaded, the result depends on them alone. New weights take effect between two tokens, and requests that are running
    are recomputed, so that their later log-probabilities are those of the new weights.
    """

    def __init__(self, settings: EngineSettings) -> None:
        """Raises what vLLM raises if it cannot serve the model. A process holds one: vLLM's state is in globals."""
        self.max_context, self._vocabulary = limits_of(settings)
        self._wake = threading.Condition()
        """Guards the commands; held for moments only, as whoever starts requests takes it too."""
        self._commands: deque[_Command] = deque()
        self._runs: dict[str, Run] = {}
        self._paces: Paces[Run] = Paces(self._wake)
        self._names = itertools.count()
        self._paused = self._closing = False
        self._fault: EngineFault | None = None
        self._llm = _open_llm(settings, self.max_context)
        self._thread = threading.Thread(target=self._live, name="gymrl-vllm", daemon=True)
        self._thread.start()

    # -- for any thread --------------------------------------------------------------------------------

    def run(self, request: GenerationRequest, place: Place[Run] | None = None) -> Run:
        """Raises ValueError if vLLM cannot take the request."""
        limit = token_limit(request, self.max_context, self._vocabulary)
        return Run(request, limit, Future(), time.perf_counter(), place=place)

    def start(self, runs: Sequence[Run]) -> None:
        """Add them at once. Raises EngineFault if vLLM is gone."""
        self._submit(lambda: self._add(runs))

    def start_at(self, run: Run) -> None:
        """In the step that the run's place gives it. Raises EngineFault if vLLM is gone."""
        assert run.place is not None
        with self._wake:
            self._check()
            run.place.pace.offer(run.place.seat, run)

    def drop(self, runs: Sequence[Run]) -> None:
        """Nobody waits for them any more."""
        for run in runs:
            run.future.cancel()  # those that vLLM has not been given yet never start
        self._submit(lambda: self._drop(runs))

    def open_pace(self, lag: int) -> Pace[Run]:
        return self._paces.open(lag)

    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> Future[None]:
        """Fails with ValueError if weights are missing or unknown; vLLM then needs a complete set."""
        return self._submit(lambda: self._load(tensors, version))

    def pause(self) -> Future[None]:
        return self._submit(lambda: setattr(self, "_paused", True))

    def resume(self) -> Future[None]:
        return self._submit(lambda: setattr(self, "_paused", False))

    def stop(self) -> None:
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _check(self) -> None:
        if self._fault is not None:
            raise EngineFault(str(self._fault)) from self._fault

    def _submit(self, work: Callable[[], Any]) -> Future[Any]:
        """Have `work` done on the engine's thread. Raises EngineFault if that is gone."""
        command = _Command(work, Future())
        with self._wake:
            self._check()
            self._commands.append(command)
            self._wake.notify()
        return command.future

    # -- the thread ------------------------------------------------------------------------------------

    def _live(self) -> None:
        end = "the vLLM engine is closed: open another one"
        try:
            while self._turn():
                pass
        except BaseException as error:
            end = f"vLLM crashed ({type(error).__name__}: {error}): start again from the checkpoint"
        finally:
            self._end(end)

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
        self._add(paced or ())
        if self._runs and not self._paused and paced is not None:
            done = [output for output in self._llm.step() if output.finished]
            with self._wake:
                for output in done:
                    self._paces.done(self._runs[output.request_id].place)
                self._paces.tick()
            for output in done:
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
        llm.engine_core.shutdown()

    def _add(self, runs: Sequence[Run]) -> None:
        """Give them to vLLM, in order. One that it does not take fails alone."""
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        for run in runs:
            if not run.future.set_running_or_notify_cancel():
                with self._wake:
                    self._paces.done(run.place)
                continue
            try:
                options = sampling_options(run.request, run.limit)
                params = SamplingParams(
                    **options, flat_logprobs=True, output_kind=RequestOutputKind.FINAL_ONLY
                )
                name = str(next(self._names))
                # vLLM knows a request by a name that it makes from ours; it is this one that aborts.
                run.name = self._llm.add_request(name, tokens_input(list(run.request.prompt_ids)), params)
            except Exception as error:
                run.future.set_exception(error)
                with self._wake:
                    self._paces.done(run.place)
            else:
                self._runs[name] = run

    def _drop(self, runs: Sequence[Run]) -> None:
        waited = {name: run for name, run in self._runs.items() if run in runs}
        self._llm.abort_request([run.name for run in waited.values()], internal=True)
        with self._wake:
            for name in waited:
                self._paces.done(self._runs.pop(name).place)

    def _deliver(self, output: Any) -> None:
        run = self._runs.pop(output.request_id)
        completion = output.outputs[0]
        flat = completion.logprobs
        try:
            generation = finished(
                run.request,
                completion.token_ids,
                [flat.logprobs[start] for start in flat.start_indices],
                [(span.version, span.start, span.end) for span in completion.weight_versions or ()],
                completion.finish_reason,
                time.perf_counter() - run.began,
            )
        except EngineFault as fault:
            run.future.set_exception(fault)
        else:
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


def _open_llm(settings: EngineSettings, max_context: int) -> Any:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # steps that can be counted are taken in this process
    os.environ.update(environment())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from vllm import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        options = engine_options(settings, max_context, shared=True)
        llm = LLMEngine.from_engine_args(EngineArgs(**options, disable_log_stats=True))
    llm.set_weight_version("0")
    return llm
