"""Shells, as the worker sees them: one bash that evaluates command after command, and what each came to.

The bash is as confined as any program. Commands go to it, and its word comes back, over a socket whose number is out of
the way of scripts; that it lives or died, and what the command used, is seen from here. It reads commands in ASCII with
escapes: `read -N` counts characters, and these are bytes. Jobs are disowned before they are killed, or the bash would
tell the next command of their end.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import shlex
import stat
import struct
import sys
import time
from typing import NamedTuple, NoReturn

from gymrl.sandboxes.inside import protocol
from gymrl.sandboxes.inside import syscalls as sc
from gymrl.sandboxes.inside.program import CHANNEL
from gymrl.sandboxes.inside.zygote import Outcome, Request, Zygote

BASHES = ("/bin/bash", "/usr/bin/bash", "/usr/local/bin/bash")
NUMBER = 100
"""Of the bash's descriptor for commands, which is closed while a command runs."""
PATIENCE = 5.0
"""Seconds for the bash to say what its variables are."""
LOOP = r"""
__gymrl_back() { return "$1"; }
__gymrl_status=0
while { IFS= builtin read -r -u 100 __gymrl_size && IFS= builtin read -r -N "$__gymrl_size" -u 100 __gymrl_text && {
    builtin printf -v __gymrl_text %b "$__gymrl_text" || :; }; } 2>/dev/null; do
  __gymrl_back "$__gymrl_status"
  builtin eval "$__gymrl_text" 100>&-
  { __gymrl_status=$?; builtin disown -a; builtin printf '%d\0%s\0' "$__gymrl_status" "$PWD" >&100; } 2>/dev/null
  { builtin export -p; builtin printf '\0'; } >&100 2>/dev/null
done
"""


class Bash(NamedTuple):
    """A bash that waits for a command. handle: readable once it is dead."""

    pid: int
    channel: protocol.Socket
    handle: int


class Broken(Exception):
    """The bash does not say what it should: the commands have tampered with it."""


class Shell:
    """The shell of one worker."""

    def __init__(self, zygote: Zygote) -> None:
        self.zygote, self.tier, self.watch = zygote, zygote.tier, zygote.watch
        self.watch.baseline = 0  # no program here is a copy of the worker
        self.first: Request | None = None
        self.program = ""
        self.bash: Bash | None = None
        self.tree = 0
        self.folder, self.exports = b"", b""
        self.said: bytes | None = None
        self.waits = False
        self.watching = True
        self.stopped = False

    def carry_out(self, request: Request) -> tuple[Outcome, bytes]:
        """Any request to a shell; what came of it, and the nonce."""
        if request.kind == protocol.EXEC:
            return self.turn(request)
        nonce = self.zygote.exactly(protocol.NONCE)
        if request.kind == protocol.SHELL:
            return self.begin(request), nonce
        if request.kind == protocol.WIPE:
            self.reset()
            return Outcome(protocol.DONE, 0), nonce
        return self.visit(request), nonce

    def begin(self, request: Request) -> Outcome:
        """Take the working tree and start the bash; the status is an errno, ENOENT where there is no bash."""
        self.program = next((path for path in BASHES if os.access(path, os.X_OK)), "")
        source = request.fds.pop()
        if not self.program:
            os.close(source)
            return Outcome(protocol.LEFT, errno.ENOENT)
        self.first = request
        self.tree, names = struct.unpack("<QQ", request.code)
        try:
            self.tier.stock(source, self.tree, names, request.disk)
        except EOFError:
            return Outcome(protocol.LEFT, errno.EPIPE)
        except OSError as error:
            return Outcome(protocol.LEFT, error.errno or errno.EIO)
        self.start()
        return Outcome(protocol.DONE, 0)

    # -- commands --------------------------------------------------------------------------------------

    def turn(self, request: Request) -> tuple[Outcome, bytes]:
        """Have the bash evaluate a command; a bash that does not live through it is replaced."""
        nonce = self.zygote.exactly(protocol.NONCE)
        request = request._replace(disk=request.disk + self.tree)
        bash = self.bash
        assert bash is not None
        end = time.monotonic() + request.timeout
        self.thaw(bash)
        self.hear()
        try:
            self.send(bash, request.code, end)
            cause, status = self.await_status(bash, request, end)
        except (Broken, OSError):
            cause, status = protocol.ENDED, None
        if cause == protocol.ENDED and self.watch.struck():
            cause, status = protocol.MEMORY, None
        if status is not None:
            if self.watch.none_since(bash.pid) or self.watch.ended_all({bash.pid}, PATIENCE):
                return Outcome(protocol.DONE, status), nonce
            cause = protocol.PROCESSES  # they multiply faster than they can be killed one by one
        if cause != protocol.ENDED or not select.select([bash.handle], [], [], 0.05)[0]:
            self.zygote.strike(bash.pid)
        try:
            status = os.waitstatus_to_exitcode(os.waitpid(bash.pid, 0)[1])
        except ChildProcessError:  # it died after its last command, and was reaped with what that had left
            status = -sc.SIGKILL
        return Outcome(cause, status, lost=not self.start_again()), nonce

    def send(self, bash: Bash, command: bytes | bytearray, end: float) -> None:
        """Raises OSError where the bash does not read."""
        text = b"".join(_ESCAPES[byte] for byte in command)
        data = b"%d\n" % len(text) + text
        with contextlib.suppress(BlockingIOError):
            data = data[bash.channel.send(data, protocol.MSG_DONTWAIT) :]
        if data:
            bash.channel.settimeout(max(0.01, end - time.monotonic()))
            bash.channel.sendall(data)
            bash.channel.settimeout(None)

    def await_status(self, bash: Bash, request: Request, end: float) -> tuple[bytes, int | None]:
        """Why the waiting ended, and the command's status if the bash has told it. What else it says is kept in `said`.
        Raises Broken."""
        said, handle = b"", bash.channel.fileno()
        while True:
            cause = self.zygote.attend(handle, end, request, also=bash.handle)
            if cause != protocol.ENDED or handle == bash.handle:
                return cause, None
            try:
                data = bash.channel.recv(65536, protocol.MSG_DONTWAIT)
            except BlockingIOError:  # it is dead, and something holds the other end
                return cause, None
            if not data:  # another program takes its place (exec), or it is about to end
                handle = bash.handle
            said += data
            head, nul, rest = said.partition(b"\0")
            if nul:
                number = head.rpartition(b"\n")[2]  # a DEBUG trap may have spoken before
                if not number.isdigit():
                    raise Broken
                self.said = rest
                return cause, int(number) & 0xFF
            if len(said) > protocol.LONGEST:
                raise Broken

    def tidy(self) -> None:
        """What is left to do once the outcome is sent: start a bash after a reset."""
        self.watch.struck()  # whatever was killed since is no matter of the next command
        if self.waits:  # for a new bash, since a reset: whoever asked for that need not
            self.waits = False
            self.start()

    def hear(self) -> None:
        """Which folder the bash was in after its last command, and what its exported variables were. Nobody waits for
        that before the next one."""
        if self.said is None or self.bash is None:
            return
        said, self.said = self.said, None
        end = time.monotonic() + PATIENCE
        try:
            while said.count(b"\0") < 2:
                self.bash.channel.settimeout(max(0.01, end - time.monotonic()))
                data = self.bash.channel.recv(65536)
                if not data or len(said) > protocol.LONGEST:
                    raise Broken
                said += data
            self.bash.channel.settimeout(None)
        except (Broken, OSError):  # its next command finds it dead, and another is started then
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.bash.pid, sc.SIGKILL)
            return
        self.folder, self.exports, _ = said.split(b"\0", 2)

    def idle(self) -> bool:
        """Between commands nothing runs: once none has come for a moment, the bash is stopped. Whether to go on."""
        self.hear()
        if self.bash is not None and not self.stopped and not self.watch.ended(self.bash.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.bash.pid, sc.SIGSTOP)
                self.stopped = True
            self.watch.end({self.bash.pid})
        return False

    def thaw(self, bash: Bash) -> None:
        if self.stopped:
            self.stopped = False
            with contextlib.suppress(ProcessLookupError):
                os.kill(bash.pid, sc.SIGCONT)

    def gift(self) -> None:
        """Nothing goes to the caller with an outcome."""

    # -- the bash --------------------------------------------------------------------------------------

    def start(self) -> None:
        """A new bash at the top of the working tree."""
        assert self.first is not None
        ours, theirs = protocol.pair()
        try:
            fds = [*self.first.fds, theirs.fileno()]
            day = self.first._replace(timeout=86400.0)  # of a processor, for each process
            pid = self.zygote.spawn(day, fds, work=self.become)
        finally:
            theirs.close()
        self.zygote.check_child()
        self.bash = Bash(pid, ours, os.pidfd_open(pid))

    def become(self) -> NoReturn:
        """The confined child turns into the bash."""
        os.dup2(CHANNEL, NUMBER, inheritable=True)
        import signal

        for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # by Python, and a program would inherit that
            signal.signal(ignored, signal.SIG_DFL)
        places = dict.fromkeys([os.path.dirname(sys.executable), "/usr/local/bin", "/usr/bin", "/bin"])
        environment = {**os.environ, "PATH": ":".join(places), "SHELL": self.program, "TERM": "dumb"}
        if (
            self.tier.name == "docker"
        ):  # the top of the tree is root's there, which git wants to be told is all right
            for name, value in (("COUNT", "1"), ("KEY_0", "safe.directory"), ("VALUE_0", "*")):
                environment[f"GIT_CONFIG_{name}"] = value
        os.execve(self.program, ["bash", "--norc", "--noprofile", "-c", LOOP, "bash"], environment)

    def stop(self) -> None:
        """End the bash and all that it started."""
        self.watch.end()
        if self.bash is not None:
            os.close(self.bash.handle)
            self.bash.channel.close()
        self.bash = self.said = None
        self.stopped = False

    def start_again(self) -> bool:
        """A new bash in the folder and with the exported variables of the old one; whether it could be had."""
        self.stop()
        self.start()
        if not self.folder:
            return True
        bash = self.bash
        assert bash is not None and self.first is not None
        back = b"{ " + self.exports + b"\ncd -- " + os.fsencode(shlex.quote(os.fsdecode(self.folder)))
        end = time.monotonic() + PATIENCE
        try:
            self.send(bash, back + b"; } >/dev/null 2>&1", end)
            status = self.await_status(bash, self.first, end)[1]
        except (Broken, OSError):
            status = None
        self.hear()
        if status is None:
            self.folder = self.exports = b""
            self.stop()
            self.start()
        return status == 0

    def reset(self) -> None:
        assert self.first is not None
        self.stop()
        self.folder = self.exports = b""
        self.tier.used()
        self.tier.prepare(self.first.disk)
        self.waits = True

    # -- files -----------------------------------------------------------------------------------------

    def visit(self, request: Request) -> Outcome:
        """Read or write a file in a confined child: a program may have put a link there. The status is an errno."""
        (length,) = protocol.PATH.unpack_from(request.code)
        start = protocol.PATH.size
        code = bytes(request.code)
        path, data = os.fsdecode(code[start : start + length]), code[start + length :]

        def work() -> NoReturn:
            try:
                if request.kind == protocol.GET:
                    read_file(path, request.file_size)
                else:
                    write_file(path, data)
            except OSError as error:
                os._exit(error.errno or errno.EIO)
            except ValueError:
                os._exit(errno.EINVAL)
            os._exit(0)

        pid = self.zygote.spawn(request, request.fds, work=work)
        for fd in request.fds:
            os.close(fd)
        handle = os.pidfd_open(pid)
        try:
            cause = self.zygote.attend(handle, time.monotonic() + request.timeout, request)
            if cause != protocol.ENDED:
                os.kill(pid, sc.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        finally:
            os.close(handle)
        self.zygote.check_child()
        return Outcome(cause, status)


def _escapes() -> list[bytes]:
    plain = {*range(32, 127)} - {ord("\\")}
    return [bytes([byte]) if byte in plain else b"\\0%03o" % byte for byte in range(256)]


_ESCAPES = _escapes()
"""Each byte as bash's `printf %b` reads it."""


def read_file(path: str, most: int) -> None:
    """Copy a file to stdout. Raises OSError."""
    source = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    info = os.fstat(source)
    _regular(info)
    if info.st_size > most:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    while data := os.read(source, 2**20):
        while data:
            data = data[os.write(1, data) :]


def write_file(path: str, data: bytes) -> None:
    """Make a file hold just this, and the folders above it. Raises OSError."""
    if above := os.path.dirname(path):
        os.makedirs(above, exist_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    _regular(os.fstat(fd))
    os.ftruncate(fd, 0)
    while data:
        data = data[os.write(fd, data) :]


def _regular(info: os.stat_result) -> None:
    if stat.S_ISDIR(info.st_mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(info.st_mode):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
