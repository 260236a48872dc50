"""The parts of a sandbox that can be looked at alone: the filter's program, the memory of folders, the image."""

from __future__ import annotations

import io
import os
import shutil
import struct
import tarfile
import tempfile
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gymrl.sandboxes.image import write_tar
from gymrl.sandboxes.inside import files, jail, numbers, seccomp

POLICIES = [(True, "allow"), (True, "deny"), (False, "deny"), (False, "ask")]


def execute(program: bytes, number: int, arguments: list[int], audit: int) -> int:
    """What the kernel would make of a filter: the action for one call."""
    data = struct.pack("<IIQ6Q", number, audit, 0, *(a & (1 << 64) - 1 for a in arguments))
    accumulator, at = 0, 0
    while True:
        code, true, false, value = struct.unpack_from("<HBBI", program, 8 * at)
        at += 1
        if code == seccomp.LOAD:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif code == seccomp.AND:
            accumulator &= value
        elif code == seccomp.JUMP:
            at += value
        elif code == seccomp.RETURN:
            return int(value)
        else:
            holds = accumulator == value if code == seccomp.JEQ else accumulator >= value
            at += true if holds else false


def expected(policy: seccomp.Policy, name: str | None, number: int, arguments: list[int]) -> int:
    verdict = policy.verdicts.get(name) if name else None
    if verdict is None:
        return seccomp.ERRNO | 38 if number >= seccomp.UNKNOWN else policy.otherwise
    if isinstance(verdict, int):
        return verdict
    for check in verdict:
        seen = arguments[check.argument] & 0xFFFFFFFF & check.mask
        if (seen in check.values) != (check.rule == "among"):
            return check.otherwise
    return seccomp.ALLOW


@pytest.mark.parametrize("alone, clone", POLICIES)
def test_the_filter_says_what_the_policy_says(alone: bool, clone: Literal["allow", "deny", "ask"]) -> None:
    policy = seccomp.policy(alone, clone, shared_memory=False)
    program = seccomp.compiled(policy)
    column, audit = numbers.machine()
    tables = [value for name, value in vars(numbers).items() if name.isupper() and isinstance(value, str)]
    every = "".join(tables)
    names = {number: name for name, number in numbers.numbers(every, column).items()}
    shapes = [[value] * 6 for value in (0, 1, -1, 0x10000, 0x7E020000, seccomp.SELF)]
    shapes += [[2, 2, 0, 0x21], [1, 5, 0, 0x22], [1, 0x80801, 0, 1], [0, 0x5401, 0, 0], [0, 8, 0, 0]]
    shapes = [shape + [0] * (6 - len(shape)) for shape in shapes]
    for number in range(600):
        for arguments in shapes:
            want = expected(policy, names.get(number), number, arguments)
            assert execute(program, number, arguments, audit) == want, (number, arguments)
    for number in (0x40000000, 0x40000000 | 39, 0xFFFFFFFF):
        assert execute(program, number, [0] * 6, audit) == seccomp.ERRNO | 38
    assert execute(program, 0, [0] * 6, 0x40000003) == seccomp.KILL


@pytest.mark.parametrize("alone, clone", POLICIES)
def test_no_policy_opens_a_large_door(alone: bool, clone: Literal["allow", "deny", "ask"]) -> None:
    verdicts = seccomp.policy(alone, clone, shared_memory=False).verdicts
    doors = "socket connect bind listen accept accept4 ptrace mount umount2 unshare setns bpf keyctl io_uring_setup"
    for name in (*doors.split(), "memfd_create", "userfaultfd", "perf_event_open"):
        assert name not in verdicts
    assert (verdicts.get("execve") == seccomp.ALLOW) == (clone == "allow")


NAMES = st.text("abc", min_size=1, max_size=2)
TREES = st.recursive(
    st.one_of(st.binary(max_size=20), st.tuples(st.just("link"), NAMES)),
    lambda inner: st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
FOLDERS = st.dictionaries(NAMES, TREES, max_size=4)


def build(folder: Path, tree: dict[str, object]) -> None:
    for name, content in tree.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        elif isinstance(content, tuple):
            (folder / name).symlink_to(content[1])
        else:
            (folder / name).mkdir()
            build(folder / name, content)  # type: ignore[arg-type]


def contents(tree: files.Tree) -> dict[str, tuple[int, object]]:
    return {path: (entry.mode, entry.content) for path, entry in tree.entries.items()}


@given(FOLDERS, FOLDERS)
def test_a_folder_is_put_back_as_it_was(before: dict[str, object], after: dict[str, object]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(folder, before)
        taken = files.take(name, files.Tree({}))
        files.wipe(name)
        assert list(folder.iterdir()) == []
        build(folder, after)
        files.put(name, taken, lambda *_: None)
        again = files.take(name, files.Tree({}))
        assert contents(again) == contents(taken)
        assert files.take(name, again).entries == again.entries


def test_putting_back_follows_no_link(tmp_path: Path) -> None:
    work, outside = tmp_path / "work", tmp_path / "outside"
    work.mkdir()
    outside.mkdir()
    (work / "d").mkdir()
    (work / "d" / "f").write_text("old")
    taken = files.take(str(work), files.Tree({}))
    shutil.rmtree(work / "d")
    (work / "d").symlink_to(outside)
    files.put(str(work), taken, lambda *_: None)
    assert list(outside.iterdir()) == [] and (work / "d" / "f").read_text() == "old"
    (work / "l").symlink_to(outside)
    (outside / "kept").write_text("x")
    assert contents(files.take(str(work), files.Tree({})))["l"][1] == str(outside)
    files.wipe(str(work))
    assert (outside / "kept").exists()


def test_only_the_outermost_places_are_bound(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "c").symlink_to("a")
    places = [str(tmp_path / part) for part in ("a/b", "a", "c", "c/b", "ab")]
    assert sorted(jail.outermost(places)) == [str(tmp_path / part) for part in ("a", "ab", "c", "c/b")]


def test_the_image_holds_a_python_and_no_packages() -> None:
    file = io.BytesIO()
    write_tar(file)
    file.seek(0)
    with tarfile.open(fileobj=file) as tar:
        members = {member.name: member for member in tar.getmembers()}
    assert members["work"].mode == members["tmp"].mode == 0o1777
    assert os.path.realpath(os.__file__).lstrip("/") in members
    assert not any("site-packages" in name or "dist-packages" in name for name in members)
    assert not any(member.mode & 0o6000 for name, member in members.items())
