"""`gymrl envs serve`: an environment for others, over OpenEnv's protocol."""

from __future__ import annotations

import contextlib
import socket
from typing import Annotated

import typer

from gymrl.cli.values import parameters


def serve(
    env_id: Annotated[
        str, typer.Argument(metavar="ID", help="The environment's id, such as gymrl/CodeInterpreter-v0.")
    ],
    given: Annotated[
        list[str], typer.Argument(metavar="[KEY=VALUE]...", help="Parameters of the environment.")
    ] = [],  # noqa: B006
    host: Annotated[str, typer.Option(help="The address to listen at; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 8000,
    split: Annotated[str, typer.Option(help="The split where a client names none.")] = "train",
    sessions: Annotated[int, typer.Option(min=1, help="Clients at once.")] = 256,
    deadline: Annotated[
        float, typer.Option(min=0.1, help="Seconds for one call of the environment's.")
    ] = 300.0,
) -> None:
    """Serve an environment over OpenEnv's protocol, each client its own; Ctrl-C ends it. There is no password."""
    from gymrl.envs.adapters.openenv_server import create_app, create_server

    app = create_app(env_id, parameters(given), split=split, sessions=sessions, deadline=deadline)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ValueError(
            f"cannot listen at {host}:{port} ({error.strerror or error}): take another --host or --port"
        ) from error
    with listening:
        shown = f"[{host}]" if ":" in host else host
        typer.echo(
            f"{env_id} is served at http://{shown}:{listening.getsockname()[1]} (OpenEnv); Ctrl-C ends it"
        )
        with contextlib.suppress(KeyboardInterrupt):
            create_server(app).run(sockets=[listening])
    typer.echo("ended")
