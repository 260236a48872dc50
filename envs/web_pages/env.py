"""The environment `gymrl/MiniWoB-v0`."""

from __future__ import annotations

import asyncio
import importlib.util
import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from gymrl.envs.environment import Environment
from gymrl.envs.gym import EnvironmentFault
from gymrl.envs.records import Action, Message, Observation, Tool
from gymrl.envs.web_pages.browser import CALL_SECONDS, START_SECONDS, Keeper, shared_keeper
from gymrl.envs.web_pages.grammar import Command, parse, tools
from gymrl.envs.web_pages.page import Look, Page, Start
from gymrl.envs.web_pages.tasks import DEFAULT, FEW_PAGES, ORACLES, page_seed, pages_folder, task_names

if importlib.util.find_spec("playwright") is None:
    raise ImportError("No module named 'playwright'")
pages_folder()

T = TypeVar("T")

OBSERVATIONS = ("text", "screenshot", "both")
CALLS = ("text", "tools")
WON = 0.9
"""The page's own reward from which an episode is won. It is 1 for all tasks but those that measure a distance."""
RESET_SECONDS = START_SECONDS + CALL_SECONDS
"""What a reset may take, in which the browser may have to start."""
PAGE_LIFE = 25
"""Episodes after which a page is replaced: playwright keeps what it knows of every load until then."""
WORDS = ("OK", "Alice", "42", "blue", "hello", "2016-05-17", "a", "x9")

RULES = (
    "You use a web page. {seen} Reply with one action or several, one a line:\n"
    'click({place}), type({place}, "text"), press("Enter"), select({place}, "option"), drag({drag}), '
    "hover({place}), double_click({place}), scroll({place}, pixels), wait()."
)
VOID = 'No action found. End your reply with a line such as {example} or type({place}, "text").'


class MiniWoB(Environment):
    """Do what the first message says on one of MiniWoB++'s web pages, in a real Chromium.

    A turn holds one action or several, a line each: click(12), type(5, "text"), press("Enter"), select(7, "Blue"),
    drag(3, 9), hover, double_click, scroll, wait. Numbers are the references of the page's elements, or two
    coordinates. Tool calls of the same names are taken too. What cannot be done is answered in the world and costs
    nothing but the turn. The page says when the task is over and how well it was done: from 0.9 on the reward is 1,
    else it is 0.

    tasks: names of MiniWoB++ tasks with commas between, `oracle` for all those with an oracle, `all` for all 128;
    empty: those with an oracle that have pages enough to be split. observation: `text` (the page's elements),
    `screenshot` (a PNG) or `both`. calls: `tools` offers the actions as tools, and the oracle and the random player
    call them; with `text` they write lines. positions: whether every element is told with its middle. partial: whether
    the page's own reward is paid, from 0 to 1, where it gives part marks. max_turns: turns after which the episode is
    truncated. browser: the path of a Chromium or Chrome.
    """

    version = "2"
    runs = "inline"

    def __init__(
        self, tasks: str = "", observation: str = "text", calls: str = "text", positions: bool = False,
        partial: bool = False, max_turns: int = 16, browser: str = "",
    ) -> None:  # fmt: skip
        if observation not in OBSERVATIONS:
            raise ValueError(f"unknown observation {observation!r}: take {', '.join(OBSERVATIONS)}")
        if calls not in CALLS:
            raise ValueError(f"unknown calls {calls!r}: take {', '.join(CALLS)}")
        if max_turns < 1:
            raise ValueError(f"max_turns is 1 or more, not {max_turns}")
        self.names = task_names(tasks) if tasks else DEFAULT
        self.observation, self.calls, self.positions, self.partial = observation, calls, positions, partial
        self.max_turns, self.browser = max_turns, browser
        self.refs = observation != "screenshot"
        self.keeper: Keeper | None = None
        self.page: Page | None = None
        self.look: Look | None = None
        self.busy = asyncio.Lock()

    async def reset(self) -> tuple[Observation, dict[str, Any]]:
        self.name = self.names[self.task.index % len(self.names)]
        number = self.task.index // len(self.names)
        seed = page_seed(self.task.env, self.task.version, self.task.split, number, self.name)
        scattered = self.name not in FEW_PAGES
        if self.keeper is None:
            self.keeper = shared_keeper(self.browser)

        async def begin() -> Start:
            page = await self._page()
            return await page.begin(self.name, seed, self.task.split, scattered)

        start = await self._do(begin, RESET_SECONDS)
        self.look = start.look
        told = f"Task: {start.utterance}"
        if self.refs:
            told += f"\n\n{start.look.text}"
        info = {"web_task": self.name, "utterance": start.utterance, "drawn": start.drawn}
        messages = (Message("system", self._rules(start.size)), self._message(told))
        return Observation(messages), info

    async def step(self, action: Action) -> tuple[Any, ...]:
        commands = parse(action)
        if not commands:
            example = "click(1)" if self.refs else "click(80, 120)"
            return VOID.format(example=example, place=self._place()), 0.0, False
        page = self._ready()
        look, trouble = await self._do(lambda: page.act(commands))
        self.look = look
        info: dict[str, Any] = {"web_task": self.name}
        if trouble:
            info["trouble"] = trouble
        if not look.done:
            text = f"Not done: {trouble}." if trouble else "" if self.refs else "Done."
            if self.refs:
                text = f"{text}\n{look.text}".strip()
            return Observation((self._message(text),)), 0.0, False, info
        raw = look.raw
        won = raw >= WON
        reward = max(0.0, min(1.0, raw)) if self.partial and not won else float(won)
        info |= {"raw_reward": raw, "won": won}
        return f"The task is over: it is {'done' if won else 'failed'}.", reward, True, info

    def recognises(self, action: Action) -> bool:
        return bool(parse(action))

    def tools(self) -> tuple[Tool, ...]:
        return tools(self.refs) if self.calls == "tools" else ()

    async def oracle(self) -> Action:  # type: ignore[override]
        if self.name not in ORACLES:
            raise NotImplementedError(f"{self.name} has no oracle: tasks='oracle' takes those that have one")
        page = self._ready()
        found = await self._do(lambda: page.oracle(self.name, not self.refs))
        return self._said([_command(each) for each in found])

    def random_action(self, rng: random.Random) -> Action:
        look = self.look
        if look is None or not look.elements or not self.refs:
            spot = (rng.randrange(160), rng.randrange(50, 210))
            return self._said([Command("click", (spot,))])
        ref, role = rng.choice(look.elements)
        if role in ("textbox", "password", "number", "date", "time"):
            return self._said([Command("type", ((ref,),), (rng.choice(WORDS),))])
        return self._said([Command("click", ((ref,),))])

    def describe_image(self, image: bytes) -> str:
        """The page as text, for the `image_to_text` wrapper."""
        return self.look.text if self.look is not None else ""

    async def close(self) -> None:
        if self.keeper is not None and self.page is not None:
            lease, self.page = self.page.lease, None
            await self.keeper.call(lease.give_back)

    # -- helpers ---------------------------------------------------------------------------------------

    async def _page(self) -> Page:
        """The page of this environment; a new one where there is none, its browser is gone, or it is worn. On the
        keeper's loop."""
        assert self.keeper is not None
        if self.page is not None and (self.page.lease.dead or self.page.begun >= PAGE_LIFE):
            lease, self.page = self.page.lease, None
            await lease.give_back()
        if self.page is None:
            self.page = Page(await self.keeper.lease(), self.positions, self.observation != "text")
        return self.page

    def _ready(self) -> Page:
        if self.page is None:
            raise EnvironmentFault("the page is closed: call reset() first")
        return self.page

    async def _do(self, work: Callable[[], Awaitable[T]], seconds: float = CALL_SECONDS) -> T:
        """Do something with the page, after what was begun before. One that failed, or was cancelled in the middle, is
        not used again."""
        assert self.keeper is not None

        async def alone() -> T:
            async with self.busy:
                try:
                    return await work()
                except BaseException:
                    if self.page is not None:
                        self.page.lease.drop()
                        self.page = None
                    raise

        return await self.keeper.call(alone, seconds)

    def _message(self, text: str) -> Message:
        image = self.look.image if self.look is not None else None
        return Message("user", text, (image,) if image else ())

    def _place(self) -> str:
        return "ref" if self.refs else "x, y"

    def _rules(self, size: tuple[int, int]) -> str:
        seen = "Every element has a number, its ref; two coordinates may stand for it."
        if not self.refs:
            seen = f"You see it as a picture of {size[0]} x {size[1]} pixels; x, y counts from its top left corner."
        drag = "ref, ref" if self.refs else "x, y, x, y"
        return RULES.format(seen=seen, place=self._place(), drag=drag)

    def _said(self, commands: list[Command]) -> Action:
        if self.calls == "tools":
            return Action("", tuple(command.call() for command in commands))
        return Action("\n".join(command.line() for command in commands))


def _command(found: dict[str, Any]) -> Command:
    targets = tuple(tuple(int(part) for part in target) for target in found.get("targets", ()))
    return Command(found["name"], targets, tuple(found.get("texts", ())), int(found.get("number", 0)))
