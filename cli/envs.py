"""`gymrl envs`: what there is, and what it is like to play it."""

from __future__ import annotations

import asyncio
import inspect
import sys
import textwrap
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from gymrl.cli import check, serve
from gymrl.cli.values import parameters

if TYPE_CHECKING:
    from gymrl.envs.records import Observation, TaskSpec, Tool
    from gymrl.envs.workers import EnvHandle, EnvPool

T = TypeVar("T")
app = typer.Typer(
    help="List, describe, play, check, serve and make environments.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.command("check")(check.check)
app.command("serve")(serve.serve)

EnvId = Annotated[
    str, typer.Argument(metavar="ID", help="The environment's id, such as gymrl/CodeInterpreter-v0.")
]
Split = Annotated[str, typer.Option(help="train, val or test.")]
Index = Annotated[int, typer.Option(min=0, help="Which task of the split.")]
Params = Annotated[
    list[str], typer.Option("--param", metavar="KEY=VALUE", help="A parameter of the environment.")
]


@app.command("list")
def list_() -> None:
    """List every environment, those of installed packages included; under the list, how to install what is not."""
    from rich.console import Console
    from rich.table import Table

    from gymrl.envs import MissingExtra, registered

    table = Table("id", "from", "runs", "what it is")
    mends: list[str] = []  # outside of the table, which would cut a command in two
    for env_id, entry in registered().items():
        shown, source = env_id.replace("[", r"\["), entry.source.replace("[", r"\[")
        try:
            cls = entry.cls()
        except MissingExtra as missing:
            mends.append(f"{env_id}: {missing}")
            table.add_row(shown, source, "-", "not installed, see below")
        except Exception as error:  # someone else's package may break in its own way; the list goes on
            table.add_row(shown, source, "-", f"broken: {error}".replace("[", r"\["))
        else:
            table.add_row(shown, source, cls.runs, _first_line(cls).replace("[", r"\["))
    Console().print(table)
    for mend in mends:
        typer.echo(mend)


@app.command()
def info(env_id: EnvId, split: Split = "train", index: Index = 0, param: Params = []) -> None:  # noqa: B006
    """Describe one environment: parameters, splits, and a first observation."""
    from gymrl.envs.registry import entry
    from gymrl.envs.registry import parameters as parameters_of
    from gymrl.envs.wrappers import names

    found = entry(env_id)
    cls = found.cls()
    typer.echo(f"{env_id}, version {cls.version}, from {found.source}\n")
    typer.echo(inspect.cleandoc(cls.__doc__ or "No description.") + "\n")
    with _opened(env_id, param) as (pool, run):
        world = pool.template.world
        typer.echo("parameters:")
        for name, parameter in parameters_of(cls).items():
            default = found.defaults.get(name, parameter.default)
            typer.echo(f"  {name} = {'(required)' if default is parameter.empty else repr(default)}")
        if "wrappers" not in parameters_of(cls):
            typer.echo(f"  wrappers = [] (of {', '.join(names())}, or module:Class)")
        typer.echo(f"tasks: {', '.join(f'{size} {name}' for name, size in world.sizes.items())}")
        typer.echo(f"turns: at most {world.max_turns}")
        typer.echo(f"success: rewards that sum to {world.success_reward:g} or more")
        typer.echo(f"runs: {world.runs}")
        handle = run(pool.open())
        observation, _ = run(handle.reset(pool.task(split, index)))
        typer.echo(f"\nthe first observation of {split} task {index}:")
        _show(observation)


@app.command()
def play(env_id: EnvId, split: Split = "train", index: Index = 0, param: Params = []) -> None:  # noqa: B006
    """Play one task yourself. An empty line, or a line with a single dot, sends what you wrote."""
    from gymrl.agents.parsers import parse_action

    with _opened(env_id, param) as (pool, run):
        handle, task = run(pool.open()), pool.task(split, index)
        observation, _ = run(handle.reset(task))
        total, turn = 0.0, 0
        if sys.stdin.isatty():
            typer.echo("(an empty line sends what you wrote, Ctrl-D leaves)")
        if observation.tools:
            typer.echo('(a call is written <tool_call>{"name": "...", "arguments": {...}}</tool_call>)')
        while True:
            _show(observation)
            text = _read()
            if text is None:
                typer.echo("You left.")
                return
            result = run(handle.step(parse_action(text)))
            turn, total, observation = turn + 1, total + result.reward, result.observation
            typer.echo(
                f"[turn {turn}: reward {result.reward:g}{', void' if result.info.get('void') else ''}]"
            )
            if result.terminated or result.truncated:
                _show(observation)
                _finish(total, pool.success_reward, result.terminated, turn)
                return


@app.command()
def demo(env_id: EnvId, split: Split = "train", index: Index = 0, param: Params = []) -> None:  # noqa: B006
    """Watch the environment's own perfect player, turn by turn."""
    with _opened(env_id, param) as (pool, run):
        _watch(pool, run(pool.open()), pool.task(split, index), run)


def _watch(pool: EnvPool, handle: EnvHandle, task: TaskSpec, run: Any) -> None:
    observation, _ = run(handle.reset(task))
    total, turn = 0.0, 0
    while True:
        _show(observation, 100)
        action = run(handle.oracle())
        typer.secho("oracle:", bold=True)
        if action.text:
            typer.echo(_indented(action.text))
        for call in action.tool_calls:
            typer.echo(_indented(f"{call.name}({dict(call.arguments)})"))
        result = run(handle.step(action))
        turn, total, observation = turn + 1, total + result.reward, result.observation
        typer.echo(f"[turn {turn}: reward {result.reward:g}]")
        if result.terminated or result.truncated:
            _show(observation, 100)
            _finish(total, pool.success_reward, result.terminated, turn)
            return


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Such as maze, acme/Maze or acme/Maze-v1.")],
    folder: Annotated[Path, typer.Option(help="Where the package's folder is made.")] = Path("."),
) -> None:
    """Scaffold a package with an environment of your own and a test that passes."""
    from gymrl.envs.scaffold import create_package

    made = create_package(name, folder)
    typer.echo(f"made {made}: next, pip install pytest -e {made} and then python -m pytest {made}")


@contextmanager
def _opened(env_id: str, param: list[str]) -> Iterator[tuple[EnvPool, Any]]:
    """The environment's pool, and what runs its coroutines; both end here."""
    from gymrl.envs.blame import told
    from gymrl.envs.gym import EnvironmentFault
    from gymrl.envs.workers import EnvPool

    with asyncio.Runner() as runner:

        def run(coroutine: Coroutine[Any, Any, T]) -> T:
            try:
                return runner.run(coroutine)
            except Exception as error:
                if type(error).__module__.startswith("gymrl."):
                    raise  # it names the mend itself
                raise EnvironmentFault(
                    f"{env_id} raised {told(error)}: mend the environment (`gymrl --debug envs ...` shows more)"
                ) from error

        pool = EnvPool(env_id, parameters(param), workers=1)
        try:
            yield pool, run
        finally:
            runner.run(pool.aclose())


def _read() -> str | None:
    """Lines up to an empty one or a single dot; None where the input ended or is ended by Ctrl-C."""
    lines: list[str] = []
    while True:
        try:
            line = input("> " if not lines else "  ")
        except (EOFError, KeyboardInterrupt):
            return "\n".join(lines) if lines else None
        if line.strip() in ("", "."):
            return "\n".join(lines)
        lines.append(line)


def _finish(total: float, wanted: float, terminated: bool, turns: int) -> None:
    verdict = (
        "success" if terminated and total >= wanted else ("no success" if terminated else "cut: out of turns")
    )
    typer.echo(f"{verdict} after {turns} turn{'s' * (turns != 1)}, reward {total:g}")


def _show(observation: Observation, most: int = 4000) -> None:
    """Descriptions of tools are cut after `most` characters."""
    for message in observation.messages:
        typer.secho(f"{message.role}:", bold=True)
        typer.echo(_indented(message.text + "".join(" [image]" for _ in message.images)))
    for tool in observation.tools:
        typer.echo(
            _indented(f"{_signature(tool)}: {textwrap.shorten(tool.description, most, placeholder=' ...')}")
        )


def _signature(tool: Tool) -> str:
    """The tool's name and its arguments; those that may be left out have a question mark."""
    needed = tool.parameters.get("required", ())
    arguments = tool.parameters.get("properties", {})
    return f"tool {tool.name}({', '.join(name + '?' * (name not in needed) for name in arguments)})"


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def _first_line(cls: type) -> str:
    return next(iter(inspect.cleandoc(cls.__doc__ or "").splitlines()), "")
