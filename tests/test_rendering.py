"""Rendering: ids are sampled once and never encoded again; a template that rewrites history starts a segment."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gymrl.agents.parsers import parse_action
from gymrl.agents.rendering import Conversation, Renderer, RenderingFault
from gymrl.envs.calls import tool_calls
from gymrl.envs.marks import answer, boxed, code_blocks
from gymrl.envs.records import Message, Observation, Tool
from gymrl.rl.tiny import make_tokenizer

TOKENIZER = make_tokenizer(
    ["What is 12 + 34?", "```python\nprint(12 + 34)\n```", "<answer>46</answer>"] * 3, 400
)
START = Observation((Message("system", "Be brief."), Message("user", "What is 12 + 34?")))


def renderer(template: str | None = None) -> Renderer:
    tokenizer = make_tokenizer(["abc"], 300) if template else TOKENIZER
    if template:
        tokenizer.chat_template = template
    return Renderer(tokenizer)


def test_a_conversation_is_the_concatenation_of_what_was_shown_and_said():
    r = renderer()
    talk = Conversation(r)
    first = talk.observe(START)
    assert first.ids == first.new_ids and not first.extends and first.segment == 0
    said = (*r.encode("```python\nprint(12 + 34)\n```"), r.stop_ids[0])
    assert talk.said(said) == "```python\nprint(12 + 34)\n```"
    second = talk.observe(Observation.of("46"))
    assert second.extends and second.segment == 0
    assert second.ids == first.ids + said + second.new_ids
    messages = [
        *START.messages,
        Message("assistant", "```python\nprint(12 + 34)\n```"),
        Message("user", "46"),
    ]
    assert r.decode(second.ids) == r.text(messages, ())


def test_a_kept_opening_is_what_rendering_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gymrl.agents.rendering.OPENINGS", 2)
    r = renderer()
    tool = Tool("run", "Runs code.")
    starts = [
        Observation((Message("user", f"What is {n} + 34?"),), tools)
        for n in (12, 34)
        for tools in ((), (tool,))
    ]
    for start in starts * 2:
        for _ in range(2):
            prompt = Conversation(r).observe(start)
            assert prompt.ids == r.encode(r.text(start.messages, start.tools))
    assert len(r._openings) == 2
    picture = Observation((Message("user", "What is 34 + 34?", images=(b"png",)),), (tool,))
    with pytest.raises(RenderingFault, match="text only"):
        Conversation(r).observe(picture)


@settings(max_examples=50)
@given(st.lists(st.lists(st.integers(3, 300), max_size=12), min_size=1, max_size=4), st.booleans())
def test_any_sampled_ids_are_kept_as_they_are(turns, stops):
    """Ids that no encoder would produce (odd merges, broken UTF-8) survive: nothing is decoded and encoded again."""
    r = renderer()
    talk = Conversation(r)
    prompt = talk.observe(START)
    sampled: list[tuple[tuple[int, ...], int]] = []
    for ids in turns:
        said = (*ids, r.stop_ids[0]) if stops else tuple(ids)
        start = len(prompt.ids)
        segment = prompt.segment
        talk.said(said)
        prompt = talk.observe(Observation.of("go on"))
        if prompt.segment == segment:
            assert prompt.ids[start : start + len(said)] == said
        sampled.append((said, segment))
    assert (
        prompt.segment == 0
        or not stops
        or any("\ufffd" in r.decode(s) or r.decode(s).strip() for s, _ in sampled)
    )


def test_a_turn_that_was_cut_off_is_closed_by_the_template_not_by_the_policy():
    r = renderer()
    talk = Conversation(r)
    first = talk.observe(START)
    said = r.encode("```python\nprint(")
    talk.said(said)
    second = talk.observe(Observation.of("cut"))
    assert second.extends
    assert second.new_ids[0] == r.stop_ids[0]
    assert second.ids[: len(first.ids) + len(said)] == first.ids + said


FORGETFUL = (
    "{%- for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content if m.role != 'assistant' or loop.last else m.content.split('</think>')[-1] }}<|im_end|>\n"
    "{%- endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_template_that_rewrites_history_begins_a_segment():
    r = renderer(FORGETFUL)
    talk = Conversation(r)
    first = talk.observe(START)
    talk.said((*r.encode("<think>hm</think>yes"), r.stop_ids[0]))
    second = talk.observe(Observation.of("more"))
    assert not second.extends and second.segment == 1
    assert second.ids == second.new_ids
    assert "<think>" not in r.decode(second.ids) and "<think>" not in r.decode(first.ids)
    talk.said((*r.encode("plain"), r.stop_ids[0]))
    third = talk.observe(Observation.of("and more"))
    assert third.extends and third.segment == 1


def test_tools_are_offered_through_the_template():
    r = renderer()
    shown = r.text([Message("user", "hi")], [Tool("search", "find things")])
    assert '"search"' in shown


def test_what_cannot_be_rendered_names_the_mend():
    bare = make_tokenizer(["abc"], 300)
    bare.chat_template = None
    with pytest.raises(RenderingFault, match="no chat template"):
        Renderer(bare)
    with pytest.raises(RenderingFault, match="text only"):
        renderer().text([Message("user", "look", images=(b"png",))], ())
    picky = renderer("{{ raise_exception('system first') }}")
    with pytest.raises(RenderingFault, match="system first"):
        picky.text([Message("user", "hi")], ())


def test_tokenizers_made_of_the_same_texts_are_the_same():
    texts = ["one two three 123", "two three four 456"] * 4
    assert make_tokenizer(texts, 350).get_vocab() == make_tokenizer(texts, 350).get_vocab()


@given(st.text())
def test_any_text_survives_encoding(text):
    assert renderer().decode(renderer().encode(text)) == text


def test_tool_calls():
    text = 'So: <tool_call>\n{"name": "add", "arguments": {"a": {"b": 1}}}\n</tool_call>'
    text += '<tool_call>{"name": "x"}</tool_call>'
    first, second = tool_calls(text)
    assert (first.name, first.arguments, second.name, second.arguments) == ("add", {"a": {"b": 1}}, "x", {})
    for broken in (
        '<tool_call>{"name": "add"', '<tool_call>{"name": 3}</tool_call>', "<tool_call>{add}</tool_call>",
        '<tool_call>{"name": "a", "arguments": []}</tool_call>',
    ):  # fmt: skip
        assert tool_calls(broken) == ()
    quoted = '<tool_call>{"name": "say", "arguments": {"text": "</tool_call> and <tool_call>{"}} </tool_call>'
    assert [call.arguments for call in tool_calls("<tool_call>{" + quoted)] == [
        {"text": "</tool_call> and <tool_call>{"}
    ]
    assert parse_action('<think><tool_call>{"name": "x"}</tool_call></think>done').tool_calls == ()


@pytest.mark.parametrize(
    "part",
    [
        "<tool_call>{",
        '<tool_call>{"a":"',
        '<tool_call>{"a":{',
        "<think>",
        "<answer>",
        "```python\n",
        "\\boxed{",
    ],
)
def test_a_text_of_nothing_but_openings_is_no_action_and_does_not_hold_up_the_loop(part: str) -> None:
    """What reads it takes a time that grows with its length, not with its square: that would be minutes."""
    text = part * (400_000 // len(part))
    assert parse_action(text).tool_calls == ()
    assert answer(text) is None and boxed(text) is None
    assert isinstance(code_blocks(text), list)
