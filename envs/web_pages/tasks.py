"""Which pages there are, where they lie, and which of them have an oracle."""

from __future__ import annotations

import difflib
import importlib.util
from functools import cache
from pathlib import Path

from gymrl.envs.records import stable_hash


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


TASKS: tuple[str, ...] = _names(
    """
    ascending-numbers bisect-angle book-flight book-flight-nodelay buy-ticket choose-date choose-date-easy
    choose-date-medium choose-date-nodelay choose-list circle-center click-button click-button-sequence
    click-checkboxes click-checkboxes-large click-checkboxes-soft click-checkboxes-transfer click-collapsible
    click-collapsible-2 click-collapsible-2-nodelay click-collapsible-nodelay click-color click-dialog
    click-dialog-2 click-link click-menu click-menu-2 click-option click-pie click-pie-nodelay click-scroll-list
    click-shades click-shape click-tab click-tab-2 click-tab-2-easy click-tab-2-hard click-tab-2-medium
    click-test click-test-2 click-test-transfer click-widget copy-paste copy-paste-2 count-shape count-sides
    daily-calendar drag-box drag-circle drag-cube drag-items drag-items-grid drag-shapes drag-shapes-2
    drag-single-shape drag-sort-numbers draw-circle draw-line email-inbox email-inbox-delete email-inbox-forward
    email-inbox-forward-nl email-inbox-forward-nl-turk email-inbox-important email-inbox-nl-turk
    email-inbox-noscroll email-inbox-reply email-inbox-star-reply enter-date enter-password enter-text
    enter-text-2 enter-text-dynamic enter-time find-greatest find-midpoint find-word flight.AA flight.Alaska
    flight.Alaska-auto focus-text focus-text-2 form-sequence form-sequence-2 form-sequence-3 generate-number
    grid-coordinate guess-number highlight-text highlight-text-2 hot-cold identify-shape login-user
    login-user-popup multi-layouts multi-orderings navigate-tree number-checkboxes odd-or-even order-food
    phone-book read-table read-table-2 resize-textarea right-angle scroll-text scroll-text-2 search-engine
    sign-agreement simple-algebra simple-arithmetic social-media social-media-all social-media-some stock-market
    terminal text-editor text-transform tic-tac-toe unicode-test use-autocomplete use-autocomplete-nodelay
    use-colorwheel use-colorwheel-2 use-slider use-slider-2 use-spinner visual-addition
    """
)
"""Every task that MiniWoB++ 1.1 registers."""

ORACLES: frozenset[str] = frozenset(
    _names(
        """
    ascending-numbers choose-date choose-date-easy choose-date-medium choose-date-nodelay choose-list
    circle-center click-button click-button-sequence click-checkboxes click-checkboxes-large
    click-checkboxes-transfer click-collapsible click-collapsible-2 click-collapsible-2-nodelay
    click-collapsible-nodelay click-color click-dialog click-dialog-2 click-link click-menu click-menu-2
    click-option click-scroll-list click-shape click-tab click-tab-2 click-tab-2-easy click-tab-2-hard
    click-tab-2-medium click-test click-test-2 click-test-transfer click-widget copy-paste copy-paste-2
    count-shape enter-date enter-password enter-text enter-text-2 enter-text-dynamic enter-time find-greatest
    find-word focus-text focus-text-2 form-sequence form-sequence-2 form-sequence-3 generate-number
    grid-coordinate guess-number highlight-text identify-shape login-user multi-orderings navigate-tree
    odd-or-even read-table scroll-text scroll-text-2 simple-algebra simple-arithmetic text-transform
    unicode-test use-autocomplete use-autocomplete-nodelay use-slider use-slider-2 use-spinner visual-addition
    """
    )
)
"""The tasks that the oracle plays (`oracle.js`)."""

FEW_PAGES: frozenset[str] = frozenset(
    _names(
        """
    click-button-sequence click-menu-2 click-test click-test-2 click-test-transfer count-sides drag-cube
    focus-text focus-text-2 form-sequence-3 generate-number grid-coordinate guess-number hot-cold
    number-checkboxes terminal tic-tac-toe use-colorwheel use-colorwheel-2 use-spinner
    """
    )
)
"""Tasks with fewer than 30 pages, as text: too few to be split, so that all splits draw from all of them."""

DEFAULT: tuple[str, ...] = tuple(name for name in TASKS if name in ORACLES - FEW_PAGES)
"""What is played where no tasks are named."""


def task_names(text: str) -> tuple[str, ...]:
    """The tasks of a list with commas between, in which `all` and `oracle` stand for many. Raises ValueError."""
    found: list[str] = []
    for name in (part.strip() for part in text.split(",")):
        if name in ("all", "oracle"):
            found += [task for task in TASKS if name == "all" or task in ORACLES]
        elif name in TASKS:
            found.append(name)
        elif name:
            near = difflib.get_close_matches(name, TASKS, 1, 0.5)
            hint = f"did you mean {near[0]!r}?" if near else "gymrl.envs.web_pages.tasks.TASKS lists them"
            raise ValueError(f"MiniWoB++ has no task {name!r}: {hint}")
    if not found:
        raise ValueError("no tasks are named: give some with commas between, `oracle` or `all`")
    return tuple(dict.fromkeys(found))


@cache
def pages_folder() -> Path:
    """The folder of MiniWoB++'s pages; importing the package would take selenium. Raises ImportError."""
    spec = importlib.util.find_spec("miniwob")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("No module named 'miniwob'")
    return Path(next(iter(spec.submodule_search_locations))) / "html"


def page_url(task: str) -> str:
    """The address of a task's page."""
    if task.startswith("flight."):
        return (pages_folder() / "flight" / task.partition(".")[2] / "wrapper.html").as_uri()
    return (pages_folder() / "miniwob" / f"{task}.html").as_uri()


def page_seed(env: str, version: str, split: str, index: int, task: str) -> str:
    """The seed of a page. It does not depend on what else is played, or on how it is shown."""
    return f"{stable_hash(env, version, split, index, task):x}"
