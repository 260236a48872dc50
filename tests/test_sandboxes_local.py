"""What every sandbox backend does, and what the local one does besides."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gymrl.sandboxes import Limits, Sandbox, SandboxFault, open_sandbox, shared_sandbox, zygote
from gymrl.sandboxes.local import LocalSandbox
from gymrl.sandboxes.worker import Worker

BACKENDS = ["local"]


@pytest.fixture(params=BACKENDS)
async def sandbox(request: pytest.FixtureRequest) -> AsyncIterator[Sandbox]:
    box = open_sandbox(request.param)
    yield box
    await box.close()


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def gone(pid: int) -> bool:
    for _ in range(200):
        if not alive(pid):
            return True
        await asyncio.sleep(0.05)
    return False


# -- one program --------------------------------------------------------------------------------------


async def test_a_program_prints(sandbox: Sandbox) -> None:
    result = await sandbox.run("print(1 + 1)")
    assert (result.stdout, result.stderr, result.value, result.exit, result.killed_by) == (
        "2\n",
        "",
        "",
        0,
        "",
    )
    assert result.ok and result.backend == sandbox.backend and result.seconds > 0


@pytest.mark.parametrize(
    "code, status, stderr",
    [
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('no')", 1, "no\n"),
        ("raise SystemExit", 0, ""),
        ("import os; os._exit(7)", 7, ""),
        ("raise KeyboardInterrupt", 1, "Traceback (most recent call last):\n"),
        ("x = (", 1, "SyntaxError: '(' was never closed\n"),
        ("print(1)\0", 1, "null byte"),
        ("print('\ud800')", 1, "surrogates not allowed\n"),
        ("input()", 1, "EOFError: EOF when reading a line\n"),
        ("def f():\n    f()\nf()", 1, "RecursionError: maximum recursion depth exceeded\n"),
    ],
)
async def test_exit_status_and_stderr(sandbox: Sandbox, code: str, status: int, stderr: str) -> None:
    result = await sandbox.run(code)
    assert result.exit == status and result.killed_by == "" and stderr in result.stderr
    assert (await sandbox.run("print('next')")).stdout == "next\n"


async def test_a_traceback_is_a_plain_pythons(sandbox: Sandbox, tmp_path: Path) -> None:
    program = "def half(x):\n    return x / 0\n\nprint('a')\nhalf(1)\n"
    (tmp_path / "main.py").write_text(program)
    plain = subprocess.run([sys.executable, "main.py"], cwd=tmp_path, capture_output=True, text=True)
    result = await sandbox.run(program)
    assert result.stdout == plain.stdout == "a\n" and result.exit == plain.returncode
    assert result.stderr == plain.stderr.replace(f"{tmp_path}/", "")


async def test_the_end_of_a_program_is_a_plain_pythons(sandbox: Sandbox) -> None:
    code = """
        import atexit, threading, time
        atexit.register(print, "handler")
        threading.Thread(target=lambda: (time.sleep(0.05), print("thread"))).start()
        print("main")
    """
    assert (await sandbox.run(textwrap.dedent(code))).stdout == "main\nthread\nhandler\n"


async def test_programs_share_nothing(sandbox: Sandbox) -> None:
    code = "import os, math; print(os.listdir('.'), hasattr(math, 'mark')); math.mark = 1; open('f', 'w').write('x')"
    results = [await sandbox.run(code) for _ in range(6)]
    assert {result.stdout for result in results} == {"[] False\n"}


async def test_the_same_program_prints_the_same(sandbox: Sandbox) -> None:
    code = "print({str(i) for i in range(50)}, __name__, __import__('sys').argv)"
    results = await asyncio.gather(*(sandbox.run(code) for _ in range(8)))
    assert len({result.stdout for result in results}) == 1


async def test_the_environment_of_the_caller_is_not_seen(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GYMRL_TEST_SECRET", "hush")
    result = await sandbox.run("import os; print(sorted(os.environ), os.listdir('/proc/self/fd'))")
    assert result.ok and "SECRET" not in result.stdout


async def test_a_long_source_runs(sandbox: Sandbox) -> None:
    code = f"text = {'é' * 2_000_000!r}\nprint(len(text))"
    assert (await sandbox.run(code, limits=Limits(memory=2**30))).stdout == "2000000\n"


async def test_many_at_once_keep_apart(sandbox: Sandbox) -> None:
    results = await asyncio.gather(*(sandbox.run(f"print({i} * {i})") for i in range(64)))
    assert [int(result.stdout) for result in results] == [i * i for i in range(64)]


def test_any_event_loop_may_use_it() -> None:
    box = shared_sandbox("local")
    assert box is shared_sandbox("local")
    for i in range(3):
        assert asyncio.run(box.run(f"print({i})")).stdout == f"{i}\n"


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_text_comes_back_as_it_was_printed(text: str) -> None:
    result = asyncio.run(shared_sandbox("local").run(f"import sys; sys.stdout.write({text!r})"))
    assert (result.stdout, result.stderr, result.exit) == (text, "", 0)


@settings(max_examples=40)
@given(code=st.text(st.characters(exclude_characters="\r"), max_size=40))
def test_any_source_ends_as_python_would_end_it(code: str) -> None:
    result = asyncio.run(shared_sandbox("local").run(code))
    try:
        compile(code, "main.py", "exec")
    except (SyntaxError, ValueError, UnicodeError, OverflowError, MemoryError):
        assert result.exit == 1 and result.stderr
    else:
        assert result.killed_by in ("", "timeout")


# -- limits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "print('early', flush=True)\nwhile True: pass",
        "print('early', flush=True)\nimport time; time.sleep(60)",
        "print('early', flush=True)\nimport signal; signal.signal(15, signal.SIG_IGN); signal.pause()",
        "print('early', flush=True)\nimport subprocess; subprocess.run(['sleep', '60'], env={'PATH': '/bin:/usr/bin'})",
    ],
)
async def test_a_time_out_ends_it_and_keeps_what_it_printed(sandbox: Sandbox, code: str) -> None:
    result = await sandbox.run(code, timeout=0.4)
    assert result.killed_by == "timeout" and not result.ok and result.exit < 0 and result.stdout == "early\n"


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan"), float("inf")])
async def test_a_time_out_is_a_positive_number(sandbox: Sandbox, timeout: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        await sandbox.run("pass", timeout=timeout)


async def test_output_is_cut_and_a_flood_is_stopped(sandbox: Sandbox) -> None:
    limits = Limits(output=1000)
    result = await sandbox.run(
        "import sys\nprint('é' * 5000)\nprint('y' * 5000, file=sys.stderr)", 5.0, limits
    )
    assert result.ok and len(result.stdout.encode()) == 1000 and result.stderr == "y" * 1000
    result = await sandbox.run("print('x' * 100_000_000)", 20.0)
    assert result.killed_by == "output" and result.stdout == "x" * Limits().output
    result = await sandbox.run("import sys\nwhile True: sys.stderr.write('x' * 10_000)", 20.0)
    assert result.killed_by == "output" and len(result.stderr) == Limits().output


async def test_memory_is_limited(sandbox: Sandbox) -> None:
    result = await sandbox.run("x = bytearray(2**30)\nprint('no')", limits=Limits(memory=256 * 2**20))
    assert not result.ok and result.stdout == ""
    assert result.killed_by == "memory" or "MemoryError" in result.stderr
    assert (await sandbox.run("x = bytearray(2**26)\nprint('yes')")).stdout == "yes\n"


async def test_files_are_limited(sandbox: Sandbox) -> None:
    code = "with open('f', 'wb') as f:\n    f.write(bytes(2**20))\n    f.flush()\nprint('no')"
    result = await sandbox.run(code, limits=Limits(file_size=2**19))
    assert result.exit == 1 and "File too large" in result.stderr and result.stdout == ""


async def test_a_fork_bomb_is_stopped(sandbox: Sandbox) -> None:
    result = await sandbox.run("import os\nwhile True: os.fork()", timeout=10.0)
    assert not result.ok and (result.killed_by == "processes" or "BlockingIOError" in result.stderr)
    assert (await sandbox.run("print('next')")).stdout == "next\n"


async def test_a_crash_of_the_interpreter_is_a_signal(sandbox: Sandbox) -> None:
    result = await sandbox.run("import os; os.abort()")
    assert (result.exit, result.killed_by) == (-signal.SIGABRT, "signal")


async def test_no_descriptor_of_the_sandbox_is_open_to_the_program(sandbox: Sandbox) -> None:
    code = """
        import os
        for fd in range(3, 256):
            try:
                os.write(fd, b"e" + bytes(15))
                print("wrote to", fd)
            except OSError:
                pass
        os._exit(9)
    """
    result = await sandbox.run(textwrap.dedent(code))
    assert (result.stdout, result.exit) == ("", 9)


# -- sessions -----------------------------------------------------------------------------------------


async def test_a_session_remembers_and_shows_values(sandbox: Sandbox) -> None:
    session = await sandbox.session()
    try:
        first = await session.run("import math\nx = 20\nx + 1")
        assert (first.value, first.stdout, first.exit) == ("21", "", 0)
        assert (await session.run("print(x)\nx * 2.5")).value == "50.0"
        assert (await session.run("y = x")).value == ""
        assert (await session.run("None")).value == ""
        assert (await session.run("'a' + 'é'")).value == "'aé'"
        error = await session.run("def f():\n    return x / 0\nf()")
        assert error.exit == 1 and "return x / 0" in error.stderr and "ZeroDivisionError" in error.stderr
        assert (await session.run("import sys; sys.exit(3)")).exit == 3
        assert (await session.run("x + y, math.floor(1.5)")).value == "(40, 1)"
        assert (await session.run("(")).exit == 1
        assert (await session.run("\0")).exit == 1
        assert len((await session.run("'x' * 10**6", limits=Limits(output=100))).value) == 100
        assert len((await session.run("print('x' * 10**5)", limits=Limits(output=100))).stdout) == 100
    finally:
        await session.close()


@pytest.mark.parametrize(
    "code, killed_by, note",
    [
        ("while True: pass", "timeout", "took more than 0.5 s"),
        ("import os; os._exit(4)", "", "ended with status 4"),
        ("import os; os.abort()", "signal", "ended by signal 6"),
        ("while True: print('x' * 10**6)", "output", "printed too much"),
        ("import os\nwhile True: os.fork()", "processes", "too many processes"),
    ],
)
async def test_a_session_that_ends_says_so_and_starts_afresh(
    sandbox: Sandbox, code: str, killed_by: str, note: str
) -> None:
    session = await sandbox.session()
    try:
        await session.run("x = 1; open('f', 'w').close()")
        timeout = 0.5 if killed_by == "timeout" else 20.0
        result = await session.run(code, timeout)
        assert not result.ok and result.killed_by == killed_by and note in result.stderr
        assert "starts afresh" in result.stderr
        fresh = await session.run("import os\n'x' in globals(), os.listdir('.')")
        assert fresh.value == "(False, [])"
    finally:
        await session.close()


async def test_reset_forgets_variables_and_files(sandbox: Sandbox) -> None:
    session = await sandbox.session()
    await session.run("x = 1; open('f', 'w').close()")
    await session.reset()
    assert (await session.run("import os\n'x' in globals(), os.listdir('.')")).value == "(False, [])"
    pid = int((await session.run("os.getpid()")).value)
    await session.close()
    assert await gone(pid)
    with pytest.raises(SandboxFault, match="closed"):
        await session.run("1")


async def test_sessions_share_nothing(sandbox: Sandbox) -> None:
    sessions = [await sandbox.session() for _ in range(3)]
    try:
        await asyncio.gather(*(session.run(f"x = {i}") for i, session in enumerate(sessions)))
        assert [(await session.run("x")).value for session in sessions] == ["0", "1", "2"]
    finally:
        for session in sessions:
            await session.close()


# -- the local backend's workers ----------------------------------------------------------------------


async def test_what_a_program_leaves_running_is_killed() -> None:
    box = LocalSandbox(workers=1)
    code = """
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                print(os.getpid(), flush=True)
                time.sleep(60)
            os._exit(0)
        os.wait()
        time.sleep(0.1)
    """
    result = await box.run(textwrap.dedent(code))
    assert result.ok and await gone(int(result.stdout))
    await box.close()


async def test_a_dead_worker_is_a_fault_and_is_replaced() -> None:
    box = LocalSandbox(workers=1)
    with pytest.raises(SandboxFault, match="died"):
        await box.run("import os, signal; os.kill(os.getppid(), signal.SIGKILL)")
    worker = int((await box.run("import os; print(os.getppid())")).stdout)
    os.kill(worker, signal.SIGKILL)
    assert await gone(worker)
    assert (await box.run("print('next')")).stdout == "next\n"
    await box.close()
    with pytest.raises(SandboxFault, match="closed"):
        await box.run("pass")


async def test_a_worker_that_is_stopped_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gymrl.sandboxes.local.GRACE", 0.5)
    box = LocalSandbox(workers=1)
    with pytest.raises(SandboxFault, match="died"):
        await box.run("import os, signal; os.kill(os.getppid(), signal.SIGSTOP)", timeout=0.5)
    assert (await box.run("print('next')")).stdout == "next\n"
    await box.close()


async def test_a_cancelled_call_leaves_the_sandbox_usable() -> None:
    box = LocalSandbox(workers=1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(box.run("while True: pass", timeout=0.5), 0.1)
    assert (await box.run("print('next')")).stdout == "next\n"
    await box.close()


async def test_close_leaves_no_process_and_no_folder() -> None:
    box = LocalSandbox(workers=2)
    results = await asyncio.gather(*(box.run("import os, time; print(os.getppid(), os.getcwd()); time.sleep(0.1)")
                                     for _ in range(2)))  # fmt: skip
    await box.close()
    for result in results:
        pid, folder = result.stdout.split()
        assert await gone(int(pid)) and not Path(folder).exists()


def test_a_worker_whose_parent_went_without_listening_leaves_nothing() -> None:
    worker = Worker()
    pipe = os.pipe()
    worker.begin(zygote.RUN, [pipe[1], pipe[1]], b"print(1)", 5.0, Limits())
    select.select([worker.control], [], [], 20)  # its status is there, and nobody reads it
    worker.control.close()
    assert worker.process.wait(20) == 0 and not Path(worker.folder).exists()
    for fd in pipe:
        os.close(fd)


async def test_what_a_program_made_unreadable_is_wiped() -> None:
    box = LocalSandbox(workers=1)
    code = (
        "import os; os.makedirs('a/b'); open('a/b/f', 'w').close(); os.chmod('a/b', 0); os.chmod('a', 0o500)"
    )
    await box.run(code)
    assert (await box.run("import os; print(os.listdir('.'))")).stdout == "[]\n"
    [worker] = box._idle.queue
    await box.close()
    assert not os.path.exists(worker.folder)


def test_workers_die_with_a_killed_parent(tmp_path: Path) -> None:
    script = """
        import asyncio, os
        from gymrl.sandboxes import open_sandbox
        async def main():
            box = open_sandbox("local")
            session = await box.session()
            print((await box.run("import os; print(os.getppid(), os.getcwd())")).stdout.strip(),
                  (await session.run("import os\\nos.getpid()")).value, flush=True)
            await box.run("import time; time.sleep(60)", timeout=60)
        if os.fork() == 0:
            import time
            time.sleep(30)  # a fork of the parent, which holds no copy of a later worker's socket
        else:
            asyncio.run(main())
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert parent.stdout is not None
    worker, folder, session = parent.stdout.readline().split()
    assert alive(int(worker)) and alive(int(session))
    parent.kill()
    parent.wait()
    for pid in (worker, session):
        assert asyncio.run(gone(int(pid)))
    for _ in range(100):
        if not Path(folder).exists():
            break
        time.sleep(0.05)
    assert not Path(folder).exists()
    os.killpg(parent.pid, signal.SIGKILL)
    parent.stdout.close()


async def test_a_forked_copy_of_the_sandbox_works() -> None:
    box = LocalSandbox(workers=1)
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
