"""The child: one program, or a session's interpreter, confined and then run. Nothing here is trusted afterwards."""

from __future__ import annotations

import _thread
import ast
import atexit
import contextlib
import gc
import io
import linecache
import os
import sys
import traceback
import types
from collections.abc import Callable
from resource import (
    RLIM_INFINITY,
    RLIMIT_AS,
    RLIMIT_CORE,
    RLIMIT_CPU,
    RLIMIT_FSIZE,
    RLIMIT_MEMLOCK,
    RLIMIT_MSGQUEUE,
    RLIMIT_NOFILE,
    RLIMIT_NPROC,
    RLIMIT_SIGPENDING,
    getrlimit,
    setrlimit,
)  # fmt: skip
from typing import Any, NamedTuple, NoReturn

from gymrl.sandboxes.inside import landlock, protocol, seccomp
from gymrl.sandboxes.inside import syscalls as sc

OPEN_FILES = 128
CHANNEL = 3
HERE = os.path.dirname(__file__)
MAIN = types.ModuleType("__main__")
"""What a program runs in; the worker itself leaves it as it is."""
HOOKS: list[dict[str, Any]] = []
"""What modules want called at a fork, which is not called at those of the worker: a program gets it back."""
SEED: list[Callable[[], object]] = []
"""What gives `random` a state of its own. A program that imports nothing has no use for one."""


class Confinement(NamedTuple):
    """What a child does to itself before the program starts.

    user: to whom it changes (None: nobody else). groups: whether it is in groups that it has to leave. rules: a
    Landlock ruleset (-1: none). filter: a compiled seccomp policy of its own (empty: the worker's holds). die: whether
    it dies with the worker by signal, being no child of process 1. limits: rlimits, soft and hard.
    """

    user: int | None
    groups: bool
    rules: int
    filter: bytes
    ask: bool
    die: bool
    limits: tuple[tuple[int, int], ...]


HARD = {
    kind: sys.maxsize if (hard := getrlimit(kind)[1]) == RLIM_INFINITY else hard
    for kind in (RLIMIT_NOFILE, RLIMIT_FSIZE, RLIMIT_AS, RLIMIT_NPROC, RLIMIT_CPU)
}
"""The worker's own hard limits, which a program's cannot be above."""


MOST = {RLIMIT_CORE: 1, RLIMIT_MEMLOCK: 0, RLIMIT_MSGQUEUE: 0, RLIMIT_SIGPENDING: 256}
"""What the worker and every program may have of each. A core of one byte is none, and unlike none at all it keeps the
kernel from starting the host's program for cores. Pending signals are timers, too."""


def limits(memory: int, file_size: int, processes: int | None, cpu: int) -> tuple[tuple[int, int], ...]:
    """The rlimits of a program, soft and hard. processes: None where they cannot be counted; cpu: 0 for no limit."""
    wanted = [(RLIMIT_NOFILE, OPEN_FILES), (RLIMIT_FSIZE, file_size), (RLIMIT_AS, memory)]
    if processes is not None:
        wanted.append((RLIMIT_NPROC, processes))
    if cpu:
        wanted.append((RLIMIT_CPU, cpu))
    return tuple((kind, min(value, HARD[kind])) for kind, value in wanted)


def harden() -> None:
    """Of the worker, once: the limits that are the same for every program and that the worker needs no more than they.
    What it imported for itself is forgotten, and what programs find as `__main__` is there."""
    for kind, most in MOST.items():
        setrlimit(kind, (most, most))
    for name in [name for name in sys.modules if name.partition(".")[0] == "gymrl"]:
        del sys.modules[name]
    sys.modules["__main__"] = MAIN
    sys.argv = ["main.py"]
    gc.collect()
    gc.freeze()


def confine(bounds: Confinement, fds: list[int]) -> int:
    """Give up everything but the given stdout, stderr and channel. Returns the listener for questions, or 0."""
    os.setsid()
    for target, fd in enumerate(fds, 1):
        os.dup2(fd, target, inheritable=target < CHANNEL)
    for kind, value in bounds.limits:
        setrlimit(kind, (value, value))
    if bounds.user is not None:
        if bounds.groups:
            with contextlib.suppress(PermissionError):
                os.setgroups([])
        os.setresgid(bounds.user, bounds.user, bounds.user)
        os.setresuid(bounds.user, bounds.user, bounds.user)
    if bounds.die:
        sc.prctl(sc.PR_SET_PDEATHSIG, sc.SIGKILL)
    if bounds.rules >= 0 or bounds.filter or not bounds.die:
        if bounds.die:  # else the worker has it, and so has its child
            sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)
        sc.drop_capabilities()
    if bounds.rules >= 0:
        landlock.restrict(bounds.rules)
    listener = 0
    if bounds.filter:
        own = seccomp.SELF if bounds.ask else os.getpid()  # a session's process is another one every turn
        listener = seccomp.install(bounds.filter, own, bounds.ask)
    if listener:
        listener = os.dup2(listener, len(fds) + 1)
    os.closerange(len(fds) + 1 + (listener > 0), 65536)
    return listener


def remember(source: str, name: str) -> None:
    """Let tracebacks show the program's lines."""
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)


def guarded(work: Any) -> int:
    """Call `work`; its exit status as Python itself would give it, with the traceback of the program's frames."""
    try:
        work()
        return 0
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return (error.code or 0) & 0xFF
        print(error.code, file=sys.stderr)
        return 1
    except BaseException as error:
        frames = error.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename.startswith(HERE):
            frames = frames.tb_next
        if sys.excepthook is sys.__excepthook__:
            traceback.print_exception(type(error), error, frames)
        else:
            sys.excepthook(type(error), error, frames)
        return 1


def flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:  # noqa: SIM105  (a context manager costs more than the rest)
            stream.flush()
        except Exception:
            pass


def regain(seeded: bool) -> None:
    """What modules want called at a fork is called at those of the program (see `start.aside`); seeded: and `random`
    begins anew."""
    if seeded:
        for seed in SEED:
            seed()
    for hooks in HOOKS:
        os.register_at_fork(**hooks)


def finish(status: int) -> NoReturn:
    """End as a Python process ends: wait for threads, run exit handlers, flush."""

    def last() -> None:
        if _thread._count() and (threading := sys.modules.get("threading")):
            threading._shutdown()
        atexit._run_exitfuncs()

    guarded(last)
    flush()
    os._exit(status)


def program(source: bytearray) -> NoReturn:
    """Run a whole program and exit."""
    regain(b"import" in source)
    text = source.decode("utf-8", "surrogatepass")
    remember(text, "main.py")
    names = MAIN.__dict__
    finish(guarded(lambda: exec(compile(text, "main.py", "exec", dont_inherit=True), names)))


def session(listener: int) -> NoReturn:
    """Carry out orders from the channel, in one namespace; a forked child goes on with a channel of its own."""
    regain(True)
    names = MAIN.__dict__
    channel = protocol.Socket(fileno=CHANNEL)
    ready = protocol.REPLY.pack(protocol.READY, os.getpid(), 0)
    protocol.send_fds(channel, ready, [listener] if listener else [])
    if listener:
        os.close(listener)
    number, own = 0, os.getpid()
    while True:
        order, size, body, fds = _receive(channel)
        if order == protocol.FORK:
            if os.fork():
                os.close(fds[0])
                continue
            channel.close()
            channel = protocol.Socket(fileno=fds[0])
            own = os.getpid()
            channel.sendall(protocol.REPLY.pack(protocol.READY, own, 0))
        elif order == protocol.WAIT:
            status = os.waitpid(size, 0)[1]
            channel.sendall(protocol.REPLY.pack(protocol.ENDED, status, 0))
        elif order == protocol.RUN:
            text = (body + _exactly(channel, size - len(body))).decode("utf-8", "surrogatepass")
            number += 1
            value, left = [""], [False]
            status = guarded(lambda text=text, value=value, left=left, name=f"<turn {number}>":
                             turn(text, name, names, value, left))  # fmt: skip
            flush()
            if (
                os.getpid() != own
            ):  # the program forked, and this is the child: its end is the end of the code
                finish(status)
            shown = value[0].encode("utf-8", "backslashreplace")[: protocol.LONGEST]
            kind = protocol.LEFT if left[0] else protocol.DONE
            channel.sendall(protocol.REPLY.pack(kind, status, len(shown)) + shown)


def _receive(channel: protocol.Socket) -> tuple[bytes, int, bytes, list[int]]:
    """An order, its number, what is there already of what follows it, and a descriptor that came along. No other order
    comes before this one is carried out."""
    data, fds = protocol.receive_fds(channel, 4096, 1)
    if not data:
        os._exit(0)
    if (short := protocol.ORDER.size - len(data)) > 0:
        data += _exactly(channel, short)
    return *protocol.ORDER.unpack_from(data), data[protocol.ORDER.size :], fds


def _exactly(channel: protocol.Socket, size: int) -> bytes:
    data = protocol.receive(channel, size)
    if len(data) < size:
        os._exit(0)
    return data


def turn(text: str, name: str, names: dict[str, Any], value: list[str], left: list[bool]) -> None:
    """Execute one turn; the repr of a last expression that is not None goes into `value[0]`."""
    remember(text, name)
    body, last = parts(text, name)
    try:
        if body is not None:
            exec(body, names)
        if last is not None:
            result = eval(last, names)
            value[0] = "" if result is None else repr(result)
    except SystemExit:
        left[0] = True
        raise


def parts(text: str, name: str) -> tuple[types.CodeType | None, types.CodeType | None]:
    """A turn compiled: all but the last expression, and that. Raises SyntaxError."""
    if "\n" not in text and "\\" not in text:  # mostly one expression, or one statement
        try:
            return None, compile(text, name, "eval", dont_inherit=True)
        except Exception:
            pass
    tree = ast.parse(text, name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    body = compile(tree, name, "exec", dont_inherit=True) if tree.body or last is None else None
    if not isinstance(last, ast.Expr):
        return body, None
    return body, compile(ast.Expression(last.value), name, "eval", dont_inherit=True)


def warm_up() -> None:
    """Do once what every child would do for its first time: set up the compiler and the traceback printer."""
    with contextlib.redirect_stderr(io.StringIO()):
        guarded(lambda: turn("def f(x):\n    return [x / 0]\nf(1)", "main.py", {}, [""], [False]))
        guarded(lambda: exec(compile("import math\nmath.pi\nf'{1:3d}'\n1 +", "main.py", "exec"), {}))
    linecache.clearcache()
    gc.collect()
    gc.freeze()
