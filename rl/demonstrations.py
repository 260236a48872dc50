"""Demonstrations: the oracle's episodes, or those of a file, as tokens of the policy that is to learn from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from gymrl.agents.episodes import read_episodes
from gymrl.agents.parsers import with_calls
from gymrl.agents.players import Job, ScriptedAgent
from gymrl.agents.records import Episode, Turn
from gymrl.agents.rendering import Conversation, Renderer, RenderingFault
from gymrl.agents.rollout import RolloutSettings, rollout
from gymrl.envs.records import Message, Observation
from gymrl.envs.workers import EnvPool


class DemonstrationFault(RuntimeError):
    """The oracle did not win where it has to, or a file holds nothing to learn from."""


async def demonstrate(
    pool: EnvPool, count: int, settings: RolloutSettings, on_episode: Callable[[Episode], None] | None = None
) -> list[Episode]:
    """The oracle's winning episodes on the first `count` training tasks.

    Raises DemonstrationFault if it wins less than half of them, naming the first failure.
    """
    size = pool.template.world.sizes["train"]
    jobs = [Job(pool.task("train", index), index) for index in range(min(count, size))]
    episodes = await rollout(jobs, ScriptedAgent("oracle"), pool, settings, on_episode)
    won = [episode for episode in episodes if episode.valid and episode.success]
    if len(won) * 2 < len(episodes):
        lost = next(episode for episode in episodes if not episode.valid or not episode.success)
        if "has no oracle()" in lost.reason:
            raise DemonstrationFault(
                f"{pool.env_id} has no oracle() to learn from: write one, give a file of episodes (sft.data), or leave "
                'SFT out (stages=["rl"])'
            )
        if not lost.valid:
            raise DemonstrationFault(
                f"{pool.env_id} fails while its oracle plays; {lost.task.split} {lost.task.index}: {lost.reason}"
            )
        raise DemonstrationFault(
            f"the oracle of {pool.env_id} won {len(won)} of {len(episodes)} tasks; the first it did not: "
            f"{lost.task.split} {lost.task.index}, {lost.ending} {lost.reason or ''}".rstrip()
        )
    return won


def read_demonstrations(path: Path) -> list[Episode]:
    """The episodes of a file (JSONL, Parquet or ShareGPT) that succeeded, in its order.

    Raises DemonstrationFault if there are none, ValueError naming file and line where it is broken.
    """
    episodes = list(read_episodes(path))
    won = [episode for episode in episodes if episode.valid and episode.success]
    if not won:
        raise DemonstrationFault(
            f"sft.data: none of the {len(episodes)} episodes in {path} succeeded: collect more, or better ones "
            "(`gymrl collect ID --policy oracle --won`)"
        )
    return won


def tokenise(episode: Episode, renderer: Renderer) -> Episode:
    """An episode with the ids that a policy would have had to say (text and tool calls), each turn closed by the
    end-of-turn id.

    Log-probabilities are 0 and versions -1: nobody sampled them.
    """
    conversation = Conversation(renderer)
    turns: list[Turn] = []
    for turn in episode.turns:
        prompt = conversation.observe(Observation(turn.messages, turn.tools if turns else episode.tools))
        ids = (*renderer.encode(with_calls(turn.text, turn.tool_calls)), renderer.stop_ids[0])
        conversation.said(ids)
        turns.append(
            replace(
                turn,
                prompt_ids=prompt.new_ids,
                completion_ids=ids,
                logprobs=(0.0,) * len(ids),
                versions=(-1,) * len(ids),
                segment=prompt.segment,
            )
        )
    return replace(episode, turns=tuple(turns))


def has_own_ids(episode: Episode, renderer: Renderer, vocabulary: int) -> bool:
    """Whether the ids of an episode are of this tokenizer: below `vocabulary`, the completions spelling the turns'
    texts, and the prompts what the template makes of the messages; or, as notes, dates and other templates change that,
    prompts that hold the messages and the template's opening of an answer."""
    ids = [i for turn in episode.turns for i in turn.prompt_ids + turn.completion_ids]
    if not ids or min(ids) < 0 or max(ids) >= vocabulary:
        return False
    if not all(_spells(turn, renderer) for turn in episode.turns):
        return False
    try:
        if _prompts(episode, renderer) == [turn.prompt_ids for turn in episode.turns]:
            return True
    except RenderingFault:
        return False
    return all(_shows(turn, renderer) for turn in episode.turns)


def _spells(turn: Turn, renderer: Renderer) -> bool:
    """Whether a completion is the turn's text, an end-of-turn or other special token after it aside."""
    ids = turn.completion_ids
    if turn.text in (renderer.spoken(ids), renderer.decode(ids)):
        return True
    last = ids[-1:]
    special = renderer.decode(last) and not renderer.tokenizer.decode(list(last), skip_special_tokens=True)
    return bool(special) and renderer.decode(ids[:-1]) == turn.text


def _prompts(episode: Episode, renderer: Renderer) -> list[tuple[int, ...]]:
    """What the renderer appends before each turn's completion."""
    conversation = Conversation(renderer)
    found: list[tuple[int, ...]] = []
    for turn in episode.turns:
        tools = turn.tools if found else episode.tools
        found.append(conversation.observe(Observation(turn.messages, tools)).new_ids)
        conversation.said(turn.completion_ids)
    return found


def _shows(turn: Turn, renderer: Renderer) -> bool:
    """Whether a prompt's text holds the turn's messages, plain or as JSON, and opens an answer as the template does."""
    shown = renderer.decode(turn.prompt_ids)
    asked = (Message("user", "?"),)
    before, after = (renderer.text(asked, (), generate) for generate in (False, True))
    opening = after.removeprefix(before).strip().partition("\n")[0]
    texts = [m.text.strip() for m in turn.messages if m.role != "assistant"]
    return opening in shown and all(any(form in shown for form in _written(text)) for text in texts)


def _written(text: str) -> tuple[str, ...]:
    """The forms in which templates write a message."""
    return text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]
