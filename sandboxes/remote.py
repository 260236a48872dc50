"""Workers in containers of an engine on another machine, reached over the stream that the engine attaches to them.

Nothing of this machine can be bound into such a container, so the driver is baked into an image on top of the one that
is asked for; and no descriptor travels there, so either end has a relay (`inside.relay`).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import select
import socket
import subprocess
import tarfile
import threading
from pathlib import Path
from typing import Any

from gymrl.sandboxes.base import SandboxUnavailable
from gymrl.sandboxes.inside import protocol, relay
from gymrl.sandboxes.inside.relay import FRAME, OPENED

REPOSITORY = "gymrl-sandbox-driver"
INSIDE = Path(__file__).resolve().parent / "inside"


def is_remote(client: Any) -> bool:
    """Whether an engine is reached by TCP and not by a socket of this machine. Raises SandboxUnavailable for other
    ways."""
    address = str(client.api.base_url)
    if address.startswith("http://"):
        return True
    if address == "http+docker://localhost":
        return False
    # The stream is read and written by two threads at once, which the TLS of older Pythons does not bear.
    raise SandboxUnavailable(
        f"a Docker engine by TLS or ssh ({address}) is not supported: forward its port "
        "(ssh -L 2375:/var/run/docker.sock HOST) and set DOCKER_HOST=tcp://127.0.0.1:2375"
    )


def with_driver(client: Any, image: str) -> str:
    """An image of the engine's that is `image` and the driver in /gymrl; it is made if it is not there."""
    import docker

    sources = sorted(INSIDE.glob("*.py"))
    facts = client.images.get(image).id.encode() + b"".join(path.read_bytes() for path in sources)
    name, version = REPOSITORY, hashlib.sha256(facts).hexdigest()[:12]
    with contextlib.suppress(docker.errors.ImageNotFound):
        client.images.get(f"{name}:{version}")
        return f"{name}:{version}"
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for path in sources:
            info = tarfile.TarInfo(f"gymrl/inside/{path.name}")
            info.size, info.mode = path.stat().st_size, 0o644
            tar.addfile(info, io.BytesIO(path.read_bytes()))
    container = client.containers.create(image, ["true"], entrypoint=[], network_mode="none")
    try:
        container.put_archive("/", archive.getvalue())
        container.commit(name, version)
    finally:
        container.remove(force=True)
    return f"{name}:{version}"


class RemoteProcess:
    """A container elsewhere, seen as the process that its worker is: it lives as long as its stream."""

    pid = 0

    def __init__(self, container: Any) -> None:
        self.container, self.ended = container, threading.Event()

    def poll(self) -> int | None:
        return 1 if self.ended.is_set() else None

    def wait(self, timeout: float | None = None) -> int:
        if not self.ended.wait(timeout):
            raise subprocess.TimeoutExpired("container", timeout or 0.0)
        return 1

    def kill(self) -> None:
        with contextlib.suppress(Exception):
            self.container.kill()

    def close(self) -> None:
        self.ended.set()


class Line:
    """The caller's end: a stream of an engine's, and a socket whose other end is a worker's control socket."""

    def __init__(self, stream: Any, far: socket.socket, process: RemoteProcess) -> None:
        self.holder = stream  # keeps the connection open
        self.stream = getattr(stream, "_sock", stream)
        self.stream.settimeout(None)
        self.far, self.process = far, process
        self.words = bytearray()
        self._waiting = bytearray()  # of standard output, not yet taken
        self._lock, self._sending = threading.Lock(), threading.Lock()
        self._writers: dict[int, int] = {}
        self._count = 0

    def start(self) -> None:
        self._receiver = threading.Thread(target=self._down, daemon=True, name="gymrl-remote")
        self._receiver.start()
        threading.Thread(target=self._up, daemon=True, name="gymrl-remote").start()

    def _send(self, kind: bytes, channel: int = 0, opened: int = 0, data: bytes = b"") -> None:
        with self._sending:
            self.stream.sendall(FRAME.pack(kind, channel, opened, len(data)) + data)

    def _up(self) -> None:
        """From the caller to the engine, until the caller closes its socket."""
        readers: dict[int, int] = {}
        try:
            self._send(relay.HELLO)
            going = True
            while going:
                poller = select.poll()
                for fd in (self.far.fileno(), *readers):
                    poller.register(fd, select.POLLIN)
                for fd, _ in poller.poll():
                    if fd == self.far.fileno():
                        going = self._say(readers)
                        continue
                    data = os.read(fd, relay.PART)
                    self._send(relay.DATA if data else relay.END, readers[fd], data=data)
                    if not data:
                        del readers[fd]
                        os.close(fd)
        except OSError:
            pass
        with contextlib.suppress(OSError):
            self.stream.shutdown(socket.SHUT_RDWR)
        self.far.close()
        self._receiver.join()  # which may be writing to one of these
        for fd in (*readers, *self._writers.values()):
            os.close(fd)

    def _say(self, readers: dict[int, int]) -> bool:
        data, fds, _, _ = socket.recv_fds(self.far, relay.PART, 8)
        opened = b""
        while fds and data.startswith(protocol.KILL):  # came late: the descriptors belong to what follows
            self._send(relay.SAY, data=protocol.KILL)
            data = data[1:]
        for fd in fds:
            self._count += 1
            writes = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY
            opened += OPENED.pack(self._count, writes)
            if writes:
                with self._lock:
                    self._writers[self._count] = fd
            else:
                readers[fd] = self._count
        if data:
            self._send(relay.SAY, 0, len(fds), opened + data)
        return bool(data)

    def _down(self) -> None:
        """From the engine to the caller, until the container ends."""
        try:
            while len(head := self._take(FRAME.size)) == FRAME.size:
                kind, channel, _, size = FRAME.unpack(head)
                data = self._take(size)
                if kind == relay.SAY:
                    self.far.sendall(data)
                    continue
                with self._lock:
                    writer = self._writers.get(channel, -1)
                    if kind == relay.END:
                        self._writers.pop(channel, None)
                if writer >= 0 and kind == relay.END:
                    os.close(writer)
                elif writer >= 0:
                    with contextlib.suppress(BrokenPipeError):
                        relay.write(writer, data)
        except OSError:
            pass
        self.process.ended.set()
        for end in (self.far, self.stream):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self.holder.close()

    def _take(self, size: int) -> bytes:
        """So many bytes of the container's standard output, or fewer at the end."""
        while len(self._waiting) < size:
            head = self._exactly(8)
            if len(head) < 8:
                break
            part = self._exactly(int.from_bytes(head[4:], "big"))
            if head[0] == 1:
                self._waiting += part
            else:
                self.words = (self.words + part)[-4096:]
        data = bytes(self._waiting[:size])
        del self._waiting[:size]
        return data

    def _exactly(self, size: int) -> bytes:
        return protocol.receive(self.stream, size)

    def last_words(self) -> str:
        lines = self.words.decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else ""
