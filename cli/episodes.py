"""`gymrl episodes`: look into files of episodes, and convert them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gymrl.agents.records import Episode


def episodes(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="FILE.jsonl or FILE.parquet.")],
    parquet: Annotated[Path | None, typer.Option(metavar="OUT", help="Write them as Parquet.")] = None,
    jsonl: Annotated[Path | None, typer.Option(metavar="OUT", help="Write them as JSONL.")] = None,
    show: Annotated[int, typer.Option(metavar="N", min=0, help="Print the first N in full.")] = 0,
) -> None:
    """Count the episodes of a file, print some, or convert the file."""
    from gymrl.agents.episodes import read_jsonl, read_parquet, write_jsonl, write_parquet
    from gymrl.agents.evaluation import summarise
    from gymrl.cli.evaluate import show as show_summary

    if file.is_dir():
        files = sorted(file.glob("episodes/**/*.jsonl") or file.glob("**/*.jsonl"))
        hint = f"a file in it, such as {files[-1]}" if files else "a JSONL or Parquet file of episodes"
        raise typer.BadParameter(f"{file} is a folder: name {hint}")
    if not file.is_file():
        raise typer.BadParameter(f"there is no file {file}")
    found = list(read_parquet(file) if file.suffix == ".parquet" else read_jsonl(file))
    for episode in found[:show]:
        typer.echo(transcript(episode))
    if parquet is not None:
        typer.echo(f"{write_parquet(parquet, found)} episodes written to {parquet}")
    if jsonl is not None:
        typer.echo(f"{write_jsonl(jsonl, found)} episodes written to {jsonl}")
    if parquet is None and jsonl is None and not show:
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
