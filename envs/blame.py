"""Where an environment's own error came from: what its author needs besides the error's words."""

from __future__ import annotations

import os
import re
import sysconfig
import traceback

_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_FILES = (
    "gym.py", "workers.py", "processes.py", "process_worker.py", "wire.py", "registry.py", "blame.py", "imports.py",
    "logbook.py", "deadlines.py",
    "wrappers/__init__.py", "wrappers/base.py",
)  # fmt: skip
_PLUMBING = tuple(_HERE + name.replace("/", os.sep) for name in _FILES)
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (.+)')


def where(error: BaseException) -> str:
    """`file.py:31 in step`: the innermost line of the environment's own code, or of what it called if there is none.

    Empty where nothing is known. What came from another process is read from the traceback in the error's notes.
    """
    frames = [(f.filename, f.lineno or 0, f.name) for f in traceback.extract_tb(error.__traceback__)]
    for note in getattr(error, "__notes__", ()):
        frames += [(file, int(line), name.strip()) for file, line, name in _FRAME.findall(note)]
    inside = [frame for frame in frames if _is_environment(frame[0])]
    if not inside:
        return ""
    file, line, name = inside[-1]
    return f"{os.path.basename(file)}:{line} in {name}"


def told(error: BaseException) -> str:
    """The error in one line, with its place: `KeyError: 'x' (maze.py:31 in step)`."""
    place = "" if isinstance(error, SyntaxError) else where(error)  # that one says where it is
    return f"{type(error).__name__}: {error}"[:500] + (f" ({place})" if place else "")


def _is_environment(file: str) -> bool:
    """Whether a file can be an environment's: not Python's own, and not ours that carries calls to it and back."""
    if file.startswith("<") or os.path.abspath(file).startswith(_PLUMBING):
        return False
    library = sysconfig.get_paths()["stdlib"] + os.sep
    if file.startswith(library) and "site-packages" not in file[len(library) :]:
        return False
    return not re.search(r"[/\\](agents|rl|cli|leaderboards)[/\\](rollout|evaluation|players)\.py$", file)
