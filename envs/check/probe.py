"""The process in which an environment is checked: `laws` are tried, or `traces` of tasks taken, one JSON line each."""

from __future__ import annotations

import asyncio
import functools
import importlib
import json
import os
import signal
import sys
import time
from dataclasses import asdict
from typing import Any

import numpy  # noqa: F401 - here already, so that an environment's import finds its global generator as we saw it

from gymrl.envs.check import play
from gymrl.envs.check.laws import LAWS, globals, run_law
from gymrl.envs.check.records import Settings, Subject
from gymrl.envs.processes import import_path
from gymrl.envs.records import TaskSpec
from gymrl.envs.registry import entry, register
from gymrl.sandboxes.inside import syscalls

BOOT = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1])['path']; "
    "from gymrl.envs.check.probe import main; main()"
)


def job_of(subject: Subject) -> dict[str, Any]:
    """What another process needs to make the subject. Raises EnvironmentFault for a class that it cannot import."""
    return {
        "path": sys.path,
        "env_id": subject.env_id,
        "target": import_path(subject.env_id),
        "defaults": entry(subject.env_id).defaults,
        "params": dict(subject.params),
    }


def command(job: dict[str, Any]) -> list[str]:
    return [sys.executable, "-c", BOOT, json.dumps({**job, "caller": os.getpid()})]


def main() -> None:
    """Do the job given as JSON in the first argument; write JSON lines to its `fd`."""
    job = json.loads(sys.argv[1])
    # Whoever asked may be killed; an environment that is being tried must not go on for minutes after that.
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != job["caller"]:
        return
    os.dup2(2, 1)  # what an environment prints is not for the table
    with os.fdopen(job["fd"], "w", encoding="utf-8", buffering=1) as out:
        before = globals.state()
        try:
            module, _, name = job["target"].partition(":")
            cls: Any = functools.reduce(getattr, name.split("."), importlib.import_module(module))
            register(job["env_id"], cls, defaults=job["defaults"])
            subject = Subject(job["env_id"], job["params"])
            env = subject.make()
            asyncio.run(play.closed(env))
        except Exception as error:
            _say(out, {"error": f"{type(error).__name__}: {error}"})
            return
        if "crumbs" in job:
            play.tell_crumbs(job["crumbs"])
        if job["kind"] == "laws":
            globals.BEFORE_IMPORT[:] = [before]
            for law in job["laws"]:
                _say(out, {"begin": law})
                _say(out, asdict(run_law(LAWS[law], subject, Settings(**job["settings"]))))
        else:
            _say(out, {"traces": asyncio.run(_traces(subject, job["tasks"], job["seconds"]))})
    sys.stderr.flush()
    os._exit(0)  # threads of an environment do not keep the process


async def _traces(subject: Subject, tasks: list[list[Any]], seconds: float) -> list[Any]:
    """The traces of (split, index) tasks, in that order, as many as the time allows."""
    env, found = subject.make(), []
    began = time.monotonic()
    for split, index in tasks:
        task: TaskSpec = env.task_spec(index, split)
        found.append([split, index, await play.trace(env, task)])
        if time.monotonic() - began > seconds:
            break
    await play.closed(env)
    return found


def _say(out: Any, message: dict[str, Any]) -> None:
    out.write(json.dumps(message) + "\n")


if __name__ == "__main__":
    main()
