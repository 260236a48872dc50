"""The wire between a program and its worker processes: length-prefixed pickles over a socket pair, and the program's
end of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import queue
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

HEADER = struct.Struct(">Q")
PART = 2**14
"""Bytes that are read at once, room for most messages: memory for more is fetched anew for each, and given back."""


def frame(message: Any) -> bytes:
    """A message on the wire: its length in 8 bytes, then its pickle. Raises whatever pickle raises."""
    body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return HEADER.pack(len(body)) + body


def take_frames(buffer: bytearray) -> Iterator[Any]:
    """Cut the whole messages off the buffer, one by one."""
    while len(buffer) >= HEADER.size:
        end = HEADER.size + HEADER.unpack_from(buffer)[0]
        if len(buffer) < end:
            return
        with memoryview(buffer) as view, view[HEADER.size : end] as body:
            message = pickle.loads(body)
        del buffer[:end]
        yield message


class Ear:
    """A descriptor of the wire that one event loop listens on. It is closed at the latest with its loop."""

    fd = -1

    def __init__(self, fd: int) -> None:
        self.fd = os.dup(fd)

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    __del__ = close


class Wire:
    """The program's end of a socket pair. `hear` is called with each message that comes.

    Sending never blocks. A message is read by an event loop that was told to `listen`, which saves the way through
    another thread; several may listen. What no loop reads in time, for its own work or because it has stopped, is for
    `read`, from any thread.
    """

    def __init__(self, hear: Callable[[Any], None], broken: Callable[[Exception], None]) -> None:
        self._hear, self._broken = hear, broken
        self.socket, self.theirs = socket.socketpair()
        self.ended = False
        """Whether the other side has closed its end, and all it said is read."""
        self._ears: dict[asyncio.AbstractEventLoop, Ear] = {}
        self._reading = threading.Lock()
        self._sending = threading.Lock()
        self._buffer = bytearray()
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._queued = 0
        """Messages in the outbox that are not yet sent."""
        self._writer: threading.Thread | None = None

    def listen(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have the loop that runs here read what comes; telling it twice does nothing."""
        if loop in self._ears:
            return
        with self._reading:
            if self.ended:
                return
            for other in list(self._ears):
                if other.is_closed():
                    self._ears.pop(other).close()
            ear = self._ears[loop] = Ear(self.socket.fileno())
        loop.add_reader(ear.fd, self._heard, loop)

    def send(self, message: bytes) -> None:
        """Send at once what the pipe takes, if nothing waits before it; the rest is for a thread, which is started
        when there is a rest for the first time."""
        with self._sending:
            if not self._queued:
                try:
                    message = message[self.socket.send(message, socket.MSG_DONTWAIT) :]
                except BlockingIOError:
                    pass
                except OSError:  # the process is gone, as the reader will find
                    return
            if message:
                self._queued += 1
                self._outbox.put(message)
                if self._writer is None:
                    self._writer = threading.Thread(target=self._write, name="gymrl-env-writer", daemon=True)
                    self._writer.start()

    def read(self) -> bool:
        """Read what there is, without waiting for more; whether there was anything."""
        heard, most = False, PART
        with self._reading:
            while not self.ended:
                try:
                    part = self.socket.recv(most, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    break
                except ConnectionError:
                    part = b""
                if not part:
                    self.ended = True
                    break
                heard = True
                self._buffer += part
                for message in take_frames(self._buffer):
                    self._hear(message)
                if len(part) < most:
                    break
                most = min(4 * most, 2**20)
        return heard

    def close(self) -> None:
        """Give back all descriptors, those of the loops as soon as they turn. Blocks for what is being sent."""
        self.ended = True
        with self._sending:
            self._outbox.put(None)
            writer = self._writer
        if writer is not None:
            writer.join()
        with self._reading:
            for loop in list(self._ears):
                if loop.is_closed():
                    self._ears.pop(loop).close()
                else:
                    with contextlib.suppress(
                        RuntimeError
                    ):  # it was closed this moment, and the ear goes with it
                        loop.call_soon_threadsafe(self._leave, loop)
        self.socket.close()

    def _heard(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            self.read()
        except Exception as error:
            self._broken(error)
        if self.ended:
            self._leave(loop)

    def _leave(self, loop: asyncio.AbstractEventLoop) -> None:
        """On the loop: listen no longer."""
        if (ear := self._ears.pop(loop, None)) is not None:
            loop.remove_reader(ear.fd)
            ear.close()

    def _write(self) -> None:
        while (message := self._outbox.get()) is not None:
            try:
                self.socket.sendall(message)
            except OSError:
                return
            with self._sending:
                self._queued -= 1
