"""Admission by an engine's steps: what shares a step follows from the requests, never from a clock."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gymrl.agents.engines.pace import Pace, Paces

Trace = list[tuple[int, tuple[tuple[int, int], ...]]]


def simulate(lengths: list[list[int]], delays: list[int], lag: int, slots: int = 99) -> Trace:
    """Which (seat, turn) joined which step, where seat s's turns take `lengths[s]` steps each, and its environment
    answers after the next of `delays` in ticks of a clock that the engine does not see."""
    paces: Paces[tuple[int, int]] = Paces(threading.Condition(), slots)
    pace = paces.open(lag)
    clock, nap = 0, iter(delays * 1000)
    comes: dict[int, tuple[int, int]] = {}  # seat -> (when, turn)
    running: dict[int, tuple[int, int]] = {}  # seat -> (steps left, turn)
    for seat in range(len(lengths)):
        pace.enter(seat)
        comes[seat] = (next(nap), 0)
    trace: Trace = []
    while comes or running or not pace.closed:
        clock += 1
        for seat, (when, turn) in list(comes.items()):
            if when <= clock:
                del comes[seat]
                if turn < len(lengths[seat]):
                    pace.offer(seat, (seat, turn))
                else:
                    pace.leave(seat)
        joined = paces.admit()
        if joined is None:
            continue
        for seat, turn in joined:
            running[seat] = (lengths[seat][turn], turn)
        if not running:
            continue
        trace.append((pace.step, tuple(sorted((seat, turn) for seat, (_, turn) in running.items()))))
        for seat, (left, turn) in list(running.items()):
            running[seat] = (left - 1, turn)
            if left == 1:
                del running[seat]
                pace.done(seat)
                comes[seat] = (clock + next(nap), turn + 1)
        paces.tick()
    return trace


turns = st.lists(st.lists(st.integers(1, 9), max_size=4), min_size=1, max_size=6)
naps = st.lists(st.integers(0, 12), min_size=1, max_size=12)


@given(turns, naps, naps, st.integers(1, 5), st.integers(1, 7))
def test_the_batches_do_not_depend_on_when_environments_answer(
    lengths: list[list[int]], some: list[int], others: list[int], lag: int, slots: int
) -> None:
    trace = simulate(lengths, some, lag, slots)
    assert trace == simulate(lengths, others, lag, slots)
    assert all(len(batch) <= slots for _, batch in trace)
    steps = [step for step, _ in trace]
    assert steps == sorted(set(steps))
    served = {place for _, batch in trace for place in batch}
    assert served == {(seat, turn) for seat, own in enumerate(lengths) for turn in range(len(own))}


def test_a_seat_is_due_a_lag_after_its_completion_and_others_do_not_wait_for_it() -> None:
    # Seat 0 answers in 1 step, seat 1 in 6; with a lag of 2 seat 0 sits out exactly one step between its turns.
    trace = simulate([[1, 1, 1], [6]], [0], 2)
    assert [tuple(seat for seat, _ in batch) for _, batch in trace] == [
        (0, 1), (1,), (0, 1), (1,), (0, 1), (1,),
    ]  # fmt: skip


def test_seats_beyond_the_slots_take_turns_and_are_waited_for_only_where_there_is_room() -> None:
    # Two slots, three seats. In the fifth step seats 0 and 1 are due again, and seat 2 leaves room for one of them.
    trace = simulate([[3, 3], [3, 3], [2]], [0], 2, slots=2)
    assert [tuple(seat for seat, _ in batch) for _, batch in trace] == [
        (0, 1), (0, 1), (0, 1), (2,), (0, 2), (0, 1), (0, 1), (1,),
    ]  # fmt: skip
    paces: Paces[str] = Paces(threading.Condition(), 1)
    pace = paces.open(1)
    pace.enter(0)
    pace.enter(1)
    pace.offer(0, "a")  # seat 1 is due too, and late, but there is no room for it
    assert paces.admit() == ["a"]
    paces.tick()
    assert paces.admit() == []
    pace.done(0)
    paces.tick()
    assert paces.admit() is None  # now there is, and seat 1 was due before seat 0
    pace.offer(0, "b")
    assert paces.admit() is None
    pace.offer(1, "c")
    assert paces.admit() == ["c"]


def test_with_nothing_running_no_step_is_waited_for() -> None:
    assert [step for step, _ in simulate([[1, 1]], [0], 5)] == [0, 5]


def test_seats_that_left_are_not_waited_for() -> None:
    paces: Paces[str] = Paces(threading.Condition(), 9)
    pace = paces.open(3)
    for seat in range(3):
        pace.enter(seat)
    pace.offer(2, "c")
    pace.offer(0, "a")
    assert paces.admit() is None
    pace.leave(1)
    assert paces.admit() == ["a", "c"]
    pace.leave(0)
    pace.done(0)  # its request ends after it left: it is not due again
    paces.tick()
    pace.done(2)
    assert paces.admit() is None
    pace.offer(2, "d")
    assert paces.drain() == ["d"]
    pace.leave(2)
    assert pace.closed and paces.admit() == []


def test_two_rollouts_keep_a_pace_each() -> None:
    paces: Paces[str] = Paces(threading.Condition(), 9)
    one, two = paces.open(1), paces.open(1)
    one.enter(0)
    two.enter(0)
    one.offer(0, "one")
    assert paces.admit() is None
    two.offer(0, "two")
    assert paces.admit() == ["one", "two"]
    one.leave(0)
    assert not two.closed


def test_a_lag_is_a_step_or_more() -> None:
    with pytest.raises(ValueError, match="1 step or more"):
        Pace(0, threading.Condition(), 9)
