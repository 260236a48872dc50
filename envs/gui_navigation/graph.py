"""A graph of screens: icons lead to screens, back leads up, home leads home. Frozen data, and walks on it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

WIDTH, HEIGHT, BAR = 360, 640, 48
"""Pixels of a screen, and of its title bar and its navigation bar."""


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in pixels, from the screen's upper left corner."""

    left: int
    top: int
    width: int
    height: int

    @property
    def centre(self) -> tuple[int, int]:
        return self.left + self.width // 2, self.top + self.height // 2

    def holds(self, x: float, y: float) -> bool:
        return self.left <= x < self.left + self.width and self.top <= y < self.top + self.height


@dataclass(frozen=True, slots=True)
class Icon:
    """`to` is the screen that it opens; None where it does nothing."""

    name: str
    box: Box
    to: str | None = None


@dataclass(frozen=True, slots=True)
class Screen:
    """`back` is the screen that the back button opens; None where it does nothing."""

    name: str
    icons: tuple[Icon, ...]
    back: str | None = None


@dataclass(frozen=True)
class Graph:
    """Screens by name. Every icon and every back leads to one of them, or nowhere."""

    home: str
    screens: Mapping[str, Screen]
    width: int = WIDTH
    height: int = HEIGHT

    @property
    def buttons(self) -> dict[str, Box]:
        """The boxes of back and home, in the bar at the bottom of every screen."""
        top, half = self.height - BAR, self.width // 2
        return {"back": Box(0, top, half, BAR), "home": Box(half, top, self.width - half, BAR)}

    def moves(self, name: str) -> Iterator[tuple[str, str]]:
        """(what is pressed, the screen it opens), for all that opens another screen: an icon's name, or `<back>`,
        `<home>`."""
        screen = self.screens[name]
        for icon in screen.icons:
            if icon.to is not None and icon.to != name:
                yield icon.name, icon.to
        if screen.back is not None and screen.back != name:
            yield BACK, screen.back
        if self.home != name:
            yield HOME, self.home

    def distances(self, goal: str) -> dict[str, int]:
        """How many moves each screen is away from the goal; screens that cannot reach it are left out."""
        before: dict[str, list[str]] = {name: [] for name in self.screens}
        for name in self.screens:
            for _, to in self.moves(name):
                before[to].append(name)
        found, waiting = {goal: 0}, deque([goal])
        while waiting:
            name = waiting.popleft()
            for earlier in before[name]:
                if earlier not in found:
                    found[earlier] = found[name] + 1
                    waiting.append(earlier)
        return found

    def text(self) -> str:
        """All that the graph is, as a text that is the same for the same graph."""
        lines = [f"{self.width} x {self.height}, home {self.home}"]
        for name in sorted(self.screens):
            screen = self.screens[name]
            icons = [
                f"{i.name} {i.box.left} {i.box.top} {i.box.width} {i.box.height} -> {i.to}"
                for i in screen.icons
            ]
            lines.append(f"{name} (back {screen.back}): {'; '.join(icons)}")
        return "\n".join(lines)

    def map(self) -> str:
        """The links in words, one screen a line, as an agent may be told them."""
        lines = []
        for name, screen in self.screens.items():
            links = [f"{icon.name} -> {icon.to}" for icon in screen.icons if icon.to is not None]
            links += [f"back -> {screen.back}"] if screen.back else []
            lines.append(f"{name}: {', '.join(links) or 'no links'}")
        return "\n".join(lines)


BACK, HOME = "<back>", "<home>"


@dataclass(frozen=True)
class Errand:
    """What one task asks for: to get from one screen to another."""

    graph: Graph
    start: str
    goal: str

    def text(self) -> str:
        return f"{self.start} to {self.goal}\n{self.graph.text()}"
