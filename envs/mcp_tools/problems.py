"""Tasks on the example server `accounts`, generated from seeds: each kind a function of a random generator."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

from gymrl.envs.gym import EnvironmentFault
from gymrl.envs.mcp_tools.records import Expected, McpTask, ServerSpec, StateCheck, Use
from gymrl.envs.records import TaskSpec

NAMES = (
    "Ada", "Amir", "Bea", "Boris", "Chen", "Cora", "Dan", "Dora", "Eli", "Emma", "Finn", "Gita", "Hana", "Hugo", "Ida",
    "Ivan", "Jara", "Juri", "Kim", "Lena", "Leo", "Mara", "Milo", "Nia", "Noor", "Olaf", "Olga", "Pia", "Quinn", "Rosa",
    "Sam", "Sven", "Tara", "Tom", "Uma", "Vera", "Wim", "Yara", "Yuki", "Zoe",
)  # fmt: skip
SERVER = ServerSpec(
    ("{python}", "-I", "-S", str(Path(__file__).with_name("accounts.py"))), hide=("open_bank", "all_balances"),
    fresh=False,
)  # fmt: skip
MAX_DRAWS = 1000
Money = dict[str, int]
Drawn = tuple[str, list[Use], int, Money]
"""The prompt, the solution, the answer, and what everybody has in the end."""


class Accounts:
    """A bank of four to six owners for each task. No prompt is in two splits."""

    server = SERVER

    def __init__(self) -> None:
        self.sizes = {"train": 2**31, "val": 2**31, "test": 2**31}

    def draw(self, task: TaskSpec, rng: random.Random) -> McpTask:
        for _ in range(MAX_DRAWS):
            drawn = _draw(rng)
            if task.owns(drawn.prompt):
                return drawn
        raise EnvironmentFault(f"no task for {task.split} in {MAX_DRAWS} draws")


def _draw(rng: random.Random) -> McpTask:
    owners = rng.sample(NAMES, rng.randint(4, 6))
    money = {owner: rng.randint(20, 400) for owner in owners}
    kind = rng.choice(list(KINDS))
    prompt, solution, answer, after = KINDS[kind](rng, money)
    state = StateCheck(Use("all_balances"), Expected("equals", [after]))
    setup = (Use("open_bank", {"balances": money}),)
    name = f"{kind} {json.dumps(money)}"
    return McpTask(
        name, prompt, Expected("number", answer), setup, (state,), (), tuple(solution), str(answer)
    )


def _look(*owners: str) -> list[Use]:
    return [Use("get_balance", {"owner": owner}) for owner in owners]


def _moved(money: Money, sender: str, receiver: str, amount: int) -> tuple[Use, Money]:
    after = {**money, sender: money[sender] - amount, receiver: money[receiver] + amount}
    return Use("transfer", {"sender": sender, "receiver": receiver, "amount": amount}), after


def _transfer(rng: random.Random, money: Money) -> Drawn:
    sender, receiver = rng.sample(list(money), 2)
    amount = rng.randint(1, money[sender])
    use, after = _moved(money, sender, receiver, amount)
    prompt = f"Move {amount} from {sender} to {receiver}. What is {receiver}'s balance then?"
    return prompt, [use, *_look(receiver)], after[receiver], after


def _total(rng: random.Random, money: Money) -> Drawn:
    owners = rng.sample(list(money), rng.randint(2, 3))
    prompt = f"How much do {' and '.join(owners)} have together?"
    return prompt, _look(*owners), sum(money[owner] for owner in owners), money


def _empty(rng: random.Random, money: Money) -> Drawn:
    sender, receiver = rng.sample(list(money), 2)
    use, after = _moved(money, sender, receiver, money[sender])
    prompt = f"Move all that {sender} has to {receiver}. How much was it?"
    return prompt, [*_look(sender), use], money[sender], after


def _topped(rng: random.Random, money: Money) -> Drawn:
    """Exactly what is missing, which has to be looked up."""
    receiver, sender = sorted(rng.sample(list(money), 2), key=lambda owner: money[owner])
    goal = money[receiver] + rng.randint(1, money[sender])
    use, after = _moved(money, sender, receiver, goal - money[receiver])
    prompt = f"Move from {sender} to {receiver} just what {receiver} needs to have {goal}. What is left to {sender}?"
    return prompt, [*_look(receiver), use, *_look(sender)], after[sender], after


def _richest(rng: random.Random, money: Money) -> Drawn:
    one, other = rng.sample(list(money), 2)
    prompt = f"What is the highest balance at the bank of {one} and {other}?"
    return prompt, [Use("list_owners"), *_look(*sorted(money))], max(money.values()), money


KINDS: dict[str, Callable[[random.Random, Money], Drawn]] = {
    "transfer": _transfer, "total": _total, "empty": _empty, "topped": _topped, "richest": _richest,
}  # fmt: skip
