"""`python ordinary_user.py COMMAND...`: run a command as user 1000, who may be unable to reach this Python.

Root's own Python may lie in a folder that is closed to everybody else. In a mount namespace of its own such a folder is
covered by an empty one that is open, into which just the Python and this repository are bound again.
"""

import os
import sys
from pathlib import Path

from gymrl.sandboxes.inside import syscalls as sc

USER = 1000


def closed(path: str) -> str | None:
    """The topmost folder on the way that not everybody may pass."""
    for folder in reversed(Path(path).parents):
        if not folder.stat().st_mode & 0o001:
            return str(folder)
    return None


def open_up(paths: list[str]) -> None:
    sc.unshare(sc.CLONE_NEWNS)
    sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)
    hidden = {path: folder for path in paths if (folder := closed(path))}
    trees = {path: sc.tree(path) for path in hidden}
    for folder in sorted(set(hidden.values())):
        sc.mount("none", folder, "tmpfs", 0, "mode=755")
    for path, descriptor in trees.items():
        os.makedirs(path)
        sc.attach(descriptor, path)


if __name__ == "__main__":
    if os.geteuid() == 0:
        places = {sys.base_prefix, sys.prefix, str(Path(__file__).resolve().parents[1])}
        open_up(sorted(places))
        os.setgroups([])
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)
    os.chdir("/")
    environment = {"PATH": os.defpath, "HOME": "/tmp", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    os.execve(sys.argv[1], sys.argv[1:], environment)
