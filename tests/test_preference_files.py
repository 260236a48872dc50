"""Preference data of files: whose tokens they hold, the forms of others, what is refused, and what a step tells."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from gymrl.agents.episodes import read_episodes, read_jsonl, write_jsonl, write_parquet
from gymrl.agents.parsers import parse_action
from gymrl.agents.records import Episode, Turn
from gymrl.agents.rendering import Conversation, Renderer
from gymrl.agents.sharegpt import write_sharegpt
from gymrl.envs.records import Message, Observation, TaskSpec, Tool
from gymrl.rl.algorithms import find
from gymrl.rl.demonstrations import DemonstrationFault, has_own_ids, tokenise
from gymrl.rl.folder import RunFault, RunFolder
from gymrl.rl.pairs import Example, fingerprint, pairs, usable
from gymrl.rl.preference_files import read_preferences
from gymrl.rl.run import train
from gymrl.rl.supervised.notes import noted
from gymrl.rl.tiny import CHAT_TEMPLATE, make_tokenizer
from gymrl.rl.trainers.preference import preference_step

sys.path.insert(0, str(Path(__file__).parent))
from test_algorithms_runs import GUESS, SMALL, bare, rows, weights

TEXTS = ["What is 12 + 34?", "<answer>46</answer>", "user\nassistant\n", "Ready? a or b?"]
OWN = Renderer(make_tokenizer(TEXTS * 3, 333))
OTHER = Renderer(make_tokenizer(["Some quite other prose, of users and their assistants."] * 3, 333))
VOCABULARY = 384  # rows of the embeddings, which ids beyond the tokenizer's may be sampled from
DATED = CHAT_TEMPLATE.replace("{%- if tools", "Today is {{ date or 'Friday' }}.\n{%- if tools", 1)
FORGETS = CHAT_TEMPLATE.replace("{{ message.content }}", "{{ message.content.split('</think>')[-1] }}")


def spelled(
    renderer: Renderer, *said: tuple[int, ...], tools: tuple[Tool, ...] = (), index: int = 0
) -> Episode:
    """An episode of a policy of that tokenizer, which sampled these ids."""
    talk, turns = Conversation(renderer), []
    for number, ids in enumerate(said):
        shown = Message("system", "Be brief."), Message("user", "What is 12 + 34?")
        shown = (Message("tool" if tools else "user", f'Go "on" {number}.\n'),) if number else shown
        prompt = talk.observe(Observation(shown, tools))
        text, n = talk.said(ids), len(ids)
        turns.append(
            Turn(
                shown, text, parse_action(text).tool_calls, prompt.new_ids, ids, (-1.0,) * n, (0,) * n, prompt.segment,
                "stop" if ids and ids[-1] in renderer.stop_ids else "length", void=not text,
            )
        )  # fmt: skip
    return Episode(TaskSpec.make("toy/X-v0", "1", "train", index), tuple(turns), "terminated", tools=tools)


# -- whose tokens ----------------------------------------------------------------------------------


def sentencepiece() -> Renderer:
    """Byte fallback, a prefix of the first word, and text that is normalised: decoding does not undo encoding."""
    pieces = [
        "<unk>",
        "</s>",
        *(f"<0x{n:02X}>" for n in range(256)),
        *"▁abcdefghijklmnopqrstuvwxyzBW",
        "▁a",
        "on",
        "▁Go",
    ]
    tokenizer = Tokenizer(
        models.BPE(
            {piece: n for n, piece in enumerate(pieces)},
            [("▁", "a"), ("o", "n")],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")
    fast.chat_template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}</s>{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    return Renderer(fast)


def templated(template: str) -> Renderer:
    tokenizer = make_tokenizer(TEXTS * 3, 333)
    tokenizer.chat_template = template
    return Renderer(tokenizer)


HOUSES = {
    "plain": OWN,
    "dated": templated(DATED),
    "forgets": templated(FORGETS),
    "sentencepiece": sentencepiece(),
}


@settings(max_examples=60)
@given(
    st.lists(st.lists(st.integers(0, VOCABULARY - 1), max_size=9), min_size=1, max_size=4),
    st.booleans(),
    st.data(),
)
def test_whatever_a_policy_samples_is_known_as_its_own(turns, stops, data):
    """Odd merges, broken UTF-8, specials in the middle, ids that the tokenizer lacks, turns cut short and void ones."""
    renderer = HOUSES[data.draw(st.sampled_from(sorted(HOUSES)))]
    tools = data.draw(st.sampled_from([(), (Tool("add", "Adds."),)]))
    said = [(*ids, *renderer.stop_ids[:1]) if stops else tuple(ids) for ids in turns]
    episode = spelled(renderer, *said, tools=tools)
    assert episode.tokens == 0 or has_own_ids(episode, renderer, VOCABULARY)


def test_notes_dates_and_other_templates_change_prompts_and_not_whose_tokens_they_are():
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    episode = spelled(OWN, *((*OWN.encode(text), OWN.stop_ids[0]) for text in (call, "<think>hm</think>46")))
    assert has_own_ids(noted(episode, "Answer correctly.", OWN), OWN, VOCABULARY)
    for template in (
        DATED,
        FORGETS,
        CHAT_TEMPLATE.replace("assistant\n{% endif", "assistant\n<think>\n{% endif"),
    ):
        assert has_own_ids(
            spelled(templated(template), *(t.completion_ids for t in episode.turns)), OWN, VOCABULARY
        )
    # A model that ends its turns with another special token of the same tokenizer.
    ended = replace(episode.turns[0], completion_ids=(*episode.turns[0].completion_ids[:-1], 0))
    assert has_own_ids(replace(episode, turns=(ended, *episode.turns[1:])), OWN, VOCABULARY)


def test_ids_of_another_tokenizer_are_known():
    for text in ("<answer>46</answer>", "a", ""):
        ours, theirs = (spelled(r, (*r.encode(text), r.stop_ids[0])) for r in (OWN, OTHER))
        assert has_own_ids(ours, OWN, VOCABULARY) and has_own_ids(theirs, OTHER, VOCABULARY)
        assert not has_own_ids(theirs, OWN, VOCABULARY) and not has_own_ids(ours, OTHER, VOCABULARY)
    many = Renderer(make_tokenizer([" ".join(f"w{n:03d}x" for n in range(400))], 600))
    assert not has_own_ids(spelled(many, (599, *many.stop_ids)), OWN, VOCABULARY)
    assert not has_own_ids(spelled(OWN, (380, *OWN.stop_ids)), OWN, 333)  # the model has no such row
    bare = replace(
        ours, turns=(replace(ours.turns[0], completion_ids=(), logprobs=(), versions=(), text="46"),)
    )
    assert not has_own_ids(bare, OWN, VOCABULARY)  # an answer without tokens


def test_a_file_of_another_tokenizer_is_encoded_by_this_one(tmp_path):
    """The same preferences from texts alone, from own ids, and from ids of another tokenizer, which are counted."""
    own, foreign, texts = [], [], []
    for index in range(3):
        for sample, text in enumerate(("<answer>46</answer>", "no idea")):
            for found, r in ((own, OWN), (foreign, OTHER)):
                episode = spelled(
                    r, (*r.encode(text), r.stop_ids[0]), (*r.encode("a"), r.stop_ids[0]), index=index
                )
                found.append(replace(episode, success=not sample, sample=sample))
            blank = {"prompt_ids": (), "completion_ids": (), "logprobs": (), "versions": ()}
            texts.append(replace(own[-1], turns=tuple(replace(turn, **blank) for turn in own[-1].turns)))
    notes: list[str] = []

    def read(name: str, episodes: list[Episode]) -> list[Example]:
        write_jsonl(tmp_path / name, episodes)
        return read_preferences(tmp_path / name, OWN, VOCABULARY, True, None, notes.append)

    wanted = fingerprint(pairs(own))
    assert (
        fingerprint(read("own.jsonl", own)) == fingerprint(read("texts.jsonl", texts)) == wanted and not notes
    )
    assert fingerprint(pairs(foreign)) != wanted
    assert fingerprint(read("mixed.jsonl", [*own[:2], *foreign[2:]])) == wanted
    (note,) = notes
    assert "4 of the 6 episodes" in note and "ids of another tokenizer" in note and "mixed.jsonl" in note


# -- forms of others -------------------------------------------------------------------------------

USER, GOOD, BAD = (
    {"role": role, "content": text}
    for role, text in (("user", "2+2?"), ("assistant", "4"), ("assistant", "5"))
)
COMPARED = [
    {"prompt": "2+2?", "chosen": "4", "rejected": "5"},
    {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
    {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    {"prompt": "2+2?", "chosen": [USER, GOOD], "rejected": [USER, BAD], "messages": [USER, GOOD]},
    {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
    {"prompt": "2+2?", "chosen": GOOD, "rejected": BAD, "score_chosen": 9.0},
    {"conversations": [{"from": "human", "value": "2+2?"}], "chosen": {"from": "gpt", "value": "4"},
     "rejected": {"from": "gpt", "value": "5"}},
]  # fmt: skip


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize("line", COMPARED)
def test_comparisons_in_all_their_forms_are_the_same_pairs(line, suffix, tmp_path):
    path = tmp_path / f"x.{suffix}"
    lines = [line, json.loads(json.dumps(line).replace("2+2?", "What is 2+2?"))]
    if suffix == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        import pyarrow

        parquet.write_table(pyarrow.Table.from_pylist(lines), path)
    else:
        path.write_text(json.dumps(lines) if suffix == "json" else "\n".join(map(json.dumps, lines)))
    found = read_preferences(path, OWN, VOCABULARY, True, None, pytest.fail)
    assert [(e.good, e.pair) for e in found] == [(True, 0), (False, 0), (True, 1), (False, 1)]
    for example, text in zip(found, "4545", strict=True):
        (sequence,) = example.sequences
        assert OWN.decode(sequence.ids[sequence.action]) == f"{text}<|im_end|>"
    prompt = OWN.text([Message("user", "2+2?")], ())
    assert OWN.decode(found[0].sequences[0].ids) == f"{prompt}4<|im_end|>"


def test_earlier_answers_and_what_others_say_carry_no_loss(tmp_path):
    before = [{"role": "system", "content": "Add."}, USER, GOOD, {"role": "user", "content": "3+3?"}]
    call = {"role": "assistant", "content": None, "tool_calls": [
        {"type": "function", "function": {"name": "add", "arguments": '{"a": 3}'}}]}  # fmt: skip
    after = [
        call,
        {"role": "tool", "content": "6", "name": "add"},
        {"role": "assistant", "content": [{"type": "text", "text": "6"}]},
    ]
    line = {"chosen": [*before, *after], "rejected": [*before, BAD], "tools": [{"name": "add"}]}
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(line))
    won, lost = read_episodes(path)
    assert (
        [m.role for m in won.turns[0].messages]
        == ["system", "user", "assistant", "user"]
        == [m.role for m in lost.turns[0].messages]
    )
    assert (won.success, lost.success, won.task) == (True, False, lost.task) and won.tools[0].name == "add"
    assert won.turns[0].messages[2].text == "4" and len(won.turns) == 2 and len(lost.turns) == 1
    assert parse_action(won.turns[0].text).tool_calls[0].arguments == {"a": 3}
    (told,) = (example for example in pairs([tokenise(e, OWN) for e in (won, lost)]) if not example.good)
    assert OWN.decode(told.sequences[0].ids[told.sequences[0].action]) == "5<|im_end|>"


def test_labelled_completions_are_single_episodes(tmp_path):
    path = tmp_path / "x.jsonl"
    lines = [
        {"prompt": "2+2?", "completion": "4", "label": True},
        {"prompt": [USER], "completion": [BAD], "label": False},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    found = read_preferences(path, OWN, VOCABULARY, False, None, pytest.fail)
    assert [(example.good, example.pair) for example in found] == [(True, -1), (False, -1)]
    path.write_text("\n".join(json.dumps({k: v for k, v in line.items() if k != "label"}) for line in lines))
    assert [e.success for e in read_episodes(path)] == [True, True]  # as demonstrations
    notes: list[str] = []
    read_preferences(path, OWN, VOCABULARY, False, None, notes.append)
    assert "all of the 2 usable episodes" in notes[0]
    with pytest.raises(
        DemonstrationFault, match=r"2 episodes .* make no pair.*2 successes and 0 failures.*kto"
    ):
        read_preferences(path, OWN, VOCABULARY, True, None, notes.append)


def test_our_own_files_in_other_forms_are_read(tmp_path):
    ways = [spelled(OWN, (*OWN.encode(text), OWN.stop_ids[0])) for text in ("46", "45")]
    ways = [replace(e, success=not n, sample=n) for n, e in enumerate(ways)]
    write_jsonl(tmp_path / "x.jsonl", ways)
    write_sharegpt(tmp_path / "s.jsonl", ways)
    write_parquet(tmp_path / "x.parquet", ways)
    found = {
        fingerprint(read_preferences(tmp_path / name, OWN, VOCABULARY, True, None, pytest.fail))
        for name in ("x.jsonl", "s.jsonl", "x.parquet")
    }
    assert found == {fingerprint(pairs(ways))}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"prompt": "2+2?", "chosen": "4"}, "it has one alone"),
        ({"chosen": "4", "rejected": "5"}, "no prompt before chosen and rejected: give the task as 'prompt'"),
        ({"chosen": [USER, GOOD], "rejected": [{**USER, "content": "?"}, BAD]}, "nothing in common"),
        ({"prompt": [USER, GOOD], "chosen": [GOOD], "rejected": [BAD]}, "ends with the model speaking"),
        ({"prompt": "2+2?", "completion": "4", "label": "good"}, "label is 'good'"),
        ({"prompt": "2+2?", "chosen": 4, "rejected": 5}, "'chosen' is neither a text nor a list"),
        ({"prompt": "2+2?", "chosen": [3], "rejected": [BAD]}, "3 is no message"),
        ({"prompt": "2+2?"}, "its keys are prompt; what is read are .*'prompt' with 'completion'"),
        ({"question": "2+2?", "answer": "4"}, "its keys are question, answer; what is read are episodes"),
        ({}, "its keys are none"),
    ],
)
def test_what_is_not_read_is_told_with_what_is(line, words, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"prompt": "2+2?", "completion": "4"}) + "\n" + json.dumps(line) + "\n")
    with pytest.raises(ValueError, match=rf"x\.jsonl, line 2: not a conversation \(.*{words}"):
        list(read_episodes(path))


def test_a_file_without_anything_to_compare_is_a_sentence(tmp_path):
    def lack(name: str, episodes: list[Episode], paired: bool = True, longest: int | None = None) -> str:
        write_jsonl(tmp_path / name, episodes)
        with pytest.raises(DemonstrationFault) as fault:
            read_preferences(tmp_path / name, OWN, VOCABULARY, paired, longest, pytest.fail)
        return str(fault.value)

    one = spelled(OWN, (*OWN.encode("46"), OWN.stop_ids[0]))
    assert "empty.jsonl holds no episodes: name a file" in lack("empty.jsonl", [])
    assert (
        "the 2 episodes" in (said := lack("lost.jsonl", [one, one])) and "0 successes and 2 failures" in said
    )
    assert "none of the 1 episodes" in lack("cut.jsonl", [spelled(OWN, OWN.encode("46"))], paired=False)
    assert "longer than preference.longest=2 tokens" in lack("long.jsonl", [one], longest=2)


# -- runs ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sampled(tmp_path_factory) -> Path:
    """The run folder of a policy that sampled and compared."""
    folder = tmp_path_factory.mktemp("runs") / "sampled"
    assert train("quickstart", [*SMALL, *GUESS, "algo=dpo"], None, folder) == 0
    return folder


def file_of(run: Path) -> Path:
    return run / "episodes" / "preference" / "000000.jsonl"


def test_a_run_learns_the_texts_of_another_tokenizers_episodes(sampled, tmp_path, capsys):
    episodes = list(read_jsonl(file_of(sampled)))
    foreign = [replace(e, turns=tokenise(e, OTHER).turns) for e in episodes]
    blank = {"prompt_ids": (), "completion_ids": (), "logprobs": (), "versions": ()}
    texts = [replace(e, turns=tuple(replace(turn, **blank) for turn in e.turns)) for e in episodes]
    for name, found in (("foreign", foreign), ("texts", texts)):
        write_jsonl(tmp_path / f"{name}.jsonl", found)
        overrides = [*SMALL, *GUESS, "algo=dpo", f"preference.data={tmp_path / name}.jsonl"]
        assert train("quickstart", overrides, None, tmp_path / name) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert out.count("hold ids of another tokenizer") == (name == "foreign")
    one, two = (rows(tmp_path / name, "preference") for name in ("foreign", "texts"))
    assert [bare(row) for row in one] == [bare(row) for row in two] and one[0]["pairs"] > 0


def test_an_empty_file_stops_a_run_before_anything_is_trained(tmp_path):
    empty, run = tmp_path / "empty.jsonl", tmp_path / "run"
    empty.touch()
    overrides = [*SMALL, *GUESS, "algo=dpo", "preference.steps=3"]
    with pytest.raises(DemonstrationFault, match=r"^preference\.data: .*empty\.jsonl holds no episodes"):
        train("quickstart", [*overrides, f"preference.data={empty}"], None, run)
    assert not run.exists()


def test_a_checkpoint_made_without_examples_goes_on_with_some(sampled, tmp_path, monkeypatch):
    """As checkpoints are that were written before an empty file was refused."""
    overrides = [*SMALL, *GUESS, "algo=dpo", "preference.steps=4", f"preference.data={file_of(sampled)}"]
    stop_after(2, monkeypatch)
    with pytest.raises(RuntimeError, match="power"):
        train("quickstart", overrides, None, tmp_path / "run")
    monkeypatch.undo()
    (folder,) = (tmp_path / "run" / "checkpoints").glob("preference-step-*")
    state = torch.load(folder / "trainer.pt", weights_only=True)
    nothing = torch.zeros(0, dtype=torch.float64)
    torch.save(state | {"stage": {"ref": nothing, "others": nothing}}, folder / "trainer.pt")
    assert train(None, [], tmp_path / "run") == 0
    assert len(rows(tmp_path / "run", "preference")) == 4


def test_another_file_in_the_midst_of_a_round_is_refused(sampled, tmp_path, monkeypatch):
    data, run = tmp_path / "data.jsonl", tmp_path / "run"
    shutil.copy(file_of(sampled), data)
    overrides = [*SMALL, *GUESS, "algo=kto", "preference.steps=4", f"preference.data={data}"]
    stop_after(2, monkeypatch)
    with pytest.raises(RuntimeError, match="power"):
        train("quickstart", overrides, None, run)
    monkeypatch.undo()
    assert train("quickstart", overrides, None, tmp_path / "whole") == 0
    alone, other = tmp_path / "alone", tmp_path / "other.jsonl"
    shutil.copytree(run, alone)
    episodes = list(read_jsonl(data))
    usables = [e for e in episodes if usable(e, None)]
    for changed in (usables[1:], [replace(e, success=not e.success) for e in episodes]):
        write_jsonl(other, changed)
        with pytest.raises(RunFault, match=r"these are not the \d+ examples .*resume with the same file"):
            train(None, [f"preference.data={other}"], run)
    assert train(None, [f"preference.data={data}"], run) == 0
    data.unlink()
    assert train(None, [], alone) == 0  # the run has its own copy
    for folder in (run, alone):
        one, two = (weights(f / "policy") for f in (folder, tmp_path / "whole"))
        assert all(torch.equal(one[key], two[key]) for key in one)


def stop_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RunFolder.log

    def broken(self: RunFolder, found: dict) -> None:
        if found["stage"] == "preference" and found["step"] == steps:
            raise RuntimeError("the power fails")
        log(self, found)

    monkeypatch.setattr(RunFolder, "log", broken)


@pytest.mark.parametrize("stage", ["preference", "sft"])
def test_runs_learn_from_trls_files(stage, tmp_path):
    path = tmp_path / "x.jsonl"
    lines = [{"prompt": f"{n}+1?", "chosen": str(n + 1), "rejected": "no"} for n in range(4)]
    path.write_text("\n".join(map(json.dumps, lines)))
    overrides = [*SMALL, "algo=kto" if stage == "preference" else "algo=sft", f"{stage}.data={path}"]
    assert train("quickstart", overrides, None, tmp_path / "run") == 0
    found = rows(tmp_path / "run", stage)
    assert len(found) == 2 and all(row["loss"] > 0 for row in found)
    if stage == "preference":
        assert [row["examples"] for row in found] == [8, 8]
    else:
        kept = list(read_jsonl(tmp_path / "run" / "episodes" / "demonstrations.jsonl"))
        assert [e.turns[0].text for e in kept] == ["1", "2", "3", "4"]


# -- metrics ---------------------------------------------------------------------------------------


class Scored:
    """A learner whose sums are told, and which takes no step."""

    def __init__(self, *sums: list[float]) -> None:
        self.sums = iter(sums)

    def score(self, sequences, temperature):
        return [torch.tensor([value]) for value in next(self.sums)]

    def step(self, sequences, *_):
        from gymrl.rl.learner import StepResult

        return StepResult(0.0, 0.5, 9, 4, False, {})


def stepped(
    name: str, sums: list[float], ref: list[float], good: list[bool], crossed: list[float] = ()
) -> dict:
    sequence = pairs([
        replace(spelled(OWN, OWN.encode("4") + OWN.stop_ids), success=success) for success in (True, False)
    ])[0].sequences  # fmt: skip
    examples = [Example(sequence, side) for side in good]
    learner = Scored(sums, list(crossed))
    others = examples[: len(crossed)]
    return preference_step(
        learner, examples, torch.tensor(ref).double(), find("preference", name), {}, 1e-3, 1.0, others,
        torch.zeros(len(crossed), dtype=torch.float64),
    )  # fmt: skip


def test_a_step_on_pairs_tells_how_both_sides_moved():
    got = stepped("dpo", [-1.0, -5.0, -3.0, -2.0], [-2.0, -3.0, -3.5, -4.0], [True, False] * 2)
    want = {
        "rewards/chosen": 0.75, "rewards/rejected": 0.0, "logps/chosen": -2.0, "logps/rejected": -3.5, "margin": 0.75,
        "accuracy": 0.5,
    }  # fmt: skip
    assert {key: got[key] for key in want} == pytest.approx(want) and "kl/episode" not in got


def test_a_step_on_single_episodes_tells_its_level_and_who_is_on_which_side_of_it():
    good = [True, True, False, False]
    got = stepped("kto", [-1.0, -2.0, -2.0, -4.0], [-2.0, -2.25, -2.125, -3.0], good, [0.75, 0.25])
    want = {
        "rewards/chosen": 0.625, "rewards/rejected": -0.4375, "logps/chosen": -1.5, "logps/rejected": -3.0,
        "kl/episode": 0.5, "accuracy": 0.75,
    }  # fmt: skip
    assert {key: got[key] for key in want} == pytest.approx(want) and "margin" not in got
    alone = stepped("kto", [-1.0], [-2.0], [True], [-3.0])
    assert "rewards/rejected" not in alone and alone["kl/episode"] == 0 and alone["accuracy"] == 1
