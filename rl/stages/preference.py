"""Preference learning: DPO and its relatives, KTO; offline on a file, or in rounds of sampling and training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from gymrl.agents.records import Episode
from gymrl.rl.algorithms import find
from gymrl.rl.folder import RunFault
from gymrl.rl.pairs import Example, fingerprint, mismatched, pairs, singles, usable
from gymrl.rl.preference_files import read_preferences
from gymrl.rl.stages.rounds import RoundsStage
from gymrl.rl.trainers.preference import preference_step, sums
from gymrl.rl.trainers.sft import chosen
from gymrl.rl.workshop import Workshop


class PreferenceStage(RoundsStage):
    title, name = "preference", "preference"

    def __init__(self, workshop: Workshop) -> None:
        p = workshop.recipe.preference
        assert p is not None  # the recipe fills in the table of a stage that it names
        super().__init__(workshop, p.rounds, p.steps, p.tasks, p.samples)
        self.settings = p
        self.algorithm = find("preference", p.loss.name)
        self.paired = "win_Q" in self.algorithm.inputs
        self.examples: list[Example] = []
        self.others: list[Example | None] = []
        self.ref_S = self.others_ref_S = torch.zeros(0, dtype=torch.float64)
        self.data = ""
        """The fingerprint of the examples that `ref_S` is of; empty in checkpoints that do not say."""

    def sample(self, round_: int) -> list[Episode]:
        return [] if self.settings.data else super().sample(round_)

    def begin(self, episodes: Sequence[Episode], fresh: bool) -> None:
        """Pairs or single episodes, and the sums of the reference: the policy at the round's start."""
        shop, p = self.workshop, self.settings
        if p.data:
            vocabulary = shop.learner.model.get_input_embeddings().num_embeddings
            file, note = shop.preferences(), shop.display.note
            self.examples = read_preferences(file, shop.renderer, vocabulary, self.paired, p.longest, note)
        else:
            self.examples = (pairs if self.paired else singles)(episodes, p.longest)
            if not self.examples:
                raise RunFault(_nothing(episodes, p.longest, self.paired))
        self.others = mismatched(self.examples) if "mismatched_S" in self.algorithm.inputs else []
        if fresh or not len(self.ref_S):  # there was nothing to train on: the weights are the round's first
            self._score()
        elif len(self.ref_S) != len(self.examples) or self.data not in ("", fingerprint(self.examples)):
            source = f"preference.data = {p.data!r}" if p.data else f"the run's episodes/{self.name}"
            raise RunFault(
                f"{source}: these are not the {len(self.ref_S)} examples that the checkpoint's steps were trained on; "
                "resume with the same file and settings of [preference], or start a new run"
            )

    def _score(self) -> None:
        """The sums of the policy as it is now, which becomes the reference."""
        shop = self.workshop
        temperature = shop.recipe.sampling.temperature
        self.ref_S = sums(shop.learner, self.examples, temperature)
        there = [other for other in self.others if other is not None]
        scored = iter(sums(shop.learner, there, temperature).tolist())
        self.others_ref_S = torch.tensor(
            [0.0 if other is None else next(scored) for other in self.others], dtype=torch.float64
        )
        self.data = fingerprint(self.examples)

    def train(self, number: int) -> dict[str, Any]:
        shop, p = self.workshop, self.settings
        width = 2 if self.paired else 1
        count = len(self.examples) // width
        seen = {"pairs" if self.paired else "examples": count}
        places = chosen(number % self.steps, count, p.batch, shop.recipe.seed + number // self.steps)
        picked = [width * place + side for place in places for side in range(width)]
        examples = [self.examples[i] for i in picked]
        crossed = [i for i in picked if self.others and self.others[i] is not None]
        others = [other for i in crossed if (other := self.others[i]) is not None]
        metrics = preference_step(
            shop.learner, examples, self.ref_S[picked], self.algorithm, p.loss.settings, p.lr,
            shop.recipe.sampling.temperature, others, self.others_ref_S[crossed],
        )  # fmt: skip
        return metrics | seen

    def state(self) -> dict[str, Any]:
        return {"ref": self.ref_S, "others": self.others_ref_S, "data": self.data}

    def load_state(self, state: dict[str, Any]) -> None:
        self.ref_S, self.others_ref_S = state["ref"], state["others"]
        self.data = state.get("data", "")


def _nothing(episodes: Sequence[Episode], longest: int | None, paired: bool) -> str:
    """What was sampled, where nothing can be learnt from it. The round begins anew when the run is resumed."""
    counts = []
    for won, name in ((True, "successes"), (False, "failures")):
        of = [e for e in episodes if e.valid and e.success == won]
        counts.append(f"{sum(usable(e, longest) for e in of)} of {len(of)} {name}")
    wanted = "no task has both" if paired else "there is nothing"
    return (
        f"preference: {' and '.join(counts)} can be learnt from (no void turn, none cut short), and {wanted}: raise "
        "preference.samples or preference.tasks, and where turns are void or cut short sft.steps or sampling.max_tokens"
    )
