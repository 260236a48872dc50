"""Runs Chromium and buries it: `python reaper.py PROFILE CHROMIUM FLAGS...`.

Chromium is a tree of processes, and whoever kills its root leaves the others to whatever process adopts orphans, which
in a container is often nobody. This one adopts and reaps them. It stands between playwright and Chromium, passes on
the debugging pipe (descriptors 3 and 4), keeps Chromium in a process group of its own, writes that group's number to
PROFILE/group, and when Chromium ends, or its own parent does, it kills what is left and removes PROFILE. It imports
nothing of ours, as it has to start quickly.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
BURIAL_SECONDS = 5.0


def main() -> int:
    profile, command = sys.argv[1], sys.argv[2:]
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None).prctl
        prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    try:
        chromium = subprocess.Popen(command, pass_fds=(3, 4), process_group=0, stdin=subprocess.DEVNULL)
        for fd in (3, 4):
            os.close(fd)  # so that Chromium's end is seen at the pipe's other end

        def kill(*_: object) -> None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(chromium.pid, signal.SIGKILL)

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, kill)
        with open(os.path.join(profile, "group.new"), "w", encoding="ascii") as file:
            file.write(str(chromium.pid))
        os.replace(os.path.join(profile, "group.new"), os.path.join(profile, "group"))
        code = chromium.wait()
        kill()
        _bury()
        return code if code >= 0 else 128 - code
    finally:
        shutil.rmtree(profile, ignore_errors=True)


def _bury() -> None:
    """Collect every orphan until there is none."""
    end = time.monotonic() + BURIAL_SECONDS
    while time.monotonic() < end:
        try:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(0.01)
        except ChildProcessError:
            return


if __name__ == "__main__":
    sys.exit(main())
