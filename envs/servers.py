"""What is said to models on servers: their address, and the key, neither of which may tell a secret to a record."""

from __future__ import annotations

import os
import re

KEY = "OPENAI_API_KEY"
USER = (
    "a server's URL holds a user or a password (what stands before the @), which every record of a run would show: "
    f"write http://HOST:PORT/v1#MODEL and set {KEY} to what the server asks for (an @ of the path is written %40)"
)
_HOST = re.compile(r"([^:\[\]]+|\[[^\[\]]*\])(?::(\d+))?")
_PLAIN = re.compile(r"localhost|\d+\.\d+\.\d+\.\d+|\[.*\]")
"""Hosts that nobody takes for a user's name."""
_AT_HOST = re.compile(
    r"@(\[[0-9a-fA-F:.]+\]|localhost|\d+\.\d+\.\d+\.\d+)(:\d{1,5})?([/?#]|$)"
    r"|@[\w.-]+:\d{1,5}([/?#]|$)|(?<!/)@[\w.-]+/v\d+([/?#]|$)"
)
"""An @ with an address after it: one of numbers, a port, or the API's own path."""


def names_user(url: str) -> bool:
    """Whether there is an @ where a user is written. A password may hold /, ? and #, which end the host for whoever
    reads the URL: what is left before them is then no port, or it looks like one (`http://me:12/x@HOST`) and what
    comes after the @ looks like a host. In doubt this says yes: an honest @ in a path can be written as %40."""
    rest = url.partition("://")[2]
    place, mark, tail = (*re.split("([/?#])", rest, maxsplit=1), "", "")[:3]
    if "@" in place or "@" not in tail:
        return "@" in place
    found = _HOST.fullmatch(place)
    if not found or (found[2] and not 80 <= int(found[2]) <= 65535):
        return True
    if _PLAIN.fullmatch(found[1]):
        return False
    dotted = "." in found[1]
    if dotted and not found[2]:  # a server on the internet, whose paths may name anybody
        return False
    if _AT_HOST.search(tail):
        return True
    path = (mark + tail).partition("#")[0]
    return "@" in path and not dotted and re.search(r"/@|/v\d+/.*@", path) is None


def headers() -> dict[str, str]:
    """The key from the environment, if there is one. Raises ValueError for one that no header takes: what is said where
    it would be sent shows it."""
    key = os.environ.get(KEY, "").strip()
    if key and not re.fullmatch("[!-~]+", key):
        raise ValueError(
            f"the key in {KEY} holds a space, a line break or a character that is not ASCII: set it again to the key "
            "alone, in one line"
        )
    return {"Authorization": f"Bearer {key}"} if key else {}
