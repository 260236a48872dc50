"""Arithmetic on weights against float64 references, on real checkpoints, and by the command."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from gymrl.agents import evaluation
from gymrl.cli.main import run
from gymrl.leaderboards.suite import update_hash
from gymrl.rl import merging as m
from gymrl.rl.tiny import make_model, make_tokenizer, save_policy

TEXTS = ["user\nhello\n", "assistant\n<answer>3</answer>\n"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    tokenizer = make_tokenizer(TEXTS, 300)
    return [
        save_policy(folder / name, make_model(len(tokenizer), 32, 3, 2, 1, 256, seed), tokenizer)
        for seed, name in enumerate(("base", "one", "two"))
    ]


def test_a_soup_is_the_weighted_mean(checkpoints):
    base, one, two = (m.read_weights(path) for path in checkpoints)
    mixed = m.soup([one, two], [3.0, 1.0])
    for key in base:
        want = 0.75 * one[key].double() + 0.25 * two[key].double()
        torch.testing.assert_close(mixed[key].double(), want, atol=1e-7, rtol=1e-6)
        assert mixed[key].dtype == one[key].dtype
    assert all(torch.equal(a, b) for a, b in zip(m.soup([one, one]).values(), one.values(), strict=True))
    with pytest.raises(m.MergeFault, match="sum to 0"):
        m.soup([one, two], [1.0, -1.0])


def test_task_vectors_add_and_take_away(checkpoints):
    base, one, two = (m.read_weights(path) for path in checkpoints)
    sums = m.task_vectors(base, [one, two], [1.0, -0.5])
    for key, b in base.items():
        want = b.double() + (one[key].double() - b.double()) - 0.5 * (two[key].double() - b.double())
        torch.testing.assert_close(sums[key].double(), want, atol=1e-6, rtol=1e-6)
    back = m.task_vectors(base, [one], [1.0])
    assert all(torch.equal(back[key], one[key]) for key in base)


def test_dare_keeps_the_mean_and_drops_its_share(checkpoints):
    change = {"w": torch.ones(400, 400, dtype=torch.float64)}
    thinned = m.dare(change, 0.75, 3)["w"]
    assert set(thinned.unique().tolist()) == {0.0, 4.0}
    assert thinned.mean().item() == pytest.approx(1.0, abs=0.02)
    assert torch.equal(thinned, m.dare(change, 0.75, 3)["w"]) and not torch.equal(
        thinned, m.dare(change, 0.75, 4)["w"]
    )
    assert torch.equal(m.dare(change, 0.0)["w"], change["w"])
    with pytest.raises(m.MergeFault, match="below 1"):
        m.dare(change, 1.0)


def test_lines_scales_with_depth():
    one = torch.ones((), dtype=torch.float64)
    names = [
        "model.embed_tokens.weight",
        *(f"model.layers.{n}.mlp.up_proj.weight" for n in range(3)),
        "model.norm.weight",
    ]
    scaled = m.lines(dict.fromkeys(names, one), 0.2, 1.0)
    assert [scaled[name].item() for name in names] == pytest.approx([0.2, 0.2, 0.6, 1.0, 1.0])
    with pytest.raises(m.MergeFault, match="depth"):
        m.lines({"w": one}, 0.0, 1.0)


def test_a_greedy_soup_takes_what_does_not_hurt():
    models = [{"w": torch.tensor([x])} for x in (0.0, 4.0, -1.0)]
    found = m.greedy_soup(models, lambda w: -abs(w["w"].item() + 0.5))
    assert found.joined == [0, 2] and found.weights["w"].item() == -0.5
    assert found.trials == (
        m.Trial(0, -0.5, -0.5, True),  # of equals the first given begins
        m.Trial(2, -0.5, 0.0, True),
        m.Trial(1, -4.5, -1.5, False),
    )


@given(st.lists(st.integers(-8, 8), min_size=1, max_size=6), st.integers(-8, 8))
def test_a_greedy_soup_is_never_worse_than_its_best_model(values, goal):
    asked = []

    def score(weights):
        asked.append(weights["w"].item())
        return -abs(weights["w"].item() - goal)

    models = [{"w": torch.tensor([float(x)], dtype=torch.float64)} for x in values]
    found = m.greedy_soup(models, score)
    assert len(asked) == 2 * len(values) - 1 and sorted(t.model for t in found.trials) == list(
        range(len(values))
    )
    assert [t.alone for t in found.trials] == sorted((-abs(x - goal) for x in values), reverse=True)
    kept = [t.soup for t in found.trials if t.joined]
    assert kept == sorted(kept) and score(found.weights) == kept[-1] >= found.trials[0].alone
    assert torch.equal(found.weights["w"], m.soup([models[i] for i in found.joined])["w"])
    assert all(t.joined == (t.soup >= max(u.soup for u in found.trials[:n] if u.joined)) for n, t in
               enumerate(found.trials) if n)  # fmt: skip


def test_a_model_without_a_score_joins_nothing():
    with pytest.raises(m.MergeFault, match="model 2 has no score"):
        m.greedy_soup(
            [{"w": torch.ones(1)}, {"w": torch.zeros(1)}], lambda w: 1.0 if w["w"].item() else math.nan
        )


def test_models_that_all_score_the_least_are_not_told_apart():
    models, asked = [{"w": torch.tensor([x])} for x in (0.0, 2.0)], []

    def score(weights):
        asked.append(weights["w"].item())
        return float(asked[-1] == 1.0)  # their soup would win

    with pytest.raises(m.MergeFault, match=r"scores 0\.000, so these tasks cannot tell the models apart"):
        m.greedy_soup(models, score, floor=0.0)
    assert asked == [0.0, 2.0] and m.greedy_soup(models, score).joined == [0, 1]


def test_the_command_writes_a_checkpoint_that_loads(checkpoints, tmp_path, capsys):
    base, one, two = map(str, checkpoints)
    assert run(["merge", one, two, "--weights", "0.5,0.5", "--out", str(tmp_path / "soup")]) == 0
    got = AutoModelForCausalLM.from_pretrained(tmp_path / "soup").state_dict()
    want = m.soup([m.read_weights(Path(one)), m.read_weights(Path(two))])
    assert all(torch.equal(got[key], want[key]) for key in want)
    assert json.loads((tmp_path / "soup" / "merge.json").read_text())["models"] == [one, two]
    command = ["merge", one, two, "--method", "task", "--base", base, "--weights", "1,-0.5", "--drop", "0.5"]
    assert run([*command, "--lines", "0.1", "1.0", "--out", str(tmp_path / "task")]) == 0
    AutoModelForCausalLM.from_pretrained(tmp_path / "task")
    capsys.readouterr()
    for wrong, words in (
        (["merge", one, two, "--out", str(tmp_path / "soup")], "is not empty"),
        (["merge", one, two, "--out", f"{one}/config.json"], "is a file"),
        (["merge", one, str(tmp_path), "--out", str(tmp_path / "x")], "is no checkpoint"),
        (["merge", one, two, "--weights", "1", "--out", str(tmp_path / "x")], "give one for each"),
        (["merge", one, "--drop", "0.5", "--out", str(tmp_path / "x")], "--method task"),
    ):
        assert run(wrong) != 0
        assert words in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_numbers_that_are_not_finite_are_refused(checkpoints, tmp_path, capsys):
    base, one, two = map(str, checkpoints)
    task = ["--method", "task", "--base", base]
    for wrong, words in (
        (["--weights", "0.7,nan"], "'0.7,nan' are no finite numbers"),
        (["--weights", "-inf,1"], "no finite numbers"),
        ([*task, "--weights", "inf,1"], "no finite numbers"),
        ([*task, "--drop", "nan"], "--drop: nan is no finite number"),
        ([*task, "--lines", "0", "inf"], "--lines: inf is no finite number"),
        (["--weights", "1e308,1e308"], "the weights of a soup and their sum must be finite numbers, not inf"),
        ([*task, "--weights", "1e300,1"], "embed_tokens.weight, of whose"),
    ):
        assert run(["merge", one, two, *wrong, "--out", str(tmp_path / "x")]) == 2
        assert words in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / "x").exists() and not (tmp_path / "x.part").exists()
    change = {"model.layers.0.w": torch.ones(1)}
    for call in (
        lambda: m.soup([change], [math.nan]),
        lambda: m.task_vectors(change, [change], [math.inf]),
        lambda: m.dare(change, math.nan),
        lambda: m.lines(change, math.nan, 1.0),
    ):
        with pytest.raises(m.MergeFault, match=r"not (nan|inf)"):
            call()


def test_a_checkpoint_that_is_broken_is_named(checkpoints, tmp_path, capsys):
    _, one, two = checkpoints
    broken = tmp_path / "broken"
    weights = m.read_weights(two)
    m.write_weights(weights, two, broken)
    weights["model.norm.weight"][3] = math.nan
    with pytest.raises(m.MergeFault, match=r"model\.norm\.weight, .* is not written"):
        m.write_weights(weights, two, tmp_path / "x")
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    command = ["merge", str(one), str(broken), "--out", str(tmp_path / "x")]
    assert run(command) == 2
    words = f"{broken} has a broken tensor, model.norm.weight, of whose 32 numbers 1 are NaN"
    assert words in capsys.readouterr().err
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    assert run(command) == 2
    assert f"{file} is damaged" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def retold(source: Path, out: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a checkpoint with another tokenizer.json."""
    shutil.copytree(source, out)
    data = json.loads((out / "tokenizer.json").read_text())
    change(data)
    (out / "tokenizer.json").write_text(json.dumps(data))
    return out


def swap(data: dict[str, Any]) -> None:
    vocabulary = data["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]


def add(data: dict[str, Any]) -> None:
    data["added_tokens"].append({**data["added_tokens"][0], "id": 310, "content": "<tool>"})


def mark(data: dict[str, Any]) -> None:
    data["added_tokens"].append({**data["added_tokens"][0], "id": data["model"]["vocab"]["a"], "content": "a"})


def turn(data: dict[str, Any]) -> None:
    data["model"]["merges"].reverse()


def cut(data: dict[str, Any]) -> None:
    data["model"]["merges"].pop()


def pad(data: dict[str, Any]) -> None:
    """What changes no id's meaning: padding, truncation, and merges as texts, as older files have them."""
    data["padding"] = {"strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0,
                       "pad_type_id": 0, "pad_token": "<|endoftext|>"}  # fmt: skip
    data["truncation"] = {"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0}
    data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]


@pytest.mark.parametrize(
    ("change", "words"),
    [(swap, r"token \d+ is '[ab]' in the one and '[ab]' in the other"),
     (add, "only one has the token '<tool>' with the id 310"),
     (mark, "only one has the added token 'a'"), (turn, "merges differ from number 0 on"),
     (cut, "one has more merges")],
)  # fmt: skip
def test_other_tokenizers_are_refused(checkpoints, tmp_path, capsys, change, words):
    base, one, two = checkpoints
    other = retold(two, tmp_path / "other", change)
    for command in ([str(one), str(other)], [str(other), "--method", "task", "--base", str(base)]):
        assert run(["merge", *command, "--out", str(tmp_path / "x")]) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert re.search(words, said) and "the same token id means different text" in said and str(other) in said
    assert not (tmp_path / "x").exists()


def test_a_tokenizer_that_means_the_same_is_not_refused(checkpoints, tmp_path, capsys):
    _, one, two = checkpoints
    other = retold(two, tmp_path / "other", pad)
    bare = retold(two, tmp_path / "bare", swap)
    (bare / "tokenizer.json").unlink()  # compared by its weights alone
    assert run(["merge", str(one), str(other), str(bare), "--out", str(tmp_path / "soup")]) == 0
    (other / "tokenizer.json").write_text("{")
    assert run(["merge", str(one), str(other), "--out", str(tmp_path / "x")]) == 2
    assert f"{other / 'tokenizer.json'} is damaged" in capsys.readouterr().err


def test_the_ids_of_a_unigram_vocabulary_are_its_places(tmp_path):
    for name, pieces in (("one", [["<unk>", 0.0], ["a", -1.5]]), ("two", [["a", -1.5], ["<unk>", 0.0]])):
        (tmp_path / name).mkdir()
        data = {"model": {"type": "Unigram", "vocab": pieces}, "added_tokens": None}
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(data))
    one, two = tmp_path / "one", tmp_path / "two"
    m.check_vocabularies([one, one, tmp_path])
    with pytest.raises(m.MergeFault, match="token 0 is '<unk>' in the one and 'a' in the other"):
        m.check_vocabularies([one, two])


def test_the_command_makes_a_greedy_soup_by_success(checkpoints, tmp_path, capsys, monkeypatch):
    _, one, two = map(str, checkpoints)
    command = ["merge", one, two, "--method", "greedy", "--env", "gymrl/CodeInterpreter-v0", "--tasks", "2"]
    assert run([*command, "--out", str(tmp_path / "best")]) == 2  # nobody wins: nothing is chosen
    said = " ".join(capsys.readouterr().err.split())
    assert "the best model alone scores 0.000" in said and "--param KEY=VALUE" in said and "--suite" in said
    assert not (tmp_path / "best").exists()
    summarise = evaluation.summarise
    monkeypatch.setattr(evaluation, "summarise", lambda *of: replace(summarise(*of), success=0.5))
    assert run([*command, "--out", str(tmp_path / "best")]) == 0
    assert "joined: " + one in capsys.readouterr().out  # nothing falls: both join
    for wrong, words in (
        (["--method", "greedy"], "--suite and --env"),
        (
            ["--method", "greedy", "--suite", "quickstart", "--env", "gymrl/CodeInterpreter-v0"],
            "--suite and --env",
        ),
        (["--suite", "quickstart"], "--suite and --env"),
        (["--method", "greedy", "--suite", "quickstart", "--param", "terms=2"], "leave --param out"),
        (["--method", "greedy", "--suite", "quickstar"], "did you mean"),
    ):
        assert run(["merge", one, two, *wrong, "--out", str(tmp_path / "x")]) != 0
        assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "x").exists()


SUITE = """
name = "few"
title = "Two sums"
env = "gymrl/CodeInterpreter-v0"
env_version = "1"
split = "test"
indices = { first = 0, count = 2 }
turns = 2
hash = ""
[params]
tasks = "arithmetic"
[sampling]
max_tokens = 8
"""


def test_a_leaderboards_suite_decides(checkpoints, tmp_path, capsys, monkeypatch):
    """The suite is really played; how it went is then made up, so that one model is better than the other."""
    suite = tmp_path / "few.toml"
    suite.write_text(SUITE)
    update_hash(suite)
    _, one, two = checkpoints
    best = m.read_weights(two)
    played, summarise = [], evaluation.summarise

    def judged(episodes):
        assert [e.task.index for e in episodes] == [0, 1] and all(e.task.split == "test" for e in episodes)
        played.append(summarise(episodes))
        return replace(played[-1], success=(0.25, 0.75, 0.5)[len(played) - 1])

    monkeypatch.setattr(evaluation, "summarise", judged)
    command = ["merge", str(one), str(two), "--method", "greedy", "--suite", str(suite)]
    assert run([*command, "--out", str(tmp_path / "best")]) == 0
    said = capsys.readouterr()
    assert "left out" in said.out and "0.750" in said.out and "chosen on few's test tasks" in said.err
    assert len(played) == 3 and all(not p.invalid for p in played)
    got = m.read_weights(tmp_path / "best")
    assert all(torch.equal(got[key], best[key]) for key in best)
    how = json.loads((tmp_path / "best" / "merge.json").read_text())
    assert how["joined"] == [str(two)] and [t["joined"] for t in how["trials"]] == [True, False]


def test_other_architectures_are_refused(checkpoints, tmp_path):
    tokenizer = make_tokenizer(TEXTS, 300)
    other = save_policy(tmp_path / "other", make_model(len(tokenizer), 64, 3, 2, 1, 64), tokenizer)
    models = [m.read_weights(checkpoints[0]), m.read_weights(other)]
    with pytest.raises(m.MergeFault, match="not of one architecture"):
        m.check_alike(models, ["base", "other"])
