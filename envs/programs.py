"""Programs that an agent writes: run in a sandbox, and what the agent sees of a run."""

from __future__ import annotations

import asyncio
from typing import Any

from gymrl.sandboxes import Result, Session, shared_sandbox


class Programs:
    """Runs the programs of one environment's episodes.

    sandbox: the name of a sandbox (`auto`: the best that isolates). timeout: seconds for one run. stateful: whether
    variables live on from run to run of an episode.
    """

    def __init__(self, sandbox: str, timeout: float, stateful: bool) -> None:
        self.sandbox, self.timeout, self.stateful = sandbox, timeout, stateful
        self.session: Session | None = None
        self.ready = False

    async def begin(self) -> None:
        """Have the sandbox ready, which takes a moment the first time, and forget the last episode's variables."""
        if not self.ready:
            await asyncio.to_thread(shared_sandbox, self.sandbox)
            self.ready = True
        if self.session:
            await self.session.reset()

    async def run(self, blocks: list[str]) -> Result:
        """Run the code blocks of a turn as one program."""
        code, sandbox = "\n".join(blocks), shared_sandbox(self.sandbox)
        if not self.stateful:
            return await sandbox.run(code, self.timeout)
        if self.session is None:
            self.session = await sandbox.session()
        return await self.session.run(code, self.timeout)

    async def close(self) -> None:
        if self.session:
            await self.session.close()


def show(result: Result, limit: int = 2000) -> str:
    """What the agent sees of a run: its output, then the last lines of its errors, cut to `limit` characters."""
    text = result.stdout.rstrip("\n")
    if result.value:
        text = f"{text}\n{result.value}" if text else result.value
    if result.killed_by:
        text = f"{text}\n[stopped: {result.killed_by}]".lstrip("\n")
    elif result.exit:
        text = f"{text}\n{result.stderr.rstrip()[-500:]}".lstrip("\n")
    return text if len(text) <= limit else f"{text[:limit]}\n[{len(text) - limit} characters more]"


def told(result: Result) -> dict[str, Any]:
    """What the info dict of a turn says of its run."""
    return {"exit": result.exit, "sandbox": result.backend, "sandbox_seconds": result.seconds}
