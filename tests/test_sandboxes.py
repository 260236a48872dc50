"""What every sandbox does, whatever isolates it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gymrl.sandboxes import (
    BACKENDS,
    Limits,
    Sandbox,
    SandboxFault,
    SandboxUnavailable,
    Session,
    open_sandbox,
    shared_sandbox,
)  # fmt: skip


@pytest.fixture(params=BACKENDS)
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    if request.param == "docker":
        request.getfixturevalue("docker_engine")
    try:
        return shared_sandbox(request.param)
    except SandboxUnavailable as unavailable:
        pytest.skip(str(unavailable))


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
    result = await sandbox.run("import os; print(sorted(os.environ))")
    assert result.stdout == "['HOME', 'LANG', 'PATH', 'TMPDIR']\n"


async def test_a_long_source_runs(sandbox: Sandbox) -> None:
    code = f"text = {'é' * 2_000_000!r}\nprint(len(text))"
    assert (await sandbox.run(code, limits=Limits(memory=2**30))).stdout == "2000000\n"


async def test_many_at_once_keep_apart(sandbox: Sandbox) -> None:
    results = await asyncio.gather(*(sandbox.run(f"print({i} * {i})") for i in range(64)))
    assert [int(result.stdout) for result in results] == [i * i for i in range(64)]


def test_any_event_loop_may_use_it() -> None:
    box = shared_sandbox()
    assert box is shared_sandbox()
    for i in range(3):
        assert asyncio.run(box.run(f"print({i})")).stdout == f"{i}\n"


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_text_comes_back_as_it_was_printed(text: str) -> None:
    result = asyncio.run(shared_sandbox().run(f"import sys; sys.stdout.write({text!r})"))
    assert (result.stdout, result.stderr, result.exit) == (text, "", 0)


@settings(max_examples=40)
@given(code=st.text(st.characters(exclude_characters="\r"), max_size=40))
def test_any_source_ends_as_python_would_end_it(code: str) -> None:
    result = asyncio.run(shared_sandbox().run(code))
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
        "print('early', flush=True)\nimport os, time\ntry: os.fork()\nexcept OSError: pass\ntime.sleep(60)",
    ],
)
async def test_a_time_out_ends_it_and_keeps_what_it_printed(sandbox: Sandbox, code: str) -> None:
    result = await sandbox.run(code, timeout=0.4)
    assert result.killed_by == "timeout" and not result.ok and result.exit < 0 and result.stdout == "early\n"


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan"), float("inf"), 1e300])
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
    code = """
        for i in range(64):
            with open(str(i), 'wb') as file:
                file.write(bytes(2**18))
        import time; time.sleep(0.2)
        print("no")
    """
    result = await sandbox.run(textwrap.dedent(code), limits=Limits(disk=2**20), timeout=20.0)
    assert result.stdout == "" and (result.killed_by == "disk" or "No space left" in result.stderr), result


async def test_a_fork_bomb_is_stopped(sandbox: Sandbox) -> None:
    result = await sandbox.run("import os\nwhile True: os.fork()", timeout=10.0)
    assert not result.ok
    assert (
        result.killed_by == "processes"
        or "BlockingIOError" in result.stderr
        or "PermissionError" in result.stderr
    )
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


@pytest.fixture(params=["checkpoint", "plain"])
async def session(request: pytest.FixtureRequest, sandbox: Sandbox) -> AsyncIterator[Session]:
    session = await sandbox.session(checkpoint=request.param == "checkpoint")
    yield session
    await session.close()


async def test_a_session_remembers_and_shows_values(session: Session) -> None:
    first = await session.run("import math\nx = 20\nx + 1")
    assert (first.value, first.stdout, first.exit) == ("21", "", 0)
    assert (await session.run("print(x)\nx * 2.5")).value == "50.0"
    assert (await session.run("y = x")).value == ""
    assert (await session.run("None")).value == ""
    assert (await session.run("'a' + 'é'")).value == "'aé'"
    error = await session.run("z = 4\ndef f():\n    return x / 0\nf()")
    assert error.exit == 1 and "return x / 0" in error.stderr and "ZeroDivisionError" in error.stderr
    assert (await session.run("x + y + z, math.floor(1.5)")).value == "(44, 1)"
    assert (await session.run("(")).exit == 1
    assert (await session.run("\0")).exit == 1
    assert len((await session.run("'x' * 10**6", limits=Limits(output=100))).value) == 100
    assert len((await session.run("print('x' * 10**5)", limits=Limits(output=100))).stdout) == 100
    assert (await session.run(f"len({'é' * 100_000!r})")).value == "100000"


async def test_files_and_the_working_folder_live_on(session: Session) -> None:
    await session.run("import os; os.mkdir('d'); os.chdir('d'); print('text', file=open('f', 'w'))")
    shown = await session.run("os.path.basename(os.getcwd()), open('f').read()")
    assert shown.value == "('d', 'text\\n')"


ENDINGS = [
    ("while True: pass", "timeout", "took more than 0.5 s"),
    ("import os; os._exit(4)", "", "exited with status 4"),
    ("import os; os.abort()", "signal", "ended by signal"),
    ("while True: print('x' * 10**6)", "output", "printed too much"),
]


@pytest.mark.parametrize(
    "code, killed_by, note", [*ENDINGS, ("import sys; sys.exit(3)", "", "exited with status 3")]
)
async def test_a_turn_that_goes_wrong_is_undone(
    sandbox: Sandbox, code: str, killed_by: str, note: str
) -> None:
    session = await sandbox.session()
    try:
        await session.run("x = 1; print('old', file=open('f', 'w')); import os; os.mkdir('d')")
        harm = "x = 2; print('new', file=open('f', 'w')); open('g', 'w').close(); import os; os.rmdir('d')\n"
        result = await session.run(harm + code, 0.5 if killed_by == "timeout" else 20.0)
        assert not result.ok and result.killed_by == killed_by and note in result.stderr
        assert "the session is as it was before this run" in result.stderr
        look = "x, sorted(os.listdir('.')), open('f').read().strip()"
        assert (await session.run(look)).value == "(1, ['d', 'f'], 'old')"
    finally:
        await session.close()


@pytest.mark.parametrize("code, killed_by, note", ENDINGS)
async def test_without_checkpoints_it_starts_afresh(
    sandbox: Sandbox, code: str, killed_by: str, note: str
) -> None:
    session = await sandbox.session(checkpoint=False)
    try:
        await session.run("x = 1; open('f', 'w').close()")
        result = await session.run(code, 0.5 if killed_by == "timeout" else 20.0)
        assert not result.ok and result.killed_by == killed_by and note in result.stderr
        assert "starts afresh" in result.stderr
        fresh = await session.run("import os\n'x' in globals(), os.listdir('.')")
        assert fresh.value == "(False, [])"
    finally:
        await session.close()


async def test_a_fork_bomb_leaves_a_session_as_it_was(sandbox: Sandbox) -> None:
    session = await sandbox.session()
    await session.run("import os; x = 5")
    result = await session.run("while True: os.fork()", 10.0)
    assert not result.ok
    assert (await session.run("x")).value == "5"
    await session.close()


async def test_a_child_of_a_turn_says_nothing_in_its_name(sandbox: Sandbox) -> None:
    session = await sandbox.session()
    code = """
        import os, time
        try:
            child = os.fork()
        except OSError:
            child = 1
        if child:
            time.sleep(0.3)
        child > 0
    """
    assert (await session.run(textwrap.dedent(code))).value == "True"
    assert (await session.run("child > 0")).value == "True"
    await session.close()


async def test_snapshots_branch_a_session(session: Session) -> None:
    await session.run("x = [1]; print('a', file=open('f', 'w'))")
    one = await session.snapshot()
    await session.run("x.append(2); print('b', file=open('f', 'w'))")
    two = await session.snapshot()
    look = "x, open('f').read().strip()"
    for _ in range(2):
        await session.restore(one)
        assert (await session.run(look)).value == "([1], 'a')"
        await session.run("import os; x.append(9); os.remove('f')")
        await session.restore(two)
        assert (await session.run(look)).value == "([1, 2], 'b')"
    await session.run("while True: pass", 0.2)
    await session.reset()
    fresh = await session.run("'x' in globals(), __import__('os').listdir('.')")
    assert fresh.value == "(False, [])"
    await session.restore(two)
    assert (await session.run(look)).value == "([1, 2], 'b')"
    with pytest.raises(ValueError, match="no snapshot 7"):
        await session.restore(7)


async def test_reset_forgets_variables_and_files(session: Session) -> None:
    await session.run("x = 1; open('f', 'w').close()")
    await session.reset()
    fresh = await session.run("import os\n'x' in globals(), os.listdir('.')")
    assert fresh.value == "(False, [])"
    await session.close()
    with pytest.raises(SandboxFault, match="closed"):
        await session.run("1")


async def test_sessions_share_nothing(sandbox: Sandbox) -> None:
    sessions = [await sandbox.session() for _ in range(3)]
    try:
        await asyncio.gather(*(s.run(f"x = {i}; open('f{i}', 'w').close()") for i, s in enumerate(sessions)))
        look = "x, __import__('os').listdir('.')"
        assert [(await s.run(look)).value for s in sessions] == [f"({i}, ['f{i}'])" for i in range(3)]
    finally:
        for session in sessions:
            await session.close()


TAMPERING = [
    "import os; os.kill(-1, 9)",
    "import os; os.closerange(3, 100)",
    "import os\nfor _ in range(50): os.write(3, b'd' * 13)",
    "import os\nos.write(3, b'd' + bytes(12) + b'x' * 100)\nwhile True: pass",
    "import sys\nsys._getframe(1).f_globals.clear()",
    "import builtins\nbuiltins.__dict__.clear()",
    "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\nx = 3",
    "import os\nfor pid in range(1, 300):\n    try: os.kill(pid, 9)\n    except OSError: pass",
]


@pytest.mark.parametrize("code", TAMPERING)
@pytest.mark.parametrize("backend", ["namespaces", "confined"])
async def test_a_session_that_is_tampered_with_goes_on_or_starts_afresh(backend: str, code: str) -> None:
    """Whatever a program does to its own session, the calls come back and others are not touched."""
    try:
        sandbox = shared_sandbox(backend)
    except SandboxUnavailable as unavailable:
        pytest.skip(str(unavailable))
    other, session = await sandbox.session(), await sandbox.session()
    try:
        await other.run("y = 7")
        await session.run("x = 1")
        for _ in range(2):
            with contextlib.suppress(SandboxFault):
                await asyncio.wait_for(session.run(code, 2.0), 60)
        with contextlib.suppress(SandboxFault):
            await session.reset()
        assert (await session.run("1 + 1")).value == "2"
        assert (await other.run("y")).value == "7"
    finally:
        await session.close()
        await other.close()


def one_worker() -> Sandbox:
    try:
        return open_sandbox("namespaces", workers=1)
    except SandboxUnavailable as unavailable:
        pytest.skip(str(unavailable))


@pytest.mark.parametrize(
    "deed",
    ["os.listdir('.')", "os.mkdir('d'); os.rmdir('d')", "os.chmod('.', 0o700)", "os.utime('.', (1, 1))",
     "os.close(os.open('.', os.O_TMPFILE | os.O_RDWR))", "os.setxattr('.', 'user.x', b'1')"],
)  # fmt: skip
async def test_the_next_run_sees_nothing_of_what_was_done_to_a_folder(deed: str) -> None:
    """Folders are kept where a run has done nothing to them: none of these is nothing."""
    look = (
        "print(os.fstat(os.open('.', os.O_TMPFILE | os.O_RDWR)).st_ino, os.stat('.').st_mode, os.listxattr('.'), "
        "os.stat('.').st_mtime > 1)"
    )
    box = one_worker()
    fresh = (await box.run(f"import os; {look}")).stdout
    for folder in ("/work", "/tmp"):
        done = await box.run(f"import os; os.chdir({folder!r}); {deed}")
        after = (await box.run(f"import os; os.chdir({folder!r}); {look}")).stdout
        if done.ok:  # else the kernel has refused it, and the numbers of files may go on
            assert fresh and after == fresh, (folder, after)
        assert after.partition(" ")[2] == fresh.partition(" ")[2], (folder, after)
    await box.close()


async def test_a_folder_that_holds_no_more_files_ends_no_worker() -> None:
    fill = (
        "made = 0\ntry:\n    while True:\n        open(str(made), 'w').close()\n        made += 1\n"
        "except OSError:\n    print(made)"
    )
    box = one_worker()
    for _ in range(3):
        for _ in range(2):  # the second has the folders of the first, which are older than a tick of the clock
            assert (await box.run("print(1)")).stdout == "1\n"
            await asyncio.sleep(0.02)
        assert int((await box.run(fill, timeout=30.0)).stdout) > 1000
    assert (await box.run("import os; print(os.listdir('.'))")).stdout == "[]\n"
    await box.close()
