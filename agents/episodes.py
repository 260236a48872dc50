"""Episodes on disk: JSONL (one episode a line) and Parquet, readable without gymrl."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gymrl.agents.records import Episode, episode_from_json, episode_to_json
from gymrl.agents.sharegpt import parsed
from gymrl.agents.trl import episodes_of, read_conversations


def json_text(data: Any, **options: Any) -> str:
    """Data as JSON, with the options of `json.dumps`. What is not finite is null, as JSON has no word for it."""
    try:
        return json.dumps(data, allow_nan=False, **options)
    except ValueError as error:
        if "JSON compliant" not in str(error):
            raise  # it holds itself
        return json.dumps(_finite(data), allow_nan=False, **options)


def _finite(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    if hasattr(data, "tolist"):
        return _finite(data.tolist())
    return None if isinstance(data, float) and not math.isfinite(data) else data


def jsonl_line(episode: Episode) -> str:
    """An episode as one line of JSONL, its newline included."""
    data = episode_to_json(episode)
    line = json_text(data, ensure_ascii=False, default=_plain)
    try:
        line.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which UTF-8 does not have and JSON writes as \\udXXX
        line = json_text(data, default=_plain)
    return line + "\n"


def _plain(value: Any) -> Any:
    """JSON for what an environment put into its info: numbers and arrays of numpy, else the value's text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def write_jsonl(path: str | Path, episodes: Iterable[Episode]) -> int:
    """Write episodes, whole file or nothing (a temporary file is renamed); returns how many."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    count = 0
    with draft.open("w", encoding="utf-8") as file:
        for episode in episodes:
            file.write(jsonl_line(episode))
            count += 1
    draft.replace(path)
    return count


def read_jsonl(path: str | Path) -> Iterator[Episode]:
    """Read episodes. Raises ValueError naming file and line where one is broken."""
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield episode_from_json(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}, line {number}: not an episode ({error})") from error


def read_episodes(path: str | Path) -> Iterator[Episode]:
    """Read a file of episodes in any of their forms: Parquet (.parquet), one JSON list of conversations (.json), or
    JSONL, as its first line says; of conversations and comparisons (ShareGPT, TRL) those of `gymrl.agents.trl`. Raises
    ValueError where it is broken."""
    path = Path(path)
    if path.suffix == ".parquet":
        return read_parquet(path)
    return read_conversations(path) if path.suffix == ".json" or not _ours(path) else read_jsonl(path)


def _ours(path: Path) -> bool:
    """Whether the first line that is not empty is an episode, or broken, rather than something of others."""
    with path.open("rb") as file:
        first = next((line for line in file if line.strip()), b"")
    try:
        data = json.loads(first)
    except ValueError:
        return True
    return not isinstance(data, dict) or "format" in data


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
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, _schema(pyarrow)), draft)
    draft.replace(path)
    return len(rows)


def _schema(pa: Any) -> Any:
    """The columns, whatever the episodes hold: files of different runs can be read as one table."""
    task = pa.struct(
        [("env", pa.string()), ("version", pa.string()), ("split", pa.string()), ("index", pa.int64()),
         ("params", pa.string())]
    )  # fmt: skip
    turn = pa.struct(
        [("messages", pa.string()), ("text", pa.string()), ("tool_calls", pa.string()), ("segment", pa.int32()),
         ("prompt_ids", pa.list_(pa.int32())), ("completion_ids", pa.list_(pa.int32())),
         ("logprobs", pa.list_(pa.float64())), ("versions", pa.list_(pa.int64())), ("stop", pa.string()),
         ("reward", pa.float64()), ("void", pa.bool_()), ("timings", pa.string()), ("info", pa.string()),
         ("tools", pa.string())]
    )  # fmt: skip
    return pa.schema(
        [("format", pa.int32()), ("task", task), ("policy", pa.string()), ("group", pa.int64()),
         ("sample", pa.int64()), ("seed", pa.int64()), ("ending", pa.string()), ("reason", pa.string()),
         ("success", pa.bool_()), ("reward", pa.float64()), ("metrics", pa.string()), ("tools", pa.string()),
         ("turns", pa.list_(turn)), ("closing", pa.string())]
    )  # fmt: skip


def read_parquet(path: str | Path) -> Iterator[Episode]:
    """Read what `write_parquet` wrote, or conversations and comparisons of others. Raises ValueError naming file and
    row where one of those is broken."""
    import pyarrow.parquet

    path = Path(path)
    table = pyarrow.parquet.read_table(path)
    rows = table.to_pylist()
    if "format" not in table.column_names:
        found = (("row", number, lambda row=row: row) for number, row in enumerate(rows, 1))
        for episodes in parsed(path, found, episodes_of):
            yield from episodes
        return
    for row in rows:
        yield episode_from_json(_nested(row))


_OPEN = ("info", "timings", "tool_calls", "messages", "tools")
"""Fields without a fixed schema: JSON text inside Parquet."""


def _flat(data: dict[str, object]) -> dict[str, object]:
    turns = [
        {
            key: json.dumps(value, default=_plain) if key in _OPEN else _clean(value)
            for key, value in turn.items()
        }
        for turn in data["turns"]  # type: ignore[attr-defined]
    ]
    text = {key: json.dumps(data[key]) for key in ("metrics", "tools", "closing")}
    return {**{key: _clean(value) for key, value in data.items()}, **text, "turns": turns}


def _clean(value: object) -> object:
    """Text without halves of surrogate pairs, which Parquet's UTF-8 does not have."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


def _nested(row: dict[str, object]) -> dict[str, object]:
    turns = [
        {key: json.loads(value) if key in _OPEN and value else value for key, value in turn.items()}
        for turn in row["turns"]  # type: ignore[attr-defined]
    ]
    data = {key: json.loads(str(row[key])) for key in ("metrics", "tools", "closing")}
    return {**row, **data, "turns": turns}
