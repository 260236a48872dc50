"""The engine contract: token ids in, token ids and their log-probabilities out."""

from __future__ import annotations

import abc
import asyncio
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from gymrl.agents.records import Stop


class EngineFault(RuntimeError):
    """The engine failed (not the policy): the episodes it was serving are invalid. The text names the mend."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 cut nothing.

    `max_tokens` bounds one turn. With a `seed` the same prompt gives the same tokens in any batch (float32).
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 256
    seed: int | None = None

    def with_seed(self, seed: int) -> Sampling:
        return replace(self, seed=seed)


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A prompt as ids; generation ends after the first id of `stop_ids`, which belongs to the completion."""

    prompt_ids: tuple[int, ...]
    sampling: Sampling
    stop_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Generation:
    """The sampled ids, the log-probability of each under the distribution it was really drawn from
    (temperature and truncation applied, nats), and the policy version that drew it.

    `stop` is `stop` (an end-of-turn id), `length` (max_tokens), `context` (the model's window) or `abort`.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    versions: tuple[int, ...]
    stop: Stop
    seconds: float = 0.0


def require_numbers(logprobs: Sequence[float]) -> None:
    """Raises EngineFault for NaN: broken weights draw tokens too, and nothing that they say may be judged."""
    if any(math.isnan(logprob) for logprob in logprobs):
        raise EngineFault(
            "the policy's log-probabilities are no numbers (NaN), its weights are broken: take an earlier checkpoint, "
            "or a dtype with a wider range"
        )


OnDone = Callable[[int, Generation], None]
"""Told a request's place in its batch, and its completion."""


async def gathered(
    futures: Sequence[asyncio.Future[Generation]], on_done: OnDone | None = None
) -> list[Generation]:
    """The results in order; `on_done` hears of each as it comes. The first failure is raised at once, and cancelling
    this cancels them all."""

    def tell(place: int, future: asyncio.Future[Generation]) -> None:
        if on_done is not None and not future.cancelled() and future.exception() is None:
            on_done(place, future.result())

    for place, future in enumerate(futures):
        future.add_done_callback(partial(tell, place))
    return list(await asyncio.gather(*futures))


class Seats(Protocol):
    """The seats of a pace (`gymrl.agents.engines.pace`), as whoever plays sees them."""

    def enter(self, seat: int) -> None: ...

    def leave(self, seat: int) -> None: ...


class Engine(abc.ABC):
    """Serves a policy. Many calls of `generate` may wait at once; nothing here blocks the event loop."""

    name: str
    max_context: int
    """Prompt plus completion may have at most this many tokens."""
    version: int = 0
    """The version of the weights being served; the learner counts it up."""
    busy_seconds: float = 0.0
    """How long rollouts had at least one request with this engine; they count it up."""
    tell: Callable[[str], None] | None = None
    """Hears of trouble that is waited out, where somebody has set it."""

    @abc.abstractmethod
    async def generate(self, request: GenerationRequest) -> Generation:
        """One completion. Raises EngineFault if the engine is gone, ValueError if the prompt does not fit."""

    async def generate_batch(
        self, requests: Sequence[GenerationRequest], on_done: OnDone | None = None
    ) -> list[Generation]:
        """Completions of requests that are submitted at one time and in this order.

        Engines that can make the result depend on the requests alone (not on timing) do so here. `on_done` is told
        the place and the completion of each on the event loop as soon as it is there, while others still run.
        """
        return await gathered(
            [asyncio.ensure_future(self.generate(request)) for request in requests], on_done
        )

    def open_pace(self, lag: int) -> Seats | None:
        """A pace of `lag` engine steps for `generate_at`; None: this engine's steps cannot be counted."""
        return None

    async def generate_at(self, request: GenerationRequest, pace: Seats, seat: int) -> Generation:
        """As `generate`, in the step that the pace, which this engine opened, gives the seat."""
        raise EngineFault(f"the engine {self.name!r} keeps no pace")

    @abc.abstractmethod
    async def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Serve these weights from now on, without a restart.

        `weights` are (name, tensor) as in the model's Hugging Face state dict, all of them. Cached prompts of
        the old weights are forgotten. Call it with nothing in flight, or between `pause` and `resume`.
        """

    @abc.abstractmethod
    async def pause(self) -> None:
        """Hold running requests after their present token; `resume` goes on with them."""

    @abc.abstractmethod
    async def resume(self) -> None: ...

    @abc.abstractmethod
    async def close(self) -> None:
        """Stop and release everything. Closing twice does nothing."""


@dataclass(frozen=True)
class EngineSettings:
    """What it takes to open an engine."""

    kind: str = "transformers"
    """`transformers` (embedded), `vllm` (a process of its own), `vllm-server` (a server that is started and stopped,
    or joined where `url` is set)."""
    model: str | Path = ""
    url: str = ""
    max_context: int = 1024
    slots: int = 128
    """How many requests run at the same time."""
    dtype: str = "float32"
    memory_gb: float = 0.5
    """For the key/value cache on the CPU (vLLM)."""


def open_engine(settings: EngineSettings) -> Engine:
    """Open the engine of that kind. Raises EngineFault with the mend if it cannot be had, ValueError for an unknown
    kind."""
    if settings.kind == "transformers":
        from gymrl.agents.engines.transformers import TransformersEngine

        return TransformersEngine(settings)
    if settings.kind == "vllm":
        from gymrl.agents.engines.vllm import VllmEngine

        return VllmEngine(settings)
    if settings.kind == "vllm-server":
        from gymrl.agents.engines.vllm_server import VllmServerEngine

        return VllmServerEngine(settings)
    raise ValueError(f"unknown engine {settings.kind!r}: take transformers, vllm or vllm-server")
