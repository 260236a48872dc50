"""Runs a server and ends its whole process group when the server, or whoever started it, ends.

    python vllm_guard.py PARENT_PID COMMAND...

vLLM's engine and worker processes outlive their server where that is killed, and a trainer that is killed cannot
stop anything. This process leads the group, imports nothing but the standard library, and watches both.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading

GRACE = 5.0
"""Seconds a server gets to end itself before its group is killed."""


def main(arguments: list[str]) -> None:
    parent = int(arguments[0])
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: asked.set())
    server = subprocess.Popen(arguments[1:], stdin=subprocess.DEVNULL)
    # The parent is compared, not waited for: a process whose parent has died gets another one.
    while server.poll() is None and os.getppid() == parent and not asked.wait(0.1):
        pass
    if server.poll() is None:
        server.send_signal(signal.SIGINT)  # vLLM's clean way out
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(GRACE)
    os.killpg(os.getpgid(0), signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
