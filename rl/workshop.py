"""What the stages of a run share: environments, demonstrations, learner, engine, agent."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from gymrl.agents.engines.base import Engine, EngineSettings, Sampling, open_engine
from gymrl.agents.records import Episode
from gymrl.agents.rollout import RolloutSettings
from gymrl.envs.workers import EnvPool
from gymrl.rl.adapters import AdapterSettings
from gymrl.rl.algorithms import find
from gymrl.rl.batches import TokenSequence, sequences_of
from gymrl.rl.crew import check_crew, open_learner
from gymrl.rl.demonstrations import demonstrate, read_demonstrations, tokenise
from gymrl.rl.display import Display
from gymrl.rl.folder import RunFolder
from gymrl.rl.learner import LearnerSettings
from gymrl.rl.policy import load_renderer, start_policy
from gymrl.rl.preference_files import read_preferences
from gymrl.rl.recipes import Recipe
from gymrl.rl.stopping import Interrupted, Stop
from gymrl.rl.supervised.agent import GuidedAgent
from gymrl.rl.supervised.key_tokens import with_keys
from gymrl.rl.supervised.notes import noted


class Workshop:
    """Opened once for a run; `learner` holds the policy as it is now, `started` the weights the present stage began
    with."""

    def __init__(
        self, recipe: Recipe, folder: RunFolder, pool: EnvPool, display: Display, loop: asyncio.Runner, stop: Stop
    ) -> None:
        check_crew(recipe)
        self.recipe, self.folder, self.pool, self.display, self.loop = recipe, folder, pool, display, loop
        self.stop = stop
        self.pools: dict[str, EnvPool] = {}
        self.engine: Engine | None = None
        others = [tracker for tracker in recipe.log.trackers if tracker != "tensorboard"]  # gymrl's own to write
        self.accelerator = Accelerator(
            mixed_precision=recipe.learner.mixed_precision, log_with=others or None,
            project_dir=str(folder.path), cpu=not torch.cuda.is_available(),
        )  # fmt: skip
        self.rollouts = RolloutSettings(
            recipe.env.concurrency, recipe.engine.pace, recipe.env.deadline, recipe.env.max_turns,
            recipe.rl.void.name == "end_episode",
        )  # fmt: skip
        self.base = folder.checkpoint_path("base")
        self.started = self.base
        notes = recipe.rft.notes if recipe.rft is not None else None
        self.note = notes.success if notes is not None else ""
        """What every task holds besides (NAT)."""

    def prepare(self) -> None:
        """The demonstrations and the first policy, made or found in the run folder."""
        recipe, folder = self.recipe, self.folder
        demonstrations: list[Episode] = []
        if (
            recipe.model.path != "tiny" and not self.base.exists()
        ):  # first: a model that cannot be loaded shows at once
            folder.write_checkpoint("base", lambda path: start_policy(recipe, [], path), {})
        wanted = "sft" in recipe.stages or ("rl" in recipe.stages and recipe.rl.sft_weight > 0)
        if wanted or (recipe.model.path == "tiny" and not self.base.exists()):
            demonstrations = self._given() if recipe.sft.data else self._played()
            folder.write_episodes("demonstrations", demonstrations)
        if not self.base.exists():
            folder.write_checkpoint("base", lambda path: start_policy(recipe, demonstrations, path), {})
        self.renderer = load_renderer(self.base)
        blank, many = recipe.sft.tokens.blank if recipe.sft.tokens else 0, len(self.renderer.tokenizer)
        if blank >= many:
            raise ValueError(f"sft.tokens.blank={blank} is no token of this policy: it has 0 to {many - 1}")
        self.demonstrations: list[list[TokenSequence]] = [
            self._as_tokens(episode) for episode in demonstrations
        ]
        self._check_context()
        self._check_preferences()

    def open(self, source: Path, state: dict[str, Any]) -> None:
        """Learner and engine with the weights of `source`; `state` is the learner's, if it is not fresh."""
        recipe = self.recipe
        settings = self.learner_settings()
        # An adapter goes on beside the weights that it was laid beside; the checkpoint's have it merged in.
        start = self.base if settings.adapter is not None else source
        self.learner = open_learner(start, settings, self.accelerator)
        if state:
            self.learner.load_state(state)
        e = recipe.engine
        self.engine = open_engine(
            EngineSettings(e.kind, source, e.url, e.max_context, e.slots, e.dtype, e.memory_gb)
        )
        sampling = Sampling(recipe.sampling.temperature, max_tokens=recipe.sampling.max_tokens)
        self.agent = GuidedAgent(recipe.name, self.engine, self.renderer, sampling, self.note)

    def learner_settings(self) -> LearnerSettings:
        s, t = self.recipe.learner, self.recipe.learner.trainable
        adapter, kind = None, t.name
        if kind != "all" and kind != "half" and kind != "lisa":
            adapter, kind = AdapterSettings(kind, t.rank, t.alpha, tuple(t.targets)), "all"
        return LearnerSettings(
            s.token_budget, s.grad_clip, s.weight_decay, mixed_precision=s.mixed_precision,
            gradient_checkpointing=s.gradient_checkpointing, spike=s.spike, trainable=kind, redraw=t.redraw,
            layers=t.layers, adapter=adapter, seed=self.recipe.seed,
        )  # fmt: skip

    def serve(self) -> None:
        """Serve the learner's present weights."""
        assert self.engine is not None
        self.loop.run(self.engine.load_weights(self.learner.weights(), self.learner.updates))

    def save_policy(self, path: Path) -> None:
        self.learner.save(path)
        self.renderer.tokenizer.save_pretrained(path)

    def pool_with(self, params: dict[str, Any]) -> EnvPool:
        """The environments with other parameters over the recipe's; those without any are the run's own."""
        if not params:
            return self.pool
        key = json.dumps(params, sort_keys=True, default=str)
        if key not in self.pools:
            env = self.recipe.env
            self.pools[key] = EnvPool(env.id, {**env.params, **params}, env.workers)
        return self.pools[key]

    def _as_tokens(self, episode: Episode) -> list[TokenSequence]:
        tokens = self.recipe.sft.tokens
        told = noted(tokenise(episode, self.renderer), self.note, self.renderer)
        sequences = sequences_of(told)
        return with_keys(sequences, told, tokens.key, self.renderer) if tokens and tokens.key else sequences

    def _given(self) -> list[Episode]:
        """The demonstrations of the recipe's file; of a resumed run its own copy, as the file may change."""
        copy = self.folder.path / "episodes" / "demonstrations.jsonl"
        return read_demonstrations(copy if copy.exists() else Path(self.recipe.sft.data))

    def _played(self) -> list[Episode]:
        self.display.begin("demonstrations", self.recipe.sft.demonstrations)
        try:
            return self.loop.run(self._demonstrate())
        finally:
            self.display.end()

    async def _demonstrate(self) -> list[Episode]:
        recipe = self.recipe
        pool = EnvPool(recipe.env.id, {**recipe.env.params, **recipe.sft.params}, recipe.env.workers)
        try:
            return await demonstrate(pool, recipe.sft.demonstrations, self.rollouts, self.played)
        finally:
            await pool.aclose()

    def played(self, episode: Episode) -> None:
        """One more, of episodes that are played again where the run is stopped among them: then it ends here."""
        self.display.count(episode)
        self.stop.check()

    def check_whole(self, episodes: Sequence[Episode]) -> None:
        """Raise Interrupted where worlds of these episodes were ended with the run: what they came to is no step's."""
        if self.stop.took(episodes):
            self.display.note("SIGTERM has ended environments too, and this step is lost: it is done again")
            raise Interrupted

    def _check_context(self) -> None:
        longest = max((s.tokens for episode in self.demonstrations for s in episode), default=0)
        if longest > self.recipe.engine.max_context:
            raise ValueError(
                f"the longest demonstration has {longest} tokens, engine.max_context is "
                f"{self.recipe.engine.max_context}: set engine.max_context={-(-longest // 64) * 64} or more"
            )

    def preferences(self) -> Path:
        """The file that preferences are learnt from: the run's own copy, as the recipe's file may change."""
        given = Path(self.recipe.preference.data if self.recipe.preference is not None else "")
        copy = self.folder.path / f"preferences{given.suffix}"
        return copy if copy.exists() else given

    def _check_preferences(self) -> None:
        """Read what preferences are learnt from once before anything is trained, so that a fault shows now."""
        p = self.recipe.preference
        if p is not None and p.data and "preference" in self.recipe.stages:
            paired = "win_Q" in find("preference", p.loss.name).inputs
            file, many = self.preferences(), len(self.renderer.tokenizer)
            read_preferences(file, self.renderer, many, paired, p.longest, lambda _: None)
            if file.parent != self.folder.path:
                draft = self.folder.path / "preferences.part"
                shutil.copyfile(file, draft)
                draft.rename(self.folder.path / f"preferences{file.suffix}")

    def close(self) -> None:
        """Close environments and engine."""
        self.loop.run(self._aclose())

    async def _aclose(self) -> None:
        # A second Ctrl-C leaves a step in the middle: what it waits for is not to fail of what is closed under it.
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        for pool in (self.pool, *self.pools.values()):
            await pool.aclose()
        if self.engine is not None:
            await self.engine.close()
