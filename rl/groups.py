"""A group: rollouts of one task, which are compared with each other and with nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gymrl.agents.records import Episode
from gymrl.envs.records import TaskSpec


@dataclass(frozen=True)
class Group:
    """Episodes of one TaskSpec. Raises ValueError for an episode of another task."""

    task: TaskSpec
    episodes: tuple[Episode, ...]

    def __post_init__(self) -> None:
        for episode in self.episodes:
            if episode.task != self.task:
                raise ValueError(
                    f"a group is one task: {episode.task} does not belong to the group of {self.task}"
                )


def group_by_task(episodes: Sequence[Episode]) -> list[Group]:
    """Groups in the order in which their tasks first appear; one task sampled as two groups stays two."""
    members: dict[tuple[int, TaskSpec], list[Episode]] = {}
    for episode in episodes:
        members.setdefault((episode.group, episode.task), []).append(episode)
    return [Group(task, tuple(found)) for (_, task), found in members.items()]
