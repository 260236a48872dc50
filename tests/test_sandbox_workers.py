"""Sandboxes when something breaks: workers that die or hang, callers that go, what is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import select
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import pytest

from gymrl.sandboxes import Limits, SandboxFault, SandboxUnavailable, open_sandbox
from gymrl.sandboxes.inside import protocol
from gymrl.sandboxes.pool import PoolSandbox
from gymrl.sandboxes.worker import Worker

BACKENDS = ("namespaces", "confined", "none")
"""Those without containers, which test_sandbox_docker looks at."""


def opened(backend: str, workers: int = 1) -> PoolSandbox:
    try:
        box = open_sandbox(backend, workers=workers)
    except SandboxUnavailable as unavailable:
        pytest.skip(str(unavailable))
    assert isinstance(box, PoolSandbox)
    return box


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def below(pid: int) -> list[int]:
    """Every process below this one, itself included."""
    found = [pid]
    for one in found:
        for children in Path("/proc").glob(f"{one}/task/*/children"):
            try:
                found += map(int, children.read_text().split())
            except OSError:
                continue
    return found


def workers_of(box: PoolSandbox) -> list[int]:
    """The pool's worker processes, those at work included."""
    name = "inside/start.py"
    found = []
    for pid in below(os.getpid()):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1] == str(os.getpid()) and (
                name in Path(f"/proc/{pid}/cmdline").read_text()
            ):
                found.append(pid)
    return found


async def until(true: object) -> bool:
    for _ in range(600):
        if true():  # type: ignore[operator]
            return True
        await asyncio.sleep(0.05)
    return False


MADE: list[str] = []
"""Folders that this process has made, not those of tests that run beside it."""


@pytest.fixture(autouse=True)
def folders(monkeypatch: pytest.MonkeyPatch) -> None:
    def noted(*args: Any, make: Any = tempfile.mkdtemp, **names: Any) -> Any:
        MADE.append(make(*args, **names))
        return MADE[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", noted)


def left_behind() -> set[str]:
    """Descriptors, folders and children of this process that sandboxes may leave."""
    fds = {
        f"fd {os.readlink(f'/proc/self/fd/{fd}')}"
        for fd in os.listdir("/proc/self/fd")
        if os.path.lexists(f"/proc/self/fd/{fd}")
    }
    folders = {folder for folder in MADE if Path(folder).exists()}
    return (
        {fd for fd in fds if "socket" in fd or "pipe" in fd}
        | folders
        | {f"pid {pid}" for pid in below(os.getpid())}
    )


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_worker_that_dies_is_a_fault_and_is_replaced(backend: str) -> None:
    box = opened(backend)
    await box.run("pass")
    [worker] = box._idle.queue
    call = asyncio.create_task(box.run("import time; time.sleep(20)", timeout=30))
    await asyncio.sleep(0.3)
    for pid in below(worker.process.pid):  # the program last: its end is not to be answered
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    with pytest.raises(SandboxFault, match="died"):
        await call
    assert (await box.run("print('next')")).stdout == "next\n"
    [worker] = box._idle.queue
    os.kill(worker.process.pid, signal.SIGKILL)
    assert await until(lambda: not alive(worker.process.pid))
    assert (await box.run("print('next')")).stdout == "next\n"
    await box.close()
    with pytest.raises(SandboxFault, match="closed"):
        await box.run("pass")


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_session_whose_worker_dies_says_so_and_starts_afresh(backend: str) -> None:
    box = opened(backend)
    session = await box.session()
    await session.run("x = 1")
    process = session._worker.process  # type: ignore[attr-defined]
    os.kill(process.pid, signal.SIGKILL)
    process.wait(30)
    with pytest.raises(SandboxFault, match="died"):
        await session.run("x")
    assert (await session.run("'x' in globals()")).value == "False"
    await session.close()
    await box.close()


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_worker_that_is_stopped_is_given_up(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gymrl.sandboxes.worker.GRACE", 0.5)
    box = opened(backend)
    await box.run("pass")
    [worker] = box._idle.queue
    for pid in below(worker.process.pid):
        os.kill(pid, signal.SIGSTOP)
    with pytest.raises(SandboxFault, match="died"):
        await box.run("pass", timeout=0.5)
    assert (await box.run("print('next')")).stdout == "next\n"
    await box.close()


@pytest.mark.parametrize("backend", BACKENDS)
async def test_everything_that_was_opened_is_closed(backend: str) -> None:
    before = left_behind()
    box = opened(backend, workers=2)
    session = await box.session()
    await session.run("x = 1")
    await session.snapshot()
    await asyncio.gather(*(box.run("import time; time.sleep(0.1)") for _ in range(4)))
    for _ in range(3):
        [*workers] = box._idle.queue
        call = asyncio.create_task(box.run("import time; time.sleep(20)", timeout=0.5))
        await asyncio.sleep(0.1)
        os.kill(workers[0].process.pid, signal.SIGKILL)
        with contextlib.suppress(SandboxFault):
            await call
    await session.close()
    await box.close()
    assert await until(lambda: left_behind() <= before), left_behind() - before


async def test_a_cancelled_call_leaves_the_sandbox_usable() -> None:
    box = opened("auto")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(box.run("while True: pass", timeout=0.5), 0.1)
    assert (await box.run("print('next')")).stdout == "next\n"
    await box.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_worker_whose_caller_went_without_listening_leaves_nothing(backend: str) -> None:
    opened(backend)
    worker = Worker(backend)
    pipe = os.pipe()
    worker.begin(protocol.RUN, [pipe[1], pipe[1]], b"print(1)", 5.0, Limits())
    select.select([worker.control], [], [], 20)  # its outcome is there, and nobody reads it
    worker.control.close()
    assert worker.process.wait(20) == 0
    assert not worker.folder or not Path(worker.folder).exists()
    for fd in pipe:
        os.close(fd)


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_maze_of_folders_is_wiped(backend: str) -> None:
    box = opened(backend)
    code = """
        import os
        os.makedirs('a/b'); open('a/b/f', 'w').close(); os.symlink('/', 'a/l'); os.mkfifo('a/p')
        os.chmod('a/b', 0); os.chmod('a', 0o500)
        for _ in range(1500):
            os.mkdir('deep'); os.chdir('deep')
    """
    assert (await box.run(textwrap.dedent(code), limits=Limits(disk=2**24))).ok
    assert (await box.run("import os; print(os.listdir('.'))", limits=Limits(disk=2**24))).stdout == "[]\n"
    await box.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_workers_die_with_a_killed_caller(backend: str) -> None:
    opened(backend)
    script = f"""
        import asyncio, os
        from gymrl.sandboxes import open_sandbox
        async def main():
            box = open_sandbox({backend!r}, workers=1)
            session = await box.session()
            await session.run("1")
            [worker] = box._idle.queue
            print(worker.process.pid, session._worker.process.pid, worker.folder or "-", flush=True)
            await box.run("import time; time.sleep(60)", timeout=60)
        if os.fork() == 0:
            import time
            time.sleep(30)  # a fork of the caller, which holds no copy of a later worker's socket
        else:
            asyncio.run(main())
    """
    caller = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert caller.stdout is not None
    worker, session, folder = caller.stdout.readline().split()
    pids: list[int] = []

    def settled() -> bool:
        """Two looks see the same four or more at work: what starts a worker or a run may end between them."""
        nonlocal pids
        before, pids = pids, [*filter(alive, below(int(worker))), *filter(alive, below(int(session)))]
        return len(pids) >= 4 and pids == before

    assert asyncio.run(until(settled))
    caller.kill()
    caller.wait()
    assert asyncio.run(until(lambda: not any(map(alive, pids)) and not Path(folder).exists()))
    os.killpg(caller.pid, signal.SIGKILL)
    caller.stdout.close()


async def test_a_forked_copy_of_the_sandbox_works() -> None:
    box = opened("auto")
    await box.run("pass")
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            asyncio.set_event_loop(None)
            import threading

            def work() -> None:
                nonlocal status
                status = 0 if asyncio.run(box.run("print(5)")).stdout == "5\n" else 2

            thread = threading.Thread(target=work)
            thread.start()
            thread.join(20)
        finally:
            os._exit(status)
    loop = asyncio.get_running_loop()
    assert os.waitstatus_to_exitcode((await loop.run_in_executor(None, os.waitpid, pid, 0))[1]) == 0
    assert (await box.run("print(6)")).stdout == "6\n"
    await box.close()


def test_what_cannot_be_had_is_told_with_its_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ValueError, match="unknown sandbox 'jail': take auto, namespaces, confined, docker, none"
    ):
        open_sandbox("jail")
    with pytest.raises(SandboxUnavailable, match="pip install nosuchmodule"):
        open_sandbox("none", preload=("nosuchmodule",))
    with pytest.raises(ValueError, match="one worker or more"):
        open_sandbox("none", workers=0)
    for bad in (
        {"memory": 0},
        {"output": -1},
        {"processes": 0},
        {"disk": 1.5},
        {"file_size": True},
        {"memory": 2**70},
    ):
        with pytest.raises(ValueError, match=f"the limit {next(iter(bad))} is an integer"):
            Limits(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "call, want",
    [("unshare", r"unshare.*user\.max_user_namespaces.*landlock.*Linux 5\.13"), ("seccomp", "seccomp")],
)
def test_auto_never_falls_to_none(call: str, want: str) -> None:
    """Where the kernel refuses what a tier needs, `auto` names each step and gives up."""
    script = """
        import ctypes, errno, sys
        from gymrl.sandboxes import SandboxUnavailable, open_sandbox
        from gymrl.sandboxes.inside import seccomp, syscalls
        refused = dict.fromkeys(sys.argv[1:], seccomp.ERRNO | errno.EPERM)
        syscalls.prctl(38, 1)
        seccomp.install(seccomp.compiled(seccomp.Policy(refused, seccomp.ALLOW)), 0)
        try:
            print(open_sandbox().backend)
        except SandboxUnavailable as error:
            print(error)
    """
    calls = [call, "landlock_create_ruleset"] if call == "unshare" else [call]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *calls], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and re.search(want, done.stdout, re.DOTALL), done
    assert "no sandbox that isolates can be built here" in done.stdout and "'none' by name" in done.stdout


@pytest.mark.parametrize("backend", ["namespaces", "none"])
async def test_preloaded_packages_are_there_and_others_are_not_imported(backend: str) -> None:
    box = open_sandbox(backend, workers=1, preload=("numpy",))
    code = "import sys; print('numpy' in sys.modules); import numpy as np; print(int(np.arange(5).sum()))"
    assert (await box.run(code)).stdout == "True\n10\n"
    assert (
        await box.run("import numpy; print(float((numpy.ones((300, 300)) @ numpy.ones(300)).max()))")
    ).stdout == "300.0\n"
    await box.close()
    box = open_sandbox(backend, workers=1)
    assert "ModuleNotFoundError" in (await box.run("import numpy")).stderr
    await box.close()


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_soak_with_faults_leaves_nothing(backend: str) -> None:
    """Of so many runs one in twenty loses its worker. GYMRL_SOAK=10000 runs more of them."""
    total = int(os.environ.get("GYMRL_SOAK", "100"))
    before = left_behind()
    box = opened(backend, workers=2)
    await asyncio.gather(*(box.run("pass") for _ in range(20)))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wrong: list[object] = []
    faults = 0

    async def lane(first: int) -> None:
        nonlocal faults
        for number in range(first, total, 2):
            faulty = number % 20 == 0
            pause = "import time; time.sleep(0.2)" if faulty else ""
            call = asyncio.create_task(
                box.run(f"{pause}\ndata = bytearray(2**20); open('f', 'wb').write(data); print({number})")
            )
            if faulty:
                await asyncio.sleep(0.1)
                for worker in workers_of(box):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(worker, signal.SIGKILL)
            try:
                result = await call
                if result.stdout != f"{number}\n":
                    wrong.append(result)
            except SandboxFault:
                faults += 1

    await asyncio.gather(lane(0), lane(1))
    await box.close()
    assert wrong == [] and 0 < faults <= total // 5
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024
    assert grown < 2**26, grown
    assert await until(lambda: left_behind() <= before), left_behind() - before
