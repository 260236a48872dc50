"""The checker: a sound environment passes every law, and every planted fault is found by the law it breaks."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import faulty_envs

from gymrl.envs import EnvironmentFault, UnknownEnvironment, make, register
from gymrl.envs.check import LAWS, Report, Settings, Verdict, check
from gymrl.envs.check.laws.garbage import CONSTANTS, answers, form_of
from gymrl.envs.intervals import wilson
from gymrl.envs.records import Action

QUICK = Settings(seconds=2, tasks=24, split_tasks=400, resets=80, garbage=300)


def tried(name: str, *laws: str, settings: Settings = QUICK, **params: Any) -> Report:
    return check(f"faulty/{name}-v0", params, laws=laws or None, settings=settings, isolate=False)


def verdict(name: str, law: str, **kwargs: Any) -> Verdict:
    return tried(name, law, **kwargs).verdict(law)


@pytest.mark.parametrize("name", ["Sound", "Waits"])
def test_a_sound_environment_passes_every_law(name: str) -> None:
    seen: list[str] = []
    report = check(f"faulty/{name}-v0", {}, settings=QUICK, on_verdict=lambda v: seen.append(v.law))
    assert report.sound, [(v.law, v.faults) for v in report.verdicts if v.faults]
    assert seen == list(LAWS) == [v.law for v in report.verdicts]
    assert all(v.status == "holds" and v.measured and v.seconds >= 0 for v in report.verdicts)
    assert "oracle 24 of 24" in report.verdict("players").measured


FAULTS = {
    "worlds": {
        "HashSeed": "another PYTHONHASHSEED",
        "ProcessSeed": "another process",
        "Clock": "in another order",
        "OrderMatters": "in another order .* the observation after turn 1 differs",
        "ThreadUnsafe": "4 threads",
        "SharedState": "many episodes on one loop .* observation after turn",
    },
    "splits": {
        "OverlappingSeeds": "the same world as (train|val|test) ",
        "FarOverlap": "the same world as (train|test) ",
        "HiddenOverlap": "the same world as",
        "LyingProblem": "the same world as",
        "ProblemOverlap": "the problem is also that of",
    },
    "players": {
        "OracleLoses": "the oracle loses: it ended after 1 turns with reward 0",
        "NoOracle": "there is no oracle",
        "NullWins": "the null player, who says nothing, wins",
        "RandomWins": "the random player wins .* more than 0.5",
        "Raises": r"step\(\) raised KeyError: 'lost'",
    },
    "rewards": {
        "StringReward": "'[01].0'",
        "StringRewardOnGarbage": "'0'",
        "NanReward": "finite number, not nan",
        "ObjectReward": "array.* of type ndarray, not a number",
    },
    "garbage": {
        "PaysForGarbage": "garbage gets reward 1",
        "PaysForLength": "garbage gets reward 0.5",
        "PaysForMention": "garbage gets reward 1",
        "PaysForOne": "(always answering '0' wins 25 of 25)",
        "PaysForOtherAnswers": "(always answering '.+' wins 25 of 25)",
        "PaysForGarbageInOneFamily": "garbage gets reward 1",
        "PaysForWrongCall": "garbage gets reward 1",
        "RaisesOnGarbage": r"step\(\) raised ValueError",
        "RaisesOnSurrogates": r"step\(\) raised UnicodeEncodeError",
    },
    "growth": {
        "GrowingObservations": "each observation repeats the last one",
        "GrowingFirstObservation": "the first observation has .* after ten other episodes",
        "LeaksMemory": "Python's memory grows by 2...? bytes",
        "LeaksDescriptors": "open descriptors grows by 1 ",
        "LeaksThreads": "threads grows by 1 ",
    },
    "close": {
        "ForgetsToClose": "open descriptors is 16 higher after 8 environments",
        "CloseRaises": "raised OSError: nothing to close",
    },
    "globals": {
        "GlobalRandom": "changes random's global generator",
        "GlobalRandomNoOracle": "changes random's global generator",
        "GlobalNumpy": "changes numpy.random's global generator",
    },
    "loop": {"BlocksTheLoop": r"step\(\) holds up the event loop for 0.1\d* s as runs = 'inline': .*thread"},
    "gymnasium": {"BadObservation": "check_env raised EnvironmentFault"},
    "speed": {"Slow": r"reset\(\) takes 0.0 s, the limit is 0.02 s"},
}


@pytest.mark.parametrize(
    ("law", "name", "words"),
    [(law, name, words) for law, found in FAULTS.items() for name, words in found.items()],
)
def test_a_planted_fault_is_found_by_the_law_that_it_breaks(law: str, name: str, words: str) -> None:
    settings = QUICK if name != "Slow" else Settings(seconds=1, step_seconds=0.02)
    found = verdict(name, law, settings=settings)
    assert found.status == "fault"
    assert any(re.search(words, fault.what) for fault in found.faults), found.faults


def test_a_world_of_a_few_tasks_passes_too() -> None:
    report = tried("ThreeTasks")
    assert report.sound, [verdict.faults for verdict in report.verdicts if verdict.faults]
    assert "oracle 3 of 3" in report.verdict("players").measured


def test_a_fault_names_the_task_and_the_words_that_show_it() -> None:
    (fault,) = verdict("PaysForGarbageInOneFamily", "garbage").faults[:1]
    assert fault.params == {"family": "bad"} and fault.where == f"train {fault.index}"
    assert fault.action is not None
    env = make("faulty/PaysForGarbageInOneFamily-v0", split=fault.split or "", **fault.params)
    env.reset(options={"index": fault.index})
    assert env.step(fault.action)[1] > 0
    oracle_faults = verdict("OracleLoses", "players").faults
    assert [fault.index for fault in oracle_faults] == [3, 7, 11] and oracle_faults[0].split == "test"
    assert verdict("Raises", "players").faults[0].where == "test 2"


def test_what_is_sound_is_not_taken_for_a_fault() -> None:
    assert verdict("HiddenApart", "splits").status == "holds"
    assert "hidden" in verdict("HiddenApart", "splits").measured
    assert verdict("WaitsPolitely", "loop").status == "holds"
    assert verdict("SomeOracles", "players").measured.startswith("oracle 12 of 12")
    assert verdict("Sound", "growth").status == "holds"


def test_a_crash_is_a_fault_of_its_law_and_the_others_go_on() -> None:
    report = check("faulty/Crashes-v0", laws=["endings", "gymnasium", "speed"], settings=QUICK)
    assert [v.law for v in report.verdicts] == ["endings", "gymnasium", "speed"]
    fault = report.verdict("endings").faults[0]
    assert "killed by signal 9" in fault.what and fault.where == "train 3"
    assert report.verdict("gymnasium").status == "holds"
    assert report.verdict("speed").faults[0].where == "train 3"


def test_a_hang_is_ended_and_named() -> None:
    settings = Settings(seconds=2, stall_seconds=3)
    report = check("faulty/Hangs-v0", laws=["endings"], settings=settings)
    fault = report.verdict("endings").faults[0]
    assert "came no further for 3 s" in fault.what and fault.where == "train 3"


def test_a_killed_check_leaves_no_process_behind(tmp_path: Path) -> None:
    code = "from gymrl.envs.check import check; check('gymrl/CodeInterpreter-v0')"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL) as caller:
        children = Path(f"/proc/{caller.pid}/task/{caller.pid}/children")
        deadline = time.monotonic() + 120
        while not (probes := children.read_text().split()) and time.monotonic() < deadline:
            time.sleep(0.05)
        while (
            b"laws" not in (command := Path(f"/proc/{probes[0]}/cmdline")).read_bytes()
        ):  # before it executes
            time.sleep(0.05)
        caller.kill()
    while command.exists() and command.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not command.exists() or not command.read_bytes()


def test_wrong_use_names_the_mend() -> None:
    with pytest.raises(ValueError, match="did you mean 'garbage'"):
        check("faulty/Sound-v0", laws=["garbag"])
    with pytest.raises(UnknownEnvironment):
        check("faulty/Nothing-v0")
    with pytest.raises(ValueError, match="no parameter 'size'"):
        check("faulty/Sound-v0", {"size": 3}, laws=["speed"])
    with pytest.raises(ValueError, match="tasks is more than 0"):
        Settings(tasks=0)

    class Local(faulty_envs.Sound):
        pass

    register("faulty/Local-v0", Local)
    with pytest.raises(EnvironmentFault, match="move the class to a module"):
        check("faulty/Local-v0", laws=["speed"])
    report = check("faulty/Local-v0", laws=["worlds", "endings"], settings=QUICK, isolate=False)
    assert report.sound and "not other processes" in report.verdict("worlds").measured


def test_garbage_is_much_and_various_and_the_same_every_time() -> None:
    texts = answers(1, 1000)
    assert len(texts) == 1000 and len(set(texts)) > 950 and texts == answers(1, 1000) != answers(2, 1000)
    assert any("\udcff" in text for text in texts) and not set(texts[:900]) & set(CONSTANTS)


def test_the_form_of_an_answer_is_read_from_the_oracle() -> None:
    for before, content, after in (
        ("So: <answer>", "42", "</answer>."), ("It is \\boxed{", "\\frac{1}{2}", "}"), ("<<<", "yes", ">>>"),
        ("<command>", "go east", "</command>"),
    ):  # fmt: skip
        form = form_of([Action("first"), Action(before + content + after)])
        assert (form.before, form.content, form.after, form.marked) == (before, content, after, True)
    plain = form_of([Action("open door")])
    assert (plain.content, plain.marked, plain.say("zq")) == ("open door", False, "zq")


def test_the_interval_of_a_rate() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    low, high = wilson(8, 10)  # Wilson 1927: (0.4902, 0.9433)
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)


def test_a_close_that_raises_breaks_the_law_of_it_and_leaves_the_others_their_verdicts() -> None:
    laws = [name for name in LAWS if name not in ("splits", "garbage")]
    report = check("faulty/CloseRaises-v0", laws=laws, settings=QUICK)
    assert [verdict.law for verdict in report.verdicts] == laws
    broken = {verdict.law: verdict.faults[0].what for verdict in report.verdicts if verdict.faults}
    assert broken == {
        "close": "close() raised OSError: nothing to close",
        "gymnasium": "check_env raised OSError: nothing to close",  # which closes too
    }


@pytest.mark.parametrize("empty", ["val", "test"])
def test_a_split_without_tasks_is_no_fault(empty: str) -> None:
    sizes = {**faulty_envs.ThreeTasks.sizes, empty: 0}
    register("faulty/EmptySplit-v0", type("EmptySplit", (faulty_envs.ThreeTasks,), {"sizes": sizes}))
    report = tried("EmptySplit", "splits", "players", "rewards")
    assert report.sound, [verdict.faults for verdict in report.verdicts if verdict.faults]
    assert "oracle 3 of 3" in report.verdict("players").measured
