"""Second attempts of slow calls: when, where, and what becomes of the one that is not needed."""

import pytest

from core.desk import TOPICS, Desk, FakeClient, FakeDevice
from forage_controller.core.stragglers import copy_us, left_us
from forage_wire.messages import Assignment, CancelAssigned, Progress, Started

SECOND_US = 1_000_000
SLOW = 3
"""The call that takes long."""


@pytest.mark.parametrize(
    ("elapsed_us", "mean_us", "permille", "left"),
    [
        # Nothing is known: no prediction.
        (9 * SECOND_US, None, 0, None),
        # Not slow yet; then as long again as it has run.
        (1 * SECOND_US, SECOND_US, 0, None),
        (2 * SECOND_US, SECOND_US, 0, 2 * SECOND_US),
        # It says how far it is: (1 - progress) / rate.
        (3 * SECOND_US, None, 250, 9 * SECOND_US),
        (3 * SECOND_US, SECOND_US, 750, 1 * SECOND_US),
        # Far enough to end about when the others do.
        (1 * SECOND_US, SECOND_US, 900, None),
    ],
)
def test_what_is_left_of_a_slow_call(
    elapsed_us: int, mean_us: float | None, permille: int, left: float | None
) -> None:
    assert left_us(elapsed_us, mean_us, permille) == left


def test_a_copy_takes_as_long_as_others_do_or_as_the_strengths_say() -> None:
    assert copy_us(SECOND_US, 5.0, 0, strength=1, other=2) == 5.0
    assert copy_us(SECOND_US, None, 500, strength=1, other=4) == SECOND_US / 2


def _start(device: FakeDevice, client: FakeClient, given: Assignment, index: int) -> None:
    task = f"{client.name}-1"
    topic = TOPICS.task(client.user, client.name, task, device.name)
    device.send(Started(rows=((task, index, given.assignment),)), topic)
    device.desk.run()


def _holding(device: FakeDevice, index: int) -> Assignment:
    return next(each for each in device.assignments if each.low <= index < each.high)


def _straggling(
    **options: object,
) -> tuple[Desk, FakeClient, FakeDevice, FakeDevice, Assignment]:
    """A task of which one call of pi1 has run three times as long as the others took."""
    desk = Desk(detect_ms=3_600_000).begin()
    pi1 = desk.device("pi1")
    client = desk.client()
    client.submit(4, **options)
    topic = TOPICS.outbox("pi1") if "settle" in options else ""
    for index in range(3):
        given = _holding(pi1, index)
        _start(pi1, client, given, index)
        desk.advance(700)
        pi1.finish(given, indices=(index, index + 1), run_us=700_000, topic=topic)
    slow = _holding(pi1, SLOW)
    _start(pi1, client, slow, SLOW)
    pi2 = desk.device("pi2")
    return desk, client, pi1, pi2, slow


def test_a_call_that_takes_much_longer_than_others_gets_a_second_attempt() -> None:
    desk, _client, _pi1, pi2, _slow = _straggling()
    desk.advance(1_000)
    assert pi2.assignments == []
    desk.advance(3_000)
    (clone,) = pi2.assignments
    assert (clone.low, clone.high) == (SLOW, SLOW + 1)
    assert desk.core.assignments.clones == 1


def test_the_first_to_end_wins_and_the_other_is_killed() -> None:
    desk, _client, pi1, pi2, slow = _straggling()
    desk.advance(4_000)
    (clone,) = pi2.assignments
    pi2.finish(clone, run_us=700_000)
    (cancelled,) = pi1.of(CancelAssigned)
    assert (cancelled.assignment, cancelled.ranges, cancelled.force) == (
        slow.assignment,
        ((SLOW, SLOW + 1),),
        True,
    )
    assert desk.core.assignments.clones_first == 1
    settled = desk.core.ledger.settled
    pi1.finish(slow)
    assert desk.core.ledger.settled == settled


@pytest.mark.parametrize("first", ["pi1", "pi2"])
def test_the_loss_of_one_attempt_starts_no_third(first: str) -> None:
    desk, _client, pi1, pi2, slow = _straggling()
    desk.advance(4_000)
    (clone,) = pi2.assignments
    lost, other, left = (pi1, pi2, clone) if first == "pi1" else (pi2, pi1, slow)
    lost.say("lost")
    pi3 = desk.device("pi3")
    desk.run()
    assert pi3.assignments == []
    assert desk.core.backlog.waiting == 0
    other.finish(left)
    assert desk.core.ledger.settled == 4


def test_the_loss_of_both_attempts_lets_the_call_wait_again() -> None:
    desk, _client, pi1, pi2, _slow = _straggling()
    desk.advance(4_000)
    pi1.say("lost")
    pi2.say("lost")
    pi3 = desk.device("pi3")
    assert [each.low for each in pi3.assignments] == [SLOW]


def test_an_error_of_one_attempt_that_is_not_final_waits_for_the_other() -> None:
    desk, _client, pi1, pi2, slow = _straggling(retries=2)
    desk.advance(4_000)
    (clone,) = pi2.assignments
    pi2.finish(clone, errors=((clone.low, "error", False),))
    assert len(pi2.assignments) == 1
    assert len(pi1.assignments) == 4
    pi1.finish(slow, errors=((SLOW, "error", False),))
    again = (pi1.assignments[4:] + pi2.assignments[1:])[0]
    assert (again.low, again.tries) == (SLOW, 2)


@pytest.mark.parametrize(
    "options",
    [
        {"at_most_once": True},
        {"exclusive": True, "settle": "controller"},
        {"clones": False},
    ],
)
def test_what_must_not_run_twice_has_no_second_attempt(options: dict[str, object]) -> None:
    desk, _client, _pi1, pi2, _slow = _straggling(**options)
    desk.advance(5_000)
    assert pi2.assignments == []


def test_nothing_is_cloned_while_other_calls_wait() -> None:
    desk, client, _pi1, pi2, _slow = _straggling()
    client.submit(1, requires=("camera",))
    desk.advance(4_000)
    assert pi2.assignments == []


def test_a_call_far_ahead_is_not_cloned_on_a_device_that_would_end_later() -> None:
    desk, client, pi1, pi2, _slow = _straggling()
    task = f"{client.name}-1"
    topic = TOPICS.task(client.user, client.name, task, "pi1")
    for _ in range(40):
        desk.advance(100)
        pi1.send(Progress(task=task, index=SLOW, permille=950, text=""), topic)
        desk.run()
    assert pi2.assignments == []


def test_a_controller_with_one_long_call_is_woken_ever_more_rarely() -> None:
    desk = Desk(detect_ms=3_600_000).begin()
    pi1 = desk.device("pi1")
    client = desk.client()
    client.submit(1)
    desk.device("pi2")
    _start(pi1, client, pi1.assignments[0], 0)
    desk.advance(100_000)
    looks = 0
    end_ms = desk.now_ms + 100_000
    while (due := desk.core.dispatcher.next_wakeup_ms()) is not None and due < end_ms:
        desk.now_ms = max(desk.now_ms, due)
        desk.run()
        looks += 1
    assert looks <= 12


def test_both_attempts_fail_while_the_first_ones_slice_goes_on_and_the_call_waits_again() -> None:
    desk = Desk(detect_ms=3_600_000).begin()
    pi1 = desk.device("pi1")
    client = desk.client()
    # Measured as quick, so that the slow call has others behind it in its slice.
    client.submit(40, retries=3)
    for index in range(7):
        given = _holding(pi1, index)
        pi1.finish(given, indices=(index, index + 1), run_us=100)
    slow = next(each for each in pi1.assignments if each.high - each.low > 1 and each.low >= 7)
    for given in pi1.assignments:
        if given is not slow and given.low >= 7:
            pi1.finish(given, run_us=100)
    while desk.core.backlog.waiting:
        for given in list(pi1.assignments):
            if given is not slow and given.assignment in desk.core.assignments.open:
                pi1.finish(given, run_us=100)
    _start(pi1, client, slow, slow.low)
    pi2 = desk.device("pi2")
    desk.advance(4_000)
    clone = _holding(pi2, slow.low)
    pi1.finish(slow, indices=(slow.low, slow.low + 1), errors=((slow.low, "error", False),))
    assert slow.assignment in desk.core.assignments.open
    assert len(pi2.assignments) == 1
    pi2.finish(clone, errors=((slow.low, "error", False),))
    desk.run()
    again = [each for each in [*pi1.assignments, *pi2.assignments] if each.tries == 2]
    assert [each.low for each in again] == [slow.low]
