"""Streams that come while a worker has its hands full: it gives back, and they go first."""

import hashlib
from typing import Any

import pytest

from core.agent_harness import Harness, assignment, number
from forage_agent.core.events import RunCalls, TakeBack, WorkerReturned
from forage_agent.core.settings import MAKE_ROOM_EVERY_MS, SHORT_US
from forage_wire.messages import Acknowledge, Code, Options, Outcomes, Trim

OTHER_CODE = b"other code"
OTHER_HASH = hashlib.sha256(OTHER_CODE).digest()


@pytest.fixture
def bench() -> Harness:
    harness = Harness()
    harness.start()
    return harness


@pytest.fixture
def busy(bench: Harness) -> Harness:
    """A worker in the midst of many short calls, and the code of another function."""
    bench.send(Code(hash=OTHER_HASH, form="pickle", data=OTHER_CODE))
    bench.measured_as(1_000)
    bench.assign(*[assignment(counter, 0, 100) for counter in range(1, 4)])
    assert bench.given() == [(0, number(1), 0, 50)]
    return bench


def newcomer(bench: Harness, counter: int = 9, **fields: Any) -> None:
    """A call of the other function."""
    task = f"0123456789abc-{counter}"
    bench.assign(assignment(counter, function=OTHER_HASH, task=task, **fields))


def test_a_call_does_not_wait_for_what_a_worker_has_of_another_function(busy: Harness) -> None:
    newcomer(busy)
    assert busy.taken(TakeBack) == [TakeBack(slot=0)]
    busy.finish(1, 0, 2, run_us=2_000)
    busy.put(WorkerReturned(slot=0, assignment=number(1), index=2))
    assert busy.given() == [], "nobody knows how long it takes: it is to have the worker alone"
    busy.finish(1, 2, run_us=1_000)
    assert busy.given() == [(0, number(9), 0, 1)]
    busy.finish(9, 0, run_us=10)
    assert busy.given()[0] == (0, number(1), 3, 53), "and what was given back is next"


def test_a_call_of_another_client_does_not_wait_for_what_a_worker_has(busy: Harness) -> None:
    task = "abcdefghijklm-1"
    busy.assign(assignment(9, client="abcdefghijklm", task=task))
    assert busy.taken(TakeBack) == [TakeBack(slot=0)]
    busy.put(WorkerReturned(slot=0, assignment=number(1), index=0))
    [run] = busy.taken(RunCalls)
    assert [(one.assignment, one.low, one.is_awaited) for one in run.chunks[:2]] == [
        (number(9), 0, True),
        (number(1), 1, False),
    ], "the function is the same, and known to be short"
    busy.finish(1, 0, run_us=1_000)
    busy.forget_said()
    busy.finish(9, 0, run_us=1_000)
    told = [one.task for message in busy.messages(Outcomes) for one in message.sets]
    assert task in told, "at once"


def test_a_call_known_to_be_short_runs_next_and_the_rest_goes_behind_it(busy: Harness) -> None:
    newcomer(busy, 8)
    busy.put(WorkerReturned(slot=0))
    busy.finish(8, 0, run_us=10)
    busy.advance(MAKE_ROOM_EVERY_MS)
    busy.taken(RunCalls)
    busy.taken(TakeBack)
    newcomer(busy, 9)
    assert len(busy.taken(TakeBack)) == 1
    busy.put(WorkerReturned(slot=0, assignment=number(1), index=0))
    [run] = busy.taken(RunCalls)
    assert [(one.assignment, one.low, one.is_awaited) for one in run.chunks[:2]] == [
        (number(9), 0, True),
        (number(1), 1, False),
    ], "and the worker is to report it at once, whatever is behind it"


def test_a_long_call_waits_for_its_turn(busy: Harness) -> None:
    newcomer(busy, 8)
    busy.put(WorkerReturned(slot=0))
    busy.finish(8, 0, run_us=SHORT_US + 1_000)
    busy.advance(MAKE_ROOM_EVERY_MS)
    busy.taken(TakeBack)
    newcomer(busy, 9)
    busy.advance(1)
    assert busy.taken(TakeBack) == []


def test_a_call_of_higher_priority_does_not_wait_for_what_a_worker_has(busy: Harness) -> None:
    busy.assign(assignment(9, options=Options(priority=1)))
    assert busy.taken(TakeBack) == [TakeBack(slot=0)]
    busy.put(WorkerReturned(slot=0, assignment=number(1), index=0))
    assert busy.given()[0] == (0, number(9), 0, 1)


def test_newcomers_wait_for_their_turn_in_the_order_in_which_they_came(bench: Harness) -> None:
    """Whether they are long or short: nobody is overtaken by all who come after."""
    for run_us in (SHORT_US + 15_000, 1_000):
        codes = [b"code %d of %d" % (each, run_us) for each in range(6)]
        bench.send(
            *[Code(hash=hashlib.sha256(code).digest(), form="pickle", data=code) for code in codes]
        )
        for counter, code in enumerate(codes):
            bench.assign(assignment(run_us + counter, function=hashlib.sha256(code).digest()))
        order = []
        for _ in codes:
            bench.taken(TakeBack)
            [(_slot, given, low, _high)] = bench.given()
            order.append(given - number(run_us))
            bench.advance(run_us // 1_000)
            bench.finish(given - number(0), low, run_us=run_us)
        assert order == list(range(6))


def test_streams_of_long_calls_that_come_again_and_again_leave_others_their_turn(
    bench: Harness,
) -> None:
    codes = [b"code %d" % each for each in range(3)]
    hashes = [hashlib.sha256(code).digest() for code in codes]
    bench.send(
        *[
            Code(hash=each, form="pickle", data=code)
            for each, code in zip(hashes, codes, strict=True)
        ]
    )
    stream_of = {}
    newest = 0

    def comes(stream: int, calls: int = 1) -> None:
        nonlocal newest
        newest += 1
        stream_of[number(newest)] = stream
        bench.assign(assignment(newest, 0, calls, function=hashes[stream]))

    comes(0, 100)
    comes(1)
    comes(2)
    turns = [0, 0, 0]
    for _ in range(60):
        bench.taken(TakeBack)
        [(_slot, given, low, _high)] = bench.given()
        stream = stream_of[given]
        turns[stream] += 1
        bench.advance(20)
        bench.finish(given - number(0), low, run_us=20_000)
        if stream:
            comes(stream)
    assert min(turns) >= 15


def test_what_runs_out_within_a_moment_is_waited_for(busy: Harness) -> None:
    busy.send(Trim(rows=((number(1), 0), (number(2), 0), (number(3), 0))))
    busy.finish(1, 0, 47, run_us=47_000)
    newcomer(busy)
    assert busy.taken(TakeBack) == []
    busy.finish(1, 47, 3, run_us=3_000)
    assert busy.given() == [(0, number(9), 0, 1)]


def test_a_call_of_lower_priority_takes_nobodys_turn(busy: Harness) -> None:
    newcomer(busy, options=Options(priority=-1))
    busy.advance(1)
    assert busy.taken(TakeBack) == []


def test_a_free_slot_is_room_enough() -> None:
    bench = Harness(slots=2)
    bench.start()
    bench.send(Code(hash=OTHER_HASH, form="pickle", data=OTHER_CODE))
    bench.measured_as(1_000)
    bench.assign(assignment(1, 0, 3))
    bench.given()
    bench.finish(1, 2, slot=1, run_us=1_000)
    newcomer(bench)
    assert bench.given() == [(1, number(9), 0, 1)]
    assert bench.taken(TakeBack) == []


def test_a_stream_of_newcomers_takes_no_more_than_half(busy: Harness) -> None:
    """Each comes as soon as the one before it has ended, and runs for as long as a short call may."""
    has = [(number(1), index) for index in range(50)]
    spent_ms = {False: 0, True: 0}
    newest = 100
    newcomer(busy, newest)
    while min(spent_ms.values()) < 100 and max(spent_ms.values()) < 1_000:
        if busy.taken(TakeBack):
            busy.put(WorkerReturned(slot=0, assignment=has[0][0], index=has[0][1]))
            del has[1:]
        (assigned, index), is_new = has[0], has[0][0] == number(newest)
        duration_ms = SHORT_US // 1_000 if is_new else 1
        busy.advance(duration_ms)
        spent_ms[is_new] += duration_ms
        del has[0]
        busy.finish(assigned - number(0), index, run_us=1_000 * duration_ms)
        if is_new:
            newest += 1
            newcomer(busy, newest)
        busy.send(Acknowledge(rows=((assigned, ((index, index + 1),)),)))
        for _slot, number_given, low, high in busy.given():
            has += [(number_given, at) for at in range(low, high)]
    assert spent_ms[False] >= spent_ms[True]
    assert spent_ms[True] >= 100, "and they are not made to wait for the whole of the others' work"


def test_the_last_outcome_of_a_function_waits_for_nobodys_calls(busy: Harness) -> None:
    newcomer(busy)
    busy.put(WorkerReturned(slot=0, assignment=number(1), index=0))
    busy.finish(1, 0, run_us=1_000)
    busy.forget_said()
    busy.finish(9, 0, run_us=1_000)
    (outcomes,) = busy.messages(Outcomes)
    assert number(9) in [one.assignment for one in outcomes.sets]
