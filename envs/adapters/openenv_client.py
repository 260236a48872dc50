"""A client of OpenEnv servers: one WebSocket, one session. All of a process live on one loop, and work from any."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from gymrl.envs.gym import EnvironmentFault
from gymrl.envs.registry import MissingExtra

try:
    from websockets.asyncio.client import ClientConnection, connect
    from websockets.exceptions import WebSocketException
except ImportError as error:
    raise MissingExtra(
        f'OpenEnv needs websockets 15 or later ({error}): pip install "gymrl[openenv]"'
    ) from error

T = TypeVar("T")
MESSAGE_BYTES = 100 * 2**20
"""Of one message of a server's, as OpenEnv's own client takes it; screenshots are large."""
REFUSED = ("VALIDATION_ERROR",)
"""Error codes that say that the action's form is wrong, which is the agent's doing."""


class ServerFault(EnvironmentFault):
    """A server that cannot be reached, was lost, said that it failed, or broke the protocol: an invalid episode."""


class Refused(Exception):
    """The server does not take an action of that form."""


class _Loop:
    """The loop of the connections, started when it is first needed; it ends with the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner = 0

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        with self._lock:
            if self._owner != os.getpid():  # a fork has the loop without its thread
                self._owner, self.loop = os.getpid(), asyncio.new_event_loop()
                threading.Thread(target=self.loop.run_forever, name="gymrl-openenv-loop", daemon=True).start()
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return await asyncio.wrap_future(self.submit(coroutine))


_LOOP = _Loop()


def socket_url(url: str) -> str:
    """The address of a server's sessions. Raises ValueError for what is no http(s) or ws(s) URL."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    scheme = {"http": "ws", "ws": "ws", "https": "wss", "wss": "wss"}.get(parts.scheme)
    try:
        fits = scheme is not None and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"url = {url!r} is no server: write http://HOST:PORT")
    path = parts.path.rstrip("/").removesuffix("/ws")
    return f"{scheme}://{parts.netloc}{path}/ws" + (f"?{parts.query}" if parts.query else "")


class Session:
    """One session of a server's, opened by the first `reset`."""

    def __init__(self, url: str, timeout: float) -> None:
        self.url, self.address, self.timeout = url, socket_url(url), timeout
        self._socket: ClientConnection | None = None

    async def reset(self, data: dict[str, Any]) -> dict[str, Any]:
        """Begin an episode. Raises ServerFault."""
        return await _LOOP.run(self._ask("reset", data))

    async def step(self, action: dict[str, Any]) -> dict[str, Any]:
        """Play an action. Raises ServerFault, and Refused for an action of a wrong form."""
        return await _LOOP.run(self._ask("step", action))

    async def close(self) -> None:
        """End the session; does nothing where there is none."""
        if self._socket is not None:
            await _LOOP.run(self._close())

    async def _ask(self, kind: str, data: dict[str, Any]) -> dict[str, Any]:
        try:
            async with asyncio.timeout(self.timeout):
                if self._socket is None:
                    if kind != "reset":
                        raise ServerFault(f"there is no session of {self.url}: call reset()")
                    self._socket = await self._open()
                await self._socket.send(json.dumps({"type": kind, "data": data}))
                said = json.loads(await self._socket.recv())
        except asyncio.CancelledError:
            await self._close()  # the answer that nobody waits for would be taken for the next one
            raise
        except TimeoutError:
            await self._close()
            raise ServerFault(
                f"the server at {self.url} did not answer {kind} in {self.timeout:g} s: is it up? (or raise timeout)"
            ) from None
        except (WebSocketException, OSError) as error:
            await self._close()
            what = "was lost" if self._socket or kind == "step" else "cannot be reached"
            raise ServerFault(f"the server at {self.url} {what} ({error}): start it, or mend url") from error
        except ValueError as error:
            await self._close()
            raise ServerFault(
                f"the server at {self.url} answered {kind} with what is no JSON ({error})"
            ) from error
        return await self._answer(kind, said)

    async def _answer(self, kind: str, said: Any) -> dict[str, Any]:
        data = said.get("data") if isinstance(said, dict) else None
        if isinstance(data, dict) and said.get("type") == "error":
            if kind == "step" and data.get("code") in REFUSED:
                raise Refused(_why(data))
            await self._close()
            raise ServerFault(f"the server at {self.url} refused {kind}: {_why(data)}")
        if not isinstance(data, dict) or said.get("type") != "observation" or "observation" not in data:
            await self._close()
            raise ServerFault(
                f"the server at {self.url} answered {kind} with no observation: {str(said)[:200]}"
            )
        return data

    async def _open(self) -> ClientConnection:
        proxy: Literal[True] | None = None if _is_local(urlsplit(self.address).hostname or "") else True
        return await connect(self.address, max_size=MESSAGE_BYTES, proxy=proxy, open_timeout=self.timeout)

    async def _close(self) -> None:
        socket, self._socket = self._socket, None
        if socket is not None:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(2):  # the server ends it, as the protocol has it, or else we do
                    await socket.send('{"type": "close"}')
                    await socket.wait_closed()
            with contextlib.suppress(Exception):
                async with asyncio.timeout(5):
                    await socket.close()


def _why(data: dict[str, Any]) -> str:
    errors = data.get("errors")
    details = "; ".join(
        f"{'.'.join(map(str, item.get('loc', ())))}: {item.get('msg', '')}" for item in errors if isinstance(item, dict)
    ) if isinstance(errors, list) else ""  # fmt: skip
    return ": ".join(filter(None, [str(data.get("message", "no reason given"))[:500], details[:500]]))


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
