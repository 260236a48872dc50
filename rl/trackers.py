"""The run's curves for those who watch them elsewhere: TensorBoard, and what accelerate logs to."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from gymrl.rl.folder import RunFault
from gymrl.rl.recipes import Recipe
from gymrl.rl.stages import steps_in

PROJECT = "gymrl"


def check_trackers(recipe: Recipe) -> None:
    """Raise RunFault where the recipe names a tracker that is not installed."""
    for tracker in recipe.log.trackers:
        if importlib.util.find_spec(tracker) is None:
            raise RunFault(f"log.trackers names {tracker}, which is not installed: pip install {tracker}")


class Trackers:
    """Opened once for a run; `begin` comes before a stage's first `log`."""

    def __init__(self, recipe: Recipe, folder: Path, accelerator: Accelerator) -> None:
        self.recipe, self.accelerator = recipe, accelerator
        self.folder = folder / "tensorboard" if "tensorboard" in recipe.log.trackers else None
        self._board: Any = None
        self._first = 0
        self._others = any(name != "tensorboard" for name in recipe.log.trackers)
        if self._others:
            accelerator.init_trackers(PROJECT, {"recipe": recipe.name, "seed": recipe.seed})

    def begin(self, stage: str, done: int) -> None:
        """`done` of the stage's steps are behind it: what was logged of later ones is done again."""
        earlier = self.recipe.stages[: self.recipe.stages.index(stage)]  # type: ignore[arg-type]
        self._first = sum(steps_in(self.recipe, name) for name in earlier)
        if self.folder is None:
            return
        # In a folder of its own, as all stages count their steps from 0 and readers forget by the step alone.
        from torch.utils.tensorboard import SummaryWriter

        self._close_board()
        self._board = SummaryWriter(str(self.folder / stage), purge_step=done)

    def log(self, stage: str, step: int, metrics: dict[str, Any]) -> None:
        named = {f"{stage}/{name}": value for name, value in metrics.items()}
        if self._board is not None:
            for name, value in named.items():
                self._board.add_scalar(name, value, step)
            self._board.flush()
        if self._others:  # some of them take no step twice: theirs are counted through the run
            self.accelerator.log(named, step=self._first + step)

    def close(self) -> None:
        self._close_board()
        # Not end_training, which would also break the group of the processes that train together.
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def _close_board(self) -> None:
        if self._board is not None:
            self._board.close()
            self._board = None
