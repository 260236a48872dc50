"""Episodes on disk: JSONL (one episode a line) and Parquet, readable without gymrl."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from gymrl.agents.records import Episode, episode_from_json, episode_to_json


def write_jsonl(path: str | Path, episodes: Iterable[Episode]) -> int:
    """Write episodes, whole file or nothing (a temporary file is renamed); returns how many."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    count = 0
    with draft.open("w", encoding="utf-8") as file:
        for episode in episodes:
            file.write(json.dumps(episode_to_json(episode), ensure_ascii=False) + "\n")
            count += 1
    draft.replace(path)
    return count


def read_jsonl(path: str | Path) -> Iterator[Episode]:
    """Read episodes. Raises ValueError naming file and line where one is broken."""
    with Path(path).open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield episode_from_json(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}, line {number}: not an episode ({error})") from error


def write_parquet(path: str | Path, episodes: Iterable[Episode]) -> int:
    """Write episodes as Parquet: one row an episode, turns nested, the task's fields in `task`.

    Raises ImportError naming the extra if pyarrow is missing.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError('writing Parquet needs pyarrow: pip install "gymrl[parquet]"') from error
    rows = [_flat(episode_to_json(episode)) for episode in episodes]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return len(rows)


def read_parquet(path: str | Path) -> Iterator[Episode]:
    """Read what `write_parquet` wrote."""
    import pyarrow.parquet

    for row in pyarrow.parquet.read_table(path).to_pylist():
        yield episode_from_json(_nested(row))


_OPEN = ("info", "timings", "tool_calls", "messages")
"""Fields without a fixed schema: JSON text inside Parquet."""


def _flat(data: dict[str, object]) -> dict[str, object]:
    turns = [
        {key: json.dumps(value) if key in _OPEN else value for key, value in turn.items()}
        for turn in data["turns"]  # type: ignore[attr-defined]
    ]
    text = {key: json.dumps(data[key]) for key in ("metrics", "tools", "closing")}
    return {**data, **text, "turns": turns}


def _nested(row: dict[str, object]) -> dict[str, object]:
    turns = [
        {key: json.loads(value) if key in _OPEN else value for key, value in turn.items()}
        for turn in row["turns"]  # type: ignore[attr-defined]
    ]
    data = {key: json.loads(str(row[key])) for key in ("metrics", "tools", "closing")}
    return {**row, **data, "turns": turns}
