"""Putting the report together: one HTML file, nothing loaded from anywhere."""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from gymrl.agents.evaluation import merged_causes
from gymrl.rl.report import charts, episodes
from gymrl.rl.report.files import Stage, read_curves, read_summary, read_text
from gymrl.rl.report.metrics import SMOOTHING
from gymrl.rl.report.stages import heading, named, run_order

HERE = Path(__file__).parent
MOST_CAUSES = 20
MOST_RECIPE = 60_000


@dataclass(frozen=True)
class Row:
    """One line of the headline table; `low`, `at` and `high` are per cent of the axis. `episodes` are those that count,
    and of how many where others were invalid."""

    name: str
    success: str
    interval: str
    low: float
    at: float
    high: float
    episodes: str
    seconds: str


@dataclass(frozen=True)
class Cause:
    name: str
    count: int
    share: float


def write_report(run: Path) -> Path:
    """Write `report.html` into a run folder from whatever is there, and return its path.

    Files that are missing, partial or broken are left out, so it may be called while the run goes on. The page is
    whole or not there: a draft is renamed. Raises FileNotFoundError if there is no such folder, OSError if the file
    cannot be written.
    """
    run = Path(run)
    if not run.is_dir():
        raise FileNotFoundError(f"there is no run folder {run}: give the folder that `gymrl train` wrote")
    page = render(run)
    draft = run / "report.html.part"
    draft.write_text(page, encoding="utf-8", newline="\n")
    return draft.replace(run / "report.html")


def render(run: Path) -> str:
    """The page of a run folder."""
    summary = read_summary(run)
    curves = read_curves(run)
    order = run_order(run, summary, (curve.stage for curve in curves))
    stages, left_out = charts.draw_stages(curves, order)
    drawings = [chart for stage in stages for group in stage.groups for chart in group.charts]
    recipe = read_text(run / "recipe.toml", MOST_RECIPE)
    script = (HERE / "report.js").read_text(encoding="utf-8")
    box = {
        name: getattr(charts, name.upper()) for name in ("width", "height", "left", "right", "top", "bottom")
    }
    page = _template().render(
        name=summary.recipe or run.resolve().name,
        summary=summary,
        status=summary.status or "unknown",
        duration=duration(summary.seconds),
        verdict=verdict(summary.stages),
        rows=[_row(stage) for stage in summary.stages],
        stages=stages,
        left_out=left_out,
        box=box,
        smoothing=SMOOTHING,
        causes=[("Invalid episodes", _causes(summary.invalid)), ("Void turns", _causes(summary.void))],
        shelves=episodes.choose_shelves(run, order),
        kinds=episodes.KINDS,
        recipe=[f"{part}\n\n" for part in recipe.strip().split("\n\n")] if recipe.strip() else [],
        recipe_cut=len(recipe) == MOST_RECIPE,
        commands=commands(run, summary.status == "finished"),
        style=Markup((HERE / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        # Only this one script may run, whatever an episode's text tries, and nothing may be loaded.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=_embed({"box": box, "charts": {chart.id: chart.data for chart in drawings}}),
    )
    return episodes.printable(page)


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("report.jinja")


def verdict(stages: tuple[Stage, ...]) -> str:
    """The headline in one sentence; '' where nothing was evaluated."""
    if not stages:
        return ""
    told = [f"{percent(stage.success)} {named(stage.name).after}" for stage in stages]
    return f"Success on held-out tasks: {', '.join(told)}."


def commands(run: Path, finished: bool) -> list[tuple[str, str]]:
    """What to type to run it again and, where something is left to do, to go on; paths inside the working folder are
    relative to it."""
    folder = run
    if run.is_absolute() and run.is_relative_to(Path.cwd()):
        folder = run.relative_to(Path.cwd())
    again = f"gymrl train {shlex.quote(str(folder / 'recipe.toml'))}"
    found = [("Run the same recipe again, in a new folder", again)]
    if not finished:
        found.append(("Go on with this run where it stopped", f"gymrl train --resume {shlex.quote(str(folder))}"))
    return found


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def duration(seconds: float | None) -> str:
    """Seconds as hours, minutes and seconds; '' for None."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _row(stage: Stage) -> Row:
    low, at, high = (100 * min(1.0, max(0.0, value)) for value in (stage.low, stage.success, stage.high))
    return Row(
        heading(stage.name),
        percent(stage.success),
        f"{100 * stage.low:.1f} to {percent(stage.high)}",
        round(low, 2), round(at, 2), round(max(low, high), 2),
        f"{stage.episodes:,}" if stage.valid == stage.episodes else f"{stage.valid:,} valid of {stage.episodes:,}",
        duration(stage.seconds),
    )  # fmt: skip


def _causes(counts: dict[str, int]) -> list[Cause]:
    """Bars for the most frequent causes, the others as one."""
    alike = sorted(merged_causes(counts).items(), key=lambda pair: -pair[1])
    items = [(name[:200], value) for name, value in alike if value > 0]
    if len(items) > MOST_CAUSES:
        rest = sum(value for _, value in items[MOST_CAUSES:])
        items = [*items[:MOST_CAUSES], (f"{len(items) - MOST_CAUSES} other causes", rest)]
    most = max((value for _, value in items), default=1)
    return [Cause(name, value, round(100 * value / most, 1)) for name, value in items]


def _embed(data: object) -> Markup:
    """JSON for a script element: nothing in it can end the element."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)
