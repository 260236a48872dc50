"""Demonstrations: what is said where the oracle cannot give them."""

from __future__ import annotations

import pytest

from gymrl.agents.rollout import RolloutSettings
from gymrl.envs import Action, Environment, register
from gymrl.envs.workers import EnvPool
from gymrl.rl.demonstrations import DemonstrationFault, demonstrate


class Silent(Environment):
    """Nobody shows how."""

    def reset(self) -> str:
        return "Go."

    def step(self, action: Action) -> tuple[str, float, bool]:
        return "No.", 0.0, True


class Broken(Silent):
    """Its world fails in a step."""

    def step(self, action: Action) -> tuple[str, float, bool]:
        raise KeyError("shelf")

    def oracle(self) -> str:
        return "go"


class Clumsy(Silent):
    """Its oracle loses."""

    def oracle(self) -> str:
        return "go"


for kind in (Silent, Broken, Clumsy):
    register(f"demos/{kind.__name__}-v0", kind)


@pytest.mark.parametrize(
    "name, words",
    [
        ("Silent", r"has no oracle\(\) to learn from: write one, give a file .*sft.data.*stages=\[\"rl\"\]"),
        (
            "Broken",
            r"fails while its oracle plays; train 0: environment: KeyError: 'shelf' \(test_demonstrations.py:\d+",
        ),
        (
            "Clumsy",
            r"the oracle of demos/Clumsy-v0 won 0 of 4 tasks; the first it did not: train 0, terminated",
        ),
    ],
)
async def test_what_hinders_demonstrations_is_named(name: str, words: str) -> None:
    pool = EnvPool(f"demos/{name}-v0")
    with pytest.raises(DemonstrationFault, match=words):
        await demonstrate(pool, 4, RolloutSettings())
    await pool.aclose()
