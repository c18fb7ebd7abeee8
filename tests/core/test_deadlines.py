"""Deadlines: calls end when their time is up, waiting or running, and are told so."""

from typing import Any

import cbor2

from core.desk import Desk
from forage_controller.core.operations import MachineTime, RecoveredState, SaveTime
from forage_sim.disk import StoredState
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


def _stored(desk: Desk) -> RecoveredState:
    """What the store holds of all that a desk's core has committed."""
    state = StoredState()
    for operation in desk.saved:
        state.apply(operation)
    return state.recover()


def _ruled_on(desk: Desk, machine: MachineTime | None) -> Desk:
    """Another start, with the store of a desk that is no more."""
    again = Desk(recovered=_stored(desk), machine=machine, start="d" * 16)
    again.saved = list(desk.saved)
    return again.begin()


def _ends_after_ms(desk: Desk, task: str, limit_ms: int = 20_000) -> int:
    """How long it takes from a start's first moment until its clients' calls end."""
    for _step in range(limit_ms // 100):
        if desk.core.ledger.tasks[task].settled:
            return desk.now_ms - 1_000
        desk.advance(100)
    raise AssertionError("they never do")


MACHINE = MachineTime(boot="here", boot_ms=900_000, now_ms=1_000)


def _begin(deadline_ms: int) -> tuple[Desk, str]:
    desk = Desk(machine=MACHINE).begin()
    return desk, desk.client().submit(1, deadline_ms=deadline_ms)


def test_after_a_restart_a_deadline_is_where_it_was_by_the_machines_clock() -> None:
    desk, task = _begin(10_000)
    desk.advance(3_000)
    # Two seconds in which nobody ruled.
    boot_ms = 900_000 + desk.now_ms - 1_000 + 2_000
    again = _ruled_on(desk, MachineTime(boot="here", boot_ms=boot_ms, now_ms=1_000))
    assert 5_000 <= _ends_after_ms(again, task) <= 5_200


def test_a_deadline_that_passed_while_nobody_ruled_is_over_at_once() -> None:
    desk, task = _begin(10_000)
    machine = MachineTime(boot="here", boot_ms=999_000_000, now_ms=1_000)
    assert _ends_after_ms(_ruled_on(desk, machine), task) <= 300


def _count(desk: Desk) -> int:
    return sum(isinstance(operation, SaveTime) for operation in desk.saved)


def test_on_another_boot_a_deadline_goes_on_from_what_was_counted_last() -> None:
    for machine in (MachineTime(boot="there", boot_ms=999_000_000, now_ms=1_000), None):
        desk, task = _begin(20_000)
        desk.advance(12_000)
        # It counts in steps: two are saved, and what came after the second is counted again.
        assert 8_000 <= _ends_after_ms(_ruled_on(desk, machine), task, 40_000) <= 13_200


def test_however_often_a_machine_is_restarted_a_deadline_comes() -> None:
    desk, task = _begin(20_000)
    for boot in range(6):
        if desk.core.ledger.tasks[task].settled:
            return
        desk.advance(6_000)
        desk = _ruled_on(desk, MachineTime(boot=f"boot {boot}", boot_ms=50, now_ms=1_000))
    raise AssertionError("it never did")


def test_time_is_saved_only_while_a_call_has_a_deadline_to_come() -> None:
    desk, task = _begin(3_600_000)
    pi, client = desk.device("pi1"), desk.clients[0]
    first = _count(desk)
    desk.advance(20_000)
    assert 3 <= _count(desk) - first <= 5
    pi.finish(pi.assignments[0])
    client.collect(task, (0, 1))
    desk.advance(6_000)
    before = _count(desk)
    desk.advance(60_000)
    assert _count(desk) == before
    assert desk.core.ledger.tasks == {}


def test_a_store_of_before_begins_to_count() -> None:
    desk, task = _begin(10_000)
    desk.saved = [each for each in desk.saved if "due_ms" not in _names(each)]
    again = _ruled_on(desk, MACHINE)
    assert 10_000 <= _ends_after_ms(again, task) <= 10_400
    assert "due_ms" in {name for operation in again.saved for name in _names(operation)}


def _names(operation: Any) -> tuple[str, ...]:
    return tuple(type(operation).__slots__)


def test_a_clock_that_went_back_does_not_lengthen_a_deadline() -> None:
    desk, task = _begin(10_000)
    desk.advance(6_000)
    machine = MachineTime(boot="here", boot_ms=5, now_ms=1_000)
    assert _ends_after_ms(_ruled_on(desk, machine), task) <= 10_000
