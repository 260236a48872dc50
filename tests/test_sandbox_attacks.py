"""The attack suite against every sandbox that isolates, as this user and as an ordinary one."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gymrl.sandboxes import SandboxUnavailable, shared_sandbox
from gymrl.sandboxes.attacks import ATTACKS, Attack, attempt
from gymrl.sandboxes.attacks.site import Site

KNOWN = {"confined": {"find out whether a file exists"}}
"""What a sandbox does not stop, and its documentation says so."""
HARMLESS = [
    "read a file of the host", "read another process's memory", "list the host's folders", "leave by ..",
    "find out whether a file exists", "leave by links", "read the caller's environment", "write to a file of the host",
    "make files outside", "connect to a server of the host", "connect to Unix sockets", "make a socket of any family",
    "turn a pair of sockets outward", "listen for others", "see other processes", "perf events", "bpf",
    "one large file", "files in memory", "send signals by way of descriptors", "change limits and priorities of others",
    "change modes, times, owners and attributes of files of the host",
]  # fmt: skip
"""Attacks that do no lasting harm where nothing stops them."""


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Site() as site:
        yield site


@pytest.mark.parametrize("backend", ["namespaces", "confined", "docker"])
@pytest.mark.parametrize(
    "attack", ATTACKS, ids=lambda attack: f"{attack.group}-{attack.name}".replace(" ", "_")
)
def test_an_attack_is_stopped(
    attack: Attack, backend: str, site: Site, request: pytest.FixtureRequest
) -> None:
    if backend == "docker":
        request.getfixturevalue("docker_engine")
    try:
        box = shared_sandbox(backend)
    except SandboxUnavailable as unavailable:
        pytest.skip(str(unavailable))
    verdict = asyncio.run(attempt(box, attack, site))
    if attack.name in KNOWN.get(backend, ()):
        assert not verdict.stopped, "it is stopped now: take it out of KNOWN and out of docs/sandboxes.md"
    else:
        assert verdict.stopped, verdict.how


@pytest.mark.parametrize("name", HARMLESS)
def test_an_attack_succeeds_where_nothing_stops_it(name: str, site: Site) -> None:
    """The attacks are real, and their success is seen."""
    [attack] = [attack for attack in ATTACKS if attack.name == name]
    verdict = asyncio.run(attempt(shared_sandbox("none"), attack, site))
    assert not verdict.stopped


def ordinary(*command: str) -> subprocess.CompletedProcess[str]:
    script = Path(__file__).with_name("ordinary_user.py")
    return subprocess.run(
        [sys.executable, str(script), sys.executable, *command], capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize("backend", ["namespaces", "confined"])
def test_an_ordinary_user_is_protected_as_well(backend: str) -> None:
    probe = ordinary(
        "-c",
        f"import os; from gymrl.sandboxes import open_sandbox; open_sandbox({backend!r}); print(os.getuid())",
    )
    if probe.returncode and "SandboxUnavailable" in probe.stderr:
        pytest.skip(probe.stderr.strip().splitlines()[-1])
    assert probe.returncode == 0 and int(probe.stdout) != 0, probe.stderr
    done = ordinary("-m", "gymrl.cli.main", "sandbox", "check", "--backend", backend)
    missed = {line.split(": ", 1)[1] for line in done.stdout.splitlines() if line.startswith("NOT STOPPED")}
    assert missed == KNOWN.get(backend, set()), done.stdout
    assert done.returncode == (1 if missed else 0)
    assert f"{len(ATTACKS) - len(missed)} of {len(ATTACKS)} stopped by the sandbox {backend!r}" in done.stdout


def test_checking_no_sandbox_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gymrl.cli.main", "sandbox", "check", "--backend", "none"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "stops nothing" in done.stderr


@pytest.mark.parametrize(
    "source, status, out, err",
    [
        (b"print(6 * 7)", 0, "42\n", "exit status 0"),
        (b"import sys; sys.exit(3)", 3, "", "exit status 3"),
        (b"while True: pass", 1, "", "stopped: timeout"),
        (b"print(1)\0", 1, "", "null bytes"),
        (b"print('\xff\xfe')", 1, "", "exit status 1"),
        (b"import sys; sys.stdout.buffer.write(bytes(range(128, 256)))", 0, "\ufffd" * 128, "exit status 0"),
        (b"print('x' * 100_000_000)", 1, "x", "stopped: output"),
    ],
)
def test_a_file_is_run(source: bytes, status: int, out: str, err: str, tmp_path: Path) -> None:
    (tmp_path / "main.py").write_bytes(source)
    command = [
        sys.executable,
        "-m",
        "gymrl.cli.main",
        "sandbox",
        "run",
        str(tmp_path / "main.py"),
        "--timeout",
        "1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONUTF8": "1"})
    assert done.returncode == status and err in done.stderr
    assert done.stdout == out if len(out) != 1 else done.stdout.startswith(out)
    gone = subprocess.run([*command[:5], str(tmp_path / "gone.py")], capture_output=True, text=True)
    assert gone.returncode == 1 and "no such file" in gone.stderr
