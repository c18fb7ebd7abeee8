"""The controller's core: what a device says it holds, against what is on the books."""

import cbor2
import pytest

from core.desk import TOPICS, Desk, FakeClient, FakeDevice
from core.test_controller_restart import TASK, _assignment, _state
from forage_controller.core.operations import SaveAssignment, TrimAssignment
from forage_wire.messages import (
    Assign,
    Assignment,
    Cancel,
    CancelAssigned,
    Forget,
    NeedCode,
    Report,
    Started,
    Submit,
    TaskStatus,
    Trim,
    Trimmed,
)


def again(pi: FakeDevice, *rows: tuple[int, str, int, int, str]) -> None:
    """The device is back on a new connection, and says what it holds."""
    pi.answers = False
    pi.counter += 1
    pi.link = None
    pi.join()
    pi.inventory(*rows)
    pi.desk.run()


def test_a_tail_given_back_on_an_earlier_link_is_taken_back_from_the_inventory() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    client = desk.client()
    task = client.submit(2_000)
    while not (long := [row for row in pi.assignments if row.high - row.low >= 4]):
        pi.finish(pi.assignments.pop(0), run_us=10)
    given = long[0]
    desk.device("pi2")
    rows = [(row.assignment, task, row.low, row.high, "queued") for row in pi.assignments]
    rows = [
        (number, name, low, low + 1 if number == given.assignment else high, state)
        for number, name, low, high, state in rows
    ]
    again(pi, *rows)
    opened = desk.core.assignments.open[given.assignment]
    assert (opened.low, opened.end) == (given.low, given.low + 1)
    assert desk.operations(TrimAssignment)[-1].high == given.low + 1
    # It waits again, or is assigned again already.
    waiting = [(each.low, each.high) for each in opened.page.pending]
    others = [each for each in opened.page.open.values() if each.number > given.assignment]
    assert (given.low + 1, given.high) in waiting + [(each.low, each.end) for each in others]


def test_a_trim_that_was_not_answered_is_asked_again_on_the_next_link() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    client = desk.client()
    task = client.submit(20)
    desk.device("pi2")
    desk.advance(50)
    asked = {row[0] for trim in pi.of(Trim) for row in trim.rows}
    assert asked
    pi.received.clear()
    again(pi, *[(row.assignment, task, row.low, row.high, "queued") for row in pi.assignments])
    desk.advance(3_000)
    assert asked & {row[0] for trim in pi.of(Trim) for row in trim.rows}


def test_a_dangerous_call_stays_announced_when_it_is_taken_back() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    client = desk.client()
    task = client.submit(1)
    topic = TOPICS.task("bob", client.name, task, "pi1")
    pi.send(Started(rows=((task, 0, pi.assignments[0].assignment),)), topic)
    desk.run()
    pi2 = desk.device("pi2")
    pi.say("lost")
    (dangerous,) = pi2.assignments
    assert (dangerous.announce, dangerous.losses) == (True, 1)
    again(pi2)
    assert [(row.announce, row.losses) for row in pi2.assignments] == [(True, 1)] * 2


@pytest.mark.parametrize("settle", ["direct", "controller"])
def test_only_what_the_controller_settles_is_killed_where_it_runs_on_a_closed_assignment(
    settle: str,
) -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    client = desk.client()
    task = client.submit(1, at_most_once=settle == "direct", settle=settle)
    (given,) = pi.assignments
    desk.device("pi2")
    pi.say("lost")
    pi.received.clear()
    again(pi, (given.assignment, task, 0, 1, "running"))
    assert [(row.assignment, row.force) for row in pi.of(CancelAssigned)] == [
        (given.assignment, settle == "controller")
    ]
    assert given.assignment not in desk.core.assignments.open


@pytest.mark.parametrize(
    ("number", "low", "high"),
    [(77, 3, 3), (77, 3, 1), (2**62, 0, 1), ((6 << 40) + 1_000, 0, 1), (77, 2, 9)],
    ids=["empty", "backwards", "no epoch of ours", "never given out", "over the page's end"],
)
def test_an_assignment_that_cannot_be_is_not_adopted(number: int, low: int, high: int) -> None:
    desk = Desk(recovered=_state(4)).begin()
    pi = desk.device("pi1", answers=False)
    pi.inventory((number, TASK, low, high, "running"))
    desk.run()
    assert number not in desk.core.assignments.open
    assert not desk.operations(SaveAssignment)
    assert desk.core.backlog.waiting == 4


def test_what_is_adopted_lacks_what_was_settled_before() -> None:
    desk = Desk(recovered=_state(4, settled=((0, 2),))).begin()
    number = (5 << 40) + 77
    pi = desk.device("pi1", answers=False)
    pi.inventory((number, TASK, 0, 4, "running"))
    desk.run()
    opened = desk.core.assignments.open[number]
    assert opened.left == 2
    assert desk.core.backlog.waiting == 0


@pytest.mark.parametrize("failed_before", [False, True])
def test_a_call_that_ran_when_its_device_was_lost_may_still_fail_there(
    failed_before: bool,
) -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    client = desk.client()
    task = client.submit(2_000, retries=3)
    while not (long := [row for row in pi.assignments if row.high - row.low >= 4]):
        pi.finish(pi.assignments.pop(0), run_us=10)
    given = long[0]
    topic = TOPICS.task("bob", client.name, task, "pi1")
    running = given.low
    if failed_before:
        pi.finish(given, indices=(running, running + 1), errors=((running, "error", False),))
        running += 1
    pi.send(Started(rows=((task, running, given.assignment),)), topic)
    desk.run()
    pi.say("lost")
    desk.run()
    again(pi, (given.assignment, task, given.low, given.high, "running"))
    opened = desk.core.assignments.open[given.assignment]
    assert list(opened.reported) == ([(given.low, given.low + 1)] if failed_before else [])
    counters = opened.task.counters
    assert counters[running] == (0, 0, 1)
    pi.finish(given, indices=(running, running + 1), errors=((running, "error", False),))
    desk.run()
    assert counters[running] == (1, 0, 1)
    again_of = {each.low: each.counters for each in opened.page.pending} | {
        row.low: (row.tries, row.deaths, row.losses)
        for row in pi.assignments
        if row.assignment > given.assignment
    }
    assert again_of[running] == (1, 0, 1)
    if failed_before:
        assert again_of[given.low] == (1, 0, 0)


def test_work_on_a_page_still_on_its_way_is_adopted_when_it_comes() -> None:
    desk = Desk(recovered=_state(4)).begin()
    number = (5 << 40) + 77
    pi = desk.device("pi1", answers=False)
    desk.core.ledger.tasks[TASK].pages[0].last = False
    desk.core.ledger.tasks[TASK].total = None
    pi.inventory((number, TASK, 4, 8, "running"))
    desk.run()
    assert not pi.of(CancelAssigned)
    client = desk.client()
    page = client.page(4, task=TASK, first=4)
    header_of_first = desk.core.ledger.tasks[TASK].pages[0].queue_key
    client.send(Submit(pages=(page,)))
    desk.run()
    assert desk.core.ledger.tasks[TASK].pages[4].queue_key == header_of_first
    assert number in desk.core.assignments.open
    assert not pi.of(Forget)


def test_a_call_whose_error_was_counted_before_a_restart_waits_with_its_counters() -> None:
    saved = _assignment(0, 3, "0" * 15 + "1-1")
    state = _state(3, assignments=(saved,), counters=((1, 2, 1, 0, 0),), retries=3)
    desk = Desk(recovered=state).begin()
    assert desk.core.backlog.waiting == 1
    pi = desk.device("pi1", answers=False)
    pi.inventory((saved.assignment, TASK, 0, 3, "running"))
    desk.run()
    desk.answer_loads()
    opened = desk.core.assignments.open[saved.assignment]
    assert opened.left == 2
    waiting = [each for page in opened.task.pages.values() for each in page.pending]
    assert [(each.low, each.high, each.counters) for each in waiting] == [(1, 2, (1, 0, 0))]


def test_after_a_restart_the_sessions_that_held_work_are_asked_though_they_say_nothing() -> None:
    desk = Desk(recovered=_state(2, assignments=(_assignment(0, 2, "0" * 15 + "1-4"),)))
    silent = FakeDevice(name="pi1", desk=desk, start="0" * 15 + "1", counter=4)
    desk.devices["pi1"] = silent
    desk.begin()
    assert silent.of(Report)
    assert desk.core.fleet.devices["pi1"].verdict == "alive", "its answer was heard"


def test_a_status_of_before_a_restart_is_cleared_with_its_task() -> None:
    desk = Desk(recovered=_state(2, settled=((0, 2),))).begin()
    client = desk.client()
    client.hello()
    client.collect(TASK, (0, 2))
    desk.advance(2_000)
    topic = TOPICS.status("bob", client.name, TASK)
    assert [message.payload for message in desk.published if message.topic == topic][-1] == b""
    assert not desk.documents("status", TaskStatus)


def test_a_device_that_takes_over_a_name_is_given_nothing_until_it_says_what_it_has() -> None:
    desk = Desk().begin()
    desk.device("pi1", labels={"camera": "yes"}).say("lost")
    client = desk.client()
    client.submit(1, requires=("camera",))
    other = FakeDevice(name="pi1", desk=desk, start="f" * 16, answers=False)
    desk.devices["pi1"] = other
    other.say("online")
    other.inventory()
    desk.run()
    assert not other.of(Assign)
    other.say_capabilities()
    desk.run()
    assert not other.of(Assign), "it has no camera"


def test_code_asked_for_on_an_earlier_link_is_not_owed_any_more() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    pi.send(NeedCode(hashes=tuple(bytes([number]) * 32 for number in range(100))))
    desk.run()
    device = desk.core.fleet.devices["pi1"]
    assert len(device.code_wanted) == 100
    again(pi)
    assert not device.code_wanted


def _killed(pi: FakeDevice) -> list[tuple[int, tuple[tuple[int, int], ...]]]:
    return [(row.assignment, row.ranges) for row in pi.of(CancelAssigned) if row.force]


def test_a_cancelled_call_is_killed_where_it_runs_on_a_device_that_was_thought_dead() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    client = desk.client()
    task = client.submit(2)
    given = {row.low: row.assignment for row in pi.assignments}
    pi.say("lost")
    client.send(Cancel(task=task, ranges=((0, 1),), force=True))
    desk.run()
    pi.received.clear()
    again(pi, *[(number, task, low, low + 1, "running") for low, number in given.items()])
    assert _killed(pi) == [(given[0], ((0, 1),))]
    assert given[1] in desk.core.assignments.open, "the other one runs on"


def test_a_collected_call_is_killed_where_it_runs_on_an_assignment_that_is_not_adopted() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    client = desk.client()
    task = client.submit(2, at_most_once=True)
    given = {row.low: row.assignment for row in pi.assignments}
    pi.say("lost")
    desk.device("pi2")
    client.collect(task, (0, 1))
    pi.received.clear()
    again(pi, *[(number, task, low, low + 1, "running") for low, number in given.items()])
    assert _killed(pi) == [(given[0], ((0, 1),))]


def test_a_restarted_controller_kills_what_was_cancelled_before() -> None:
    start = "0" * 15 + "1"
    saved = (_assignment(0, 1, f"{start}-1"), _assignment(1, 2, f"{start}-1"))
    desk = Desk(recovered=_state(2, collected=((0, 1),), assignments=saved)).begin()
    pi = desk.device("pi1", answers=False)
    pi.inventory(*[(row.assignment, TASK, row.low, row.high, "running") for row in saved])
    # Its session was asked before it was there; that is repeated, and the rest comes behind it.
    desk.advance(1_100)
    assert _killed(pi) == [(saved[0].assignment, ((0, 1),))]


def test_a_call_behind_one_that_runs_on_for_nobody_is_given_to_a_free_device() -> None:
    desk = Desk(detect_ms=3_600_000).begin()
    pi1 = desk.device("pi1")
    client = desk.client()
    task = client.submit(1)
    (stray,) = pi1.assignments
    pi1.say("lost")
    pi2 = desk.device("pi2")
    assert [each.low for each in pi2.assignments] == [0]
    # It was there all the time, and what it runs is with another by now: it may run on.
    pi1.answers = False
    pi1.say("online")
    pi1.inventory((stray.assignment, task, 0, 1, "running"))
    desk.run()
    assert desk.core.fleet.devices["pi1"].strays == {stray.assignment: task}
    pi2.say("draining")
    client.submit(1)
    behind = pi1.assignments[-1]
    assert behind.assignment != stray.assignment
    pi3 = desk.device("pi3")
    desk.advance(100)
    (asked,) = pi1.of(Trim)
    assert asked.rows == ((behind.assignment, behind.low),)
    pi1.send(Trimmed(rows=((behind.assignment, behind.low),)))
    desk.run()
    assert len(pi3.assignments) == 1
    # With its outcome the stray is no more.
    pi1.finish(stray)
    assert desk.core.fleet.devices["pi1"].strays == {}


def stray_of(calls: int) -> tuple[Desk, FakeDevice, FakeDevice, FakeClient, Assignment]:
    """A device that runs on what another one has been given since."""
    desk = Desk(detect_ms=3_600_000).begin()
    pi1 = desk.device("pi1")
    client = desk.client()
    task = client.submit(calls)
    stray = pi1.assignments.pop(0)
    while stray.high - stray.low < min(calls, 4):
        pi1.finish(stray)
        stray = pi1.assignments.pop(0)
    pi1.say("lost")
    pi2 = desk.device("pi2")
    assert pi2.assignments
    pi1.answers = False
    pi1.say("online")
    pi1.inventory((stray.assignment, task, stray.low, stray.high, "running"))
    desk.run()
    assert desk.core.fleet.devices["pi1"].strays == {stray.assignment: task}
    return desk, pi1, pi2, client, stray


def takes_calls_that_run_once(desk: Desk, device: FakeDevice, client: FakeClient) -> bool:
    """Whether a device is thought to be free."""
    for other in desk.devices.values():
        if other is not device:
            other.say("draining")
    device.assignments.clear()
    client.submit(1, at_most_once=True)
    return bool(device.assignments)


def test_a_stray_of_a_task_that_is_over_leaves_its_slot_free_when_it_ends() -> None:
    desk, pi1, pi2, client, stray = stray_of(1)
    pi2.finish(pi2.assignments.pop())
    client.collect(cbor2.loads(stray.header)["t"], (0, 1))
    assert not desk.core.ledger.tasks
    pi1.finish(stray)
    assert takes_calls_that_run_once(desk, pi1, client)


def test_a_stray_that_a_device_is_told_to_forget_keeps_no_slot() -> None:
    desk, pi1, pi2, client, stray = stray_of(1)
    task = cbor2.loads(stray.header)["t"]
    pi2.finish(pi2.assignments.pop())
    client.collect(task, (0, 1))
    pi1.inventory((stray.assignment, task, 0, 1, "running"))
    desk.run()
    assert pi1.of(Forget)[-1].assignments == (stray.assignment,)
    assert takes_calls_that_run_once(desk, pi1, client)


def test_a_device_is_asked_what_is_left_of_a_stray_of_which_some_has_ended() -> None:
    desk, pi1, _pi2, _client, stray = stray_of(2_000)
    # That its first calls have ended was acknowledged before: of these no word comes any more.
    pi1.finish(stray, indices=(stray.high - 1, stray.high))
    asked = len(pi1.of(Report))
    desk.advance(1_500)
    assert len(pi1.of(Report)) == asked + 1
    pi1.inventory()
    desk.run()
    assert desk.core.fleet.devices["pi1"].strays == {}
    desk.advance(10_000)
    assert len(pi1.of(Report)) == asked + 1


def test_a_forced_cancel_kills_what_runs_on_though_another_device_has_it() -> None:
    desk = Desk(detect_ms=3_600_000).begin()
    pi1 = desk.device("pi1")
    client = desk.client()
    task = client.submit(1)
    (stray,) = pi1.assignments
    pi1.say("lost")
    pi2 = desk.device("pi2")
    pi1.answers = False
    pi1.say("online")
    pi1.inventory((stray.assignment, task, 0, 1, "running"))
    desk.run()
    assert not [message for message in pi1.of(CancelAssigned) if message.force]
    client.send(Cancel(task=task, ranges=((0, 1),), force=True))
    desk.run()
    for device, number in ((pi1, stray.assignment), (pi2, pi2.assignments[0].assignment)):
        killed = [message for message in device.of(CancelAssigned) if message.force]
        assert [(each.assignment, each.ranges) for each in killed] == [(number, ((0, 1),))]
