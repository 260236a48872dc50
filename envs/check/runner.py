"""Running the laws: in a process that may crash or hang, or in this one."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import IO, Any

from gymrl.envs.check.laws import LAWS, run_law
from gymrl.envs.check.probe import command, job_of
from gymrl.envs.check.records import Fault, Report, Settings, Subject, Verdict
from gymrl.envs.gym import EnvironmentFault
from gymrl.envs.registry import entry


def check(
    env_id: str,
    params: Mapping[str, Any] | None = None,
    *,
    laws: Iterable[str] | None = None,
    settings: Settings | None = None,
    isolate: bool = True,
    on_verdict: Callable[[Verdict], None] = lambda verdict: None,
) -> Report:
    """Try the laws of these names (None: all) on an environment.

    With `isolate` they are tried in a fresh process: a crash or a hang is then a fault of the law under trial, and the
    others go on. Without it they are tried here, which is quicker and takes environments that another process cannot
    import. `on_verdict` is called as each verdict comes. Raises UnknownEnvironment, MissingExtra, ValueError for a
    wrong parameter or law, and EnvironmentFault for a class that another process cannot import or make.
    """
    subject, settings = Subject(env_id, dict(params or {})), settings or Settings()
    names = _names(laws)
    entry(env_id).cls()
    verdicts: list[Verdict] = []

    def note(verdict: Verdict) -> None:
        verdicts.append(verdict)
        on_verdict(verdict)

    if isolate:
        waiting = list(names)
        while waiting:
            for verdict in _probe(subject, waiting, settings):
                waiting.remove(verdict.law)
                note(verdict)
    else:
        for name in names:
            note(run_law(LAWS[name], subject, settings))
    return Report(env_id, subject.params, tuple(verdicts))


def _names(laws: Iterable[str] | None) -> list[str]:
    names = list(LAWS if laws is None else laws)
    for name in names:
        if name not in LAWS:
            near = difflib.get_close_matches(name, LAWS, 1, 0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"take {', '.join(LAWS)}"
            raise ValueError(f"there is no law {name!r}: {hint}")
    return [name for name in LAWS if name in names]


def _probe(subject: Subject, laws: list[str], settings: Settings) -> Iterable[Verdict]:
    """The verdicts of one process: on all laws, or up to the one in which it died or was ended."""
    job = {**job_of(subject), "kind": "laws", "laws": laws, "settings": asdict(settings)}
    ours, theirs = os.pipe()
    with (
        tempfile.TemporaryFile() as crumbs,
        tempfile.TemporaryFile() as errors,
        os.fdopen(ours, "rb") as lines,
    ):
        try:
            process = subprocess.Popen(
                command({**job, "fd": theirs, "crumbs": crumbs.fileno()}), pass_fds=(theirs, crumbs.fileno()),
                stdin=subprocess.DEVNULL, stderr=errors, process_group=0,
            )  # fmt: skip
        finally:
            os.close(theirs)
        law, began = laws[0], time.monotonic()
        try:
            for message in _messages(lines, crumbs, settings.stall_seconds):
                if "error" in message:
                    process.wait()
                    _raise(message["error"], subject)
                elif "begin" in message:
                    law, began = message["begin"], time.monotonic()
                else:
                    faults = tuple(Fault(**fault) for fault in message.pop("faults"))
                    yield Verdict(**message, faults=faults)
                    law = ""
        finally:
            hung = not _end(process)
        if law:
            how = f"came no further for {settings.stall_seconds:g} s" if hung else _exit(process, errors)
            split, index = _crumb(crumbs)
            fault = Fault(f"the process {how}", split, index)
            yield Verdict(law, LAWS[law].claim, "fault", "no verdict", (fault,), time.monotonic() - began)


def _messages(lines: IO[bytes], crumbs: IO[bytes], stall: float) -> Iterable[dict[str, Any]]:
    """What the process says, until it ends, or neither says anything nor begins a task for `stall` seconds."""
    heard, crumb, buffer = time.monotonic(), b"", b""
    while time.monotonic() - heard < stall:
        if select.select([lines], [], [], min(1.0, stall))[0]:
            part = os.read(lines.fileno(), 2**16)
            if not part:
                return
            heard, buffer = time.monotonic(), buffer + part
            *whole, buffer = buffer.split(b"\n")
            yield from map(json.loads, whole)
        if (now := os.pread(crumbs.fileno(), 96, 0)) != crumb:
            heard, crumb = time.monotonic(), now


def _end(process: subprocess.Popen[bytes]) -> bool:
    """End the process and what it left running in its group; says whether it had ended by itself."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(2.0)
    by_itself = process.returncode is not None
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return by_itself


def _exit(process: subprocess.Popen[bytes], errors: IO[bytes]) -> str:
    errors.seek(0)
    said = errors.read().decode(errors="replace").strip().splitlines()
    how = f"was killed by signal {-process.returncode}" if process.returncode < 0 else "ended"
    return f"{how} ({said[-1][:200]})" if said else how


def _crumb(crumbs: IO[bytes]) -> tuple[str | None, int | None]:
    words = os.pread(crumbs.fileno(), 96, 0).decode().split()
    return (words[0], int(words[1])) if len(words) == 3 else (None, None)


def _raise(text: str, subject: Subject) -> None:
    """Raise again, here, what making the environment raised there."""
    kind, _, said = text.partition(": ")
    if kind in ("ValueError", "TypeError"):
        raise ValueError(said)
    raise EnvironmentFault(f"{subject.env_id} cannot be made: {text}")
