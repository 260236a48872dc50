"""Demonstrations: the oracle's episodes, or those of a file, as tokens of the policy that is to learn from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from gymrl.agents.episodes import read_episodes
from gymrl.agents.parsers import with_calls
from gymrl.agents.players import Job, ScriptedAgent
from gymrl.agents.records import Episode, Turn
from gymrl.agents.rendering import Conversation, Renderer
from gymrl.agents.rollout import RolloutSettings, rollout
from gymrl.envs.records import Observation
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
