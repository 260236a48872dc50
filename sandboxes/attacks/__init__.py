"""Attacks on a sandbox: programs that try to get out, to take too much, or to lie, and what tells whether they did.

`gymrl sandbox check` runs all of them here and now. Whether an attack was stopped is decided outside, from what
happened to a `Site` (a file, sockets, a process that the attacks aim at) and from what the program managed to print.
"""

from gymrl.sandboxes.attacks.suite import ATTACKS, Attack, Verdict, attempt, check

__all__ = ["ATTACKS", "Attack", "Verdict", "attempt", "check"]
