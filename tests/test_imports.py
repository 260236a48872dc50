"""What a user names as `module:thing`: found in the working directory too, without that hiding anything."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gymrl.envs import MissingExtra, entry, imports, make, register, registry

WRAPPERS = """
from gymrl.envs import Environment
from gymrl.envs.wrappers import Wrapper, with_note

class Polite(Wrapper):
    async def step(self, action):
        result = await self.inner_step(action)
        return with_note(result.observation, "Thank you."), result.reward, result.terminated

class World(Environment):
    def reset(self):
        return "Hello."
    def step(self, action):
        return "Bye.", 1.0, True
"""
LAKE = """
import gymnasium
from gymnasium.envs.toy_text import FrozenLakeEnv
import here_words

class Lake(FrozenLakeEnv):
    pass

gymnasium.register("here/Lake-v0", entry_point="here_lake:Lake")

def read(text):
    return here_words.WAYS.get(text.strip())

def show(observation):
    return f"field {observation}"

def best(env):
    return "down"
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory that is not on Python's path, with modules in it."""
    (tmp_path / "here_wrappers.py").write_text(WRAPPERS)
    (tmp_path / "here_lake.py").write_text(LAKE)
    (tmp_path / "here_words.py").write_text("WAYS = {'left': 0, 'down': 1}\n")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", os.getcwd())])
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("here_"):
            del sys.modules[name]


@pytest.mark.slow
def test_the_command_finds_modules_in_the_working_directory(here: Path) -> None:
    words = [
        "envs", "demo", "gymrl/Gymnasium-v0", "world=here_lake:here/Lake-v0", "actions=here_lake:read",
        "observation=here_lake:show", "oracle=here_lake:best", "max_turns=2", "run=process",
        'wrappers=["here_wrappers:Polite"]',
    ]  # fmt: skip
    command = [word if index < 3 else f"--param={word}" for index, word in enumerate(words)]
    done = subprocess.run(  # -P: as the installed command, which has no working directory on its path
        [sys.executable, "-P", "-m", "gymrl.cli.main", *command], cwd=here, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "field 0" in done.stdout and "field 4\n  Thank you." in done.stdout


def test_a_wrapper_in_the_working_directory_is_found_last_of_all(here: Path) -> None:
    (here / "json.py").write_text("raise RuntimeError('it hides what is installed')\n")
    path = list(sys.path)
    env = make("gymrl/Gymnasium-v0", wrappers=["here_wrappers:Polite"])
    env.reset(options={"index": 0})
    assert env.step("down")[0].text.endswith("Thank you.")
    assert sys.path == [*path, str(here)]
    env.close()


def test_the_path_stays_as_it_is_where_it_is_not_needed(here: Path) -> None:
    path = list(sys.path)
    assert imports.load("it", "json:dumps") is __import__("json").dumps
    with pytest.raises(ValueError, match="no module 'here_nothing'"):
        imports.load("it", "here_nothing:x")
    assert sys.path == path


def test_functions_of_an_adapter_are_found_there(here: Path) -> None:
    env = make(
        "gymrl/Gymnasium-v0", world="here_lake:here/Lake-v0", actions="here_lake:read", oracle="here_lake:best",
        observation="here_lake:show",
    )  # fmt: skip
    assert env.reset(options={"index": 0})[0].text == "field 0" and env.oracle().text == "down"
    env.close()


def test_an_environment_that_is_registered_by_its_path_is_found_there(here: Path) -> None:
    register("here/World-v0", "here_wrappers:World")
    assert make("here/World-v0").reset(options={"index": 0})[0].text == "Hello."
    register("here/Gone-v0", "here_nothing:World")
    with pytest.raises(
        MissingExtra, match=r"here/Gone-v0 cannot be imported: .* nor in the working directory \("
    ):
        entry("here/Gone-v0").cls()
    (here / "here_needs.py").write_text("import here_nothing\n")
    register("here/Needs-v0", "here_needs:World")
    with pytest.raises(
        MissingExtra, match=r"\(No module named 'here_nothing'\): install what it needs, or mend"
    ):
        entry("here/Needs-v0").cls()


def test_an_entry_point_of_a_package_is_not_looked_for_there(here: Path) -> None:
    register("here/World-v0", "here_wrappers:World", source="a-package")
    with pytest.raises(MissingExtra, match="reinstall a-package"):
        entry("here/World-v0").cls()


@pytest.mark.parametrize(
    ("source", "name", "words"),
    [
        ("", "here_nothing:x", "there is no module 'here_nothing' on Python's path, nor in the working directory ("),
        ("", "here_nothing:x", "put that folder on PYTHONPATH, install its package, or mend the name"),
        ("", "here_file.part:x", "there is no module 'here_file.part'"),
        ("things = 1", "here_file:thing", "here_file.py) has no 'thing': did you mean 'things'?"),
        ("", "here_file:thing", "here_file.py) has no 'thing': write it there, or mend the name"),
        ("", "here_file.py:thing", "names a file: name its module, as in here_file:NAME"),
        ("", "./deep/here_file.py:thing", "names a file: name its module, as in deep.here_file:NAME"),
        ("import here_nothing", "here_file:thing", "No module named 'here_nothing' (here_file.py:1 in <module>): inst"),
        ("1 / 0", "here_file:thing", "here_file raised ZeroDivisionError: division by zero (here_file.py:1 in <module"),
        ("raise SystemExit(3)", "here_file:thing", "here_file raised SystemExit: 3 (here_file.py:1 in <module>): mend"),
        ("def x(:", "here_file:thing", "here_file raised SyntaxError: invalid syntax (here_file.py, line 1): mend it"),
        ("", "thing", "names no function: write module:function"),
        ("", ":thing", "names no function: write module:function"),
        ("", ".here_file:thing", "names no module: write module:NAME"),
    ],
)  # fmt: skip
def test_what_cannot_be_found_is_a_sentence(here: Path, source: str, name: str, words: str) -> None:
    (here / "here_file.py").write_text(source + "\n")
    with pytest.raises(ValueError) as raised:
        imports.load("it", name)
    text = str(raised.value)
    assert text.startswith("it ") and words in text and "\n" not in text


@pytest.mark.parametrize("name", ["json:mine", "json.mine:mine"])
def test_a_module_that_is_hidden_by_an_installed_one_is_told(here: Path, name: str) -> None:
    (here / "json.py").write_text("mine = 1\n")
    with pytest.raises(ValueError, match=r"json.*/json/__init__\.py.*hides .*json\.py: rename that one"):
        imports.load("it", name)


def test_a_working_directory_that_is_gone(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> Any:
        raise FileNotFoundError

    monkeypatch.setattr(os, "getcwd", gone)
    with pytest.raises(ValueError, match="and there is no working directory"):
        imports.load("it", "here_nothing:x")


@pytest.mark.parametrize(
    ("by", "words"),
    [("wrld", "did you mean 'world'?"), ("eyes", "take world, size, module:function or a model")],
)
def test_image_to_text_by_nothing_known(by: str, words: str) -> None:
    with pytest.raises(ValueError) as raised:
        make("gymrl/Gymnasium-v0", wrappers=[{"name": "image_to_text", "by": by}])
    assert words in str(raised.value)
