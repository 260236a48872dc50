"""One byte stream instead of a control socket and the descriptors that ride on it, for an engine on another machine.

Either end has a Unix socket that it treats as its control socket, and a relay behind it. What is said goes over the
stream in frames; for each descriptor that would travel there is a numbered channel, with a pipe at the worker's end.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading

from gymrl.sandboxes.inside import protocol

FRAME = struct.Struct("<cIII")
"""kind, channel, number of channels that are opened (SAY only), length of the data that follow."""
HELLO, SAY, DATA, END = b"!", b"c", b"d", b"."
"""The stream is there; bytes of the control socket; bytes of a channel; a channel's end. With SAY come first the
numbers and directions of channels, each one OPENED."""
OPENED = struct.Struct("<I?")
"""Number, and whether the worker is the one that writes."""
PART = 2**16


def write(fd: int, data: bytes | bytearray | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def fill(fd: int, place: bytearray) -> bool:
    """Fill a buffer, and leave no copy in this process's memory; whether the stream did not end before."""
    view = memoryview(place)
    try:
        while view:
            size = os.readv(fd, [view])
            if not size:
                return False
            view = view[size:]
        return True
    finally:
        view.release()


def read(fd: int, size: int) -> bytes:
    """So many bytes, or fewer at the end."""
    data = bytearray()
    while len(data) < size and (part := os.read(fd, min(2**20, size - len(data)))):
        data += part
    return bytes(data)


class Relay:
    """The worker's end: threads of its process between a stream (two descriptors) and a socket, whose other end is the
    worker's control socket. Threads, since no program can see, signal or be taken for one."""

    def __init__(self, source: int, sink: int) -> None:
        self.source, self.sink = source, sink
        self.control, self.near = socket.socketpair()
        self._lock = threading.Lock()
        self._outputs: dict[int, int] = {}  # by descriptor: the channel
        self._inputs: dict[int, int] = {}  # by channel: the descriptor
        self._part = memoryview(bytearray(PART))
        self._called, self._call = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def start(self) -> None:
        """Wait for the caller's word, since what is written before it may be lost, and begin."""
        if read(self.source, FRAME.size)[:1] != HELLO:
            os._exit(1)
        for work in (self._down, self._up):
            threading.Thread(target=work, daemon=True).start()

    def _down(self) -> None:
        """From the stream to the worker."""
        try:
            while len(head := read(self.source, FRAME.size)) == FRAME.size:
                kind, channel, opened, size = FRAME.unpack(head)
                data = bytearray(size)
                if not fill(self.source, data):
                    break
                if kind == SAY:
                    self._say(data, opened)
                    protocol.forget(data)
                elif kind == DATA and channel in self._inputs:
                    with contextlib.suppress(BrokenPipeError):
                        write(self._inputs[channel], data)
                    protocol.forget(data)
                elif kind == END and channel in self._inputs:
                    os.close(self._inputs.pop(channel))
        except OSError:
            pass
        with contextlib.suppress(OSError):
            self.near.shutdown(socket.SHUT_RDWR)  # the worker takes it for its caller's end

    def _say(self, data: bytearray, opened: int) -> None:
        theirs = []
        for i in range(opened):
            channel, writes = OPENED.unpack_from(data, i * OPENED.size)
            reader, writer = os.pipe2(os.O_CLOEXEC)
            theirs.append(writer if writes else reader)
            if writes:
                os.set_blocking(reader, False)
                with self._lock:
                    self._outputs[reader] = channel
            else:
                self._inputs[channel] = writer
        with memoryview(data)[opened * OPENED.size :] as said:
            sent = socket.send_fds(self.near, [said], theirs) if theirs else 0
            for fd in theirs:
                os.close(fd)
            os.write(self._call, b"1")
            with said[sent:] as rest:
                self.near.sendall(rest)

    def _up(self) -> None:
        """From the worker to the stream. What a run printed goes before its outcome."""
        buffer = memoryview(bytearray(PART))
        while True:
            poller = select.poll()
            with self._lock:
                outputs = list(self._outputs)
            for fd in (*outputs, self.near.fileno(), self._called):
                poller.register(fd, select.POLLIN)
            ready = {fd for fd, _ in poller.poll()}
            try:
                if self._called in ready:
                    os.read(self._called, PART)
                heard = self.near.recv_into(buffer) if self.near.fileno() in ready else None
                said = None if heard is None else buffer[:heard]
                if said is not None:
                    with self._lock:
                        outputs = list(self._outputs)
                for fd in outputs if said is not None else ready.intersection(outputs):
                    self._pass(fd, 64 if said is not None else 1)
                if heard == 0:
                    return
                if said:
                    self._frame(SAY, 0, said)
            except OSError:
                return

    def _frame(self, kind: bytes, channel: int, data: memoryview) -> None:
        """Pass on what is in a buffer, and forget it."""
        write(self.sink, FRAME.pack(kind, channel, 0, len(data)))
        write(self.sink, data)
        protocol.forget(data)

    def _pass(self, fd: int, times: int) -> None:
        channel = self._outputs[fd]
        for _ in range(times):
            try:
                size = os.readv(fd, [self._part])
            except BlockingIOError:
                return
            self._frame(DATA if size else END, channel, self._part[:size])
            if not size:
                with self._lock:
                    del self._outputs[fd]
                os.close(fd)
                return


def standard() -> socket.socket:
    """A control socket whose other end is this process's standard input and output, which are nobody else's from now
    on."""
    source, sink = (os.dup(fd) for fd in (0, 1))
    nothing = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1):
        os.dup2(nothing, fd)
    os.close(nothing)
    relay = Relay(source, sink)
    relay.start()
    return relay.control
