"""The house: imports run only downward, and files stay readable."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "sandboxes": set(),
    "envs": {"sandboxes"},
    "agents": {"envs", "sandboxes"},
    "rl": {"agents", "envs", "sandboxes"},
    "leaderboards": {"agents", "envs", "sandboxes"},
    "cli": {"rl", "leaderboards", "agents", "envs", "sandboxes"},
}


def imported(path: Path) -> set[str]:
    """The rooms of the house that a file imports, at its top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("gymrl.")}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_run_downward(room):
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        assert imported(path) <= MAY_IMPORT[room] | {room}, path


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_files_stay_under_four_hundred_lines(room):
    for path in (ROOT / room).rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path


def test_an_algorithm_is_at_most_forty_lines():
    for folder in ("advantages", "losses", "corrections", "preferences"):
        for path in (ROOT / "rl" / folder).glob("*.py"):
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 40, path
