"""A policy that plays with guidance: a note on the task, or the beginning of a demonstration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from gymrl.agents.engines.base import Engine, Generation, GenerationRequest, Sampling
from gymrl.agents.players import Generator, Job, ModelAgent, Player, Said
from gymrl.agents.rendering import Renderer
from gymrl.envs.records import Observation
from gymrl.envs.workers import EnvHandle
from gymrl.rl.batches import TOLD
from gymrl.rl.supervised.notes import with_note
from gymrl.rl.supervised.prefix import Answers


class GuidedAgent(ModelAgent):
    """`note` stands on every task. `prefixes` are what the jobs of a (group, sample) are told to say first."""

    def __init__(
        self, name: str, engine: Engine, renderer: Renderer, sampling: Sampling, note: str = "",
        prefixes: Mapping[tuple[int, int], Answers] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(name, engine, renderer, sampling)
        self.note, self.prefixes = note, dict(prefixes or {})

    def told(self, prefixes: Mapping[tuple[int, int], Answers]) -> GuidedAgent:
        """The same policy with these prefixes."""
        return GuidedAgent(self.name, self.engine, self.renderer, self.sampling, self.note, prefixes)

    def player(self, job: Job, generator: Generator | None) -> Player:
        answers = self.prefixes.get((job.group, job.sample), ())
        if generator is not None and answers and not job.greedy:
            generator = _Told(generator, answers, self.engine.max_context)
        player = super().player(job, generator)
        return _Noted(player, self.note) if self.note else player


class _Told:
    """Answers with the demonstration's ids as long as there are any, then as the policy does. Their version is TOLD."""

    def __init__(self, generator: Generator, answers: Answers, context: int) -> None:
        self.inner, self.left, self.context = generator, list(answers), context

    async def generate(self, job: Job, request: GenerationRequest) -> Generation:
        if not self.left:
            return await self.inner.generate(job, request)
        ids = self.left.pop(0)[: self.context - len(request.prompt_ids) - 1]
        zeros, versions = (0.0,) * len(ids), (TOLD,) * len(ids)
        if ids and ids[-1] in request.stop_ids:
            return Generation(ids, zeros, versions, "stop")
        self.left.clear()
        sampling = replace(request.sampling, max_tokens=max(1, request.sampling.max_tokens - len(ids)))
        done = await self.inner.generate(
            job, replace(request, prompt_ids=request.prompt_ids + ids, sampling=sampling)
        )
        return replace(
            done, ids=ids + done.ids, logprobs=zeros + done.logprobs, versions=versions + done.versions
        )


class _Noted:
    def __init__(self, player: Player, note: str) -> None:
        self.inner, self.note = player, note

    async def act(self, observation: Observation, env: EnvHandle) -> Said:
        shown = replace(observation, messages=with_note(observation.messages, self.note))
        self.note = ""  # on the first observation alone
        return await self.inner.act(shown, env)
