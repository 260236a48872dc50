"""The environment `gymrl/OpenEnv-v0`."""

from __future__ import annotations

import json
import math
from typing import Any

from gymrl.envs.adapters import showing
from gymrl.envs.adapters.functions import load
from gymrl.envs.adapters.openenv_client import Refused, ServerFault, Session
from gymrl.envs.environment import Environment
from gymrl.envs.records import (
    Action,
    Message,
    Observation,
    TaskSpec,
    Tool,
    message_from_json,
    tool_call_to_json,
)


class OpenEnv(Environment):
    """Play an environment that a server offers over OpenEnv's protocol.

    Each environment has a session of the server's, opened by its first reset. A server that is lost, fails, or pays
    what is no number makes the episode invalid.

    url: where the server is, `http://HOST:PORT`. action: the field of the server's action that the agent's text goes
    into; empty: the text is the action, a JSON object; or `module:function`, from the text to a dict or None.
    observation: the field that is shown; empty: all of them; or `module:function`, from the dict to a text. What a
    server of gymrl's shows (messages, images, tools) is taken as it is. prompt: what the agent is told first. send:
    `seed`, a seed of the task's, or `task`, its split and index, as servers of gymrl take it. reset: more that is sent
    with each reset. success: an episode whose rewards sum to at least this succeeds. max_turns: turns after which the
    episode is truncated. timeout: seconds for one answer of the server's.
    """

    version = "1"
    runs = "inline"

    def __init__(
        self, url: str = "", action: str = "text", observation: str = "", prompt: str = "", send: str = "seed",
        reset: dict[str, Any] | None = None, success: float = 1.0, max_turns: int = 100, timeout: float = 60.0,
    ) -> None:  # fmt: skip
        if not url:
            raise ValueError(
                "OpenEnv needs the address of a server: give url, such as url=http://localhost:8000"
            )
        if send not in ("seed", "task"):
            raise ValueError(f"send is 'seed' or 'task', not {send!r}")
        if max_turns < 1 or timeout <= 0 or not math.isfinite(success):
            raise ValueError("max_turns is 1 or more, timeout above 0, success a finite number")
        if reset is not None and not isinstance(reset, dict):
            raise ValueError(f"reset is a table of what is sent with it, not {reset!r}")
        self.success_reward, self.max_turns = float(success), max_turns  # type: ignore[misc]
        self.field, self.shown, self.prompt, self.send, self.extra = (
            action,
            observation,
            prompt,
            send,
            reset or {},
        )
        self._write = load("action", action) if ":" in action else None
        self._show = load("observation", observation) if ":" in observation else None
        self.session = Session(url, timeout)

    async def reset(self) -> Observation:
        self.offered: tuple[Tool, ...] = ()
        result = await self.session.reset({**self._named(self.task), **self.extra})
        shown = await self._kept(self._observed, result)
        prompt = (Message("system", self.prompt),) if self.prompt else ()
        return Observation((*prompt, *shown.messages), shown.tools)

    async def step(self, action: Action) -> tuple[Any, ...]:
        sent = self._action(action)
        if sent is None:
            return self._void, 0.0, False, False, {}
        try:
            result = await self.session.step(sent)
        except Refused as refused:
            return f"That is no action: {refused}", 0.0, False, False, {}
        shown = await self._kept(self._observed, result)
        reward = await self._kept(self._reward, result)
        observation = result["observation"]
        cut = isinstance(observation, dict) and observation.get("truncated") is True
        done = await self._kept(self._done, result)
        return shown, reward, done and not cut, done and cut, {}

    async def _kept(self, read: Any, result: dict[str, Any]) -> Any:
        """What a reader makes of an answer; the session ends where it cannot read it."""
        try:
            return read(result)
        except Exception:
            await self.session.close()
            raise

    def _named(self, task: TaskSpec) -> dict[str, Any]:
        if self.send == "task":
            return {"split": task.split, "index": task.index}
        return {"seed": task.seed >> 32}  # 31 bits, which every generator takes

    def _action(self, action: Action) -> dict[str, Any] | None:
        """What is sent for an action; None where it is none."""
        if self._write is not None:
            made = self._write(action.text)
            if made is not None and not isinstance(made, dict):
                raise ServerFault(
                    f"action = {self.field!r} returned {made!r}: it has to be a dict, or None"[:300]
                )
            return made
        if not self.field:
            try:
                made = json.loads(action.text)
            except (ValueError, RecursionError):
                return None
            return made if isinstance(made, dict) else None
        calls = [tool_call_to_json(call) for call in action.tool_calls] if self.offered else []
        if not action.text.strip() and not calls:
            return None
        text = action.text.encode("utf-8", "replace").decode()  # what is not UTF-8 cannot be sent
        return {self.field: text, **({"tool_calls": calls} if calls else {})}

    @property
    def _void(self) -> str:
        return (
            "Write the action as a JSON object."
            if not self.field
            else "That is no action. Write what you do."
        )

    def _observed(self, result: dict[str, Any]) -> Observation:
        value = result["observation"]
        if self._show is not None:
            return Observation.of(self._show(value))
        if self.shown:
            if not isinstance(value, dict) or self.shown not in value:
                known = ", ".join(value) if isinstance(value, dict) else "none"
                raise ServerFault(f"the server's observation has no field {self.shown!r}: it has {known}")
            value = value[self.shown]
        elif isinstance(value, dict) and "messages" in value and "tools" in value:
            return self._ours(value)
        elif isinstance(value, dict):
            value = {name: item for name, item in value.items() if item not in (None, "", [], {})}
            if len(value) == 1:
                value = next(iter(value.values()))
        try:
            return Observation.of(showing.as_text(value))
        except showing.Unshown as error:
            raise ServerFault(f"the server's observation cannot be shown: {error}") from error

    def _ours(self, value: dict[str, Any]) -> Observation:
        """The observation of a server of gymrl's."""
        try:
            messages = tuple(message_from_json(message) for message in value["messages"])
            functions = [schema["function"] for schema in value["tools"]]
            tools = tuple(
                Tool(f["name"], f.get("description", ""), f.get("parameters", {})) for f in functions
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ServerFault(
                f"the server's messages cannot be read ({error!r}): name a field with observation"
            ) from error
        self.offered = tools or self.offered
        return Observation(messages, tools)

    def _reward(self, result: dict[str, Any]) -> float:
        reward = result.get("reward")
        if reward is None:
            return 0.0  # in OpenEnv a step may go without
        if not isinstance(reward, (bool, int, float)) or not math.isfinite(reward):
            raise ServerFault(
                f"a reward is a finite number, not {reward!r}, which {self.session.url} paid"[:300]
            )
        return float(reward)

    def _done(self, result: dict[str, Any]) -> bool:
        done = result.get("done", False)
        if not isinstance(done, bool):
            raise ServerFault(f"{self.session.url} says done = {done!r}: it has to be true or false"[:300])
        return done

    def recognises(self, action: Action) -> bool:
        return self._action(action) is not None

    async def close(self) -> None:
        await self.session.close()
