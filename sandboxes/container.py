"""The `docker` sandbox: workers in hardened containers, each with a driver inside that forks for every run.

A container has no network, a read-only root, two small tmpfs folders, no capabilities, no way to new privileges, a user
that is nobody, limits on memory and processes, and a seccomp profile of our own. Its worker is process 1 and listens
on a Unix socket in a folder that is bound into the container; descriptors for stdout and stderr travel over it. Where
the engine is on another machine, standard input and output take the socket's place (`remote`).
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from gymrl.sandboxes import remote
from gymrl.sandboxes.base import Limits, SandboxUnavailable
from gymrl.sandboxes.image import ensure_image
from gymrl.sandboxes.inside import numbers, protocol
from gymrl.sandboxes.pool import PoolSandbox
from gymrl.sandboxes.worker import HOUSE, START, Worker

LABEL, FOLDER = "gymrl.sandbox", "gymrl.sandbox.folder"
"""What a container says of its owner: the process, and the folder that is bound into it."""
PREFIX = "gymrl-sandbox-"
NOBODY = "65534:65534"
_IN_USE: set[str] = set()
"""The folders of this process's workers."""
USES = 2000
"""Runs after which a container is replaced."""
PROCESSES = 128
MENDS = "start a Docker engine and set DOCKER_HOST if it is not at the usual place, or take another sandbox"


class DockerSandbox(PoolSandbox):
    """A pool of containers of one image ('': a small one made from this machine's Python), on this machine or
    wherever DOCKER_HOST says. Raises SandboxUnavailable."""

    def __init__(self, size: int | None = None, preload: Sequence[str] = (), image: str = "") -> None:
        super().__init__("docker", size, ())
        self.preload = tuple(preload)  # imported from the image's own packages
        client = connect()
        try:
            sweep(client)
            self.image = image or ensure_image(client)
            if image:
                _check_image(client, image)
            if remote.is_remote(client):
                self.image = remote.with_driver(client, self.image)
        finally:
            client.close()

    def open_worker(self, size: int = 0, names: int = 0) -> Worker:
        return ContainerWorker(self.image, self.preload, size, names)

    def containers(self) -> list[str]:
        """Ids of the containers that wait for a run."""
        return [worker.container.id for worker in self._idle.queue if isinstance(worker, ContainerWorker)]

    def _start(self) -> None:
        super()._start()
        self._count, self._coming, self._waiting = threading.Lock(), 0, 0
        self._makers = ThreadPoolExecutor(self.size, "gymrl-containers")

    def give(self, worker: Worker) -> None:
        assert isinstance(worker, ContainerWorker)
        worker.uses += 1
        if self._closed or (worker.alive and worker.uses < USES):
            super().give(worker)
            return
        with self._count:
            self._coming += 1
        self._makers.submit(self._replace, worker)

    def _replace(self, worker: Worker) -> None:
        """Remove a container that is dead or worn and put another in its place. Where none can be had, whoever waits
        for it tries once more, and tells why not."""
        fresh = None
        try:
            worker.close()
            fresh = None if self._closed else self.open_worker()
        except SandboxUnavailable:
            pass
        finally:
            with self._count:
                self._coming -= 1
            self._idle.put(fresh)

    def _await(self) -> Worker | None:
        with self._count:
            if self._waiting >= self._coming:
                return None
            self._waiting += 1
        try:
            while self._coming and not self._closed:
                with contextlib.suppress(queue.Empty):
                    return self._idle.get(timeout=1.0)
            return None
        finally:
            with self._count:
                self._waiting -= 1

    def _close(self) -> None:
        self._makers.shutdown(wait=True)
        super()._close()


def connect() -> Any:
    """A client of the engine. Raises SandboxUnavailable."""
    try:
        import docker
    except ImportError:
        raise SandboxUnavailable(
            "the sandbox 'docker' needs the docker SDK: pip install 'gymrl[docker]'"
        ) from None
    try:
        client = docker.from_env(timeout=60)
        client.ping()
    except Exception as error:
        raise SandboxUnavailable(f"no Docker engine answers ({_sentence(error)}): {MENDS}") from error
    return client


def _sentence(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _check_image(client: Any, image: str) -> None:
    import docker

    try:
        client.images.get(image)
    except docker.errors.ImageNotFound:
        raise SandboxUnavailable(
            f"there is no image {image!r}: docker pull it, or leave the image away to have one made"
        ) from None


def owner() -> str:
    """This process, by a name that no other one has, on whatever machine."""
    return f"{os.getpid()}:{_started(os.getpid())}:{_here()}"


def _here() -> str:
    """Which machine, since when, and which of its process namespaces: engines may be shared."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}-{os.stat('/proc/self/ns/pid').st_ino}"
    return "nowhere"


def _started(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def sweep(client: Any) -> int:
    """Remove the containers of processes that are gone, with their folders, and this process's own that could not be
    removed when they were given up, since the engine was away; how many."""
    removed = 0
    for container in client.containers.list(all=True, filters={"label": LABEL}, ignore_removed=True):
        pid, started, here = [*container.labels[LABEL].split(":"), "", ""][:3]
        if here != _here():  # another machine's: it is not known whether that process lives
            continue
        folder = container.labels.get(FOLDER, "")
        if _started(int(pid)) != started or (int(pid) == os.getpid() and folder not in _IN_USE):
            with contextlib.suppress(Exception):
                container.remove(force=True)
                removed += 1
            if os.path.basename(folder).startswith(PREFIX):
                shutil.rmtree(folder, ignore_errors=True)
    return removed


def profile() -> str:
    """What a container may call: what programs may, and what its worker needs until it has put on its own filter."""
    names = [
        entry.partition(":")[0]
        for table in vars(numbers).values()
        if isinstance(table, str) and "\n" in table and ":" in table
        for entry in table.split()
        if entry.partition(":")[0].isidentifier()
    ]
    refused = {
        "unshare",
        "setns",
        "mount",
        "umount2",
        "pivot_root",
        "mount_setattr",
        "open_tree",
        "move_mount",
        "clone3",
    }
    worker = [
        "socket",
        "bind",
        "listen",
        "accept",
        "accept4",
        "execve",
        "capset",
        "setgid",
        "setuid",
        "getcpu",
    ]
    allowed = sorted({*names, *worker} - refused)
    return json.dumps({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
        "syscalls": [
            {"names": allowed, "action": "SCMP_ACT_ALLOW"},
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
        ],
    })  # fmt: skip


class ContainerProcess:
    """A container, seen as the process that its worker is."""

    def __init__(self, container: Any) -> None:
        self.container = container
        self.pid: int = container.attrs["State"]["Pid"]
        self.handle = os.pidfd_open(self.pid) if self.pid else -1

    def poll(self) -> int | None:
        if self.handle < 0:
            return 1
        return 1 if select.select([self.handle], [], [], 0)[0] else None

    def wait(self, timeout: float | None = None) -> int:
        if self.handle >= 0 and not select.select([self.handle], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("container", timeout or 0.0)
        return 1

    def kill(self) -> None:
        with contextlib.suppress(Exception):
            self.container.kill()

    def close(self) -> None:
        if self.handle >= 0:
            os.close(self.handle)
            self.handle = -1


class ContainerWorker(Worker):
    """A worker in a container of its own."""

    def __init__(self, image: str, preload: tuple[str, ...] = (), size: int = 0, names: int = 0) -> None:
        self.tier, self.owner, self.uses = "docker", os.getpid(), 0
        self.client = connect()
        self.folder = tempfile.mkdtemp(prefix=PREFIX)
        _IN_USE.add(self.folder)
        door = Path(self.folder, "door")
        door.mkdir()
        door.chmod(0o777)  # inside a folder that is closed to others
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  (closed by _end)
        self.control = socket.socket(socket.AF_UNIX)
        try:
            self.away = remote.is_remote(self.client)
            self.container = self._create(image, preload, door, size, names)
            stream = self._attach() if self.away else None
            self.container.start()
            self.container.reload()
        except BaseException as error:
            self.control.close()
            self.log.close()
            shutil.rmtree(self.folder, ignore_errors=True)
            with contextlib.suppress(Exception):
                self.container.remove(force=True)
            _IN_USE.discard(self.folder)
            self.client.close()
            if not isinstance(error, Exception):
                raise
            raise SandboxUnavailable(
                f"a container of {image!r} cannot be started ({_sentence(error)}): {MENDS}"
            ) from error
        self.line: remote.Line | None = None
        self.process: Any
        if stream is None:
            self.process = ContainerProcess(self.container)
        else:
            self.process = remote.RemoteProcess(self.container)
            self.control.close()
            self.control, far = socket.socketpair()
            self.line = remote.Line(stream, far, self.process)
            self.line.start()
        self._finalizer = weakref.finalize(
            self, _end, self.owner, self.process, self.control, self.log, self.folder, self.client
        )
        if self.line is None:
            self._connect(door / "socket")
        self._await_ready()

    def _create(self, image: str, preload: tuple[str, ...], door: Path, room: int, names: int) -> Any:
        config = {
            "tier": "docker", "folder": "", "control": "" if self.away else "/run/gymrl/socket",
            "packages": (), "preload": preload, "parent": 0, "house": "/gymrl",
        }  # fmt: skip
        limits = Limits()
        flags = ["-s", "-P", "-B", "-X", "utf8", *([] if preload else ["-S"])]
        size = f"rw,exec,nosuid,nodev,mode=1777,size={limits.disk + room},nr_inodes={8192 + names}"
        memory = 4 * limits.memory + 3 * room  # a working tree is there twice: as files, and to be put back
        places = {"/dev/full": {"bind": "/dev/zero", "mode": "rw"}}  # reads the same, gives no shared memory
        if not self.away:
            places[str(HOUSE)] = {"bind": "/gymrl", "mode": "ro"}
            places[str(door)] = {"bind": "/run/gymrl", "mode": "rw"}
        return self.client.containers.create(
            image,
            ["python3", *flags, "/gymrl/inside/start.py", json.dumps(config)],
            entrypoint=[],
            environment={**protocol.ENVIRONMENT, "PATH": "/usr/local/bin:/usr/bin:/bin"},
            labels={LABEL: owner(), FOLDER: self.folder},
            network_mode="none", ipc_mode="none", read_only=True, user=NOBODY, cap_drop=["ALL"],
            security_opt=["no-new-privileges:true", f"seccomp={profile()}"],
            mem_limit=memory, memswap_limit=memory, pids_limit=PROCESSES,
            tmpfs={"/work": size, "/tmp": size}, volumes=places,
            stdin_open=self.away, hostname="sandbox", working_dir="/",
            stop_signal="SIGKILL",
            log_config={"type": "none"} if self.away else {"type": "json-file", "config": {"max-size": "1m"}},
        )  # fmt: skip

    def _attach(self) -> Any:
        """The container's standard streams, before it starts."""
        return self.container.attach_socket(params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})

    def _connect(self, path: Path) -> None:
        deadline = time.monotonic() + START
        while True:
            try:
                return self.control.connect(str(path))
            except OSError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    return  # the missing greeting tells
                time.sleep(0.005)

    def last_words(self) -> str:
        if not self._finalizer.alive:
            return ""
        if self.line is not None:
            return self.line.last_words()
        with contextlib.suppress(Exception):
            lines = self.container.logs(tail=1).decode("utf-8", "replace").strip().splitlines()
            return lines[-1] if lines else ""
        return ""


def _end(owner: int, process: Any, control: socket.socket, log: IO[bytes], folder: str, client: Any) -> None:
    control.close()
    log.close()
    if os.getpid() != owner:  # a forked copy: the container is another's
        return
    with contextlib.suppress(Exception):  # an engine that is away: the next sweep does it
        process.container.remove(force=True)
    _IN_USE.discard(folder)
    process.close()
    client.close()
    shutil.rmtree(folder, ignore_errors=True)
