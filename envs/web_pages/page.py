"""One page as an environment uses it: load, begin, act, look. All of it runs on the keeper's loop."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from gymrl.envs.gym import EnvironmentFault
from gymrl.envs.records import SPLIT_SHARES
from gymrl.envs.web_pages.browser import Lease
from gymrl.envs.web_pages.grammar import Command, Refusal, Target
from gymrl.envs.web_pages.tasks import page_url

DRAWS = 1000
"""Pages that are drawn until one belongs to the split."""
ACTION_MS = 500
"""How far the page's clock moves with every action."""
WAIT_MS = 1000
DRAG_STEPS = 6
OUTSIDE = (-1, -1)
"""Where the mouse is while no episode has moved it."""


@dataclass(frozen=True)
class Look:
    """What a page shows. `elements` are (reference, role) pairs; `raw` is the page's own reward once it is `done`."""

    text: str
    elements: tuple[tuple[int, str], ...]
    done: bool
    raw: float
    reason: str
    image: bytes | None = None


@dataclass(frozen=True)
class Start:
    """How an episode begins: the task's words, a hash of the problem, and the page's size in pixels."""

    utterance: str
    problem: int
    drawn: int
    size: tuple[int, int]
    look: Look


class Page:
    """A lent page with a task on it."""

    def __init__(self, lease: Lease, positions: bool, images: bool) -> None:
        self.lease, self.positions, self.images = lease, positions, images
        self.page = lease.page
        self.size = (160, 210)
        self.begun = 0

    async def begin(self, task: str, seed: str, split: str, scattered: bool) -> Start:
        """Load a task's page and draw from the seed until a page of the split is found (`scattered`: the task has pages
        enough to be split). Raises EnvironmentFault where there is none."""
        low, high = SPLIT_SHARES[split] if scattered else (0, 100)
        asked = {
            "seed": seed, "low": low, "high": high, "draws": DRAWS, "at": self.positions, "images": self.images,
        }  # fmt: skip
        await self._load(page_url(task))
        found = await self.page.evaluate("(asked) => gymrl.begin(asked)", asked)
        if not found["owned"]:
            raise EnvironmentFault(f"none of {DRAWS} pages of {task} belongs to {split}")
        self.size = (round(found["width"]), round(found["height"]))
        look = await self._with_image(_look(found))
        return Start(found["utterance"], found["problem"], found["drawn"], self.size, look)

    async def _load(self, url: str) -> None:
        if not self.begun:
            await self.page.goto(url)
        else:
            # A mouse that rests where the last episode left it would be over something in the next one.
            async with self.lease.chromium.gate.input():
                await self.page.mouse.move(*OUTSIDE)
            # The page's own navigation stays in its process, and costs half of what goto does.
            async with self.page.expect_navigation():
                await self.page.evaluate("(url) => { location.href = url; }", url)
        self.begun += 1

    async def act(self, commands: list[Command | Refusal]) -> tuple[Look, str]:
        """Do the commands until one fails or the task is done; what the page then shows, and why one failed."""
        async with self.lease.chromium.gate.input():
            return await self._act(commands)

    async def _act(self, commands: list[Command | Refusal]) -> tuple[Look, str]:
        trouble, last = "", len(commands) - 1
        found: Any = None
        for number, command in enumerate(commands):
            trouble = command.why if isinstance(command, Refusal) else await self._do(command)
            if trouble:
                found = None
                break
            ms = ACTION_MS
            if isinstance(command, Command) and command.name == "wait":
                ms = command.number or WAIT_MS
            script = "(ms) => { gymrl.advance(ms); return READ ? gymrl.look() : WOB_DONE_GLOBAL; }"
            found = await self.page.evaluate(
                script.replace("READ", "true" if number == last else "false"), ms
            )
            if found is True:
                found = None
                break
        if not isinstance(found, dict):
            found = await self.page.evaluate("() => gymrl.look()")
        return await self._with_image(_look(found)), trouble

    async def oracle(self, task: str, coordinates: bool) -> list[dict[str, Any]]:
        """What the oracle would do now, as the script says it; with `coordinates` it names no references."""
        if not await self.page.evaluate("() => Boolean(gymrl.oracle)"):
            await self.page.evaluate(_oracle_script())
        found = await self.page.evaluate(
            "([task, points]) => gymrl.oracle(task, points)", [task, coordinates]
        )
        return list(found)

    async def _with_image(self, look: Look) -> Look:
        if not self.images or look.done:
            return look
        clip = {"x": 0, "y": 0, "width": self.size[0], "height": self.size[1]}
        image = await self.page.screenshot(clip=clip, animations="disabled", caret="hide")
        return Look(look.text, look.elements, look.done, look.raw, look.reason, image)

    # -- actions: each says why it could not be done, or nothing --------------------------------------------------

    async def _do(self, command: Command) -> str:
        points: list[tuple[float, float]] = []
        for target in command.targets:
            if command.name == "select":
                continue
            point, why = await self._point(target)
            if why:
                return why
            points.append(point)
        if (
            command.name == "drag"
            and len(command.targets[0]) == 1
            and command.targets[0] == command.targets[-1]
        ):
            points = [
                (x, y)
                for x, y in await self.page.evaluate("(ref) => gymrl.corners(ref)", command.targets[0][0])
            ]
        return str(await getattr(self, f"_{command.name}")(command, points) or "")

    async def _point(self, target: Target) -> tuple[tuple[float, float], str]:
        if len(target) == 2:
            x, y = target
            inside = x < self.size[0] and y < self.size[1]
            width, height = self.size
            return (x, y), "" if inside else f"{x}, {y} is outside of the page, which is {width} x {height}"
        found = await self.page.evaluate("(ref) => gymrl.reach(ref)", target[0])
        return (found.get("x", 0.0), found.get("y", 0.0)), found.get("error", "")

    async def _click(self, command: Command, points: list[tuple[float, float]]) -> None:
        await self.page.mouse.click(*points[0])

    async def _double_click(self, command: Command, points: list[tuple[float, float]]) -> None:
        await self.page.mouse.dblclick(*points[0])

    async def _hover(self, command: Command, points: list[tuple[float, float]]) -> None:
        await self.page.mouse.move(*points[0])

    async def _type(self, command: Command, points: list[tuple[float, float]]) -> str:
        text = command.texts[0]
        if points:
            target = list(command.targets[0])
            found = await self.page.evaluate("(target) => gymrl.field(target)", target)
            if "error" in found:
                return str(found["error"])
            await self.page.mouse.click(*points[0])
            if found["how"] == "value":
                given = [target, text]
                found = await self.page.evaluate("([target, text]) => gymrl.setValue(target, text)", given)
                return str(found.get("error", ""))
            await self.page.evaluate("(target) => gymrl.selectAll(target)", target)
            if not text:
                await self.page.keyboard.press("Delete")
        if text:
            await self.page.keyboard.type(text)
        return ""

    async def _press(self, command: Command, points: list[tuple[float, float]]) -> None:
        key = command.texts[0]
        if key.lower() in ("control+c", "control+x", "control+v"):
            await self.page.evaluate("(key) => gymrl.shortcut(key)", key[-1].lower())
        else:
            await self.page.keyboard.press(key)

    async def _select(self, command: Command, points: list[tuple[float, float]]) -> str:
        given = [list(command.targets[0]), list(command.texts)]
        found = await self.page.evaluate("([target, texts]) => gymrl.choose(target, texts)", given)
        return str(found.get("error", ""))

    async def _drag(self, command: Command, points: list[tuple[float, float]]) -> None:
        mouse = self.page.mouse
        await mouse.move(*points[0])
        await mouse.down()
        for point in points[1:]:
            await mouse.move(*point, steps=DRAG_STEPS)
        await mouse.up()

    async def _scroll(self, command: Command, points: list[tuple[float, float]]) -> str:
        given = [list(command.targets[0]) if command.targets else [], command.number]
        found = await self.page.evaluate("([target, down]) => gymrl.scroll(target, down)", given)
        return str(found.get("error", ""))

    async def _wait(self, command: Command, points: list[tuple[float, float]]) -> None:
        return None


def _look(found: dict[str, Any]) -> Look:
    elements = tuple((int(ref), str(role)) for ref, role in found["elements"])
    return Look(found["text"], elements, bool(found["done"]), float(found["raw"]), found["reason"])


@cache
def _oracle_script() -> str:
    return Path(__file__).with_name("oracle.js").read_text(encoding="utf-8")
