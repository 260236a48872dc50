"""The headers that a server behind a URL is sent, and keeping secrets out of everything that is written down."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from gymrl.envs.mcp_tools.records import ServerSpec

FIELDS = frozenset({"token_env", "headers", "headers_env"})
SHOWN = "[secret]"
SHORTEST = 6
"""Characters of a secret that is looked for in texts: a shorter one would be found in words that are none."""
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(r"auth|cookie|token|secret|passw|api-?_?key|credential", re.IGNORECASE)


def check_headers(spec: ServerSpec, where: str) -> None:
    """Raises ValueError for what cannot be sent, and for a secret that is written down."""
    if not spec.url:
        if spec.token_env or spec.headers or spec.headers_env:
            raise ValueError(
                f"{where}: headers and tokens are for a server with a url; a command has variables (env)"
            )
        return
    parts = urlsplit(spec.url)
    if parts.username or parts.password or any(_SECRET.search(name) for name, _ in parse_qsl(parts.query)):
        raise ValueError(
            f"{where}: the url holds a secret, which every record of a run would show: put it into an environment "
            "variable and name that in token_env or headers_env"
        )
    names = [*spec.headers, *spec.headers_env, *(["Authorization"] if spec.token_env else [])]
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"{where}: {name!r} is no name of a header")
    if len({name.lower() for name in names}) < len(names):
        raise ValueError(f"{where}: a header is given twice: {', '.join(sorted(names))}")
    for name, value in spec.headers.items():
        if _SECRET.search(name):
            raise ValueError(
                f"{where}: the header {name} is a secret, which every record of a run would show: put it into an "
                f'environment variable and write headers_env = {{ "{name}" = "THE_VARIABLE" }}'
            )
        if not isinstance(value, str) or not _sendable(value):
            raise ValueError(f"{where}: the header {name} is one line of ASCII, not {value!r}")
    for variable in [*spec.headers_env.values(), *([spec.token_env] if spec.token_env else [])]:
        if not isinstance(variable, str) or not _VARIABLE.fullmatch(variable):
            # Not shown, for it may be the secret itself.
            raise ValueError(f"{where}: token_env and headers_env take the names of environment variables")


def sent_headers(spec: ServerSpec) -> tuple[dict[str, str], tuple[str, ...]]:
    """The headers, and the secrets among them. Raises ValueError where a variable is not set or cannot be sent."""
    headers = dict(spec.headers)
    secrets = []
    wanted = {name: (variable, "") for name, variable in spec.headers_env.items()}
    if spec.token_env:
        wanted["Authorization"] = spec.token_env, "Bearer "
    for name, (variable, before) in wanted.items():
        value = os.environ.get(variable, "").strip()
        if not value:
            raise ValueError(
                f"the environment variable {variable}, for the header {name}, is not set: export it"
            )
        if not _sendable(value):
            raise ValueError(f"the environment variable {variable} holds more than one line of ASCII")
        headers[name] = before + value
        secrets.append(value)
    return headers, tuple(sorted(secrets, key=len, reverse=True))


def without(secrets: Iterable[str], text: str) -> str:
    """The text with the secrets left out."""
    for secret in secrets:
        if len(secret) >= SHORTEST:
            text = text.replace(secret, SHOWN)
    return text


def without_deep(secrets: tuple[str, ...], value: Any) -> Any:
    """JSON data with the secrets left out of its texts."""
    if not secrets:
        return value
    if isinstance(value, str):
        return without(secrets, value)
    if isinstance(value, dict):
        return {without(secrets, name): without_deep(secrets, each) for name, each in value.items()}
    return [without_deep(secrets, each) for each in value] if isinstance(value, list) else value


def _sendable(value: str) -> bool:
    return value.isascii() and value.isprintable()
