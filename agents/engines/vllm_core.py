"""vLLM's engine core in the process that `gymrl.agents.engines.vllm` starts."""

from __future__ import annotations

import itertools
import os
import threading
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gymrl.agents.engines.base import EngineFault, EngineSettings, GenerationRequest
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
    """A request and the number under which it is answered; one with a place has a seat of a pace."""

    number: int
    request: GenerationRequest
    limit: int
    began: float
    name: str = ""
    place: Place[Run] | None = None
    dropped: bool = False


class VllmCore:
    """Does nothing by itself: whoever owns it, one thread, has it make one step after the other.

    What requests came to gathers in `answers`, as (number, generation or exception). Requests that are started together
    are added together and in order: with nothing else running and weights just loaded, the result depends on them
    alone. New weights take effect between two tokens, and requests that are running are recomputed, so that their later
    log-probabilities are those of the new weights.
    """

    def __init__(self, settings: EngineSettings) -> None:
        """Raises what vLLM raises if it cannot serve the model. A process holds one: vLLM's state is in globals."""
        self.max_context, self._vocabulary = limits_of(settings)
        self.answers: list[tuple[int, Any]] = []
        self.paused = False
        self.fault = ""
        """Why nothing can be asked any more; '' while it can."""
        self._known: dict[int, Run] = {}
        """All that somebody waits for."""
        self._runs: dict[str, Run] = {}
        """What vLLM has, by the names that it was given."""
        self._paces: Paces[Run] = Paces(threading.Condition(), settings.slots)
        self._names = itertools.count()
        self._llm = _open_llm(settings, self.max_context)

    # -- what is asked ---------------------------------------------------------------------------------

    def start(self, asked: Sequence[tuple[int, GenerationRequest]]) -> None:
        """Add requests at once, in order."""
        self._add([run for number, request in asked if (run := self._expect(number, request)) is not None])

    def start_at(self, number: int, request: GenerationRequest, pace: Pace[Run], seat: int) -> None:
        """Add a request in the step that the pace gives the seat."""
        run = self._expect(number, request)
        if run is not None:
            run.place = Place(pace, seat)
            pace.offer(seat, run)

    def drop(self, numbers: Sequence[int]) -> None:
        """Nobody waits for these any more."""
        runs = [self._known.pop(number) for number in numbers if number in self._known]
        for run in runs:
            run.dropped = True  # one that vLLM has not been given yet never starts
        running = {name: run for name, run in self._runs.items() if run.dropped}
        if running:
            self._llm.abort_request([run.name for run in running.values()], internal=True)
        for name in running:
            self._paces.done(self._runs.pop(name).place)

    def open_pace(self, lag: int) -> Pace[Run]:
        return self._paces.open(lag)

    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Raises ValueError if weights are missing or unknown; vLLM then needs a complete set."""
        try:
            (wrong,) = self._llm.collective_rpc(load_into_worker, args=(tensors,))
        finally:
            # Also when it failed half-way: nothing computed with other weights may be reused.
            self._llm.reset_prefix_cache(reset_running_requests=True)
        if wrong:
            raise ValueError(wrong)
        self._llm.set_weight_version(str(version))

    # -- steps -----------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Draw one token for everything that runs. False: there is nothing to do until something is asked."""
        if self.paused or self.fault:
            return False
        paced = self._paces.admit()
        if paced is None:  # somebody whose request belongs to this step has not come yet
            return False
        self._add(paced)
        if not self._runs:
            return bool(paced)
        try:
            done = [output for output in self._llm.step() if output.finished]
        except Exception as error:
            self._end(f"vLLM crashed ({type(error).__name__}: {error}): start again from the checkpoint")
            return False
        for output in done:
            self._paces.done(self._runs[output.request_id].place)
        self._paces.tick()
        for output in done:
            self._deliver(output)
        return True

    def stop(self) -> None:
        """Release vLLM."""
        if not self.fault:
            self._end("the vLLM engine is closed: open another one")

    def _end(self, reason: str) -> None:
        """Fail everybody who waits, and release vLLM."""
        self.fault = reason
        self.answers += [(number, EngineFault(reason)) for number in self._known]
        self._known.clear()
        self._runs.clear()
        llm, self._llm = self._llm, None
        llm.engine_core.shutdown()

    def _expect(self, number: int, request: GenerationRequest) -> Run | None:
        """A run that is waited for; None, and an answer, if vLLM cannot take it."""
        try:
            if self.fault:
                raise EngineFault(self.fault)
            limit = token_limit(request, self.max_context, self._vocabulary)
        except (ValueError, EngineFault) as error:
            self.answers.append((number, error))
            return None
        self._known[number] = run = Run(number, request, limit, time.perf_counter())
        return run

    def _answer(self, run: Run, result: Any) -> None:
        if self._known.pop(run.number, None) is not None:
            self.answers.append((run.number, result))

    def _add(self, runs: Sequence[Run]) -> None:
        """Give them to vLLM, in order. One that it does not take fails alone."""
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        for run in runs:
            if run.dropped:
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
                self._answer(run, error)
                self._paces.done(run.place)
            else:
                self._runs[name] = run

    def _deliver(self, output: Any) -> None:
        run = self._runs.pop(output.request_id)
        completion = output.outputs[0]
        flat = completion.logprobs
        try:
            self._answer(
                run,
                finished(
                    run.request,
                    completion.token_ids,
                    [flat.logprobs[start] for start in flat.start_indices],
                    [(span.version, span.start, span.end) for span in completion.weight_versions or ()],
                    completion.finish_reason,
                    time.perf_counter() - run.began,
                ),
            )
        except EngineFault as fault:
            self._answer(run, fault)


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
