"""The run folder: everything a run leaves, and what it needs to go on after an interruption.

recipe.toml       the resolved recipe                 metrics.jsonl    one line a step
summary.json      stages with success and intervals   report.html      to read in a browser
episodes/         every episode, as JSONL             checkpoints/     models in Hugging Face form
policy/           the policy as it is now             state.json       where to go on from
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from gymrl.agents.episodes import json_text, write_jsonl
from gymrl.agents.records import Episode
from gymrl.rl.soundness import damage, first_line


class RunFault(RuntimeError):
    """The run folder cannot be used; the text names the mend."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands: the phase it is in, the steps done in it, the checkpoint that holds them, and the summary as
    of then. Written as one file, so that the parts always belong together."""

    phase: int = 0
    step: int = 0
    checkpoint: str = ""
    summary: dict[str, Any] = field(default_factory=dict)


class RunFolder:
    """One run on disk. Files that matter are written beside their place and renamed: whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._metrics: Any = None

    @classmethod
    def create(cls, path: Path, recipe_toml: str) -> RunFolder:
        """A fresh folder. Raises RunFault if there is a run in it already."""
        if (path / "state.json").exists() or (path / "recipe.toml").exists():
            raise RunFault(
                f"{path} holds a run already: go on with `gymrl train --resume {path}`, or name another"
            )
        path.mkdir(parents=True, exist_ok=True)
        folder = cls(path)
        folder.write_text("recipe.toml", recipe_toml)
        folder.save_progress(Progress())
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """A folder to resume. Raises RunFault if there is no run in it."""
        if not (path / "recipe.toml").exists() or not (path / "state.json").exists():
            raise RunFault(f"{path} is not a run folder: it has no recipe.toml and state.json")
        return cls(path)

    def discard(self) -> None:
        """Take away a folder in which a run could not start: where it holds neither metrics nor episodes."""
        if not (self.path / "metrics.jsonl").exists() and not any((self.path / "episodes").glob("eval-*")):
            self.close()
            shutil.rmtree(self.path, ignore_errors=True)

    def finished(self) -> bool:
        """Whether the run in it came to its end."""
        try:
            status = json.loads((self.path / "summary.json").read_text(encoding="utf-8"))["status"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return bool(status == "finished") and (self.path / "policy").is_dir()

    # -- progress and checkpoints ----------------------------------------------------------------------

    def progress(self) -> Progress:
        try:
            return Progress(**json.loads((self.path / "state.json").read_text()))
        except (ValueError, TypeError) as error:
            raise RunFault(
                f"{self.path}/state.json is broken ({error}): restore it or start a new run"
            ) from error

    def save_progress(self, progress: Progress) -> None:
        self.write_text("state.json", json_text(asdict(progress), indent=1))

    def checkpoint_path(self, name: str) -> Path:
        return self.path / "checkpoints" / name

    def write_checkpoint(self, name: str, save: Any, state: dict[str, Any]) -> Path:
        """`save(folder)` writes the model; `state` goes to trainer.pt. The folder appears only when it is whole."""
        final = self.path / "policy" if name == "policy" else self.checkpoint_path(name)
        draft = final.with_name(final.name + ".part")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        save(draft)
        torch.save(state, draft / "trainer.pt")
        shutil.rmtree(final, ignore_errors=True)
        draft.rename(final)
        return final

    def read_checkpoint(self, name: str) -> tuple[Path, dict[str, Any]]:
        """The model's folder and the trainer's state. Raises RunFault if either is damaged."""
        folder = self.checkpoint_path(name)
        mend = f"restore it from a copy, or start a new run with `gymrl train {self.path}/recipe.toml`"
        if found := damage(folder):
            raise RunFault(f"the checkpoint cannot be read, {found}: {mend}")
        file = folder / "trainer.pt"
        try:
            state: dict[str, Any] = torch.load(file, weights_only=True)
        except Exception as error:
            raise RunFault(f"the checkpoint cannot be read, {file} is damaged ({first_line(error)}): {mend}") from error
        return folder, state

    def drop_checkpoints(self, keep: Iterable[str]) -> None:
        """Delete every step checkpoint but those named."""
        kept = set(keep)
        for folder in (self.path / "checkpoints").glob("*-step-*"):
            if folder.name not in kept:
                shutil.rmtree(folder, ignore_errors=True)

    # -- metrics and episodes --------------------------------------------------------------------------

    def log(self, metrics: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        if self._metrics is None:
            self._metrics = (self.path / "metrics.jsonl").open("a", encoding="utf-8")
        self._metrics.write(json_text(metrics) + "\n")
        self._metrics.flush()

    def logged(self, stage: str, name: str) -> list[float]:
        """What was logged of a metric, step by step; NaN where it was not finite."""
        path = self.path / "metrics.jsonl"
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
        found = [row[name] for row in rows if row["stage"] == stage and name in row]
        return [math.nan if value is None else value for value in found]

    def rewind(self, done: dict[str, int]) -> None:
        """Forget what was logged after the checkpoint: `done` has the steps to keep of each stage."""
        path = self.path / "metrics.jsonl"
        if path.exists():
            kept = []
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                except ValueError:
                    continue  # the line that was being written when the run was killed
                if row["step"] < done.get(row["stage"], 0):
                    kept.append(json_text(row) + "\n")
            self.write_text("metrics.jsonl", "".join(kept))
        for stage in (self.path / "episodes").glob("*/"):
            for file in stage.glob("*.jsonl"):
                if int(file.stem) >= done.get(stage.name, 0):
                    file.unlink()

    def write_episodes(self, name: str, episodes: Iterable[Episode]) -> None:
        write_jsonl(self.path / "episodes" / f"{name}.jsonl", episodes)

    # -- small files -----------------------------------------------------------------------------------

    def write_text(self, name: str, text: str) -> None:
        path = self.path / name
        draft = path.with_name(path.name + ".part")
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)

    def close(self) -> None:
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None
