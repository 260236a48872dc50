"""Math problems of others: a JSONL file, or the folder of a Hugging Face dataset (Parquet, Arrow or JSONL files)."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from gymrl.envs.code_interpreter.problems import Problem
from gymrl.envs.marks import boxed
from gymrl.envs.records import SPLIT_SHARES, TaskSpec, stable_hash

QUESTIONS = ("question", "problem", "prompt", "query", "input")
ANSWERS = (
    "answer",
    "final_answer",
    "ground_truth",
    "reward_model",
    "expected_answer",
    "solution",
    "output",
    "target",
)
"""The fields in which questions and answers are looked for, in this order."""
_SPLITS = (("train", "train"), ("val", "val"), ("dev", "val"), ("test", "test"))
_PATTERNS = ("*.jsonl", "*.parquet", "*.arrow")


class FileProblems:
    """The problems of a file or folder. `sizes` says how many each split has.

    Where the folder has files for a test split (`test-00000-of-00001.parquet`, `validation/...`), files say the splits,
    less what an earlier one of test, val and train holds already, and val is a tenth of train if there is none. Else
    every problem belongs to the split that its text's hash says: 80 % to train, 10 % each to val and test. Questions
    that are equal but for case and white space count once.

    Raises ValueError for what cannot be read, naming file and line.
    """

    def __init__(self, path: str, question: str = "", answer: str = "") -> None:
        place = Path(path).expanduser()
        if not path or not place.exists():
            raise ValueError(
                f"problems = {path!r}: there is no such file or folder; name a JSONL file, the folder of a dataset, or "
                "'procedural'"
            )
        self.by_split = _load(str(place.resolve()), _stamp(place), question, answer)
        self.sizes = {split: len(found) for split, found in self.by_split.items()}
        if not self.sizes["train"]:
            raise ValueError(
                f"{path} holds no problem for training: it has {sum(self.sizes.values())} in all"
            )

    def draw(self, task: TaskSpec, rng: random.Random) -> Problem:
        return self.by_split[task.split][task.index]


def _stamp(place: Path) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of the files, for the cache to see that they changed."""
    return tuple((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in _files(place))


def _files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    files = sorted(file for pattern in _PATTERNS for file in place.rglob(pattern))
    if not files:
        raise ValueError(
            f"{place} holds none of {', '.join(_PATTERNS)}: name the folder of a dataset, or a JSONL file"
        )
    return files


@lru_cache(8)
def _load(path: str, stamp: Any, question: str, answer: str) -> Mapping[str, tuple[Problem, ...]]:
    place = Path(path)
    named: dict[str, list[Problem]] = {"test": [], "val": [], "train": [], "": []}
    for file in _files(place):
        split = _split_of(file.relative_to(place) if place.is_dir() else Path())
        for where, row in _rows(file):
            named[split].append(_problem(row, where, question, answer))
    if not named["test"]:
        named[""] += named.pop("train")
    found: dict[str, list[Problem]] = {"train": [], "val": [], "test": []}
    seen: set[str] = set()
    for split, problems in named.items():
        for problem in problems:
            key = " ".join(problem.question.casefold().split())
            if key in seen:
                continue
            seen.add(key)
            share = stable_hash("math", key) % 100
            own = split or next(name for name, (low, high) in SPLIT_SHARES.items() if low <= share < high)
            if split == "train" and not named["val"] and share >= 90:
                own = "val"
            found[own].append(problem)
    return {split: tuple(problems) for split, problems in found.items()}


def _split_of(name: Path) -> str:
    """The split that a file's name, or that of a folder above it, says; empty where none does."""
    for part in (name.name, *name.parent.parts):
        for word, split in _SPLITS:
            if re.match(rf"{word}(idation|_|-|\.|$)", part, re.IGNORECASE):
                return split
    return ""


def _rows(file: Path) -> Iterator[tuple[str, Any]]:
    """Rows with the place that they stand at."""
    if file.suffix in (".parquet", ".arrow"):
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise ImportError('reading Parquet needs pyarrow: pip install "gymrl[parquet]"') from error
        if file.suffix == ".parquet":
            table = pyarrow.parquet.read_table(file)
        else:  # as datasets' save_to_disk writes it
            with pyarrow.memory_map(str(file)) as source:
                table = pyarrow.ipc.open_stream(source).read_all()
        yield from ((f"{file}, row {number}", row) for number, row in enumerate(table.to_pylist(), 1))
        return
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield f"{file}, line {number}", json.loads(line)
                except UnicodeDecodeError as error:
                    raise ValueError(f"{file}, line {number}: not UTF-8 ({error.reason})") from None
                except ValueError as error:
                    raise ValueError(f"{file}, line {number}: not JSON ({error})") from None


def _problem(row: Any, where: str, question: str, answer: str) -> Problem:
    if not isinstance(row, Mapping):
        raise ValueError(f"{where}: a problem is a JSON object with a question and an answer")
    asked = _text(row, (question,) if question else QUESTIONS, where, "question")
    right = final(_text(row, (answer,) if answer else ANSWERS, where, "answer"))
    if not right:
        raise ValueError(f"{where}: its answer is empty")
    return Problem(
        asked, right, str(row.get("kind") or row.get("type") or "file"), solution=str(row.get("code") or "")
    )


def _text(row: Mapping[str, Any], names: tuple[str, ...], where: str, what: str) -> str:
    for name in names:
        value = row.get(name)
        if isinstance(value, Mapping):  # {"ground_truth": ..., "style": "rule"}
            value = value.get("ground_truth")
        if isinstance(value, list) and value and isinstance(value[-1], Mapping):  # chat messages
            value = value[-1].get("content")
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            value = str(value)
        if isinstance(value, str) and value.strip():
            return value.strip()
    raise ValueError(
        f"{where}: no {what} in {', '.join(names)}; it has {', '.join(map(str, row)) or 'nothing'} "
        f"(name the field by the parameter {what!r})"
    )


def final(text: str) -> str:
    r"""The final answer in a solution: what is in its last \boxed{}, or after its last ####; else the text itself."""
    inside = boxed(text)
    if inside is not None:
        return inside
    return text.rpartition("####")[2].strip().strip("$").strip()
