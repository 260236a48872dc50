"""What the caller and the worker say to each other over the control socket, and the worker and a session's process.

A request is one byte (descriptors ride on it), REQUEST, the code, and last a nonce. The worker reads the nonce after
it has forked the program, so that no copy of it is in the program's memory, and gives it back with the outcome.
"""

from __future__ import annotations

import _socket
import struct

Socket = _socket.socket
"""Not the module `socket`, most of which is names of constants: a worker without it is smaller to fork."""
pair = _socket.socketpair
MSG_DONTWAIT, SOL_SOCKET, SCM_RIGHTS = _socket.MSG_DONTWAIT, _socket.SOL_SOCKET, _socket.SCM_RIGHTS

REQUEST = struct.Struct("<dQQQQQQ")
"""time-out (s), memory, file size, disk, processes, output, length of the code. Sizes in bytes."""
OUTCOME = struct.Struct("<cid?I16s")
"""cause, exit status (negative: a signal), seconds, whether a session lost its state, length of the value, nonce."""
NONCE = 16

RUN, SESSION, TURN, KILL = b"r", b"s", b"t", b"k"
SNAPSHOT, RESTORE, FORGET = b"n", b"b", b"f"
ATTEND = b"y"
"""To a session's worker: to attend to a turn that the caller has begun itself (below)."""
SHELL, EXEC, GET, PUT, WIPE = b"h", b"x", b"g", b"p", b"w"
"""To a shell: start (stdout, stderr and a stream of the working tree come along), evaluate, read a file, write one
(PATH, the path, the bytes), begin anew."""
READY = b"+"

ENDED, DONE, LEFT = b"e", b"d", b"l"
"""A process ended; a turn was run to its end; a turn called sys.exit."""
TIMEOUT, PROCESSES, MEMORY, DISK, ASKED = b"t", b"p", b"m", b"k", b"a"

ORDER = struct.Struct("<cQ")
"""To a session's process: FORK (the child takes the descriptor that comes along), RUN (that many bytes of code
follow), WAIT (for the child of that process id)."""
REPLY = struct.Struct("<ciQ")
"""From it: READY (status: its process id), DONE or LEFT (exit status, length of the value that follows), ENDED (wait
status)."""
FORK, WAIT = b"f", b"w"
STARTED, DONE_WITH, SHUT, HEAD = 0, 8, 16, 24
"""Places on the page that a caller and a session's worker share, for turns that the caller begins and ends itself: how
many it began and how many it is done with; whether it may begin none (1), since the worker is not on watch; the REQUEST
of the last one. Programs never have the page."""
PATH = struct.Struct("<I")
ITEM = struct.Struct("<cIQQI")
"""One thing of a working tree on its way: kind, mode, time of change (ns), size, length of the path below the tree. The
path follows, and so many bytes: a file's content or a link's aim."""
FOLDER, FILE, LINK, END = b"d", b"f", b"l", b"."
ENVIRONMENT = {"PYTHONHASHSEED": "0", "LD_BIND_NOW": "1"}
"""What a worker is started with: programs that print a set print the same every time; and symbols are found once, not
again in every child."""
DIRECT = 2**16
"""Bytes of a reply that a caller reads from the program's process itself."""
LONGEST = 2**20
"""Bytes of a turn's value; a run's output limit cuts it further."""


def receive(source: Socket, size: int) -> bytes:
    """So many bytes, or fewer where the other end is closed. Raises OSError when the socket's time-out passes."""
    data = source.recv(min(2**20, size)) if size else b""
    if len(data) == size or not data:  # as mostly
        return data
    whole = bytearray(data)
    while len(whole) < size:
        part = source.recv(min(2**20, size - len(whole)))
        if not part:
            break
        whole += part
    return bytes(whole)


def receive_into(source: Socket, place: bytearray | memoryview) -> bool:
    """Fill a buffer, and leave no copy in this process's memory; whether the other end did not close before."""
    view = memoryview(place)
    while view:
        size = source.recv_into(view)
        if not size:
            return False
        view = view[size:]
    return True


def forget(place: bytearray | memoryview) -> None:
    """Overwrite a buffer: what is forked next would find it in its memory."""
    place[:] = bytes(len(place))


class Passing(bytearray):
    """Bytes that are overwritten when they are not needed any more, like the rest of what `forget` is for."""

    def __del__(self) -> None:
        forget(self)


def receive_fds(source: Socket, size: int, most: int) -> tuple[bytes, list[int]]:
    """Up to so many bytes, and the descriptors that ride on the first of them."""
    data, notes, _, _ = source.recvmsg(size, _socket.CMSG_SPACE(4 * most))
    fds: list[int] = []
    for level, kind, note in notes:
        if level == SOL_SOCKET and kind == SCM_RIGHTS:
            fds += struct.unpack_from(f"={len(note) // 4}i", note)
    return data, fds


def send_fds(to: Socket, data: bytes, fds: list[int]) -> None:
    """Send bytes with descriptors on the first of them. Raises OSError."""
    to.sendmsg([data], [note(fds)] if fds else [])


def note(fds: list[int]) -> tuple[int, int, bytes]:
    """What descriptors ride on."""
    return SOL_SOCKET, SCM_RIGHTS, struct.pack(f"={len(fds)}i", *fds)
