"""Shells of the sandboxes: a real bash in a working tree, its limits, and what attacks it withstands."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gymrl.sandboxes import (
    Limits,
    Sandbox,
    SandboxFault,
    SandboxUnavailable,
    ShellSession,
    shared_sandbox,
)
from gymrl.sandboxes.attacks import ATTACKS, attempt
from gymrl.sandboxes.attacks.shells import ShellSandbox
from gymrl.sandboxes.attacks.site import Site
from gymrl.sandboxes.tree import working_tree


@pytest.fixture(params=["namespaces", "docker", "none"])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    if request.param == "docker":
        request.getfixturevalue("docker_engine")
    try:
        return shared_sandbox(request.param)
    except SandboxUnavailable as unavailable:
        pytest.skip(str(unavailable))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "tree"
    (folder / "src" / "deep").mkdir(parents=True)
    (folder / "README").write_text("read me\n")
    (folder / "src" / "main.py").write_text("print(6 * 7)\n")
    (folder / "src" / "run").write_text("#!/bin/bash\necho ran\n")
    (folder / "src" / "run").chmod(0o755)
    (folder / "src" / "deep" / "bytes").write_bytes(bytes(range(256)) * 5000)
    (folder / "src" / "link").symlink_to("main.py")
    (folder / "broken").symlink_to("/nowhere/at/all")
    os.mkfifo(folder / "pipe")
    return folder


@pytest.fixture
async def shell(sandbox: Sandbox, tree: Path) -> AsyncIterator[ShellSession]:
    shell = await sandbox.shell(tree)
    yield shell
    await shell.close()


async def test_it_is_a_real_bash_in_the_working_tree(shell: ShellSession, sandbox: Sandbox) -> None:
    result = await shell.exec('echo "$BASH_VERSION" | grep -c . ; cat README; ls; src/run; readlink src/link')
    assert result.stdout == "1\nread me\nREADME\nbroken\nsrc\nran\nmain.py\n" and result.ok
    assert result.backend == sandbox.backend and result.seconds > 0 and result.stderr == ""
    assert (await shell.exec("cd src; python3 main.py")).stdout == "42\n"
    assert (await shell.read_file("src/deep/bytes")) == bytes(range(256)) * 5000
    wrong = await shell.exec("cat nothing; ls /; (exit 5)")
    assert wrong.exit == 5 and "No such file" in wrong.stderr and wrong.killed_by == ""
    assert (await shell.exec("if then")).exit == 2
    assert (await shell.exec("no-such-command")).exit == 127


async def test_what_lives_on(shell: ShellSession) -> None:
    await shell.exec("cd src; export A='x\ny é'; B=2; f() { echo fun $1; }; echo new > made; false")
    after = await shell.exec('echo $?; pwd | grep -o src$; echo "$A" $B; f 3; cat made')
    assert after.stdout == "1\nsrc\nx\ny é 2\nfun 3\nnew\n"
    odd = "printf %s 'ä\\t\\\\\"$' \"q\" $'\\x41' | head -c 99; cat <<E\n  a\\b\nE\n\n"
    assert (await shell.exec(odd)).stdout == 'ä\\t\\\\"$qA  a\\b\n'
    assert (await shell.exec(f"echo {'x' * 200_000} | wc -c")).stdout.strip() == "200001"
    assert (await shell.exec("read x; echo $?")).stdout == "1\n"  # nothing to read from


async def test_a_command_that_is_stopped_leaves_the_shell_usable(shell: ShellSession) -> None:
    await shell.exec("cd src; export A=1; B=2")
    for command, killed_by in (
        ("echo early; echo x > late; cd /; sleep 60", "timeout"),
        ("trap '' TERM INT HUP; while :; do :; done", "timeout"),
        ("yes", "output"),
        ("exec yes", "output"),
        ("kill -9 $$", "signal"),
    ):
        result = await shell.exec(command, 0.5 if killed_by == "timeout" else 20.0)
        assert result.killed_by == killed_by and not result.ok and "[shell]" in result.stderr
        assert "in the folder and with the exported variables of before" in result.stderr
        assert (await shell.exec('pwd | grep -o src$; echo "$A,$B"')).stdout == "src\n1,\n"
    assert (await shell.exec("cat late")).stdout == "x\n"
    for command in ("exit 7", "set -e; (exit 7)", "exec bash -c 'exit 7'"):
        left = await shell.exec(command)
        assert left.exit == 7 and left.killed_by == "" and "exited with status 7" in left.stderr
        assert (await shell.exec("echo $A")).stdout == "1\n"


async def test_processes_end_with_their_command(shell: ShellSession) -> None:
    started = await shell.exec(
        "(trap '' TERM HUP; while :; do echo daemon >> trace; sleep 0.01; done) & "
        "setsid -f bash -c 'while :; do echo x >> trace; sleep 0.01; done' 2>/dev/null; echo up"
    )
    assert started.stdout == "up\n" and started.ok
    count = "sleep 0.1; cat trace 2>/dev/null | wc -l"
    first = await shell.exec(count)
    again = await shell.exec(count)
    assert first.stdout == again.stdout and first.stderr == ""


async def test_limits_of_a_command(shell: ShellSession, sandbox: Sandbox) -> None:
    cut = await shell.exec("head -c 5000 /dev/zero | tr '\\0' a", limits=Limits(output=100))
    assert cut.stdout == "a" * 100 and cut.ok
    large = await shell.exec("python3 -c 'x = b\"x\" * 2**30; print(1)'")
    assert not large.ok and large.stdout == ""
    if sandbox.backend == "none":  # nothing but looking bounds these there
        return
    bomb = await shell.exec("f() { f | f & }; f; wait; sleep 1", 5.0)
    assert bomb.killed_by == "processes" or "fork" in bomb.stderr
    full = await shell.exec("for i in $(seq 40); do head -c 4000000 /dev/zero > f$i || exit 3; done", 20.0)
    assert (full.exit == 3 and "No space left" in full.stderr) or full.killed_by == "disk"
    await shell.reset()
    assert (await shell.exec("echo fine; ls")).stdout == "fine\nREADME\nbroken\nsrc\n"


async def test_reset_brings_the_working_tree_back(shell: ShellSession, tree: Path) -> None:
    show = "pwd; find . | sort; cat README; stat -c '%a' README src src/run; stat -c %Y README; echo \"[$A]\""
    before = await shell.exec(show)
    for _ in range(2):
        await shell.exec(
            "export A=1; echo more >> README; rm -rf src; mkdir -p src new/a; touch src/other .hidden; "
            "chmod 0 new/a; chmod 700 README; mkfifo p; touch $TMPDIR/t; rm broken; echo x > broken; "
            "ln -s / l; sleep 60 & cd src"
        )
        await shell.reset()
        after = await shell.exec(show + "; ls -A $TMPDIR")
        assert after.stdout == before.stdout and after.stderr == ""
    assert (await shell.exec("src/run")).stdout == "ran\n"
    assert (tree / "README").read_text() == "read me\n"  # the folder itself is not touched


async def test_files_are_read_and_written_with_the_shells_rights(shell: ShellSession) -> None:
    await shell.write_file("new/deep/file", "é\n")
    await shell.write_file("src/main.py", b"print(1)\n")
    await shell.exec("mkdir d; chmod 700 d; ln -s /etc/shadow s; ln -s $PWD/README r; mkfifo p; cd src")
    assert (await shell.exec("cat ../new/deep/file; python3 main.py; stat -c %a link")).ok
    assert await shell.read_file("r") == b"read me\n"
    for path, error in (
        ("gone", FileNotFoundError),
        ("d", IsADirectoryError),
        ("p", OSError),
        ("a/\0", OSError),
    ):
        with pytest.raises(error):
            await shell.read_file(path)
    with pytest.raises(OSError, match="File too large"):
        await shell.read_file("src/deep/bytes", most=1000)
    with pytest.raises(OSError):
        await shell.write_file("README/below", b"")
    with pytest.raises(OSError):
        await shell.write_file("large", bytes(17 * 2**20))


async def test_links_do_not_lead_reading_and_writing_outside(sandbox: Sandbox, tmp_path: Path) -> None:
    if sandbox.backend == "none":
        pytest.skip("nothing is out of reach there")
    (tmp_path / "secret").write_text("hush")
    (tmp_path / "secret").chmod(0o666)
    shell = await sandbox.shell()
    await shell.exec(f"ln -s {tmp_path}/secret s; ln -s {tmp_path} d; ln -s /etc/shadow e")
    for path in ("s", "d/secret", "e", f"{tmp_path}/secret", "../../../../etc/shadow"):
        with pytest.raises(OSError):
            await shell.read_file(path)
    for path in ("s", "d/new", f"{tmp_path}/other"):
        with contextlib.suppress(OSError):  # there may be such a place inside
            await shell.write_file(path, "mine")
    with pytest.raises(OSError):
        await shell.write_file("/etc/passwd", "mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret"]
    assert (tmp_path / "secret").read_text() == "hush"
    await shell.close()


async def test_shells_share_nothing(sandbox: Sandbox, tree: Path) -> None:
    shells = [await sandbox.shell(tree) for _ in range(2)]
    await asyncio.gather(*(shell.exec(f"echo {i} > README; X={i}") for i, shell in enumerate(shells)))
    shown = [(await shell.exec("cat README; echo $X; ls $TMPDIR")).stdout for shell in shells]
    assert shown == ["0\n0\n", "1\n1\n"]
    calls = await asyncio.gather(*(shells[0].exec(f"sleep 0.01; echo {i}") for i in range(8)))
    assert [call.stdout for call in calls] == [f"{i}\n" for i in range(8)]  # one after the other
    for shell in shells:
        await shell.close()
    with pytest.raises(SandboxFault, match="closed"):
        await shells[0].exec("true")


TAMPERING = [
    "printf() { :; }; builtin() { :; }; eval() { :; }; export() { :; }",
    "trap 'echo said' DEBUG; trap 'echo again' ERR EXIT",
    "set -x; set -u; IFS=0123456789; shopt -s extdebug",
    "__gymrl_text=x; __gymrl_status=words; readonly __gymrl_status",
    "for i in $(seq 3 127); do eval \"exec $i>&-\"; done 2>/dev/null",
    "exec >&- 2>&- <&-",
    "kill -STOP $$",
    "rm -rf -- \"$PWD\"; cd /; unset PWD HOME PATH",
    "exec 10>f 11>f 12>f; for i in 10 11 12; do printf '0\\0x\\0' >&$i; done",
    "kill -9 -1",
]  # fmt: skip


@pytest.mark.parametrize("command", TAMPERING)
async def test_a_shell_that_is_tampered_with_comes_back(command: str) -> None:
    """Whatever a command does to its own bash, calls return, and a reset gives a shell as good as new."""
    try:
        box = shared_sandbox("namespaces")
    except SandboxUnavailable as unavailable:
        pytest.skip(str(unavailable))
    shell, other = await box.shell(), await box.shell()
    await other.exec("x=7")
    await asyncio.wait_for(shell.exec(command, 1.0), 60)
    await asyncio.wait_for(shell.exec("true", 1.0), 60)
    await shell.reset()
    again = await shell.exec("echo fine; pwd; ls")
    assert (again.stdout, again.stderr, again.exit) == ("fine\n/work\n", "", 0)
    assert (await other.exec("echo $x")).stdout == "7\n"
    await shell.close()
    await other.close()


async def test_a_command_that_is_cancelled_goes_to_its_end(sandbox: Sandbox) -> None:
    shell = await sandbox.shell()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(shell.exec("sleep 0.3; echo x > f"), 0.05)
    assert (await shell.exec("cat f")).stdout == "x\n"
    await shell.close()


async def test_a_worker_that_dies_is_a_fault_and_the_next_command_starts_afresh(
    sandbox: Sandbox, tree: Path
) -> None:
    if sandbox.backend == "docker":
        pytest.skip("its worker is not this user's to kill")
    shell = await sandbox.shell(tree)
    await shell.exec("echo changed > README")
    process = shell._exchange.worker.process  # type: ignore[attr-defined]
    os.kill(process.pid, signal.SIGKILL)
    process.wait(30)  # a kill takes effect when the process is next scheduled; until then it may still serve
    with pytest.raises(SandboxFault, match="died"):
        await shell.exec("cat README")
    assert (await shell.exec("cat README")).stdout == "read me\n"
    await shell.close()


async def test_what_cannot_be_had_is_told_with_its_mend(tmp_path: Path) -> None:
    try:
        confined = shared_sandbox("confined")
    except SandboxUnavailable as unavailable:
        pytest.skip(str(unavailable))
    with pytest.raises(
        SandboxUnavailable, match=r"'confined' starts no processes.*take 'namespaces' or 'docker'"
    ):
        await confined.shell()
    box = shared_sandbox("none")
    with pytest.raises(ValueError, match=r"cannot be read.*give a folder that can"):
        await box.shell(tmp_path / "gone")
    shell = await box.shell()
    nul = await shell.exec("echo a\0b")
    assert nul.exit == 2 and "NUL" in nul.stderr
    with pytest.raises(ValueError, match="positive"):
        await shell.exec("true", timeout=0)
    broken = await shell.exec("printf '\udcff' | od -An -tx1")
    assert broken.exit == 0 and broken.stdout
    await shell.close()


def test_a_tree_is_listed_folders_first(tree: Path) -> None:
    found = working_tree(tree)
    paths = [item.path for item in found.items]
    assert "pipe" not in paths and set(paths) > {"src", "src/deep", "src/deep/bytes", "broken"}
    assert all(os.path.dirname(path) in ("", *paths[:i]) for i, path in enumerate(paths))
    assert len(b"".join(found.stream())) > found.items[0].size and working_tree("").items == ()


CHOSEN = """
read a file of the host
list the host's folders
read descriptors that were left open
read another process's memory
write to a file of the host
make files outside
connect to a server of the host
connect to Unix sockets
make a socket of any family
raise its own limits
send signals to others
endless output
many files
six processes over the memory limit together
make namespaces
keyrings
io_uring
leave files for the next run
leave a process for the next run
leave the folder unusable
""".strip().splitlines()


@pytest.mark.parametrize("backend", ["namespaces", "docker"])
async def test_attacks_by_way_of_a_shell_are_stopped(backend: str, request: pytest.FixtureRequest) -> None:
    """A few of them; `gymrl sandbox check --shell` tries them all."""
    if backend == "docker":
        request.getfixturevalue("docker_engine")
    try:
        box = ShellSandbox(shared_sandbox(backend))
    except SandboxUnavailable as unavailable:
        pytest.skip(str(unavailable))
    chosen = [attack for attack in ATTACKS if attack.name in CHOSEN]
    assert len(chosen) == len(CHOSEN)
    chosen = chosen[::3] if backend == "docker" else chosen
    with Site() as site:
        verdicts = [await attempt(box, attack, site) for attack in chosen]
    assert [f"{v.attack.name}: {v.how}" for v in verdicts if not v.stopped] == []
    await box._end()
