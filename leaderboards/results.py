"""Results of suites on disk: one JSON file a run, its episodes beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from gymrl.agents.evaluation import Evaluation
from gymrl.agents.players import Usage
from gymrl.leaderboards.statistics import Comparison, compare
from gymrl.leaderboards.suite import Record, Suite

FORMAT = 1
PUBLISHED = Path(__file__).parent / "published"
RESULTS = Path("results")


class ResultError(ValueError):
    """A result cannot be read or compared; the text names the mend."""


class Outcome(Record):
    """What one episode came to; both are null where it was invalid."""

    index: int
    sample: int
    success: bool | None
    reward: float | None


class Result(Record):
    """One policy's run of one suite. `policy_digest` is over a checkpoint's files ('' where there are none), `date`
    UTC in ISO form, `episodes` the name of the JSONL file beside the result ('' where it was left out); engine, dtype
    and max_context say how a checkpoint was served, the last two as they were asked for. `usage` is what a server of
    chat completions says the whole run took (None where none was asked, or where the run went on with episodes of an
    earlier one)."""

    format: int = FORMAT
    suite: str
    hash: str
    env: str
    env_version: str
    policy: str
    policy_digest: str = ""
    engine: str = ""
    dtype: str = ""
    max_context: int | None = None
    command: str
    date: str
    versions: dict[str, str]
    summary: Evaluation
    usage: Usage | None = None
    outcomes: list[Outcome]
    episodes: str = ""

    @property
    def valid(self) -> int:
        """How many episodes are."""
        return self.summary.episodes - sum(self.summary.invalid.values())

    @property
    def player(self) -> tuple[str, str, str, str, int | None]:
        """What the outcomes are of: another one has a line of its own."""
        return self.policy, self.policy_digest, self.engine, self.dtype, self.max_context

    def by_task(self) -> dict[int, list[bool | None]]:
        """The successes of every task's samples."""
        found: dict[int, list[bool | None]] = {}
        for outcome in sorted(self.outcomes, key=lambda o: (o.index, o.sample)):
            found.setdefault(outcome.index, []).append(outcome.success)
        return found


def write_result(path: Path, result: Result) -> None:
    """Write a result, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    data = result.model_dump(mode="json")
    outcomes = data.pop("outcomes")
    if data["usage"] is None:
        del data["usage"]
    text = json.dumps(data, indent=2)[:-2]
    lines = ",\n".join(f"    {json.dumps(outcome)}" for outcome in outcomes)  # a line an episode
    draft.write_text(f'{text},\n  "outcomes": [\n{lines}\n  ]\n}}\n', encoding="utf-8")
    os.replace(draft, path)


def read_result(path: Path) -> Result:
    """Read a result. Raises ResultError if there is none in the file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        result = Result.model_validate(data)
    except FileNotFoundError:
        raise ResultError(
            f"there is no result {path}: `gymrl leaderboard show` lists what there is"
        ) from None
    except (OSError, ValueError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise ResultError(f"{path} is no result of `gymrl leaderboard run` ({reason})") from error
    if result.format != FORMAT:
        raise ResultError(f"{path} has the result format {result.format}: this gymrl reads {FORMAT}")
    valid = [outcome.success for outcome in result.outcomes if outcome.success is not None]
    share = sum(valid) / len(valid) if valid else 0.0
    if len(valid) != result.valid or abs(share - result.summary.success) > 1e-9:
        raise ResultError(
            f"{path} says a success of {result.summary.success:g} in {result.valid} episodes and its outcomes come to "
            f"{share:g} in {len(valid)}: run the suite again"
        )
    return result


def find_results(suite: Suite, folder: Path = RESULTS) -> tuple[list[tuple[Path, Result]], list[str]]:
    """The results of exactly this suite, published ones and those in `folder`, the newest of every policy; and a
    sentence for every file that is left out because it is broken or of another hash."""
    newest: dict[object, tuple[Path, Result]] = {}
    empty: list[tuple[Path, Result]] = []
    left_out: list[str] = []
    for path in _files(suite.name, folder):
        try:
            result = read_result(path)
        except ResultError as error:
            left_out.append(str(error))
            continue
        if result.hash != suite.content_hash():
            left_out.append(f"{path} is of the suite with the hash {result.hash}, not {suite.content_hash()}")
            continue
        before = newest.get(result.player)
        if before is None or (bool(before[1].valid), before[1].date) <= (bool(result.valid), result.date):
            newest[result.player] = (path, result)
        if not result.valid:
            empty.append((path, result))
    for path, result in empty:
        if newest[result.player][1].valid:
            left_out.append(f"{path} has no valid episode; another result of the policy is shown")
    return list(newest.values()), left_out


def _files(suite: str, folder: Path) -> Iterable[Path]:
    yield from sorted((PUBLISHED / suite).glob("*.json"))
    yield from sorted((folder / suite).glob("*.json"))


def same_result(a: Result, b: Result) -> bool:
    """Whether both are of one run; a published copy only lacks the episodes."""
    return a.model_copy(update={"episodes": ""}) == b.model_copy(update={"episodes": ""})


def compare_results(a: Result, b: Result) -> Comparison:
    """Pair two results task by task. Raises ResultError if they are not of the same tasks."""
    if a.hash != b.hash:
        raise ResultError(
            f"results of different tasks do not compare: {a.suite} ({a.hash}) and {b.suite} ({b.hash}); run both "
            "policies on one suite"
        )
    found = compare(a.by_task(), b.by_task())
    if not found.tasks:
        raise ResultError(
            "no task has valid episodes in both results: run the suite again with the one that has none"
        )
    return found
