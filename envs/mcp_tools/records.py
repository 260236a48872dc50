"""Tasks on a server of tools, as frozen data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Use:
    """A call of a tool."""

    tool: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def words(self) -> str:
        return f"{self.tool}({json.dumps(dict(self.arguments), ensure_ascii=False)[:200]})"


@dataclass(frozen=True)
class Expected:
    """What a text or a value has to be. `value` is a list of texts or JSON for `equals` (one of them fits), a pattern
    for `regex` (of all of it), a number for `number`, and nothing for `error` and `done`."""

    kind: Literal["equals", "regex", "number", "error", "done"]
    value: Any = None
    tolerance: float = 1e-6


@dataclass(frozen=True)
class StateCheck:
    """A call that is made after the agent's answer, and what it has to return."""

    use: Use
    expected: Expected


@dataclass(frozen=True)
class McpTask:
    """One task. `setup` is called before the agent begins; `must_call` are calls that the agent has to make without an
    error (with these arguments, or among others); `solution` is what a perfect player calls before the answer `said`,
    None where the task does not tell."""

    id: str
    prompt: str
    answer: Expected
    setup: tuple[Use, ...] = ()
    state: tuple[StateCheck, ...] = ()
    must_call: tuple[Use, ...] = ()
    solution: tuple[Use, ...] | None = None
    said: str = "done"
    where: str = ""

    def problem(self) -> str:
        """All that makes the task another one than others, as a text."""
        parts = (
            self.prompt, _plain(self.answer), [*map(_call, self.setup)], [*map(_call, self.must_call)],
            [(_call(check.use), _plain(check.expected)) for check in self.state],
        )  # fmt: skip
        return json.dumps(parts, sort_keys=True)


def _call(use: Use) -> tuple[Any, ...]:
    return use.tool, dict(use.arguments)


def _plain(expected: Expected) -> tuple[Any, ...]:
    return expected.kind, expected.value, expected.tolerance


@dataclass(frozen=True)
class ServerSpec:
    """How to reach a server: a command that speaks over stdin and stdout, or a URL. `hide` are tools that the agent is
    not offered. In a command `{python}` is this Python, `{dir}` a fresh folder for each process. `fresh`: whether every
    episode needs a server (or session) of its own. With a URL, `headers` are sent as they are, and `token_env` and
    `headers_env` name the environment variables that hold a bearer token and headers' values: secrets themselves are
    in no record."""

    command: tuple[str, ...] = ()
    url: str = ""
    hide: tuple[str, ...] = ()
    folder: str | None = None
    environ: Mapping[str, str] = field(default_factory=dict)
    fresh: bool = True
    token_env: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    headers_env: Mapping[str, str] = field(default_factory=dict)

    def words(self) -> str:
        return self.url or " ".join(self.command)
