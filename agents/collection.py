"""Collecting episodes into a file, so that nothing that was played is lost when it is interrupted."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gymrl.agents.episodes import jsonl_line, write_jsonl, write_parquet
from gymrl.agents.players import Agent, Job
from gymrl.agents.records import Episode, episode_from_json
from gymrl.agents.rollout import RolloutSettings, rollout
from gymrl.envs.workers import EnvPool


class CollectionFault(ValueError):
    """The file cannot be collected into; the text names the mend."""


@dataclass(frozen=True)
class Collection:
    """What was played, in the jobs' order, and how many episodes the file holds."""

    episodes: list[Episode]
    written: int


def journal_of(path: Path) -> Path:
    """Where episodes are kept, each as it ends, until the collection is complete."""
    return path.with_name(path.name + ".played")


@dataclass(frozen=True)
class Begun:
    """A collection into `path`. about: what it is of, as JSON data; done: its valid episodes so far."""

    path: Path
    about: Mapping[str, Any]
    done: Sequence[Episode]


def require_new(path: Path) -> None:
    """Raise CollectionFault for a file that nothing can be collected into."""
    if path.suffix not in (".jsonl", ".parquet"):
        raise CollectionFault(f"{path} is neither FILE.jsonl nor FILE.parquet: name one of these")
    if path.is_dir():
        raise CollectionFault(f"{path} is a folder: name a file in it")
    if path.exists() and not journal_of(path).exists():
        raise CollectionFault(f"{path} is there already and complete: name another file, or remove it")


def begin(path: Path, jobs: Sequence[Job], about: Mapping[str, Any]) -> Begun:
    """What an interrupted collection has left for these jobs in its journal. Writes nothing.

    Raises CollectionFault where the journal is of another collection than `about` says, and for a file that is there
    and complete.
    """
    require_new(path)
    journal = journal_of(path)
    head, found = _read(journal)
    if head is not None and head != about:
        other = next(key for key in [*about, *head] if about.get(key) != head.get(key))
        raise CollectionFault(
            f"{journal} was begun with {other} = {head.get(other)!r}, not {about.get(other)!r}: give what it was begun "
            "with to go on, or remove it to begin anew"
        )
    wanted = {(job.task, job.sample) for job in jobs}
    if beyond := sum((episode.task, episode.sample) not in wanted for episode in found):
        raise CollectionFault(
            f"{journal} holds {beyond} episodes that this command does not ask for: ask for as many tasks as before, "
            "or remove it to begin anew"
        )
    return Begun(path, about, found)


async def play(
    begun: Begun, jobs: Sequence[Job], agent: Agent, pool: EnvPool, settings: RolloutSettings,
    on_episode: Callable[[Episode], None] | None = None,
) -> list[Episode]:  # fmt: skip
    """Play the jobs that are not done; all their episodes, in the jobs' order. Each is in the journal as soon as it
    ends, which stays; `on_episode` is called for those that are done, too."""
    journal = journal_of(begun.path)
    journal.parent.mkdir(parents=True, exist_ok=True)
    draft = journal.with_name(journal.name + ".part")
    head = json.dumps({"collection": dict(begun.about)}) + "\n"
    draft.write_text(head + "".join(map(jsonl_line, begun.done)), encoding="utf-8")
    draft.replace(journal)
    played = {(episode.task, episode.sample): episode for episode in begun.done}
    left = [job for job in jobs if (job.task, job.sample) not in played]
    with journal.open("a", encoding="utf-8") as file:

        def keep(episode: Episode) -> None:
            file.write(jsonl_line(episode))
            file.flush()
            if on_episode:
                on_episode(episode)

        for episode in begun.done:
            if on_episode:
                on_episode(episode)
        for episode in await rollout(left, agent, pool, settings, keep):
            played[episode.task, episode.sample] = episode
    return [played[job.task, job.sample] for job in jobs]


async def collect(
    begun: Begun, jobs: Sequence[Job], agent: Agent, pool: EnvPool, settings: RolloutSettings,
    won: bool = False, on_episode: Callable[[Episode], None] | None = None,
) -> Collection:  # fmt: skip
    """Play the jobs that are not done (see `begin`) and write the valid episodes to the file, JSONL or Parquet; with
    `won` only those that succeeded.

    The journal goes when the file is whole and no episode was invalid: else the same collection plays those again.
    """
    episodes, path = await play(begun, jobs, agent, pool, settings, on_episode), begun.path
    chosen = [episode for episode in episodes if episode.valid and (episode.success or not won)]
    written = 0
    if any(episode.valid for episode in episodes):
        written = (write_parquet if path.suffix == ".parquet" else write_jsonl)(path, chosen)
        if all(episode.valid for episode in episodes):
            journal_of(path).unlink()
    return Collection(episodes, written)


def _read(journal: Path) -> tuple[Any, list[Episode]]:
    """What the journal is of (None where there is none) and its valid episodes; its last line may be cut."""
    head, found = None, []
    try:
        lines = journal.read_bytes().splitlines()
    except FileNotFoundError:
        return None, []
    for number, line in enumerate(lines):
        try:
            data = json.loads(line)
            if number == 0:
                head = data["collection"]
            elif (episode := episode_from_json(data)).valid:
                found.append(episode)
        except (ValueError, KeyError, TypeError) as error:
            if 0 < number == len(lines) - 1:
                break
            raise CollectionFault(
                f"{journal}, line {number + 1}, is broken ({error}): remove it to begin anew"
            ) from error
    return head, found
