"""The environment `gymrl/Mcp-v0`."""

from __future__ import annotations

import difflib
import random
import shlex
from dataclasses import replace
from typing import Any

from gymrl.envs.environment import Environment
from gymrl.envs.gym import EnvironmentFault
from gymrl.envs.marks import answer
from gymrl.envs.mcp_tools.calls import from_text, sendable
from gymrl.envs.mcp_tools.checks import made, right_answer, right_result
from gymrl.envs.mcp_tools.files import FileTasks
from gymrl.envs.mcp_tools.headers import check_headers, sent_headers
from gymrl.envs.mcp_tools.problems import Accounts
from gymrl.envs.mcp_tools.records import McpTask, ServerSpec, Use
from gymrl.envs.records import Action, Message, Observation, TaskSpec, Tool, ToolCall

INSTRUCTIONS = (
    "Do what is asked by calling tools. Then give the final answer in <answer>...</answer>: what was asked for alone, "
    "or <answer>done</answer> where nothing is to be told."
)
VOID = "Call a tool, or give the final answer in <answer>...</answer>."
CALLS = 16
"""Calls of one turn that are made."""


class Mcp(Environment):
    """Do tasks with the tools of any MCP server.

    A turn with tool calls makes them, in order, and shows what they return. `<answer>...</answer>` ends the episode,
    with reward 1 where the task's checks hold (the answer, the state of the server, the calls that had to be made) and
    0 where one does not. A turn with neither is void and is told so.

    tasks: `accounts`, tasks on an example server that are generated from seeds, or a task file (.toml or .jsonl).
    server: a command that speaks over stdin and stdout, or the URL of a server; it goes before the file's own. fresh:
    whether every episode has a server process (or session) of its own; where not, one serves all of an environment's
    episodes, and setup has to undo what the last one did. By default as the task file says, else true. hide: tools
    that the agent is not offered, with commas between, besides those that the file hides. max_turns: turns after which
    the episode is truncated. tool_timeout: seconds for one call. start_timeout: seconds for the server to start.
    output_cap: characters of a result that are shown. token_env: for a URL, the environment variable that holds the
    server's bearer token. headers: headers that the server is sent, which records show. headers_env: headers whose
    values are secrets, with the environment variable that holds each.
    """

    version = "1"
    runs = "inline"

    def __init__(
        self, tasks: str = "accounts", server: str | list[str] = "", fresh: bool | None = None, hide: str = "",
        max_turns: int = 12, tool_timeout: float = 30.0, start_timeout: float = 60.0, output_cap: int = 4000,
        token_env: str = "", headers: dict[str, str] | None = None, headers_env: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        from gymrl.envs.mcp_tools.connection import CallTimeout, Connection

        self.connect, self.too_long = Connection, CallTimeout
        if max_turns < 1 or output_cap < 1 or tool_timeout <= 0 or start_timeout <= 0:
            raise ValueError("max_turns and output_cap are 1 or more, tool_timeout and start_timeout above 0")
        self.source: Accounts | FileTasks = Accounts() if tasks == "accounts" else FileTasks(tasks)
        self.sizes = self.source.sizes
        self.spec = _spec(server, self.source.server, tasks)
        given = {"token_env": token_env, "headers": headers, "headers_env": headers_env}
        self.spec = _with_headers(self.spec, {name: value for name, value in given.items() if value})
        hidden = tuple(name.strip() for name in hide.split(",") if name.strip())
        self.spec = replace(self.spec, hide=(*self.spec.hide, *hidden))
        self.fresh = self.spec.fresh if fresh is None else fresh
        self.max_turns, self.output_cap = max_turns, output_cap
        self.tool_timeout, self.start_timeout = tool_timeout, start_timeout
        self.connection: Connection | None = None
        self.offered: tuple[Tool, ...] = ()
        self.busy = False
        """Whether the server may still be at a call that nobody waits for any more."""

    async def reset(self) -> Observation:
        self.asked: McpTask = self.source.draw(self.task, self.rng)
        self.uses: list[Use] = []
        """The agent's calls that did not fail."""
        self.planned = 0
        if self.connection is not None and (self.fresh or self.busy or self.connection.lost):
            await self._disconnect()
        if self.connection is None:
            connection = self.connect(self.spec, self.start_timeout)
            await connection.open()
            self.connection = connection
        try:
            self.offered = self._offered()
            for use in self.asked.setup:
                outcome = await self._own(use)
                if outcome.failed:
                    raise EnvironmentFault(
                        f"{self._where}: the setup call {use.words()} failed: {outcome.text[:300]}"
                    )
        except BaseException:
            await self._disconnect()  # what it has become is not known
            raise
        system = "\n\n".join(filter(None, [INSTRUCTIONS, self.connection.instructions[: self.output_cap]]))
        return Observation((Message("system", system), Message("user", self.asked.prompt)), self.offered)

    async def step(self, action: Action) -> tuple[Any, ...]:
        try:
            return await self._step(action)
        except EnvironmentFault:
            await self._disconnect()  # the next episode begins with another server
            raise

    async def _step(self, action: Action) -> tuple[Any, ...]:
        if self.connection is None:
            raise EnvironmentFault(f"{self._where}: the server is gone: call reset()")
        calls = action.tool_calls or from_text(action.text, self._names)
        messages = [await self._made(call) for call in calls[:CALLS]]
        if len(calls) > CALLS:
            messages.append(Message("user", f"Error: only the first {CALLS} calls of a turn are made."))
        self.planned += 1
        said = answer(action.text)
        if said is not None:
            parts = {
                "answer_right": right_answer(self.asked.answer, said),
                "calls_made": all(
                    any(made(wanted, use) for use in self.uses) for wanted in self.asked.must_call
                ),
                "state_right": await self._state_right(),
            }
            right = all(parts.values())
            end = Message("user", f"The task is {'done' if right else 'not done'}.")
            return Observation((*messages, end)), float(right), True, {"answer": said[:1000], **parts}
        return Observation(tuple(messages) or (Message("user", VOID),)), 0.0, False, {"calls": len(calls)}

    async def _made(self, call: ToolCall) -> Message:
        """Make one call of the agent's; whatever is wrong with it is told in the world."""
        if call.name not in self._names:
            known = ", ".join(self._names) or "none"
            return self._result(f"Error: there is no tool {call.name[:60]!r}. There are: {known}.", call)
        arguments = sendable(call.arguments)
        if isinstance(arguments, str):
            return self._result(f"Error: {arguments}.", call)
        assert self.connection is not None
        use = Use(call.name, arguments)
        try:
            outcome = await self.connection.call(use, self.tool_timeout)
        except self.too_long:
            self.busy = True
            return self._result(f"Error: the call took longer than {self.tool_timeout:g} s.", call)
        if not outcome.failed:
            self.uses.append(use)
        text = outcome.text
        if outcome.failed and not text.startswith("Error"):
            text = f"Error: {text}"
        return self._result(text, call, outcome.images)

    def _result(self, text: str, call: ToolCall, images: tuple[bytes, ...] = ()) -> Message:
        if len(text) > self.output_cap:
            text = f"{text[: self.output_cap]}\n... ({len(text) - self.output_cap} characters more)"
        return Message("tool", text or ("" if images else "(nothing)"), images, name=call.name)

    async def _state_right(self) -> bool:
        for check in self.asked.state:
            outcome = await self._own(check.use)
            if not right_result(check.expected, outcome.text, outcome.structured, outcome.failed):
                return False
        return True

    async def _own(self, use: Use) -> Any:
        """A call of the task's own. Raises EnvironmentFault where it takes too long."""
        assert self.connection is not None
        try:
            return await self.connection.call(use, self.tool_timeout)
        except self.too_long:
            raise EnvironmentFault(
                f"{self._where}: {use.words()} took longer than tool_timeout = {self.tool_timeout:g} s"
            ) from None

    def _offered(self) -> tuple[Tool, ...]:
        """The tools that the agent may call. Raises EnvironmentFault for a tool that the task or `hide` names and the
        server has not."""
        assert self.connection is not None
        known = [tool.name for tool in self.connection.tools]
        task, hidden = self.asked, self.spec.hide
        own = [use.tool for use in (*task.setup, *(check.use for check in task.state))]
        agents = [use.tool for use in (*task.must_call, *(task.solution or ()))]
        for name in (*own, *agents, *hidden):
            if name not in known:
                near = difflib.get_close_matches(name, known, 1, 0.5)
                hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known) or 'none'}"
                raise EnvironmentFault(f"{self._where}: {self.spec.words()} has no tool {name!r}: {hint}")
        for name in agents:
            if name in hidden:
                raise EnvironmentFault(
                    f"{self._where}: the agent has to call {name!r}, which is hidden: do not hide it"
                )
        return tuple(tool for tool in self.connection.tools if tool.name not in hidden)

    @property
    def _where(self) -> str:
        return self.asked.where or f"task {self.asked.id!r}"

    @property
    def _names(self) -> list[str]:
        return [tool.name for tool in self.offered]

    # -- players -------------------------------------------------------------------------------------------------

    def tools(self) -> tuple[Tool, ...]:
        return self.offered

    def recognises(self, action: Action) -> bool:
        return answer(action.text) is not None or bool(from_text(action.text, self._names))

    def oracle(self) -> str | Action:
        if self.asked.solution is None:
            raise NotImplementedError(f"{self._where} has no solution: give it one in the task file")
        if self.planned < len(self.asked.solution):
            use = self.asked.solution[self.planned]
            return Action("", (ToolCall(use.tool, dict(use.arguments), f"call_{self.planned}"),))
        return f"<answer>{self.asked.said}</answer>"

    def random_action(self, rng: random.Random) -> str | Action:
        if not self.offered or rng.random() < 0.3:
            return f"<answer>{rng.randrange(1000)}</answer>"
        tool = rng.choice(self.offered)
        words = [word.strip(".,?!'\"") for word in self.asked.prompt.split()] or ["x"]
        arguments = {
            name: _random_value(schema, words, rng)
            for name, schema in tool.parameters.get("properties", {}).items()
        }
        return Action("", (ToolCall(tool.name, arguments, "call_0"),))

    def describe_task(self, task: TaskSpec) -> str:
        return self.source.draw(task, task.rng()).problem()

    def give_hint(self) -> str:
        if self.asked.solution is None:
            raise NotImplementedError(f"{self._where} has no solution: give it one in the task file")
        if self.planned < len(self.asked.solution):
            return f"Call {self.asked.solution[self.planned].words()}."
        return "Give the final answer now."

    async def close(self) -> None:
        await self._disconnect()

    async def _disconnect(self) -> None:
        connection, self.connection, self.busy = self.connection, None, False
        if connection is not None:
            await connection.close()


def _spec(server: str | list[str], own: ServerSpec, tasks: str) -> ServerSpec:
    """The server of the parameter, or else of the task file. Raises ValueError where there is none."""
    none: dict[str, Any] = {
        "token_env": "",
        "headers": {},
        "headers_env": {},
    }  # those of the file are for its own
    if isinstance(server, str):
        if server.startswith(("http://", "https://")):
            return replace(own, command=(), url=server, **none)
        try:
            server = shlex.split(server)
        except ValueError as error:
            raise ValueError(
                f"server = {server!r} is no command ({error}): give a list of words, or a URL"
            ) from None
    if not isinstance(server, list) or not all(isinstance(word, str) and word for word in server):
        raise ValueError(f"server is a command (a list of words) or a URL, not {server!r}")
    if server:
        return replace(own, command=tuple(server), url="", folder=None, **none)
    if not own.command and not own.url:
        raise ValueError(f"{tasks} names no server: give the parameter server, a command or a URL")
    return own


def _with_headers(spec: ServerSpec, given: dict[str, Any]) -> ServerSpec:
    """The server with these headers in the place of its own. Raises ValueError for what cannot be sent."""
    for name, value in given.items():
        if not isinstance(value, str if name == "token_env" else dict):
            raise ValueError(f"{name} is {'a name' if name == 'token_env' else 'a table of texts'}")
    spec = replace(spec, **given)
    check_headers(spec, "server")
    if spec.url:
        sent_headers(spec)  # a variable that is not set is told now
    return spec


def _random_value(schema: Any, words: list[str], rng: random.Random) -> Any:
    """A value of a parameter's type."""
    schema = schema if isinstance(schema, dict) else {}
    if isinstance(schema.get("enum"), list) and schema["enum"]:
        return rng.choice(schema["enum"])
    kind = schema.get("type")
    if kind == "integer":
        return rng.randrange(100)
    if kind == "number":
        return rng.randrange(1000) / 10
    if kind == "boolean":
        return rng.random() < 0.5
    if kind == "array":
        return []
    return {} if kind == "object" else rng.choice(words)
