"""The local sandbox's worker process: it never runs a program itself, it forks a child for each.

Started as a script by `gymrl.sandboxes.worker` with an environment of its own, it imports what programs
often need once, so that a run costs one fork. It holds the only reference to the control socket: a child
closes its copy before the program starts, so what a run came to is known from `waitpid` alone.

Standard library only: this file is executed, not imported, and sees no site-packages.
"""

from __future__ import annotations

import ast
import atexit
import contextlib
import gc
import io
import linecache
import os
import resource
import select
import shutil
import signal
import socket
import struct
import sys
import time
import traceback
import types
from typing import Any, NoReturn

REQUEST = struct.Struct("<dQQQQQ")
"""timeout (s; 0: none), memory (bytes), file size (bytes), processes, output (bytes), length of the code."""
STATUS = struct.Struct("<cid")
"""cause (one byte), wait status, seconds."""
TURN = struct.Struct("<QQ")
"""Time-out of a session's turn in whole seconds, length of its code."""
REPLY = struct.Struct("<iQ")
"""Exit status of a session's turn, length of the value's repr."""

RUN, SESSION, KILL, READY = b"r", b"s", b"k", b"+"
ENDED, TIMEOUT, PROCESSES, ASKED = b"e", b"t", b"p", b"a"

OPEN_FILES = 128
INSPECT_EVERY = 0.05
"""Seconds between looks at how many processes a run has."""
PRELOAD = ("bisect", "collections", "datetime", "functools", "heapq", "io", "itertools", "json", "math", "operator",
           "random", "re", "string", "typing")  # fmt: skip


# -- the child: one program ---------------------------------------------------------------------------


def limit(kind: int, value: int) -> None:
    """Lower one rlimit, soft and hard; a hard limit that is lower already stays."""
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def confine(fds: list[int], memory: int, file_size: int, cpu: int) -> None:
    """Leave the worker's group, take the given stdout and stderr, close every other descriptor, set the limits."""
    os.setsid()
    if libc is not None:
        libc.prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGKILL: a child does not outlive its worker
    for target, fd in enumerate(fds, 1):
        os.dup2(fd, target, inheritable=target < 3)
    os.closerange(len(fds) + 1, 256)
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_NOFILE, OPEN_FILES)
    limit(resource.RLIMIT_FSIZE, file_size)
    limit(resource.RLIMIT_AS, memory)
    if cpu:
        limit(resource.RLIMIT_CPU, cpu)


def main_module() -> dict[str, Any]:
    """A fresh `__main__`; its namespace."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.argv = ["main.py"]
    return module.__dict__


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
        while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
            frames = frames.tb_next
        if sys.excepthook is sys.__excepthook__:
            traceback.print_exception(type(error), error, frames)
        else:
            sys.excepthook(type(error), error, frames)
        return 1


def flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def finish(status: int) -> NoReturn:
    """End as a Python process ends: wait for threads, run exit handlers, flush."""

    def last() -> None:
        if threading := sys.modules.get("threading"):
            threading._shutdown()
        atexit._run_exitfuncs()

    guarded(last)
    flush()
    os._exit(status)


def program(source: bytes) -> NoReturn:
    """Run a whole program and exit."""
    text = source.decode("utf-8", "surrogatepass")
    remember(text, "main.py")
    names = main_module()
    finish(guarded(lambda: exec(compile(text, "main.py", "exec", dont_inherit=True), names)))


def session(output: int) -> NoReturn:
    """Run turn after turn from descriptor 3 in one namespace; answer each on descriptor 4."""
    names = main_module()
    turns, replies = os.fdopen(3, "rb"), os.fdopen(4, "wb")
    number = 0
    while header := turns.read(TURN.size):
        seconds, size = TURN.unpack(header)
        text = turns.read(size).decode("utf-8", "surrogatepass")
        number += 1
        cpu = resource.getrusage(resource.RUSAGE_SELF)
        soft = int(cpu.ru_utime + cpu.ru_stime) + seconds + 2
        resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))
        value: list[str] = [""]
        status = guarded(
            lambda text=text, value=value, name=f"<turn {number}>": turn(text, name, names, value)
        )
        flush()
        encoded = value[0].encode("utf-8", "backslashreplace")[:output]
        replies.write(REPLY.pack(status, len(encoded)) + encoded)
        replies.flush()
    finish(0)


def turn(text: str, name: str, names: dict[str, Any], value: list[str]) -> None:
    """Execute one turn; the repr of a last expression that is not None goes into `value[0]`."""
    remember(text, name)
    tree = ast.parse(text, name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec", dont_inherit=True), names)
    if isinstance(last, ast.Expr):
        result = eval(compile(ast.Expression(last.value), name, "eval", dont_inherit=True), names)
        value[0] = "" if result is None else repr(result)


# -- the worker ---------------------------------------------------------------------------------------


def descendants(pid: int) -> list[int]:
    """Every live or unreaped process below `pid`."""
    found: list[int] = []
    todo = [pid]
    while todo and len(found) < 4096:
        parent = todo.pop()
        for child in children(parent):
            found.append(child)
            todo.append(child)
    return found


def children(pid: int) -> list[int]:
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    found: list[int] = []
    for thread in threads:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/children") as file:
            found += map(int, file.read().split())
    return found


def kill(pid: int) -> None:
    """Kill a run that is not yet reaped, with its whole process group."""
    for call in (os.kill, os.killpg):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            call(pid, signal.SIGKILL)


def sweep() -> None:
    """Kill and reap whatever a run left behind: this process is the subreaper, so strays are its children."""
    deadline = time.monotonic() + 5.0
    while time.monotonic() < deadline:
        try:
            if os.waitpid(-1, os.WNOHANG)[0]:
                continue
        except ChildProcessError:
            return
        for pid in descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)
    sys.exit("a process cannot be killed")


def watch(control: socket.socket, pid: int, timeout: float, processes: int) -> tuple[bytes, int]:
    """Wait for the run, at most `timeout` seconds, and leave nothing of it alive: (cause, wait status)."""
    cause = ENDED
    handle = os.pidfd_open(pid)
    poller = select.poll()
    poller.register(handle, select.POLLIN)
    poller.register(control, select.POLLIN)
    start = time.monotonic()
    end = start + timeout if timeout else float("inf")
    try:
        while True:
            wait = max(0.0, min(INSPECT_EVERY, end - time.monotonic()))
            ready = {fd for fd, _ in poller.poll(wait * 1000 + 1)}
            if handle in ready:
                break
            if control.fileno() in ready:
                word = control.recv(1)
                if word == b"":
                    leave()
                cause = ASKED
            elif time.monotonic() >= end:
                cause = TIMEOUT
            elif len(descendants(os.getpid())) > processes:
                cause = PROCESSES
            elif os.getppid() != PARENT:
                leave()
            else:
                continue
            kill(pid)
            select.select([handle], [], [])
            break
    finally:
        os.close(handle)
    kill(pid)  # the rest of its group; its number is not free for another before the next line
    status = os.waitpid(pid, 0)[1]
    sweep()
    return cause, status


def leave() -> NoReturn:
    """The parent is gone: nothing is left behind."""
    sweep()
    os.chdir("/")
    remove(FOLDER)
    os._exit(0)


def remove(folder: str) -> None:
    """Remove a folder and what is in it, also what a program made unreadable. Raises OSError."""

    def retry(call: Any, path: str, _: Any) -> None:
        for closed in (os.path.dirname(path), path):
            if os.path.isdir(closed) and not os.path.islink(closed):
                os.chmod(closed, 0o700)
        shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)

    hook: Any = {"onexc" if sys.version_info >= (3, 12) else "onerror": retry}
    shutil.rmtree(folder, **hook)


def clean(scratch: str) -> str:
    """An empty working folder: the one there is, wiped if need be, or another where it cannot be."""
    try:
        os.chdir(scratch)
        if not os.listdir("."):
            return scratch
        os.chdir("/")
        remove(scratch)
    except OSError:
        scratch = os.path.join(FOLDER, f"scratch{time.monotonic_ns()}")
    os.makedirs(scratch)
    os.chdir(scratch)
    return scratch


def exactly(control: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = control.recv(min(2**20, size - len(data)))
        if not part:
            leave()
        data += part
    return bytes(data)


def serve(control: socket.socket) -> NoReturn:
    """Fork one child a request until the parent goes."""
    scratch = clean(os.path.join(FOLDER, "scratch"))
    os.environ.update(HOME=scratch, TMPDIR=scratch)
    control.sendall(READY)
    poller = select.poll()
    poller.register(control, select.POLLIN)
    while True:
        while not poller.poll(2000):
            if os.getppid() != PARENT:  # another process may hold a copy of the socket: then there is no EOF
                leave()
        word, fds, _, _ = socket.recv_fds(control, 1, 8)
        if not word:
            leave()
        if word == KILL:  # came after its run had ended
            continue
        timeout, memory, file_size, processes, output, size = REQUEST.unpack(exactly(control, REQUEST.size))
        source = exactly(control, size)
        os.environ.update(HOME=scratch, TMPDIR=scratch)
        start = time.monotonic()
        pid = os.fork()
        if pid == 0:
            try:
                confine(fds, memory, file_size, int(timeout) + 2 if timeout else 0)
            except BaseException:  # the sandbox failed, not the program: no result but a dead worker
                os.kill(os.getppid(), signal.SIGKILL)
                os._exit(1)
            try:
                program(source) if word == RUN else session(output)
            finally:
                os._exit(1)
        for fd in fds:
            os.close(fd)
        cause, status = watch(control, pid, timeout, processes)
        control.sendall(STATUS.pack(cause, status, time.monotonic() - start))
        scratch = clean(scratch)


def warm_up() -> None:
    """Do once what every child would do for its first time: set up the compiler and the traceback printer."""
    with contextlib.redirect_stderr(io.StringIO()):
        guarded(lambda: turn("def f(x):\n    return [x / 0]\nf(1)", "main.py", {}, [""]))
        guarded(lambda: exec(compile("import math\nmath.pi\nf'{1:3d}'\n1 +", "main.py", "exec"), {}))
    linecache.clearcache()


def load_libc() -> Any:
    try:
        import ctypes

        return ctypes.CDLL(None, use_errno=True)
    except (ImportError, OSError):
        return None


if __name__ == "__main__":
    FOLDER, PARENT = sys.argv[1], int(sys.argv[3])
    libc = load_libc()
    if libc is None or libc.prctl(36, 1, 0, 0, 0):  # PR_SET_CHILD_SUBREAPER
        sys.exit("prctl is not to be had: this Python has no ctypes")
    try:
        os.close(os.pidfd_open(os.getpid()))
        open(f"/proc/self/task/{os.getpid()}/children").close()
    except (AttributeError, OSError) as error:
        sys.exit(f"Linux 5.3 or newer is needed, with /proc ({error})")
    os.environ.clear()
    for name in PRELOAD:
        __import__(name)
    warm_up()
    gc.collect()
    gc.freeze()
    try:
        serve(socket.socket(fileno=int(sys.argv[2])))
    except ConnectionError:  # it went with a message unread
        leave()
