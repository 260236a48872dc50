"""What a worker's process executes: `python start.py CONFIG`, with CONFIG in JSON.

tier, folder (scratch), control (descriptor of the control socket, the path of a socket to listen on, or '' for standard
input and output), parent (process id, or 0), packages (folders to import from), preload (modules to import
beforehand), house (the folder of gymrl.sandboxes), bytecode (whether its modules may
be kept compiled, where they can be), cgroup (where there is one, two descriptors: written to to enter it,
and what counts the processes that the kernel killed in it).
"""

from __future__ import annotations

import json
import os
import sys
import types
from typing import Any

PRELOAD = ("bisect", "collections", "datetime", "functools", "heapq", "io", "itertools", "json", "math", "operator",
           "random", "re", "string", "typing")  # fmt: skip


def house(folder: str) -> None:
    """Let `gymrl.sandboxes.inside` be imported without installed packages, and without what callers need only."""
    for name, path in (("gymrl", ""), ("gymrl.sandboxes", folder)):
        module = types.ModuleType(name)
        module.__path__ = [path] if path else []
        sys.modules[name] = module


def aside(name: str) -> None:
    """Import a module without what it has called in the child of every fork: `threading`'s is for locks that threads of
    the parent held, of which this process has none, and writes to a hundred pages of memory; `random`'s draws 2,500
    random bytes. Programs get it back."""
    from gymrl.sandboxes.inside import program

    def register(**hooks: Any) -> None:
        program.HOOKS.append(hooks)
        if name == "random":
            program.SEED.append(hooks["after_in_child"])

    before = os.register_at_fork
    os.register_at_fork = register
    try:
        __import__(name)
    finally:
        os.register_at_fork = before


def listen(path: str) -> Any:
    """The one connection that is made to this socket, whose name is removed then."""
    import socket

    with socket.socket(socket.AF_UNIX) as door:
        door.bind(path)
        os.chmod(path, 0o666)
        door.listen(1)
        connection = door.accept()[0]
    os.unlink(path)
    return connection


def main(config: dict[str, object]) -> None:
    doors = config.get("cgroup") or ()
    assert isinstance(doors, list | tuple)
    if doors:
        os.write(doors[0], b"0")
        os.close(doors[0])
    house(str(config["house"]))
    sys.dont_write_bytecode = not config.get("bytecode")  # of this package; programs leave none
    place = config["control"]
    if place != "" and config["preload"]:  # else nobody needs it, or this process has threads: those of the relay
        aside("threading")
    from gymrl.sandboxes.inside import shells, tiers, turns  # noqa: F401  (imported before the jail closes)
    from gymrl.sandboxes.inside.jail import JailError
    from gymrl.sandboxes.inside.program import warm_up
    from gymrl.sandboxes.inside.protocol import Socket
    from gymrl.sandboxes.inside.zygote import Zygote

    sys.dont_write_bytecode = True
    aside("random")
    if isinstance(place, int):
        control = Socket(fileno=place)
    elif place:
        control = listen(str(place))
    else:
        from gymrl.sandboxes.inside import relay

        control = relay.standard()
    os.environ.clear()
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
    try:
        sys.executable = os.path.realpath(sys.executable)
        tier = tiers.enter(config)
        packages = config["packages"]
        assert isinstance(packages, list)
        sys.path += packages
        for name in (*PRELOAD, *config["preload"]):  # type: ignore[misc]
            try:
                __import__(name)
            except ImportError as error:
                sys.exit(
                    f"importing {name} beforehand: {error}; install it where gymrl is, or do not preload it"
                )
        warm_up()
        tiers.arm(tier)
        zygote = Zygote(control, tier, int(str(config["parent"])), *doors[1:])
    except JailError as error:
        sys.exit(str(error))
    try:
        zygote.serve()
    except ConnectionError:  # the caller went with a message unread
        zygote.leave()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
