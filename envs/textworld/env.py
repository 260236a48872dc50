"""The environment `gymrl/TextWorld-v0`."""

from __future__ import annotations

import random
import re
from typing import Any

import textworld

from gymrl.envs.environment import Environment
from gymrl.envs.records import Action, Message, Observation, TaskSpec
from gymrl.envs.textworld.games import GameSettings, forget_propositions, game_file, problem_of

INSTRUCTIONS = "You play a text game. Reply with one command."
REWARDS = ("sparse", "balanced", "dense")
STEPS = 1024
"""Potentials are multiples of 1/STEPS, so that sums of rewards are exact in any order."""

SYNONYMS = frozenset(
    {"get", "pick", "put", "read", "search", "wait", "x", "l", "i", "z"}
    | {"n", "s", "e", "w", "north", "south", "east", "west"}
)
"""Verbs that the games understand beside those they list. Verbs that save, restart or quit are not among them."""
UNKNOWN = "That's not a verb I recognise."

_MARK = re.compile(r"<command>(.*?)</command>", re.DOTALL)
_COMMAND = re.compile(r"[a-z][a-z0-9' -]{0,99}", re.IGNORECASE)
_ROOM = re.compile(r"^-= .+? =-\s*$", re.MULTILINE)
_STATUS = re.compile(r"\n?>\s*(-= .*)?\Z")
_AFTER_END = re.compile(r"\n[^\n]*You scored \d+ out of.*\Z", re.DOTALL)
_SCORE = re.compile(r"^Your score has just gone up by .*$", re.MULTILINE)


class TextWorld(Environment):
    """Play a generated text adventure: rooms, containers, doors, keys, and a quest that the first message states.

    One command a turn: the content of the last `<command>...</command>`, or else the text's last line that is not
    empty. A turn is void where that is no command: not one plain phrase that begins with a verb of the game. It does
    not reach the game, which is also how commands such as `quit`, `undo` and `save` are kept out.

    The episode ends won when the quest is done, and lost when it can no longer be done; a lost game's rewards sum to 0.
    A won game's sum to 1, in each of three ways. Let d be the length of the shortest way to win that TextWorld tracks
    and D that of the walkthrough; every reward is the difference of a potential before and after the turn, and the
    potential is

    - `sparse`: 1 when won, else 0;
    - `dense`: max(0, 1 - d/D), that is, each right step pays 1/D and each step back costs as much;
    - `balanced`: the dense one rounded down to 0, 1/2 or 1: pay at half-way and at the end.

    nb_rooms, nb_objects, quest_length (commands of the walkthrough): the size of a game. theme: `house` has rich
    English texts, `basic` short ones with names such as box4. admissible: whether each message lists the commands
    that would change the world now. max_turns: commands until the episode is cut. games: how many games each split
    has, all made with the same settings (None for 2**31). looks: share of turns in which the oracle only looks
    around (for demonstrations by a player who takes his time).
    """

    version = "1"
    runs = "process"

    def __init__(
        self, nb_rooms: int = 2, nb_objects: int = 4, quest_length: int = 3, rewards: str = "sparse",
        admissible: bool = True, max_turns: int = 12, theme: str = "house", games: int | None = None,
        looks: float = 0.0,
    ) -> None:  # fmt: skip
        if rewards not in REWARDS:
            raise ValueError(f"unknown rewards {rewards!r}: take {', '.join(REWARDS)}")
        if not 0 <= looks < 1:
            raise ValueError(f"looks is a share of turns, at least 0 and less than 1, not {looks}")
        if games is not None:
            if games < 1:
                raise ValueError(f"games is 1 or more, or None, not {games}")
            self.sizes = dict.fromkeys(self.sizes, games)
        self.settings = GameSettings(nb_rooms, nb_objects, quest_length, theme)
        self.rewards, self.admissible, self.max_turns, self.looks = rewards, admissible, max_turns, looks
        self.game: textworld.Environment | None = None

    def reset(self) -> Observation:
        forget_propositions()
        path = str(game_file(self.task, self.settings))
        if self.game is None:
            infos = textworld.EnvInfos(
                feedback=True, objective=True, won=True, lost=True, verbs=True,
                admissible_commands=True, policy_commands=True, extras=["walkthrough"],
            )  # fmt: skip
            self.game = textworld.start(path, infos)
        else:
            self.game.close()  # the interpreter keeps the memory of every game it was not closed after
            self.game.load(path)
        self.game.seed(1)  # by default the interpreter's own generator starts from the clock
        self.state = self.game.reset()
        self.verbs = SYNONYMS.union(self.state["verbs"])
        self.distance = len(self.state["policy_commands"])
        self.potential = 0.0
        text = f"{self.state['objective'].strip()}\n\n{room_text(self.state['feedback'])}"
        return Observation((Message("system", INSTRUCTIONS), Message("user", self._with_commands(text))))

    def step(self, action: Action) -> tuple[Any, ...]:
        said = self.command(action.text)
        if said is None:
            return self._with_commands(UNKNOWN), 0.0, False
        assert self.game is not None
        self.state, _, _ = self.game.step(said)
        won = bool(self.state["won"])
        lost = not won and (bool(self.state["lost"]) or not self.state["policy_commands"])
        before, self.potential = self.potential, self._potential(won, lost)
        text = feedback_text(self.state["feedback"])
        if won or lost:
            text = text if won else f"{text}\nThe quest can no longer be done."
        else:
            text = self._with_commands(text)
        return text, self.potential - before, won or lost, {"command": said, "won": won, "lost": lost}

    def command(self, text: str) -> str | None:
        """The command in a text; None where it holds none."""
        marked = _MARK.findall(text)
        lines = (marked[-1] if marked else text).strip().splitlines()
        said = lines[-1].strip().rstrip(".").lower() if lines else ""
        words = said.split()
        # "then" would make two commands of one turn.
        if not _COMMAND.fullmatch(said) or words[0] not in self.verbs or "then" in words:
            return None
        return " ".join(words)

    def recognises(self, action: Action) -> bool:
        return self.command(action.text) is not None

    def oracle(self) -> str:
        if self.looks and self.rng.random() < self.looks:
            return "look"
        return str(self.state["policy_commands"][0]) if self.state["policy_commands"] else "look"

    def random_action(self, rng: random.Random) -> str:
        return str(rng.choice(self.state["admissible_commands"]))

    def describe_task(self, task: TaskSpec) -> str:
        return problem_of(task, self.settings)

    def measure_progress(self) -> float:
        won = bool(self.state["won"])
        lost = not won and (bool(self.state["lost"]) or not self.state["policy_commands"])
        return float(won) if won or lost else max(0.0, 1.0 - len(self.state["policy_commands"]) / self.distance)

    def give_hint(self) -> str:
        """The next command's verb and nothing else: where to look, not what to say."""
        ways = self.state["policy_commands"]
        return f"Think of the verb {str(ways[0]).split()[0]!r}." if ways else "Look around."

    def close(self) -> None:
        if self.game is not None:
            self.game.close()

    def _potential(self, won: bool, lost: bool) -> float:
        if won or lost:
            return float(won)
        done = max(0.0, 1.0 - len(self.state["policy_commands"]) / self.distance)
        steps = {"sparse": 1, "balanced": 2, "dense": STEPS}[self.rewards]
        return int(done * steps + 1e-9) / steps

    def _with_commands(self, text: str) -> str:
        if not self.admissible:
            return text
        return f"{text}\nCommands: {', '.join(filter(changes, self.state['admissible_commands']))}"


def changes(command: str) -> bool:
    """Whether an admissible command changes the world; the others only describe it, and always can be given."""
    return command.split()[0] not in ("examine", "inventory", "look")


def feedback_text(raw: str) -> str:
    """What the game said, without its prompt, status bar, blank lines and closing questions."""
    text = _STATUS.sub("", raw.rstrip())
    text = _SCORE.sub("", _AFTER_END.sub("", text))
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())


def room_text(raw: str) -> str:
    """The first room's description in the opening text, without the banner and the objective before it."""
    room = _ROOM.search(raw)
    return feedback_text(raw[room.start() :] if room else raw)
