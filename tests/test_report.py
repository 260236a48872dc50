"""The report of a training run: what it says, what it survives, and that it loads nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import random
import re
import shutil
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from gymrl.agents.episodes import write_jsonl
from gymrl.agents.records import Episode, Turn, episode_to_json
from gymrl.envs.intervals import wilson
from gymrl.envs.records import Message, TaskSpec, ToolCall
from gymrl.rl.report import write_report
from gymrl.rl.report.charts import BOTTOM, LEFT, RIGHT, TOP, count, draw_stages, ticks, y_scale
from gymrl.rl.report.episodes import choose_shelves
from gymrl.rl.report.files import Curve
from gymrl.rl.report.metrics import describe, smooth, thin, time_shares

ATTACK = "</script><script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>]]>--><!--"
SYSTEM = "Solve the problem. Python code in a ```python block is run and its output shown to you."
RECIPE = """\
name = "quickstart"
seed = 0

[env]
id = "gymrl/CodeInterpreter-v0"
params = { tasks = "arithmetic", terms = 3, digits = 2 }

[sft]
steps = 300
lr = 1e-3

[rl]
steps = 120
tasks = 16
group = 8
note = "</code><script>alert(3)</script>"
"""


def byte_tokenizer() -> Tokenizer:
    """Every byte is a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={sign: i for i, sign in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def make_turn(
    messages: list[Message], text: str, rng: random.Random, version: int, reward: float = 0.0, void: bool = False,
    calls: tuple[ToolCall, ...] = (),
) -> Turn:  # fmt: skip
    ids = byte_tokenizer().encode(text).ids
    logprobs = tuple(-rng.expovariate(6) if rng.random() > 0.1 else -rng.uniform(1, 6) for _ in ids)
    return Turn(
        tuple(messages), text, calls, tuple(range(40)), tuple(ids), logprobs, (version,) * len(ids), 0,
        "length" if void else "stop", reward, void, {"generate": 0.21, "environment": 0.012},
    )  # fmt: skip


def make_episode(
    kind: str, index: int, rng: random.Random, split: str = "test", version: int = 120
) -> Episode:
    task = TaskSpec.make("gymrl/CodeInterpreter-v0", "1", split, index, {"digits": 2, "terms": 3})
    a, b, c = (rng.randrange(10, 100) for _ in range(3))
    ask = [Message("system", SYSTEM), Message("user", f"What is {a} + {b} * {c}?")]
    if kind == "invalid":
        return Episode(task, (), "invalid", "environment: TimeoutError: step() gave no answer in 60 s")
    if kind == "void":
        turn = make_turn(
            ask, f"I think it is about {a}, then {b}, then {c}, then {a}, the", rng, version, void=True
        )
        hint = Message("user", "Write a ```python block or <answer>...</answer>.")
        return Episode(
            task, (turn,), "terminated", "void", closing=(hint,), policy="policy", sample=index % 8
        )
    value = a + b * c + (0 if kind == "success" else rng.randrange(1, 50))
    code = make_turn(ask, f"```python\nprint({a} + {b} * {c})\n```", rng, version)
    shown = [Message("user", f"```output\n{a + b * c}\n```")]
    said = make_turn(shown, f"<answer>{value}</answer>", rng, version, float(kind == "success"))
    closing = (Message("user", f"The answer is {'right' if kind == 'success' else 'wrong'}."),)
    return Episode(
        task,
        (code, said),
        "terminated",
        success=kind == "success",
        closing=closing,
        policy="policy",
        sample=index % 8,
    )


def make_episodes(
    share: float, many: int, rng: random.Random, split: str = "test", version: int = 0
) -> Iterator[Episode]:
    for index in range(many):
        draw = rng.random()
        kind = "success" if draw < share else "failure" if draw < share + (1 - share) * 0.7 else "void"
        yield make_episode("invalid" if index == 5 else kind, index, rng, split, version)


def metric_lines(rng: random.Random, sft: int, rl: int) -> Iterator[dict[str, Any]]:
    for step in range(sft):
        fall = math.exp(-step / 60)
        yield {
            "stage": "sft", "step": step, "loss": 0.12 + 3.4 * fall + rng.gauss(0, 0.04) * (0.3 + fall),
            "entropy": 0.1 + 2.5 * fall + rng.gauss(0, 0.02), "grad_norm": 0.4 + 3 * fall + abs(rng.gauss(0, 0.2)),
            "lr": 1e-3 * min(1, (step + 1) / 20), "tokens": 2100 + rng.randrange(300), "skipped": 0,
            "time/step": 0.21 + abs(rng.gauss(0, 0.02)),
        }  # fmt: skip
    for step in range(rl):
        rise = 0.94 - 0.24 * math.exp(-step / 45)
        rollout, learn, sync = 1.1 + rng.random() * 0.3, 0.8 + rng.random() * 0.2, 0.03
        yield {
            "stage": "rl", "step": step, "reward": rise + rng.gauss(0, 0.03),
            "success": min(1, rise + rng.gauss(0, 0.03)),
            "turns": 2.1 + rng.gauss(0, 0.05), "sampled_tokens": 5200 + rng.randrange(500), "tokens": 12000 - 30 * step,
            "void_turns": max(0, 0.06 - step / 2500 + rng.gauss(0, 0.01)), "invalid": 0, "entropy": 0.18 - step / 1500,
            "loss": rng.gauss(0, 0.02), "grad_norm": 0.3 + abs(rng.gauss(0, 0.1)),
            "clip_share": abs(rng.gauss(0, 0.002)),
            "lr": 6e-5, "mismatch_mean": 2e-6 * rng.random() + 1e-6, "importance_truncated": 0.0,
            "mismatch_max": 0.04 if step == 70 else 2e-5 + 1e-5 * rng.random(), "flat_groups": 0.3 + step / 400,
            "acme/novelty": rng.random(), "time/rollout": rollout, "time/environment": 9 + rng.random(),
            "time/learn": learn, "time/sync": sync, "time/step": rollout + learn + sync + 0.05,
        }  # fmt: skip


def make_run(folder: Path, rl_steps: int = 120, status: str = "finished") -> Path:
    """A run as `gymrl train` leaves it, the same every time."""
    rng = random.Random(7)
    shares = {"base": 0.0, "sft": 0.727, "rl": 0.941}
    stages = []
    for name, share in shares.items():
        many = 512
        low, high = wilson(round(share * many), many)
        stages.append(
            {
                "name": name,
                "success": round(share * many) / many,
                "low": low,
                "high": high,
                "episodes": many,
                "seconds": 9.6,
            }
        )
        write_jsonl(folder / "episodes" / f"eval-{name}.jsonl", make_episodes(share, 40, rng, version=0))
    summary = {
        "recipe": "quickstart", "seed": 0, "status": status, "seconds": 431.7, "stages": stages,
        "versions": {"gymrl": "0.1.0", "python": "3.11.2", "torch": "2.13.0+cpu", "transformers": "5.19.0"},
        "invalid": {"environment: TimeoutError: step() gave no answer in 60 s": 3},
        "void": {"length": 412, "no code, no answer": 131, "code block not closed": 12},
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "recipe.toml").write_text(RECIPE)
    demonstrations = [replace(make_episode("success", i, rng, "train"), policy="oracle") for i in range(4)]
    write_jsonl(folder / "episodes" / "demonstrations.jsonl", demonstrations)
    for step in range(0, rl_steps, 10):
        kinds = ("success", "failure", "void", "success")
        played = [make_episode(kinds[i % 4], i, rng, "train", 300 + step) for i in range(8)]
        write_jsonl(folder / "episodes" / "rl" / f"{step:06d}.jsonl", played)
    lines = [json.dumps(line) for line in metric_lines(rng, 300, rl_steps)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "policy").mkdir()
    byte_tokenizer().save(str(folder / "policy" / "tokenizer.json"))
    return folder


class Page(HTMLParser):
    """The page as a list of elements and the texts by section."""

    VOID = frozenset({"meta", "img", "input", "br", "link", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.source = text
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, list[str]] = {}
        self.unbalanced: list[str] = []
        self.scripts: list[tuple[dict[str, str], str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.elements.append((tag, found))
        if tag == "script":
            self.scripts.append((found, ""))
        if tag not in self.VOID:
            self.open.append((tag, found))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1][0] == tag:
            self.open.pop()
        else:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1][0] == "script":
            attrs, text = self.scripts[-1]
            self.scripts[-1] = (attrs, text + data)
        elif self.open and self.open[-1][0] != "style":
            for tag, attrs in self.open:
                if tag == "section" and "id" in attrs:
                    self.texts.setdefault(attrs["id"], []).append(data)

    def text(self, section: str) -> str:
        return " ".join(" ".join(self.texts.get(section, [])).split())

    def of(self, tag: str, **wanted: str) -> list[dict[str, str]]:
        classes = wanted.pop("cls", None)
        return [
            attrs
            for name, attrs in self.elements
            if name == tag
            and (classes is None or classes in attrs.get("class", "").split())
            and all(attrs.get(key) == value for key, value in wanted.items())
        ]


def load(run: Path) -> Page:
    path = write_report(run)
    assert path == run / "report.html"
    assert not (run / "report.html.part").exists()
    return Page(path.read_text(encoding="utf-8"))


def assert_sealed(page: Page) -> None:
    """Nothing is loaded from anywhere, and no script but the page's own can run."""
    assert page.unbalanced == [] and page.open == []
    for tag, attrs in page.elements:
        assert tag not in {
            "link",
            "iframe",
            "object",
            "embed",
            "base",
            "form",
            "audio",
            "video",
            "image",
            "use",
        }
        for name, value in attrs.items():
            assert not name.startswith("on"), (tag, attrs)
            if name in {"src", "href", "srcset", "xlink:href", "action", "data", "poster", "background"}:
                assert value.startswith(("#", "data:image/")), (tag, attrs)
            if name == "style":
                assert re.fullmatch(r"(left|width):[\d.]+%(;width:[\d.]+%)?", value), value
    style = re.search(r"<style>(.*?)</style>", page.source, re.DOTALL)
    assert style is not None and not re.search(r"url\(|@import|https?:", style[1])
    (kind, data), (own, script) = page.scripts
    assert kind == {"type": "application/json", "id": "chart-data"} and own == {}
    json.loads(data)
    assert not re.search(r"https?:|\bfetch\b|\bimport\b|XMLHttpRequest|WebSocket|innerHTML|eval\(", script)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = page.of("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "quickstart-0")


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    return load(run)


def test_a_finished_run_is_told(page: Page) -> None:
    results = page.text("results")
    assert "0.0 % before training, 72.7 % after SFT, 94.1 % after RL" in results
    assert "68.6 to 76.3 %" in results  # Wilson, 372 of 512
    assert [row["style"] for row in page.of("i", cls="point")] == ["left:0.0%", "left:72.66%", "left:94.14%"]
    for text in ("quickstart", "finished", "7 min 12 s", "2.13.0+cpu"):
        assert text in page.source
    assert "412" in page.text("causes") and "code block not closed" in page.text("causes")
    assert 'id = "gymrl/CodeInterpreter-v0"' in page.text("recipe")


def test_the_page_is_sealed(page: Page) -> None:
    assert_sealed(page)


def test_curves_are_drawn_and_grouped(page: Page) -> None:
    data = json.loads(page.scripts[0][1])["charts"]
    figures = [attrs["data-chart"] for attrs in page.of("figure", cls="chart")]
    assert sorted(figures) == sorted(data)
    curves = page.text("curves")
    for text in ("Reward and success", "Engine and learner", "acme/novelty", "Learning rate", "log scale"):
        assert text in curves
    drawn = [c for c in data.values() if "mean" in c]
    assert all(len(c["first"]) == len(c["mean"]) for c in drawn)
    lines = [attrs["d"] for attrs in page.of("path", cls="line")]
    assert len(lines) == len(drawn) and all(len(re.findall("[ML]", d)) in (120, 150) for d in lines)
    for d in lines:  # inside the frame
        points = [tuple(map(float, pair.split())) for pair in re.split("[ML]", d)[1:]]
        assert all(LEFT <= x <= RIGHT and TOP <= y <= BOTTOM for x, y in points)
    # The wall-clock is split without the time that overlapping episodes spend in their environments.
    parts = [part["name"] for part in data["rl-time"]["parts"]]
    assert parts == ["rollout", "learn", "sync", "rest"]
    for column in zip(*(part["share"] for part in data["rl-time"]["parts"]), strict=True):
        assert sum(column) == pytest.approx(1, abs=1e-3)


def test_what_never_changed_is_said_in_words(page: Page) -> None:
    assert "Learning rate 6e-05" in page.text("curves")
    assert "skipped 0" in page.text("curves")


def test_episodes_of_every_stage_and_kind(page: Page) -> None:
    kinds = [attrs["data-kind"] for attrs in page.of("details", cls="episode")]
    assert set(kinds) == {"success", "failure", "void", "invalid"}
    shown = page.text("episodes")
    for text in ("Before training", "Demonstrations", "After SFT", "RL, step 0", "RL, step 110", "After RL"):
        assert text in shown
    for text in ("policy version 300", "stop: length", "reward 1", "The answer is right.", "TimeoutError"):
        assert text in shown
    assert page.of("div", cls="is-void")
    assert page.of("pre", **{"data-language": "python"})


ALL = ["rft", "sft", "es", "rl", "preference"]


def test_every_stage_has_its_title_in_the_order_of_the_run(tmp_path: Path) -> None:
    rng = random.Random(2)
    played = [make_episode("success", i, rng) for i in range(2)]
    for name in ("eval-base", "demonstrations", *(f"eval-{stage}" for stage in ALL), "eval-acme"):
        write_jsonl(tmp_path / "episodes" / f"{name}.jsonl", played)
    for stage in ALL:
        write_jsonl(tmp_path / "episodes" / stage / "000000.jsonl", played)
    measured = {"success": 0.5, "low": 0.25, "high": 0.75, "episodes": 8}
    stages = [{"name": name, **measured} for name in ("base", *ALL)]
    (tmp_path / "summary.json").write_text(json.dumps({"stages": stages}))
    lines = [{"stage": s, "step": n, "loss": float(n)} for s in ALL for n in range(2)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    for recipe in (f"stages = {json.dumps(ALL)}", "broken ="):  # without a recipe, as they were evaluated
        (tmp_path / "recipe.toml").write_text(recipe)
        source = load(tmp_path).source
        titles = re.findall(r"<h3>([^<]*) <small>", source)
        assert titles[:5] == [
            "Rejection sampling", "Supervised fine-tuning", "Evolution strategies", "Reinforcement learning",
            "Preference learning",
        ]  # fmt: skip
        assert titles[5:] == [
            "Before training", "Demonstrations", "Rejection sampling, step 0", "After rejection sampling",
            "SFT, step 0", "After SFT", "Evolution strategies, step 0", "After evolution strategies", "RL, step 0",
            "After RL", "Preference learning, step 0", "After preference learning", "eval-acme",
        ]  # fmt: skip
        assert "50.0 % after preference learning." in source
    (tmp_path / "recipe.toml").write_text('stages = ["es", "rl"]')  # what it does not name comes after it
    titles = re.findall(r"<h3>([^<]*) <small>", load(tmp_path).source)
    assert titles[:3] == ["Evolution strategies", "Reinforcement learning", "Rejection sampling"]


def test_of_too_many_metrics_the_known_ones_of_every_stage_stay() -> None:
    curves = [Curve("sft", f"metric_{n}", [0.0, 1.0], [0.0, 1.0]) for n in range(200)]
    curves += [Curve(stage, "loss", [0.0, 1.0], [0.0, 1.0]) for stage in ("sft", "rl")]
    stages, left_out = draw_stages(curves, ["sft", "rl"])
    drawn = [[chart.title for group in stage.groups for chart in group.charts] for stage in stages]
    assert [titles[0] for titles in drawn] == ["Loss", "Loss"] and len(drawn[0]) + len(drawn[1]) + left_out == 202


def test_tokens_carry_texts_logprobs_and_shades(page: Page) -> None:
    shades = {attrs["class"] for attrs in page.of("i") if re.fullmatch(r"k\d", attrs.get("class", ""))}
    assert {"k0", "k1", "k9"} <= shades
    start = page.source.index('<div class="tokens">')
    tokens = re.findall(
        r'<i class="k\d" title="\d+: -?\d+\.\d{3}">([^<]*)</i>', page.source[start : start + 20_000]
    )
    assert "".join(tokens).startswith(("I think it is about", "```python↵\nprint("))


def test_without_a_tokenizer_tokens_are_ids(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    (copy / "policy" / "tokenizer.json").write_text('{"version": "1.0", "model"')
    page = load(copy)
    ids = r'<i class="k\d" title="(\d+): -?[\d.]+">\1</i>'
    assert re.search(ids, page.source)
    checkpoint = copy / "checkpoints" / "rl-step-000010"
    checkpoint.mkdir(parents=True)
    byte_tokenizer().save(str(checkpoint / "tokenizer.json"))
    assert "↵" in load(copy).source  # found while the run goes on


def test_the_same_run_gives_the_same_page(run: Path, page: Page) -> None:
    assert load(run).source == page.source


def test_hostile_text_stays_text(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "</script><b>run"))
    rng = random.Random(3)
    task = TaskSpec.make("acme/<script>-v0", "1", "test", 0)
    text = f"{ATTACK}\x00\x1b\ud800```{ATTACK}\n\u202ebidi```python\n{ATTACK}\n```"
    ask = [Message("user", ATTACK), Message(ATTACK, ATTACK, name=ATTACK)]
    calls = (ToolCall(ATTACK, {ATTACK: ATTACK}),)
    turn = replace(make_turn(ask, ATTACK, rng, 1, calls=calls), text=text, info={ATTACK: ATTACK})
    turn = replace(turn, timings={ATTACK: 1.0})
    hostile = Episode(task, (turn,), "truncated", ATTACK, closing=(Message("user", ATTACK),), policy=ATTACK)
    (copy / "episodes" / "eval-base.jsonl").write_text(json.dumps(episode_to_json(hostile)) + "\n")
    summary = json.loads((copy / "summary.json").read_text())
    summary |= {"recipe": ATTACK, "status": ATTACK, "seed": ATTACK, "versions": {ATTACK: ATTACK}}
    summary |= {"void": {ATTACK: 3}, "invalid": {"rl": {ATTACK: 2}}}
    summary["stages"][0]["name"] = ATTACK
    (copy / "summary.json").write_text(json.dumps(summary))
    line = json.dumps({"stage": ATTACK, "step": 0, ATTACK: 1.0, f"time/{ATTACK}": 1.0, "time/b": 2.0})
    more = json.dumps({"stage": ATTACK, "step": 1, ATTACK: 2.0, f"time/{ATTACK}": 3.0, "time/b": 2.0})
    (copy / "metrics.jsonl").write_text(f"{line}\n{more}\n")
    page = load(copy)
    assert_sealed(page)
    assert page.text("episodes").count("<script>alert(1)</script>") > 5
    assert "\x00" not in page.source and "␀␛" in page.text("episodes")
    assert ATTACK in page.text("curves") and ATTACK in page.text("causes") and ATTACK in page.text("results")
    assert "</code><script>alert(3)" in page.text("recipe")


def test_an_empty_folder_has_a_report(tmp_path: Path) -> None:
    page = load(tmp_path)
    assert_sealed(page)
    assert "No evaluation has finished yet." in page.text("results")
    assert "No training step" in page.text("curves")
    assert "None counted." in page.text("causes")
    assert f"gymrl train --resume {tmp_path}" in page.text("commands")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no run folder .*absent"):
        write_report(tmp_path / "absent")


def test_in_the_middle_of_a_run(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    summary = json.loads((copy / "summary.json").read_text())
    summary["status"], summary["stages"] = "running", summary["stages"][:2]
    (copy / "summary.json").write_text(json.dumps(summary))
    (copy / "episodes" / "eval-rl.jsonl").unlink()
    text = (copy / "metrics.jsonl").read_text()
    (copy / "metrics.jsonl").write_text(text[: len(text) - 200])  # a line half written
    page = load(copy)
    assert "running" in page.source and "After RL" not in page.text("episodes")
    assert "steps 0 to 118" in page.text("curves")


@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl", "recipe.toml", "episodes/eval-rl.jsonl"])
@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[1, 2]", b"null\n7\n\"a\"\n", b"\xff\xfe\x00", b"[" * 100_000, b'{"format": 1}',
        b'{"stages": [1, {}, {"success": NaN}, {"success": 1e999, "name": 3}], "versions": 3, '
        b'"void": [1], "seconds": "x"}',
        b'{"stage": null, "step": NaN, "loss": 1}\n{"stage": [], "step": 1e308, "loss": -1e308}\n'
        b'{"step": -1e308, "loss": 1e308, "x": NaN, "y": true}\n'
        b'{"step": 3, "loss": Infinity, "time/a": 1e308, "time/b": 1e308}',
    ],
)  # fmt: skip
def test_broken_files_break_nothing(run: Path, tmp_path: Path, name: str, content: bytes) -> None:
    copy = tmp_path / "copy"
    (copy / "episodes").mkdir(parents=True)
    for kept in ("summary.json", "metrics.jsonl", "recipe.toml"):
        shutil.copy(run / kept, copy / kept)
    (copy / name).write_bytes(content)
    assert_sealed(load(copy))


def test_episodes_with_wrong_fields_are_passed_over(run: Path, tmp_path: Path) -> None:
    good = json.loads((run / "episodes" / "demonstrations.jsonl").read_text().splitlines()[0])
    odd = (None, 3, "x", [1], [None], {"a": 1})
    wrong = [{**good, key: value} for key in good for value in odd]
    wrong += [
        {**good, "turns": [{**good["turns"][0], key: value}]} for key in good["turns"][0] for value in odd
    ]
    file = tmp_path / "episodes" / "eval-rl.jsonl"
    file.parent.mkdir()
    for episode in wrong:  # none hides the good ones
        file.write_text("\n".join(json.dumps(line) for line in (episode, good, good)) + "\n")
        (shelf,) = choose_shelves(tmp_path)
        assert sum(view.kind == "success" for view in shelf.episodes) == 2
    file.write_text("\n".join(json.dumps(line) for line in wrong) + "\n")
    assert_sealed(load(tmp_path))


def png(size: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\x00" + bytes(x % 256 for x in range(size)) for _ in range(size)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_images_are_embedded_while_there_is_room(tmp_path: Path) -> None:
    rng = random.Random(1)
    big = png(8) + bytes(700_000)
    messages = [Message("user", "look", images=(png(8), big, b"GIF89a..."))]
    task = TaskSpec.make("acme/See-v0", "1", "test", 0)
    episode = Episode(task, (make_turn(messages, "<answer>1</answer>", rng, 0),), "terminated", success=True)
    write_jsonl(tmp_path / "episodes" / "eval-rl.jsonl", [episode])
    page = load(tmp_path)
    assert_sealed(page)
    assert len(page.of("img")) == 1
    assert f"an image of {len(big):,} bytes, an image of 9 bytes" in page.text("episodes")


def test_a_long_run_stays_small(tmp_path: Path) -> None:
    """Thousands of steps, 60 metrics, episodes of 100 turns whose text is all `&` and tokens of one byte."""
    rng = random.Random(5)
    with (tmp_path / "metrics.jsonl").open("w") as file:
        for step in range(1_500):
            row = {f"metric_{k}": rng.random() * (k + 1) for k in range(60 if step % 20 == 0 else 3)}
            file.write(json.dumps({"stage": "rl", "step": step, **row}) + "\n")
    long = make_turn([Message("user", "&" * 20_000)], "\x01&" * 200, rng, 3)
    turns = tuple(
        replace(long, messages=(Message("user", "&" * (20_000 if i == 0 else 500)),)) for i in range(200)
    )
    task = TaskSpec.make("acme/Long-v0", "1", "train", 0)
    lost = Episode(task, turns, "truncated", "max_turns")
    short = [make_episode("success", i, rng) for i in range(3)]
    for name in (
        "eval-base",
        "eval-sft",
        "eval-rl",
        "demonstrations",
        *(f"rl/{i:06d}" for i in range(0, 300, 100)),
    ):
        write_jsonl(tmp_path / "episodes" / f"{name}.jsonl", [lost, *short])
    page = load(tmp_path)
    assert_sealed(page)
    assert len(page.source.encode()) < 3_000_000
    assert page.of("details", **{"data-kind": "success"})
    assert len(page.of("figure", cls="chart")) == 60


numbers = st.floats(-1e100, 1e100)


@given(st.lists(numbers, min_size=1, max_size=60), st.integers(1, 20))
def test_thinning_keeps_mean_and_extremes(values: list[float], most: int) -> None:
    points = thin(Curve("rl", "x", [float(i) for i in range(len(values))], values), most)
    assert len(points) <= most
    assert min(points.low) == min(values) and max(points.high) == max(values)
    assert points.first[0] == 0 and points.last[-1] == len(values) - 1
    slack = 1e-9 * max(map(abs, values))
    for low, middle, high in zip(points.low, points.mean, points.high, strict=True):
        assert low - slack <= middle <= high + slack


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.floats(0, 0.98))
def test_smoothing_stays_within_what_was_seen(values: list[float], weight: float) -> None:
    smoothed = smooth(values, weight)
    assert all(min(values) - 1e-3 <= value <= max(values) + 1e-3 for value in smoothed)
    assert smooth(values, 0.0) == values
    assert smooth(values[::-1], weight)[::-1] == pytest.approx(smoothed)


def test_smoothing_steps_over_what_is_not_finite() -> None:
    found = smooth([1.0, math.nan, 3.0], 0.5)
    assert found[0] == pytest.approx((1 + 0.5 * 3) / 1.5)
    assert math.isnan(found[1])
    assert found[2] == pytest.approx((3 + 0.5 * 1) / 1.5)


def test_smoothing_does_not_show_a_trend_late() -> None:
    line = [float(i) for i in range(41)]
    assert smooth(line, 0.8)[20] == pytest.approx(20)


@settings(max_examples=200)
@given(st.lists(numbers, min_size=2, max_size=20), st.sampled_from(["loss", "success", "clip_share", "x"]))
def test_scales_hold_their_values_and_ticks(values: list[float], key: str) -> None:
    metric = describe(Curve("rl", key, [float(i) for i in range(len(values))], values))
    scale = y_scale(values, metric)
    assert scale.low < scale.high
    assert all(TOP <= scale(value) <= BOTTOM for value in values)
    if not scale.log:
        found = ticks(scale.low, scale.high, 4)
        assert 1 <= len(found) <= 6 and found == sorted(set(found))
    if scale.low <= min(values) < max(values) <= scale.high and max(values) - min(values) > 1e-6 * abs(
        max(values)
    ):
        assert scale(min(values)) >= scale(max(values))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.94123, "0.941"), (6e-5, "6e-05"), (999, "999"),
     (1234.4, "1234"), (12345, "12.3k"), (2.5e6, "2.5M"), (-15000, "-15k")],
)  # fmt: skip
def test_numbers_are_short(value: float, text: str) -> None:
    assert count(value) == text


def test_time_shares_without_a_rollout_count_the_environment() -> None:
    def curve(key: str, value: float) -> Curve:
        return Curve("rl", f"time/{key}", [0.0, 1.0], [value, value])

    shares = time_shares(
        [curve("sync", 1), curve("generate", 2), curve("environment", 3), curve("step", 8)], 10
    )
    assert shares is not None
    assert shares.names == ["generate", "environment", "sync", "rest"]
    assert [seconds[0] for seconds in shares.seconds] == [2, 3, 1, 2]
    assert time_shares([curve("step", 8)], 10) is None


def test_going_on_is_offered_while_something_is_left_to_do(run: Path, page: Page, tmp_path: Path) -> None:
    assert "gymrl train" in page.text("commands") and "--resume" not in page.text("commands")
    for status in ("running", "stopped", "failed", ""):
        (tmp_path / "summary.json").write_text(json.dumps({"status": status}))
        assert f"gymrl train --resume {tmp_path}" in load(tmp_path).text("commands")


@pytest.mark.parametrize("steps", [200, 350, 1001])
def test_the_number_beside_a_curve_is_the_last_that_was_logged(tmp_path: Path, steps: int) -> None:
    """However many steps make one point of the drawing."""
    lines = [
        {"stage": "sft", "step": step, "loss": 1000.0 - step, "time/learn": 1 + step, "time/sync": 1.0}
        for step in range(steps)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = load(tmp_path)
    last = count(lines[-1]["loss"])
    assert f"<b>Loss</b> <output>{last}</output>" in page.source
    assert f"Loss by step: first 1000, last {last}, least" in page.source
    assert f"learn {100 * steps / (steps + 1):.3g} %" in page.text("curves")


def test_a_curve_that_ends_without_a_number_shows_its_last_one() -> None:
    values = [math.nan, 3.0, 2.0, 1.0, math.nan]
    points = thin(Curve("rl", "loss", [float(i) for i in range(5)], values), 2)
    assert points.ends == (3.0, 1.0) and points.lost == 2
