"""Demonstrations: collected into a file without loss, in and out of other formats, and learnt from."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gymrl.agents.collection import journal_of
from gymrl.agents.episodes import jsonl_line, read_episodes, read_jsonl, write_jsonl, write_parquet
from gymrl.agents.parsers import parse_action, with_calls
from gymrl.agents.records import Episode, Turn
from gymrl.agents.sharegpt import read_sharegpt, write_sharegpt
from gymrl.cli.main import run
from gymrl.envs import Action, Environment, Message, TaskSpec, Tool, ToolCall, register
from gymrl.rl.run import train

PLAYED: list[int] = []


class Parity(Environment):
    """Say whether the number is even; the oracle cannot do odd ones. crash: index of the task that breaks."""

    def __init__(self, crash: int = -1) -> None:
        self.crash = crash

    def reset(self) -> str:
        PLAYED.append(self.task.index)
        if self.task.index == self.crash and not os.environ.get("MENDED"):
            raise RuntimeError("it broke")
        return f"Is {self.task.index} even?"

    def step(self, action: Action) -> tuple[str, float, bool]:
        won = action.text == "yes" and self.task.index % 2 == 0
        return "Right." if won else "Wrong.", float(won), True

    def recognises(self, action: Action) -> bool:
        return bool(action.text)

    def oracle(self) -> str:
        return "yes"


register("test/Parity-v0", Parity, source="a-test")


def call(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    PLAYED.clear()
    code = run([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_collect_writes_episodes_in_the_tasks_order(form, tmp_path, capsys):
    out = tmp_path / f"all.{form}"
    code, said, _ = call(capsys, "collect", "test/Parity-v0", "-n", 6, "--first", 2, "--out", out)
    assert code == 0 and "6 episodes written" in said and "3 of 6 succeeded" in said
    episodes = list(read_episodes(out))
    assert [e.task.index for e in episodes] == [2, 3, 4, 5, 6, 7] and episodes[0].task.split == "train"
    assert [e.success for e in episodes] == [True, False] * 3
    assert not journal_of(out).exists()
    code, _, err = call(capsys, "collect", "test/Parity-v0", "-n", 6, "--out", out)
    assert code == 2 and "there already" in err and list(read_episodes(out)) == episodes


def test_won_alone(tmp_path, capsys):
    out = tmp_path / "won.jsonl"
    assert call(capsys, "collect", "test/Parity-v0", "-n", 5, "--won", "--out", out)[0] == 0
    assert [e.task.index for e in read_jsonl(out)] == [0, 2, 4]


def test_a_file_of_another_ending_is_refused(tmp_path, capsys):
    code, _, err = call(capsys, "collect", "test/Parity-v0", "-n", 1, "--out", tmp_path / "x.csv")
    assert code == 2 and "FILE.jsonl" in err and not list(tmp_path.iterdir())


def test_what_was_played_is_not_played_again(tmp_path, capsys):
    """A collection that was killed: a whole line, and half of another one."""
    full, cut = tmp_path / "full.jsonl", tmp_path / "cut.jsonl"
    more = ["--param", "crash=3"]
    code, _, err = call(capsys, "collect", "test/Parity-v0", "-n", 4, "--out", full, *more)
    assert code == 0 and "1 invalid" in err and [e.task.index for e in read_jsonl(full)] == [0, 1, 2]
    lines = journal_of(full).read_text().splitlines(keepends=True)
    assert len(lines) == 5  # what it is of, and four episodes
    journal_of(cut).write_text("".join(lines[:2]) + lines[2][:100])
    os.environ["MENDED"] = "1"
    try:
        code, _, err = call(capsys, "collect", "test/Parity-v0", "-n", 4, "--out", cut, *more)
        assert code == 0 and "going on: 1 of 4" in err and len(PLAYED) == 3
        code, _, err = call(capsys, "collect", "test/Parity-v0", "-n", 4, "--out", full, *more)
        assert code == 0 and PLAYED == [3], "the invalid one is played again"
    finally:
        del os.environ["MENDED"]
    assert [e.task.index for e in read_jsonl(cut)] == [e.task.index for e in read_jsonl(full)] == [0, 1, 2, 3]
    assert not journal_of(cut).exists() and not journal_of(full).exists()


def test_another_collections_journal_is_not_gone_on_with(tmp_path, capsys):
    out = tmp_path / "x.jsonl"
    head = {"env": "test/Parity-v0", "params": {}, "split": "train", "policy": "null", "seed": 0}
    journal_of(out).write_text(json.dumps({"collection": head}) + "\n")
    code, _, err = call(capsys, "collect", "test/Parity-v0", "-n", 1, "--out", out)
    assert code == 2 and "policy = 'null', not 'oracle'" in err and journal_of(out).exists()
    journal_of(out).write_text("nonsense\n")
    code, _, err = call(capsys, "collect", "test/Parity-v0", "-n", 1, "--out", out)
    assert code == 2 and "line 1" in err


SLOW_WORLD = """
import asyncio, sys
from gymrl.cli.main import run
from gymrl.envs import Environment, register

class Waits(Environment):
    async def reset(self):
        if self.task.index >= 2:
            await asyncio.sleep(600)
        return "Say it."
    def step(self, action):
        return "Right.", 1.0, True
    def oracle(self):
        return "it"

register("test/Waits-v0", Waits)
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "command",
    [
        ["collect", "test/Waits-v0"],
        ["eval", "--env", "test/Waits-v0", "--policy", "oracle", "--split", "train"],
    ],
    ids=lambda command: command[0],
)
def test_interrupted_it_says_how_to_go_on_and_has_lost_nothing(tmp_path, command):
    out = tmp_path / "x.jsonl"
    script = tmp_path / "world.py"
    script.write_text(SLOW_WORLD)
    command = [sys.executable, script, *command, "-n", "4", "--deadline", "900", "--out", out]
    process = subprocess.Popen(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        # Who starts the tests in the background of a shell has them ignore Ctrl-C, which children inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    while process.poll() is None and (
        not journal_of(out).exists() or journal_of(out).read_bytes().count(b"\n") < 3
    ):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "the same command goes on" in err
    assert not out.exists() and journal_of(out).read_bytes().count(b"\n") == 3

    script.write_text(SLOW_WORLD.replace("600", "0"))
    again = subprocess.run(command, text=True, capture_output=True, timeout=120, check=True)
    assert "going on: 2 of 4 episodes were played before" in again.stderr
    assert [episode.task.index for episode in read_episodes(out)] == [0, 1, 2, 3]
    assert not journal_of(out).exists()


def test_an_evaluation_goes_on_with_the_same_policy_alone(tmp_path, capsys, monkeypatch):
    out = tmp_path / "x.jsonl"
    command = ("eval", "--env", "test/Parity-v0", "--policy", "oracle", "-n", 2, "--param", "crash=1", "--out", out)
    code, _, err = call(capsys, *command)
    assert code == 0 and out.exists() and journal_of(out).exists(), err  # one was invalid: it is played again
    head, *lines = journal_of(out).read_text().splitlines()
    about = json.loads(head)["collection"]
    for key, other in {"digest": "x", "engine": "vllm", "dtype": "float16", "policy": "http://a#b"}.items():
        changed = json.dumps({"collection": about | {key: other}})
        journal_of(out).write_text("\n".join([changed, *lines]) + "\n", encoding="utf-8")
        before = journal_of(out).read_bytes()
        code, _, err = call(capsys, *command)
        assert code == 2 and f"{key} = {other!r}" in err and journal_of(out).read_bytes() == before
    journal_of(out).write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    PLAYED.clear()
    monkeypatch.setenv("MENDED", "1")
    code, _, err = call(capsys, *command)
    assert code == 0 and PLAYED == [1] and "going on: 1 of 2" in err and not journal_of(out).exists()
    code, _, err = call(capsys, *command)
    assert code == 2 and "is there already and complete" in err


def test_tables_name_every_cause(tmp_path, capsys):
    from gymrl.agents.evaluation import Evaluation
    from gymrl.cli.evaluate import show

    causes = {f"environment: cause {i}": 2 for i in range(8)}
    show("x", Evaluation(16, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, causes, {"invalid": 16}, 1.0), 1.0)
    out = capsys.readouterr().out
    assert all(f"cause {i}" in out for i in range(6)) and "of 2 other causes" in out and "invalid: 4" in out


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(
    shown=st.lists(st.tuples(st.sampled_from(["system", "user", "tool", "assistant"]), TEXT), max_size=3),
    said=st.lists(st.tuples(TEXT, st.floats(-1, 1)), min_size=1, max_size=3),
    success=st.booleans(),
)
def test_sharegpt_out_and_in_again(tmp_path_factory, shown, said, success):
    messages = tuple(Message(role, text) for role, text in shown)
    turns = tuple(Turn(messages, text, reward=reward, stop="scripted") for text, reward in said)
    tools = (Tool("add", "Adds.", {"type": "object", "properties": {"a": {"type": "number"}}}),)
    task = TaskSpec.make("test/Parity-v0", "1", "val", 7, {"crash": 2})
    episode = Episode(task, turns, "terminated", "", success, (Message("user", "Well."),), tools, "oracle")
    path = tmp_path_factory.mktemp("sharegpt") / "x.jsonl"
    assert write_sharegpt(path, [episode, episode]) == 2
    (again, _) = read_episodes(path)
    assert (again.task, again.turns, again.ending, again.success, again.closing, again.tools, again.policy) == (
        episode.task, episode.turns, episode.ending, success, episode.closing, tools, "oracle"
    )  # fmt: skip


def test_agent_instruct_and_others_forms(tmp_path):
    lines = [
        {"conversations": [
            {"from": "human", "loss": None, "value": "You are in a house."},
            {"from": "gpt", "loss": False, "value": "OK."},
            {"from": "human", "loss": None, "value": "Go."},
            {"from": "gpt", "loss": True, "value": "ACTION: go"},
        ], "id": "alfworld_0"},
        {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}], "system": "Add."},
        {"conversations": [
            {"from": "human", "value": "Look."},
            {"from": "function_call", "value": '{"name": "look", "arguments": {"at": "box"}}'},
            {"from": "observation", "value": "a box"},
            {"from": "gpt", "value": "A box."},
        ], "tools": '[{"name": "look"}]'},
    ]  # fmt: skip
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    house, add, look = read_episodes(path)
    (turn,) = house.turns
    assert [m.role for m in turn.messages] == ["user", "assistant", "user"] and turn.text == "ACTION: go"
    assert [m.role for m in add.turns[0].messages] == ["system", "user"] and add.success and add.reward == 0
    assert parse_action(look.turns[0].text).tool_calls[0].arguments == {"at": "box"}
    assert look.turns[1].messages == (Message("tool", "a box"),) and look.tools[0].name == "look"
    whole = tmp_path / "x.json"
    whole.write_text(json.dumps(lines))
    assert list(read_episodes(whole)) == [house, add, look]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2"),
        ('{"conversations": 3}', "no list"),
        ('{"conversations": [{"from": "human", "value": "hm"}]}', "says nothing"),
        ('{"conversations": [{"from": "ghost", "value": "hm"}]}', "'ghost'"),
        ('{"conversations": [{"from": "gpt", "value": 3}]}', "no text"),
        ("[]", "no JSON object"),
    ],
)
def test_a_broken_conversation_names_file_and_line(line, words, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"conversations": [{"from": "gpt", "value": "hm"}]}\n' + line + "\n")
    with pytest.raises(ValueError, match=words) as error:
        list(read_episodes(path))
    assert f"{path}, line 2" in str(error.value)


def test_bytes_that_are_not_utf8_name_file_and_line(tmp_path):
    good = b'{"conversations": [{"from": "gpt", "value": "hm"}]}'
    path = tmp_path / "x.jsonl"
    path.write_bytes(good + b"\n" + good.replace(b"hm", b"\xff") + b"\n")
    with pytest.raises(ValueError, match=r"x\.jsonl, line 2: .*decode"):
        list(read_episodes(path))
    (tmp_path / "x.json").write_bytes(b"[\xff]")
    with pytest.raises(ValueError, match=r"x\.json is not JSON"):
        list(read_episodes(tmp_path / "x.json"))


def test_images_do_not_go_into_sharegpt(tmp_path):
    turn = Turn((Message("user", "Look.", (b"png",)),), "hm")
    with pytest.raises(ValueError, match="text only"):
        write_sharegpt(
            tmp_path / "x.jsonl", [Episode(TaskSpec("a/B-v0", "1", "train", 0), (turn,), "terminated")]
        )
    assert not (tmp_path / "x.jsonl").exists()


def test_calls_that_were_given_apart_are_written_out():
    call = ToolCall("add", {"a": 1})
    text = with_calls("Now.", [call])
    assert [(c.name, c.arguments) for c in parse_action(text).tool_calls] == [("add", {"a": 1})]
    assert (
        with_calls(text, [call]) == text and with_calls("plain", []) == "plain" and with_calls("", []) == ""
    )


def test_episodes_convert_to_sharegpt_and_back(tmp_path, capsys):
    out, chat, back = tmp_path / "a.jsonl", tmp_path / "chat.jsonl", tmp_path / "back.parquet"
    assert call(capsys, "collect", "test/Parity-v0", "-n", 4, "--out", out)[0] == 0
    code, said, _ = call(capsys, "episodes", out, "--sharegpt", chat, "--won")
    assert code == 0 and "2 conversations" in said
    first = json.loads(chat.read_text().splitlines()[0])["conversations"]
    assert [m["from"] for m in first] == ["human", "gpt", "human"] and first[1]["value"] == "yes"
    code, said, _ = call(capsys, "episodes", chat, "--parquet", back)
    assert code == 0 and [e.task for e in read_episodes(back)] == [e.task for e in read_sharegpt(chat)]


SMALL = [
    "model.tiny={hidden=32, heads=2, kv_heads=1, layers=1}", "sft.steps=2", "sft.batch=2", "eval.tasks=2",
    "env.id=test/Parity-v0", "sampling.max_tokens=4", "algo=sft",
]  # fmt: skip


def test_hugging_face_datasets_reads_what_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    episodes = [
        Episode(
            TaskSpec.make("a/B-v0", "1", "train", index),
            (Turn((Message("user", "hm"),), "yes"),),
            "terminated",
        )
        for index in range(3)
    ]
    write_parquet(tmp_path / "x.parquet", episodes)
    write_jsonl(tmp_path / "x.jsonl", episodes)
    write_sharegpt(tmp_path / "s.jsonl", episodes)

    def load(kind: str, name: str) -> Any:
        return datasets.load_dataset(
            kind, data_files=str(tmp_path / name), split="train", cache_dir=str(tmp_path / "cache")
        )

    for kind, name in (("parquet", "x.parquet"), ("json", "x.jsonl")):
        rows = load(kind, name)
        assert [row["task"]["index"] for row in rows] == [0, 1, 2] and rows[0]["turns"][0]["text"] == "yes"
    assert load("json", "s.jsonl")[2]["conversations"][-1] == {"from": "gpt", "value": "yes"}


def test_sft_learns_from_a_file(tmp_path, capsys):
    """From conversations, of which the lost ones are left out; the oracle, which would fail the test, is not asked."""
    task = TaskSpec.make("test/Parity-v0", "1", "train", 1)
    good, bad = (Turn((Message("user", "Is 1 even?"),), text) for text in ("no, it is odd", "who knows"))
    ways = [Episode(task, (good,), "terminated", success=True), Episode(task, (bad,), "terminated")]
    data = tmp_path / "demos.jsonl"
    assert write_sharegpt(data, ways * 3) == 6
    out = tmp_path / "run"
    assert (
        train(
            "quickstart", [*SMALL, f"sft.data={data}", "env.params={crash=0}", "env.max_turns=1"], None, out
        )
        == 0
    )
    kept = list(read_jsonl(out / "episodes" / "demonstrations.jsonl"))
    assert [e.turns[0].text for e in kept] == ["no, it is odd"] * 3
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == ["sft", "sft"] and all(row["loss"] > 0 for row in rows)


def test_a_file_without_a_success_is_a_sentence(tmp_path, capsys):
    turn = Turn((Message("user", "Hm?"),), "hm")
    lost = Episode(TaskSpec("a/B-v0", "1", "train", 0), (turn,), "terminated")
    for path, write in ((tmp_path / "x.jsonl", write_jsonl), (tmp_path / "x.parquet", write_parquet)):
        write(path, [lost])
        code, _, err = call(
            capsys, "train", "quickstart", *SMALL, f"sft.data={path}", "--out", tmp_path / "run"
        )
        assert code == 1 and "none of the 1 episodes" in err and not (tmp_path / "run").exists()
    code, _, err = call(capsys, "train", "quickstart", *SMALL, "sft.data=nowhere.jsonl")
    assert code == 2 and "no such file" in err
    (tmp_path / "half.jsonl").write_text(jsonl_line(lost) + "{\n")
    code, _, err = call(
        capsys,
        "train",
        "quickstart",
        *SMALL,
        f"sft.data={tmp_path / 'half.jsonl'}",
        "--out",
        tmp_path / "run",
    )
    assert code == 2 and "line 2" in err
