"""Task files: TOML (`[server]`, and a `[[task]]` for each task) or JSONL (a task a line, perhaps a server before)."""

from __future__ import annotations

import difflib
import json
import math
import random
import re
import tomllib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from gymrl.envs.mcp_tools.checks import number
from gymrl.envs.mcp_tools.headers import FIELDS, check_headers
from gymrl.envs.mcp_tools.records import Expected, McpTask, ServerSpec, StateCheck, Use
from gymrl.envs.records import SPLIT_SHARES, TaskSpec, stable_hash

_TASK = {"id", "prompt", "split", "setup", "check", "solution"}
_CHECK = {"answer", "answer_regex", "answer_number", "tolerance", "state", "must_call"}
_STATE = {"tool", "arguments", "equals", "regex", "number", "tolerance", "error"}
_HEADER = re.compile(r"^[ \t]*\[\[[ \t]*task[ \t]*\]\]", re.MULTILINE)


class FileTasks:
    """The tasks of a file. `sizes` says how many each split has: a task's own `split`, or else the hash of its id, says
    where it belongs (80 % train, 10 % each val and test).

    Raises ValueError for what cannot be read, naming file and line.
    """

    def __init__(self, path: str) -> None:
        place = Path(path).expanduser()
        if not place.is_file():
            raise ValueError(
                f"tasks = {path!r}: there is no such file; name a .toml or .jsonl file, or 'accounts'"
            )
        stamp = place.stat()
        self.server, self.by_split = _load(str(place.resolve()), stamp.st_size, stamp.st_mtime_ns)
        self.sizes = {split: len(found) for split, found in self.by_split.items()}
        if not any(self.sizes.values()):
            raise ValueError(
                f"{path} holds no task: write [[task]], or a task a line, with a prompt and a check"
            )
        if not self.sizes["train"]:
            raise ValueError(f"{path} has no task for training: give one the split 'train'")

    def draw(self, task: TaskSpec, rng: random.Random) -> McpTask:
        return self.by_split[task.split][task.index]


@lru_cache(8)
def _load(path: str, size: int, changed: int) -> tuple[ServerSpec, Mapping[str, tuple[McpTask, ...]]]:
    place = Path(path)
    try:
        text = place.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{place} is not UTF-8 ({error.reason} at byte {error.start})") from None
    server = ServerSpec(folder=str(place.parent))
    found: dict[str, list[McpTask]] = {split: [] for split in SPLIT_SHARES}
    ids: dict[str, str] = {}
    problems: dict[str, str] = {}
    for where, row in _rows_toml(place, text) if place.suffix == ".toml" else _rows_jsonl(place, text):
        if "server" in row:
            server = _server(_fields(row, where, {"server"}, set())["server"], where, str(place.parent))
            continue
        task, split = _task(row, where)
        if task.id in ids:
            raise ValueError(
                f"{where}: a second task with the id {task.id!r}, as at {ids[task.id]}: give it another id"
            )
        if (same := problems.setdefault(task.problem(), where)) != where:
            raise ValueError(f"{where}: the same task as at {same}, but for its id: leave one out")
        ids[task.id] = where
        share = stable_hash("mcp", task.id) % 100
        split = split or next(name for name, (low, high) in SPLIT_SHARES.items() if low <= share < high)
        found[split].append(task)
    return server, {split: tuple(tasks) for split, tasks in found.items()}


def _rows_toml(place: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"line (\d+)", str(error))
        at = f", line {line[1]}" if line else f", line {text.count(chr(10)) + 1}"
        raise ValueError(f"{place}{at}: not TOML ({error})") from None
    _fields(data, str(place), set(), {"server", "task"})
    if "server" in data:
        line_of_server = next(
            (n for n, row in enumerate(text.splitlines(), 1) if re.match(r"\s*\[?\s*server\b", row)), 1
        )
        yield f"{place}, line {line_of_server}", {"server": data["server"]}
    tasks = data.get("task", [])
    if not isinstance(tasks, list):
        raise ValueError(f"{place}: write [[task]] with two brackets before each task")
    lines = [text.count("\n", 0, found.end()) + 1 for found in _HEADER.finditer(text)]
    for count, row in enumerate(tasks):
        at = f"line {lines[count]}" if len(lines) == len(tasks) else f"task {count + 1}"
        yield f"{place}, {at}", row


def _rows_jsonl(place: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for count, line in enumerate(text.split("\n"), 1):
        where = f"{place}, line {count}"
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{where}: not JSON ({error})") from None
            if not isinstance(row, dict):
                raise ValueError(f"{where}: a task is an object with a prompt and a check")
            yield where, row


def _task(row: Any, where: str) -> tuple[McpTask, str]:
    row = _fields(row, where, {"prompt", "check"}, _TASK)
    prompt = _text(row["prompt"], f"{where}: prompt")
    split = row.get("split", "")
    if split not in ("", *SPLIT_SHARES):
        raise ValueError(f"{where}: split is one of {', '.join(SPLIT_SHARES)}, not {split!r}")
    check = _fields(row["check"], f"{where}: check", set(), _CHECK)
    expected = _answer(check, f"{where}: check")
    state = tuple(
        StateCheck(_use(found, f"{where}: check.state", _STATE), _state(found, f"{where}: check.state"))
        for found in _list(check.get("state", []), f"{where}: check.state")
    )
    must_call = _uses(check.get("must_call", []), f"{where}: check.must_call")
    if expected.kind == "done" and not state and not must_call:
        raise ValueError(f"{where}: check asks for nothing: give it an answer, a state or must_call")
    setup = _uses(row.get("setup", []), f"{where}: setup")
    said, solution = _said(expected), None
    if "solution" in row:
        given = _fields(row["solution"], f"{where}: solution", set(), {"calls", "answer"})
        solution = _uses(given.get("calls", []), f"{where}: solution.calls")
        said = str(given.get("answer", said))
        if not said:
            raise ValueError(f"{where}: solution: write the answer that fits the pattern")
    name = _text(row["id"], f"{where}: id") if "id" in row else prompt
    return McpTask(name, prompt, expected, setup, state, must_call, solution, said, where), split


def _answer(check: Mapping[str, Any], where: str) -> Expected:
    kinds = [name for name in ("answer", "answer_regex", "answer_number") if name in check]
    if len(kinds) > 1:
        raise ValueError(f"{where}: {' and '.join(kinds)} are two ways to say one thing: take one")
    if not kinds:
        return Expected("done")
    value = check[kinds[0]]
    if kinds[0] == "answer_regex":
        return Expected("regex", _pattern(value, f"{where}: answer_regex"))
    if kinds[0] == "answer_number":
        return Expected("number", *_number(value, check.get("tolerance", 1e-6), f"{where}: answer_number"))
    values = value if isinstance(value, list) else [value]
    if not values or not all(
        isinstance(v, (str, int, float)) and not isinstance(v, bool) and str(v).strip() for v in values
    ):
        raise ValueError(f"{where}: answer is a text, or a list of texts one of which is right")
    return Expected("equals", [str(v) for v in values])


def _said(expected: Expected) -> str:
    """The answer that an expectation tells; '' where it does not."""
    if expected.kind == "equals":
        return str(expected.value[0])
    if expected.kind == "number":
        return f"{expected.value:.15g}"
    return "done" if expected.kind == "done" else ""


def _state(row: Mapping[str, Any], where: str) -> Expected:
    kinds = [name for name in ("equals", "regex", "number", "error") if name in row]
    if len(kinds) != 1:
        raise ValueError(
            f"{where}: say what {row['tool']} has to return by one of equals, regex, number, or error = true"
        )
    value = row[kinds[0]]
    if kinds[0] == "error":
        if value is not True:
            raise ValueError(f"{where}: error = true says that the call has to fail; leave it out otherwise")
        return Expected("error")
    if kinds[0] == "regex":
        return Expected("regex", _pattern(value, f"{where}: regex"))
    if kinds[0] == "number":
        return Expected("number", *_number(value, row.get("tolerance", 1e-6), f"{where}: number"))
    return Expected("equals", [_json(value, f"{where}: equals")])


def _server(row: Any, where: str, folder: str) -> ServerSpec:
    where = f"{where}: server"
    row = _fields(row, where, set(), {"command", "url", "hide", "env", "fresh", *FIELDS})
    command, url = row.get("command", []), row.get("url", "")
    if bool(command) == bool(url):
        raise ValueError(f"{where}: give a command or a url, one of the two")
    if not isinstance(command, list) or not all(isinstance(word, str) and word for word in command):
        raise ValueError(f'{where}: command is a list of words, such as ["{{python}}", "server.py"]')
    if not isinstance(url, str) or (url and not url.startswith(("http://", "https://"))):
        raise ValueError(f"{where}: url begins with http:// or https://, not {url!r}")
    hide, environ = row.get("hide", []), row.get("env", {})
    if not isinstance(hide, list) or not all(isinstance(name, str) for name in hide):
        raise ValueError(f"{where}: hide is a list of tools' names")
    if not isinstance(environ, dict) or not all(isinstance(value, str) for value in environ.values()):
        raise ValueError(f"{where}: env is a table of texts")
    fresh = row.get("fresh", True)
    if not isinstance(fresh, bool):
        raise ValueError(f"{where}: fresh is true or false, not {fresh!r}")
    for name in ("headers", "headers_env"):
        if not isinstance(row.get(name, {}), dict):
            raise ValueError(f"{where}: {name} is a table of texts")
    sent = {name: row[name] for name in FIELDS if name in row}
    spec = ServerSpec(tuple(command), url, tuple(hide), folder, environ, fresh, **sent)
    check_headers(spec, where)
    return spec


def _uses(rows: Any, where: str) -> tuple[Use, ...]:
    """Calls; a bare text is a tool's name."""
    listed = [{"tool": row} if isinstance(row, str) else row for row in _list(rows, where)]
    return tuple(_use(row, where, {"tool", "arguments"}) for row in listed)


def _use(row: Any, where: str, known: set[str]) -> Use:
    row = _fields(row, where, {"tool"}, known)
    arguments = row.get("arguments", {})
    if not isinstance(arguments, dict):
        raise ValueError(f"{where}: arguments are a table, not {arguments!r}")
    return Use(_text(row["tool"], f"{where}: tool"), _json(arguments, f"{where}: arguments"))


def _fields(row: Any, where: str, needed: set[str], known: set[str]) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: take a table, not {str(row)[:60]!r}")
    for name in sorted(needed - set(row)):
        raise ValueError(f"{where}: {name!r} is missing")
    for name in row:
        if name not in known | needed:
            near = difflib.get_close_matches(name, known | needed, 1, 0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(sorted(known | needed))}"
            raise ValueError(f"{where}: unknown field {name!r}: {hint}")
    return row


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{where}: take a list, not {str(value)[:60]!r}")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where} is a text, not {value!r}")
    return value


def _pattern(value: Any, where: str) -> str:
    try:
        re.compile(value)
    except (re.error, TypeError) as error:
        raise ValueError(f"{where}: {value!r} is no regular expression ({error})") from None
    return str(value)


def _number(value: Any, tolerance: Any, where: str) -> tuple[float, float]:
    if isinstance(value, str):
        value = number(value)
    for found in (value, tolerance):
        if not isinstance(found, (int, float)) or isinstance(found, bool) or not math.isfinite(found):
            raise ValueError(f"{where}: take a number, and a tolerance that is one")
    return float(value), float(tolerance)


def _json(value: Any, where: str) -> Any:
    """The value as JSON keeps it. Raises ValueError for dates and the like."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        raise ValueError(
            f"{where}: it holds what JSON does not know (a date, nan): write it as a text"
        ) from None
