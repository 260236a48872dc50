"""Connections to MCP servers. Each lives on the event loop that opened it, and works from any."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import IO, Any, TypeVar, cast
from weakref import WeakKeyDictionary

from gymrl.envs.deadlines import Turn, wait_turn
from gymrl.envs.gym import EnvironmentFault
from gymrl.envs.mcp_tools.headers import sent_headers, without, without_deep
from gymrl.envs.mcp_tools.records import ServerSpec, Use
from gymrl.envs.records import Tool

try:
    import httpx2
    import mcp_types as types
    from mcp import Client, MCPError, StdioServerParameters
    from mcp.client.stdio import stdio_client
    from mcp.client.streamable_http import streamable_http_client
except ImportError as error:
    raise ImportError(f'MCP servers need the package mcp 2.3 ({error}): pip install "gymrl[mcp]"') from error

T = TypeVar("T")
PAGES = 100
"""Of a server's list of tools; one that has no end is refused."""
CLOSE_SECONDS = 15.0
"""What a server may take to end, kills by the `mcp` package included, before nobody waits any more."""
STARTS = max(4, 2 * (os.cpu_count() or 1))
"""Servers that start at once."""


class ServerFault(EnvironmentFault):
    """A server that cannot be started or reached, died, or broke the protocol: the episode is invalid."""


class CallTimeout(Exception):
    """A call took longer than it may."""


@dataclass(frozen=True)
class Outcome:
    """What a call came to. `structured` is the result as JSON data, None where the server gave none."""

    text: str
    failed: bool = False
    structured: Any = None
    images: tuple[bytes, ...] = ()


class _Tally:
    """How many connections this process has opened and closed, and each loop's turns to start one."""

    def __init__(self) -> None:
        self.opened = self.closed = 0
        self._lock = threading.Lock()
        self._starts: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()

    def count(self, opened: int = 0, closed: int = 0) -> None:
        with self._lock:
            self.opened, self.closed = self.opened + opened, self.closed + closed

    def starts(self) -> asyncio.Semaphore:
        with self._lock:
            return self._starts.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(STARTS))


_TALLY = _Tally()


def _forget() -> None:
    """After a fork: the connections are the parent's."""
    global _TALLY
    _TALLY = _Tally()


os.register_at_fork(after_in_child=_forget)


def counts() -> tuple[int, int]:
    """How many connections of this process were opened, and how many of them are closed."""
    return _TALLY.opened, _TALLY.closed


class Connection:
    """One client of one server; a server that is a command has a process of its own for it.

    It lives on the event loop that opened it, where calls go straight to the server; calls from other loops go there
    and back. When that loop ends, so does the connection.
    """

    def __init__(self, spec: ServerSpec, start_timeout: float) -> None:
        self.spec, self.start_timeout = spec, start_timeout
        self._secrets: tuple[str, ...] = ()
        self._refused = ""
        """The last status of an HTTP server by which it refuses everything, or says that it failed."""
        self.tools: tuple[Tool, ...] = ()
        self.instructions = ""
        self._client: Client | None = None
        self._errors: IO[bytes] | None = None
        self._last = ""
        self._living: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Start or reach the server and list its tools. Raises ServerFault. No deadline runs while others start."""
        self._home, self._pid = asyncio.get_running_loop(), os.getpid()
        turn = wait_turn()
        try:
            await self._open(turn)
        finally:
            turn.begun()

    async def call(self, use: Use, seconds: float) -> Outcome:
        """Call a tool. Raises CallTimeout after `seconds`, and ServerFault where the server is gone or breaks the
        protocol; what the server refuses is an Outcome that failed."""
        if self.lost:
            raise ServerFault(f"{self._name} is gone{self._last_words()}")
        return await self._at_home(self._call(use, seconds))

    async def close(self) -> None:
        """End the connection, and the process that is the server."""
        if self._homeless:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and everything on it was cancelled
                if self._pid == os.getpid():
                    self._home.call_soon_threadsafe(self._end.set)
            return
        await self._at_home(self._close())

    @property
    def lost(self) -> bool:
        """Whether the connection has ended by itself: the server died, or the loop that it lived on is over."""
        return self._homeless or self._living is None or self._living.done()

    @property
    def _homeless(self) -> bool:
        return self._pid != os.getpid() or not self._home.is_running()

    async def _at_home(self, coroutine: Coroutine[Any, Any, T]) -> T:
        if self._home is asyncio.get_running_loop():
            return await coroutine
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self._home))

    # -- on the loop that it lives on ----------------------------------------------------------------------------

    async def _open(self, turn: Turn) -> None:
        async with _TALLY.starts():
            turn.begun()
            ready: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
            self._end = asyncio.Event()
            # The client has to be entered and left in one task.
            self._living = asyncio.create_task(self._live(ready))
            _TALLY.count(opened=1)
            try:
                self._client = await asyncio.wait_for(asyncio.shield(ready), self.start_timeout)
                await asyncio.wait_for(self._list(self._client), self.start_timeout)
            except BaseException as error:
                last = self._last_words()
                await self._close()
                if isinstance(error, ServerFault) or not isinstance(error, Exception):
                    raise
                if isinstance(error, TimeoutError):
                    raise ServerFault(
                        f"{self._name} did not answer within {self.start_timeout:g} s{last}"
                    ) from None
                raise ServerFault(f"{self._name} cannot be used: {self._reason(error)}{last}") from None

    async def _live(self, ready: asyncio.Future[Client]) -> None:
        try:
            async with contextlib.AsyncExitStack() as stack:
                try:
                    server = await self._server(stack)
                    async with Client(server, cache=None) as client:
                        ready.set_result(client)
                        await self._end.wait()
                finally:
                    self._last, self._errors = self._last_words(), None
        except Exception as error:  # after the start whoever calls finds out
            if not ready.done():
                ready.set_exception(error)
        finally:
            _TALLY.count(closed=1)

    async def _server(self, stack: contextlib.AsyncExitStack) -> Any:
        spec = self.spec
        if spec.url:
            headers, self._secrets = sent_headers(spec)
            timeout = httpx2.Timeout(30.0, read=300.0)  # as the package's own; a call's limit is the caller's
            hooks = {"response": [self._note_status]}
            client = await stack.enter_async_context(
                httpx2.AsyncClient(headers=headers, timeout=timeout, event_hooks=hooks)
            )
            return streamable_http_client(spec.url, http_client=client)
        words = list(spec.command)
        if any("{dir}" in word for word in words):
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="gymrl-mcp-", ignore_cleanup_errors=True)
            )
            words = [word.replace("{dir}", folder) for word in words]
        command, *arguments = [word.replace("{python}", sys.executable) for word in words]
        # What it writes there is told where it fails.
        self._errors = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        parameters = StdioServerParameters(
            command=command, args=arguments, env=dict(spec.environ) or None, cwd=spec.folder
        )
        return stdio_client(parameters, errlog=cast(Any, self._errors))

    async def _note_status(self, response: Any) -> None:
        code = response.status_code
        if code in (401, 403):
            words = ", ".join(filter(None, [self.spec.token_env, *self.spec.headers_env.values()]))
            mend = f"see whether {words} still holds" if words else "name a token's variable in token_env"
            self._refused = f"it refuses access (HTTP {code}): {mend}"
        elif code >= 500:
            self._refused = f"it failed (HTTP {code})"

    async def _list(self, client: Client) -> None:
        found: list[Tool] = []
        cursor = None
        for _ in range(PAGES):
            page = await client.list_tools(cursor=cursor)
            found += [
                Tool(
                    tool.name,
                    without(self._secrets, tool.description or ""),
                    without_deep(self._secrets, _schema(tool.input_schema)),
                )
                for tool in page.tools
            ]
            cursor = page.next_cursor
            if not cursor:
                break
        else:
            raise ServerFault(f"{self._name} lists tools without end")
        self.tools, self.instructions = tuple(found), without(self._secrets, client.instructions or "")

    async def _call(self, use: Use, seconds: float) -> Outcome:
        if self._client is None:
            raise ServerFault(f"{self._name} is closed")
        self._refused = ""
        try:
            async with asyncio.timeout(seconds + 5.0):
                result = await self._client.call_tool(
                    use.tool, dict(use.arguments), read_timeout_seconds=seconds
                )
        except TimeoutError:
            raise CallTimeout from None
        except MCPError as error:
            if error.code == types.REQUEST_TIMEOUT:
                raise CallTimeout from None
            if error.code == types.CONNECTION_CLOSED and error.message == "Connection closed":
                raise ServerFault(f"{self._name} is gone{self._last_words()}") from None
            if self._refused:
                raise ServerFault(f"{self._name} failed over {use.tool}: {self._refused}") from None
            return Outcome(without(self._secrets, f"Error: {error.message}"), True)
        except Exception as error:
            raise ServerFault(
                f"{self._name} failed over {use.tool}: {self._reason(error)}{self._last_words()}"
            ) from None
        outcome = _outcome(result)
        if not self._secrets:
            return outcome
        return replace(
            outcome, text=without(self._secrets, outcome.text),
            structured=without_deep(self._secrets, outcome.structured),
        )  # fmt: skip

    async def _close(self) -> None:
        client, self._client = self._client, None
        living, self._living = self._living, None
        if living is None:
            return
        self._end.set()
        if client is None:  # it is still starting
            living.cancel()
        if not living.done():
            _, still = await asyncio.wait([living], timeout=CLOSE_SECONDS)
            if still:
                living.cancel()
                await asyncio.wait([living], timeout=CLOSE_SECONDS)

    @property
    def _name(self) -> str:
        return f"the MCP server {self.spec.words()!r}"

    def _reason(self, error: BaseException) -> str:
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if type(error) is ValueError:
            return str(error)  # our own, of headers
        if self._refused:
            return self._refused
        said = without(self._secrets, str(error))
        return f"{type(error).__name__}: {said}"[:300] if said else type(error).__name__

    def _last_words(self) -> str:
        """The end of what the server wrote to its standard error, as the end of a sentence."""
        if self._errors is None:
            return self._last
        size = os.fstat(self._errors.fileno()).st_size
        text = os.pread(self._errors.fileno(), 2000, max(0, size - 2000)).decode(errors="replace")
        last = " ".join(text.split())[-300:]
        return f"; its last words: {last}" if last else ""


def _schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {}, **schema}


def _outcome(result: Any) -> Outcome:
    """A result in words and pictures: sound and links are named."""
    texts: list[str] = []
    images: list[bytes] = []
    for block in result.content:
        if isinstance(block, types.TextContent):
            texts.append(block.text)
        elif isinstance(block, types.ImageContent) and block.mime_type in ("image/png", "image/jpeg"):
            with contextlib.suppress(ValueError):
                images.append(base64.b64decode(block.data))
        elif isinstance(block, types.EmbeddedResource) and isinstance(
            block.resource, types.TextResourceContents
        ):
            texts.append(block.resource.text)
        elif isinstance(block, types.ResourceLink):
            texts.append(f"[{block.name}: {block.uri}]")
        else:
            texts.append(f"[{block.type}]")
    return Outcome("\n".join(texts), bool(result.is_error), result.structured_content, tuple(images))
