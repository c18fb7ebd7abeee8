"""Assignments: taken, refused, repeated, trimmed, cancelled, forgotten, acknowledged."""

import pytest

from core.agent_harness import (
    CODE,
    CODE_HASH,
    CONTROLLER,
    SESSION,
    Harness,
    assignment,
    number,
    session,
)
from forage_agent.core.events import DrainAsked, KillWorker, RunCalls, WorkerExited
from forage_agent.core.settings import ACCEPTED_AFTER_MS, NamedFunction
from forage_wire.codec import cut_calls, encode
from forage_wire.io import Connected
from forage_wire.messages import (
    Accepted,
    Acknowledge,
    Assign,
    AssignmentRefused,
    CancelAssigned,
    Code,
    DeviceInventory,
    Drain,
    Forget,
    NeedCode,
    Options,
    Outcomes,
    Report,
    Trim,
    Trimmed,
)


@pytest.fixture
def bench() -> Harness:
    harness = Harness()
    harness.start()
    return harness


def test_assignment_runs_and_its_outcomes_carry_the_tag(bench: Harness) -> None:
    given = assignment(1, 10, 11)
    bench.assign(given)
    assert bench.given() == [(0, number(1), 10, 11)]
    bench.finish(1, 10)
    [message] = bench.messages(Outcomes)
    [one] = message.sets
    assert (one.assignment, one.low, one.high, one.tag) == (number(1), 10, 11, given.tag)
    assert bench.outcomes() == {10: 10}


def test_worker_gets_code_once_and_exactly_the_calls_of_its_chunk(bench: Harness) -> None:
    bench.assign(assignment(1, 5, 9))
    [first] = bench.taken(RunCalls)
    assert [code.data for code in first.code] == [CODE]
    assert cut_calls(first.chunks[0].calls) == [b"5"]
    bench.finish(1, 5)
    [second] = bench.taken(RunCalls)
    assert second.code == ()
    assert cut_calls(second.chunks[0].calls) == [b"6", b"7", b"8"]


def test_assignment_repeated_while_it_runs_starts_nothing(bench: Harness) -> None:
    bench.assign(assignment(1))
    bench.assign(assignment(1))
    assert bench.given() == [(0, number(1), 0, 1)]


def test_assignment_repeated_after_its_end_sends_its_outcomes_again(bench: Harness) -> None:
    bench.assign(assignment(1))
    bench.finish(1, 0)
    bench.given()
    bench.forget_said()
    bench.assign(assignment(1))
    assert bench.outcomes() == {0: 0}
    assert bench.given() == []


def test_assignment_repeated_after_its_acknowledgement_does_nothing(bench: Harness) -> None:
    bench.assign(assignment(1))
    bench.finish(1, 0)
    bench.send(Acknowledge(rows=((number(1), ((0, 1),)),)))
    bench.given()
    bench.forget_said()
    bench.assign(assignment(1))
    assert bench.given() == []
    assert bench.messages(Outcomes) == []


def test_accepted_names_after_a_while_what_has_not_ended(bench: Harness) -> None:
    bench.assign(assignment(1), assignment(2))
    bench.finish(1, 0)
    bench.advance(ACCEPTED_AFTER_MS - 1)
    assert bench.messages(Accepted) == []
    bench.advance(1)
    assert [message.assignments for message in bench.messages(Accepted)] == [(number(2),)]
    bench.advance(1_000)
    assert len(bench.messages(Accepted)) == 1


def test_missing_code_is_asked_for_once_and_the_assignment_waits() -> None:
    bench = Harness()
    bench.connect()
    bench.ready()
    bench.send(Report())
    bench.assign(assignment(1))
    bench.assign(assignment(2))
    assert [message.hashes for message in bench.messages(NeedCode)] == [(CODE_HASH,)]
    assert bench.given() == []
    bench.send(Code(hash=CODE_HASH, form="pickle", data=CODE))
    assert bench.given() == [(0, number(1), 0, 1)]


def test_code_that_is_not_what_its_hash_says_is_dropped() -> None:
    bench = Harness()
    bench.connect()
    bench.ready()
    bench.assign(assignment(1))
    bench.send(Code(hash=CODE_HASH, form="pickle", data=b"something else"))
    assert bench.given() == []
    assert bench.core.notes.counts["unreadable"] == 1


def test_evicted_code_is_asked_for_again() -> None:
    bench = Harness(code_bytes_max=len(CODE) + 1)
    bench.start()
    bench.assign(assignment(1))
    bench.finish(1, 0)
    other = b"x" * len(CODE)
    from hashlib import sha256

    bench.send(Code(hash=sha256(other).digest(), form="pickle", data=other))
    bench.assign(assignment(2))
    assert [message.hashes for message in bench.messages(NeedCode)] == [(CODE_HASH,)]


def test_code_that_an_assignment_needs_is_kept_above_the_limit() -> None:
    bench = Harness(code_bytes_max=1)
    bench.connect()
    bench.ready()
    bench.assign(assignment(1))
    bench.send(Code(hash=CODE_HASH, form="pickle", data=CODE))
    assert bench.given() == [(0, number(1), 0, 1)]


def test_named_function_runs_without_code() -> None:
    bench = Harness(functions={"org.app.task": NamedFunction(target="app:task", version="2")})
    bench.start()
    bench.assign(assignment(1, function=("org.app.task", "2")))
    [run] = bench.taken(RunCalls)
    assert [(code.form, code.data) for code in run.code] == [("named", b"app:task")]


@pytest.mark.parametrize("function", [("org.app.other", "1"), ("org.app.task", "3")])
def test_unknown_named_function_is_refused(function: tuple[str, str]) -> None:
    bench = Harness(functions={"org.app.task": NamedFunction(target="app:task")})
    bench.start()
    bench.assign(assignment(1, function=function))
    assert [refused.reason for refused in bench.messages(AssignmentRefused)] == ["function"]


def test_arguments_above_the_queue_limit_are_refused_as_full() -> None:
    bench = Harness(queue_bytes_max=150)
    bench.start()
    bench.assign(assignment(1, calls=[bytes(90)]), assignment(2, calls=[bytes(90)]))
    refused = bench.messages(AssignmentRefused)
    assert [(one.assignment, one.reason) for one in refused] == [(number(2), "full")]
    bench.finish(1, 0)
    bench.assign(assignment(3, calls=[bytes(90)]))
    assert bench.given()[-1] == (0, number(3), 0, 1)


def test_assignment_larger_than_the_whole_queue_is_refused_by_size() -> None:
    bench = Harness(queue_bytes_max=150)
    bench.start()
    bench.assign(assignment(1, calls=[bytes(200)]))
    assert [refused.reason for refused in bench.messages(AssignmentRefused)] == ["size"]


def test_unacknowledged_outcomes_above_the_limit_stop_new_work() -> None:
    bench = Harness(unacknowledged_bytes_max=100)
    bench.start()
    bench.assign(assignment(1))
    bench.finish(1, 0, items=b"\x81\x58\xc8" + bytes(200))
    bench.assign(assignment(2))
    assert [refused.reason for refused in bench.messages(AssignmentRefused)] == ["full"]
    bench.send(Acknowledge(rows=((number(1), ((0, 1),)),)))
    bench.assign(assignment(3))
    assert bench.given()[-1] == (0, number(3), 0, 1)


def test_draining_refuses_and_finishes_what_it_has(bench: Harness) -> None:
    bench.assign(assignment(1), assignment(2))
    bench.send(Drain(on=True))
    bench.assign(assignment(3))
    assert [refused.assignment for refused in bench.messages(AssignmentRefused)] == [number(3)]
    assert b'"draining"' in bench.documents[-1][1]
    bench.finish(1, 0)
    bench.finish(2, 0)
    assert set(bench.outcomes()) == {0}
    assert len(bench.messages(Outcomes)) == 2
    bench.put(DrainAsked(on=False))
    assert b'"online"' in bench.documents[-1][1]


def test_trim_takes_back_the_untouched_tail_and_answers_the_real_end(bench: Harness) -> None:
    bench.measured_as(1_000)
    bench.assign(assignment(1, 0, 100))
    [(_slot, _number, low, high)] = bench.given()
    assert (low, high) == (0, 50)
    bench.send(Trim(rows=((number(1), 2),)))
    assert [message.rows for message in bench.messages(Trimmed)] == [((number(1), 50),)]
    bench.finish(1, 0, 50, run_us=50_000)
    assert bench.given() == []
    assert sorted(bench.outcomes()) == list(range(50))


def test_trim_to_nothing_drops_the_assignment(bench: Harness) -> None:
    bench.assign(assignment(1), assignment(2, 0, 8))
    bench.send(Trim(rows=((number(2), 0),)))
    assert [message.rows for message in bench.messages(Trimmed)] == [((number(2), 0),)]
    bench.send(Report())
    [inventory] = bench.messages(DeviceInventory)
    assert [row[0] for row in inventory.rows] == [number(1)]


def test_trimmed_slices_keep_the_tag_of_what_was_assigned(bench: Harness) -> None:
    bench.assign(assignment(1, 0, 4))
    bench.send(Trim(rows=((number(1), 1),)))
    bench.finish(1, 0)
    [message] = bench.messages(Outcomes)
    assert (message.sets[0].low, message.sets[0].high) == (0, 4)


def test_cancel_skips_what_has_not_begun_and_says_so(bench: Harness) -> None:
    bench.assign(assignment(1, 0, 4))
    bench.send(CancelAssigned(assignment=number(1), ranges=((0, 2), (3, 4))))
    assert bench.errors() == [(1, "cancelled", False), (3, "cancelled", False)]
    assert bench.outcomes()[1]["reason"] == "cancelled"
    bench.finish(1, 0)
    assert bench.given()[-1] == (0, number(1), 2, 3)
    assert bench.taken(KillWorker) == []


def test_forced_cancel_kills_what_runs_and_the_rest_goes_on(bench: Harness) -> None:
    bench.assign(assignment(1, 0, 3))
    bench.given()
    bench.send(CancelAssigned(assignment=number(1), ranges=((0, 1),), force=True))
    assert [kill.why for kill in bench.taken(KillWorker)] == ["cancelled"]
    bench.die(counter=1, index=0, signal="SIGKILL")
    assert bench.errors() == [(0, "cancelled", False)]
    bench.ready()
    assert bench.given() == [(0, number(1), 1, 2)]


def test_value_that_came_before_the_kill_counts(bench: Harness) -> None:
    bench.assign(assignment(1, 0, 2))
    bench.send(CancelAssigned(assignment=number(1), ranges=((0, 1),), force=True))
    bench.finish(1, 0)
    bench.die(signal="SIGKILL")
    bench.ready()
    bench.finish(1, 1)
    assert bench.errors() == []
    assert bench.outcomes() == {0: 0, 1: 1}


def test_forget_kills_and_says_nothing_any_more(bench: Harness) -> None:
    bench.assign(assignment(1, 0, 3), assignment(2))
    bench.given()
    bench.send(Forget(assignments=(number(1),)))
    assert [kill.why for kill in bench.taken(KillWorker)] == ["forgotten"]
    bench.finish(1, 0)
    bench.put(WorkerExited(slot=0, signal="SIGKILL"))
    bench.ready()
    assert bench.given() == [(0, number(2), 0, 1)]
    assert bench.messages(Outcomes) == []
    bench.assign(assignment(1, 0, 3))
    assert bench.given() == []


def test_higher_priority_goes_first(bench: Harness) -> None:
    bench.assign(
        assignment(1),
        assignment(2, options=Options(priority=-1)),
        assignment(3),
        assignment(4, options=Options(priority=5)),
    )
    order = [bench.given()[0][1]]
    for _ in range(3):
        bench.finish(order[-1] - number(0), 0, run_us=10_000)
        order.append(bench.given()[0][1])
    assert order == [number(4), number(1), number(3), number(2)]


def test_unreadable_calls_end_as_errors(bench: Harness) -> None:
    given = assignment(1, 0, 3)
    short = type(given)(
        **{name: getattr(given, name) for name in given.__slots__ if name != "calls"},
        calls=b"\x81\x41x",
    )
    bench.assign(short)
    assert bench.errors() == [(index, "unreadable", True) for index in range(3)]


def test_new_session_tells_the_inventory_first_then_all_outcomes(bench: Harness) -> None:
    bench.assign(assignment(1), assignment(2, 0, 3), assignment(3))
    bench.finish(1, 0, run_us=10_000)
    bench.finish(2, 0, run_us=10_000)
    bench.forget_said()
    bench.connect(session(0xD0, 2))
    assert bench.said == []
    bench.send(Report())
    [inventory, *rest] = bench.said
    assert isinstance(inventory, DeviceInventory)
    assert (inventory.n, inventory.received) == (1, 1)
    assert [(row[0], row[4]) for row in inventory.rows] == [
        (number(1), "unacknowledged"),
        (number(2), "running"),
        (number(3), "queued"),
    ]
    assert [type(message) for message in rest] == [Outcomes]
    assert {one.assignment for one in rest[0].sets} == {number(1), number(2)}


def test_messages_for_another_session_are_dropped_and_counted(bench: Harness) -> None:
    bench.put(Connected(session=session(0xD0, 2)))
    stale = encode(
        Assign(assignments=(assignment(1),)),
        session=SESSION,
        controller=CONTROLLER,
        epoch=1,
        n=3,
    )
    bench.inbox(stale)
    assert bench.given() == []
    assert bench.core.notes.counts["stale"] == 1


def test_assignment_below_all_that_is_remembered_is_refused() -> None:
    from forage_agent.core.holdings import Holdings
    from forage_agent.core.slices import Slice
    from forage_wire.codec import decode_header

    holdings = Holdings(ended_max=2)
    for counter in range(1, 5):
        given = assignment(counter)
        part = Slice.of(given, decode_header(given.header))
        holdings.add(part, 0)
        holdings.remove(part)
    assert holdings.is_expired(number(1))
    assert holdings.is_expired(number(2))
    assert holdings.has_ended(number(3))
    assert not holdings.is_expired(number(5))
