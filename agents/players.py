"""Agents: whoever plays. One `Agent` serves many episodes; each episode has a `Player` of its own."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Protocol

from gymrl.agents.engines.base import Engine, Generation, GenerationRequest, Sampling
from gymrl.agents.parsers import parse_action
from gymrl.agents.records import Stop
from gymrl.agents.rendering import Conversation, Renderer
from gymrl.envs.records import Action, Observation, TaskSpec, stable_hash
from gymrl.envs.workers import EnvHandle


@dataclass(frozen=True, slots=True)
class Job:
    """One episode to play. `order` ranks jobs within a rollout; `seed` is that of everything sampled in it."""

    task: TaskSpec
    group: int = 0
    sample: int = 0
    seed: int = 0
    order: int = 0
    greedy: bool = False


@dataclass(frozen=True, slots=True)
class Usage:
    """Requests that a server of chat completions has answered, and the tokens that it says those took (0 where it does
    not say)."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, more: Usage) -> Usage:
        return Usage(
            self.requests + more.requests,
            self.prompt_tokens + more.prompt_tokens,
            self.completion_tokens + more.completion_tokens,
        )


class ContextFull(Exception):
    """The conversation no longer fits the model's context: the episode is truncated."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a player answered, with the tokens it took (none for scripted players)."""

    action: Action
    text: str
    prompt_ids: tuple[int, ...] = ()
    completion_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    versions: tuple[int, ...] = ()
    segment: int = 0
    stop: Stop = "scripted"
    seconds: float = 0.0


class Player(Protocol):
    async def act(self, observation: Observation, env: EnvHandle) -> Said:
        """Answer the observation. Raises ContextFull; EngineFault if what serves the policy failed."""
        ...


class Generator(Protocol):
    """Serves one request of one job: an engine, or a gate in front of it (see `gymrl.agents.rollout`)."""

    async def generate(self, job: Job, request: GenerationRequest) -> Generation: ...


class Agent(Protocol):
    name: str

    def player(self, job: Job, generator: Generator | None) -> Player: ...


def usage_of(agent: Agent) -> Usage | None:
    """What the agent's server has answered; None for one without."""
    usage = getattr(agent, "usage", None)
    return usage if isinstance(usage, Usage) else None


class ScriptedAgent:
    """`oracle` plays the environment's own oracle, `random` its random player, `null` says nothing."""

    KINDS = ("oracle", "random", "null")

    def __init__(self, kind: str) -> None:
        if kind not in self.KINDS:
            raise ValueError(f"unknown scripted agent {kind!r}: take {', '.join(self.KINDS)}")
        self.name = kind

    def player(self, job: Job, generator: Generator | None) -> Player:
        return _ScriptedPlayer(self.name, job)


class _ScriptedPlayer:
    def __init__(self, kind: str, job: Job) -> None:
        self.kind, self.job, self.turn = kind, job, 0

    async def act(self, observation: Observation, env: EnvHandle) -> Said:
        began = time.perf_counter()
        self.turn += 1
        if self.kind == "oracle":
            action = await env.oracle()
        elif self.kind == "random":
            action = await env.random_action(stable_hash("random", self.job.seed, self.turn))
        else:
            action = Action("")
        return Said(action, action.text, seconds=time.perf_counter() - began)


class ModelAgent:
    """A policy served by an engine."""

    def __init__(self, name: str, engine: Engine, renderer: Renderer, sampling: Sampling) -> None:
        self.name, self.engine, self.renderer, self.sampling = name, engine, renderer, sampling

    def player(self, job: Job, generator: Generator | None) -> Player:
        if generator is None:
            raise ValueError("a model's player needs a generator")
        return _ModelPlayer(self, job, generator)


class _ModelPlayer:
    def __init__(self, agent: ModelAgent, job: Job, generator: Generator) -> None:
        self.agent, self.job, self.generator = agent, job, generator
        self.conversation = Conversation(agent.renderer)
        self.turn = 0

    async def act(self, observation: Observation, env: EnvHandle) -> Said:
        prompt = self.conversation.observe(observation)
        if len(prompt.ids) >= self.agent.engine.max_context:
            raise ContextFull(
                f"the conversation has {len(prompt.ids)} tokens, the context {self.agent.engine.max_context}"
            )
        sampling = self.agent.sampling.with_seed(stable_hash(self.job.seed, self.turn))
        if self.job.greedy:
            sampling = replace(sampling, temperature=0.0)
        self.turn += 1
        request = GenerationRequest(prompt.ids, sampling, self.agent.renderer.stop_ids)
        done = await self.generator.generate(self.job, request)
        text = self.conversation.said(done.ids)
        return Said(
            parse_action(text), text, prompt.new_ids, done.ids, done.logprobs, done.versions, prompt.segment, done.stop,
            done.seconds,
        )  # fmt: skip
