"""What evaluations count: causes of invalid episodes, and what a server says that it took."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gymrl.agents.evaluation import invalid_causes, merged_causes, summarise
from gymrl.agents.players import Usage
from gymrl.agents.records import Episode
from gymrl.cli.main import run
from gymrl.envs.records import TaskSpec
from gymrl.leaderboards import load_suite, read_result, run_suite

sys.path.insert(0, str(Path(__file__).parent))
from silent_server import Server


def invalid(reason: str) -> Episode:
    return Episode(TaskSpec("x", "1", "test", 0), (), "invalid", reason)


@pytest.mark.parametrize(
    ("first", "second", "one"),
    [
        ("no answer in 12.3 s", "no answer in 12.4 s", True),
        ("it took 3ms, 1.5e-3 s", "it took 12ms, 2 s", True),
        ("412 tokens, the context 128", "99 tokens, the context 128", True),
        ("<Thing object at 0x7f12>", "<Thing object at 0xab01>", True),
        ("KeyError: 3", "KeyError: -17", True),
        ("the worker process 12 died (exit status 9)", "the worker process 7 died (exit status 9)", True),
        ("the worker process 12 died (exit status 9)", "the worker process 12 died (exit status 1)", False),
        ("HTTP 500: no", "HTTP 429: no", False),
        ("KeyError: 'a' (maze.py:31 in step)", "KeyError: 'a' (maze.py:57 in step)", False),
        ("tool2 failed", "tool3 failed", False),
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8001/v1", False),
        ("reset() raised", "step() raised", False),
    ],
)
def test_causes_that_differ_in_figures_are_one(first: str, second: str, one: bool) -> None:
    episodes = [invalid(f"{first}\nmore"), invalid(second), invalid(first)]
    found = summarise(episodes).invalid
    assert found == invalid_causes(episodes)
    assert sorted(found.values()) == ([3] if one else [1, 2])
    assert next(iter(found)).replace(" 12 died", " died") == first.replace(" 12 died", " died")
    parts = [invalid_causes(episodes[:1]), invalid_causes(episodes[1:])]
    assert merged_causes(*parts) == found


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def test_what_a_server_took_is_shown(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", "--env", "test/Word-v0", "-n", "3", "--policy", server.url]
    for usage, words, counts in (
        (
            {"prompt_tokens": 11, "completion_tokens": 2},
            "3 requests, 33 prompt and 6 completion tokens",
            (3, 33, 6),
        ),
        (None, "3 requests", (3, 0, 0)),
    ):
        server.usage = usage
        assert run(command) == 0
        row = next(line for line in capsys.readouterr().out.splitlines() if "server" in line)
        assert row.strip("│ ").split("│")[1].strip() == words
        assert run([*command, "--json"]) == 0
        said = json.loads(capsys.readouterr().out)["usage"]
        assert said == dict(zip(("requests", "prompt_tokens", "completion_tokens"), counts, strict=True))
    assert run(["eval", "--env", "test/Word-v0", "-n", "1", "--policy", "null", "--json"]) == 0
    assert "usage" not in json.loads(capsys.readouterr().out)


SUITE = """
name = "words"
title = "Words"
env = "test/Word-v0"
env_version = "1"
indices = { first = 0, count = 3 }
turns = 1
hash = ""
"""


def test_a_result_keeps_what_a_server_took(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "words.toml"
    file.write_text(SUITE)
    assert run(["leaderboard", "hash", str(file), "--update"]) == 0
    server.usage = {"prompt_tokens": 11, "completion_tokens": 2}
    out = tmp_path / "results"
    assert (
        run(["leaderboard", "run", str(file), "--policy", server.url, "--timeout", "9", "--out", str(out)])
        == 0
    )
    assert "3 requests, 33 prompt and 6 completion tokens" in capsys.readouterr().out
    (path,) = (path for path in (out / "words").glob("*.json"))
    result = read_result(path)
    assert result.usage == Usage(3, 33, 6) and result.command.endswith("--timeout 9")
    plain, oracle = run_suite(load_suite(str(file)), "null", command="x", out=out)
    assert "usage" not in json.loads(plain.read_text()) and oracle.usage is None
    assert read_result(plain) == oracle


def test_what_was_invalid_is_played_again_where_the_rest_is_kept(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.counts["completions"] = 1
    command = ["eval", "--env", "test/Word-v0", "-n", "3", "--concurrency", "1", "--policy", server.url]
    command += ["--timeout", "0.3", "--out", str(tmp_path / "x.jsonl")]
    assert run(command) == 0
    assert "2 episodes are invalid; the same command plays them again" in capsys.readouterr().err
    server.counts.clear()
    assert run(command) == 0
    assert capsys.readouterr().err.strip() == "going on: 1 of 3 episodes were played before"
