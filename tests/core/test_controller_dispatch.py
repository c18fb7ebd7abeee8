"""The controller's core: who gets what, in turn; what happens to calls that nobody can take."""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import cbor2
import pytest

from core.desk import CODE, TOPICS, Desk, FakeClient, FakeDevice
from forage_controller.core.dispatch import slice_calls
from forage_controller.core.operations import Operation, SaveOutcomes
from forage_wire.codec import decode
from forage_wire.messages import (
    Assign,
    AssignmentRefused,
    Code,
    Outcomes,
    Started,
    Submit,
    Trim,
    Trimmed,
)


def work_off(desk: Desk, *devices: FakeDevice, rounds: int = 5_000, run_us: int = 10) -> None:
    """Devices finish what they have, in turn, until nothing is left."""
    for _ in range(rounds):
        busy = [device for device in devices if device.assignments]
        if not busy:
            return
        for device in busy:
            device.finish(device.assignments.pop(0), run_us=run_us)
    raise AssertionError("work goes on for ever")


# -- turns ------------------------------------------------------------------------------------------


def test_clients_take_turns_whatever_their_calls_require() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1", labels={"a": "1", "b": "1"})
    clients = [desk.client(name=str(number) * 13) for number in range(4)]
    # Three share a requirement, the fourth has one of its own.
    for number, client in enumerate(clients):
        client.submit(100, requires=("a",) if number < 3 else ("b",))
    given: dict[str, int] = {}
    first_come = len(pi.assignments)
    for count in range(200):
        assignment = pi.assignments.pop(0)
        pi.finish(assignment, run_us=40_000)
        if count >= first_come:
            owner = cbor2.loads(assignment.header)["c"]
            given[owner] = given.get(owner, 0) + 1
    shares = sorted(given.values())
    assert len(shares) == 4
    assert shares[-1] <= shares[0] + 2, shares


def test_a_higher_priority_goes_first() -> None:
    desk = Desk().begin()
    client = desk.client()
    low = client.submit(2)
    high = client.submit(2, priority=5)
    pi = desk.device("pi1")
    tasks = [cbor2.loads(row.header)["t"] for row in pi.assignments]
    assert tasks == [high, high, low, low]


def test_a_function_with_nothing_running_goes_beyond_the_window_though_others_have_room() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1", labels={"camera": "yes"})
    desk.device("idle")
    client = desk.client()
    client.submit(500, requires=("camera",))
    assert desk.core.backlog.waiting
    single = client.submit(1, requires=("camera",), retries=1)
    assert [cbor2.loads(row.header)["t"] for row in pi.assignments][-1] == single


def test_what_may_run_once_only_waits_here_and_not_on_a_busy_device() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1", slots=2)
    client = desk.client()
    client.submit(6, at_most_once=True)
    assert len(pi.assignments) == 2
    for at in range(4):
        pi.finish(pi.assignments[at])
        assert len(pi.assignments) == 3 + at


def test_a_long_call_keeps_one_slot_busy_and_not_its_neighbours() -> None:
    desk = Desk(detect_ms=60_000).begin()
    pi = desk.device("pi1", slots=2)
    client = desk.client()
    client.submit(1, timeout_ms=5)
    (long,) = pi.assignments
    client.submit(200)
    pi.assignments.remove(long)
    desk.advance(5_000)
    for _ in range(20):
        assert len(pi.assignments) > 3, "the other slot has work ahead"
        pi.finish(pi.assignments.pop(0), run_us=2_000)


def test_a_device_is_given_no_more_at_a_time_than_its_inventory_can_name() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1", slots=100)
    desk.client().submit_pages(2, 1_900)
    desk.advance(1_000)
    assert len(pi.assignments) == 2_048


def test_a_share_of_the_backlog_keeps_every_slot_busy_to_the_end() -> None:
    arguments: dict[str, Any] = {"slice_us": 10_000, "slice_us_min": 100, "growth": 4_096}
    assert slice_calls(mean_us=None, backlog=1_000, slots=2, **arguments) == 1
    assert slice_calls(mean_us=10.0, backlog=100_000, slots=2, **arguments) == 1_000
    assert slice_calls(mean_us=10.0, backlog=40, slots=2, **arguments) == 10
    assert slice_calls(mean_us=1_000.0, backlog=40, slots=10, **arguments) == 2
    assert slice_calls(mean_us=1e9, backlog=40, slots=1, **arguments) == 1
    assert slice_calls(mean_us=0.0, backlog=10**6, slots=1, **arguments) == 4_096


# -- taking back ------------------------------------------------------------------------------------


def test_nobody_wakes_up_to_take_back_what_is_not_there() -> None:
    desk = Desk(detect_ms=3_600_000).begin()
    desk.device("pi1")
    desk.client().submit(1)
    desk.device("pi2")
    desk.advance(5_000)
    wakeups = 0
    end = desk.now_ms + 20_000
    while (due := desk.core.next_wakeup_ms()) is not None and due < end:
        desk.now_ms = max(desk.now_ms, due)
        desk.run()
        wakeups += 1
    assert wakeups < 20


def test_what_is_given_back_goes_to_whoever_is_free() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    desk.client().submit(20)
    pi2 = desk.device("pi2")
    for _ in range(40):
        desk.advance(25)
        for trim in pi.of(Trim):
            for number, high in trim.rows:
                pi.assignments = [row for row in pi.assignments if row.assignment != number]
                pi.send(Trimmed(rows=((number, high),)))
        pi.received.clear()
        desk.run()
        if pi2.assignments:
            pi2.finish(pi2.assignments.pop(0), run_us=1_000)
    assert desk.core.ledger.settled >= 10


def _says_started(pi: FakeDevice, client: FakeClient, task: str, *numbers: int) -> None:
    rows = tuple(
        (task, row.low, row.assignment) for row in pi.assignments if row.assignment in numbers
    )
    pi.send(Started(rows=rows), TOPICS.task("bob", client.name, task, pi.name))
    pi.desk.run()


def test_what_waits_behind_newer_calls_that_run_is_taken_back() -> None:
    desk = Desk(detect_ms=3_600_000).begin()
    pi = desk.device("pi1")
    client = desk.client()
    task = client.submit(3)
    # It lets functions take turns: the newest of three began, and the oldest waits.
    oldest, *_others, newest = [row.assignment for row in pi.assignments]
    _says_started(pi, client, task, newest)
    for row in pi.assignments[1:-1]:
        pi.finish(row, run_us=10)
    desk.device("pi2")
    pi.received.clear()
    desk.advance(100)
    asked = [number for trim in pi.of(Trim) for number, _high in trim.rows]
    assert asked == [oldest]


def test_the_tail_of_a_slice_in_which_a_call_runs_long_is_taken_back() -> None:
    desk = Desk(detect_ms=3_600_000).begin()
    pi = desk.device("pi1")
    client = desk.client()
    task = client.submit(256)
    while not any(row.high - row.low >= 4 for row in pi.assignments):
        pi.finish(pi.assignments.pop(0), run_us=10)
    first = next(row for row in pi.assignments if row.high - row.low >= 4)
    for row in pi.assignments:
        if row is not first:
            pi.finish(row, run_us=10)
    desk.advance(100)
    pi.assignments = [first]
    _says_started(pi, client, task, first.assignment)
    desk.device("pi2")
    pi.received.clear()
    desk.advance(100)
    asked = [(number, high) for trim in pi.of(Trim) for number, high in trim.rows]
    assert asked == [(first.assignment, (first.low + first.high) // 2)]


def test_what_has_not_arrived_is_not_asked_for_before_it_has() -> None:
    desk = Desk(detect_ms=3_600_000).begin()
    pi = desk.device("pi1")
    take = pi.on_inbox
    on_the_way: list[bytes] = []
    pi.on_inbox = on_the_way.append  # type: ignore[method-assign]
    desk.client().submit(4)
    desk.device("pi2")
    desk.advance(200)
    kinds = {type(decode(payload)) for payload in on_the_way}
    assert kinds >= {Assign}
    assert Trim not in kinds, "it would be answered by nobody"
    pi.on_inbox = take  # type: ignore[method-assign]
    for payload in on_the_way:
        take(payload)
    desk.advance(2_000)
    assert pi.of(Trim)


def test_an_announced_call_is_asked_for_too_and_after_a_no_the_other_one_is() -> None:
    desk = Desk(detect_ms=3_600_000).begin()
    pi = desk.device("pi1")
    client = desk.client()
    task = client.submit(2)
    _says_started(pi, client, task, *[row.assignment for row in pi.assignments])
    pi2 = desk.device("pi2")
    pi.say("lost")
    # Both may have killed pi1; pi2 says their start before either begins.
    assert [row.announce for row in pi2.assignments] == [True, True]
    first, second = [row.assignment for row in pi2.assignments]
    _says_started(pi2, client, task, first, second)
    desk.device("pi3")
    desk.advance(25)
    ((number, _high),) = pi2.of(Trim)[0].rows
    assert number in (first, second)
    pi2.send(Trimmed(rows=((number, 2),)))
    desk.advance(200)
    asked = [row[0] for trim in pi2.of(Trim) for row in trim.rows]
    assert sorted(asked) == [first, second], "each once"


# -- refusals ---------------------------------------------------------------------------------------


def refuse_all(pi: FakeDevice, reason: str) -> int:
    """The device refuses what it was given; how many assignments that were."""
    given, pi.assignments = pi.assignments, []
    for assignment in given:
        pi.send(AssignmentRefused(assignment=assignment.assignment, reason=reason))
    pi.desk.run()
    return len(given)


@pytest.mark.parametrize("reason", ["full", "draining", "size", "something new"])
def test_a_device_that_refuses_is_asked_ever_less_often_and_never_forgotten(reason: str) -> None:
    desk = Desk(detect_ms=3_600_000).begin()
    pi = desk.device("pi1")
    desk.client().submit(1)
    at_ms: list[int] = []
    for _ in range(12):
        assert refuse_all(pi, reason) == 1
        at_ms.append(desk.now_ms)
        while not pi.assignments:
            due = desk.core.next_wakeup_ms()
            assert due is not None
            desk.now_ms = max(desk.now_ms, due)
            desk.run()
    pauses = [later - earlier for earlier, later in pairwise(at_ms)]
    assert pauses[0] == 100
    assert pauses == sorted(pauses)
    assert pauses[-1] == pauses[-2] == 12_800
    pi.finish(pi.assignments[0])
    assert desk.core.ledger.settled == 1


def test_what_one_device_refuses_another_gets_at_once() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    desk.client().submit(3)
    pi2 = desk.device("pi2")
    assert refuse_all(pi, "full") == 3
    assert sorted(row.low for row in pi2.assignments) == [0, 1, 2]


def named_task(client: FakeClient, n: int = 1, size: int = 10, **options: Any) -> str:
    """A task of a named function whose calls have some `size`."""
    page = client.page(n, form="named", function=("org.example.read", "1"), **options)
    calls = cbor2.dumps([b"x" * size] * n)
    page = type(page)(header=page.header, calls=calls, key=page.key)
    client.send(Submit(pages=(page,)))
    client.desk.run()
    return str(cbor2.loads(page.header)["t"])


NAMED = {"functions": {"org.example.read": "1"}}


def test_a_function_that_a_device_says_and_has_not_is_not_asked_of_it_again() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1", more=NAMED)
    client = desk.client()
    named_task(client, wait_ms=5_000)
    assert refuse_all(pi, "function") == 1
    desk.advance(4_000)
    assert not pi.assignments
    desk.advance(2_000)
    (outcomes,) = client.of(Outcomes)
    assert "refused this function" in cbor2.loads(outcomes.sets[0].data)[0]["message"]


def test_a_function_that_a_device_lacked_is_asked_of_it_when_it_says_otherwise() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1", more=NAMED)
    named_task(desk.client())
    refuse_all(pi, "function")
    pi.more = {"functions": {"org.example.read": "1", "org.example.write": "1"}}
    pi.say_capabilities()
    desk.run()
    assert pi.assignments


# -- what fits --------------------------------------------------------------------------------------


MCU = {"profile": "mcu", "packet_bytes_max": 1_024, **NAMED}


def test_a_microcontroller_gets_only_calls_that_fit_its_packets() -> None:
    desk = Desk().begin()
    desk.device("mcu", more=MCU)
    client = desk.client()
    named_task(client, size=10)
    mcu = desk.devices["mcu"]
    assert len(mcu.assignments) == 1
    mcu.finish(mcu.assignments[0])
    big = named_task(client, size=2_000)
    (outcomes,) = client.of(Outcomes)
    assert outcomes.sets[0].task == big
    assert "its packets hold 1024 bytes" in cbor2.loads(outcomes.sets[0].data)[0]["message"]
    assert len(mcu.assignments) == 1


def test_a_call_too_large_for_one_device_goes_to_another() -> None:
    desk = Desk().begin()
    mcu = desk.device("mcu", more=MCU)
    pi = desk.device("pi1", more=NAMED)
    named_task(desk.client(), size=2_000)
    assert not mcu.assignments
    assert len(pi.assignments) == 1


def test_a_call_too_large_for_who_is_free_waits_for_who_is_not() -> None:
    desk = Desk().begin()
    mcu = desk.device("mcu", more=MCU)
    client = desk.client()
    pi = desk.device("pi1", more={**NAMED, "queue_bytes_max": 3_000})
    named_task(client, size=2_500, devices=("pi1",))
    assert len(pi.assignments) == 1
    task = named_task(client, size=2_000)
    assert not mcu.assignments
    assert not client.of(Outcomes)
    pi.finish(pi.assignments[0])
    assert [cbor2.loads(row.header)["t"] for row in pi.assignments][1:] == [task]


def test_arguments_on_a_device_never_exceed_what_it_holds() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1", slots=2, more={**NAMED, "queue_bytes_max": 5_000})
    client = desk.client()
    for size in (900, 3_000, 10):
        named_task(client, n=40, size=size)
    done = 0
    while pi.assignments:
        held = sum(len(row.calls) for row in pi.assignments)
        assert held <= 5_000
        given = pi.assignments.pop(0)
        done += given.high - given.low
        pi.finish(given, run_us=20)
    assert done == 120


# -- nobody -----------------------------------------------------------------------------------------


def test_each_call_waits_its_own_time_for_a_device() -> None:
    desk = Desk().begin()
    client = desk.client()
    first = client.submit(1, wait_ms=10_000)
    desk.advance(9_000)
    second = client.submit(1, wait_ms=10_000)
    desk.advance(2_000)
    ended = [row.task for message in client.of(Outcomes) for row in message.sets]
    assert ended == [first]
    pi = desk.device("pi1")
    assert [cbor2.loads(row.header)["t"] for row in pi.assignments] == [second]


def test_a_device_that_comes_and_goes_starts_the_wait_anew() -> None:
    desk = Desk().begin()
    client = desk.client()
    client.submit(1, wait_ms=10_000, devices=("pi1",))
    client.submit(50, devices=("pi1",), priority=3)
    desk.advance(9_000)
    pi = desk.device("pi1")
    pi.say("lost")
    desk.advance(9_000)
    assert not client.of(Outcomes)
    desk.advance(2_000)
    assert client.of(Outcomes)


def test_a_million_calls_without_a_device_take_little_to_end() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    client = desk.client()
    client.submit(200, retries=1, wait_ms=500_000)
    task = client.submit_pages(60, 4_096, wait_ms=60_000)
    pi.say("lost")
    # All of them have been waiting for longer than that, but not without a device.
    desk.advance(59_000)
    desk.commits = False
    desk.saved.clear()
    desk.advance(2_000)
    (save,) = [save for save in desk.uncommitted if _made(save.operations)]
    assert sum(len(row.errors) for row in _made(save.operations)) <= 65_536 + 4_096
    for _ in range(20):
        desk.commit()
        desk.run()
    made = _made(desk.saved)
    assert sum(len(row.errors) for row in made) == 60 * 4_096
    assert sum(len(row.data) for row in made) < 50_000
    assert desk.core.backlog.waiting == 200
    assert desk.core.ledger.tasks[task].settled.count == 60 * 4_096


def _made(operations: Iterable[Operation]) -> list[SaveOutcomes]:
    return [row for row in operations if isinstance(row, SaveOutcomes) and row.assignment == 0]


# -- losses -----------------------------------------------------------------------------------------


def test_a_call_that_kills_all_devices_that_may_run_it_ends_though_others_are_alive() -> None:
    desk = Desk().begin()
    for number in range(5):
        desk.device(f"other{number}")
    pair = [desk.device(name, labels={"gpu": "1"}) for name in ("gpu1", "gpu2")]
    client = desk.client()
    client.send(Code(hash=CODE, form="source", data=b"code"))
    page = client.page(1, requires=("gpu",))
    client.send(Submit(pages=(page,)))
    desk.run()
    task = cbor2.loads(page.header)["t"]
    for loss in range(5):
        (holder,) = [pi for pi in pair if pi.assignments]
        given = holder.assignments.pop()
        assert given.losses == loss
        topic = TOPICS.task(client.user, client.name, task, holder.name)
        holder.send(Started(rows=((task, 0, given.assignment),)), topic)
        desk.run()
        holder.say("lost")
        holder.link = None
        holder.say("online")
        desk.run()
    (outcomes,) = client.of(Outcomes)
    assert outcomes.sets[0].errors == ((0, "lost", True),)
