"""Every ```python block of the documentation runs; the blocks of a page run together, in order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), *ROOT.glob("README.md")])
FENCE = re.compile(r"^```(python[^\n]*)\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)


def program(page: str) -> str:
    """The page's python blocks, but for those marked `no-run`, each on the lines that it has in the page."""
    lines = [""] * (page.count("\n") + 1)
    for fence in FENCE.finditer(page):
        assert fence[1].strip() in ("python", "python no-run"), (
            f"```{fence[1]}: take ```python or ```python no-run"
        )
        if fence[1].strip() == "python":
            first = page.count("\n", 0, fence.start(2))
            block = fence[2].splitlines()
            lines[first : first + len(block)] = block
    return "\n".join(lines)


def test_blocks_keep_their_lines() -> None:
    page = (
        "# A\n```python\nx = 1\n```\ntext\n```python no-run\nboom\n```\n"
        "```sh\nls\n```\n```python\ny = x\n\nz = 2\n```\n"
    )
    code = program(page)
    names: dict[str, object] = {}
    exec(code, names)
    assert (names["x"], names["y"], names["z"]) == (1, 1, 2)
    assert code.splitlines()[2] == "x = 1" and page.splitlines()[14] == code.splitlines()[14] == "z = 2"


@pytest.mark.parametrize("page", [p for p in PAGES if program(p.read_text()).strip()], ids=lambda p: p.name)
def test_a_page_runs(page: Path, tmp_path: Path) -> None:
    script = tmp_path / "page_as_program.py"  # not the page's own name: textworld.py would hide textworld
    script.write_text(program(page.read_text()))
    folder = tmp_path / "work"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, script], cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
        stdin=subprocess.DEVNULL, capture_output=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, f"{page.name} (the lines are the page's):\n{done.stderr}"
