"""Serves an environment over OpenEnv's protocol: a WebSocket session at `/ws`, and what describes it over HTTP."""

from __future__ import annotations

import contextlib
import json
import random
import uuid
from collections.abc import AsyncIterator
from typing import Any

from gymrl.envs.blame import told
from gymrl.envs.deadlines import within
from gymrl.envs.gym import StepResult
from gymrl.envs.records import Action, Observation, TaskSpec, ToolCall, message_to_json
from gymrl.envs.registry import MissingExtra, entry
from gymrl.envs.workers import EnvHandle, EnvPool

try:
    import uvicorn
    import websockets  # noqa: F401 - without it uvicorn would take no sessions
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route, WebSocketRoute
    from starlette.websockets import WebSocket, WebSocketDisconnect
except ImportError as error:
    raise MissingExtra(
        f'serving needs starlette, uvicorn and websockets ({error}): pip install "gymrl[openenv]"'
    ) from error

MESSAGE_BYTES = 16 * 2**20
"""Of one message of a client's."""
ACTION = {
    "type": "object",
    "properties": {
        "text": {"type": "string", "default": "", "description": "what the agent says"},
        "tool_calls": {
            "type": "array",
            "default": [],
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string"},
                    "arguments": {"type": "object"},
                    "id": {"type": "string"},
                },
                "required": ["name"],
            },
        },
        "metadata": {"type": "object", "default": {}, "description": "is not read"},
    },
    "additionalProperties": False,
}
OBSERVATION = {
    "type": "object",
    "properties": {
        "text": {"type": "string", "description": "the texts of all messages"},
        "messages": {"type": "array", "description": "role, text, images (base64), tool_calls, name"},
        "tools": {"type": "array", "description": "the tools on offer from now on, as OpenAI's schemas"},
        "void": {
            "type": "boolean",
            "description": "whether the action held nothing that the world reacts to",
        },
        "truncated": {"type": "boolean", "description": "done, but not over: out of turns"},
    },
}
STATE = {
    "type": "object",
    "properties": {
        "episode_id": {"type": ["string", "null"]},
        "step_count": {"type": "integer"},
        "env": {"type": "string"},
        "split": {"type": ["string", "null"]},
        "index": {"type": ["integer", "null"]},
    },
}


class Bad(Exception):
    """What a client sent cannot be answered; `code` is one of OpenEnv's."""

    def __init__(self, message: str, code: str = "VALIDATION_ERROR") -> None:
        super().__init__(message)
        self.code = code


class Session:
    """One client's environment, opened when it first resets."""

    def __init__(self, pool: EnvPool, split: str, deadline: float) -> None:
        self.pool, self.split, self.deadline = pool, split, deadline
        self.handle: EnvHandle | None = None
        self.task: TaskSpec | None = None
        self.episode: str | None = None
        self.steps, self.playing = 0, False

    async def answer(self, message: Any) -> dict[str, Any] | None:
        """The answer to a message; None ends the session. Raises Bad."""
        if not isinstance(message, dict):
            raise Bad("a message is a JSON object with a type")
        kind, data = message.get("type"), message.get("data", {})
        if kind == "close":
            return None
        if kind == "state":
            return {"type": "state", "data": self.state()}
        if kind not in ("reset", "step"):
            raise Bad(
                f"unknown message type {str(kind)[:60]!r}: send reset, step, state or close", "UNKNOWN_TYPE"
            )
        if not isinstance(data, dict):
            raise Bad(f"the data of {kind} is a JSON object")
        result = await (self._reset(data) if kind == "reset" else self._step(data))
        return {"type": "observation", "data": result}

    def state(self) -> dict[str, Any]:
        task = self.task
        where = {"split": task and task.split, "index": None if task is None else task.index}
        return {"episode_id": self.episode, "step_count": self.steps, "env": self.pool.env_id, **where}

    async def _reset(self, data: dict[str, Any]) -> dict[str, Any]:
        task = self._task(data)
        episode = data.get("episode_id")
        if episode is not None and not isinstance(episode, str):
            raise Bad("episode_id is a text")
        self.playing = False
        if self.handle is None:
            self.handle = await self._world(self.pool.open())
        observation, _ = await self._world(self.handle.reset(task))
        self.task, self.episode, self.steps, self.playing = task, episode or str(uuid.uuid4()), 0, True
        return {"observation": shown(observation), "reward": None, "done": False}

    def _task(self, data: dict[str, Any]) -> TaskSpec:
        if unknown := set(data) - {"seed", "index", "split", "episode_id"}:
            raise Bad(f"reset takes seed, index, split and episode_id, not {min(unknown)!r}")
        split, index, seed = data.get("split") or self.split, data.get("index"), data.get("seed")
        for name, value in (("index", index), ("seed", seed)):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
                raise Bad(f"{name} is a whole number, 0 or more, not {str(value)[:60]!r}")
        try:
            if index is None:
                size = self.pool.template.world.sizes.get(str(split), 1)
                index = random.SystemRandom().randrange(size) if seed is None else seed % size
            return self.pool.task(str(split), index)
        except ValueError as error:
            raise Bad(str(error)) from None

    async def _step(self, data: dict[str, Any]) -> dict[str, Any]:
        action = read_action(data)
        if not self.playing or self.handle is None:
            raise Bad("there is no episode: send reset first", "EXECUTION_ERROR")
        result: StepResult = await self._world(self.handle.step(action))
        done = result.terminated or result.truncated
        self.steps, self.playing = self.steps + 1, not done
        seen = {
            **shown(result.observation),
            "void": bool(result.info.get("void")),
            "truncated": result.truncated,
        }
        return {"observation": seen, "reward": result.reward, "done": done}

    async def _world(self, call: Any) -> Any:
        """What the world answers. Raises Bad where it fails or is late; the next reset opens another."""
        try:
            async with within(self.deadline):
                return await call
        except Exception as error:
            late = isinstance(error, TimeoutError)
            what = f"the environment took longer than {self.deadline:g} s" if late else told(error)
            await self.close()
            raise Bad(f"{what}; the episode is invalid: reset", "EXECUTION_ERROR") from error

    async def close(self) -> None:
        handle, self.handle, self.playing = self.handle, None, False
        if handle is not None:
            with contextlib.suppress(Exception):  # a world that cannot close has nobody left to tell
                await self.pool.release(handle)


def read_action(data: dict[str, Any]) -> Action:
    """The action in a step's data. Raises Bad."""
    if unknown := set(data) - {"text", "tool_calls", "metadata"}:
        raise Bad(f"an action has text and tool_calls, not {min(unknown)[:60]!r}")
    text, calls = data.get("text", ""), data.get("tool_calls") or []
    if not isinstance(text, str):
        raise Bad(f"the text of an action is a string, not {type(text).__name__}")
    if not isinstance(calls, list):
        raise Bad("tool_calls is a list of objects with name and arguments")
    found = []
    for call in calls:
        arguments = call.get("arguments", {}) if isinstance(call, dict) else None
        if not isinstance(arguments, dict) or not isinstance(call.get("name"), str):
            raise Bad("a tool call is an object with a name (a text) and arguments (an object)")
        found.append(ToolCall(call["name"], arguments, str(call.get("id", ""))))
    return Action(text, tuple(found))


def shown(observation: Observation) -> dict[str, Any]:
    return {
        "text": observation.text,
        "messages": [message_to_json(message) for message in observation.messages],
        "tools": [tool.schema() for tool in observation.tools],
        "void": False,
        "truncated": False,
    }


def create_app(
    env_id: str, params: dict[str, Any] | None = None, *, split: str = "train", sessions: int = 256,
    deadline: float = 300.0, workers: int = 2,
) -> Starlette:  # fmt: skip
    """The server as an ASGI application. `sessions` may be open at once; `deadline` (s) is for one call of the
    environment's; `workers` are the processes of environments that run in some. Raises what `make` raises, and
    ValueError for an unknown split."""
    pool = EnvPool(env_id, params, workers)
    pool.task(split, 0)
    about = {
        "name": env_id,
        "description": (entry(env_id).cls().__doc__ or "").strip(),
        "version": pool.template.world.version,
    }
    live: set[Session] = set()

    async def serve(socket: WebSocket) -> None:
        await socket.accept()
        if len(live) >= sessions:
            at = {"active_sessions": len(live), "max_sessions": sessions}
            await _say(socket, _error(f"all {sessions} sessions are taken", "CAPACITY_REACHED", **at))
            await socket.close(1013)
            return
        session = Session(pool, split, deadline)
        live.add(session)
        try:
            while (answer := await _answer(session, await socket.receive())) is not None:
                await _say(socket, answer)
            await socket.close()
        except (WebSocketDisconnect, RuntimeError):
            pass  # the client is gone
        finally:
            live.discard(session)
            await session.close()

    async def reset(request: Request) -> JSONResponse:
        """One that nobody can go on with: what a task shows."""
        session = Session(pool, split, deadline)
        try:
            body = await request.body()
            data = json.loads(body) if body else {}
            answer = await session.answer({"type": "reset", "data": data})
        except Bad as bad:
            return _failed(str(bad), 422 if bad.code == "VALIDATION_ERROR" else 500)
        except (ValueError, RecursionError):
            return _failed("the body is no JSON object", 422)
        finally:
            await session.close()
        return JSONResponse(answer and answer["data"])

    async def step(request: Request) -> JSONResponse:
        return _failed("an episode is played in a session: connect a WebSocket to /ws", 409)

    async def state(request: Request) -> JSONResponse:
        return JSONResponse(Session(pool, split, deadline).state())

    async def health(request: Request) -> JSONResponse:
        return JSONResponse({"status": "healthy"})

    async def metadata(request: Request) -> JSONResponse:
        return JSONResponse(about)

    async def schema(request: Request) -> JSONResponse:
        return JSONResponse({"action": ACTION, "observation": OBSERVATION, "state": STATE})

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await pool.aclose()

    routes = [
        WebSocketRoute("/ws", serve),
        Route("/reset", reset, methods=["POST"]),
        Route("/step", step, methods=["POST"]),
        Route("/state", state),
        Route("/health", health),
        Route("/metadata", metadata),
        Route("/schema", schema),
    ]
    app = Starlette(routes=routes, lifespan=lifespan)
    app.state.pool = pool
    return app


def create_server(app: Starlette) -> uvicorn.Server:
    """A server of the application: `run(sockets=[...])` serves until SIGINT, SIGTERM, or `should_exit` is set."""
    config = uvicorn.Config(
        app, log_level="warning", ws_max_size=MESSAGE_BYTES, timeout_graceful_shutdown=5, access_log=False
    )
    return uvicorn.Server(config)


async def _answer(session: Session, received: Any) -> dict[str, Any] | None:
    if received["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(received.get("code") or 1000)
    try:
        raw = received.get("text")
        return await session.answer(json.loads(received["bytes"] if raw is None else raw))
    except Bad as bad:
        return _error(str(bad), bad.code)
    except (ValueError, RecursionError) as error:
        return _error(f"the message is no JSON: {error}", "INVALID_JSON")


async def _say(socket: WebSocket, message: dict[str, Any]) -> None:
    await socket.send_text(json.dumps(message, default=str))  # ASCII, which takes what is not UTF-8


def _error(message: str, code: str, **more: Any) -> dict[str, Any]:
    return {"type": "error", "data": {"message": message, "code": code, **more}}


def _failed(message: str, status: int) -> JSONResponse:
    return JSONResponse({"detail": message}, status)
