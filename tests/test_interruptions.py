"""Ctrl-C while something starts: the command ends at once, says so, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gymrl.rl.tiny import make_model, make_tokenizer, save_policy

STARTS_FOREVER = """
import os, pathlib, signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a library that is being imported: nobody can talk to it
pathlib.Path(os.environ["NOTE"]).write_text(str(os.getpid()))
time.sleep(600)
"""
COMMAND = """
import sys, time
from gymrl.cli.main import run
code = run(sys.argv[1:])
print("ended", time.time())
sys.exit(code)
"""


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = make_tokenizer(["Say word12.", "No, word7."], 320)
    model = make_model(len(tokenizer), hidden=64, layers=1, heads=2, kv_heads=1, context=128, seed=1)
    return save_policy(tmp_path_factory.mktemp("policies") / "tiny", model, tokenizer)


@pytest.mark.parametrize(
    ("command", "engine"), [("eval", "vllm"), ("collect", "vllm-server"), ("leaderboard", "vllm")]
)
def test_an_engine_that_starts_is_ended_at_once(
    command: str, engine: str, checkpoint: Path, tmp_path: Path
) -> None:
    out, temporary, note, library = (tmp_path / name for name in ("out", "tmp", "note", "library"))
    temporary.mkdir()
    (library / "vllm").mkdir(parents=True)
    (library / "vllm" / "__init__.py").write_text(STARTS_FOREVER)
    words, told = {
        "eval": (["eval", "--env", "gymrl/CodeInterpreter-v0", "--n", "2"], "nothing was kept: with --out FILE"),
        "collect": (["collect", "gymrl/CodeInterpreter-v0", "--out", f"{out}/x.jsonl"], "nothing was played"),
        "leaderboard": (["leaderboard", "run", "quickstart", "--out", str(out)], "nothing was played"),
    }[command]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *words, "--policy", str(checkpoint), "--engine", engine],
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(library), "TMPDIR": str(temporary), "NOTE": str(note)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        while process.poll() is None and not (note.exists() and note.read_text()):
            time.sleep(0.02)
        asked = time.time()
        process.send_signal(signal.SIGINT)
        said, err = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, err
    assert f"interrupted; {told}" in err and "Traceback" not in err
    seconds = float(said.split()[-1]) - asked
    assert seconds < 4, f"{seconds:.1f} s; vLLM is given 5 s and more to end by itself once it serves"
    assert not alive(int(note.read_text()))
    assert not list(temporary.glob("gymrl-*")) and not out.exists()
