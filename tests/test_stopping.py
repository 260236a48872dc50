"""A run that is asked to stop: by Ctrl-C, or by the SIGTERM of a cluster, whichever processes get it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from gymrl.agents.engines import EngineFault
from gymrl.agents.records import Episode
from gymrl.envs.records import TaskSpec
from gymrl.rl.crew import crew
from gymrl.rl.merging import read_weights
from gymrl.rl.run import train
from gymrl.rl.stopping import INTERRUPTED, TERMINATED, Interrupted, Stop
from gymrl.rl.workshop import Workshop

HERE = str(Path(__file__).parent)
sys.path.insert(0, HERE)
import slow_env  # noqa: E402, F401 - registers toy/Slow-v0
import toy_env  # noqa: E402 - registers toy/Letters-v0

ENVIRONMENT = {**os.environ, "PYTHONPATH": HERE, "OMP_NUM_THREADS": "1"}
SMALL = [*toy_env.SMALL, "rl.steps=6", "log.checkpoint_every=3"]
CODE = """
import sys, toy_env, slow_env
from pathlib import Path
from gymrl.rl.crew import crew
from gymrl.rl.run import train
many, out, *overrides = sys.argv[1:]
with crew(int(many)):
    code = train("quickstart", overrides, None, Path(out))
sys.exit(code)
"""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As in the processes that are started here."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def start(out: Path, *overrides: str, many: int = 1) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CODE, str(many), str(out), *overrides]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)


def rows(run: Path) -> list[dict]:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in found]


def at_step(run: Path, process: subprocess.Popen[str], stage: str, step: int) -> None:
    while not any(row["stage"] == stage and row["step"] >= step for row in rows(run)):
        assert process.poll() is None, "it ended before it was stopped"
        time.sleep(0.01)


def children(pid: int) -> Iterator[int]:
    """All processes that a process has started, and those that they have."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if (
                entry.name.isdigit()
                and int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == pid
            ):
                yield int(entry.name)
                yield from children(int(entry.name))


def whole_tree(process: subprocess.Popen[str]) -> None:
    """As Slurm and a container's end do it: SIGTERM to all processes, and to some of them twice."""
    for pid in (*children(process.pid), process.pid, process.pid):
        os.kill(pid, signal.SIGTERM)


def same(a: Path, b: Path) -> None:
    one, two = read_weights(a / "policy"), read_weights(b / "policy")
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    assert rows(a) == rows(b)
    summaries = [json.loads((run / "summary.json").read_text()) for run in (a, b)]
    assert summaries[0]["invalid"] == summaries[1]["invalid"]


def status(run: Path) -> str:
    return json.loads((run / "summary.json").read_text())["status"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Path:
    """A run of two processes that nobody stopped."""
    out = tmp_path_factory.mktemp("runs") / "pair"
    with crew(2):
        assert train("quickstart", SMALL, None, out) == 0
    return out


@pytest.mark.parametrize("send", [lambda process: process.terminate(), whole_tree], ids=["first", "all"])
def test_two_processes_stop_at_sigterm_and_go_on(pair, tmp_path, send: Callable) -> None:
    out = tmp_path / "run"
    process = start(out, *SMALL, many=2)
    at_step(out, process, "rl", 1)
    others = list(children(process.pid))
    send(process)
    printed, _ = process.communicate()
    assert process.returncode == TERMINATED == 143 and f"gymrl train --resume {out}" in printed
    assert (
        status(out) == "interrupted"
        and json.loads((out / "state.json").read_text())["step"] == len(rows(out)) - 2
    )
    assert others and not any(Path(f"/proc/{pid}").exists() for pid in others)
    with crew(2):
        assert train(None, [], out) == 0
    same(pair, out)


def test_a_launcher_passes_sigterm_on_to_all_and_the_run_stops_as_one(pair, tmp_path) -> None:
    script = tmp_path / "gymrl_train.py"
    script.write_text("import toy_env\nfrom gymrl.cli.main import main\nmain()\n")
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(script),
    ]
    out = tmp_path / "run"
    command = [*launch, "train", "quickstart", "--out", str(out), *SMALL]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    at_step(out, process, "rl", 1)
    process.terminate()
    printed, _ = process.communicate()
    assert process.returncode != 0 and f"gymrl train --resume {out}" in printed
    assert status(out) == "interrupted"
    with crew(2):
        assert train(None, [], out) == 0
    same(pair, out)


@pytest.mark.parametrize("mortal", ["", "yes"])
def test_a_step_whose_worlds_were_ended_with_the_run_is_done_again(mortal, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(ENVIRONMENT, "MORTAL", mortal)
    small = [*SMALL, "env.id=toy/Slow-v0", "env.workers=2"]
    assert train("quickstart", small, None, tmp_path / "whole") == 0
    out = tmp_path / "run"
    process = start(out, *small)
    at_step(out, process, "rl", 3)
    time.sleep(0.15)  # into the next one
    whole_tree(process)
    printed, _ = process.communicate()
    assert process.returncode == TERMINATED and f"gymrl train --resume {out}" in printed
    assert ("SIGTERM has ended environments too, and this step is lost" in printed) is bool(mortal)
    assert status(out) == "interrupted"
    assert train(None, [], out) == 0
    same(tmp_path / "whole", out)


@pytest.mark.parametrize(("number", "code"), [("SIGINT", INTERRUPTED), ("SIGTERM", TERMINATED)])
@pytest.mark.parametrize("phase", ["demonstrations", "evaluate base"])
def test_what_is_played_again_stops_at_once(phase, number, code, tmp_path, monkeypatch, capsys) -> None:
    played, seen = Workshop.played, 0
    first = 0 if phase == "demonstrations" else 8

    def counted(self: Workshop, episode: Episode) -> None:
        nonlocal seen
        seen += 1
        if seen == first + 2:
            signal.raise_signal(getattr(signal, number))
        played(self, episode)

    small = [*SMALL, "env.concurrency=2", "eval.tasks=8"]
    with monkeypatch.context() as patch:
        patch.setattr(Workshop, "played", counted)
        assert train("quickstart", small, None, tmp_path / "run") == code
    assert first + 2 <= seen <= first + 3  # two are played at once
    printed = capsys.readouterr().out
    assert f"gymrl train --resume {tmp_path / 'run'}" in " ".join(printed.split())
    assert status(tmp_path / "run") == "interrupted"
    assert train(None, [], tmp_path / "run") == 0
    assert train("quickstart", small, None, tmp_path / "whole") == 0
    same(tmp_path / "whole", tmp_path / "run")


def test_an_engine_that_was_ended_with_the_run_is_no_error(tmp_path, monkeypatch, capsys) -> None:
    from gymrl.agents.engines.transformers import TransformersEngine

    serve = TransformersEngine.generate_at

    async def dying(self, request, pace, seat):
        if self.version >= 4:
            signal.raise_signal(signal.SIGTERM)
            raise EngineFault("the engine died: restart it")
        return await serve(self, request, pace, seat)

    with monkeypatch.context() as patch:
        patch.setattr(TransformersEngine, "generate_at", dying)
        assert train("quickstart", SMALL, None, tmp_path / "run") == TERMINATED
    assert "SIGTERM has ended the engine too" in capsys.readouterr().out
    assert status(tmp_path / "run") == "interrupted"
    assert train(None, [], tmp_path / "run") == 0
    assert train("quickstart", SMALL, None, tmp_path / "whole") == 0
    same(tmp_path / "whole", tmp_path / "run")


def test_signals_are_heard_once_and_given_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    said: list[str] = []
    with Stop(said.append) as stop:
        stop.check()
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert stop.asked and stop.code == TERMINATED and len(said) == 1
        with pytest.raises(Interrupted):
            stop.check()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_a_program_that_handles_sigterm_keeps_it() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        with Stop(print) as stop:
            signal.raise_signal(signal.SIGTERM)
            assert heard == [signal.SIGTERM] and not stop.asked
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_run_in_another_thread_takes_no_signals(tmp_path) -> None:
    found: list[int] = []
    arguments = ("quickstart", [*SMALL, 'stages=["sft"]'], None, tmp_path / "run")
    thread = threading.Thread(target=lambda: found.append(train(*arguments)))
    thread.start()
    thread.join()
    assert found == [0]


def test_only_worlds_that_died_at_sigterm_spoil_a_step() -> None:
    task = TaskSpec.make("toy/Slow-v0", "1", "train", 0)
    died, late = (
        Episode(task, (), "invalid", f"environment: {reason}")
        for reason in (
            "the worker process 7 died (killed by SIGTERM)",
            "TimeoutError: step() gave no answer in 60 s",
        )
    )
    with Stop(lambda _: None) as stop:
        assert not stop.took([died])
        signal.raise_signal(signal.SIGTERM)
        assert stop.took([late, died]) and not stop.took([late])
