"""A whole run: stages in order, each evaluated on held-out tasks, interruptible and resumable at any point."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import re
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from gymrl.agents.engines.base import EngineFault
from gymrl.agents.episodes import json_text
from gymrl.agents.evaluation import evaluate, evaluation_jobs, invalid_causes, merged_causes
from gymrl.agents.players import Job
from gymrl.agents.records import Episode
from gymrl.envs.workers import EnvPool
from gymrl.rl.algorithms import find
from gymrl.rl.display import Display
from gymrl.rl.folder import Progress, RunFault, RunFolder
from gymrl.rl.memory import keep_freed_memory
from gymrl.rl.objective import loss_of_settings
from gymrl.rl.policy import check_source
from gymrl.rl.pools import asked_for_tasks, fit_tasks, open_pool
from gymrl.rl.provenance import check_changes, finite_weights, own_sources, versions
from gymrl.rl.recipes import Recipe, anchored, dump, load
from gymrl.rl.report import write_report
from gymrl.rl.stages import open_stage, steps_in
from gymrl.rl.stopping import INTERRUPTED, Interrupted, Stop
from gymrl.rl.trackers import Trackers, check_trackers
from gymrl.rl.trainers.online import check_engine
from gymrl.rl.workshop import Workshop

ROW = 3
"""Steps in a row without an update after which a run stops."""


def train(
    recipe: str | None, overrides: list[str], resume: Path | None = None, out: Path | None = None
) -> int:
    """Run a recipe, or go on with a run; returns the exit code.

    Raises RecipeError, RunFault, EngineFault, PolicyFault, DemonstrationFault, each with a sentence that names the
    mend.
    """
    display = Display()
    if resume is not None:
        folder = RunFolder.open(resume)
        if folder.finished():
            given = f" ({', '.join(overrides)} would be of a new run)" if overrides else ""
            display.note(
                f"{resume} is finished, nothing is left to do{given}; the same recipe anew: gymrl train "
                f"{resume}/recipe.toml, or on from its policy with model.path={resume}/policy"
            )
            return 0
        loaded = load(folder.path / "recipe.toml", overrides, resumed=True)
        resolved = anchored(loaded)
        check_changes(load(folder.path / "recipe.toml", resumed=True), resolved, folder.progress())
        pool = open_pool(resolved)
    else:
        loaded = load(recipe or "quickstart", overrides)
        resolved = anchored(loaded)
        check_source(resolved.model.path)
        pool = open_pool(resolved)  # before there is a folder: a wrong name leaves nothing behind
    asked = asked_for_tasks(str(recipe or "quickstart"), loaded, overrides, resume is not None)
    resolved = fit_tasks(resolved, pool, asked, display.note)
    if resume is None:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        folder = RunFolder.create(out or Path("runs") / f"{resolved.name}-{stamp}", dump(resolved))
    with asyncio.Runner() as loop, Stop(display.note) as stop:
        run = Run(resolved, folder, pool, display, loop, stop, overrides if resume is not None else [])
        hint = f"go on with: gymrl train --resume {folder.path}"
        try:
            run.all()
            return 0
        except Interrupted:
            display.note(f"interrupted; {hint}")
            return stop.code
        except KeyboardInterrupt:
            display.note(f"stopped at once; steps since the last checkpoint are done again; {hint}")
            run.ended("interrupted")
            return INTERRUPTED
        except Exception:
            if run.progress.checkpoint or run.progress.phase:
                display.note(f"stopped by an error; once it is mended, {hint}")
                with contextlib.suppress(OSError):  # as on a full disk, which is the error that is told
                    run.ended("failed")
            elif resume is None:
                folder.discard()
            raise
        finally:
            run.close()


class Run:
    """The state of a run in progress."""

    def __init__(
        self, recipe: Recipe, folder: RunFolder, pool: EnvPool, display: Display, loop: asyncio.Runner, stop: Stop,
        changed: Sequence[str] = (),
    ) -> None:  # fmt: skip
        transformers_logging.disable_progress_bar()
        keep_freed_memory()
        self.recipe, self.folder, self.display, self.loop, self.stop = recipe, folder, display, loop, stop
        self.began = time.perf_counter()
        self.progress = folder.progress()
        self.summary: dict[str, Any] = copy.deepcopy(self.progress.summary) or {
            "recipe": recipe.name, "seed": recipe.seed, "versions": versions(), "status": "running", "stages": [],
            "invalid": {}, "void": {}, "seconds": 0.0,
        }  # fmt: skip
        self.earlier: float = self.summary["seconds"]
        self.summary["status"] = "running"
        self._note_changes(changed)
        self.pool = pool
        self.phases = ["evaluate base"]
        for stage in recipe.stages:
            self.phases += [stage, f"evaluate {stage}"]

    def _note_changes(self, changed: Sequence[str]) -> None:
        """What is not as it was when the run began: settings, and sources of algorithms."""
        if changed:
            self.folder.write_text("recipe.toml", dump(self.recipe))
            if any(setting.startswith(("data=", "sft.data=")) for setting in changed):  # not the copy's
                (self.folder.path / "episodes" / "demonstrations.jsonl").unlink(missing_ok=True)
            if any(setting.startswith("preference.data=") for setting in changed):
                for copy in self.folder.path.glob("preferences.*"):
                    copy.unlink()
            at = {"phase": self.progress.phase, "step": self.progress.step, "set": list(changed)}
            self.summary["changed"] = [*self.summary.get("changed", []), at]
        now = own_sources(self.recipe)
        for name, digest in self.summary.setdefault("sources", now).items():
            if now.get(name, digest) != digest:
                self.display.note(f"{name} has changed since the run began: its steps are of more than one algorithm")
        self.summary["sources"] = now

    # -- the main loop ---------------------------------------------------------------------------------

    def all(self) -> None:
        """Every phase that is not done yet."""
        try:
            self._prepare()
            while self.progress.phase < len(self.phases):
                self.stop.check()
                name = self.phases[self.progress.phase]
                if name.startswith("evaluate "):
                    self._evaluate(name.removeprefix("evaluate "))
                else:
                    self._train(name)
                self._next_phase()
            self._finish("finished")
        except Interrupted:
            self._finish("interrupted")
            raise
        except EngineFault as error:
            if self.stop.by != signal.SIGTERM:
                raise
            self.display.note(f"SIGTERM has ended the engine too, and its step is lost ({error})")
            self._finish("interrupted")
            raise Interrupted from error

    def _prepare(self) -> None:
        recipe, folder = self.recipe, self.folder
        check_trackers(recipe)
        torch.manual_seed(recipe.seed)
        self.shop = shop = Workshop(recipe, folder, self.pool, self.display, self.loop, self.stop)
        self.display.note(f"{recipe.name}, seed {recipe.seed} -> {folder.path}")
        if "rl" in recipe.stages:  # what cannot be found or imported shows now, not after the warm start
            find("advantage", recipe.rl.advantage.name)
            loss_of_settings(recipe.rl)
        shop.prepare()
        source, state = shop.base, dict[str, Any]()
        if self.progress.checkpoint:
            source, state = folder.read_checkpoint(self.progress.checkpoint)
        self.stage_state: dict[str, Any] = state.pop("stage", {})
        folder.rewind(self._steps_done())
        shop.open(source, state)
        self.trackers = Trackers(recipe, folder.path, shop.accelerator)

    # -- phases ----------------------------------------------------------------------------------------

    def _train(self, name: str) -> None:
        """The optimisation loop of one stage."""
        before = self.phases[self.progress.phase - 1].removeprefix("evaluate ")
        self.shop.started = self.folder.checkpoint_path(before)
        if self.progress.step == 0:
            self.shop.learner.reset_optimizer()
        stage = open_stage(name, self.shop)
        if self.progress.step:
            stage.load_state(self.stage_state)
        self.trackers.begin(name, self.progress.step)
        self.display.begin(stage.title, stage.total, self.progress.step)
        try:
            for step in range(self.progress.step, stage.total):
                metrics, episodes = stage.step(step)
                self.shop.check_whole(episodes)
                self._count(episodes)
                if self.recipe.eval.every and (step + 1) % self.recipe.eval.every == 0:
                    metrics |= self._look(name, step + 1)
                self.display.invalid(sum(not episode.valid for episode in episodes))
                stuck = self._skipped(name, step, metrics)
                self.display.advance(step + 1, **stage.facts(metrics))
                self._log(name, step, metrics)
                done = step + 1
                every = self.recipe.log.checkpoint_every
                if stuck and not finite_weights(self.shop.learner):
                    raise RunFault(
                        f"{stuck}; the weights are not finite any more, and no checkpoint is written: --resume goes on "
                        "from the one before"
                    )
                if self.stop.asked or stuck or done == stage.total or done % every == 0:
                    self._checkpoint(name, done, stage.state())
                if stuck:
                    raise RunFault(stuck + "; a checkpoint is written")
                self.stop.check()
        finally:
            self.display.end()

    def _skipped(self, stage: str, step: int, metrics: dict[str, Any]) -> str:
        """Count and explain the step's skipped updates; what to tell if it is the third such step in a row."""
        troubles, self.shop.learner.troubles = self.shop.learner.troubles, []
        counts, row = Counter(self.summary.get("skipped", {})), self.summary.get("skipped_in_a_row", 0)
        if metrics.get("skipped") and not troubles:
            counts["all members did alike" if stage == "es" else "no token had an advantage"] += 1
        for trouble in troubles:
            counts[_cause(trouble)] += 1
            self.display.note(f"{stage} step {step}: an update was skipped: {trouble}")
        row = row + 1 if troubles else 0
        stuck = row == ROW
        self.summary |= {"skipped": dict(counts), "skipped_in_a_row": 0 if stuck else row}
        if not stuck:
            return ""
        return (
            f"{ROW} steps in a row had updates skipped, the last one because {troubles[-1]}: "
            f"look at what the episodes of the last steps have in common, or lower {stage}.lr"
        )

    def _held_out(self, split: str) -> list[Job]:
        count = min(self.recipe.eval.tasks, self.pool.template.world.sizes[split])
        tasks = [self.pool.task(split, index) for index in range(count)]
        return evaluation_jobs(tasks, self.recipe.eval.samples, self.recipe.seed)

    def _look(self, stage: str, done: int) -> dict[str, float]:
        """Play tasks of the split `val` in the middle of a stage; the best policy so far is kept. Returns metrics."""
        self.shop.serve()
        result, episodes = self.loop.run(
            evaluate(self.shop.agent, self.pool, self._held_out("val"), self.shop.rollouts)
        )
        check_engine(episodes)
        self.shop.check_whole(episodes)
        self._count(episodes)
        best = self.summary.setdefault("best", {})
        if stage not in best or result.success > best[stage]["success"]:
            best[stage] = {"step": done, "success": result.success, "low": result.low, "high": result.high}
            self.folder.write_checkpoint(f"{stage}-best", self.shop.save_policy, {})
        return {f"val/{name}": getattr(result, name) for name in ("success", "reward", "turns", "void_turns")}

    def _evaluate(self, stage: str) -> None:
        recipe, shop = self.recipe, self.shop
        shop.serve()
        jobs = self._held_out(recipe.eval.split)
        self.display.begin(f"evaluate {stage}", len(jobs))
        try:
            result, episodes = self.loop.run(evaluate(shop.agent, self.pool, jobs, shop.rollouts, shop.played))
        finally:
            self.display.end()
        check_engine(episodes)
        if sum(result.invalid.values()) == result.episodes:
            raise RunFault(f"no episode of the evaluation is valid; the first cause is {next(iter(result.invalid))}")
        self.folder.write_episodes(f"eval-{stage}", episodes)
        self._count(episodes)
        self.summary["stages"] = [s for s in self.summary["stages"] if s["name"] != stage]
        self.summary["stages"].append({"name": stage, **asdict(result)})
        if stage != "base":
            self.folder.write_checkpoint(stage, shop.save_policy, {})

    # -- helpers ---------------------------------------------------------------------------------------

    def _log(self, stage: str, step: int, metrics: dict[str, Any]) -> None:
        self.folder.log({"stage": stage, "step": step, **metrics})
        self.trackers.log(stage, step, metrics)

    def _checkpoint(self, stage: str, step: int, state: dict[str, Any]) -> None:
        name = f"{stage}-step-{step:06d}"
        whole = self.shop.learner.state() | ({"stage": state} if state else {})
        self.folder.write_checkpoint(name, self.shop.save_policy, whole)
        self._advance(self.progress.phase, step, name)
        self.folder.drop_checkpoints([name])

    def _next_phase(self) -> None:
        self._advance(self.progress.phase + 1, 0, self.progress.checkpoint)
        self._report()
        if self.progress.phase < len(self.phases):
            self.stop.check()

    def _advance(self, phase: int, step: int, checkpoint: str) -> None:
        self._write_summary()
        self.progress = Progress(phase, step, checkpoint, copy.deepcopy(self.summary))
        self.folder.save_progress(self.progress)

    def _write_summary(self) -> None:
        self.summary["seconds"] = self.earlier + time.perf_counter() - self.began
        self.folder.write_text("summary.json", json_text(self.summary, indent=1))

    def _report(self) -> None:
        """Write report.html. A page that cannot be written never stops a run."""
        try:
            write_report(self.folder.path)
        except Exception as error:
            self.display.note(f"report.html could not be written ({type(error).__name__}: {error})")

    def _steps_done(self) -> dict[str, int]:
        """Steps of each stage that the checkpoint holds."""
        done = {name: steps_in(self.recipe, name) for name in self.phases[: self.progress.phase]}
        if self.progress.phase < len(self.phases):
            done[self.phases[self.progress.phase]] = self.progress.step
        return done

    def _count(self, episodes: list[Episode]) -> None:
        invalid = merged_causes(self.summary["invalid"], invalid_causes(episodes))
        void, sandboxes = Counter(self.summary["void"]), Counter(self.summary.get("sandboxes", {}))
        for episode in episodes:
            for turn in episode.turns:
                if "sandbox" in turn.info:  # what isolated the code that ran
                    sandboxes[str(turn.info["sandbox"])] += 1
                if turn.void:
                    void["cut short" if turn.stop in ("length", "context") else "nothing recognised"] += 1
        self.summary |= {"invalid": invalid, "void": dict(void)}
        if sandboxes:
            self.summary["sandboxes"] = dict(sandboxes)

    def ended(self, status: str) -> None:
        """The run ends before its time: the summary says how."""
        self.summary["status"] = status
        self._write_summary()

    def _finish(self, status: str) -> None:
        self.summary["status"] = status
        if status == "finished":
            self.folder.write_checkpoint("policy", self.shop.save_policy, {})
            self.display.stages(self.summary["stages"])
        self._write_summary()
        self._report()
        for cause, count in self.summary["invalid"].items():
            self.display.note(
                f"{count} invalid episode{'s' * (count != 1)}, in no figure and no group's baseline: {cause}"
            )
        trained = self.folder.logged("rl", "actions") if status == "finished" else []
        if trained and not any(trained):
            self.display.note(
                "RL learnt nothing: in no step had a token an advantage. Where all episodes of a task end alike, bring "
                "success before RL to between 0.2 and 0.8 (more sft.steps, easier env.params), or pay on the way"
            )
        spreads = self.folder.logged("es", "reward_spread") if status == "finished" else []
        if spreads and not any(spreads):
            self.display.note(
                "ES learnt nothing: in no step did the members' rewards differ. Raise es.sigma or es.tasks, or bring "
                "success before ES to between 0.2 and 0.8"
            )
        self.display.note(f"{self.summary['seconds']:.0f} s in all; open {self.folder.path / 'report.html'}")

    def close(self) -> None:
        """Close environments, engine and files."""
        self.display.close()
        if hasattr(self, "trackers"):
            self.trackers.close()
        if hasattr(self, "shop"):
            self.shop.close()
        else:
            self.pool.close()
        self.folder.close()


def _cause(trouble: str) -> str:
    """Why an update was skipped, without what was measured."""
    return re.sub(r" \(.*| [\d.e+-]+ is [\d.e+-]+ times.*", "", trouble)
