"""Suites, runs of suites, statistics and tables."""

from __future__ import annotations

import json
import math
import random
import re
import tomllib
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from gymrl.agents.episodes import jsonl_line, read_jsonl
from gymrl.agents.policies import policy_digest
from gymrl.agents.records import Episode
from gymrl.cli.main import run as cli
from gymrl.envs import Action, Environment, register
from gymrl.leaderboards import results as results_module
from gymrl.leaderboards.results import ResultError, compare_results, find_results, read_result, write_result
from gymrl.leaderboards.runner import run_suite
from gymrl.leaderboards.statistics import compare, mcnemar_exact, paired_interval, wilson
from gymrl.leaderboards.suite import SuiteError, load_suite, read_suite, shipped, update_hash
from gymrl.leaderboards.tables import markdown, plain, rows


class Coin(Environment):
    """Say heads or tails; every fifth task is broken while `broken` is set."""

    broken = False
    played = 0

    def reset(self) -> str:
        Coin.played += 1
        self.side = self.rng.choice(["heads", "tails"])
        if Coin.broken and self.task.index % 5 == 0:
            raise RuntimeError("the coin is lost")
        return "Heads or tails?"

    def step(self, action: Action) -> tuple[Any, ...]:
        return "Done.", float(action.text == self.side), True

    def oracle(self) -> str:
        return self.side

    def random_action(self, rng: random.Random) -> str:
        return rng.choice(["heads", "tails"])


register("test/Coin-v0", Coin)

SUITE = """\
name = "coin"
title = "A coin"
env = "test/Coin-v0"
env_version = "1"
indices = { first = 3, count = 20 }
turns = 2
hash = ""

[sampling]
max_tokens = 4
"""


@pytest.fixture
def suite_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(results_module, "PUBLISHED", tmp_path / "published")
    monkeypatch.setattr(Coin, "broken", False)
    monkeypatch.setattr(Coin, "played", 0)
    path = tmp_path / "coin.toml"
    path.write_text(SUITE)
    update_hash(path)
    return path


# -- suites ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(shipped()))
def test_shipped_suites_are_what_their_hash_says(name: str) -> None:
    suite = read_suite(name)
    assert suite.name == name and suite.hash == suite.content_hash()
    assert suite.split == "test" and suite.title and suite.description
    assert len(suite.task_indices()) >= 40


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_shipped_suite_has_published_results(name: str, tmp_path: Path) -> None:
    suite = read_suite(name)
    found, left_out = find_results(suite, tmp_path)
    results = {result.policy: result for _, result in found}
    assert {"oracle", "random", "null"} <= set(results) and not left_out
    for policy in ("oracle", "random", "null"):
        result = results[policy]
        assert result.command == f"gymrl leaderboard run {name} --policy {policy}"
        assert [outcome.index for outcome in result.outcomes] == suite.task_indices()
        assert result.env_version == suite.env_version and not result.summary.invalid
    assert results["oracle"].summary.success == 1.0 and results["null"].summary.success == 0.0
    assert results["random"].summary.success < 0.5


def test_the_hash_is_over_everything_that_defines_the_play(suite_file: Path) -> None:
    suite = load_suite(suite_file)
    for change in [
        {"env": "x"}, {"env_version": "2"}, {"params": {"a": 1}}, {"split": "val"}, {"indices": [1, 2]}, {"turns": 3},
        {"samples": 2}, {"seed": 1}, {"sampling": suite.sampling.model_copy(update={"temperature": 0.5})},
        {"sampling": suite.sampling.model_copy(update={"max_tokens": 5})},
    ]:  # fmt: skip
        assert suite.model_copy(update=change).content_hash() != suite.hash, change
    for change in [{"title": "x"}, {"description": "x"}, {"indices": list(range(3, 23))}]:
        assert suite.model_copy(update=change).content_hash() == suite.hash, change


def test_suites_that_cannot_be_trusted_are_refused(suite_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SuiteError, match="unknown suite 'quikstart': did you mean 'quickstart'"):
        load_suite("quikstart")
    text = suite_file.read_text()
    for old, new, sentence in [
        ("count = 20", "count = 21", "was changed: its content has the hash"),
        ("turns = 2", "turnz = 2", "is wrong at"),
        ("count = 20", "count = 0", "is wrong at"),
        ('title = "A coin"', "title = [", "is no TOML file"),
        ("{ first = 3, count = 20 }", "[1, 1]", "one task twice"),
    ]:
        suite_file.write_text(text.replace(old, new))
        with pytest.raises(SuiteError, match=sentence):
            load_suite(suite_file)
    suite_file.write_text(text)
    monkeypatch.setattr(Coin, "version", "2")
    sentence = "is for version 1 of test/Coin-v0, and this is 2: results would not compare; take the "
    for source, release in [
        ("gymrl", rf"gymrl \(here {re.escape(version('gymrl'))}\) that"),
        ("pytest", rf"pytest \(here {re.escape(version('pytest'))}\) that"),
        ("my_module:Coin", "version of my_module:Coin that"),
    ]:
        register("test/Coin-v0", Coin, source=source)
        with pytest.raises(SuiteError, match=sentence + release):
            load_suite(suite_file)
    register("test/Coin-v0", Coin)


# -- runs --------------------------------------------------------------------------------------------------


def run(suite_file: Path, policy: str, **more: Any) -> tuple[Path, Any]:
    return run_suite(
        load_suite(suite_file), policy, command=f"run {policy}", out=suite_file.parent / "out", **more
    )


def test_a_run_leaves_a_result_and_every_episode(suite_file: Path) -> None:
    path, result = run(suite_file, "oracle")
    assert read_result(path) == result
    assert result.summary.success == 1.0 and (result.summary.low, result.summary.high) == wilson(20, 20)
    assert result.hash == tomllib.loads(suite_file.read_text())["hash"]
    assert [o.index for o in result.outcomes] == list(range(3, 23)) and all(
        o.success for o in result.outcomes
    )
    assert result.versions["gymrl"] and result.command == "run oracle"
    episodes = list(read_jsonl(path.parent / result.episodes))
    assert [e.task.index for e in episodes] == list(range(3, 23)) and all(e.success for e in episodes)
    assert sorted(p.name for p in path.parent.iterdir()) == sorted([path.name, result.episodes])


def test_an_interrupted_run_goes_on_where_it_stopped(suite_file: Path) -> None:
    seen: list[Episode] = []

    def stop_after_seven(episode: Episode) -> None:
        seen.append(episode)
        if len(seen) == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(suite_file, "random", watch=stop_after_seven, concurrency=1)
    (partial,) = (suite_file.parent / "out" / "coin").glob("*.partial")
    partial.write_text(partial.read_text() + jsonl_line(seen[0])[:40])  # killed while it wrote a line
    played = Coin.played
    again: list[Episode] = []
    path, result = run(suite_file, "random", watch=again.append)
    assert Coin.played - played == 20 - 7
    assert len(again) == 20 and not partial.exists()
    _, whole = run(suite_file, "random")
    assert result.outcomes == whole.outcomes
    assert [e.turns[0].text for e in read_jsonl(path.parent / result.episodes)] == [
        e.turns[0].text for e in read_jsonl(path.parent / whole.episodes)
    ]


def test_invalid_episodes_are_counted_and_compared_with_nothing(
    suite_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, sound = run(suite_file, "random")
    monkeypatch.setattr(Coin, "broken", True)
    _, broken = run(suite_file, "oracle")
    (cause,) = broken.summary.invalid
    assert cause.startswith("environment: RuntimeError: the coin is lost (test_leaderboards.py:")
    assert broken.summary.invalid == {cause: 4}
    assert broken.summary.success == 1.0 and broken.summary.episodes == 20
    assert [o.success for o in broken.outcomes if o.index % 5 == 0] == [None] * 4
    found = compare_results(broken, sound)
    assert (found.tasks, found.left_out, found.success_a) == (16, 4, 1.0)
    (row,) = rows([broken])
    assert (row.n, row.invalid) == (16, 4)


def test_the_table_ranks_the_newest_of_each_policy(suite_file: Path, tmp_path: Path) -> None:
    suite = load_suite(suite_file)
    for policy in ("null", "random", "oracle", "random"):
        path, result = run(suite_file, policy)
    write_result(
        tmp_path / "published" / "coin" / "x.json", result.model_copy(update={"policy": "other | one"})
    )
    (path.parent / "junk.json").write_text("{}")
    write_result(path.parent / "old.json", result.model_copy(update={"hash": "0" * 16}))
    found, left_out = find_results(suite, tmp_path / "out")
    lines = rows([result for _, result in found])
    assert [line.policy for line in lines] == ["oracle", "other | one", "random", "null"]
    assert [line.rank for line in lines] == [1, 2, 2, 4]
    assert len(left_out) == 2 and any("is no result" in reason for reason in left_out)
    assert any("0000000000000000" in reason for reason in left_out)
    table = markdown(lines).splitlines()
    assert table[2].startswith("| 1 | oracle | 1.000 | 0.839 to 1.000 | 1.000 | 1.0 | - | 0 | 20 |")
    assert table[2].endswith("| `run oracle` |") and r"other \| one" in table[3]
    assert json.loads(json.dumps(plain(lines)))[0]["policy"] == "oracle"


def test_results_of_different_tasks_do_not_compare(suite_file: Path, tmp_path: Path) -> None:
    _, result = run(suite_file, "oracle")
    with pytest.raises(ResultError, match="results of different tasks do not compare"):
        compare_results(result, result.model_copy(update={"hash": "x"}))
    with pytest.raises(ResultError, match="there is no result"):
        read_result(tmp_path / "nothing.json")


def test_a_checkpoint_is_told_apart_by_its_files(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"1")
    first = policy_digest(str(tmp_path))
    (tmp_path / "README.md").write_text("hello")
    assert policy_digest(str(tmp_path)) == first != ""
    (tmp_path / "model.safetensors").write_bytes(b"2")
    assert policy_digest(str(tmp_path)) != first
    assert policy_digest("oracle") == policy_digest("http://host") == ""


# -- statistics --------------------------------------------------------------------------------------------


def test_mcnemar_is_the_two_sided_binomial_test() -> None:
    assert mcnemar_exact(0, 0) == mcnemar_exact(3, 3) == 1.0
    assert mcnemar_exact(5, 0) == mcnemar_exact(0, 5) == 2 / 32
    assert mcnemar_exact(8, 2) == pytest.approx(2 * (1 + 10 + 45) / 1024)


def test_the_paired_interval_is_agresti_and_mins() -> None:
    # Counts 2 and 12 of 50 differing pairs: (2.5 - 12.5) / 52, and the Wald spread of the augmented table.
    low, high = paired_interval(2, 12, 50)
    assert (low + high) / 2 == pytest.approx(-10 / 52)
    assert (high - low) / 2 == pytest.approx(1.959963984540054 * math.sqrt(15 - 100 / 52) / 52)
    assert paired_interval(0, 0, 0) == (-1.0, 1.0)


def test_the_paired_interval_covers() -> None:
    rng = random.Random(0)
    hits = 0
    for _ in range(1000):
        draws = rng.choices("abn", [0.25, 0.10, 0.65], k=60)
        low, high = paired_interval(draws.count("a"), draws.count("b"), 60)
        hits += low <= 0.15 <= high
    assert 0.93 <= hits / 1000 <= 0.99


def test_comparisons_pair_tasks() -> None:
    a: dict[int, list[bool | None]] = {0: [True], 1: [True], 2: [False], 3: [None], 4: [True]}
    b: dict[int, list[bool | None]] = {0: [True], 1: [False], 2: [False], 3: [True], 5: [True]}
    found = compare(a, b)
    assert (found.tasks, found.only_a, found.only_b, found.left_out) == (3, 1, 0, 3)
    assert found.difference == pytest.approx(1 / 3) and (found.low, found.high) == paired_interval(1, 0, 3)
    swapped = compare(b, a)
    assert (swapped.difference, swapped.low, swapped.high) == (-found.difference, -found.high, -found.low)


def test_with_more_samples_a_task_counts_with_its_mean() -> None:
    a: dict[int, list[bool | None]] = {0: [True, True], 1: [True, False], 2: [True, True]}
    b: dict[int, list[bool | None]] = {0: [True, False], 1: [True, False], 2: [False, False]}
    found = compare(a, b)
    assert (found.difference, found.only_a, found.only_b) == (0.5, 2, 0)
    spread = 1.959963984540054 * 0.5 / math.sqrt(3)
    assert (found.low, found.high) == (pytest.approx(0.5 - spread), pytest.approx(min(1.0, 0.5 + spread)))


# -- mistakes in a suite's file ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("max_tokens", "max_token", "'sampling.max_token': there is no such key, did you mean 'sampling.max_tokens'"),
        ("max_tokens", "topp", "'sampling.topp': there is no such key, did you mean 'sampling.top_p'"),
        ("count = 20", "cuont = 20", "'indices.count'"),
        ("max_tokens", "sample", "did you mean 'samples'"),  # a key of the suite, below a section's head
        ("turns = 2", "turns = 2\ntemperature = 1", "did you mean 'sampling.temperature'"),
        ("turns = 2", "turnz = 2", "'turns'"),
        ("turns = 2", "turns = 2\nxyzzy = 1", "at 'xyzzy': there is no such key"),
    ],
)
def test_a_wrong_key_is_told_with_the_nearest_of_its_section(
    suite_file: Path, old: str, new: str, words: str
) -> None:
    suite_file.write_text(SUITE.replace(old, new, 1))
    with pytest.raises(SuiteError) as error:
        read_suite(suite_file)
    assert words in str(error.value)


def test_samples_that_are_the_same_episode_are_refused(suite_file: Path) -> None:
    greedy = SUITE + "temperature = 0\n"
    twice = greedy.replace("turns = 2", "turns = 2\nsamples = 2")
    suite_file.write_text(twice)
    for refused in (read_suite, update_hash):
        with pytest.raises(SuiteError, match=r"at temperature 0.*: write samples = 1, or a sampling\.temperature"):
            refused(suite_file)
    for text in (greedy, twice.replace("temperature = 0", "temperature = 0.5")):
        suite_file.write_text(text)
        assert read_suite(suite_file).name == "coin"


@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_the_list_holds_every_name_whole(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    cli(["leaderboard", "list"])
    words = capsys.readouterr().out.split()
    assert [words.count(name) for name in shipped()] == [1] * len(shipped())
    assert {read_suite(name).env for name in shipped()} <= set(words)


def test_what_was_invalid_is_all_that_the_same_command_plays_again(
    suite_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Coin, "broken", True)
    _, broken = run(suite_file, "oracle")
    assert sum(broken.summary.invalid.values()) == 4
    monkeypatch.setattr(Coin, "broken", False)
    played, taken = Coin.played, []
    _, whole = run(suite_file, "oracle", going_on=lambda done, jobs: taken.append((len(done), len(jobs))))
    assert Coin.played - played == 4 and taken == [(16, 20)] and whole.summary.success == 1.0
    assert not list((suite_file.parent / "out" / "coin").glob("*.partial"))


def test_a_result_without_a_valid_episode_hides_none_and_shows_no_figure(suite_file: Path, tmp_path: Path) -> None:
    suite, (path, good) = load_suite(suite_file), run(suite_file, "oracle")
    summary = replace(good.summary, success=0.0, low=0.0, high=1.0, invalid={"engine: gone": 20})
    outcomes = [o.model_copy(update={"success": None, "reward": None}) for o in good.outcomes]
    lost = good.model_copy(update={"summary": summary, "outcomes": outcomes, "date": "2999-01-01T00:00:00+00:00"})
    write_result(path.parent / "lost.json", lost)
    found, left_out = find_results(suite, tmp_path / "out")
    assert [result for _, result in found] == [good]
    assert left_out == [f"{path.parent / 'lost.json'} has no valid episode; another result of the policy is shown"]
    path.unlink()
    ((_, shown),), _ = find_results(suite, tmp_path / "out")
    (line,) = rows([shown])
    assert line.cells()[2:6] == ("-",) * 4 and "0.000" not in markdown([line])
    with pytest.raises(ResultError, match="no task has valid episodes in both"):
        compare_results(shown, good)


def test_other_ways_to_serve_a_policy_are_other_lines(suite_file: Path, tmp_path: Path) -> None:
    path, result = run(suite_file, "oracle")
    for name, served in {
        "a": {"engine": "vllm"}, "b": {"dtype": "bfloat16"}, "c": {"max_context": 70}, "d": {"engine": "transformers"},
    }.items():  # fmt: skip
        write_result(path.parent / f"{name}.json", result.model_copy(update={"policy": "p", **served}))
    lines = rows([result for _, result in find_results(load_suite(suite_file), tmp_path / "out")[0]])
    assert [line.policy for line in lines] == ["oracle", "p (vllm)", "p (bfloat16)", "p (max_context 70)", "p"]


def test_a_result_that_was_changed_is_left_out(suite_file: Path) -> None:
    path, _ = run(suite_file, "random")
    data = json.loads(path.read_text())
    data["summary"]["success"] = 0.999
    path.write_text(json.dumps(data))
    with pytest.raises(ResultError, match=r"says a success of 0\.999 in 20 episodes and its outcomes come to"):
        read_result(path)
