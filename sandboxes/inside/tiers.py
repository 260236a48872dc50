"""The tiers as a worker sees them: how it is shut in itself, where programs work, what a program is bound by."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import Any

from gymrl.sandboxes.inside import files, jail, landlock, seccomp, trees
from gymrl.sandboxes.inside import syscalls as sc
from gymrl.sandboxes.inside.jail import JailError, step
from gymrl.sandboxes.inside.program import Confinement, limits
from gymrl.sandboxes.inside.watch import Watch, folder_size

WORKER_CALLS = (
    "mount", "umount2", "setresuid", "setresgid", "setgroups", "capset", "landlock_create_ruleset",
    "landlock_add_rule", "landlock_restrict_self",
)  # fmt: skip
"""What the jailed worker needs beyond its programs. A program gets nothing by them: it has no capability, and
restrictions only add up."""
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
"""Without /dev/zero where it is the system's own and nothing but a look limits the memory: see `jail.DEVICES`."""
LANDLOCK_MEND = (
    "a kernel with Landlock is needed (Linux 5.13, booted with lsm=landlock,...), and a container whose seccomp "
    "profile lets it through"
)


COARSE = 5
"""The clock that files are stamped with, CLOCK_REALTIME_COARSE."""


Stamp = tuple[int, int, int]
"""Of a folder in memory: when it was last changed (its entries, owner, mode and attributes included) and read, in ns,
and the number of the file that was made in it last."""


def stamp(path: str) -> Stamp:
    """Makes a file without a name, the last one therefore."""
    descriptor = os.open(path, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        number = os.fstat(descriptor).st_ino
    finally:
        os.close(descriptor)
    info = os.stat(path)
    return info.st_ctime_ns, info.st_atime_ns, number


class Tier:
    """A worker's own tier. work, temporary: the folders of the run that comes next.

    alone: this process is the first of its namespace. proc: a descriptor of /proc. user: to whom programs change
    (None: nobody else). readable: what they may read. abi: the version of Landlock (0: none). size: bytes of address
    space that a program has from the worker. names: files that a folder of the jail may hold. A shell's working tree
    is shown by an overlay (layered), or its contents are kept in `tree` and put back.
    """

    def __init__(
        self, name: str, folder: str, alone: bool, proc: int, user: int | None, readable: list[str], abi: int = 0
    ) -> None:
        self.name, self.folder, self.alone, self.proc = name, folder, alone, proc
        self.user, self.readable, self.abi = user, readable, abi
        self.work = jail.WORK if alone else f"{folder}/work"
        self.temporary = jail.TEMPORARY if alone else f"{folder}/tmp"
        self.groups = os.geteuid() == 0 and bool(os.getgroups())
        self.filters: dict[bool, bytes] = {}
        self.disk = self.rules = -1
        self.size, self.names = 0, 4096
        self.shell = self.layered = self.settled = False
        self.tree: files.Tree | None = None
        self.stamps: tuple[Stamp, ...] = ()
        self.confinements: dict[tuple[int, ...], Confinement] = {}

    def score(self) -> int:
        """A descriptor of this process's oom_score_adj: 1000 is killed first where memory runs out. Children inherit
        it."""
        before = sc.prctl(sc.PR_GET_DUMPABLE)
        sc.prctl(sc.PR_SET_DUMPABLE, 1)  # after a change of users /proc is root's otherwise
        try:
            return os.open("self/oom_score_adj", os.O_RDWR | os.O_CLOEXEC, dir_fd=self.proc)
        finally:
            sc.prctl(sc.PR_SET_DUMPABLE, before == 1)

    def prepare(self, disk: int) -> None:
        """Empty folders for a run that may fill `disk` bytes, if they are not there already."""
        if self.disk == disk:
            return
        if self.name == "namespaces":
            if self.layered:
                jail.refresh(disk, self.names, [jail.TEMPORARY])
                jail.overlay(disk, self.names, self.user)
            else:
                jail.refresh(disk, self.names)
                if self.shell:  # git looks at whose a repository is
                    self.own(self.work)
                self.stamps = stamp(self.work), stamp(self.temporary)
        else:
            os.chdir("/")
            for path in (self.work, self.temporary):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(path, 0o700)
                if self.tree is None or path != self.work:
                    files.wipe(path)
                if not self.alone:
                    os.chmod(path, 0o700)
                    self.own(path)
        if self.tree is not None:
            self.tree = files.put(self.work, self.tree, self.own)
        if self.rules >= 0:
            os.close(self.rules)
            self.rules = -1
        if self.abi:
            devices = [device for device in DEVICES if device != "/dev/zero" or self.alone]
            self.rules = landlock.ruleset(self.abi, self.readable, [self.work, self.temporary, *devices])
        self.confinements.clear()
        os.chdir(self.work)
        self.disk = disk

    def stock(self, source: int, size: int, names: int, disk: int) -> None:
        """Take a working tree of so many bytes and files from a stream; every folder that is prepared shows it from
        then on. Raises OSError, EOFError where the stream ends too early."""
        self.names, self.shell = names + 32768, True
        self.used()
        if not names:
            trees.unpack(source, self.work, self.own)
        elif self.name == "namespaces":
            trees.unpack(source, jail.base(size + 2**20, names), self.own)
            try:
                os.chdir("/")
                jail.overlay(disk, self.names, self.user)
                self.layered = True
            except OSError:  # an old kernel: the tree is copied instead
                self.tree = files.take(f"{jail.LAYERS}/base", files.Tree({}))
        else:
            self.prepare(disk)
            trees.unpack(source, self.work, self.own)
            self.tree = files.take(self.work, files.Tree({}))
        self.used()
        self.prepare(disk)

    def begin(self) -> None:
        """A run is about to begin: whatever it changes in the folders will bear a later time than they do, unless they
        were made within this tick of the clock."""
        now = time.clock_gettime_ns(COARSE)
        self.settled = bool(self.stamps) and max(self.stamps)[0] < now

    def over(self) -> None:
        """A run is over, and all its processes are: the next one gets other folders, or the same ones where the run has
        left nothing in them, not even the time at which it looked into them or a gap in the numbers of files."""
        if self.settled:
            (one, two), self.stamps = self.stamps, ()
            with contextlib.suppress(OSError):  # where no file can be made any more the run has left many
                self.stamps = stamp(self.work), stamp(self.temporary)
            if self.stamps == ((*one[:2], one[2] + 1), (*two[:2], two[2] + 1)):
                return
        self.used()

    def used(self) -> None:
        """The folders have been used: what comes next gets others."""
        self.disk, self.stamps = -1, ()

    def own(self, name: int | str, folder: int | None = None) -> None:
        """Hand a file to the user that programs run as."""
        if self.user is not None:
            os.chown(name, self.user, self.user, dir_fd=folder, follow_symlinks=False)

    def filled(self, watch: Watch, pids: list[int]) -> int:
        """Bytes in the folders, where no file system of their own bounds them."""
        if self.name == "namespaces":
            return 0
        return folder_size(self.work) + folder_size(self.temporary) + watch.open_files(pids)

    def confinement(self, memory: int, file_size: int, processes: int, cpu: int, keeps: int) -> Confinement:
        """keeps: how many processes of the worker and of checkpoints count beside the program's own."""
        asked = memory, file_size, processes, cpu, keeps
        if asked not in self.confinements:
            if len(self.confinements) >= 64:
                self.confinements.clear()
            counted = self.name == "namespaces" or self.user is not None
            self.confinements[asked] = Confinement(
                self.user, self.groups, self.rules, self.filters.get(keeps > 0, b""), keeps > 0, not self.alone,
                limits(self.size + memory, file_size, processes + keeps + 3 if counted else None, cpu),
            )  # fmt: skip
        return self.confinements[asked]


def enter(config: dict[str, Any]) -> Tier:
    """Shut this process in as its tier says. Raises JailError, naming the step and the mend."""
    name, folder = config["tier"], config["folder"]
    readable = [*jail.interpreter(), *config["packages"]]
    if name == "namespaces":
        abi = _landlock(required=False)
        inside = jail.enter(readable)
        tier = Tier(name, folder, True, inside.proc, inside.user, ["/"], abi)
    elif name == "docker":
        closed = {"proc", "sys", "dev", "run", "gymrl", "work", "tmp"}
        readable = [f"/{entry}" for entry in sorted(set(os.listdir("/")) - closed)]
        sc.prctl(sc.PR_SET_DUMPABLE, 0)  # programs have the same user: none may look into this process
        tier = Tier(name, folder, True, _proc(), None, readable, _landlock(required=False))
    elif name == "confined":
        tier = Tier(
            name, folder, False, _proc(), _stranger(folder, readable), readable, _landlock(required=True)
        )
    else:
        tier = Tier(name, folder, False, _proc(), None, [])
    if not tier.alone:
        with step("prctl (subreaper)", "Linux 3.4 or newer is needed"):
            sc.prctl(sc.PR_SET_CHILD_SUBREAPER, 1)
    return tier


def arm(tier: Tier) -> None:
    """The last step, after everything is imported: the filter of a worker that shares it with its programs."""
    with open(os.open("self/statm", os.O_RDONLY, dir_fd=tier.proc)) as file:
        tier.size = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    with step("seccomp", "a kernel with seccomp filters is needed"):
        if tier.alone:
            rules = seccomp.policy(alone=True, clone="allow", shared_memory=False)
            extra: dict[str, int | tuple[seccomp.Check, ...]] = dict.fromkeys(WORKER_CALLS, seccomp.ALLOW)
            extra["prctl"] = seccomp.names_and(sc.PR_SET_DUMPABLE)
            sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)
            seccomp.install(seccomp.compiled(seccomp.Policy({**rules.verdicts, **extra})), 0)
        elif tier.name == "confined":
            for asks in (False, True):
                tier.filters[asks] = seccomp.compiled(seccomp.policy(False, "ask" if asks else "deny", False))


def _proc() -> int:
    with step("opening /proc", "a mounted /proc is needed"):
        return os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)


def _landlock(required: bool) -> int:
    try:
        return landlock.version()
    except OSError as error:
        if required:
            raise JailError(f"landlock: {error.strerror}; {LANDLOCK_MEND}") from error
        return 0


def _stranger(folder: str, readable: list[str]) -> int | None:
    """A user of this worker's own, where root may choose one and that user can read the interpreter."""
    if os.geteuid() != 0 or not all(_public(path) for path in (*readable, os.__file__, sys.executable)):
        return None
    user = jail.HOST_USERS[0] + 16 + os.getpid() % 2**20
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            os._exit(0)
        finally:
            os._exit(1)
    if os.waitpid(pid, 0)[1]:
        return None
    os.chmod(folder, 0o711)
    return user


def _public(path: str) -> bool:
    """Whether everybody may read a path that exists."""
    if not os.path.exists(path):
        return True
    path = os.path.realpath(path)
    if not os.stat(path).st_mode & 0o004:
        return False
    while path != "/":
        path = os.path.dirname(path)
        if not os.stat(path).st_mode & 0o001:
            return False
    return True
