"""What a worker process notes of its calls, and who is blamed for its end."""

from __future__ import annotations

import os
import signal

import pytest

from gymrl.envs.logbook import Found, Logbook, Verdict, judge


@pytest.mark.parametrize(
    ("begun", "working", "threads", "hung", "code", "verdict"),
    [
        ([], 0, False, False, -signal.SIGKILL, Verdict()),
        ([7], 7, True, False, -signal.SIGKILL, Verdict(guilty=7)),
        ([7], 0, False, False, 1, Verdict(guilty=7)),
        ([7, 8], 8, False, False, 1, Verdict(guilty=8)),
        ([7, 8], 8, False, False, -signal.SIGSEGV, Verdict(guilty=8)),
        ([7, 8], 8, True, False, -signal.SIGSEGV, Verdict(suspects=frozenset({7, 8}))),
        ([7, 8], 8, False, False, -signal.SIGKILL, Verdict(suspects=frozenset({7, 8}))),
        ([7, 8], 8, True, True, -signal.SIGKILL, Verdict(guilty=8)),
        ([7, 8], 0, False, True, -signal.SIGKILL, Verdict(suspects=frozenset({7, 8}))),
        ([7, 8], 0, False, False, 1, Verdict(suspects=frozenset({7, 8}))),
    ],
)
def test_who_is_blamed(
    begun: list[int], working: int, threads: bool, hung: bool, code: int, verdict: Verdict
) -> None:
    assert judge(Found(working, 1.0, dict.fromkeys(begun, 1.0), threads), hung, code) == verdict


def test_a_logbook_is_read_by_another_and_holds_more_calls_than_it_has_room_for() -> None:
    reader = Logbook.new()
    writer = Logbook(os.dup(reader.fd))
    places = [writer.begin(number) for number in range(1, 1100)]
    writer.work(1099)
    found = reader.read()
    assert set(found.begun) == {*range(1, 1025), 1099} and found.working == 1099 and not found.threads
    writer.rest()
    for place in places:
        writer.end(place)
    assert reader.read().begun == {} and reader.read().working == 0
    assert len({writer.begin(number) for number in range(1, 1025)} - {0}) == 1024
    writer.close()
    reader.close()
