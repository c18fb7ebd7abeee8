"""The controller's core: whose outcome counts, what is kept of it, and who is told to stop."""

import cbor2
import pytest

from core.desk import TOPICS, Desk, FakeDevice
from forage_controller.core.config import Limits
from forage_controller.core.operations import SaveCounters, SaveOutcomes
from forage_wire.messages import (
    Acknowledge,
    Acknowledged,
    AssignmentRefused,
    Cancel,
    CancelAssigned,
    Outcomes,
    OutcomeSet,
    Report,
    Submit,
    Trimmed,
)


def test_settled_by_the_controller_an_outcome_is_sent_to_its_client_after_the_commit() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    client = desk.client()
    task = client.submit(1, settle="controller")
    desk.commits = False
    pi.finish(pi.assignments[0], topic=TOPICS.outbox("pi1"))
    assert not client.of(Outcomes)
    assert not pi.of(Acknowledge)
    desk.commit()
    desk.run()
    (outcomes,) = client.of(Outcomes)
    assert [(row.task, row.ranges, row.device) for row in outcomes.sets] == [
        (task, ((0, 1),), "pi1")
    ]
    assert pi.of(Acknowledge)


def test_settled_by_the_controller_a_closed_assignment_never_wins() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    client = desk.client()
    client.submit(1, settle="controller")
    (closed,) = pi.assignments
    desk.device("pi2")
    pi.say("lost")
    pi.say("online")
    desk.run()
    pi.finish(closed)
    assert not desk.operations(SaveOutcomes)
    assert not client.of(Outcomes)
    assert pi.of(Acknowledge), "the device may forget it all the same"
    again = desk.devices["pi2"].assignments[0]
    desk.devices["pi2"].finish(again)
    assert [row.assignment for row in desk.operations(SaveOutcomes)] == [again.assignment]


def test_settled_directly_a_closed_assignment_may_win() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    desk.client().submit(1)
    (closed,) = pi.assignments
    pi2 = desk.device("pi2")
    pi.say("lost")
    pi.say("online")
    (elsewhere,) = pi2.assignments
    pi.finish(closed)
    assert [row.assignment for row in desk.operations(SaveOutcomes)] == [closed.assignment]
    assert [(row.assignment, row.force) for row in pi2.of(CancelAssigned)] == [
        (elsewhere.assignment, False)
    ]


def test_settled_by_the_controller_what_was_taken_back_does_not_count() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    client = desk.client()
    client.submit(40, settle="controller")
    for _ in range(4):
        pi.finish(pi.assignments.pop(0), run_us=10)
    long = next(row for row in pi.assignments if row.high - row.low > 1)
    pi.send(Trimmed(rows=((long.assignment, long.low + 1),)))
    desk.run()
    before = desk.core.ledger.settled
    pi.finish(long)
    assert desk.core.ledger.settled == before + 1


def test_outcomes_for_which_there_is_no_room_are_asked_for_when_there_is() -> None:
    desk = Desk(limits=Limits(archive_bytes=20, archive_reserve_bytes=10)).begin()
    pi = desk.device("pi1")
    client = desk.client()
    task = client.submit(20)
    for assignment in pi.assignments:
        pi.finish(assignment)
    kept = desk.core.ledger.settled
    assert 0 < kept < 20
    assert sum(bool(note.startswith("archive full")) for note in desk.notes) == 1
    left = [row for row in pi.assignments if row.low >= kept]
    pi.received.clear()
    client.collect(task, (0, kept))
    assert pi.of(Report), "there is room: whoever keeps outcomes is asked for them"
    for assignment in left:
        pi.finish(assignment)
    assert desk.core.ledger.settled > kept


def test_an_outcome_that_settles_nothing_new_is_acknowledged_though_the_archive_is_full() -> None:
    desk = Desk(limits=Limits(archive_bytes=1, archive_reserve_bytes=1)).begin()
    pi = desk.device("pi1")
    client = desk.client()
    client.submit(3)
    pi.finish(pi.assignments[0])
    pi.finish(pi.assignments[1])
    assert desk.core.ledger.settled == 1
    pi.received.clear()
    pi.finish(pi.assignments[0])
    assert pi.of(Acknowledge)


@pytest.mark.parametrize(
    "errors",
    [
        ((0, "error", False), (0, "error", False)),
        ((1, "error", False),),
        ((5, "error", False),),
    ],
    ids=["twice", "not among the outcomes", "not in the assignment"],
)
def test_errors_must_be_of_the_outcomes_that_they_come_with(
    errors: tuple[tuple[int, str, bool], ...],
) -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    desk.client().submit(2, retries=5)
    dropped = desk.core.effects.dropped
    pi.finish(pi.assignments[0], errors=errors)
    assert desk.core.effects.dropped == dropped + 1
    assert desk.core.backlog.waiting == 0
    assert len(pi.assignments) == 2


def test_a_device_that_never_calls_an_error_final_is_not_believed_for_ever() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    client = desk.client()
    client.submit(1, retries=2)
    for tries in range(3):
        assert pi.assignments[tries].tries == tries
        pi.finish(pi.assignments[tries], errors=((0, "error", False),))
    assert len(pi.assignments) == 3
    # The device's own error ends it, and is sent by us: the client ignored what was not final.
    (outcomes,) = client.of(Outcomes)
    assert outcomes.sets[0].errors == ((0, "error", True),)
    assert outcomes.sets[0].device == "pi1"
    assert cbor2.loads(outcomes.sets[0].data) == [{"reason": "x", "message": "y"}]


def test_a_call_that_failed_elsewhere_ends_with_the_error_of_a_device_that_does_not_know() -> None:
    desk = Desk().begin()
    pi1 = desk.device("pi1")
    client = desk.client()
    task = client.submit(1, retries=1)
    (first,) = pi1.assignments
    pi1.say("lost")
    pi2 = desk.device("pi2")
    pi2.finish(pi2.assignments[0], errors=((0, "error", False),))
    assert pi2.assignments[1].tries == 1
    pi2.say("lost")
    # The first device was alive all the time, and holds what it was given before.
    pi1.answers = False
    pi1.say("online")
    pi1.inventory((first.assignment, task, 0, 1, "running"))
    desk.run()
    assert first.assignment in desk.core.assignments.open
    pi1.finish(first, errors=((0, "error", False),))
    (outcomes,) = client.of(Outcomes)
    assert outcomes.sets[0].errors == ((0, "error", True),)
    assert outcomes.sets[0].device == "pi1"
    assert cbor2.loads(outcomes.sets[0].data) == [{"reason": "x", "message": "y"}]


@pytest.mark.parametrize("reason", ["error", "died", "cancelled"])
def test_at_most_once_is_not_run_again_whatever_a_device_calls_not_final(reason: str) -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    client = desk.client()
    client.submit(1, at_most_once=True, retries=3)
    pi.finish(pi.assignments[0], errors=((0, reason, False),))
    assert len(pi.assignments) == 1
    assert client.of(Outcomes)[0].sets[0].errors[0][0] == 0


def test_at_most_once_that_was_never_sent_is_not_lost_with_its_device() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    client = desk.client()
    desk.commits = False
    client.submit(1, at_most_once=True)
    desk.commit()
    desk.run()
    assert desk.core.assignments.open
    assert not pi.assignments
    pi.say("lost")
    pi2 = desk.device("pi2")
    for _ in range(3):
        desk.commit()
        desk.run()
    assert not client.of(Outcomes)
    assert len(pi2.assignments) == 1


def _elsewhere(desk: Desk) -> tuple[FakeDevice, FakeDevice]:
    """A device that was given up with calls that another has now."""
    pi = desk.device("pi1")
    desk.client().submit(4)
    pi2 = desk.device("pi2")
    pi.say("lost")
    assert len(pi2.assignments) == 4
    return pi, pi2


def test_what_the_client_has_from_elsewhere_is_not_run() -> None:
    desk = Desk().begin()
    _pi, pi2 = _elsewhere(desk)
    task = next(iter(desk.core.ledger.tasks))
    desk.clients[0].collect(task, (1, 3))
    called_off = [(row.assignment, row.ranges) for row in pi2.of(CancelAssigned)]
    assert called_off == [
        (pi2.assignments[1].assignment, ((1, 2),)),
        (pi2.assignments[2].assignment, ((2, 3),)),
    ]


def test_a_device_is_told_once_to_skip_a_call_and_again_when_it_comes_back() -> None:
    desk = Desk().begin()
    _pi, pi2 = _elsewhere(desk)
    task = next(iter(desk.core.ledger.tasks))
    desk.clients[0].collect(task, (1, 2))
    desk.clients[0].send(Cancel(task=task, ranges=((1, 2),)))
    desk.run()
    assert len(pi2.of(CancelAssigned)) == 1
    rows = [(row.assignment, task, row.low, row.high, "queued") for row in pi2.assignments]
    pi2.answers = False
    pi2.received.clear()
    pi2.counter = 2
    pi2.link = None
    pi2.join()
    pi2.inventory(*rows)
    desk.run()
    assert [(row.assignment, row.ranges) for row in pi2.of(CancelAssigned)] == [
        (pi2.assignments[1].assignment, ((1, 2),))
    ]


def test_a_call_that_its_client_has_is_killed_where_it_runs() -> None:
    # All that is left of a cancellation with force, where its message was lost with a connection.
    desk = Desk().begin()
    pi = desk.device("pi1")
    client = desk.client()
    task = client.submit(2)
    client.collect(task, (0, 1))
    desk.run()
    killed = [row for row in pi.of(CancelAssigned) if row.force]
    assert [(row.assignment, row.ranges) for row in killed] == [
        (pi.assignments[0].assignment, ((0, 1),))
    ]


def test_a_call_cancelled_before_can_still_be_killed() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    client = desk.client()
    task = client.submit(2)
    client.send(Cancel(task=task, ranges=((0, 2),)))
    desk.run()
    assert [row.force for row in pi.of(CancelAssigned)] == [False, False]
    client.send(Cancel(task=task, ranges=((0, 1),), force=True))
    desk.run()
    killed = [row for row in pi.of(CancelAssigned) if row.force]
    assert [(row.assignment, row.ranges) for row in killed] == [
        (pi.assignments[0].assignment, ((0, 1),))
    ]


@pytest.mark.parametrize("force", [False, True])
def test_a_call_cancelled_while_its_assignment_waits_for_the_disk_is_skipped(force: bool) -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    client = desk.client()
    desk.commits = False
    task = client.submit(1, settle="controller")
    desk.commit()
    desk.run()
    client.send(Cancel(task=task, ranges=((0, 1),), force=force))
    desk.run()
    desk.commit()
    desk.run()
    (assignment,) = pi.assignments
    cancelled = pi.received[-1]
    assert isinstance(cancelled, CancelAssigned)
    assert (cancelled.assignment, cancelled.force) == (assignment.assignment, force)


def test_counters_of_a_call_go_with_it_wherever_it_waits_again() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    client = desk.client()
    client.submit(1, retries=5)
    pi.finish(pi.assignments[0], errors=((0, "error", False),))
    assert desk.operations(SaveCounters)[-1].tries == 1
    pi2 = desk.device("pi2")
    pi.counter = 2
    pi.link = None
    pi.join()
    assert [row.tries for row in [*pi.assignments, *pi2.assignments]] == [0, 1, 1]


def test_an_outcome_too_large_to_be_sent_on_is_refused() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    client = desk.client()
    client.submit(1)
    given = pi.assignments[0]
    outcomes = OutcomeSet(
        task=next(iter(desk.core.ledger.tasks)),
        assignment=given.assignment,
        low=given.low,
        high=given.high,
        tag=given.tag,
        ranges=((0, 1),),
        data=bytes(64 * 1024 * 1024 - 4_096),
    )
    device = desk.core.fleet.devices["pi1"]
    dropped = desk.core.effects.dropped
    desk.core._intake._on_outcomes(device, Outcomes(sets=(outcomes,)), desk.now_ms)
    assert desk.core.effects.dropped == dropped + 1
    assert desk.core.ledger.settled == 0


@pytest.mark.parametrize(
    ("options", "urgent"),
    [({}, False), ({"at_most_once": True}, True), ({"settle": "controller"}, True)],
    ids=["plain", "at_most_once", "settle=controller"],
)
def test_only_a_save_that_somebodys_work_waits_for_is_urgent(
    options: dict[str, object], urgent: bool
) -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    client = desk.client()
    desk.commits = False
    task = client.submit(1, **options)

    def committed() -> bool:
        """Commit; whether that was urgent."""
        found = any(save.urgent for save in desk.uncommitted)
        desk.commit()
        desk.run()
        return found

    assert committed() == urgent, "the page"
    if urgent:
        assert committed(), "the assignment"
    pi.finish(pi.assignments.pop())
    assert committed() == (options == {"settle": "controller"}), "the outcome"
    client.collect(task, (0, 1))
    assert not committed(), "what is collected"


def test_an_outcome_made_here_is_urgent() -> None:
    desk = Desk().begin()
    client = desk.client()
    client.submit(1, wait_ms=100)
    desk.commits = False
    desk.advance(200)
    assert any(save.urgent for save in desk.uncommitted)


def test_commits_are_told_many_in_one_message() -> None:
    desk = Desk(acknowledge_after_ms=20).begin()
    pi = desk.device("pi1")
    client = desk.client()
    for _ in range(3):
        client.submit(1)
        pi.finish(pi.assignments.pop())
        desk.advance(5)
    assert not pi.of(Acknowledge)
    assert not client.of(Acknowledged)
    desk.advance(20)
    (to_device,) = pi.of(Acknowledge)
    (to_client,) = client.of(Acknowledged)
    assert len(to_device.rows) == len(to_client.rows) == 3
    desk.advance(1_000)
    assert len(pi.of(Acknowledge)) == len(client.of(Acknowledged)) == 1


def test_who_has_little_room_is_told_of_a_commit_at_once() -> None:
    desk = Desk(acknowledge_after_ms=20).begin()
    board = desk.device("board", more={"profile": "mcu", "functions": {"lab.blink": "1"}})
    pi = desk.device("pi1")
    client = desk.client()
    client.submit(2, devices=("pi1",))
    page = client.page(1, form="named", function=("lab.blink", ""), devices=("board",))
    client.send(Submit(pages=(page,)))
    desk.run()
    board.finish(board.assignments.pop())
    assert board.of(Acknowledge)
    first, second = pi.assignments
    pi.finish(first)
    assert not pi.of(Acknowledge)
    pi.send(AssignmentRefused(assignment=second.assignment, reason="full"))
    desk.run()
    assert pi.of(Acknowledge)


def test_a_call_that_raised_waits_twice_as_long_each_time_and_is_not_lost_meanwhile() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    task = desk.client().submit(1, retries=3, backoff_ms=1_000)
    for tries, most_ms in enumerate((1_000, 2_000, 4_000)):
        pi.finish(pi.assignments[tries], errors=((0, "error", False),))
        assert desk.core.ledger.tasks[task].waiting == 1
        desk.advance(most_ms // 2 - 1)
        assert len(pi.assignments) == tries + 1
        desk.advance(most_ms // 2 + 1)
        assert len(pi.assignments) == tries + 2


def test_a_call_cancelled_while_it_waits_to_be_tried_again_is_not() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    client = desk.client()
    task = client.submit(1, retries=3, backoff_ms=1_000)
    pi.finish(pi.assignments[0], errors=((0, "error", False),))
    client.send(Cancel(task=task, ranges=((0, 1),)))
    desk.advance(5_000)
    assert len(pi.assignments) == 1
    assert task not in desk.core.ledger.tasks


def test_a_death_of_a_worker_waits_for_nothing() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    desk.client().submit(1, backoff_ms=60_000)
    pi.finish(pi.assignments[0], errors=((0, "died", False),))
    assert len(pi.assignments) == 2
