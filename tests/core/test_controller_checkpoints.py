"""Calls' checkpoints in the controller's core: taken, kept, given to the next attempt, let go."""

import itertools
import json
from typing import Any

import cbor2
import pytest

from core.desk import Desk, FakeDevice
from forage_controller.core.config import Limits
from forage_controller.core.operations import ForgetCheckpoints, SaveCheckpoint
from forage_sim.disk import StoredState
from forage_wire.limits import CALL_BYTES_MAX
from forage_wire.messages import (
    Answer,
    Assignment,
    AssignmentRefused,
    Cancel,
    Checkpoint,
    Query,
)


def keep(
    device: FakeDevice, assignment: Assignment, number: int, data: bytes, index: int | None = None
) -> None:
    """A device sends a state of a call (of the assignment's first, unless told otherwise)."""
    device.send(
        Checkpoint(
            task=cbor2.loads(assignment.header)["t"],
            index=assignment.low if index is None else index,
            assignment=assignment.assignment,
            number=number,
            data=data,
        )
    )
    device.desk.run()


def given(device: FakeDevice) -> list[tuple[int, int, tuple[int, bytes] | None]]:
    return [(one.low, one.high, one.checkpoint) for one in device.assignments]


class Pair:
    """A device that runs a call, and another that gets what it loses."""

    def __init__(self, n: int = 1, **options: Any) -> None:
        self.desk = Desk(limits=options.pop("limits", None)).begin()
        self.first = self.desk.device("first", slots=n)
        self.client = self.desk.client()
        self.task = self.client.submit(n, **options)
        self.second = self.desk.device("second", slots=n)

    @property
    def assignment(self) -> Assignment:
        return self.first.assignments[0]

    def lose(self) -> None:
        self.first.say("lost")


def test_call_of_a_lost_device_goes_on_from_its_last_checkpoint() -> None:
    pair = Pair()
    keep(pair.first, pair.assignment, 1, b"one")
    keep(pair.first, pair.assignment, 2, b"two")
    pair.lose()
    assert given(pair.second) == [(0, 1, (2, b"two"))]


def test_call_without_a_checkpoint_begins_anew() -> None:
    pair = Pair()
    pair.lose()
    assert given(pair.second) == [(0, 1, None)]


@pytest.mark.parametrize("reason", ["error", "timeout", "died"])
def test_call_that_failed_and_is_tried_again_goes_on_from_its_checkpoint(reason: str) -> None:
    pair = Pair(retries=1)
    keep(pair.first, pair.assignment, 1, b"one")
    pair.first.finish(pair.assignment, errors=((0, reason, False),))
    again = [*pair.first.assignments[1:], *pair.second.assignments]
    assert [one.checkpoint for one in again] == [(1, b"one")]


def test_checkpoint_is_saved_and_outlives_the_controller() -> None:
    pair = Pair()
    keep(pair.first, pair.assignment, 1, b"one")
    keep(pair.first, pair.assignment, 2, b"two")
    stored = StoredState()
    for operation in pair.desk.saved:
        stored.apply(operation)
    after = Desk(recovered=stored.recover(), start="d" * 16).begin()
    after.saved = list(pair.desk.saved)
    other = after.device("other")
    # Its device is waited for, and does not come.
    after.advance(5_000)
    after.answer_loads()
    assert given(other) == [(0, 1, (2, b"two"))]


def test_calls_with_checkpoints_go_alone_and_the_others_together() -> None:
    desk = Desk().begin()
    pi = desk.device("pi")
    client = desk.client()
    for _ in range(12):
        client.submit(1)
        pi.finish(pi.assignments[-1], run_us=1)
    pi.assignments.clear()
    client.submit(20)
    [whole] = pi.assignments
    assert (whole.low, whole.high) == (0, 20)
    keep(pi, whole, 1, b"of 7", index=7)
    keep(pi, whole, 1, b"of 13", index=13)
    other = desk.device("other")
    pi.say("lost")
    for one in other.assignments:  # More come while these end.
        other.finish(one, run_us=1)
    assert [row for row in given(other) if row[2]] == [
        (7, 8, (1, b"of 7")),
        (13, 14, (1, b"of 13")),
    ]
    covered = sorted((low, high) for low, high, _checkpoint in given(other))
    assert covered[0][0] == 0
    assert covered[-1][1] == 20
    assert all(a[1] == b[0] for a, b in itertools.pairwise(covered))


def test_they_go_alone_also_when_nobody_knows_any_more_that_they_had_begun() -> None:
    """A controller that is started anew has the states, and not what devices said of their calls."""
    desk = Desk().begin()
    pi = desk.device("pi")
    client = desk.client()
    for _ in range(12):
        client.submit(1)
        pi.finish(pi.assignments[-1], run_us=1)
    pi.assignments.clear()
    client.submit(20)
    [whole] = pi.assignments
    keep(pi, whole, 1, b"of 5", index=5)
    stored = StoredState()
    for operation in desk.saved:
        stored.apply(operation)
    after = Desk(recovered=stored.recover(), start="d" * 16).begin()
    after.saved = list(desk.saved)
    other = after.device("other")
    # The function is known to be a quick one before the device that had it all is given up.
    somebody = after.client(name="1" * 13)
    for _ in range(12):
        somebody.submit(1)
        other.finish(other.assignments[-1], run_us=1)
    other.assignments.clear()
    after.advance(5_000)
    after.answer_loads()
    assert given(other) == [
        (0, 1, None),
        (1, 5, None),
        (5, 6, (1, b"of 5")),
        (6, 20, None),
    ]


def test_of_two_attempts_the_state_that_is_further_on_is_kept() -> None:
    pair = Pair()
    keep(pair.first, pair.assignment, 5, b"five")
    keep(pair.first, pair.assignment, 5, b"five again")
    keep(pair.first, pair.assignment, 3, b"three")
    assert [one.number for one in pair.desk.operations(SaveCheckpoint)] == [5]
    pair.lose()
    assert given(pair.second) == [(0, 1, (5, b"five"))]


def test_states_of_a_closed_assignment_are_dropped_and_counted() -> None:
    pair = Pair()
    keep(pair.first, pair.assignment, 1, b"one")
    old = pair.assignment
    pair.first.send(AssignmentRefused(assignment=old.assignment, reason="full"))
    pair.desk.run()
    keep(pair.first, old, 2, b"two")
    assert pair.desk.core.ledger.checkpoints.stale == 1
    assert [one.number for one in pair.desk.operations(SaveCheckpoint)] == [1]
    assert given(pair.second) == [(0, 1, (1, b"one"))]


def test_states_of_calls_that_are_not_the_assignments_own_are_dropped() -> None:
    pair = Pair(n=2)
    assert pair.assignment.high == 1
    keep(pair.first, pair.assignment, 1, b"of another", index=1)
    assert pair.desk.core.ledger.checkpoints.stale == 1
    before = pair.desk.core.effects.dropped
    keep(pair.second, pair.assignment, 1, b"by another")
    assert pair.desk.core.effects.dropped == before + 1
    assert not pair.desk.operations(SaveCheckpoint)


def test_states_of_a_call_that_has_been_reported_are_dropped() -> None:
    pair = Pair()
    assignment = pair.assignment
    pair.first.finish(assignment)
    keep(pair.first, assignment, 1, b"late")
    assert pair.desk.core.ledger.checkpoints.stale == 1
    assert not pair.desk.operations(SaveCheckpoint)


def test_call_that_never_runs_again_keeps_nothing() -> None:
    pair = Pair(at_most_once=True)
    keep(pair.first, pair.assignment, 1, b"one")
    assert not pair.desk.operations(SaveCheckpoint)


@pytest.mark.parametrize("how", ["outcome", "cancel"])
def test_checkpoint_goes_with_the_end_of_its_call(how: str) -> None:
    pair = Pair(n=2)
    keep(pair.first, pair.assignment, 1, b"one")
    assert pair.desk.core.ledger.checkpoints.bytes > 0
    if how == "outcome":
        pair.first.finish(pair.assignment)
    else:
        pair.client.send(Cancel(task=pair.task, ranges=((0, 1),)))
        pair.desk.run()
    assert pair.desk.core.ledger.checkpoints.bytes == 0
    [gone] = pair.desk.operations(ForgetCheckpoints)
    assert (gone.task, gone.indices) == (pair.task, (0,))


def test_above_the_limit_the_former_one_stays_and_a_note_says_so_once_a_minute() -> None:
    pair = Pair(n=2, limits=Limits(checkpoint_bytes=2_000))
    keep(pair.first, pair.assignment, 1, bytes(1_000))
    keep(pair.first, pair.assignment, 2, bytes(1_800))
    keep(pair.first, pair.assignment, 3, bytes(1_800))
    said = [note for note in pair.desk.notes if "checkpoints take" in note]
    assert len(said) == 1
    assert "bytes=1800" in said[0]
    keep(pair.first, pair.assignment, 4, bytes(100))
    # Nobody is taken for dead: the controller itself was held up for so long.
    pair.desk.now_ms += 60_000
    keep(pair.first, pair.assignment, 5, bytes(1_800))
    said = [note for note in pair.desk.notes if "checkpoints take" in note]
    assert len(said) == 2
    assert "count=2" in said[1]
    assert [one.number for one in pair.desk.operations(SaveCheckpoint)] == [1, 4]


def test_checkpoint_is_on_the_account_of_its_device() -> None:
    desk = Desk().begin()
    first = desk.device("first", more={"queue_bytes_max": 10_000})
    client = desk.client()
    client.submit(1)
    keep(first, first.assignments[0], 1, bytes(9_900))
    second = desk.device("second", slots=2, more={"queue_bytes_max": 10_000})
    first.say("lost")
    assert [len(one.checkpoint[1]) for one in second.assignments if one.checkpoint] == [9_900]
    assert desk.core.fleet.devices["second"].work_bytes > 9_900
    client.submit(30)
    assert desk.core.fleet.devices["second"].work_bytes <= 10_000
    second.finish(second.assignments[0])
    assert desk.core.fleet.devices["second"].work_bytes < 1_000


def test_state_that_no_device_has_room_for_is_dropped_and_the_call_begins_anew() -> None:
    desk = Desk().begin()
    first = desk.device("first", more={"queue_bytes_max": 10_000})
    desk.client().submit(1)
    keep(first, first.assignments[0], 1, bytes(9_900))
    second = desk.device("second", more={"queue_bytes_max": 5_000})
    first.say("lost")
    assert given(second) == [(0, 1, None)]
    assert desk.core.ledger.checkpoints.bytes == 0
    assert [note for note in desk.notes if "begins anew: no device has room" in note]


def test_large_checkpoint_goes_in_parts() -> None:
    pair = Pair()
    large = bytes(range(256)) * (CALL_BYTES_MAX // 256)
    keep(pair.first, pair.assignment, 1, large)
    for _ in range(100):
        pair.desk.advance(5)
    assert len(pair.desk.operations(SaveCheckpoint)) == 1
    pair.lose()
    for _ in range(100):
        pair.desk.advance(5)
    assert given(pair.second) == [(0, 1, (1, large))]


def test_questions_are_answered_with_what_is_kept_and_what_was_gone_on_from() -> None:
    pair = Pair()
    keep(pair.first, pair.assignment, 3, b"three")
    pair.desk.advance(1_500)
    pair.client.send(Query(id=1, what="explain", name=f"{pair.task}.0"))
    pair.desk.run()
    pair.lose()
    pair.client.send(Query(id=2, what="history", name=f"{pair.task}.0"))
    pair.desk.run()
    kept, resumed = [json.loads(answer.body) for answer in pair.client.of(Answer)]
    assert kept["checkpoint"] == {
        "number": 3,
        "bytes": 5,
        "device": "first",
        "saved": True,
        "age_s": 1.5,
    }
    assert "resumed_bytes" not in resumed["attempts"][0]
    last = resumed["attempts"][1]
    assert (last["resumed_number"], last["resumed_bytes"]) == (3, 5)
    assert last["resumed_age_s"] == 1.5


def test_microcontroller_is_not_given_a_state_and_begins_anew() -> None:
    named = {"functions": {"org.app.task": "1"}}
    desk = Desk().begin()
    pi = desk.device("pi", more=named)
    desk.client().submit(1, form="named", function=("org.app.task", "1"))
    keep(pi, pi.assignments[0], 1, bytes(2_000))
    mcu = desk.device("mcu", more={"profile": "mcu", "packet_bytes_max": 1_024, **named})
    pi.say("lost")
    assert given(mcu) == [(0, 1, None)]
