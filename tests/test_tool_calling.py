"""Tool calling: the conversations, how calls are read and made, and that the verdicts are BFCL's own."""

from __future__ import annotations

import ast
import decimal
import gc
import importlib
import importlib.metadata
import importlib.util
import json
import random
import uuid
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gymrl.agents.players import Job, ScriptedAgent
from gymrl.agents.rollout import rollout
from gymrl.envs import Action, MissingExtra, ToolCall, make
from gymrl.envs.check import Settings, check
from gymrl.envs.registry import EnvEntry
from gymrl.envs.workers import EnvPool

pytest.importorskip("bfcl_eval")
import mpmath
from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_utils
from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import multi_turn_checker

from gymrl.envs.tool_calling.backends import Backends, steady
from gymrl.envs.tool_calling.calls import Call, Unreadable, read_calls
from gymrl.envs.tool_calling.feedback import KINDS
from gymrl.envs.tool_calling.scenarios import CATEGORIES, DOMAIN, scenarios, split_numbers
from gymrl.envs.tool_calling.tools import offered

ID = "gymrl/ToolCalling-v0"
WHERE = {number: (split, place) for split, row in split_numbers().items() for place, number in enumerate(row)}
FILES, TRAVEL = 0, 150
"""A scenario with files and tweets, and one of the travel system."""


def started(number=FILES, category="base", **params):
    """An environment in which the conversation of that number has begun."""
    env = make(ID, category=category, **params)
    split, place = WHERE[number]
    env.reset(options={"task": env.task_spec(place, split)})
    assert env.world.play.scenario is scenarios(category)[number]
    return env


def call(env, name, **arguments):
    return env.step(Action("", (ToolCall(name, arguments, "c"),)))


def result(env, name, **arguments):
    """What a call comes to, as data where it is JSON."""
    text = call(env, name, **arguments)[0].messages[0].text
    try:
        return json.loads(text)
    except ValueError:
        return text


# -- the conversations ---------------------------------------------------------------------------------------


def test_there_are_800_and_a_scenario_has_one_split_in_all_categories():
    assert {category: len(scenarios(category)) for category in CATEGORIES} == dict.fromkeys(CATEGORIES, 200)
    numbers = split_numbers()
    assert {split: len(row) for split, row in numbers.items()} == {"train": 140, "val": 20, "test": 40}
    assert sorted(sum(numbers.values(), ())) == list(range(200))
    for row in numbers.values():
        assert {sum(number // DOMAIN == d for number in row) for d in range(4)} == {len(row) // 4}
    env = make(ID)
    assert env.world.sizes == {"train": 560, "val": 80, "test": 160}
    seen = {}
    for split, size in env.world.sizes.items():
        for index in range(size):
            scenario = env.world.scenario(env.task_spec(index, split))
            assert WHERE[scenario.number][0] == split
            keys = [json.dumps(scenario.config, sort_keys=True)]
            keys += [turn for turn in scenario.turns if not turn.startswith("I have updated some more")]
            assert all(seen.setdefault(key, split) == split for key in keys)
    env.close()


def test_every_right_call_is_of_a_tool_on_offer_and_every_schema_is_one():
    for category in CATEGORIES:
        for scenario in scenarios(category):
            assert len(scenario.turns) == len(scenario.truth) and all(scenario.turns) and any(scenario.truth)
            for turn, sources in enumerate(scenario.truth):
                names = {tool.name for tool in offered(scenario, turn)}
                few = {tool.name for tool in offered(scenario, turn, "short", 2)}
                used = {read_calls(source)[0].name for source in sources}
                assert used <= few <= names
    kinds = set()

    def walk(schema):
        kinds.add(schema["type"])
        for inner in (
            *schema.get("properties", {}).values(),
            *([schema["items"]] if "items" in schema else []),
        ):
            walk(inner)

    for number in range(0, 200, 10):
        for tool in offered(scenarios("base")[number], 0):
            assert tool.description.startswith("This tool belongs") and tool.parameters["type"] == "object"
            walk(tool.parameters)
        assert not any(
            "belongs to" in tool.description for tool in offered(scenarios("base")[number], 0, "short")
        )
    assert kinds <= set(KINDS)


async def test_the_oracle_wins_all_800_and_nobody_else_any():
    pool = EnvPool(ID, {"rewards": "per_turn"})
    jobs = [Job(pool.task(split, i), i) for split, n in pool.template.world.sizes.items() for i in range(n)]
    assert len(jobs) == 800
    for name, played in (("oracle", jobs), ("random", jobs[::8]), ("null", jobs[::8])):
        episodes = await rollout(played, ScriptedAgent(name), pool)
        assert all(episode.valid and episode.success == (name == "oracle") for episode in episodes), name
    await pool.aclose()


# -- the verdicts --------------------------------------------------------------------------------------------

EXTRA = (
    ["mkdir(dir_name='zq')", "rm(file_name='zq')", "cd(folder='..')", "ls()"],
    ["fillFuelTank(fuelAmount=1.5)", "get_current_speed()", "releaseBrakePedal()"],
    ["fund_account(amount=7)", "get_current_time()", "trading_logout()"],
    ["set_budget_limit(access_token='a', budget_limit=1)", "list_all_airports()", "get_all_credit_cards()"],
)
"""Calls beside the point, some of them harmful, that every scenario of a domain knows."""


def other(value):
    if isinstance(value, bool):
        return not value
    return (
        value + (1 if isinstance(value, (int, float)) else "x")
        if isinstance(value, (int, float, str))
        else "x"
    )


def mutated(scenario, kind, rng):
    """The right calls of each request as steps of calls, with one fault."""
    requests = [[list(sources)] if sources else [] for sources in scenario.truth]
    if kind == "empty":
        return [[] for _ in requests]
    place = rng.choice([number for number, sources in enumerate(scenario.truth) if sources])
    sources = requests[place][0]
    which = rng.randrange(len(sources))
    if kind == "dropped":
        del sources[which]
    elif kind == "changed":
        node = ast.parse(sources[which], mode="eval").body
        if node.keywords:
            keyword = rng.choice(node.keywords)
            keyword.value = ast.Constant(other(ast.literal_eval(keyword.value)))
        elif node.args:
            node.args[0] = ast.Constant(other(ast.literal_eval(node.args[0])))
        sources[which] = ast.unparse(node)
    elif kind == "extra":
        sources.insert(which, rng.choice(EXTRA[scenario.number // DOMAIN]))
    elif kind == "shuffled":
        rng.shuffle(sources)
    return requests


def of_bfcl(scenario, requests):
    name = f"m{uuid.uuid4().hex}"
    entry = {
        "initial_config": scenario.config,
        "involved_classes": list(scenario.classes),
        "id": scenario.name,
    }
    try:
        truth = [list(sources) for sources in scenario.truth]
        return multi_turn_checker(requests, truth, entry, "multi_turn", name)["valid"]
    finally:
        for key in [key for key in vars(multi_turn_utils) if key.startswith(name)]:
            del vars(multi_turn_utils)[key]


def of_ours(env, scenario, requests):
    split, place = WHERE[scenario.number]
    env.reset(options={"task": env.task_spec(place, split)})
    for steps in requests:
        for sources in steps:
            if sources:
                assert not env.step(f"[{', '.join(sources)}]")[2]
        _, reward, terminated, *_ = env.step("Done.")
        if terminated:
            return reward == 1.0
    raise AssertionError("the episode did not end")


@pytest.mark.parametrize("category", CATEGORIES)
def test_verdicts_are_those_of_the_published_checker(category):
    env, seen = make(ID, category=category), []
    for scenario in scenarios(category)[::16]:
        rng = random.Random(scenario.name)
        for kind in ("right", "empty", "dropped", "changed", "extra", "shuffled"):
            requests = mutated(scenario, kind, rng)
            theirs, ours = of_bfcl(scenario, requests), of_ours(env, scenario, requests)
            assert theirs == ours, (scenario.name, kind, requests)
            seen.append((kind, ours))
    assert {
        ("right", True),
        ("empty", False),
        ("dropped", False),
        ("changed", False),
        ("extra", True),
    } <= set(seen)
    assert ("extra", False) in seen and ("right", False) not in seen
    env.close()


# -- reading calls -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("[cd(folder='a'), ls()]", (Call("cd", (), {"folder": "a"}), Call("ls"))),
        ("```python\n[ls(a=True)]\n```", (Call("ls", (), {"a": True}),)),
        ("sort('f.txt')", (Call("sort", ("f.txt",)),)),
        ("[f(x=[1, {'a': -2.5}], y=(1, None))]", (Call("f", (), {"x": [1, {"a": -2.5}], "y": (1, None)}),)),
        ("[]", ()),
        ("Done.", ()),
        ("I called ls() for you (twice).", ()),
        ("", ()),
        ("f(" + "x" * 20_000 + ")", ()),
    ],
)
def test_calls_as_text(text, calls):
    assert read_calls(text) == calls


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2]", "[print(1) for _ in ()]", "[f(x=g(1))]", "[os.system('ls')]", "[f(**{})]", "[f(x=y)]", "[f(x=1]]",
        "[f(x=9**9**9)]", "<tool_call>{}</tool_call>", "<tool_call>\n{\"name\": \"cd\"", "[" * 3000 + "]" * 3000,
        "[" + "-" * 9000 + "1]", "[f(x='" + "y" * 20_000 + "')]", "[f(x='\udcff')]", "[f(x=\x00)]",
    ],
)  # fmt: skip
def test_what_is_meant_as_calls_and_cannot_be_read_is_told_so(text):
    with pytest.raises(Unreadable):
        read_calls(text)
    env = started()
    shown, reward, terminated, _, info = env.step(text)
    assert (reward, terminated, info["void"]) == (0.0, False, True)
    assert shown.text.startswith("Error: this is") and "[tool(parameter=value)]" in shown.text
    env.close()


@given(
    st.text() | st.from_regex(r"\[?\w+\(.*\)\]?", fullmatch=True) | st.text("[]()a,=1'\"{}:-.*", max_size=60)
)
@settings(max_examples=100, deadline=None)
def test_any_text_is_calls_words_or_unreadable(text):
    try:
        assert all(isinstance(call, Call) for call in read_calls(text))
    except Unreadable as error:
        assert str(error)


# -- making calls --------------------------------------------------------------------------------------------


def test_json_and_text_make_the_same_call_and_words_bring_the_next_request():
    ways = (
        Action("", (ToolCall("cd", {"folder": "document"}), ToolCall("ls", {}))),
        "[cd('document'), ls()]",
    )
    shown = []
    for action in ways:
        env = started()
        observation, reward, terminated, _, info = env.step(action)
        assert (reward, terminated, info["void"], info["calls"]) == (0.0, False, False, 2)
        assert [message.role for message in observation.messages] == ["tool", "tool"]
        assert [message.name for message in observation.messages] == ["cd", "ls"]
        shown.append(observation)
        env.close()
    assert shown[0] == shown[1] and "final_report.pdf" in shown[0].text
    env = started()
    env.step(env.oracle())
    observation, *_, info = env.step("There you are.")
    assert (
        observation.messages[0].text == scenarios("base")[FILES].turns[1]
        and observation.messages[0].role == "user"
    )
    assert (info["request"], info["right"], info["void"]) == (0, True, False)
    env.close()


def test_a_tool_that_is_withheld_comes_later():
    env = started(category="miss_func")  # sort comes with the fourth request
    assert "sort" not in {tool.name for tool in env.world.tools()}
    assert "no tool 'sort'" in call(env, "sort", file_name="a")[0].text
    env.step(Action("", env.oracle().tool_calls))
    for _ in range(2):
        assert not env.step("Done.")[0].tools
        if env.oracle().tool_calls:
            env.step(env.oracle())
    assert env.oracle().text == "None of my tools can do that."
    assert "say so" in env.world.give_hint()
    observation, *_ = env.step(env.oracle())
    assert "updated some more functions" in observation.text and observation.tools[-1].name == "sort"
    assert env.oracle().tool_calls[0].name == "sort" and "sort" in env.world.give_hint()
    env.close()


def test_a_failed_call_is_explained():
    env = started()
    for name, arguments, words in (
        ("grab", {"file_name": "a"}, "no tool 'grab' on offer; did you mean grep?"),
        ("cd", {}, "cd needs folder (string)."),
        ("cd", {"path": "a"}, "cd has no parameter 'path'; it takes folder (string)."),
        ("cd", {"folder": 3}, "folder is of the type string, not int."),
        ("sort", {"file_name": ["a"]}, "file_name is of the type string, not list."),
    ):
        shown, reward, terminated, _, info = call(env, name, **arguments)
        assert words in shown.text and shown.text.startswith("Error during execution: ")
        assert (reward, terminated, info["void"]) == (0.0, False, False)
        assert words in env.world.give_hint()
    assert result(env, "cd", folder="zq") == {"error": "cd: 'zq': No such file or directory"}
    env.close()
    env = started(actionable=False)
    assert call(env, "grab")[0].text == "Error during execution: name 'grab' is not defined"
    assert "folder (string)" not in call(env, "cd")[0].text
    env.close()


@given(
    name=st.sampled_from(
        ["cd", "mkdir", "echo", "post_tweet", "comment", "find", "tail", "zq", "\udcff", "__init__"]
    ),
    keys=st.lists(
        st.sampled_from(["folder", "dir_name", "content", "tweet_id", "path", "lines", "self", "é"])
    ),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("\udcff"),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    ),
)
@settings(max_examples=30, deadline=None)
def test_any_call_is_answered(name, keys, value):
    env = started()
    shown, reward, terminated, _, _ = call(env, name, **dict.fromkeys(keys, value))
    assert (reward, terminated) == (0.0, False) and shown.messages[0].text.encode()
    env.close()


def test_calls_that_would_take_minutes_or_gigabytes_are_refused():
    both = {"MathAPI", "GorillaFileSystem"}
    env = started(
        next(s.number for s in scenarios("base") if both <= set(s.classes)), steps=200, max_turns=300
    )
    before = mpmath.mp.dps, decimal.getcontext().prec
    for name, arguments in (
        ("power", {"base": 10, "exponent": 10**9}), ("logarithm", {"value": 2, "base": 10, "precision": 10**9}),
        ("logarithm", {"value": "1e999999999", "base": 10, "precision": 5}),
        ("square_root", {"number": 2, "precision": 10**9}), ("round_number", {"number": 5, "decimal_places": -(10**9)}),
        ("echo", {"content": "x" * 10**6}), ("mkdir", {"dir_name": "x" * 300}),
        ("add", {"a": [[[]]] * 10, "b": json.loads("[" * 900 + "]" * 900)}),
    ):  # fmt: skip
        assert call(env, name, **arguments)[0].text.startswith("Error during execution: "), name
    assert result(env, "power", base=2, exponent=10) == {"result": 1024}
    assert "0.301029995663981" in call(env, "logarithm", value=2, base=10, precision=15)[0].text
    assert "1.4142135623" in call(env, "square_root", number=2, precision=30)[0].text
    assert (mpmath.mp.dps, decimal.getcontext().prec) == before
    call(env, "mkdir", dir_name="a")
    for _ in range(12):  # directories that hold each other twice over double with every copy
        env.step("[cp('a', 'b'), mkdir('c'), mv('a', 'c'), mv('b', 'c'), mv('c', 'a')]")
    assert "full" in call(env, "find")[0].text
    call(env, "rm", file_name="a")
    for _ in range(50):
        env.step("[mkdir('d'), cd('d')]")
    assert "too many levels" in call(env, "mkdir", dir_name="d")[0].text
    shown = env.step(Action("", tuple(ToolCall("pwd", {}) for _ in range(60))))[0]
    assert len(shown.messages) == 51 and "only the first 50" in shown.text
    assert env.step("zq " * 350_000)[2]  # words, if many
    env.close()


def test_nothing_is_shared_between_episodes():
    one, two = started(), started()
    for env in (one, two):
        call(env, "authenticate_twitter", username="analyst_pro", password="Kj8#mP9$vL2")
    call(one, "post_tweet", content="Hello")
    call(one, "mention", tweet_id=3, mentioned_usernames=["@zq"])
    assert result(one, "get_tweet", tweet_id=3)["mentions"] == ["@zq"]
    assert result(two, "post_tweet", content="Hello")["mentions"] == []  # a list that is a default argument
    given = ["@a"]
    call(two, "post_tweet", content="Hello", mentions=given)
    call(two, "mention", tweet_id=4, mentioned_usernames=["@b"])
    assert given == ["@a"]
    one.close(), two.close()
    long = [Backends(scenarios("long_context")[TRAVEL]) for _ in range(2)]
    cards = [backends.instances["TravelAPI"].credit_card_list for backends in long]
    card = next(
        iter(set(cards[0]) - set(scenarios("base")[TRAVEL].config["TravelAPI"].get("credit_card_list", {})))
    )
    cards[0][card]["balance"] = -1
    assert cards[1][card]["balance"] != -1


def test_an_episode_is_freed():
    env = started()
    gone = weakref.ref(env.world.play.agent)
    env.step("[ls()]")
    env.reset(options={"index": 1})
    gc.collect()
    assert gone() is None
    gone = weakref.ref(env.world.play.agent)
    env.close()
    gc.collect()
    assert gone() is None


def test_sets_stand_in_order_in_results():
    text = "{\"error\": \"Invalid travel class. Must be one of {'first', 'economy', 'business'}\"}"
    assert "{'business', 'economy', 'first'}" in steady(text)
    assert (
        steady('{"error": "Invalid fields for update: b, a"}')
        == '{"error": "Invalid fields for update: a, b"}'
    )
    assert steady("plain") == "plain"


# -- rewards and endings -------------------------------------------------------------------------------------


def test_rewards_are_for_requests_that_were_met():
    for rewards, wanted in (("sparse", [0.0] * 3 + [1.0]), ("per_turn", [0.25] * 4)):
        env, paid, terminated = started(rewards=rewards), [], False
        while not terminated:
            acts = bool(env.oracle().tool_calls)
            _, reward, terminated, _, info = env.step(env.oracle())
            assert not acts or reward == 0
            paid += [] if acts else [reward]
        assert paid == wanted and info["right"]
        env.close()


def test_a_request_that_is_not_met_ends_the_episode_or_goes_on_lost():
    env = started()
    shown, reward, terminated, _, info = env.step("Done.")
    assert (reward, terminated, info["right"], info["fault"]) == (0.0, True, False, "empty")
    assert "No tool was called." in shown.text
    env.close()
    env, rewards = started(rewards="per_turn", end_at_failure=False), []
    env.step("[ls()]")
    *_, terminated, _, info = env.step("Done.")
    assert not terminated and info["fault"] == "state"
    while not terminated:
        shown, reward, terminated, *_ = env.step(env.oracle())
        rewards.append(reward)
    assert sum(rewards) < 1 and shown.text == "Not all requests were met."
    env.close()


def test_a_request_takes_so_many_turns_and_no_more():
    env = started(steps=3)
    for _ in range(3):
        assert not env.step("[pwd()]")[2]
    shown, reward, terminated, _, info = env.step("[pwd()]")
    assert (reward, terminated, info["fault"]) == (0.0, True, "steps") and "More than 3 turns" in shown.text
    env.close()


def test_snapshots_are_branches():
    env = started()
    env.step(env.oracle())
    state = env.world.snapshot()
    env.step("[rm('temp')]")
    assert not env.step("Done.")[4]["right"]
    env.world.restore(state)
    env._ended = False
    assert env.step("Done.")[4]["right"]
    env.close()


# -- with the rest of gymrl ----------------------------------------------------------------------------------


def test_hints_progress_and_noise():
    env = started(wrappers=[{"name": "progress", "keep": True}, {"name": "hints", "after": 1}])
    assert f"Hint: Think of the tool {env.oracle().tool_calls[0].name}." in env.step("[pwd()]")[0].text
    total, terminated = 0.0, False
    while not terminated:
        _, reward, terminated, *_ = env.step(env.oracle())
        total += reward
    assert total == 1.0
    env.close()
    env = make(ID, category="miss_func", wrappers=[{"name": "tool_noise", "errors": 0.3, "renamed": 0.5}])
    for index in range(4):
        env.reset(options={"index": index})
        total, terminated = 0.0, False
        while not terminated:
            _, reward, terminated, *_ = env.step(env.oracle())
            total += reward
        assert total == 1.0
    env.close()


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"category": "miss_fun"}, "did you mean 'miss_func'"), ({"category": ","}, "names one at least"),
        ({"rewards": "dense"}, "sparse or per_turn"), ({"descriptions": "no"}, "full or short"),
        ({"steps": 0}, "1 or more"), ({"distractors": -1}, "0 or more"),
    ],
)  # fmt: skip
def test_wrong_parameters_name_the_mend(params, words):
    with pytest.raises(ValueError, match=words):
        make(ID, **params)


def test_without_the_package_the_mend_is_named(monkeypatch):
    import gymrl.envs.tool_calling as family

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    for version, words in ((missing, "needs the package bfcl-eval"), (lambda name: "1.0", "there is 1.0")):
        with monkeypatch.context() as patch:
            patch.setattr(importlib.metadata, "version", version)
            with pytest.raises(MissingExtra, match=words) as caught:
                importlib.reload(family)
            assert "pip install --no-deps bfcl-eval==2026.3.23" in str(caught.value)
            with pytest.raises(MissingExtra) as passed_on:
                EnvEntry(ID, lambda: importlib.reload(family).env, extra="tool-calling").cls()
            assert str(passed_on.value) == str(caught.value)
    importlib.reload(family)


def test_it_keeps_the_laws():
    quick = Settings(seconds=0.5, tasks=16, garbage=80, split_tasks=200, resets=40)
    laws = ["splits", "players", "rewards", "garbage", "endings", "growth", "close", "gymnasium"]
    report = check(ID, {"rewards": "per_turn", "end_at_failure": False}, laws=laws, settings=quick)
    assert report.sound, [verdict for verdict in report.verdicts if verdict.faults]


async def test_demonstrations_show_a_withheld_tool_from_where_it_is_on_offer(tmp_path):
    from gymrl.agents.episodes import read_episodes, write_jsonl, write_parquet
    from gymrl.agents.rendering import Renderer
    from gymrl.rl.demonstrations import tokenise
    from gymrl.rl.tiny import make_tokenizer

    pool = EnvPool(ID, {"category": "miss_func", "descriptions": "short", "distractors": 0})
    (episode,) = await rollout([Job(pool.task("train", 0))], ScriptedAgent("oracle"), pool)
    await pool.aclose()
    scenario = scenarios("miss_func")[split_numbers()["train"][0]]
    (start,) = scenario.withheld
    later = set(scenario.withheld[start])
    assert not later & {tool.name for tool in episode.tools}
    changed = [turn for turn in episode.turns if turn.tools]
    assert len(changed) == 1 and later <= {tool.name for tool in changed[0].tools}
    write_jsonl(tmp_path / "e.jsonl", [episode])
    assert list(read_episodes(tmp_path / "e.jsonl")) == [episode]
    if importlib.util.find_spec("pyarrow"):
        write_parquet(tmp_path / "e.parquet", [episode])
        assert list(read_episodes(tmp_path / "e.parquet")) == [episode]
    renderer = Renderer(make_tokenizer(["a tool"]))
    turns = tokenise(episode, renderer).turns
    assert [turn.segment for turn in turns] == [0] * episode.turns.index(changed[0]) + [1] * (
        len(turns) - episode.turns.index(changed[0])
    )
    (name, *_) = later
    assert f'"name": "{name}"' not in renderer.decode(turns[0].prompt_ids)
    assert f'"name": "{name}"' in renderer.decode(turns[episode.turns.index(changed[0])].prompt_ids)
