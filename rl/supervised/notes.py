"""NAT, negative-aware training (Wang et al. 2024, Learning From Failure): a note on the task says whether what follows
succeeded, so that failures can be learnt from too; whoever wants success asks with the note of success."""

from __future__ import annotations

from dataclasses import replace

from gymrl.agents.records import Episode, Turn
from gymrl.agents.rendering import Conversation, Renderer
from gymrl.envs.records import Message, Observation


def with_note(messages: tuple[Message, ...], note: str) -> tuple[Message, ...]:
    """A task's messages, the note after the text of the last one."""
    if not note or not messages:
        return messages
    return (*messages[:-1], replace(messages[-1], text=f"{messages[-1].text}\n{note}"))


def noted(episode: Episode, note: str, renderer: Renderer) -> Episode:
    """The episode as if its task had held the note: other prompts, the sampled ids and all that belongs to them as they
    are. `messages` stay what the environment said."""
    if not note:
        return episode
    conversation = Conversation(renderer)
    turns: list[Turn] = []
    for turn in episode.turns:
        messages = turn.messages if turns else with_note(turn.messages, note)
        prompt = conversation.observe(Observation(messages, turn.tools if turns else episode.tools))
        conversation.said(turn.completion_ids)
        turns.append(replace(turn, prompt_ids=prompt.new_ids, segment=prompt.segment))
    return replace(episode, turns=tuple(turns))
