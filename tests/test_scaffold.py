"""The third-party example and what `gymrl envs new` writes: they pass their own tests and stay small."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from gymrl.envs.scaffold import ScaffoldError, create_package

EXAMPLE = Path(__file__).parents[1] / "examples" / "acme-countdown"


def run_tests(package: Path) -> str:
    """Run a package's own tests in a process that finds it by PYTHONPATH; what pytest said."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-c",
         "pyproject.toml", "tests"],
        cwd=package, env={**os.environ, "PYTHONPATH": str(package)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def entry_point(package: Path) -> EntryPoint:
    """The one entry point a package registers."""
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    [(name, value)] = project["entry-points"]["gymrl.envs"].items()
    return EntryPoint(name, value, "gymrl.envs")


def class_lines(package: Path) -> int:
    """How many lines the environment's class has, docstring and blank lines included."""
    point = entry_point(package)
    tree = ast.parse((package / f"{point.module.replace('.', '/')}.py").read_text())
    [found] = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == point.attr]
    assert found.end_lineno is not None
    return found.end_lineno - found.lineno + 1


def test_the_example_passes_its_tests_in_forty_lines() -> None:
    assert "4 passed" in run_tests(EXAMPLE)
    assert entry_point(EXAMPLE).name == "acme/Countdown-v0"
    assert class_lines(EXAMPLE) <= 40


@pytest.mark.parametrize(
    "name, folder, env_id, cls",
    [
        ("maze", "maze", "maze/Maze-v0", "Maze"),
        ("acme/WordMaze", "acme-word-maze", "acme/WordMaze-v0", "WordMaze"),
        ("my-word_maze-v0", "my-word-maze", "my-word-maze/MyWordMaze-v0", "MyWordMaze"),
        ("acme/Maze-v3", "acme-maze", "acme/Maze-v3", "Maze"),
        ("maze-v012", "maze", "maze/Maze-v12", "Maze"),
    ],
)
def test_a_new_package_has_one_entry_point_and_forty_lines(
    tmp_path: Path, name: str, folder: str, env_id: str, cls: str
) -> None:
    package = create_package(name, tmp_path / "deep" / "down")
    assert package == tmp_path / "deep" / "down" / folder
    point = entry_point(package)
    assert (point.name, point.attr) == (env_id, cls)
    assert class_lines(package) <= 40
    texts = [path.read_text() for path in package.rglob("*") if path.suffix in (".py", ".md", ".toml")]
    assert {found for text in texts for found in re.findall(r"[\w-]+/\w+-v\d+", text)} == {env_id}
    assert not [path for path in package.rglob("*") if path.is_file() and "@" in path.read_text()]


def test_a_new_package_passes_its_test(tmp_path: Path) -> None:
    assert "4 passed" in run_tests(create_package("acme/Maze-v3", tmp_path))


def test_an_installed_package_is_found_by_its_entry_point(tmp_path: Path) -> None:
    package = create_package("acme/Maze", tmp_path)
    point = entry_point(package)
    info = package / "acme_maze-0.1.0.dist-info"  # what an installation leaves beside the module
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-maze\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(f"[gymrl.envs]\n{point.name} = {point.value}\n")
    code = (
        "import gymnasium; from gymrl.envs import entry; print(entry('acme/Maze-v0').source);"
        "print(gymnasium.make('gymrl.envs:acme/Maze-v0', split='val').reset(options={'index': 3})[0].text)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("acme-maze\nWhat is "), done.stderr


@pytest.mark.parametrize("name", ["", "3maze", "a/b/c", "../up", "acme/", "mäze", "a b", "-", "a\n"])
def test_a_bad_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ScaffoldError, match=r"such as acme/Maze$"):
        create_package(name, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["json", "class", "none", "gymrl", "a/_", "tests"])
def test_a_name_that_python_needs_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ScaffoldError):
        create_package(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    env = create_package("maze", tmp_path) / "maze" / "env.py"
    env.write_text("mine")
    with pytest.raises(ScaffoldError, match="exists already"):
        create_package("maze", tmp_path)
    assert env.read_text() == "mine"
    (tmp_path / "file").write_text("")
    with pytest.raises(ScaffoldError, match="cannot be written"):
        create_package("maze", tmp_path / "file")
