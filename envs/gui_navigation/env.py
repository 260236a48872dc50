"""The environment `gymrl/GuiNavigation-v0`."""

from __future__ import annotations

import math
import random
from typing import Any, Literal

from gymrl.envs.environment import Environment
from gymrl.envs.gui_navigation.actions import TOOLS, Press, from_call, from_text
from gymrl.envs.gui_navigation.files import FileGraph
from gymrl.envs.gui_navigation.graph import BACK, HOME, Box, Errand
from gymrl.envs.gui_navigation.trees import Trees
from gymrl.envs.records import Action, Message, Observation, TaskSpec, Tool, ToolCall

INSTRUCTIONS = (
    "You navigate the screens of an app. Each turn, take one action, {how}: click(icon name) or click(x, y) on an "
    "icon, back (up to the screen above), home, or complete. Some icons do nothing. Say complete on the goal screen: "
    "this ends the task, and said anywhere else it fails."
)
VOID = "Write one action on the last line: click(icon name), click(x, y), back, home or complete."
ONE = "Not carried out: one action a turn."


class GuiNavigation(Environment):
    """Find the way through the screens of an app by clicks on icons, and say so on arrival.

    After GUI Exploration Lab (Yan et al. 2025). task: `path` gives the map of all screens and asks for the way between
    two of them, `exploration` names the goal screen alone. observation: `text` lists the icons with the centres of
    their boxes, `image` shows the screen as a PNG, `both` does both (images need the extra `gui`). depth, branching,
    cross, distractors: the levels below the home screen, the most children of a screen, links across the tree, and
    icons a screen that do nothing. ood: trees with other names and another layout, for policies that were trained on
    the usual ones. graph: a JSON file of screens, in place of random trees. show_map: whether `path` gives the map.
    reward: `sparse` pays 1 on arrival, `efficiency` 0.5 and as much again by how short the way was. slack: turns for
    each action of the shortest way (`path`) or for each screen (`exploration`), after which the episode is truncated.
    offer_tools: whether the actions are offered as tools; calls of them are understood either way.
    """

    version = "1"
    runs = "inline"

    def __init__(
        self, task: Literal["path", "exploration"] = "path", observation: Literal["text", "image", "both"] = "text",
        depth: int = 2, branching: int = 3, cross: int = 2, distractors: int = 1, ood: bool = False, graph: str = "",
        show_map: bool = True, reward: Literal["sparse", "efficiency"] = "sparse", slack: float = 2.0,
        offer_tools: bool = False,
    ) -> None:  # fmt: skip
        if not 1 <= slack <= 100:
            raise ValueError(f"slack is 1 to 100, not {slack}")
        self.exploration, self.seen_as = task == "exploration", observation
        self.with_map = show_map and not self.exploration
        self.efficiency, self.slack, self.offered = (
            reward == "efficiency",
            slack,
            TOOLS if offer_tools else (),
        )
        self.success_reward = 0.5 if self.efficiency else 1.0  # type: ignore[misc]
        self.source: Trees | FileGraph
        if graph:
            self.source = FileGraph(graph)
            self.sizes = self.source.sizes
        else:
            self.source = Trees(depth, branching, cross, distractors, ood, from_home=self.exploration)
        self.max_turns = self._budget(self.source.longest, self.source.most)
        self.pictures: dict[str, bytes] = {}
        self.errand: Errand | None = None
        self.last_read: tuple[str, Press | None] | None = None
        if observation != "text":
            from gymrl.envs.gui_navigation.drawing import draw

            self.draw = draw

    def _budget(self, distance: int, screens: int) -> int:
        return math.ceil(self.slack * (max(distance + 1, screens) if self.exploration else distance + 1))

    def reset(self) -> Observation:
        before, self.errand = self.errand, self.source.draw(self.task, self.rng)
        self.graph, self.goal, self.here = self.errand.graph, self.errand.goal, self.errand.start
        if before is None or before.graph is not self.graph:
            self.pictures = {}
        self.distances = self.graph.distances(self.goal)
        self.shortest = self.distances[self.here] + 1  # complete is an action too
        self.max_turns = self._budget(self.shortest - 1, len(self.graph.screens))
        self.turns, self.arrived = 0, False
        if self.exploration:
            asked = f"Find the screen {self.goal!r}, and say complete there."
        else:
            asked = f"Go from the screen {self.here!r} to the screen {self.goal!r}, and say complete there."
        if self.with_map:
            asked += f"\n\nThe map:\n{self.graph.map()}"
        how = "by a tool call" if self.offered else "on the last line"
        message = Message("user", "\n\n".join(filter(None, [asked, self._words()])), self._images())
        return Observation((Message("system", INSTRUCTIONS.format(how=how)), message))

    def step(self, action: Action) -> tuple[Any, ...]:
        self.turns += 1
        press = from_call(action.tool_calls[0]) if action.tool_calls else self._pressed_in(action.text)
        if isinstance(press, Press) and press.kind == "complete":
            self.arrived = self.here == self.goal
            share = min(1.0, self.shortest / self.turns)
            reward = (0.5 + 0.5 * share if self.efficiency else 1.0) if self.arrived else 0.0
            told = f"This is {self.goal!r}: done." if self.arrived else f"This is not {self.goal!r}: failed."
            return self._told(action, told, shown=False), reward, True, False, {"arrived": self.arrived}
        note = self._pressed(press) if isinstance(press, Press) else press or VOID
        return self._told(action, note), 0.0, False

    def _pressed(self, press: Press) -> str:
        """Carry a press out; what is to be said about it, where there is anything."""
        kind, screen = press.kind, self.graph.screens[self.here]
        for name, box in self.graph.buttons.items():
            if press.point is not None and box.holds(*press.point):
                kind = "back" if name == "back" else "home"
        if kind in ("back", "home"):
            to = screen.back if kind == "back" else self.graph.home
            self.here, before = to or self.here, self.here
            return "" if self.here != before else f"{kind.capitalize()} does nothing here."
        icon = next(
            (
                i
                for i in screen.icons
                if (i.box.holds(*press.point) if press.point else _same(i.name, press.icon))
            ),
            None,
        )
        if icon is None:
            return (
                "There is no icon."
                if press.point
                else f"There is no icon {press.icon[:60]!r} on this screen."
            )
        if icon.to in (None, self.here):
            return f"{icon.name} does nothing."
        self.here = icon.to or self.here
        return ""

    # -- what is shown ---------------------------------------------------------------------------------------

    def _words(self) -> str:
        """The screen in words, where it is shown so."""
        return self.describe() if self.seen_as != "image" else ""

    def describe(self) -> str:
        """The present screen in words: its title, and its icons with the centres of their boxes."""
        lines = [
            f"{icon.name} ({icon.box.centre[0]}, {icon.box.centre[1]})"
            for icon in self.graph.screens[self.here].icons
        ]
        return "\n".join([f"Screen: {self.here}", *(lines or ["no icons"])])

    def describe_image(self, image: bytes) -> str:
        """The screen that an image of this episode shows, for the wrapper `image_to_text`."""
        for name, picture in self.pictures.items():
            if picture == image:
                here, self.here = self.here, name
                try:
                    return self.describe()
                finally:
                    self.here = here
        raise ValueError("this image is of no screen of the episode")

    def _images(self) -> tuple[bytes, ...]:
        if self.seen_as == "text":
            return ()
        if self.here not in self.pictures:
            self.pictures[self.here] = self.draw(self.graph, self.here)
        return (self.pictures[self.here],)

    def _told(self, action: Action, note: str, shown: bool = True) -> Observation:
        """The answer to an action: to its calls as tools answer, else as a user message."""
        images = self._images() if shown else ()
        text = "\n".join(filter(None, [note, self._words() if shown else ""])) or "The screen now:"
        if not action.tool_calls:
            return Observation((Message("user", text, images),))
        first, *others = action.tool_calls[:32]
        messages = [Message("tool", text, name=first.name)]
        messages += [Message("tool", ONE, name=call.name) for call in others]
        return Observation((*messages, Message("user", "The screen:", images)) if images else tuple(messages))

    # -- players, wrappers -----------------------------------------------------------------------------------

    def tools(self) -> tuple[Tool, ...]:
        return self.offered

    def recognises(self, action: Action) -> bool:
        return self._pressed_in(action.text) is not None

    def _pressed_in(self, text: str) -> Press | None:
        """What a text presses; `recognises` and `step` ask one after the other."""
        if self.last_read is None or self.last_read[0] is not text:
            self.last_read = text, from_text(text)
        return self.last_read[1]

    def _next(self) -> tuple[str, Box | None]:
        """What the shortest way presses next: an icon's name, `<back>` or `<home>`, and where it is."""
        wanted = self.distances[self.here] - 1
        name = next(name for name, to in self.graph.moves(self.here) if self.distances.get(to) == wanted)
        icons = self.graph.screens[self.here].icons
        return name, next((icon.box for icon in icons if icon.name == name), None)

    def oracle(self) -> str | Action:
        if self.here == self.goal:
            return self._said("complete")
        name, box = self._next()
        if name in (BACK, HOME):
            return self._said(name.strip("<>"))
        if self.seen_as == "text" or box is None:
            return self._said("click", icon=name)
        return self._said("click", x=box.centre[0], y=box.centre[1])

    def random_action(self, rng: random.Random) -> str | Action:
        icons = [icon.name for icon in self.graph.screens[self.here].icons]
        drawn = rng.randrange(len(icons) + 3)
        return (
            self._said("click", icon=icons[drawn])
            if drawn < len(icons)
            else self._said(("back", "home", "complete")[drawn - len(icons)])
        )

    def _said(self, name: str, **arguments: Any) -> str | Action:
        """An action in the form that is asked for."""
        if self.offered:
            return Action("", (ToolCall(name, arguments),))
        return f"{name}({', '.join(map(str, arguments.values()))})" if arguments else name

    def give_hint(self) -> str:
        if self.here == self.goal:
            return "You are there: say complete."
        name, _ = self._next()
        return f"Go {name.strip('<>')}." if name in (BACK, HOME) else f"Click on {name}."

    def measure_progress(self) -> float:
        if self.arrived:
            return 1.0
        return max(0.0, 1 - (self.distances.get(self.here, self.shortest) + 1) / self.shortest)

    def describe_task(self, task: TaskSpec) -> str:
        return self.source.draw(task, task.rng()).text()

    def snapshot(self) -> Any:
        return self.errand, self.here, self.turns, self.arrived

    def restore(self, state: Any) -> None:
        self.errand, self.here, self.turns, self.arrived = state
        assert self.errand is not None
        self.graph, self.goal = self.errand.graph, self.errand.goal
        self.distances = self.graph.distances(self.goal)
        self.shortest = self.distances[self.errand.start] + 1
        self.max_turns = self._budget(self.shortest - 1, len(self.graph.screens))


def _same(name: str, said: str) -> bool:
    return name.casefold() == said.casefold()
