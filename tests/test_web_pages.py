"""MiniWoB++ pages in Chromium: the actions, the pages' worlds, their splits and oracle, and the browser's end."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import importlib.util
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gymrl.envs import Action, EnvironmentFault, MissingExtra, ToolCall, make
from gymrl.envs.records import SPLIT_SHARES
from gymrl.envs.web_pages.browser import Keeper, Lease, find_chromium, shared_keeper
from gymrl.envs.web_pages.gate import Gate
from gymrl.envs.web_pages.grammar import HELP, Command, Refusal, is_key, lines_of, parse, tools
from gymrl.envs.web_pages.tasks import DEFAULT, FEW_PAGES, ORACLES, TASKS, page_url, task_names

ENV = "gymrl/MiniWoB-v0"


def missing() -> str:
    """Why no page can be shown here; empty where it can."""
    for package in ("playwright", "miniwob"):
        if importlib.util.find_spec(package) is None:
            return f"needs the extra web ({package} is not installed)"
    try:
        browser = find_chromium()
        done = subprocess.run([browser, "--version"], capture_output=True, text=True, timeout=60)
        return "" if done.returncode == 0 else f"{browser} does not run: {done.stderr[-200:]}"
    except (EnvironmentFault, OSError, subprocess.TimeoutExpired) as error:
        return str(error)


MISSING = missing()
needs_chromium = pytest.mark.skipif(bool(MISSING), reason=MISSING or "it is here")


@pytest.fixture(scope="module", autouse=True)
def close_browsers() -> Iterator[None]:
    yield
    if not MISSING:
        shared_keeper().shut()


def play(
    env: Any, index: int, split: str = "test", turns: int = 16
) -> tuple[float, dict[str, Any], list[str]]:
    """The oracle's episode: its reward, its last info, and all that was said."""
    observation, info = env.reset(options={"task": env.task_spec(index, split)})
    said = [observation.text]
    total, terminated = 0.0, False
    for _ in range(turns):
        action = env.oracle()
        observation, reward, terminated, truncated, info = env.step(action)
        said += [action.text, observation.text]
        total += reward
        if terminated or truncated:
            break
    return total if terminated else -1.0, info, said


# ---- the grammar: no browser ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("click(12)", Command("click", ((12,),))),
        ("click(80, 120)", Command("click", ((80, 120),))),
        ("click(80.4, 119.6)", Command("click", ((80, 120),))),
        ('type(3, "a \\"b\\"")', Command("type", ((3,),), ('a "b"',))),
        ("type('x')", Command("type", (), ("x",))),
        ('press("Control+a")', Command("press", (), ("Control+a",))),
        ('press("+")', Command("press", (), ("+",))),
        ('select(4, "A", "B")', Command("select", ((4,),), ("A", "B"))),
        ("drag(3, 9)", Command("drag", ((3,), (9,)))),
        ("drag(1, 2, 3, 4, 5, 6)", Command("drag", ((1, 2), (3, 4), (5, 6)))),
        ("scroll(3, -100)", Command("scroll", ((3,),), (), -100)),
        ("scroll(100)", Command("scroll", (), (), 100)),
        ("wait()", Command("wait")),
    ],
)
def test_a_line_is_a_command(line: str, command: Command) -> None:
    assert parse(Action(f"I think so.\n{line}")) == [command]
    assert parse(Action(command.line())) == [command]
    assert parse(Action("", (command.call(),))) == [command]


@pytest.mark.parametrize(
    "line",
    ["click()", 'click("12")', "click(1, 2, 3)", "click(-1, 5)", "click(True)", "click(9**9**9)", "click(x=1)",
     "type(3)", 'press("F5")', 'press("Meta+a")', "drag(1)", "drag(1, 2, 3)", "wait(999999)", 'scroll("a")',
     "click(1e999)", "click((" + "(" * 500 + "))", "type(1, __import__('os').getcwd())"],
)  # fmt: skip
def test_what_is_no_command_is_refused_with_the_form(line: str) -> None:
    (refusal,) = parse(Action(line))
    assert isinstance(refusal, Refusal) and HELP[line.partition("(")[0]] in refusal.why


def test_lines_are_taken_from_the_end_or_from_the_last_block() -> None:
    assert lines_of("click(1) would be wrong.\nclick(2)\nclick(3)\n") == ["click(2)", "click(3)"]
    assert lines_of("```\nclick(1)\n```\nNo:\n```python\n# look\nclick(2)\n```\nSo.") == ["click(2)"]
    assert lines_of("Nothing is done here.") == lines_of("") == lines_of("zq " * 350_000) == []
    assert len(parse(Action("click(1)\n" * 100))) == 20
    assert parse(Action("", (ToolCall("fly", {}),)))[0] == Refusal(
        "there is no action 'fly': take click, double_click, hover, type, press, select, drag, scroll, wait"
    )


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200), st.sampled_from(sorted(HELP)))
def test_any_text_is_parsed_or_refused(text: str, name: str) -> None:
    for said in (
        Action(text),
        Action(f"{name}({text})"),
        Action("", (ToolCall(name, {"ref": text, "text": text}),)),
    ):
        assert all(isinstance(each, (Command, Refusal)) for each in parse(said))


def test_tools_name_the_actions_and_keys_are_a_closed_list() -> None:
    assert [tool.name for tool in tools(True)] == list(HELP)
    assert "ref" not in str([tool.schema() for tool in tools(False)])
    assert is_key("Enter") and is_key("Shift+Tab") and is_key("ä") and not is_key("F12") and not is_key("")


def test_the_lists_of_tasks() -> None:
    assert len(TASKS) == len(set(TASKS)) == 128
    assert len(ORACLES) >= 50 and set(TASKS) > ORACLES and set(TASKS) > FEW_PAGES
    assert (
        not set(DEFAULT) & FEW_PAGES and task_names("all") == TASKS and set(task_names("oracle")) == ORACLES
    )
    with pytest.raises(ValueError, match="did you mean 'click-button'"):
        task_names("click-buton")


# ---- pages -----------------------------------------------------------------------------------------------------------


@needs_chromium
@pytest.mark.parametrize(
    ("params", "words"),
    [({"tasks": "click-nothing-at-all"}, "has no task"), ({"observation": "smell"}, "take text, screenshot, both"),
     ({"calls": "loud"}, "take text, tools"), ({"max_turns": 0}, "1 or more"), ({"task": "x"}, "did you mean 'tasks'")],
)  # fmt: skip
def test_wrong_parameters_are_named(params: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(ENV, **params)


@needs_chromium
def test_an_episode_by_hand() -> None:
    env = make(ENV, split="test", tasks="login-user")
    observation, info = env.reset(options={"index": 0})
    assert [message.role for message in observation.messages] == ["system", "user"]
    task, _, page = observation.messages[1].text.partition("\n\n")
    assert task == f"Task: {info['utterance']}" and 'Enter the username "' in task
    assert page.splitlines() == [
        '[1] text "Username"', "[2] textbox", '[3] text "Password"', "[4] password", '[5] button "Login"'
    ]  # fmt: skip
    said, reward, terminated, _, info = env.step("Let me see.")
    assert info["void"] and "No action found" in said.text and not terminated
    said, *_ = env.step('type(9, "x")')
    assert said.text.startswith("Not done: there is no element [9].\n[1] text")
    assert "it is no field to type into" in env.step('type(5, "x")')[0].text
    assert "is outside of the page, which is 160 x 210" in env.step("click(500, 20)")[0].text
    assert "it is no list to select from" in env.step('select(2, "x")')[0].text
    said, *_ = env.step('type(2, "first")\ntype(2, "second")\npress("a")')
    assert (
        '[2] textbox value="seconda" focused' in said.text
    )  # references stay, and a text replaces the last one
    said, reward, terminated, _, info = env.step("click(5)")
    assert (reward, terminated, info["raw_reward"], info["won"]) == (0.0, True, -1.0, False)
    assert said.text == "The task is over: it is failed."
    env.close()


@needs_chromium
def test_the_oracle_wins_in_lines_and_in_calls_by_references_and_by_points() -> None:
    tasks = "click-menu,enter-date,choose-list,use-slider-2,copy-paste,highlight-text,drag-box"
    for params in ({}, {"calls": "tools", "observation": "screenshot"}):
        env = make(ENV, tasks=tasks, **params)
        for index in range(6):
            reward, info, said = play(env, index)
            assert reward == 1.0, (env.world.names[index], info, said)
        env.reset(options={"index": 6})
        with pytest.raises(NotImplementedError, match="drag-box has no oracle"):
            env.oracle()
        env.close()


@needs_chromium
def test_screenshots_are_pictures_of_the_page_and_repeat() -> None:
    env = make(ENV, tasks="click-shape", observation="both")
    first = env.reset(options={"index": 3})[0].messages[-1]
    (image,) = first.images
    assert image.startswith(b"\x89PNG") and [int.from_bytes(image[i : i + 4], "big") for i in (16, 20)] == [
        160,
        210,
    ]
    assert env.world.describe_image(image) in first.text
    env.reset(options={"index": 4})
    assert env.reset(options={"index": 3})[0].messages[-1] == first
    env.close()
    seen = make(ENV, tasks="click-shape", observation="screenshot")
    message = seen.reset(options={"index": 3})[0].messages[-1]
    assert message.images == first.images and "[1]" not in message.text and message.text in first.text
    seen.close()


@needs_chromium
async def test_one_task_is_one_page_at_once_in_any_order_and_process() -> None:
    tasks = "count-shape,choose-date,guess-number,email-inbox"
    names = len(tasks.split(","))

    async def page(env: Any, index: int) -> str:
        observation, _ = await env.areset(env.task_spec(index, "val"))
        result = await env.astep("wait(3000)")
        return f"{observation.text}\n{result.observation.text}"

    envs = [make(ENV, tasks=tasks) for _ in range(4)]
    together = await asyncio.gather(*(page(env, index) for index, env in enumerate(envs)))
    backwards = [await page(envs[0], index) for index in reversed(range(names))][::-1]
    for env in envs:
        await env.aclose()
    script = (
        "import sys; from gymrl.envs import make\n"
        f"env = make({ENV!r}, tasks={tasks!r})\n"
        f"for index in range({names}):\n"
        "    first = env.reset(options={'task': env.task_spec(index, 'val')})[0].text\n"
        "    print(first, env.step('wait(3000)')[0].text, sep='\\n', end='\\0')\n"
    )
    environ = {**os.environ, "PYTHONHASHSEED": "77", "TZ": "Asia/Tokyo"}
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", script],
        env=environ,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert together == backwards == done.stdout.split("\0")[:-1], done.stderr


@needs_chromium
def test_a_task_is_the_same_page_however_it_is_played() -> None:
    alone = make(ENV, tasks="click-link").reset(options={"index": 2})[0].messages[-1].text
    among = make(ENV, tasks="click-button,click-link", max_turns=3, partial=True)
    assert among.reset(options={"index": 5})[0].messages[-1].text == alone


@needs_chromium
def test_no_page_is_in_two_splits() -> None:
    env = make(ENV, tasks="choose-date-easy,enter-text,click-collapsible")  # the tasks with the fewest pages
    found: dict[str, set[str]] = {
        split: {env.reset(options={"task": env.task_spec(index, split)})[0].text for index in range(6)}
        for split in SPLIT_SHARES
    }
    assert all(found.values())
    assert not found["train"] & found["val"] | found["train"] & found["test"] | found["val"] & found["test"]
    env.close()


@needs_chromium
def test_tasks_that_show_the_same_pages_have_them_in_the_same_splits() -> None:
    env = make(ENV, tasks="choose-date,choose-date-easy")  # December is in both
    owners: list[dict[int, bool]] = []
    low, high = SPLIT_SHARES["train"]
    draws = (
        "async ([low, high]) => { const found = []; for (let i = 0; i < 200; i++) {"
        " const { problem, owned } = await gymrl.begin({ seed: `${i}`, low, high, draws: 1 });"
        " found.push([problem, owned]); } return found; }"
    )
    for index in range(2):
        env.reset(options={"task": env.task_spec(index, "train")})
        page, keeper = env.world.page, env.world.keeper
        owners.append(dict(asyncio.run(keeper.call(lambda p=page: p.page.evaluate(draws, [low, high])))))
    one, other = owners
    assert len(one.keys() & other.keys()) >= 5
    assert all(one[problem] == other[problem] for problem in one.keys() & other.keys())
    assert {True, False} == set(one.values()) == set(other.values())
    env.close()


@needs_chromium
def test_the_mouse_is_over_nothing_when_an_episode_begins() -> None:
    env = make(ENV, tasks="click-menu")
    observation, _ = env.reset(options={"index": 0})
    page, keeper = env.world.page, env.world.keeper

    def evaluate(script: str) -> Any:
        return asyncio.run(keeper.call(lambda: page.page.evaluate(script)))

    hovered = "[...document.querySelectorAll(':hover')].map((el) => el.tagName)"
    (item, _), *_ = [each for each in env.world.look.elements if each[1] == "menuitem"]
    env.step(f"hover({item})")
    assert "LI" in evaluate(hovered)
    assert env.reset(options={"index": 0})[0].text == observation.text
    two_frames = "() => new Promise((go) => gymrl.native.frame(() => gymrl.native.frame(go)))"
    evaluate(two_frames)  # by then the browser has told a page of a mouse that rests over it
    assert evaluate(hovered) == []
    env.close()


@needs_chromium
def test_the_clock_stands_still_between_actions() -> None:
    env = make(ENV, tasks="use-autocomplete")  # its list opens after 300 ms of the page's time
    env.reset(options={"index": 0})
    page, keeper = env.world.page, env.world.keeper

    def evaluate(script: str) -> Any:
        return asyncio.run(keeper.call(lambda: page.page.evaluate(script)))

    before = evaluate("[Date.now(), performance.now(), core.EPISODE_MAX_TIME]")
    time.sleep(0.05)
    assert evaluate("[Date.now(), performance.now(), core.EPISODE_MAX_TIME]") == before and before[2] == 1e9
    env.step("wait(1234)")
    assert evaluate("Date.now()") == before[0] + 1234
    for _ in range(
        10
    ):  # a hundred seconds of the page's time cost nothing: MiniWoB++'s own reward decays in ten
        assert not env.step("wait(10000)")[2]
    for _ in range(4):
        _, reward, terminated, _, info = env.step(env.oracle())
        if terminated:
            break
    assert reward == 1.0 and info["raw_reward"] == 1.0
    env.close()


@needs_chromium
def test_part_marks_are_paid_only_where_they_are_asked_for() -> None:
    rewards = []
    for partial in (False, True):
        env = make(ENV, tasks="find-greatest", partial=partial)
        env.reset(options={"index": 0})
        cards = [ref for ref, role in env.world.look.elements if role == "clickable"]
        env.world.rng = random.Random(0)
        for card in cards:  # one that is not the greatest pays 0.1
            env.reset(options={"index": 0})
            _, reward, terminated, _, info = env.step(f"click({card})\nclick({cards[-1] + 1})")
            assert terminated
            if info["raw_reward"] < 1:
                rewards.append((reward, info["raw_reward"]))
                break
        env.close()
    assert rewards == [(0.0, 0.1), (0.1, 0.1)]


@needs_chromium
def test_every_listed_oracle_is_written_and_no_other() -> None:
    env = make(ENV, tasks="click-button")
    env.reset(options={"index": 0})
    env.oracle()
    page, keeper = env.world.page, env.world.keeper
    assert set(asyncio.run(keeper.call(lambda: page.page.evaluate("gymrl.oracle.tasks")))) == ORACLES
    assert all(Path(page_url(task).removeprefix("file://")).is_file() for task in TASKS)
    env.close()


# ---- the browser -----------------------------------------------------------------------------------------------------


@needs_chromium
def test_pages_reach_no_network() -> None:
    hits: list[str] = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hits.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        env = make(ENV, tasks="click-button")
        env.reset(options={"index": 0})
        page, keeper = env.world.page, env.world.keeper
        for host in ("127.0.0.1", "localhost"):
            url = f"http://{host}:{server.server_port}/x"
            script = f"fetch('{url}', {{mode: 'no-cors'}}).then(() => 'reached', () => 'blocked')"
            assert asyncio.run(keeper.call(lambda s=script: page.page.evaluate(s))) == "blocked"
        env.close()
        server.shutdown()
    assert not hits


def alive(group: int) -> bool:
    """Whether a process group has members, those included that nobody has collected."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, 0)
        return True
    return False


def wait_until(holds: Any, seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.02)
    return bool(holds())


@needs_chromium
def test_a_browser_that_dies_makes_the_episode_invalid_and_is_replaced() -> None:
    env = make(ENV, tasks="click-button")
    env.reset(options={"index": 0})
    keeper = shared_keeper()
    assert keeper.chromium is not None
    group, profile = keeper.chromium.group, keeper.chromium.profile
    os.killpg(group, signal.SIGKILL)
    with pytest.raises(EnvironmentFault, match="browser"):
        for _ in range(50):
            env.step("wait(1)")
    assert play(env, 0)[0] == 1.0
    assert keeper.chromium.group != group and keeper.chromium.dead == ""
    assert wait_until(lambda: not alive(group)) and wait_until(lambda: not profile.exists())
    env.close()


@needs_chromium
def test_a_page_that_hangs_is_given_up() -> None:
    env = make(ENV, tasks="click-button")
    env.reset(options={"index": 0})
    page, keeper = env.world.page, env.world.keeper
    with pytest.raises(EnvironmentFault, match="did not answer for 1 s"):
        asyncio.run(keeper.call(lambda: page.page.evaluate("() => { for (;;) {} }"), 1.0))
    assert play(env, 0)[0] == 1.0
    env.close()


@needs_chromium
def test_what_is_opened_is_closed_and_counted() -> None:
    keeper = Keeper(find_chromium())

    async def two() -> int:
        leases = [await keeper.call(keeper.lease, 240), await keeper.call(keeper.lease, 240)]
        group = keeper.chromium.group if keeper.chromium else 0
        assert alive(group)
        for lease in (*leases, leases[0]):
            await keeper.call(lease.give_back)
        return group

    group = asyncio.run(two())
    keeper.shut()
    assert keeper.counts == {"browsers opened": 1, "browsers closed": 1, "pages opened": 2, "pages closed": 2}
    assert wait_until(lambda: not alive(group))


@needs_chromium
async def test_no_input_is_lost_while_other_pages_open() -> None:
    env = make(ENV, tasks="click-button")
    await env.areset(env.task_spec(0))
    page, keeper = env.world.page, env.world.keeper
    count = "() => { window.moves = []; addEventListener('mousemove', (e) => moves.push(e.clientX), true); }"
    await keeper.call(lambda: page.page.evaluate(count))
    leases: list[Lease] = []
    wanted = list(range(10, 22))
    for x in wanted:
        lease, _ = await asyncio.gather(keeper.call(keeper.lease, 240), env.astep(f"hover({x}, 100)"))
        leases.append(lease)
    assert await keeper.call(lambda: page.page.evaluate("moves")) == wanted
    for lease in leases:
        await keeper.call(lease.give_back)
    await env.aclose()


@needs_chromium
async def test_a_page_that_opens_for_nobody_is_closed() -> None:
    keeper = Keeper(find_chromium())
    first = await keeper.call(keeper.lease, 240)
    context = keeper.chromium.context if keeper.chromium else None
    assert context is not None
    for _ in range(3):
        waiting = asyncio.create_task(keeper.call(keeper.lease))
        loop, seen = asyncio.get_running_loop(), asyncio.Event()
        context.once("page", lambda _, seen=seen, loop=loop: loop.call_soon_threadsafe(seen.set))
        # It is cancelled on the keeper's own loop, in the middle of what opens it.
        context.once(
            "page", lambda _: [task.cancel() for task in asyncio.all_tasks() if named(task, "_guarded")]
        )
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.wait_for(seen.wait(), 60)
    await asyncio.to_thread(wait_until, lambda: len(context.pages) == 2)
    assert len(context.pages) == 2 and keeper.leases == 1  # the root and the first
    await keeper.call(first.give_back)
    await asyncio.to_thread(keeper.shut)
    assert keeper.counts == {"browsers opened": 1, "browsers closed": 1, "pages opened": 1, "pages closed": 1}


@needs_chromium
async def test_after_resets_that_were_cancelled_an_environment_has_one_page() -> None:
    keeper, env = shared_keeper(), make(ENV, tasks="click-button")
    first = (await env.areset(env.task_spec(0)))[0].text
    before = keeper.leases
    for turns in (0, 1, 3, 10, 30, 100):  # of this loop, while the keeper's goes on as far as it happens to
        resetting = asyncio.create_task(env.areset(env.task_spec(1)))
        for _ in range(turns):
            await asyncio.sleep(0)
        resetting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await resetting
    assert (await env.areset(env.task_spec(0)))[0].text == first
    assert await asyncio.to_thread(wait_until, lambda: keeper.leases == before)
    await env.aclose()
    assert keeper.leases == before - 1


def named(task: asyncio.Task[Any], name: str) -> bool:
    return getattr(task.get_coro(), "__name__", "") == name


async def test_openings_have_the_gate_for_themselves_and_inputs_share_it() -> None:
    gate = Gate()
    inside: list[str] = []
    most = {"input": 0, "opening": 0}

    async def enter(kind: str) -> None:
        async with getattr(gate, kind)():
            inside.append(kind)
            try:
                assert "opening" not in inside or len(inside) == 1
                most[kind] = max(most[kind], len(inside))
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            finally:
                inside.remove(kind)

    rng = random.Random(0)
    for _ in range(30):
        tasks = [asyncio.create_task(enter(rng.choice(("input", "opening")))) for _ in range(12)]
        for _ in range(rng.randrange(4)):
            await asyncio.sleep(0)
        for task in rng.sample(tasks, 3):
            task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert not [error for error in done if isinstance(error, AssertionError)]
    assert most["opening"] == 1 and most["input"] > 1
    async with asyncio.timeout(5), gate.opening():  # nobody who was cancelled holds it
        pass


@needs_chromium
def test_a_killed_program_leaves_no_browser() -> None:
    script = (
        "import os, signal; from gymrl.envs import make\n"
        f"env = make({ENV!r}, tasks='click-button'); env.reset(options={{'index': 0}})\n"
        "chromium = env.world.keeper.chromium\n"
        "print(chromium.group, chromium.profile, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    group, profile = done.stdout.split()
    assert wait_until(lambda: not alive(int(group)) and not Path(profile).exists())


def test_a_browser_that_is_not_there_names_the_mend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match=r"no browser at '/no/such/chrome'.*apt-get install chromium"):
        find_chromium("/no/such/chrome")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("gymrl.envs.web_pages.browser.DEBIAN", ("chromium-is-not-here",))
    monkeypatch.delenv("GYMRL_CHROMIUM", raising=False)
    with pytest.raises(EnvironmentFault, match="web pages need Chromium, and there is none"):
        find_chromium()
    monkeypatch.setenv("GYMRL_CHROMIUM", sys.executable)
    assert find_chromium() == sys.executable


def test_a_missing_package_names_the_extra() -> None:
    script = (
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'playwright' else find(name, *rest)\n"
        "from gymrl.envs import MissingExtra, make\n"
        f"try:\n    make({ENV!r})\nexcept MissingExtra as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert 'pip install "gymrl[web]"' in done.stdout, done.stderr
    assert issubclass(MissingExtra, ImportError)
