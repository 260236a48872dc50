"""Deciding whether a session's process may fork: only when its worker has just told it to (seccomp notification)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct

_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_NOTICE, _VERDICT = 80, struct.Struct("<QqiI")
_CONTINUE = 1


class Questions:
    """The listener of one filter. Every process of the session asks here before it starts another."""

    def __init__(self, listener: int) -> None:
        self.listener = listener

    def answer(self, allow: bool) -> None:
        """Answer one question that is there."""
        notice = bytearray(_NOTICE)
        with contextlib.suppress(OSError):  # whoever asked is dead
            fcntl.ioctl(self.listener, _RECEIVE, notice)
            (number,) = struct.unpack_from("<Q", notice)
            verdict = _VERDICT.pack(number, 0, 0, _CONTINUE) if allow else _VERDICT.pack(number, 0, -1, 0)
            fcntl.ioctl(self.listener, _SEND, verdict)

    def close(self) -> None:
        os.close(self.listener)
