"""The next step's rollouts beside the learning of this one (`rl.overlap`)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gymrl.agents.episodes import read_jsonl
from gymrl.agents.records import Episode, episode_from_json
from gymrl.rl.folder import RunFolder
from gymrl.rl.recipes import RecipeError, load
from gymrl.rl.report.files import Curve
from gymrl.rl.report.metrics import time_shares
from gymrl.rl.run import train
from gymrl.rl.stages import online as stage
from gymrl.rl.trainers.online import Ahead, Played, _beside
from gymrl.rl.workshop import Workshop

sys.path.insert(0, str(Path(__file__).parent))
from test_train import ENVIRONMENT, SMALL, metrics, metrics_so_far, resume, same_run, start

UPDATES = 2


def episodes_of(run: Path, step: int) -> list[Episode]:
    return list(read_jsonl(run / "episodes" / "rl" / f"{step:06d}.jsonl"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("overlap") / "run"
    assert start(out, "rl.overlap=true").wait() == 0
    return out


def test_a_step_is_sampled_by_the_weights_of_the_step_before(whole: Path) -> None:
    first = {v for e in episodes_of(whole, 0) for turn in e.turns for v in turn.versions}
    assert len(first) == 1
    (start_of_rl,) = first
    for step in range(1, 5):
        seen = {v for e in episodes_of(whole, step) for turn in e.turns for v in turn.versions}
        assert seen == {start_of_rl + UPDATES * (step - 1)}
    rows = [row for row in metrics(whole) if row["stage"] == "rl"]
    assert [row["step"] for row in rows] == list(range(5))
    assert all(row["tokens"] > 0 and not row["skipped"] for row in rows)
    # The engine's words on its own weights agree with the learner's; a step later they cannot.
    assert rows[0]["mismatch_max"] < 1e-3 < max(row["mismatch_max"] for row in rows[1:])


def test_its_tasks_and_seeds_are_those_of_a_run_without(whole: Path, tmp_path: Path) -> None:
    assert start(tmp_path / "plain", "rl.steps=2").wait() == 0
    for step in range(2):
        plain, ahead = episodes_of(tmp_path / "plain", step), episodes_of(whole, step)
        assert [(e.task, e.group, e.sample, e.seed) for e in plain] == [
            (e.task, e.group, e.sample, e.seed) for e in ahead
        ]
    assert [e.turns[0].logprobs for e in episodes_of(tmp_path / "plain", 0)] == [
        e.turns[0].logprobs for e in episodes_of(whole, 0)
    ]


@pytest.mark.parametrize("stop", ["SIGINT", "SIGKILL"])
def test_a_resumed_run_equals_an_uninterrupted_one(whole: Path, tmp_path: Path, stop: str) -> None:
    out = tmp_path / "run"
    process = start(out, "rl.overlap=true")
    while process.poll() is None:
        if (out / "metrics.jsonl").exists() and any(
            row["stage"] == "rl" and row["step"] >= 2 for row in metrics_so_far(out)
        ):
            process.send_signal(getattr(signal, stop))
            break
        time.sleep(0.01)
    process.communicate()
    assert process.returncode == {"SIGINT": 130, "SIGKILL": -signal.SIGKILL}[stop]
    assert resume(out) == 0
    same_run(whole, out)


def test_rollouts_that_a_sigterm_broke_ahead_are_in_no_checkpoint(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worlds of the next step's rollouts die with the run while this step is learnt from: both are done again."""
    play = stage.play_step

    async def dying(*arguments: Any) -> Played:
        played = await play(*arguments)
        if arguments[4] == 3:  # beside the learning of step 2
            signal.raise_signal(signal.SIGTERM)
            broken = replace(played.episodes[0], ending="invalid", reason="environment: its process died")
            played.episodes[0] = replace(broken, success=False)
        return played

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(stage, "play_step", dying)
        assert train("quickstart", [*SMALL, "rl.overlap=true"], None, out) == 143
    assert [path.name for path in out.glob("checkpoints/rl-step-*")] == ["rl-step-000002"]
    assert resume(out) == 0
    same_run(whole, out)


@pytest.mark.parametrize(
    "parts",
    [
        ["algo=ppo"],
        ["rl.prefix={}", "rl.kl={}"],
        ["rl.curriculum={kind='difficulty', tasks=4, samples=2, every=1}"],
    ],
)
def test_parts_with_models_of_their_own_go_with_it(tmp_path: Path, parts: list[str]) -> None:
    out = tmp_path / "run"
    assert start(out, *parts, "rl.overlap=true", "rl.updates=1").wait() == 0
    rows = [row for row in metrics(out) if row["stage"] == "rl"]
    assert len(rows) == 5 and sum(row.get("tokens", 0) for row in rows) > 0


def test_a_second_ctrl_c_stops_an_overlapped_step_without_a_traceback(tmp_path: Path) -> None:
    """They come when step 2 is learnt from, and the rollouts of step 3 still wait for the engine."""
    code = """
import asyncio, signal, sys, toy_env
from pathlib import Path
from gymrl.rl.run import train
from gymrl.rl.stages import online as stage
from gymrl.rl.trainers import online as trainer
play, learn, learnt = stage.play_step, trainer.learn, []
def learning(*arguments):
    metrics = learn(*arguments)
    learnt.append(arguments)
    return metrics
async def twice(*arguments):
    if arguments[4] == 3:
        while len(learnt) < 3:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        for _ in range(2):
            asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)
    return await play(*arguments)
stage.play_step, trainer.learn = twice, learning
sys.exit(train("quickstart", sys.argv[2:], None, Path(sys.argv[1])))
"""
    out = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", code, str(out), *SMALL, "rl.overlap=true", "sampling.max_tokens=200"],
        env=ENVIRONMENT, text=True, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 130 and "stopped at once" in done.stdout
    assert "Traceback" not in done.stderr and "never retrieved" not in done.stderr, done.stderr
    assert resume(out) == 0


def test_a_step_that_is_left_ends_before_what_it_uses_is_closed() -> None:
    """Else it fails of that, and tells of it or not as the moment will have it."""
    order: list[str] = []

    class Noting:
        async def aclose(self) -> None:
            order.append("environments closed")

        async def close(self) -> None:
            order.append("engine closed")

    async def left() -> None:
        try:
            await asyncio.sleep(600)
        finally:
            order.append("step ended")

    shop: Any = object.__new__(Workshop)
    with asyncio.Runner() as shop.loop:
        shop.pool, shop.pools, shop.engine = Noting(), {}, Noting()
        task = shop.loop.get_loop().create_task(left())
        shop.loop.run(asyncio.sleep(0))
        shop.close()
    assert order == ["step ended", "environments closed", "engine closed"] and task.cancelled()


def test_parts_that_look_ahead_go_with_it(tmp_path: Path) -> None:
    out = tmp_path / "run"
    more = ["rl.overlap=true", "rl.resample=1", "rl.curriculum={kind='horizon', stages=[1, 2], every=2}"]
    assert start(out, *more).wait() == 0
    rows = [row for row in metrics(out) if row["stage"] == "rl"]
    assert [row["curriculum"] for row in rows] == [0, 0, 1, 1, 1]
    for step, longest in enumerate([1, 1, 2, 2, 2]):
        assert max(len(e.turns) for e in episodes_of(out, step)) <= longest


@pytest.mark.parametrize(
    "given, mend",
    [
        (["rl.correction=none"], "take rl.correction = 'tis'"),
        (["rl.max_staleness=1", "rl.updates=2"], "set 2 or more"),
        (
            ["rl.curriculum={kind='horizon', stages=[1, 2], advance='plateau'}"],
            "set rl.curriculum.advance = 'step'",
        ),
    ],
)
def test_what_does_not_go_with_it_is_refused(given: list[str], mend: str) -> None:
    with pytest.raises(RecipeError, match=r"rl\.overlap") as refused:
        load("quickstart", ["rl.overlap=true", *given])
    assert mend in str(refused.value)
    load("quickstart", ["rl.overlap=true", "rl.max_staleness=2", "rl.updates=2"])


# -- side by side ----------------------------------------------------------------------------------------------

NOTHING = Played([], 0.0, 0.0)


async def beside(learning: Any, play: Any) -> Any:
    with ThreadPoolExecutor(1) as executor:
        return await asyncio.wait_for(_beside(learning, Ahead(play, executor)), 30)


async def test_learning_and_playing_go_on_at_the_same_time() -> None:
    loop, learning_began, played = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def learning() -> tuple[dict[str, Any], float]:
        loop.call_soon_threadsafe(learning_began.set)
        assert played.wait(20)  # an event that only `play` sets, once learning has begun
        return {"loss": 1.0}, 2.0

    async def play() -> Played:
        await learning_began.wait()
        played.set()
        return NOTHING

    assert await beside(learning, play) == (({"loss": 1.0}, 2.0), NOTHING)


async def test_an_engine_that_fails_meanwhile_lets_the_update_end() -> None:
    released, done = threading.Event(), []

    def learning() -> tuple[dict[str, Any], float]:
        assert released.wait(20)
        done.append("learnt")
        return {}, 0.0

    async def play() -> Played:
        released.set()
        raise RuntimeError("the engine is gone")

    with pytest.raises(RuntimeError, match="the engine is gone"):
        await beside(learning, play)
    assert done == ["learnt"]


async def test_a_learner_that_fails_ends_the_rollouts() -> None:
    ended = []

    def learning() -> tuple[dict[str, Any], float]:
        raise ValueError("no gradient")

    async def play() -> Played:
        try:
            await asyncio.sleep(600)
        finally:
            ended.append("cancelled")
        return NOTHING

    with pytest.raises(ValueError, match="no gradient"):
        await beside(learning, play)
    assert ended == ["cancelled"]


def test_the_report_counts_no_time_twice() -> None:
    def curve(key: str, value: float) -> Curve:
        return Curve("rl", f"time/{key}", [0.0, 1.0], [value, value])

    seconds = {"generate": 5.0, "environment": 2.0, "learn": 4.0, "wait": 3.0, "sync": 0.5, "step": 8.0}
    shares = time_shares([curve(*item) for item in seconds.items()], 10)
    assert shares is not None and shares.names == ["learn", "wait", "sync", "rest"]
    assert shares.now == [4.0, 3.0, 0.5, 0.5]


def test_episodes_that_wait_for_their_step_are_in_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read without pickle, and they are themselves to the bit."""
    log = RunFolder.log

    def stopping(self: RunFolder, row: dict[str, Any]) -> None:
        log(self, row)
        if row["stage"] == "rl" and row["step"] == 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(RunFolder, "log", stopping)
    out = tmp_path / "run"
    assert train("quickstart", [*SMALL, "rl.overlap=true"], None, out) == 130
    state = torch.load(out / "checkpoints" / "rl-step-000002" / "trainer.pt", weights_only=True)
    kept = state["stage"]["played"]
    assert list(kept) == [2]
    episodes = [episode_from_json(json.loads(line)) for line in kept[2]["episodes"]]
    assert len(episodes) == 6 and all(episode.turns for episode in episodes)
    assert resume(out) == 0
    assert episodes_of(out, 2) == episodes
