"""Deadlines: calls end when their time is up, waiting or running, and are told so."""

import cbor2

from core.desk import Desk
from forage_wire.messages import CancelAssigned, Outcomes


def test_what_waits_and_what_runs_ends_at_the_deadline_and_what_ended_before_does_not() -> None:
    desk = Desk(detect_ms=3_600_000).begin()
    pi = desk.device("pi1")
    client = desk.client()
    client.submit(100, deadline_ms=5_000)
    for given in pi.assignments[:2]:
        pi.finish(given)
    client.collect(f"{client.name}-1", (0, 2))
    desk.advance(4_900)
    assert not client.of(Outcomes)
    desk.advance(200)
    told = client.of(Outcomes)[-1].sets[0]
    assert told.ranges == ((2, 100),)
    assert {reason for _index, reason, _final in told.errors} == {"timeout"}
    assert "5 s after it was submitted" in cbor2.loads(told.data)[0]["message"]
    assert desk.core.backlog.waiting == 0
    killed = {row.assignment for row in pi.of(CancelAssigned) if row.force}
    assert killed == set(desk.core.assignments.open)


def test_a_task_that_ended_in_time_is_left_alone() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    client = desk.client()
    task = client.submit(1, deadline_ms=5_000)
    pi.finish(pi.assignments[0])
    client.collect(task, (0, 1))
    before = len(client.received)
    desk.advance(10_000)
    assert not [message for message in client.received[before:] if isinstance(message, Outcomes)]


def test_a_call_that_waits_to_be_tried_again_ends_at_the_deadline_too() -> None:
    desk = Desk(detect_ms=3_600_000).begin()
    pi = desk.device("pi1")
    client = desk.client()
    client.submit(1, retries=5, backoff_ms=60_000, deadline_ms=2_000)
    pi.finish(pi.assignments[0], errors=((0, "error", False),))
    desk.advance(2_100)
    assert client.of(Outcomes)[-1].sets[0].errors == ((0, "timeout", True),)
    desk.advance(60_000)
    assert len(pi.assignments) == 1


def test_a_cancelled_attempt_is_confirmed_by_its_device() -> None:
    desk = Desk(detect_ms=3_600_000).begin()
    pi = desk.device("pi1")
    client = desk.client()
    task = client.submit(2, deadline_ms=2_000)
    desk.advance(2_100)
    attempts = desk.core.ledger.tasks[task].attempts
    assert {attempt.how for attempt in attempts} == {"open"}
    for given in pi.assignments:
        indices = range(given.low, given.high)
        pi.finish(given, errors=tuple((index, "cancelled", False) for index in indices))
    assert {attempt.how for attempt in attempts} == {"cancelled"}
