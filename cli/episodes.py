"""`gymrl episodes`: look into files of episodes, and convert them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gymrl.agents.records import Episode


def episodes(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="FILE.jsonl, FILE.parquet, or ShareGPT.")],
    parquet: Annotated[Path | None, typer.Option(metavar="OUT", help="Write them as Parquet.")] = None,
    jsonl: Annotated[Path | None, typer.Option(metavar="OUT", help="Write them as JSONL.")] = None,
    sharegpt: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Write them as ShareGPT JSONL: text alone, no tokens.")
    ] = None,
    won: Annotated[bool, typer.Option("--won", help="Only the episodes that succeeded.")] = False,
    show: Annotated[int, typer.Option(metavar="N", min=0, help="Print the first N in full.")] = 0,
) -> None:
    """Count the episodes of a file, print some, or convert the file."""
    from gymrl.agents.episodes import read_episodes, write_jsonl, write_parquet
    from gymrl.agents.evaluation import summarise
    from gymrl.agents.sharegpt import write_sharegpt
    from gymrl.cli.evaluate import show as show_summary

    if file.is_dir():
        files = sorted(file.glob("episodes/**/*.jsonl") or file.glob("**/*.jsonl"))
        hint = f"a file in it, such as {files[-1]}" if files else "a JSONL or Parquet file of episodes"
        raise typer.BadParameter(f"{file} is a folder: name {hint}")
    if not file.is_file():
        raise typer.BadParameter(f"there is no file {file}")
    found = [episode for episode in read_episodes(file) if episode.success or not won]
    for episode in found[:show]:
        typer.echo(transcript(episode))
    if parquet is not None:
        typer.echo(f"{write_parquet(parquet, found)} episodes written to {parquet}")
    if jsonl is not None:
        typer.echo(f"{write_jsonl(jsonl, found)} episodes written to {jsonl}")
    if sharegpt is not None:
        typer.echo(f"{write_sharegpt(sharegpt, found)} conversations written to {sharegpt}")
    if parquet is None and jsonl is None and sharegpt is None and not show:
        show_summary(str(file), summarise(found))


def transcript(episode: Episode) -> str:
    """An episode to read."""
    task = episode.task
    lines = [f"== {task.env} {task.split} {task.index}, {episode.policy or 'no policy'}"]
    for number, turn in enumerate(episode.turns, 1):
        lines += [f"{message.role}: {message.text}" for message in turn.messages]
        lines.append(f"assistant: {turn.text}")
        lines += [f"  calls {call.name}({dict(call.arguments)})" for call in turn.tool_calls]
        notes = [f"turn {number}", f"reward {turn.reward:g}", f"{len(turn.completion_ids)} tokens", turn.stop]
        lines.append(f"  [{', '.join(notes + ['void'] * turn.void)}]")
    lines += [f"{message.role}: {message.text}" for message in episode.closing]
    reward = f", reward {episode.reward:g}" if episode.valid else ""
    lines.append(f"-- {episode.ending}{' (' + episode.reason + ')' if episode.reason else ''}{reward}\n")
    return "\n".join(lines)
