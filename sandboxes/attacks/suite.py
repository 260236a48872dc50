"""One attack, the list of all, and running them."""

from __future__ import annotations

import asyncio
import textwrap
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from gymrl.sandboxes.attacks import deceit, exhaustion, kernel, processes, theft, writing
from gymrl.sandboxes.attacks.site import Site
from gymrl.sandboxes.base import Limits, Result, Sandbox, SandboxFault

TRIED, GOT = "TRIED", "GOT"


@dataclass(frozen=True, slots=True)
class Attack:
    """A program that prints GOT and what it has got, if it gets anything.

    follow: a second program for the next run, which prints GOT if it finds a trace of the first. ends: what has to have
    ended the run (empty: anything). exit: the exit status that the run must have.
    """

    name: str
    group: str
    code: str
    follow: str = ""
    ends: tuple[str, ...] = ()
    exit: int | None = None
    timeout: float = 10.0
    limits: Limits | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """how: what the attack achieved; empty where it was stopped."""

    attack: Attack
    how: str
    seconds: float

    @property
    def stopped(self) -> bool:
        return not self.how


PRELUDE = """
import ctypes, errno, os, signal, socket, struct, sys, threading, time
{names}
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
X86 = os.uname().machine == "x86_64"
def syscall(x86, arm, *arguments):
    "Result and errno of a system call by its two numbers."
    ctypes.set_errno(0)
    wrapped = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return libc.syscall(ctypes.c_long(x86 if X86 else arm), *wrapped), ctypes.get_errno()
def got(*what):
    print("GOT", *what, flush=True)
def attempt(work, *arguments):
    "What the work returns; None where it is refused."
    try:
        return work(*arguments)
    except Exception:
        return None
def spread(number, work):
    "Run work in so many children, where children may be had; True in the parent."
    for _ in range(number):
        try:
            if os.fork() == 0:
                work()
                os._exit(0)
        except OSError:
            return False
    return True
print("TRIED", flush=True)
"""


def _all() -> tuple[Attack, ...]:
    found = []
    for module in (theft, writing, processes, exhaustion, kernel, deceit):
        group = module.__name__.rpartition(".")[2]
        found += [Attack(name, group, **settings) for name, settings in module.ATTACKS.items()]
    return tuple(found)


ATTACKS: tuple[Attack, ...] = _all()


def program(code: str, site: Site) -> str:
    """The attack's code after a prelude that tells it where to aim."""
    names = "\n".join(f"{name} = {value!r}" for name, value in site.aims().items())
    return PRELUDE.replace("{names}", names) + textwrap.dedent(code)


async def attempt(box: Sandbox, attack: Attack, site: Site) -> Verdict:
    """Try one attack. Raises nothing: a sandbox that fails under it counts as beaten."""
    start = time.monotonic()
    try:
        how = await asyncio.wait_for(_attempt(box, attack, site), attack.timeout + 60.0)
    except SandboxFault as fault:
        how = f"the sandbox failed: {fault}"
    except TimeoutError:
        how = "the call did not come back in time"
    return Verdict(attack, how, time.monotonic() - start)


async def _attempt(box: Sandbox, attack: Attack, site: Site) -> str:
    site.begin()
    result = await box.run(program(attack.code, site), attack.timeout, attack.limits)
    how = _success(attack, result, site)
    if not how and attack.follow:
        after = await box.run(program(attack.follow, site), attack.timeout, attack.limits)
        how = _success(Attack(attack.name, attack.group, ""), after, site)
    if not how:
        how = await asyncio.to_thread(site.harm)
    if not how:
        after = await box.run("import os; print('fine', os.listdir('.'))")
        if after.stdout != "fine []\n" or after.exit:
            how = f"the next run is not fine: {after}"
    return how


def _success(attack: Attack, result: Result, site: Site) -> str:
    text = result.stdout + result.stderr
    if GOT in result.stdout:
        return next(line for line in result.stdout.splitlines() if GOT in line)[:200]
    if site.token in text.replace(site.path, "").replace(site.marker, ""):
        return "it printed the secret"
    if TRIED not in result.stdout:
        return f"it did not run: {result.stderr.strip()[-200:]} {result.killed_by}"
    if attack.ends and not (
        result.killed_by in attack.ends or any(word in result.stderr for word in attack.ends if word)
    ):
        return f"it was ended by {result.killed_by or 'itself'}, exit {result.exit}: {result.stderr[-200:]}"
    if attack.exit is not None and result.exit != attack.exit:
        return f"its exit status is {result.exit}, not {attack.exit}"
    if result.seconds > attack.timeout + 5.0:
        return f"it ran for {result.seconds:.1f} s, its time-out was {attack.timeout:g} s"
    return ""


async def check(box: Sandbox, attacks: Sequence[Attack] = ATTACKS) -> AsyncIterator[Verdict]:
    """Try the attacks, one after the other; every verdict as it is reached."""
    with Site() as site:
        for attack in attacks:
            yield await attempt(box, attack, site)
