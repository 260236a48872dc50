"""Random trees of screens, with links across them and icons that do nothing."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from gymrl.envs.gui_navigation.graph import BAR, HEIGHT, WIDTH, Box, Errand, Graph, Icon, Screen
from gymrl.envs.gui_navigation.words import INSIDE, OUTSIDE, Vocabulary
from gymrl.envs.gym import EnvironmentFault
from gymrl.envs.records import TaskSpec

MOST_SCREENS = 400
MAX_DRAWS = 1000
ROOT = "Home"


@dataclass(frozen=True)
class Layout:
    """Icons stand in the cells of a grid, somewhere within: `width` x `height` pixels each."""

    columns: int
    rows: int
    width: int
    height: int
    label: int

    def place(self, cell: int, rng: random.Random) -> Box:
        wide, high = WIDTH // self.columns, (HEIGHT - 2 * BAR) // self.rows
        left, top = wide * (cell % self.columns), BAR + high * (cell // self.columns)
        return Box(
            left + rng.randint(4, wide - self.width - 4), top + rng.randint(2, high - self.height - self.label - 2),
            self.width, self.height,
        )  # fmt: skip

    @property
    def cells(self) -> int:
        return self.columns * self.rows


SCATTERED = Layout(4, 6, 48, 48, 16)
"""In distribution: small icons with a label below, as on a phone's first page."""
LISTED = Layout(2, 8, 150, 40, 0)
"""Out of distribution: wide buttons in two columns."""


class Trees:
    """A fresh tree for every task; no task is in two splits.

    depth: levels below the first screen. branching: the most children of a screen (the first one has so many, the
    others so many or one less). cross: links more, from anywhere to anywhere. distractors: icons a screen that do
    nothing. ood: other names, another layout. from_home: errands begin at the first screen.

    Raises ValueError for a tree that there is not.
    """

    def __init__(
        self, depth: int, branching: int, cross: int, distractors: int, ood: bool, from_home: bool
    ) -> None:
        if not 1 <= depth <= 6 or not 2 <= branching <= 8:
            raise ValueError(f"depth is 1 to 6 and branching 2 to 8, not {depth} and {branching}")
        if not 0 <= cross <= 100 or not 0 <= distractors <= 4:
            raise ValueError(f"cross is 0 to 100 and distractors 0 to 4, not {cross} and {distractors}")
        self.most = sum(branching**level for level in range(depth + 1))
        if self.most > MOST_SCREENS:
            raise ValueError(
                f"a tree of depth {depth} and branching {branching} has up to {self.most} screens, more than "
                f"{MOST_SCREENS}: lower one of them"
            )
        self.depth, self.branching, self.cross, self.distractors = depth, branching, cross, distractors
        self.vocabulary: Vocabulary = OUTSIDE if ood else INSIDE
        self.layout = LISTED if ood else SCATTERED
        self.from_home = from_home
        self.longest = depth + 1  # home, and down
        self.sizes = {"train": 2**31, "val": 2**31, "test": 2**31}

    def draw(self, task: TaskSpec, rng: random.Random) -> Errand:
        for _ in range(MAX_DRAWS):
            graph = self.grow(rng)
            names, text = list(graph.screens), graph.text()
            for _ in range(len(names)):  # errands are cheaper than trees
                start = graph.home if self.from_home else rng.choice(names)
                goal = rng.choice([name for name in names if name not in (start, graph.home)])
                if task.owns(f"{start} to {goal}\n{text}"):
                    return Errand(graph, start, goal)
        raise EnvironmentFault(f"no tree for {task.split} in {MAX_DRAWS} draws")

    def grow(self, rng: random.Random) -> Graph:
        """A random tree."""
        children: list[list[int]] = [[]]
        parents: list[int | None] = [None]
        level = [0]
        for _ in range(self.depth):
            grown: list[int] = []
            for node in level:
                for _ in range(
                    self.branching if node == 0 else rng.randint(self.branching - 1, self.branching)
                ):
                    children[node].append(len(parents))
                    grown.append(len(parents))
                    parents.append(node)
                    children.append([])
            level = grown
        count = len(parents)
        links = [list(below) for below in children]
        for _ in range(self.cross):
            node, to = rng.randrange(count), rng.randrange(1, count)
            if to not in (node, parents[node]) and to not in links[node]:
                links[node].append(to)
        names = [ROOT, *self._names(count - 1, rng)]
        screens = {}
        for node, parent in enumerate(parents):
            fitting = links[node][: self.layout.cells - self.distractors]
            targets: list[str | None] = [*(names[to] for to in fitting)]
            targets += [None] * self.distractors
            rng.shuffle(targets)
            words = rng.sample(self.vocabulary.icons, len(targets))
            cells = sorted(rng.sample(range(self.layout.cells), len(targets)))
            icons = tuple(
                Icon(word, self.layout.place(cell, rng), to)
                for word, cell, to in zip(words, cells, targets, strict=True)
            )
            screens[names[node]] = Screen(names[node], icons, None if parent is None else names[parent])
        return Graph(ROOT, screens)

    def _names(self, count: int, rng: random.Random) -> list[str]:
        words = self.vocabulary.screens
        if count <= len(words):
            return rng.sample(words, count)
        return [" ".join(pair) for pair in rng.sample(list(_pairs(words)), count)]


def _pairs(words: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    return ((a, b) for a in words for b in words if a != b)
