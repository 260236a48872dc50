"""Suites: what a leaderboard plays, as data. A suite's hash is over everything that defines its tasks and the play."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import shlex
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gymrl.agents.engines.base import Sampling
from gymrl.envs.registry import entry

FOLDER = Path(__file__).parent / "suites"
FORMAT = 1


class SuiteError(ValueError):
    """A suite cannot be had or played; the text names the mend."""


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class IndexRange(Record):
    """The tasks first, first + 1, ... of a split."""

    first: int = Field(0, ge=0)
    count: int = Field(ge=1)


class SuiteSampling(Record):
    """How a model's tokens are drawn."""

    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(256, ge=1)

    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_p, max_tokens=self.max_tokens)


class Suite(Record):
    """Tasks of one environment and how they are played. `turns` cuts an episode, `samples` are episodes a task."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    title: str
    description: str = ""
    env: str
    env_version: str
    params: dict[str, Any] = {}
    split: str = "test"
    indices: IndexRange | list[int]
    turns: int = Field(ge=1)
    samples: int = Field(1, ge=1)
    seed: int = 0
    sampling: SuiteSampling = SuiteSampling()
    hash: str = ""

    def task_indices(self) -> list[int]:
        if isinstance(self.indices, IndexRange):
            return list(range(self.indices.first, self.indices.first + self.indices.count))
        return list(self.indices)

    def content_hash(self) -> str:
        """16 hexadecimal digits over everything but the names: two suites of one hash play the same."""
        data = self.model_dump(mode="json", exclude={"name", "title", "description", "hash"})
        data |= {"indices": self.task_indices(), "format": FORMAT}
        text = json.dumps(data, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def shipped() -> dict[str, Path]:
    """The suites that come with the package, by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.toml"))}


def read_suite(name: str | Path, results: Path | None = None) -> Suite:
    """The suite of that name or TOML file, its hash and environment not yet checked. Raises SuiteError, which knows a
    user's own suite by what lies in the folder `results`."""
    path = shipped().get(str(name)) or Path(name)
    if not path.is_file():
        if results is not None and any((results / name).glob("*.json")):
            raise SuiteError(
                f"unknown suite {str(name)!r}: its results are in {results / name}, but a suite of your own is named "
                f"by its file, such as {name}.toml"
            )
        near = difflib.get_close_matches(str(name), shipped(), 1, 0.4)
        hint = (
            f"did you mean {near[0]!r}?"
            if near
            else f"there are {', '.join(shipped())}; a suite of your own is named by its TOML file."
        )
        raise SuiteError(f"unknown suite {str(name)!r}: {hint}")
    try:
        suite = Suite.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SuiteError(f"the suite {path} is no TOML file: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        # pydantic names the kind too, of a key that takes several: indices.IndexRange.first
        where = [str(part) for part in first["loc"] if part != IndexRange.__name__]
        what = f"there is no such key{_hint(where)}" if first["type"] == "extra_forbidden" else first["msg"]
        raise SuiteError(f"the suite {path} is wrong at {'.'.join(where)!r}: {what}") from error
    if len(set(suite.task_indices())) != len(suite.task_indices()) or not suite.task_indices():
        raise SuiteError(f"the suite {path} names no task or one task twice: check its indices")
    if suite.samples > 1 and suite.sampling.temperature == 0:
        # The interval would count one and the same episode as several.
        raise SuiteError(
            f"the suite {path} takes {suite.samples} samples of each task at temperature 0, which are all the same "
            "episode: write samples = 1, or a sampling.temperature above 0"
        )
    return suite


SECTIONS: dict[str, type[BaseModel]] = {"indices": IndexRange, "sampling": SuiteSampling}


def _hint(where: list[str]) -> str:
    """The nearest key of the section that a wrong one stands in, else one of that name in another section."""
    keys = {name: list(section.model_fields) for name, section in SECTIONS.items()} | {
        "": list(Suite.model_fields)
    }
    own = where[0] if len(where) > 1 else ""
    for section in (own, *(name for name in keys if name != own)):
        near = difflib.get_close_matches(where[-1], keys.get(section, []), 1, 0.6)
        if near:
            return f", did you mean {'.'.join(filter(None, (section, near[0])))!r}"
    return ""


def sealed_suite(name: str | Path, results: Path | None = None) -> Suite:
    """A suite whose hash is that of its content. Raises SuiteError."""
    suite = read_suite(name, results)
    digest = suite.content_hash()
    if not suite.hash:
        raise SuiteError(
            f'the suite {suite.name!r} has no hash yet: write the line hash = "{digest}" above its first section, or '
            f'hash = "" and run `gymrl leaderboard hash {shlex.quote(str(name))} --update`'
        )
    if suite.hash != digest:
        raise SuiteError(
            f"the suite {suite.name!r} was changed: its content has the hash {digest}, the file says "
            f"{suite.hash!r}; restore it, or name it anew and run `gymrl leaderboard hash FILE --update`"
        )
    return suite


def load_suite(name: str | Path, results: Path | None = None) -> Suite:
    """A suite that may be played: its hash is that of its content, and its environment is the version it names.

    Raises SuiteError, UnknownEnvironment, and MissingExtra.
    """
    suite = sealed_suite(name, results)
    found = entry(suite.env)
    here = found.cls().version
    if here != suite.env_version:
        raise SuiteError(
            f"the suite {suite.name!r} is for version {suite.env_version} of {suite.env}, and this is {here}: "
            f"results would not compare; take the {_release(found.source)} that the suite was made for, or a newer "
            "suite"
        )
    return suite


def _release(package: str) -> str:
    try:
        return f"{package} (here {version(package)})"
    except PackageNotFoundError:  # registered by a module
        return f"version of {package}"


def update_hash(path: Path) -> str:
    """Write the hash of its content into a suite's file; returns it. For those who make suites."""
    digest = read_suite(path).content_hash()
    text, found = re.subn(r'(?m)^hash = ".*"$', f'hash = "{digest}"', path.read_text(encoding="utf-8"))
    if found != 1:
        raise SuiteError(
            f'{path} has no line of its own that reads hash = "": add one above the first [section]'
        )
    path.write_text(text, encoding="utf-8")
    return digest
