"""A worker's memory cgroup: the kernel's ceiling, what a run that meets it comes to, and that nothing is left."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gymrl.sandboxes import Limits, SandboxUnavailable, cgroup, open_sandbox
from gymrl.sandboxes.inside import protocol
from gymrl.sandboxes.pool import PoolSandbox
from gymrl.sandboxes.worker import Worker

MIB = 2**20
ROOM = 48 * MIB
HOARD = "x = bytearray(b'x' * (120 << 20))"
CHILD = f"import os\nif os.fork() == 0:\n    {HOARD}\n    os._exit(0)\n"


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> cgroup.Place:
    monkeypatch.setenv(cgroup.SWITCH, "on")
    found = cgroup.find()
    if isinstance(found, str):
        pytest.skip(f"no memory cgroup can be made here: {found}")
    return found


@pytest.fixture
def low(place: cgroup.Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ceiling below the limit, so that it is met before the look at the processes sees anything."""
    monkeypatch.setattr(cgroup.Ceiling, "above", lambda ceiling, *_: ceiling.baseline + ROOM)


def opened() -> PoolSandbox:
    try:
        box = open_sandbox("namespaces", workers=1)
    except SandboxUnavailable as unavailable:
        pytest.skip(str(unavailable))
    assert isinstance(box, PoolSandbox)
    return box


def worker_of(box: PoolSandbox) -> Worker:
    [worker] = box._idle.queue
    assert worker is not None
    return worker


def group_of(worker: Worker) -> cgroup.Cgroup:
    assert worker.group is not None
    return worker.group


def gone(path: Path) -> bool:
    deadline = time.monotonic() + 30
    while path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return not path.exists()


async def test_the_worker_and_its_programs_are_in_a_cgroup_with_a_ceiling(place: cgroup.Place) -> None:
    box = opened()
    group = group_of(worker_of(box))
    assert group.path.parent == place.folder
    members = (group.path / "cgroup.procs").read_text().split()
    assert str(worker_of(box).process.pid) in members and len(members) == 2  # and process 1 of the jail
    assert (await box.run("pass")).ok
    usual = int(group.limit.read_text())
    assert 512 * MIB < usual < 1024 * MIB
    small = Limits(memory=64 * MIB, disk=MIB)
    assert (await box.run("pass", limits=small)).ok
    assert 64 * MIB < int(group.limit.read_text()) < 192 * MIB
    swap = group.path / ("memory.memsw.limit_in_bytes" if place.version == 1 else "memory.swap.max")
    if swap.exists():
        assert int(swap.read_text()) == (int(group.limit.read_text()) if place.version == 1 else 0)
    assert (await box.run("pass")).ok and int(group.limit.read_text()) == usual
    assert f"memory by cgroup (version {place.version})" in box.description
    await box.close()
    assert not group.path.exists()


async def test_full_folders_do_not_count_as_memory(place: cgroup.Place) -> None:
    """They are in memory, and have a limit of their own."""
    box = opened()
    code = """
import os
held = bytearray(b"x") * (40 << 20)
for folder in (os.getcwd(), os.environ["TMPDIR"]):
    for name in range(5):
        with open(f"{folder}/{name}", "wb") as file:
            file.write(bytes(11 << 20))
print("held")
"""
    result = await box.run(code, limits=Limits(memory=64 * MIB, disk=56 * MIB))
    assert (result.stdout, result.exit, result.killed_by) == ("held\n", 0, "")
    await box.close()


@pytest.mark.usefixtures("low")
async def test_a_run_over_the_ceiling_is_stopped_for_memory_and_the_worker_lives() -> None:
    box = opened()
    worker = worker_of(box)
    result = await box.run(HOARD)
    assert (result.exit, result.killed_by) == (-9, "memory")
    result = await box.run(f"{CHILD}import time; time.sleep(60)", timeout=50.0)
    assert (result.exit, result.killed_by) == (-9, "memory")
    assert (await box.run(f"{CHILD}os.wait()", timeout=50.0)).killed_by == "memory"
    result = await box.run("import os; os.kill(os.getpid(), 9)")
    assert (result.exit, result.killed_by) == (-9, "signal")
    assert (await box.run("print('next')")).stdout == "next\n"
    assert worker_of(box) is worker
    await box.close()


@pytest.mark.usefixtures("low")
@pytest.mark.parametrize("checkpoint", [True, False])
async def test_a_turn_over_the_ceiling_is_undone_or_ends_the_session(checkpoint: bool) -> None:
    box = opened()
    session = await box.session(checkpoint)
    await session.run("y = 5")
    for code in (HOARD, f"{CHILD}os.wait()"):
        result = await session.run(code, timeout=50.0)
        assert result.killed_by == "memory" and "used too much memory" in result.stderr
        assert ((await session.run("y")).value == "5") == checkpoint
    await session.close()
    await box.close()


@pytest.mark.usefixtures("low")
async def test_a_command_over_the_ceiling_is_stopped_and_another_bash_goes_on() -> None:
    box = opened()
    try:
        shell = await box.shell()
    except SandboxUnavailable as unavailable:
        pytest.skip(str(unavailable))
    assert (await shell.exec("export KEPT=1; echo x > file")).exit == 0
    python = os.path.basename(os.path.realpath(sys.executable))
    result = await shell.exec(f'{python} -I -S -c "{HOARD}"; true', timeout=50.0)
    assert result.killed_by == "memory" and "used too much memory" in result.stderr
    assert (await shell.exec("echo $KEPT; cat file")).stdout == "1\nx\n"
    await shell.close()
    await box.close()


async def test_without_a_cgroup_the_look_at_the_processes_bounds_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(cgroup.SWITCH, raising=False)
    box = opened()
    assert worker_of(box).group is None and f"(no cgroup: {cgroup.SWITCH}=on" in box.description
    many = "import os, time\nfor _ in range(6):\n    if os.fork() == 0:\n        break\n"
    limits = Limits(memory=128 * MIB)
    code = f"{many}x = bytearray(b'x' * (60 << 20))\ntime.sleep(60)"
    result = await box.run(code, timeout=50.0, limits=limits)
    assert (result.exit, result.killed_by) == (-9, "memory")
    assert (await box.run("print('next')")).stdout == "next\n"
    await box.close()


async def test_a_killed_worker_leaves_no_cgroup(place: cgroup.Place) -> None:
    box = opened()
    worker = worker_of(box)
    path = group_of(worker).path
    worker.process.kill()
    worker.process.wait()
    assert (await box.run("print('next')")).stdout == "next\n"  # it finds the worker dead, and closes it
    assert gone(path)
    await box.close()


def test_the_cgroups_of_a_killed_caller_are_swept(place: cgroup.Place) -> None:
    code = """
import sys, time
from gymrl.sandboxes.worker import Worker
worker = Worker("namespaces")
print(worker.group.path if worker.group else "", flush=True)
sys.stdin.read()
"""
    opened_elsewhere = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with opened_elsewhere as caller:
        assert caller.stdout is not None
        path = Path(caller.stdout.readline().strip())
        cgroup.sweep(place)
        assert path.exists() and path.parent == place.folder  # its caller lives
        caller.kill()
    deadline = time.monotonic() + 30
    while path.exists() and time.monotonic() < deadline:
        cgroup.sweep(place)  # the worker is on its way out
        time.sleep(0.05)
    assert not path.exists()


async def test_a_place_where_nothing_can_be_made_is_found_out_by_trying(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A folder that is no cgroup file system: a cgroup made in it has no files."""
    monkeypatch.setattr(cgroup, "_FOUND", None)
    monkeypatch.setenv(cgroup.SWITCH, "on")
    monkeypatch.setattr(cgroup, "candidates", lambda *_: [cgroup.Place(1, tmp_path)])
    why = cgroup.find()
    assert isinstance(why, str) and str(tmp_path) in why
    assert cgroup.make() is None and list(tmp_path.iterdir()) == []
    box = opened()
    assert worker_of(box).group is None and str(tmp_path) in box.description
    assert (await box.run("print(1)")).stdout == "1\n"
    await box.close()


def test_where_cgroups_may_be_is_read_from_the_process_itself() -> None:
    first = "5:memory:/docker/ab/in\n3:cpu,cpuacct:/\n0::/\n"
    mounts = (
        "23 1 0:1 / / rw - ext4 /dev/sda rw\n"
        "35 31 0:32 /docker/ab /sys/fs/cgroup/memory rw,relatime shared:4 - cgroup cgroup rw,memory\n"
        "36 31 0:33 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n"
    )
    assert cgroup.candidates(first, mounts) == [cgroup.Place(1, Path("/sys/fs/cgroup/memory/in"))]
    assert cgroup.candidates("5:memory:/docker/other\n", mounts) == []
    unified = "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n"
    own, above = Path("/sys/fs/cgroup/user.slice/a.scope"), Path("/sys/fs/cgroup/user.slice")
    assert cgroup.candidates("0::/user.slice/a.scope\n", unified) == [
        cgroup.Place(2, own),
        cgroup.Place(2, above, own),
    ]
    assert cgroup.candidates("0::/\n", unified) == [cgroup.Place(2, Path("/sys/fs/cgroup"))]
    assert cgroup.candidates("0::/../x\n", unified) == cgroup.candidates("", "") == []


KINDS = st.sampled_from([protocol.TURN, protocol.SNAPSHOT, protocol.FORGET, protocol.RESTORE])
SIZES = st.builds(
    Limits, memory=st.integers(MIB, 2**40), disk=st.integers(2**16, 2**40), processes=st.integers(1, 500)
)


@given(st.integers(0, 2**30), st.lists(st.tuples(KINDS, SIZES, st.integers(0, 2**24))), SIZES)
def test_a_sessions_ceiling_holds_every_state_and_never_falls(
    baseline: int, requests: list[tuple[bytes, Limits, int]], first: Limits
) -> None:
    ceiling = cgroup.Ceiling(baseline)
    last = ceiling.above(protocol.SESSION, first, 0)
    assert last >= baseline + 2 * first.memory + 2 * first.disk
    states = 2
    for kind, limits, size in requests:
        states += {protocol.SNAPSHOT: 1, protocol.FORGET: -1}.get(kind, 0)
        if states < 2:
            return  # more forgotten than there were
        now = ceiling.above(kind, limits, size)
        assert now >= last
        if kind == protocol.TURN:
            assert now >= baseline + states * limits.memory + 2 * limits.disk
        last = now


@given(st.integers(0, 2**30), SIZES, SIZES)
def test_a_runs_ceiling_is_its_own(baseline: int, one: Limits, other: Limits) -> None:
    ceiling = cgroup.Ceiling(baseline)
    before = ceiling.above(protocol.RUN, one, 10)
    assert before >= baseline + one.memory + 2 * one.disk
    ceiling.above(protocol.RUN, other, 10)
    assert ceiling.above(protocol.RUN, one, 10) == before
