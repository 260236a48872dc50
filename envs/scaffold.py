"""`gymrl envs new NAME`: a package with one small environment, its entry point and a passing test."""

from __future__ import annotations

import keyword
import re
import sys
from pathlib import Path

_NAME = re.compile(r"(?:([A-Za-z][A-Za-z0-9_-]*)/)?([A-Za-z][A-Za-z0-9_-]*)")
_VERSION = re.compile(r"-v([0-9]{1,9})\Z")


class ScaffoldError(ValueError):
    """The package cannot be made; the text names the mend."""


def create_package(name: str, folder: Path) -> Path:
    """Write a package for an environment called `name` into a new folder below `folder`; return that folder.

    `name` is `maze`, `acme/Maze` or `acme/Maze-v3`: the environment's id becomes `maze/Maze-v0`, `acme/Maze-v0` or
    `acme/Maze-v3`, the package `maze` or `acme-maze`. Raises ScaffoldError for a bad name, an existing folder, and
    where nothing can be written.
    """
    versioned = _VERSION.search(name)
    version = int(versioned[1]) if versioned else 0
    match = _NAME.fullmatch(_VERSION.sub("", name))
    if match is None:
        raise ScaffoldError(
            f"{name!r} is no name for an environment: take letters, digits and '-', such as acme/Maze"
        )
    namespace, title = match.groups()
    words = [word for word in re.split(r"[-_]", title) if word]
    class_name = "".join(word[0].upper() + word[1:] for word in words)
    stem = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", "-".join(words)).lower()
    package = "-".join(
        part for part in ((namespace or "").lower().replace("_", "-").strip("-"), stem) if part
    )
    module = package.replace("-", "_")
    taken = keyword.iskeyword(module) or keyword.iskeyword(class_name) or module in sys.stdlib_module_names
    if taken or module in ("gymrl", "tests"):
        raise ScaffoldError(
            f"{module!r} means something else in Python: take another name, such as acme/{class_name}"
        )
    target = folder / package
    words_of = {
        "PACKAGE": package,
        "MODULE": module,
        "CLASS": class_name,
        "ID": f"{namespace or stem}/{class_name}-v{version}",
    }
    try:
        if target.exists():
            raise ScaffoldError(f"{target} exists already: take another name, or another place with --folder")
        for path, text in _FILES.items():
            file = target / _fill(path, words_of)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(_fill(text, words_of), encoding="utf-8")
    except OSError as error:
        reason = error.strerror or str(error)
        raise ScaffoldError(
            f"{target} cannot be written ({reason}): name another place with --folder"
        ) from None
    return target


def _fill(text: str, words: dict[str, str]) -> str:
    return re.sub(r"@([A-Z]+)@", lambda match: words[match[1]], text)


_PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "@PACKAGE@"
version = "0.1.0"
description = "The environment @ID@ for gymrl."
requires-python = ">=3.11"
dependencies = ["gymrl"]

[project.entry-points."gymrl.envs"]
"@ID@" = "@MODULE@.env:@CLASS@"

[tool.setuptools]
packages = ["@MODULE@"]

[tool.pytest.ini_options]
testpaths = ["tests"]
pythonpath = ["."]
"""

_README = """\
# @PACKAGE@

The environment `@ID@` for gymrl.

    pip install pytest -e .
    python -m pytest
    gymrl envs info @ID@
    gymrl envs play @ID@
    gymrl envs demo @ID@
    gymrl train quickstart env.id=@ID@

The world is in `@MODULE@/env.py`: make it yours. If the same task becomes another world, raise `version` in the class.
"""

_INIT = '''\
"""The environment `@ID@` for gymrl, found through the entry point in pyproject.toml."""
'''

_ENV = '''\
"""The environment `@ID@`."""

import random
import re

from gymrl.envs import Action, Environment


class @CLASS@(Environment):
    """Add two numbers. A wrong answer may be tried again.

    largest: the largest number to add, at least 30.
    """

    version = "1"
    max_turns = 3

    def __init__(self, largest: int = 99) -> None:
        if largest < 30:
            raise ValueError(f"largest is at least 30, not {largest}")
        self.largest = largest

    def reset(self) -> str:
        while True:
            a, b = self.rng.randint(0, self.largest), self.rng.randint(0, self.largest)
            if self.task.owns(f"{a} + {b}"):  # no problem is in two splits
                break
        self.total = a + b
        return f"What is {a} + {b}?"

    def step(self, action: Action) -> tuple[str, float, bool]:
        if not self.recognises(action):
            return "Say one number.", 0.0, False
        if int(action.text) != self.total:
            return "No. Try again.", 0.0, False
        return "Right.", 1.0, True

    def recognises(self, action: Action) -> bool:
        return re.fullmatch(r" *-?[0-9]{1,6} *", action.text) is not None

    def oracle(self) -> str:
        return str(self.total)

    def random_action(self, rng: random.Random) -> str:
        return str(rng.randint(0, 2 * self.largest))
'''

_TEST = '''\
"""The oracle wins, the random player does not, a task is one world, and the splits do not overlap."""

import random

from @MODULE@.env import @CLASS@

from gymrl.envs import make, register

register("@ID@", @CLASS@)  # so that the test runs before `pip install -e .` too


def play(player: str, tasks: int) -> float:
    """The mean reward of a player over some test tasks."""
    env = make("@ID@", split="test")
    rng, total = random.Random(0), 0.0
    for index in range(tasks):
        env.reset(options={"index": index})
        done = False
        while not done:
            action = env.oracle() if player == "oracle" else env.world.random_action(rng)
            _, reward, terminated, truncated, _ = env.step(action)
            total += reward
            done = terminated or truncated
    return total / tasks


def test_the_oracle_wins_and_the_random_player_does_not() -> None:
    assert play("oracle", 20) == 1.0
    assert play("random", 20) < 0.5


def test_a_task_is_one_world() -> None:
    first, second = make("@ID@"), make("@ID@")
    for index in range(20):
        options = {"index": index}
        assert first.reset(options=options)[0] == second.reset(options=options)[0]


def test_splits_do_not_overlap() -> None:
    seen = []
    for split in ("train", "val", "test"):
        env = make("@ID@", split=split)
        seen.append({env.reset(options={"index": index})[0].text for index in range(200)})
    # Where this fails, call self.task.owns(...) with what the first observation shows, hidden things left out.
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])


def test_what_is_no_number_is_void() -> None:
    env = make("@ID@")
    env.reset(options={"index": 0})
    for text in ("no idea", "4 5", "\\x1d5"):
        *_, info = env.step(text)
        assert info["void"]
'''

_FILES = {
    "pyproject.toml": _PYPROJECT,
    "README.md": _README,
    "@MODULE@/__init__.py": _INIT,
    "@MODULE@/env.py": _ENV,
    "tests/test_@MODULE@.py": _TEST,
}
