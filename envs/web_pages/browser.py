"""One Chromium for each process, kept by one thread, and its pages lent to environments.

Playwright's objects belong to the event loop they were made on, so all of them live on one loop in a thread of its
own; environments on any loop or thread ask it by `Keeper.call`. Every call has a time limit. A browser that dies or
hangs fails the calls under way with EnvironmentFault (their episodes are invalid) and is replaced at the next lease;
one that nobody has used for `IDLE_SECONDS` is closed. What is opened is counted in `Keeper.counts`.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from gymrl.envs.deadlines import Turn, wait_turn
from gymrl.envs.gym import EnvironmentFault
from gymrl.envs.web_pages.gate import Gate

T = TypeVar("T")

IDLE_SECONDS = 30.0
START_SECONDS = 120.0
"""What a start may take on a machine that is busy."""
CALL_SECONDS = 60.0
"""What one call may take: a reset or a step with all its actions."""
CLOSE_SECONDS = 10.0
AT_ONCE = 8
"""Calls that are under way at once; others wait their turn, and their time limit does not run meanwhile."""
VIEWPORT = {"width": 400, "height": 680}

DEBIAN = ("/usr/lib/chromium/chromium-headless-shell", "/usr/lib/chromium/chromium")
"""What the scripts of these names in Debian's /usr/bin start in the end. The first, where it is installed, shows the
same pages and spends nothing on windows that nobody sees."""
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "headless_shell")
MEND = (
    "install it (Debian and Ubuntu: apt-get install chromium), or name another Chromium or Chrome in GYMRL_CHROMIUM "
    "or by the parameter browser"
)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--no-default-browser-check",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--disable-default-apps", "--disable-dev-shm-usage", "--disable-breakpad", "--metrics-recording-only",
    "--mute-audio", "--password-store=basic", "--use-mock-keychain", "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows", "--disable-renderer-backgrounding", "--disable-hang-monitor",
    "--disable-popup-blocking",
    # A press is not dropped because its page has not been drawn yet, and loads are not put off because there are many.
    "--allow-pre-commit-input", "--disable-ipc-flooding-protection",
    "--disable-features=Translate,BackForwardCache,ProactivelySwapBrowsingInstance,RenderDocument,PaintHolding",
    "--hide-scrollbars", "--force-color-profile=srgb", "--font-render-hinting=none",
    # The flight tasks are a page inside a page, both of files.
    "--allow-file-access-from-files", "--disable-site-isolation-trials",
    # No network, by name or by number.
    "--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=http://127.0.0.1:9", "--proxy-bypass-list=<-loopback>",
    "--remote-debugging-pipe",
)  # fmt: skip


SCRIPTS = ("world", "text", "episode", "actions")
"""What runs in every page before its own scripts, in this order."""


def page_script() -> str:
    """The four as one, as playwright promises no order among several."""
    folder = Path(__file__).parent
    return "\n".join((folder / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)


def find_chromium(browser: str = "") -> str:
    """The path of the browser: the one named, else GYMRL_CHROMIUM's, else the system's. Raises EnvironmentFault."""
    named = browser or os.environ.get("GYMRL_CHROMIUM", "")
    if named:
        path = shutil.which(named)
        if path is None:
            raise EnvironmentFault(f"there is no browser at {named!r}: {MEND}")
        return path
    for name in (*DEBIAN, *NAMES):
        if path := shutil.which(name):
            return path
    raise EnvironmentFault(f"web pages need Chromium, and there is none: {MEND}")


class Chromium:
    """A running browser. All methods run on the keeper's loop."""

    def __init__(self, executable: str) -> None:
        self.executable = executable
        self.profile = Path()
        self.group = 0
        self.dead = ""
        self.playwright: Any = None
        self.browser: Any = None
        self.context: Any = None
        self.root: Any = None
        self.gate = Gate()
        self._closing: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Raises EnvironmentFault where it does not start."""
        from playwright.async_api import async_playwright

        _keep_its_hands_off_random()
        self.profile = Path(tempfile.mkdtemp(prefix="gymrl-chromium-"))
        reaper = str(Path(__file__).with_name("reaper.py"))
        command = ["-I", "-S", reaper, str(self.profile), self.executable, f"--user-data-dir={self.profile}"]
        try:
            self.playwright = await async_playwright().start()
            self.browser = await self.playwright.chromium.launch(
                executable_path=sys.executable, ignore_default_args=True, args=[*command, *FLAGS, "about:blank"],
                handle_sigint=False, handle_sigterm=False, handle_sighup=False, timeout=1e3 * START_SECONDS,
            )  # fmt: skip
            self.group = int((self.profile / "group").read_text())
            self.browser.on("disconnected", lambda *_: self.bury("the browser died"))
            self.context = await self.browser.new_context(
                viewport=VIEWPORT, locale="en-US", timezone_id="UTC", offline=True, accept_downloads=False,
                service_workers="block",
            )  # fmt: skip
            await self.context.add_init_script(page_script())
            self.root = await self.context.new_page()
        except BaseException as error:
            await self.close()
            if not isinstance(error, Exception):
                raise
            said = " ".join(str(error).split())[:300]
            raise EnvironmentFault(f"{self.executable} does not start ({said}): {MEND}") from error

    async def open_page(self) -> Any:
        """A new page, in a window of its own. Where nobody waits for it any more, it is closed once it is there."""
        async with contextlib.AsyncExitStack() as entered:
            await entered.enter_async_context(self.gate.opening())
            opening = asyncio.get_running_loop().create_task(self._open_page(entered.pop_all()))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            closing = asyncio.get_running_loop().create_task(self._close_opened(opening))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
            raise

    async def _open_page(self, entered: contextlib.AsyncExitStack) -> Any:
        async with entered, self.context.expect_page() as opened:
            await self.root.evaluate(
                "([width, height]) => gymrl.openWindow(width, height)", list(VIEWPORT.values())
            )
            return await opened.value

    async def _close_opened(self, opening: asyncio.Task[Any]) -> None:
        with contextlib.suppress(Exception):
            await (await opening).close()

    def bury(self, reason: str) -> None:
        """Mark it as dead and kill what is left of it."""
        self.dead = self.dead or reason
        if self.group:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.group, signal.SIGKILL)

    async def close(self) -> None:
        """End the browser and playwright's own process, by force where they take long."""
        self.dead = self.dead or "the browser was closed"
        if self.browser is not None:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(self.browser.close(), CLOSE_SECONDS)
        self.bury("the browser was closed")
        if self.playwright is not None:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(self.playwright.stop(), CLOSE_SECONDS)
            self.playwright = None
        if self.profile.name:
            shutil.rmtree(self.profile, ignore_errors=True)


def _keep_its_hands_off_random() -> None:
    """Playwright draws the prefix of its call ids from Python's global generator: give it one of its own."""
    with contextlib.suppress(ImportError):
        module: Any = importlib.import_module("playwright._impl.isomorphic.trace_utils")
        module.random = random.Random()


class Keeper:
    """The thread that keeps one browser. `counts` tells how many browsers and pages were opened and closed."""

    def __init__(self, executable: str) -> None:
        self.executable = executable
        self.counts = {"browsers opened": 0, "browsers closed": 0, "pages opened": 0, "pages closed": 0}
        self.chromium: Chromium | None = None
        self.leases = 0
        self.pid = os.getpid()
        self._starting = asyncio.Lock()
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._idle: asyncio.TimerHandle | None = None
        self._burials: set[asyncio.Task[None]] = set()
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name="gymrl-browser", daemon=True).start()
        atexit.register(self.shut)

    async def call(self, work: Callable[[], Awaitable[T]], seconds: float = CALL_SECONDS) -> T:
        """Do `work` on the keeper's loop, from any other loop. Raises EnvironmentFault for what goes wrong. Neither
        `seconds` nor the caller's deadline run before its turn comes."""
        turn = wait_turn()
        try:
            future = asyncio.run_coroutine_threadsafe(self._guarded(work, seconds, turn), self.loop)
            return await asyncio.wrap_future(future)
        finally:
            turn.begun()

    async def _guarded(self, work: Callable[[], Awaitable[T]], seconds: float, turn: Turn) -> T:
        try:
            async with self._turns:
                turn.begun()
                return await asyncio.wait_for(work(), seconds)
        except EnvironmentFault:
            raise
        except TimeoutError:
            chromium = self.chromium
            if chromium is not None:  # its pages share one thread: where one hangs, all of them do
                chromium.bury(f"the page did not answer for {seconds:g} s")
            raise EnvironmentFault(f"the page did not answer for {seconds:g} s") from None
        except Exception as error:
            if type(error).__module__.startswith("playwright"):
                dead = self.chromium.dead if self.chromium is not None else ""
                raise EnvironmentFault(dead or f"the browser failed: {str(error)[:300]}") from error
            raise

    async def lease(self) -> Lease:
        """A new page. On the keeper's loop. Raises EnvironmentFault where no browser starts."""
        self.leases += 1
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        try:
            async with self._starting:
                if self.chromium is not None and self.chromium.dead:
                    await self._end()
                if self.chromium is None:
                    chromium = Chromium(self.executable)
                    await chromium.start()
                    self.counts["browsers opened"] += 1
                    self.chromium = chromium
            lease = Lease(self, self.chromium, await self.chromium.open_page())
        except BaseException:
            self._returned()
            raise
        self.counts["pages opened"] += 1
        return lease

    def _returned(self) -> None:
        self.leases -= 1
        if not self.leases and self._idle is None:
            self._idle = self.loop.call_later(IDLE_SECONDS, self._rest)

    def _rest(self) -> None:
        self._idle = None
        if not self.leases:
            task = self.loop.create_task(self._rested())
            self._burials.add(task)
            task.add_done_callback(self._burials.discard)

    async def _rested(self) -> None:
        async with self._starting:
            if not self.leases:
                await self._end()

    async def _end(self) -> None:
        chromium, self.chromium = self.chromium, None
        if chromium is not None:
            await chromium.close()
            self.counts["browsers closed"] += 1

    def shut(self) -> None:
        """Close the browser now, from another thread, and wait for it."""
        if self.chromium is None or self.pid != os.getpid() or not self.loop.is_running():
            return
        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(self._end(), self.loop).result(2 * CLOSE_SECONDS)


class Lease:
    """A page on loan. `dead` says why it can no longer be used."""

    def __init__(self, keeper: Keeper, chromium: Chromium, page: Any) -> None:
        self.keeper, self.chromium, self.page = keeper, chromium, page
        self._back = False

    @property
    def dead(self) -> str:
        return self.chromium.dead

    def drop(self) -> None:
        """Have the page closed, without waiting for it."""
        asyncio.run_coroutine_threadsafe(self.give_back(), self.keeper.loop)

    async def give_back(self) -> None:
        """Close the page. On the keeper's loop; twice does nothing."""
        if self._back:
            return
        self._back = True
        with contextlib.suppress(Exception):
            if not self.dead:
                await asyncio.wait_for(self.page.close(), CLOSE_SECONDS)
        self.keeper.counts["pages closed"] += 1
        self.keeper._returned()


_KEEPERS: dict[tuple[int, str], Keeper] = {}
_LOCK = threading.Lock()


def shared_keeper(browser: str = "") -> Keeper:
    """This process's keeper for a browser; a process that was forked has one of its own."""
    executable = find_chromium(browser)
    with _LOCK:
        key = (os.getpid(), executable)
        if key not in _KEEPERS:
            _KEEPERS[key] = Keeper(executable)
        return _KEEPERS[key]
