"""The jail of the `namespaces` tier: built once around a worker, which is process 1 in it and never leaves.

`enter` is called in a fresh process with one thread. It moves to new namespaces and returns only in the child that is
process 1 there; the caller's process waits for it outside, so that killing either ends both and all that runs inside.
The root is a small tmpfs; what a Python needs is bound into it read-only at the paths it has outside. Nothing else is
there.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from gymrl.sandboxes.inside import syscalls as sc

WORK, TEMPORARY = "/work", "/tmp"
LAYERS = "/.layers"
"""Where what an overlay is made of is mounted. Nobody but the worker may pass it: its mode is 0, which its owner cannot
change either, since the root cannot be written."""
USER = 1000
"""Whom a program sees itself to be."""
HOST_USERS = (2_000_000_000, 65533)
"""First of the two users outside that stand behind the worker and its programs, where root may choose: nobody's."""
SYSTEM = (
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/usr/bin",
    "/usr/share/zoneinfo",
    "/usr/share/git-core",
    "/etc/alternatives",
    "/lib",
    "/lib32",
    "/lib64",
    "/bin",
)
DEVICES = {"null": "null", "zero": "full", "full": "full", "random": "random", "urandom": "urandom"}
"""What stands behind a device's name. Shared memory can be had from /dev/zero, in any amount and seen by no look at the
processes where it is not mapped any more; /dev/full reads the same and cannot be mapped."""
FILES = {
    "etc/passwd": f"sandbox:x:{USER}:{USER}::{WORK}:/bin/sh\n",
    "etc/group": f"sandbox:x:{USER}:\n",
    "etc/hosts": "127.0.0.1 localhost\n",
}


class JailError(Exception):
    """A step of building the jail failed: the step, what the kernel said, and the mend."""


class Jail(NamedTuple):
    """A jail that was entered. proc: a descriptor of /proc for its processes, which no program can reach. user: to
    whom a program changes (None: the worker's own, without its capabilities)."""

    proc: int
    user: int | None


@contextmanager
def step(name: str, mend: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise JailError(f"{name}: {error.strerror or error}; {mend}") from error


def interpreter() -> list[str]:
    """Where this Python's own files are, and the system's libraries and commands."""
    base = sys.base_prefix
    places = [*SYSTEM, os.path.dirname(os.__file__), os.path.realpath(sys.executable)]
    places += [value for name in ("stdlib", "platstdlib") if (value := sysconfig.get_path(name))]
    if base != "/usr":
        places += [
            f"{base}/lib",
            f"{base}/bin",
            os.path.realpath(f"{base}/lib"),
            os.path.realpath(f"{base}/bin"),
        ]
    return [place for place in places if os.path.lexists(place)]


def outermost(paths: Iterable[str]) -> list[str]:
    """The paths without those that lie below another one, which must not be a symbolic link."""
    kept: list[str] = []
    for path in sorted({os.path.normpath(path) for path in paths}, key=lambda path: path.count("/")):
        if not any(path == one or path.startswith(one + "/") for one in kept if not os.path.islink(one)):
            kept.append(path)
    return kept


def enter(readable: Iterable[str]) -> Jail:
    """Build the jail and become process 1 in it. Raises JailError."""
    user = _unshare()
    places = outermost(readable)
    with step("opening what the jail shows", "see docs/sandboxes.md"):
        trees = {place: sc.tree(place) for place in places if not os.path.islink(place)}
        trees |= {
            f"/dev/{name}": sc.tree(f"/dev/{source}")
            for name, source in DEVICES.items()
            if os.path.exists(f"/dev/{source}")
        }
    links = {place: os.readlink(place) for place in places if os.path.islink(place)}
    cache = _read("/etc/ld.so.cache")
    if user is not None:
        with step("taking another user", "run gymrl as an ordinary user"):
            os.setgroups([])
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
    _become_first()
    proc = _mounts(trees, links, cache)
    with contextlib.suppress(OSError):
        import _socket

        _socket.sethostname("sandbox")
    return Jail(proc, user)


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def _mapped(first: int) -> bool:
    """Whether this namespace knows the users `first` and the one after."""
    for line in _read("/proc/self/uid_map").decode().splitlines():
        start, _, count = map(int, line.split())
        if start <= first and first + 2 <= start + count:
            return True
    return False


def _unshare() -> int | None:
    """New namespaces with users mapped (a helper outside writes the maps); the user to whom programs change."""
    pid, uid, gid = os.getpid(), os.geteuid(), os.getegid()
    first = next((first for first in HOST_USERS if uid == 0 and _mapped(first)), None)
    if first is None:
        maps = {"setgroups": "deny", "gid_map": f"{USER} {gid} 1", "uid_map": f"{USER} {uid} 1"}
    else:
        both = f"0 {first} 1\n{USER} {first + 1} 1\n"
        maps = {"gid_map": both, "uid_map": both}
    start, done = os.pipe(), os.pipe()
    helper = os.fork()
    if helper == 0:
        status = 1
        try:
            os.close(start[1])
            if os.read(start[0], 1):
                for name, text in maps.items():
                    with open(f"/proc/{pid}/{name}", "wb", buffering=0) as file:
                        file.write(text.encode())
                status = 0
        except OSError as error:
            os.write(done[1], f"{error.strerror}".encode())
        finally:
            os._exit(status)
    os.close(start[0])
    os.close(done[1])
    namespaces = (
        sc.CLONE_NEWNS
        | sc.CLONE_NEWPID
        | sc.CLONE_NEWIPC
        | sc.CLONE_NEWNET
        | sc.CLONE_NEWUTS
        | sc.CLONE_NEWCGROUP
    )
    try:
        with step(
            "unshare (new namespaces)",
            "allow user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone=1, "
            "kernel.apparmor_restrict_unprivileged_userns=0), or take the sandbox 'confined'",
        ):
            sc.unshare(sc.CLONE_NEWUSER | namespaces)
        os.write(start[1], b"!")
    finally:
        os.close(start[1])
        said = os.read(done[0], 200).decode()
        os.close(done[0])
        status = os.waitpid(helper, 0)[1]
    if status:
        raise JailError(f"mapping users: {said}; take the sandbox 'confined'")
    return None if first is None else USER


def _become_first() -> None:
    """Return in a child that is process 1; this process stays outside and ends as the child does."""
    pid = os.fork()
    if pid:
        os.closerange(3, 65536)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os._exit(status if status >= 0 else 128 - status)
    sc.prctl(sc.PR_SET_PDEATHSIG, sc.SIGKILL)


def _mounts(trees: dict[str, int], links: dict[str, str], cache: bytes) -> int:
    mend = "the system forbids mounts in user namespaces: take the sandbox 'confined'"
    base = next(place for place in ("/tmp", "/mnt", "/usr") if os.path.isdir(place))
    with step("mounting the root", mend):
        sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)
        sc.mount("none", base, "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, "mode=755,size=4m,nr_inodes=2048")
        os.chdir(base)
    for place, descriptor in trees.items():
        with step(f"binding {place}", mend):
            target = f".{place}"
            folder = stat.S_ISDIR(
                os.fstat(descriptor).st_mode
            )  # of the tree: this user may not see the place
            os.makedirs(target if folder else os.path.dirname(target), exist_ok=True)
            if not folder:
                os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o600))
            sc.attach(descriptor, target)
            os.close(descriptor)
            if not place.startswith("/dev/"):
                sc.protect(target)
    for place, aim in links.items():
        os.makedirs(os.path.dirname(f".{place}"), exist_ok=True)
        if not os.path.lexists(f".{place}"):
            os.symlink(aim, f".{place}")
    for name in ("proc", WORK[1:], TEMPORARY[1:], "etc", f"{LAYERS[1:]}/base", f"{LAYERS[1:]}/changes"):
        os.makedirs(name, exist_ok=True)
    os.chmod(LAYERS[1:], 0)
    for name, text in FILES.items():
        with open(name, "w") as file:
            file.write(text)
    if cache:
        with open("etc/ld.so.cache", "wb") as binary:
            binary.write(cache)
    os.symlink(TEMPORARY, "dev/shm")
    with step("mounting /proc", "run where /proc is not masked, or take the sandbox 'confined'"):
        sc.mount("proc", "proc", "proc", sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC)
        proc = os.open("proc", os.O_RDONLY | os.O_DIRECTORY)
        sc.umount("proc", sc.MNT_DETACH)
        os.rmdir("proc")
    with step("pivot_root", mend):
        sc.call("pivot_root", ".", ".")
        sc.umount(".", sc.MNT_DETACH)
        os.chdir("/")
        sc.mount(None, "/", None, sc.MS_REMOUNT | sc.MS_BIND | sc.MS_RDONLY | sc.MS_NOSUID | sc.MS_NODEV)
    return proc


def refresh(disk: int, names: int = 4096, places: Iterable[str] = (WORK, TEMPORARY)) -> None:
    """New, empty working and temporary folders in place of the old ones, which nothing uses any more. names: files that
    each may hold."""
    os.chdir("/")
    for place in places:
        with contextlib.suppress(OSError):
            sc.umount(place, sc.MNT_DETACH)
        _memory(place, disk, names)
    os.chdir(WORK)


def _memory(place: str, size: int, names: int) -> None:
    sc.mount(
        "none", place, "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, f"mode=1777,size={size},nr_inodes={names + 16}"
    )


def base(size: int, names: int) -> str:
    """A folder for a working tree, which is no program's to see: overlays show it."""
    _memory(f"{LAYERS}/base", size, names)
    return f"{LAYERS}/base"


def overlay(disk: int, names: int, user: int | None) -> None:
    """The base as the working folder, where a program may write; what it changes goes to a layer of `disk` bytes, which
    is new. Raises OSError where the kernel has no overlays in user namespaces (Linux 5.11)."""
    changes = f"{LAYERS}/changes"
    for place in (WORK, changes):
        with contextlib.suppress(OSError):
            sc.umount(place, sc.MNT_DETACH)
    _memory(changes, disk, names)
    for name in ("up", "work"):
        os.mkdir(f"{changes}/{name}", 0o755)
        if user is not None:
            os.chown(f"{changes}/{name}", user, user)
    layers = f"lowerdir={LAYERS}/base,upperdir={changes}/up,workdir={changes}/work,userxattr"
    sc.mount("overlay", WORK, "overlay", sc.MS_NOSUID | sc.MS_NODEV, layers)
    os.chdir(WORK)
