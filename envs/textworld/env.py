"""The environment `gymrl/TextWorld-v0`."""

from __future__ import annotations

import random
import re
from typing import Any

import textworld

from gymrl.envs.environment import Environment
from gymrl.envs.marks import spans
from gymrl.envs.records import Action, Message, Observation, TaskSpec
from gymrl.envs.textworld.challenges import Challenge, Cooking
from gymrl.envs.textworld.games import forget_propositions, game_file, problem_of, settings_of
from gymrl.envs.textworld.tracking import quicken

INSTRUCTIONS = "You play a text game. Reply with one command."
REWARDS = ("sparse", "balanced", "dense")
TURNS = 12
"""Commands in an episode of a quest, unless `max_turns` says otherwise."""
STEPS = 1024
"""Potentials are multiples of 1/STEPS, so that sums of rewards are exact in any order."""

SYNONYMS = frozenset(
    {"get", "pick", "put", "read", "search", "wait", "x", "l", "i", "z"}
    | {"n", "s", "e", "w", "north", "south", "east", "west"}
)
"""Verbs that the games understand beside those they list. Verbs that save, restart or quit are not among them."""
UNKNOWN = "That's not a verb I recognise."

MADE_OF = (
    "game", "nb_rooms", "nb_objects", "quest_length", "theme",
    "level", "goal", "recipe", "take", "go", "open", "cook", "cut", "drop",
)  # fmt: skip
"""The parameters that say what a game is; the others say how it is played."""
READ = "examine cookbook"
TO_READ = frozenset({READ, "examine note"})
"""Commands that tell the player of a challenge what to do."""

_OPEN, _CLOSE = "<command>", "</command>"
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

    game: `quest`, or a challenge of TextWorld's own: `coin_collector`, `treasure_hunter`, `simple` or `cooking`. In
    the last two, d/D is the share of the game's points that are still to get.
    nb_rooms, nb_objects, quest_length (commands of the walkthrough): the size of a quest. theme: `house` has rich
    English texts, `basic` short ones with names such as box4.
    level: how hard, for coin_collector (1 to 150, 201 to 233) and treasure_hunter (1 to 30). goal: `detailed`, `brief`
    or `none`, what the first message says of the task; not for cooking, where the cookbook says it.
    recipe, take, go, open, cook, cut, drop: for cooking, how many ingredients, how many of them to find, how many
    rooms (1, 6, 9, 12), and whether there are things to open, to cook, to cut, and little room in the bag.
    admissible: whether each message lists the commands that would change the world now. max_turns: commands until
    the episode is cut; none stands for 12 in a quest and for enough in a challenge. games: how many games each split
    has, all made with the same settings (None for 2**31). looks: share of turns in which the oracle only looks around
    (for demonstrations by a player who takes his time).
    """

    version = "1"
    runs = "process"

    def __init__(
        self, nb_rooms: int = 2, nb_objects: int = 4, quest_length: int = 3, rewards: str = "sparse",
        admissible: bool = True, max_turns: int | None = None, theme: str = "house", games: int | None = None,
        looks: float = 0.0, game: str = "quest", level: int | None = None, goal: str | None = None,
        recipe: int | None = None, take: int | None = None, go: int | None = None, open: bool | None = None,
        cook: bool | None = None, cut: bool | None = None, drop: bool | None = None,
    ) -> None:  # fmt: skip
        if rewards not in REWARDS:
            raise ValueError(f"unknown rewards {rewards!r}: take {', '.join(REWARDS)}")
        if not 0 <= looks < 1:
            raise ValueError(f"looks is a share of turns, at least 0 and less than 1, not {looks}")
        if games is not None:
            if games < 1:
                raise ValueError(f"games is 1 or more, or None, not {games}")
            self.sizes = dict.fromkeys(self.sizes, games)
        self.settings = settings_of(
            game,
            {
                "nb_rooms": nb_rooms, "nb_objects": nb_objects, "quest_length": quest_length, "theme": theme,
                "level": level, "goal": goal, "recipe": recipe, "take": take, "go": go, "open": open,
                "cook": cook, "cut": cut, "drop": drop,
            },
        )  # fmt: skip
        self.challenge = self.settings if isinstance(self.settings, Challenge) else None
        self.tracked = self.challenge is None or self.challenge.tracked
        self.points = self.challenge is not None and self.challenge.points
        own = self.challenge.turns if self.challenge else TURNS
        self.max_turns = own if max_turns is None else max_turns
        self.rewards, self.admissible, self.looks = rewards, admissible, looks
        self.game: textworld.Environment | None = None

    def reset(self) -> Observation:
        forget_propositions()
        path = str(game_file(self.task, self.settings))
        if self.game is None:
            infos = textworld.EnvInfos(
                feedback=True, objective=True, won=True, lost=True, verbs=True,
                admissible_commands=True, policy_commands=True, extras=["walkthrough"],
                score=self.points, max_score=self.points,
            )  # fmt: skip
            self.game = textworld.start(path, infos)
        else:
            self.game.close()  # the interpreter keeps the memory of every game it was not closed after
            self.game.load(path)
        self.game.seed(1)  # by default the interpreter's own generator starts from the clock
        self.state = self.game.reset()
        quicken(self.game)
        self.verbs = SYNONYMS.union(self.state["verbs"])
        self.distance = len(self.state["policy_commands"])
        self.potential = 0.0
        self.to_say = list(self.state["extra.walkthrough"]) if not self.tracked else []
        self.has_read = False
        text = f"{self.state['objective'].strip()}\n\n{room_text(self.state['feedback'])}".lstrip()
        return Observation((Message("system", INSTRUCTIONS), Message("user", self._with_commands(text))))

    def step(self, action: Action) -> tuple[Any, ...]:
        said = self.command(action.text)
        if said is None:
            return self._with_commands(UNKNOWN), 0.0, False
        assert self.game is not None
        self.state, _, _ = self.game.step(said)
        if self.to_say and said == self.to_say[0]:
            self.to_say.pop(0)
        self.has_read = self.has_read or said == READ
        won, lost = self._result()
        before, self.potential = self.potential, self._potential(won, lost)
        text = feedback_text(self.state["feedback"])
        if won or lost:
            text = text if won else f"{text}\nThe quest can no longer be done."
        else:
            text = self._with_commands(text)
        return text, self.potential - before, won or lost, {"command": said, "won": won, "lost": lost}

    def command(self, text: str) -> str | None:
        """The command in a text; None where it holds none."""
        marked = last_marked(text)
        lines = (text if marked is None else marked).strip().splitlines()
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
        return self._way()

    def random_action(self, rng: random.Random) -> str:
        return str(rng.choice(self.state["admissible_commands"]))

    def describe_task(self, task: TaskSpec) -> str:
        return problem_of(task, self.settings)

    def measure_progress(self) -> float:
        won, lost = self._result()
        return float(won) if won or lost else self._done()

    def give_hint(self) -> str:
        """The next command's verb and nothing else: where to look, not what to say."""
        return f"Think of the verb {self._way().split()[0]!r}." if not self._result()[1] else "Look around."

    def close(self) -> None:
        if self.game is not None:
            self.game.close()

    def _way(self) -> str:
        """A next command on a way to win; `look` where there is none."""
        unread = isinstance(self.settings, Cooking) and self.tracked and not self.has_read
        if unread and READ in self.state["admissible_commands"]:
            return READ  # what is done must be seen to follow from what was read
        ways = self.state["policy_commands"] if self.tracked else self.to_say
        return str(ways[0]) if ways else "look"

    def _result(self) -> tuple[bool, bool]:
        """Whether the game is won, and whether it is lost."""
        won = bool(self.state["won"])
        stuck = self.tracked and not self.state["policy_commands"]
        return won, not won and (bool(self.state["lost"]) or stuck)

    def _done(self) -> float:
        """How much of the way is done, from 0 to 1."""
        if self.points:
            return float(self.state["score"] / self.state["max_score"])
        return max(0.0, 1.0 - len(self.state["policy_commands"]) / self.distance)

    def _potential(self, won: bool, lost: bool) -> float:
        if won or lost:
            return float(won)
        steps = {"sparse": 1, "balanced": 2, "dense": STEPS}[self.rewards]
        return int(self._done() * steps + 1e-9) / steps

    def _with_commands(self, text: str) -> str:
        if not self.admissible:
            return text
        to_read = TO_READ if self.challenge else frozenset()
        listed = [each for each in self.state["admissible_commands"] if changes(each) or each in to_read]
        return f"{text}\nCommands: {', '.join(listed)}"


def last_marked(text: str) -> str | None:
    """The content of the last `<command>...</command>`; in time that grows with the text, whatever stands in it."""
    content = None
    for begin, end in spans(text, _OPEN, _CLOSE):
        content = text[begin + len(_OPEN) : end - len(_CLOSE)]
    return content


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
