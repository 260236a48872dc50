"""An agent that plays through an OpenAI-compatible server of chat completions.

It is an agent and no engine: such servers take and give text, so its turns hold no token ids. Good for evaluation,
not for training.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urldefrag

import httpx

from gymrl.agents.engines.base import EngineFault, Sampling
from gymrl.agents.parsers import clean, clean_call, parse_action
from gymrl.agents.players import ContextFull, Generator, Job, Said, Usage
from gymrl.agents.records import Stop
from gymrl.envs import servers
from gymrl.envs.records import Action, Message, Observation, Tool, ToolCall, stable_hash
from gymrl.envs.workers import EnvHandle

TRIES = 6
ANSWER_SECONDS = 300.0
CONNECT_SECONDS = 10.0
QUIET_SECONDS = 30.0
"""A server that says nothing for so long is told of, while it is waited for."""
GIVE_UPS = 3
"""After so many requests in a row that were given up, the server counts as gone and nobody waits for it again."""


def split_url(url: str) -> tuple[str, str]:
    """The API's base URL (ends in /v1 unless another path was given) and the model behind `#` ('' without)."""
    base, model = urldefrag(url)
    base = base.rstrip("/")
    if servers.names_user(url):  # before anything repeats the URL
        raise EngineFault(servers.USER)
    try:
        parsed = httpx.URL(base)
    except httpx.InvalidURL as error:
        raise EngineFault(f"{url!r} is no URL ({error}): write http://HOST:PORT/v1#MODEL") from None
    if not parsed.host:
        raise EngineFault(f"{url!r} names no host: write http://HOST:PORT/v1#MODEL")
    if parsed.query:  # it may be a key, and is not repeated
        raise EngineFault(
            f"a server's URL has no question mark and what follows: write http://HOST:PORT/v1#MODEL, and set "
            f"{servers.KEY} where the server asks for a key"
        )
    return (base if parsed.path.strip("/") else f"{base}/v1"), model


def headers() -> dict[str, str]:
    """The key from the environment, if there is one. Raises EngineFault for one that no header takes."""
    try:
        return servers.headers()
    except ValueError as error:
        raise EngineFault(str(error)) from None


def served_models(base: str, timeout: float = 10.0) -> list[dict[str, Any]]:
    """What the server lists under /models. Blocks. Raises EngineFault if it cannot be asked or has nothing."""
    try:
        response = httpx.get(f"{base}/models", headers=headers(), timeout=timeout)
    except httpx.HTTPError as error:
        raise EngineFault(
            f"no server answers at {base} ({cause(error, timeout)}): check the address and that it is running"
        ) from error
    if response.status_code in (401, 403):
        raise EngineFault(_refused(base))
    try:
        response.raise_for_status()
        models = [entry for entry in response.json()["data"] if isinstance(entry["id"], str)]
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise EngineFault(
            f"{base}/models gives no list of models (HTTP {response.status_code}): name the model as {base}#MODEL"
        ) from error
    if not models:
        raise EngineFault(f"{base} serves no model: name one as {base}#MODEL")
    return models


class ChatAgent:
    """Plays through `URL[#model]`. Without a model it takes the first that the server lists.

    Overloaded and broken answers (429, 5xx, no connection, no JSON) are tried again after 0.5, 1, 2, ... s, or as
    long as the server's Retry-After says; then EngineFault, which makes the episode invalid. So does an answer that
    does not come in time, at once: asked again it would take as long.
    """

    def __init__(
        self, url: str, sampling: Sampling, timeout: float = ANSWER_SECONDS, patience: float = 0.5,
        quiet: float = QUIET_SECONDS, tell: Callable[[str], None] | None = None,
    ) -> None:  # fmt: skip
        """`timeout` (s) is for one answer, `patience` (s) the first pause before trying again. `tell` hears once of
        trouble that is waited out, and once of a server that has been silent for `quiet` s. Blocks while it asks for
        the model. Raises EngineFault."""
        self.base, model = split_url(url)
        self._headers = headers()  # before the first request, which may come when half a run is done
        self.model = model or str(served_models(self.base)[0]["id"])
        self.name = f"{self.base}#{self.model}"
        self.sampling, self.timeout, self.patience = sampling, timeout, patience
        self.quiet, self.tell = quiet, tell
        self.usage = Usage()
        self._limit_field, self._seeds = "max_tokens", True
        self._given_up, self._gone = 0, ""
        self._told: set[str] = set()
        self._heard = -quiet
        """When the server last said something."""
        self._clients: dict[asyncio.AbstractEventLoop, httpx.AsyncClient] = {}

    def player(self, job: Job, generator: Generator | None) -> ChatPlayer:
        return ChatPlayer(self, job)

    async def close(self) -> None:
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()

    async def complete(
        self, messages: list[dict[str, Any]], tools: Sequence[Tool], seed: int, greedy: bool
    ) -> dict[str, Any]:
        """One choice, as the server gave it. Raises ContextFull and EngineFault."""
        sampling = self.sampling
        body: dict[str, Any] = {
            "model": self.model, "messages": messages, "temperature": 0.0 if greedy else sampling.temperature,
        }  # fmt: skip
        if sampling.top_p < 1.0:
            body["top_p"] = sampling.top_p
        if sampling.top_k > 0:
            body["top_k"] = sampling.top_k
        if tools:
            body["tools"] = [tool.schema() for tool in tools]
        trouble = ""
        for attempt in range(TRIES):
            if self._gone:
                raise EngineFault(self._gone)
            body.pop("seed", None)
            if self._seeds:
                body["seed"] = seed
            body.pop("max_tokens", None)
            body[self._limit_field] = sampling.max_tokens
            wait = self.patience * 2**attempt
            try:
                response = await self._post(body)
                status = response.status_code
                if status == 200:
                    choice = self._choice(response)
                    self._given_up = 0
                    return choice
                if status not in (408, 409, 429) and status < 500 and self._adapts(response, body):
                    continue
                trouble = f"HTTP {status}: {_message(response)}"
                wait = _retry_after(response, wait)
            except TimeoutError:
                raise self._lost(
                    f"{self.base} gave no answer in {self.timeout:g} s: check that the server is well, lower the "
                    "concurrency or max_tokens, or raise the timeout"
                ) from None
            except httpx.HTTPError as error:
                trouble = cause(error, min(CONNECT_SECONDS, self.timeout))
            except ValueError as error:
                trouble = str(error)
            self._tell("trouble", f"{self.base} is asked again, {TRIES} times in all ({trouble[:200]})")
            if attempt + 1 < TRIES:
                await asyncio.sleep(wait)
        raise self._lost(
            f"{self.base} gave no answer in {TRIES} tries ({trouble[:200]}): check that the server is running, "
            "or lower the concurrency"
        )

    async def _post(self, body: dict[str, Any]) -> httpx.Response:
        """Raises TimeoutError if there is no whole answer in time."""
        timer = asyncio.get_running_loop().call_later(self.quiet, self._still_waiting)
        try:
            async with asyncio.timeout(self.timeout):
                response = await self._client().post(f"{self.base}/chat/completions", json=body)
        finally:
            timer.cancel()
        self._heard = time.monotonic()
        return response

    def _still_waiting(self) -> None:
        if time.monotonic() - self._heard >= self.quiet:
            text = f"{self.base} has been silent for {self.quiet:g} s; each answer is waited for {self.timeout:g} s"
            self._tell("silence", text)

    def _tell(self, what: str, text: str) -> None:
        if self.tell is not None and what not in self._told:
            self._told.add(what)
            self.tell(text)

    def _lost(self, fault: str) -> EngineFault:
        """Of a request that is given up."""
        self._given_up += 1
        if self._given_up >= GIVE_UPS:
            self._gone = fault
        return EngineFault(fault)

    def _client(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=128)
            timeout = httpx.Timeout(None, connect=min(CONNECT_SECONDS, self.timeout))
            self._clients[loop] = httpx.AsyncClient(headers=self._headers, timeout=timeout, limits=limits)
        return self._clients[loop]

    def _choice(self, response: httpx.Response) -> dict[str, Any]:
        """Raises ValueError, with what the server said, where that is no chat completion."""
        try:
            data = response.json()
            choice: dict[str, Any] = data["choices"][0]
            if not isinstance(choice["message"], dict):
                raise TypeError("message is no object")
            usage = data.get("usage") or {}
            prompt, completion = (int(usage.get(f"{what}_tokens") or 0) for what in ("prompt", "completion"))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            said = _message(response) if response.text.strip() else "nothing"
            raise ValueError(f"no chat completion but: {said[:120]}") from error
        self.usage += Usage(1, prompt, completion)
        return choice

    def _adapts(self, response: httpx.Response, body: dict[str, Any]) -> bool:
        """Change how the server is asked, if that is what it wants. Raises what no other way of asking can mend."""
        status, said = response.status_code, _message(response)
        lower = said.lower()
        if status in (401, 403):
            raise EngineFault(_refused(self.base))
        if status == 404:
            raise EngineFault(
                f"{self.base} has no model {self.model!r} ({said[:200]}): name one it has as {self.base}#MODEL"
            )
        if (
            "context length" in lower
            or "context_length" in lower
            or "maximum context" in lower
            or status == 413
        ):
            raise ContextFull(f"the server says: {said[:200]}")
        if "max_completion_tokens" in lower and "max_tokens" in body:
            self._limit_field = "max_completion_tokens"
            return True
        if "seed" in lower and "seed" in body:
            self._seeds = False
            return True
        raise EngineFault(
            f"{self.base} refused the request (HTTP {status}: {said[:200]}): adjust the sampling or the model"
        )


class ChatPlayer:
    """One episode with a chat server."""

    def __init__(self, agent: ChatAgent, job: Job) -> None:
        self.agent, self.job = agent, job
        self.messages: list[dict[str, Any]] = []
        self.tools: tuple[Tool, ...] = ()
        self.turn = 0
        self._open: list[tuple[str, str]] = []
        """Tool calls (name, id) that have had no result yet."""

    async def act(self, observation: Observation, env: EnvHandle) -> Said:
        began = time.perf_counter()
        self.tools = observation.tools or self.tools
        self._observe(observation.messages)
        seed = stable_hash(self.job.seed, self.turn) % 2**31
        self.turn += 1
        choice = await self.agent.complete(self.messages, self.tools, seed, self.job.greedy)
        message = choice["message"]
        text = _clean(message.get("content") or message.get("refusal") or "")
        calls, broken = read_tool_calls(message.get("tool_calls") or [], len(self.messages))
        reply: dict[str, Any] = {"role": "assistant", "content": text}
        if calls:
            reply["tool_calls"] = [_call_json(call) for call in calls]
            self._open = [(call.name, call.id) for call in calls]
        self.messages.append(reply)
        action = parse_action(text)
        action = Action(action.text, (*calls, *action.tool_calls) if calls else action.tool_calls)
        stop: Stop = "length" if choice.get("finish_reason") == "length" else "stop"
        return Said(
            action, "\n".join(filter(None, [text, *broken])), stop=stop, seconds=time.perf_counter() - began
        )

    def _observe(self, messages: Sequence[Message]) -> None:
        """Append messages; every tool call is answered before anyone else speaks, as the protocol wants it."""
        later: list[dict[str, Any]] = []
        for message in messages:
            found = None
            if message.role == "tool":
                found = next((c for c in self._open if message.name in (None, c[0])), None)
            if found is None:
                role = "user" if message.role == "tool" else message.role
                later.append({"role": role, "content": _content(message)})
            else:
                self._open.remove(found)
                self.messages.append({"role": "tool", "tool_call_id": found[1], "content": message.text})
        for _, call_id in self._open:
            self.messages.append(
                {"role": "tool", "tool_call_id": call_id, "content": "(see the next message)"}
            )
        self._open = []
        self.messages.extend(later)


def read_tool_calls(entries: Any, turn: int) -> tuple[tuple[ToolCall, ...], list[str]]:
    """The complete calls of a chat completion, and the text of those that are not (no name, no JSON object)."""
    calls: list[ToolCall] = []
    broken: list[str] = []
    for entry in entries if isinstance(entries, list) else []:
        function = entry.get("function") if isinstance(entry, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        given = function.get("arguments") if isinstance(function, dict) else None
        try:
            arguments = json.loads(given or "{}") if not isinstance(given, dict) else given
        except (TypeError, ValueError, RecursionError):
            arguments = None
        call = None
        if isinstance(name, str) and name and isinstance(arguments, dict):
            call = clean_call(ToolCall(name, arguments, str(entry.get("id") or f"call_{turn}_{len(calls)}")))
        if call is not None:
            calls.append(call)
        else:
            broken.append(_clean(f"{name or '?'}({given})"))
    return tuple(calls), broken


def _call_json(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": json.dumps(dict(call.arguments))}
    return {"id": call.id, "type": "function", "function": function}


def _content(message: Message) -> Any:
    if not message.images:
        return message.text
    parts: list[dict[str, Any]] = [{"type": "text", "text": message.text}]
    for image in message.images:
        kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
        url = f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return parts


def _clean(text: Any) -> str:
    """Text of the server, see `clean`; content in parts is joined."""
    if isinstance(text, list):
        text = "".join(str(part.get("text", "")) for part in text if isinstance(part, dict))
    return clean(str(text))


def _message(response: httpx.Response) -> str:
    """The server's own words, in one line."""
    try:
        data = response.json()
        error = data.get("error") or data.get("detail") or response.text
        text = error.get("message", error) if isinstance(error, dict) else error
    except (ValueError, AttributeError):
        text = response.text
    return " ".join(str(text).split()) or response.reason_phrase


def _retry_after(response: httpx.Response, wait: float) -> float:
    try:
        return min(60.0, max(wait, float(response.headers.get("retry-after", ""))))
    except ValueError:
        return wait


def _refused(base: str) -> str:
    return f"{base} refused the key: set {servers.KEY} to one that it takes"


def cause(error: Exception, seconds: float) -> str:
    """What went wrong on the way; `seconds` were allowed."""
    if isinstance(error, httpx.ConnectTimeout):
        return f"no connection in {seconds:g} s"
    if isinstance(error, httpx.TimeoutException):
        return f"no answer in {seconds:g} s"
    return str(error) or type(error).__name__
