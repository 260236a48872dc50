"""GUI navigation: what is shown, what presses do, which ends are paid, graphs of files."""

from __future__ import annotations

import hashlib
import io
import json
import random
import subprocess
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gymrl.agents.players import Job, ScriptedAgent
from gymrl.agents.rollout import rollout
from gymrl.envs import Action, ToolCall, make
from gymrl.envs.check import Settings, check
from gymrl.envs.gui_navigation.actions import Press, from_call, from_text
from gymrl.envs.gui_navigation.trees import Trees
from gymrl.envs.gui_navigation.words import INSIDE, OUTSIDE
from gymrl.envs.workers import EnvPool

ID = "gymrl/GuiNavigation-v0"
GRAPH = {
    "home": "Start",
    "screens": {
        "Start": {
            "icons": [{"name": "gear", "to": "Settings"}, {"name": "stone"}, {"name": "mail", "to": "Inbox"}]
        },
        "Settings": {"back": "Start", "icons": [{"name": "eye", "to": "Display", "box": [10, 60, 40, 30]}]},
        "Display": {"back": "Settings"},
        "Inbox": {"back": "Start", "icons": [{"name": "gear", "to": "Display"}]},
        "Island": {},
    },
}


def written(tmp_path, data):
    path = tmp_path / "graph.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return str(path)


def at(env, start, goal):
    """The environment, begun on a way of its file's graph."""
    for split, pairs in env.world.source.by_split.items():
        if (start, goal) in pairs:
            env.reset(options={"task": env.task_spec(pairs.index((start, goal)), split)})
            return env
    raise AssertionError((start, goal))


@pytest.mark.parametrize(
    ("text", "press"),
    [
        ("click(gear)", Press("click", "gear")), ("click gear", Press("click", "gear")),
        ("Click('Gear Box').", Press("click", "Gear Box")), ("click(icon=gear)", Press("click", "gear")),
        ("I see.\nclick(12, 300)\n", Press("click", point=(12.0, 300.0))),
        ("click(x=1, y=2.5)", Press("click", point=(1.0, 2.5))),
        ("back", Press("back")), ("HOME()", Press("home")), ("`complete`", Press("complete")),
        ("<action>back</action> is what I do", Press("back")), ("complete\nback", Press("back")),
        ("home sweet home", None), ("", None), ("click", None), ("click()", None), ("<action></action>", None),
        ("complete " * 200, None), ("\udcff", None), ("<action>" * 100_000, None), ("</action>" * 100_000, None),
        ("click(" * 10_000, None),
    ],
)  # fmt: skip
def test_an_action_is_read_from_the_last_line(text, press):
    assert from_text(text) == press


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({"icon": "gear"}, Press("click", "gear")), ({"x": 3, "y": 4.5}, Press("click", point=(3.0, 4.5))),
        ({}, "name of an icon"), ({"x": 3}, "two numbers"), ({"x": True, "y": 1}, "two numbers"),
        ({"x": float("nan"), "y": 1}, "two numbers"), ({"x": 10**400, "y": 1}, "two numbers"),
        ({"icon": 7}, "two numbers"),
    ],
)  # fmt: skip
def test_an_action_is_read_from_a_call(arguments, found):
    read = from_call(ToolCall("click", arguments))
    assert read == found if isinstance(found, Press) else found in read


def test_presses_move_as_the_graph_says(tmp_path):
    env = at(make(ID, graph=written(tmp_path, GRAPH), slack=100.0), "Start", "Display")
    world = env.world
    for said, here, word in (
        ("click(stone)", "Start", "stone does nothing"), ("back", "Start", "Back does nothing"),
        ("click(nothing)", "Start", "no icon 'nothing'"), ("click(1, 1)", "Start", "There is no icon."),
        ("click(GEAR)", "Settings", "Screen: Settings"), ("back", "Start", "Screen: Start"),
    ):  # fmt: skip
        shown, reward, terminated, truncated, info = env.step(said)
        assert (world.here, reward, terminated, truncated) == (here, 0.0, False, False) and word in shown.text
        assert not info["void"]
    env.step("click(gear)")
    env.step("click(49, 89)")  # the box's last pixel
    assert world.here == "Display"
    env.step("click(180, 620)")  # the drawn home button
    assert world.here == "Start"
    env.step("click(mail)")
    env.step("click(10, 639)")
    assert world.here == "Start" and env.step("wait")[4]["void"]
    env.close()


def test_complete_counts_after_arrival_alone(tmp_path):
    path = written(tmp_path, GRAPH)
    for way, reward in ((["click(mail)", "click(gear)"], 1.0), (["click(mail)"], 0.0), ([], 0.0)):
        env = at(make(ID, graph=path), "Start", "Display")
        for said in way:
            assert env.step(said)[1:4] == (0.0, False, False)
        shown, paid, terminated, truncated, info = env.step("complete")
        assert (paid, terminated, truncated, info["arrived"]) == (reward, True, False, reward > 0), shown.text
        env.close()


def test_a_detour_costs_efficiency_and_too_long_a_way_is_cut(tmp_path):
    path = written(tmp_path, GRAPH)
    env = make(ID, graph=path, reward="efficiency")
    for detour, reward in ((0, 1.0), (3, 0.75)):
        at(env, "Start", "Display")
        for said in ["back"] * detour + ["click(gear)", "click(eye)"]:
            assert env.step(said)[3] is False
        assert env.step("complete")[1] == reward and env.world.success_reward == 0.5
    at(env, "Start", "Display")
    ends = [env.step("back")[2:4] for _ in range(6)]
    assert ends == [(False, False)] * 5 + [(False, True)]
    env.close()


def test_calls_are_answered_as_tools_answer(tmp_path):
    env = at(
        make(ID, graph=written(tmp_path, GRAPH), offer_tools=True, observation="both"), "Start", "Display"
    )
    assert [tool.name for tool in env.world.tools()] == ["click", "back", "home", "complete"]
    action = env.oracle()
    assert action == Action(
        "",
        (
            ToolCall(
                "click", {"x": action.tool_calls[0].arguments["x"], "y": action.tool_calls[0].arguments["y"]}
            ),
        ),
    )
    shown, *_ = env.step(Action("", (ToolCall("click", {"icon": "mail"}), ToolCall("home"))))
    assert [m.role for m in shown.messages] == ["tool", "tool", "user"] and env.world.here == "Inbox"
    assert "Inbox" in shown.messages[0].text and "one action a turn" in shown.messages[1].text
    assert len(shown.messages[2].images) == 1
    shown, *_ = env.step(Action("", (ToolCall("swipe", {"far": 1}),)))
    assert "no tool 'swipe'" in shown.text and env.world.here == "Inbox"
    env.close()


def test_garbage_is_answered():
    env = make(ID, slack=100.0)
    env.reset(options={"index": 0})
    here = env.world.here
    for text in (
        "",
        "x" * 1_000_000,
        "\udcff\udc80",
        "\x00",
        "click(" + "9" * 1_000_000 + ", 1)",
        "click(\udcff)",
    ):
        shown, reward, terminated, *_ = env.step(text)
        assert (reward, terminated, env.world.here) == (0.0, False, here) and shown.text
        assert env.step(Action("", (ToolCall("click", {"icon": text, "x": text}),)))[1] == 0.0
    env.close()


def test_pictures_show_the_screen_and_are_the_same_everywhere():
    image = pytest.importorskip("PIL.Image")
    env = make(ID, observation="image", ood=True)
    shown, _ = env.reset(options={"index": 5})
    (png,) = shown.messages[-1].images
    picture = image.open(io.BytesIO(png))
    assert picture.size == (360, 640) and picture.mode == "RGB" and "Screen:" not in shown.text
    paper = picture.getpixel((0, 100))
    for icon in env.world.graph.screens[env.world.here].icons:
        inside = picture.crop(
            (icon.box.left, icon.box.top, icon.box.left + icon.box.width, icon.box.top + icon.box.height)
        )
        assert (
            sum(count for count, pixel in inside.getcolors(10_000) if pixel != paper)
            > 0.8 * icon.box.width * icon.box.height
        )
    assert env.oracle().text in ("back", "home", "complete") or "," in env.oracle().text
    code = (
        "import sys, hashlib; from gymrl.envs import make; e = make(sys.argv[1], observation='image', ood=True);"
        "print(hashlib.sha256(e.reset(options={'index': 5})[0].messages[-1].images[0]).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code, ID], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == hashlib.sha256(png).hexdigest()
    assert env.world.describe_image(png) == env.world.describe()
    env.close()


def test_names_that_the_font_does_not_know_are_drawn(tmp_path):
    pytest.importorskip("PIL")
    data = {
        "home": "你好",
        "size": [200, 200],
        "screens": {"你好": {"icons": [{"name": "é∂ƒ" * 20, "to": "b"}]}, "b": {}},
    }
    env = make(ID, graph=written(tmp_path, data), observation="both")
    assert env.reset(options={"index": 0})[0].messages[-1].images[0].startswith(b"\x89PNG")
    env.close()


def test_without_pillow_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.delitem(sys.modules, "gymrl.envs.gui_navigation.drawing", raising=False)
    with pytest.raises(ImportError, match=r"gymrl\[gui\]"):
        make(ID, observation="image")
    make(ID).close()


@given(
    depth=st.integers(1, 4), branching=st.integers(2, 4), cross=st.integers(0, 30), distractors=st.integers(0, 4),
    ood=st.booleans(), seed=st.integers(0, 10**6),
)  # fmt: skip
@example(depth=1, branching=8, cross=100, distractors=4, ood=True, seed=1)
@example(depth=6, branching=2, cross=100, distractors=4, ood=True, seed=1)
@settings(max_examples=60, deadline=None)
def test_every_tree_can_be_walked(depth, branching, cross, distractors, ood, seed):
    trees = Trees(depth, branching, cross, distractors, ood, from_home=False)
    graph = trees.grow(random.Random(seed))
    words, layout = (OUTSIDE if ood else INSIDE), trees.layout
    assert len(graph.screens) <= trees.most
    for name, screen in graph.screens.items():
        assert max(graph.distances(name).values()) <= trees.longest and len(graph.distances(name)) == len(
            graph.screens
        )
        assert len({icon.name for icon in screen.icons}) == len(screen.icons) <= layout.cells
        for icon in screen.icons:
            assert icon.name in words.icons and (icon.to is None or icon.to in graph.screens)
            assert icon.box.left >= 0 and icon.box.left + icon.box.width <= graph.width
            assert icon.box.top >= 48 and icon.box.top + icon.box.height + layout.label <= graph.height - 48
            others = [other for other in screen.icons if other is not icon]
            assert not any(other.box.holds(*icon.box.centre) for other in others)


def test_the_vocabularies_share_no_word():
    assert not set(INSIDE.screens + INSIDE.icons) & set(OUTSIDE.screens + OUTSIDE.icons)
    assert (
        len(set(INSIDE.screens)) == len(INSIDE.screens)
        and len(set(OUTSIDE.icons)) == len(OUTSIDE.icons) >= 20
    )


@pytest.mark.parametrize(
    "params",
    [{}, {"ood": True, "depth": 3}, {"task": "exploration", "observation": "both"},
     {"reward": "efficiency", "offer_tools": True}],
    ids=str,
)  # fmt: skip
async def test_the_oracle_takes_the_shortest_way_and_nobody_else_arrives(params):
    pool = EnvPool(ID, params)
    jobs = [Job(pool.task("test", index), index) for index in range(12)]
    for episode in await rollout(jobs, ScriptedAgent("oracle"), pool):
        assert episode.success and episode.reward == 1.0
    assert sum(episode.success for episode in await rollout(jobs, ScriptedAgent("random"), pool)) <= 3
    assert not any(episode.success for episode in await rollout(jobs, ScriptedAgent("null"), pool))
    await pool.aclose()


def test_hints_progress_and_branches():
    env = make(ID, wrappers=["hints"])
    env.reset(options={"index": 2})
    env.close()
    env = make(ID)
    env.reset(options={"index": 4})
    world, seen = env.world, [env.world.measure_progress()]
    while True:
        hint, said = world.give_hint(), env.oracle().text
        assert said in ("complete",) or said.strip(")").split("(")[-1] in hint
        state = world.snapshot()
        ended = env.step(said)[2]
        seen.append(world.measure_progress())
        if ended:
            break
    assert seen == sorted(set(seen)) and (seen[0], seen[-1]) == (0.0, 1.0)
    world.restore(state)
    assert world.here == world.goal and not world.arrived and world.oracle() == "complete"
    env.close()


def test_a_file_is_one_graph_for_all_tasks_and_a_pair_is_in_one_split(tmp_path):
    env = make(ID, graph=written(tmp_path, GRAPH))
    by_split = env.world.source.by_split
    pairs = [pair for found in by_split.values() for pair in found]
    assert len(pairs) == len(set(pairs)) == 16 and env.world.sizes == {k: len(v) for k, v in by_split.items()}
    # home is reached from everywhere, the island from nowhere
    assert {goal for _, goal in pairs} == {"Start", "Settings", "Display", "Inbox"}
    for split, size in env.world.sizes.items():
        for index in range(size):
            env.reset(options={"task": env.task_spec(index, split)})
            ended, reward = False, 0.0
            while not ended:
                _, reward, ended, *_ = env.step(env.oracle())
            assert reward == 1.0
    env.close()


SCREENS = GRAPH["screens"]


def changed(screen, **fields):
    return {**GRAPH, "screens": {**SCREENS, screen: {**SCREENS[screen], **fields}}}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ('{"home": "a",\n "screens": {,}}', "line 2: not JSON"),
        ([], "take an object"),
        ({"home": "a"}, "'screens' is missing"),
        ({"home": "a", "screens": {"a": {}}}, "two screens or more"),
        ({**GRAPH, "home": "Strat"}, "graph.json, home: there is no screen 'Strat': did you mean 'Start'"),
        ({**GRAPH, "sise": [1, 2]}, "unknown field 'sise': did you mean 'size'"),
        ({**GRAPH, "size": [1, 2]}, "size: a screen is"),
        (changed("Inbox", icons=[{"name": "a", "to": "Inbx"}]), r"screens.Inbox.icons\[0\].to.*'Inbox'"),
        (changed("Inbox", back=7), "screens.Inbox.back: there is no screen 7"),
        (changed("Inbox", icons=[{"to": "Start"}]), r"icons\[0\]: 'name' is missing"),
        (changed("Inbox", icons=[{"name": "a"}, {"name": "A"}]), "a second icon named 'A'"),
        (changed("Inbox", icons=[{"name": " a"}]), "printable text"),
        (changed("Inbox", icons=[{"name": "a", "box": [1, 2, 3]}]), "4 whole numbers"),
        (changed("Inbox", icons=[{"name": "a", "box": [0, 0, 9, 9]}]), "between the bars"),
        (changed("Inbox", icons=[{"name": "a", "box": [355, 60, 9, 9]}]), "within 0 and 360"),
        (
            changed(
                "Inbox", icons=[{"name": "a", "box": [0, 60, 9, 9]}, {"name": "b", "box": [5, 65, 9, 9]}]
            ),
            "lies over",
        ),
        (
            changed("Inbox", icons=[{"name": "a", "box": [0, 60, 9, 9]}, {"name": "b"}]),
            r"icons\[1\]: it has no box",
        ),
        (changed("Inbox", icons=[{"name": f"i{i}"} for i in range(2000)]), "do not fit"),
        (
            {"home": "a", "screens": {"a": {}, "b": {"icons": [{"name": "x"}]}}, "size": "big"},
            "2 whole numbers",
        ),
    ],
)
def test_a_broken_file_names_the_place_and_the_mend(data, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        make(ID, graph=written(tmp_path, data))


def test_wrong_parameters_name_the_mend():
    for params, words in (
        ({"depth": 0}, "depth is 1 to 6"), ({"depth": 5, "branching": 8}, "lower one of them"),
        ({"slack": 0.5}, "slack is 1"),
        ({"task": "walk"}, "'path', 'exploration'"), ({"graph": "nowhere"}, "no such file"),
        ({"cross": -1}, "cross is 0"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            make(ID, **params)


def test_it_keeps_the_laws():
    quick = Settings(seconds=0.5, tasks=16, garbage=100, split_tasks=60, resets=40)
    report = check(ID, settings=quick)
    assert report.sound, [verdict for verdict in report.verdicts if verdict.faults]
