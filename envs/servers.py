"""What is said to models on servers: their address, and the key, neither of which may tell a secret to a record."""

from __future__ import annotations

import os
import re

KEY = "OPENAI_API_KEY"
USER = (
    "a server's URL holds a user or a password (what stands before the @), which every record of a run would show: "
    f"write http://HOST:PORT/v1#MODEL and set {KEY} to what the server asks for"
)
_HOST = re.compile(r"([^:\[\]]+|\[[^\[\]]*\])(:\d+)?")


def names_user(url: str) -> bool:
    """Whether there is an @ where a user is written. A password may hold /, ? and #, which end the host for whoever
    reads the URL: what is left before them is then no port."""
    rest = url.partition("://")[2]
    host = re.split("[/?#]", rest, maxsplit=1)[0]
    return "@" in host or ("@" in rest and not _HOST.fullmatch(host))


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
