"""The embedded engine: a Hugging Face model in this process, with continuous batching in plain torch."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from gymrl.agents.engines.base import (
    Engine,
    EngineFault,
    EngineSettings,
    Generation,
    GenerationRequest,
    OnDone,
    Seats,
    gathered,
    require_numbers,
)
from gymrl.agents.engines.pace import Pace, Paces, Place
from gymrl.agents.engines.sampling import draw, uniforms
from gymrl.agents.engines.slots import SlotTable
from gymrl.agents.ragged import NAME, SlotCache, SlotStep
from gymrl.agents.records import Stop


@dataclass
class _Running:
    """A request in a slot. `known` counts the tokens whose keys and values the slot holds."""

    request: GenerationRequest
    future: Future[Generation]
    slot: int
    limit: int
    began: float
    known: int = 0
    abandoned: bool = False
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    place: Place[_Running] | None = None

    @property
    def tokens(self) -> tuple[int, ...]:
        return (*self.request.prompt_ids, *self.ids)


class TransformersEngine(Engine):
    """Continuous batching over a fixed number of slots; a slot remembers its tokens, so that the next turn of
    an episode is prefilled only from where the last one ended. One thread owns the model.

    `generate_batch` admits its requests together: with nothing else running, the result depends on them alone.
    """

    name = "transformers"

    def __init__(self, settings: EngineSettings, model: PreTrainedModel | None = None) -> None:
        """Loads `settings.model` (a folder or hub name) unless a model is given, which is then used as it is."""
        if model is None:
            dtype = getattr(torch, settings.dtype)
            try:
                # Typed Any: the stub knows nothing of output_loading_info, which makes it return a pair.
                pair: Any = AutoModelForCausalLM.from_pretrained(
                    settings.model, dtype=dtype, attn_implementation=NAME, output_loading_info=True
                )
                read, loaded = pair
            except Exception as error:  # also what safetensors, json and pickle raise for a broken file
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise EngineFault(
                    f"the model {str(settings.model)!r} cannot be loaded ({reason}): take another checkpoint or "
                    "copy this one again"
                ) from error
            if missing := sorted(loaded["missing_keys"]):  # they would be filled with random numbers
                raise EngineFault(
                    f"the model {str(settings.model)!r} lacks {len(missing)} weights, {missing[0]} among them: "
                    "take another checkpoint or copy this one again"
                )
            model = read.to("cuda" if torch.cuda.is_available() else "cpu")
        assert model is not None
        self.model = model.eval()
        config = model.config
        self.max_context = min(settings.max_context, config.max_position_embeddings)
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.device = model.device
        self.cache = SlotCache(
            config.num_hidden_layers, settings.slots, config.num_key_value_heads, self.max_context, head_dim,
            model.dtype, self.device,
        )  # fmt: skip
        self._slots = SlotTable(settings.slots)
        self._waiting: deque[_Running] = deque()
        self._running: list[_Running] = []
        self._lock = threading.Condition()
        """Guards the queue; held for moments only, so that the event loop may take it."""
        self._paces: Paces[_Running] = Paces(self._lock, settings.slots)
        self._model_lock = threading.Lock()
        """Held during a forward pass and while weights change."""
        self._paused = self._closed = False
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, name="gymrl-engine", daemon=True)
        self._thread.start()

    # -- the contract ----------------------------------------------------------------------------------

    async def generate(self, request: GenerationRequest) -> Generation:
        return (await self.generate_batch([request]))[0]

    async def generate_batch(
        self, requests: Sequence[GenerationRequest], on_done: OnDone | None = None
    ) -> list[Generation]:
        runs = [self._admit(request) for request in requests]
        with self._lock:
            self._check()
            self._waiting.extend(runs)
            self._lock.notify_all()
        try:
            return await gathered([asyncio.wrap_future(run.future) for run in runs], on_done)
        except asyncio.CancelledError:
            for run in runs:
                run.abandoned = True
                run.future.cancel()
            raise

    def open_pace(self, lag: int) -> Pace[_Running]:
        return self._paces.open(lag)

    async def generate_at(self, request: GenerationRequest, pace: Seats, seat: int) -> Generation:
        assert isinstance(pace, Pace)
        run = self._admit(request)
        run.place = Place(pace, seat)
        with self._lock:
            self._check()
            pace.offer(seat, run)
        try:
            return await asyncio.wrap_future(run.future)
        except asyncio.CancelledError:
            run.abandoned = True
            raise

    async def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        self._check()
        await asyncio.to_thread(self._swap, dict(weights), version)

    def _swap(self, state: dict[str, torch.Tensor], version: int) -> None:
        with self._model_lock, torch.no_grad():
            own = self.model.state_dict()
            missing = set(own) - set(state) - set(self.model.all_tied_weights_keys)
            if missing:
                raise ValueError(f"new weights lack {len(missing)} tensors, {min(missing)!r} among them")
            for name, tensor in own.items():
                if name in state:
                    tensor.copy_(state[name])
            self.version = version
            self._slots.clear()
            for run in self._running:  # what they remember is of the old weights: built anew at the next step
                run.known = 0

    async def pause(self) -> None:
        with self._lock:
            self._paused = True

    async def resume(self) -> None:
        with self._lock:
            self._paused = False
            self._lock.notify_all()

    async def close(self) -> None:
        with self._lock:
            self._closed = True
            self._lock.notify_all()
        await asyncio.to_thread(self._thread.join)

    # -- the thread ------------------------------------------------------------------------------------

    def _check(self) -> None:
        if self._fault is not None:
            raise EngineFault(f"the embedded engine stopped: {self._fault}") from self._fault
        if self._closed:
            raise EngineFault("the embedded engine is closed")

    def _admit(self, request: GenerationRequest) -> _Running:
        size = len(request.prompt_ids)
        if not 0 < size < self.max_context:
            raise ValueError(
                f"a prompt of {size} tokens does not fit a context of {self.max_context}: raise engine.max_context"
            )
        limit = min(request.sampling.max_tokens, self.max_context - size)
        return _Running(request, Future(), -1, limit, time.perf_counter())

    def _serve(self) -> None:
        try:
            with torch.inference_mode():
                while self._turn():
                    pass
        except BaseException as error:  # handed to every caller, now and later
            with self._lock:
                self._fault = error
                for run in [*self._running, *self._waiting, *self._paces.drain()]:
                    if not run.future.done():
                        run.future.set_exception(EngineFault(f"the embedded engine stopped: {error}"))

    def _turn(self) -> bool:
        """Admit what waits, prefill it, and draw one token for everything that runs."""
        with self._lock:
            while not self._closed and not self._ready():
                self._lock.wait()
            if self._closed:
                for run in [*self._running, *self._waiting, *self._paces.drain()]:
                    if not run.future.done():
                        run.future.set_exception(EngineFault("the embedded engine is closed"))
                return False
            arrived = [self._waiting.popleft() for _ in range(min(len(self._waiting), len(self._slots)))]
        with self._model_lock:
            for run in arrived:
                if run.future.set_running_or_notify_cancel():
                    run.slot, run.known = self._slots.take(run.request.prompt_ids)
                    self._running.append(run)
                else:
                    with self._lock:
                        self._paces.done(run.place)
            self._running.sort(key=lambda run: run.slot)
            if self._running:
                self._sample(self._running, self._forward(self._running))
                self._retire()
        return True

    def _ready(self) -> bool:
        """Whether there is a step to make now."""
        if self._paused:
            return False
        paced = self._paces.admit()
        if paced is None:
            return False
        self._waiting.extend(paced)
        return bool(self._waiting or self._running)

    def _forward(self, runs: list[_Running]) -> torch.Tensor:
        """The logits of each run's next token, [B, V]; equal prompts that start from nothing are prefilled once."""
        leaders: dict[tuple[int, ...], _Running] = {}
        followers: dict[int, list[_Running]] = {}
        work: list[_Running] = []
        for run in runs:
            if run.known == 0 and not run.ids:
                leader = leaders.setdefault(run.request.prompt_ids, run)
                if leader is not run:
                    followers.setdefault(leader.slot, []).append(run)
                    continue
            work.append(run)
        ids: list[int] = []
        slots: list[int] = []
        positions: list[int] = []
        ends: list[int] = []
        for run in work:
            if run.ids and run.known == len(run.request.prompt_ids) + len(run.ids) - 1:
                new: Sequence[int] = run.ids[-1:]
            else:
                new = run.tokens[run.known :]
            ids.extend(new)
            slots.extend([run.slot] * len(new))
            positions.extend(range(run.known, run.known + len(new)))
            ends.append(len(ids) - 1)
            run.known += len(new)
        device = self.device
        position_T = torch.tensor(positions, device=device)
        step = SlotStep(self.cache, torch.tensor(slots, device=device), position_T)
        logits_BV: torch.Tensor = self.model(
            input_ids=torch.tensor([ids], device=device), position_ids=position_T[None], ragged=step,
            logits_to_keep=torch.tensor(ends, device=device), use_cache=False,
        ).logits[0]  # fmt: skip
        if not followers:
            return logits_BV
        row = {run.slot: index for index, run in enumerate(work)}
        for leader_slot, group in followers.items():
            length = len(group[0].request.prompt_ids)
            self.cache.copy(leader_slot, [run.slot for run in group], length)
            for run in group:
                run.known = length
                row[run.slot] = row[leader_slot]
        return logits_BV[[row[run.slot] for run in runs]]

    def _sample(self, runs: list[_Running], logits_BV: torch.Tensor) -> None:
        seeds = np.array([(run.request.sampling.seed or 0) & (2**64 - 1) for run in runs], dtype=np.uint64)
        counts = np.array([len(run.ids) for run in runs])
        uniform = torch.from_numpy(uniforms(seeds, counts)).to(logits_BV.device)
        for i, run in enumerate(runs):
            if run.request.sampling.seed is None:
                uniform[i] = torch.rand((), dtype=torch.float64)
        kinds: dict[tuple[float, int, float], list[int]] = {}
        for i, run in enumerate(runs):
            sampling = run.request.sampling
            kinds.setdefault((sampling.temperature, sampling.top_k, sampling.top_p), []).append(i)
        for (temperature, top_k, top_p), rows in kinds.items():
            whole = len(rows) == len(runs)
            logits, u = (logits_BV, uniform) if whole else (logits_BV[rows], uniform[rows])
            ids, logprobs = draw(logits, temperature, top_k, top_p, u)
            for i, token, logprob in zip(rows, ids.tolist(), logprobs.tolist(), strict=True):
                runs[i].ids.append(token)
                runs[i].logprobs.append(logprob)
                runs[i].versions.append(self.version)

    def _retire(self) -> None:
        still: list[_Running] = []
        ended: list[tuple[_Running, Stop]] = []
        for run in self._running:
            stop: Stop | None = None
            if run.abandoned:
                stop = "abort"
            elif run.ids[-1] in run.request.stop_ids:
                stop = "stop"
            elif len(run.ids) >= run.limit:
                stop = "length" if run.limit == run.request.sampling.max_tokens else "context"
            if stop is None:
                still.append(run)
            else:
                ended.append((run, stop))
        self._running = still
        with self._lock:
            for run, _ in ended:
                self._paces.done(run.place)
            self._paces.tick()
        for run, stop in ended:
            try:
                require_numbers(run.logprobs)
            except EngineFault as fault:
                self.cache.blank(run.slot)
                self._slots.give(run.slot, ())
                run.future.set_exception(fault)
                continue
            self._slots.give(run.slot, run.tokens[: run.known])
            run.future.set_result(
                Generation(
                    tuple(run.ids),
                    tuple(run.logprobs),
                    tuple(run.versions),
                    stop,
                    time.perf_counter() - run.began,
                )
            )
