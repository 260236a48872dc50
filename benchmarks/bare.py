"""The packages behind the environments, used without gymrl: what `environments.py` measures against.

Each class plays recorded actions as somebody would who had written the loop for that one package. `data` takes from a
world that was just reset what its episode is made of; `reset` starts that episode, untimed; `step` plays one action.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any, Protocol

from gymrl.envs import Action
from gymrl.envs.marks import answer, boxed, code_blocks


class Bare(Protocol):
    def data(self, world: Any) -> Any: ...

    async def reset(self, data: Any) -> None: ...

    async def step(self, action: Action) -> Any: ...

    async def close(self) -> None: ...


class Sandbox:
    """Our sandbox alone; an answer is compared with the right one."""

    def __init__(self) -> None:
        from gymrl.sandboxes import shared_sandbox

        self.sandbox = shared_sandbox("auto")

    def data(self, world: Any) -> str:
        return str(world.problem.answer)

    async def reset(self, data: str) -> None:
        self.right = data

    async def step(self, action: Action) -> Any:
        if (said := answer(action.text)) is not None:
            return said == self.right
        return (await self.sandbox.run("\n".join(code_blocks(action.text)), 5.0)).stdout

    async def close(self) -> None:
        pass


class Maths(Sandbox):
    """Our sandbox alone, and math-verify in this process."""

    def __init__(self) -> None:
        super().__init__()
        import math_verify

        self.verify = math_verify

    async def step(self, action: Action) -> Any:
        if (said := boxed(action.text)) is not None:
            one, other = (self.verify.parse(f"\\boxed{{{text}}}") for text in (self.right, said))
            return self.verify.verify(one, other)
        return (await self.sandbox.run("\n".join(code_blocks(action.text)), 5.0)).stdout

    async def close(self) -> None:
        pass


class Bfcl:
    """bfcl-eval's own way: calls as texts to `execute_multi_turn_func_call`, at the end `multi_turn_checker`, which
    executes them once more."""

    plays = 0

    def __init__(self) -> None:
        from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_checker, multi_turn_utils

        self.checker, self.utils = multi_turn_checker, multi_turn_utils

    def data(self, world: Any) -> Any:
        return world.play.scenario

    async def reset(self, data: Any) -> None:
        Bfcl.plays += 1
        for name in [name for name in vars(self.utils) if name.startswith("bare_")]:
            delattr(self.utils, name)  # it keeps every instance for ever
        self.scenario, self.model = data, f"bare_{Bfcl.plays}"
        self.turns: list[list[list[str]]] = [[]]

    async def step(self, action: Action) -> Any:
        scenario = self.scenario
        if action.tool_calls:
            calls = [
                f"{call.name}({', '.join(f'{name}={value!r}' for name, value in call.arguments.items())})"
                for call in action.tool_calls
            ]
            self.turns[-1].append(calls)
            return self.utils.execute_multi_turn_func_call(
                calls, dict(scenario.config), list(scenario.classes), self.model, scenario.name, scenario.long
            )[0]
        if len(self.turns) < len(scenario.turns):
            return self.turns.append([])
        entry = {
            "initial_config": dict(scenario.config), "involved_classes": list(scenario.classes),
            "id": scenario.name,
        }  # fmt: skip
        truth = [list(calls) for calls in scenario.truth]
        return self.checker.multi_turn_checker(self.turns, truth, entry, scenario.category, self.model)

    async def close(self) -> None:
        pass


class Mcp:
    """A `mcp.Client` of the same server. The end of an episode asks for the state, as the task's check does."""

    def __init__(self) -> None:
        self.stack = contextlib.AsyncExitStack()
        self.client: Any = None

    def data(self, world: Any) -> Any:
        return world.spec, world.asked

    async def reset(self, data: Any) -> None:
        spec, self.asked = data
        if self.client is None:
            from mcp import Client, StdioServerParameters
            from mcp.client.stdio import stdio_client

            command, *arguments = [word.replace("{python}", sys.executable) for word in spec.command]
            server = stdio_client(StdioServerParameters(command=command, args=arguments))
            self.client = await self.stack.enter_async_context(Client(server, cache=None))
            await self.client.list_tools()
        for use in self.asked.setup:
            await self.client.call_tool(use.tool, dict(use.arguments))

    async def step(self, action: Action) -> Any:
        for call in action.tool_calls:
            await self.client.call_tool(call.name, dict(call.arguments))
        if action.tool_calls:
            return None
        return [
            (await self.client.call_tool(check.use.tool, dict(check.use.arguments))).content[0].text
            for check in self.asked.state
        ]

    async def close(self) -> None:
        await self.stack.aclose()


class TextWorld:
    """textworld in this process, asked for the same information."""

    def __init__(self) -> None:
        self.game: Any = None

    def data(self, world: Any) -> str:
        from gymrl.envs.textworld.games import game_file

        return str(game_file(world.task, world.settings))

    async def reset(self, data: str) -> None:
        import textworld

        if self.game is None:
            infos = textworld.EnvInfos(
                feedback=True, objective=True, won=True, lost=True, verbs=True, admissible_commands=True,
                policy_commands=True, extras=["walkthrough"],
            )  # fmt: skip
            self.game = textworld.start(data, infos)
        else:
            self.game.close()
            self.game.load(data)
        self.game.reset()

    async def step(self, action: Action) -> Any:
        return self.game.step(action.text)

    async def close(self) -> None:
        self.game.close()


class Gui:
    """The world of screens itself, called directly: it is ours."""

    def __init__(self) -> None:
        from gymrl.envs.gui_navigation.env import GuiNavigation

        self.world = GuiNavigation()

    def data(self, world: Any) -> Any:
        return world.task

    async def reset(self, data: Any) -> None:
        self.world.task, self.world.rng = data, data.rng()
        self.world.reset()

    async def step(self, action: Action) -> Any:
        return self.world.step(action)

    async def close(self) -> None:
        pass


class Lakes:
    """gymnasium's FrozenLake, drawn as text after every step."""

    def __init__(self) -> None:
        self.env: Any = None

    def data(self, world: Any) -> Any:
        from gymrl.envs.adapters import lakes

        self.numbers = {name: number for number, name in enumerate(lakes.ACTIONS)}
        return lakes.draw(world.task), world.task.seed

    async def reset(self, data: Any) -> None:
        import gymnasium

        await self.close()
        self.env = gymnasium.make("FrozenLake-v1", is_slippery=False, render_mode="ansi", **data[0])
        self.env.reset(seed=data[1])
        self.env.render()

    async def step(self, action: Action) -> Any:
        found = self.env.step(self.numbers[action.text])
        return found, self.env.render()

    async def close(self) -> None:
        if self.env is not None:
            self.env.close()


class Pages:
    """playwright's own calls on the same pages, in a browser of its own: the mouse, and MiniWoB++'s `getDOMInfo`."""

    def __init__(self) -> None:
        self.stack = contextlib.AsyncExitStack()
        self.page: Any = None

    def data(self, world: Any) -> str:
        from gymrl.envs.web_pages.tasks import page_url

        return page_url(world.name)

    async def reset(self, data: str) -> None:
        if self.page is None:
            from playwright.async_api import async_playwright

            from gymrl.envs.web_pages.browser import FLAGS, VIEWPORT, find_chromium

            kept = [flag for flag in FLAGS if flag not in ("--remote-debugging-pipe", "--headless")]
            playwright = await self.stack.enter_async_context(async_playwright())
            browser = await playwright.chromium.launch(executable_path=find_chromium(), args=kept)
            self.stack.push_async_callback(browser.close)
            self.page = await (await browser.new_context(viewport=VIEWPORT)).new_page()
        await self.page.goto(data)
        await self.page.evaluate("core.EPISODE_MAX_TIME = 1e9; core.startEpisodeReal()")

    async def step(self, action: Action) -> Any:
        for line in action.text.splitlines():
            x, y = line.removeprefix("click(").removesuffix(")").split(",")
            await self.page.mouse.click(float(x), float(y))
        return await self.page.evaluate("[core.getDOMInfo(), WOB_DONE_GLOBAL, WOB_RAW_REWARD_GLOBAL]")

    async def close(self) -> None:
        await self.stack.aclose()
