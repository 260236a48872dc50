"""How many episodes the report's figures are of, what it calls a step's times, and causes that are alike."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

from gymrl.rl.report import write_report
from gymrl.rl.report.files import Curve, read_summary
from gymrl.rl.report.metrics import describe


def page(run: Path, summary: dict, rows: list[dict] | None = None) -> str:
    (run / "summary.json").write_text(json.dumps(summary))
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows or []))
    return html.unescape(write_report(run).read_text(encoding="utf-8"))


def test_valid_episodes_are_told_where_others_were_left_out(tmp_path: Path) -> None:
    measured = {"success": 0.5, "low": 0.4, "high": 0.6, "episodes": 1512, "seconds": 2.0}
    stages = [
        {"name": "base", **measured, "invalid": {}},
        {"name": "sft", **measured, "invalid": {"environment: gone": 500, "engine: late": 12}},
        {"name": "rl", **measured},  # as an older gymrl wrote it
    ]
    source = page(tmp_path, {"stages": stages})
    assert re.findall(r'data-name="episodes">([^<]*)<', source) == ["1,512", "1,000 valid of 1,512", "1,512"]
    stages[1]["invalid"] = {"x": 1e9, "y": "z"}  # no nonsense of a broken file
    assert [stage.valid for stage in read_summary(_written(tmp_path, stages)).stages] == [1512, 0, 1512]


def _written(run: Path, stages: list[dict]) -> Path:
    (run / "summary.json").write_text(json.dumps({"stages": stages}))
    return run


def test_causes_that_differ_in_figures_are_one_row(tmp_path: Path) -> None:
    invalid = {f"environment: no answer after {n / 10} s": n for n in range(1, 6)}
    source = page(tmp_path, {"invalid": {**invalid, "engine: gone": 4}})
    rows = re.findall(r"<tr><td>([^<]*)<i class=\"bar\"[^>]*></i></td><td class=\"num\">([^<]*)</td>", source)
    assert rows == [("environment: no answer after 0.5 s", "15"), ("engine: gone", "4")]


def test_the_time_of_the_environment_is_not_called_a_sum(tmp_path: Path) -> None:
    """It is what of the rollout's wall-clock the engine had nothing to do in, see `gymrl.rl.trainers.online`."""
    metric = describe(Curve("rl", "time/environment", [0.0], [1.0]))
    assert "sum" not in metric.note and "wall-clock" in metric.note
    rows = [{"stage": "rl", "step": n, "time/environment": 1.0 + n, "time/learn": 2.0} for n in range(3)]
    assert metric.note in page(tmp_path, {}, rows)


def test_what_json_has_no_word_for_is_counted_as_not_finite(tmp_path: Path) -> None:
    rows = [{"stage": "rl", "step": n, "acme": None if n == 1 else float(n), "never": None} for n in range(4)]
    source = page(tmp_path, {}, rows)
    assert "1 value not finite" in source and "never finite" in source
