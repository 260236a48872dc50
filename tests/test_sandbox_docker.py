"""The docker sandbox's containers: hardened, replaced when they die, removed when nobody owns them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gymrl.sandboxes import SandboxFault, SandboxUnavailable, open_sandbox
from gymrl.sandboxes.attacks import ATTACKS, check
from gymrl.sandboxes.container import FOLDER, LABEL, DockerSandbox, connect, owner, sweep
from gymrl.sandboxes.image import ensure_image
from gymrl.sandboxes.remote import is_remote
from gymrl.sandboxes.worker import HOUSE

BARE = ("--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false")
"""An engine that needs nothing of the host's network."""


@pytest.fixture
def client(docker_engine: str) -> Iterator[Any]:
    client = connect()
    yield client
    client.close()


def opened(workers: int = 1) -> DockerSandbox:
    box = open_sandbox("docker", workers=workers)
    assert isinstance(box, DockerSandbox)
    return box


def containers(client: Any, of: str) -> list[Any]:
    found = client.containers.list(all=True, filters={"label": f"{LABEL}={of}"}, ignore_removed=True)
    return list(found)


async def test_a_container_is_hardened(client: Any) -> None:
    before = {container.id for container in containers(client, owner())}
    box = opened()
    [container] = [c for c in containers(client, owner()) if c.id not in before]
    host = container.attrs["HostConfig"] if "ReadonlyRootfs" in container.attrs["HostConfig"] else {}
    container.reload()
    host = container.attrs["HostConfig"]
    assert host["NetworkMode"] == "none" and host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"]
    assert not host["Privileged"] and host["Memory"] > 0 and host["PidsLimit"] > 0
    assert (
        "no-new-privileges:true" in host["SecurityOpt"] and container.attrs["Config"]["User"] == "65534:65534"
    )
    seen = await box.run("import os; print(os.getuid(), os.environ, os.access('/', os.W_OK))")
    assert seen.stdout.startswith("65534 environ({'HOME': '/work'") and seen.stdout.endswith("False\n")
    await box.close()
    assert {container.id for container in containers(client, owner())} <= before


async def test_a_container_that_is_killed_is_a_fault_and_is_replaced(client: Any) -> None:
    box = opened()
    [worker] = box._idle.queue
    call = asyncio.create_task(box.run("import time; time.sleep(20)", timeout=30))
    await asyncio.sleep(0.3)
    await asyncio.to_thread(worker.container.kill)  # type: ignore[attr-defined]
    with pytest.raises(SandboxFault, match="died"):
        await call
    assert (await box.run("print('next')")).stdout == "next\n"
    session = await box.session()
    await session.run("x = 1")
    await asyncio.to_thread(session._worker.container.remove, force=True)  # type: ignore[attr-defined]
    with pytest.raises(SandboxFault, match="died"):
        await session.run("x")
    assert (await session.run("'x' in globals()")).value == "False"
    await session.close()
    await box.close()


async def test_a_container_is_replaced_after_many_uses(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gymrl.sandboxes.container.USES", 2)
    box = opened()
    [first] = box._idle.queue
    for i in range(3):
        assert (await box.run(f"print({i})")).stdout == f"{i}\n"
    [last] = box._idle.queue
    assert last is not first and not first.alive
    await box.close()


def test_containers_of_a_killed_caller_are_swept(client: Any) -> None:
    script = """
        import asyncio, os, signal
        from gymrl.sandboxes import open_sandbox
        from gymrl.sandboxes.container import owner
        box = open_sandbox("docker", workers=1)
        print(owner(), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    [who] = done.stdout.split()
    [orphan] = containers(client, who)
    folder = Path(orphan.labels[FOLDER])
    assert folder.exists()
    assert sweep(client) >= 1
    assert containers(client, who) == [] and not folder.exists()
    assert all(c.labels[LABEL] == owner() for c in containers(client, owner()))


async def test_an_engine_that_is_gone_is_a_fault(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    box = opened()
    [worker] = box._idle.queue
    with monkeypatch.context() as gone:
        gone.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
        assert (await box.run("print('still')")).stdout == "still\n"
        os.kill(worker.process.pid, 9)
        with contextlib.suppress(SandboxFault):
            await box.run("pass")
        with pytest.raises(SandboxFault, match="no Docker engine answers"):
            await box.run("pass")
        with pytest.raises(SandboxUnavailable, match="start a Docker engine"):
            opened()
    assert (await box.run("print('again')")).stdout == "again\n"
    await box.close()


class Engine:
    """An engine of a test's own, which it may kill."""

    def __init__(self, folder: Path, dockerd: str, *more: str) -> None:
        self.folder, self.dockerd, self.more, self.starts = folder, dockerd, more, 0
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self) -> bool:
        """The same images and containers as before; whether it answers."""
        self.starts += 1  # what containers run under is new: a killed engine leaves its own in a muddle
        places = ("--data-root", self.folder / "data", "--exec-root", self.folder / f"exec{self.starts}")
        command = [
            self.dockerd,
            *places,
            "-p",
            self.folder / f"pid{self.starts}",
            "-H",
            f"unix://{self.folder}/sock",
        ]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(  # noqa: ASYNC220
                [*command, "--shutdown-timeout=1", *BARE, *self.more],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        for _ in range(600):
            try:
                connect().close()
            except SandboxUnavailable:
                if self.process.poll() is not None:
                    return False
                await asyncio.sleep(0.1)
            else:
                return True
        return False

    async def end(self, signal_number: int = signal.SIGTERM) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal_number)
            await asyncio.to_thread(self.process.wait, 60)

    def sweep(self) -> None:
        """End what a killed engine left running and mounted: what its containers ran under."""
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if f"{self.folder}/exec" in path.read_text():
                    os.kill(int(path.parent.name), signal.SIGKILL)
        mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for place in sorted(
            (place for place in mounted if place.startswith(f"{self.folder}/")), reverse=True
        ):
            subprocess.run(["umount", "-l", place], check=False)


async def test_an_engine_that_dies_under_calls_hangs_nothing(
    docker_engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed, it leaves its containers running: a call ends as it would have. Ended, it takes them along: a call is a
    fault. In neither case is anything else taken for a result."""
    dockerd = shutil.which("dockerd", path=f"{os.environ['PATH']}:/usr/sbin")
    if os.geteuid() or not dockerd:
        pytest.skip("an engine of the test's own needs root and dockerd")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/sock")
    engine = Engine(tmp_path, dockerd)
    try:
        if not await engine.start():
            pytest.skip(f"no second engine runs here: {(tmp_path / 'log').read_text()[-300:]}")
        for signal_number in (signal.SIGKILL, signal.SIGTERM):
            box = opened(2)
            session, shell = await box.session(), await box.shell()
            await session.run("x = 1")
            slow = f"import time; time.sleep({1 if signal_number == signal.SIGKILL else 30}); print('done')"
            calls = [asyncio.create_task(box.run(slow, timeout=40)) for _ in range(3)]
            calls.append(asyncio.create_task(session.run(slow, timeout=40)))
            calls.append(asyncio.create_task(shell.exec(f'python3 -c "{slow}"', timeout=40)))
            await asyncio.sleep(0.5)
            await engine.end(signal_number)
            ends = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 120)
            for end in ends:
                assert isinstance(end, SandboxFault) or (end.ok and end.stdout == "done\n"), end
            assert signal_number == signal.SIGKILL or all(isinstance(end, SandboxFault) for end in ends)
            with pytest.raises(SandboxUnavailable, match="start a Docker engine"):
                opened()
            for thing in (session, shell, box):
                await asyncio.wait_for(thing.close(), 60)
            assert await engine.start(), (tmp_path / "log").read_text()[-2000:]
        box = opened()
        assert (await box.run("print('again')")).stdout == "again\n"
        client = connect()
        assert len(containers(client, owner())) == 1  # those that the dead engine could not remove are gone
        client.close()
        await box.close()
    finally:
        await engine.end()
        engine.sweep()


async def test_an_engine_on_another_machine_is_reached_over_its_stream(
    docker_engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that is reached by TCP shares neither sockets nor folders: all goes over what it attaches."""
    dockerd = shutil.which("dockerd", path=f"{os.environ['PATH']}:/usr/sbin")
    if os.geteuid() or not dockerd:
        pytest.skip("an engine of the test's own needs root and dockerd")
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("DOCKER_HOST", address)
    monkeypatch.delenv("DOCKER_TLS_VERIFY", raising=False)
    engine = Engine(tmp_path, dockerd, "-H", address, "--tls=false")
    try:
        if not await engine.start():
            pytest.skip(f"no second engine runs here: {(tmp_path / 'log').read_text()[-300:]}")
        box = opened()
        client = connect()
        [container] = containers(client, owner())
        container.reload()
        host = container.attrs["HostConfig"]
        assert host["NetworkMode"] == "none" and host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"]
        assert host["Binds"] == ["/dev/full:/dev/zero:rw"]  # nothing else of the other machine's
        assert container.attrs["Config"]["User"] == "65534:65534"

        large = await box.run("import sys; print('x' * 300000); sys.stderr.write('e' * 300000)")
        assert large.ok and (len(large.stdout), len(large.stderr)) == (2**16, 2**16)
        assert (await box.run("while True: print('y' * 1000)")).killed_by == "output"
        assert (await box.run("while True: pass", timeout=0.3)).killed_by == "timeout"
        assert (await box.run("import os; os._exit(7)")).exit == 7
        for i in range(20):
            assert (await box.run(f"import sys; print({i}); sys.exit(3)")).stdout == f"{i}\n"
        chosen = [attack for attack in ATTACKS if attack.group in ("theft", "deceit")]
        got = [verdict.attack.name async for verdict in check(box, chosen) if not verdict.stopped]
        assert chosen and not got

        session = await box.session()
        await session.run("x = 20")
        branch = await session.snapshot()
        turn = await session.run("print('seen'); x = 5; x + 1")
        assert (turn.stdout, turn.value) == ("seen\n", "6")
        await session.restore(branch)
        assert (await session.run("x")).value == "20"
        tree = tmp_path / "tree"
        tree.mkdir()
        (tree / "large").write_bytes(b"q" * 400_000)
        shell = await box.shell(tree)
        assert (await shell.exec("wc -c large; rm large")).stdout == "400000 large\n"
        await shell.write_file("new", b"\0z" * 200_000)
        assert await shell.read_file("new") == b"\0z" * 200_000
        await shell.reset()
        assert (await shell.exec("ls")).stdout == "large\n"

        slow = asyncio.create_task(box.run("import time; time.sleep(30)", timeout=40))
        await asyncio.sleep(0.3)
        await asyncio.to_thread(container.kill)
        with pytest.raises(SandboxFault, match="died"):
            await asyncio.wait_for(slow, 60)
        assert (await box.run("print('next')")).stdout == "next\n"
        for thing in (session, shell, box):
            await asyncio.wait_for(thing.close(), 60)
        assert containers(client, owner()) == []
        client.close()
        for _ in range(100):  # the streams' threads go when the containers are gone
            if not (left := [thread for thread in threading.enumerate() if thread.name == "gymrl-remote"]):
                break
            await asyncio.sleep(0.1)
        assert not left
    finally:
        await engine.end()
        engine.sweep()


def test_an_engine_by_tls_is_refused_with_its_mend() -> None:
    docker = pytest.importorskip("docker")
    client = docker.DockerClient(base_url="tcp://127.0.0.1:1", version="1.41", tls=docker.tls.TLSConfig())
    with pytest.raises(SandboxUnavailable, match=r"TLS or ssh .* is not supported: forward its port"):
        is_remote(client)
    client.close()


def test_a_missing_image_is_told_with_its_mend(client: Any) -> None:
    with pytest.raises(SandboxUnavailable, match="there is no image 'nosuchimage:1': docker pull it"):
        open_sandbox("docker", image="nosuchimage:1")


@pytest.mark.parametrize("user", ["0", "1000"])
def test_in_a_default_container_programs_are_confined(client: Any, user: str) -> None:
    """No namespaces may be made there, so `auto` takes the next best, which holds as it does elsewhere."""
    script = """
        import asyncio
        from gymrl.sandboxes import open_sandbox
        from gymrl.sandboxes.attacks import ATTACKS, check
        async def main():
            box = open_sandbox(workers=1)
            chosen = [attack for attack in ATTACKS if attack.group in ("theft", "writing", "deceit")]
            async for verdict in check(box, chosen):
                if not verdict.stopped:
                    print(verdict.attack.name, verdict.how)
            result = await box.run("print(1 + 1)")
            print(result.backend, result.stdout.strip())
            await box.close()
        asyncio.run(main())
    """
    docker = pytest.importorskip("docker")
    try:
        said = client.containers.run(
            ensure_image(client), ["python3", "-B", "-c", textwrap.dedent(script)], user=user, remove=True,
            network_mode="none", environment={"PYTHONPATH": "/house"}, working_dir="/tmp",
            volumes={str(HOUSE): {"bind": "/house/gymrl/sandboxes", "mode": "ro"}},
        )  # fmt: skip
    except docker.errors.ContainerError as error:
        if "landlock: " in str(error):
            pytest.skip("this engine's own seccomp profile forbids Landlock")
        raise
    lines = said.decode().splitlines()
    assert lines == ["find out whether a file exists GOT stat works", "confined 2"]
