"""Attacks by way of a shell: the same programs, started by a bash, with a reset of the shell in place of a new run."""

from __future__ import annotations

import os

from gymrl.sandboxes.base import Limits, Result, Sandbox, Session, ShellSession


class ShellSandbox(Sandbox):
    """Runs every program in one shell of another sandbox, which is reset before each."""

    def __init__(self, box: Sandbox) -> None:
        self.box, self.backend, self._limits = box, box.backend, Limits()
        self._shell: ShellSession | None = None

    async def run(self, code: str, timeout: float = 5.0, limits: Limits | None = None) -> Result:
        """The program takes the bash's place, so that its exit status is seen as it is; another bash follows."""
        bounds = limits or Limits()
        if self._shell is None or bounds != self._limits:
            await self._end()
            self._shell, self._limits = await self.box.shell(limits=bounds), bounds
        else:
            await self._shell.reset()
        there = (await self._shell.exec('printf %s "$TMPDIR"')).stdout
        await self._shell.write_file(f"{there}/main.py", code)
        return await self._shell.exec('exec python3 -I "$TMPDIR/main.py"', timeout, limits)

    async def session(self, checkpoint: bool = True) -> Session:
        return await self.box.session(checkpoint)

    async def shell(self, tree: str | os.PathLike[str] = "", limits: Limits | None = None) -> ShellSession:
        return await self.box.shell(tree, limits)

    async def close(self) -> None:
        """End the shell, and the sandbox that it is of."""
        await self._end()
        await self.box.close()

    async def _end(self) -> None:
        if self._shell is not None:
            await self._shell.close()
            self._shell = None
