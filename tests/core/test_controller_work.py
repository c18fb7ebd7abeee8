"""The controller's core: from a page to released, with devices that live."""

import cbor2

from core.desk import CODE, TOPICS, Desk
from forage_controller.core.operations import SaveOutcomes, SavePage, SaveReleased
from forage_wire.messages import (
    Acknowledge,
    Acknowledged,
    Cancel,
    CancelAssigned,
    Code,
    ControllerStats,
    Outcomes,
    Released,
    Settled,
    Submit,
    Trim,
    Trimmed,
    Welcome,
)


def test_it_listens_then_rules_with_a_committed_epoch() -> None:
    desk = Desk()
    desk.commits = False
    desk.begin()
    assert desk.presence == ["starting"]
    desk.commit()
    desk.run()
    assert desk.presence == ["starting", "active"]
    assert desk.core.epoch == 1


def test_a_call_goes_out_comes_back_and_is_released() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    client = desk.client()
    task = client.submit(1)
    assert client.of(Welcome)
    assert pi.of(Code)[0].data == b"code"
    (assignment,) = pi.assignments
    assert (assignment.low, assignment.high) == (0, 1)
    assert cbor2.loads(assignment.calls) == [cbor2.dumps([0, [0]])]
    assert client.of(Acknowledged)[0].rows == ((task, 0),)
    pi.finish(assignment)
    assert pi.of(Acknowledge)[0].rows == ((assignment.assignment, ((0, 1),)),)
    client.collect(task, (0, 1))
    assert client.of(Released)[0].tasks == (task,)
    assert desk.operations(SaveReleased)
    assert not desk.core.ledger.tasks
    assert not desk.core.assignments.open


def test_assignments_do_not_wait_for_the_commit_and_acknowledgements_do() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    client = desk.client()
    desk.commits = False
    client.submit(1)
    assert len(pi.assignments) == 1
    assert not client.of(Acknowledged)
    pi.finish(pi.assignments[0])
    assert not pi.of(Acknowledge)
    desk.commit()
    desk.run()
    assert client.of(Acknowledged)
    assert pi.of(Acknowledge)


def test_at_most_once_is_assigned_only_after_its_page_and_assignment_are_committed() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    client = desk.client()
    desk.commits = False
    client.submit(2, at_most_once=True)
    assert not pi.assignments
    desk.commit()
    desk.run()
    assert not pi.assignments
    desk.commit()
    desk.run()
    assert len(pi.assignments) == 1


def test_a_page_sent_twice_is_one_page() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    client = desk.client()
    page = client.page(1)
    client.send(Code(hash=CODE, form="source", data=b"code"))
    client.send(Submit(pages=(page,)))
    desk.run()
    client.send(Submit(pages=(page,)))
    desk.run()
    assert len(pi.assignments) == 1
    assert len(desk.operations(SavePage)) == 1
    assert len(client.of(Acknowledged)) == 2


def test_slices_double_and_every_call_is_given_once() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    client = desk.client()
    client.submit(1_000)
    seen: list[int] = []
    at = 0
    while at < len(pi.assignments):
        assignment = pi.assignments[at]
        at += 1
        seen.extend(range(assignment.low, assignment.high))
        pi.finish(assignment, run_us=10 * (assignment.high - assignment.low))
    assert sorted(seen) == list(range(1_000))
    lengths = [assignment.high - assignment.low for assignment in pi.assignments]
    assert lengths[0] == 1
    assert max(lengths) > 8


def test_a_window_of_unmeasured_calls_is_bounded() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1", slots=2)
    desk.client().submit(1_000)
    assert 2 <= len(pi.assignments) <= 64


def test_what_is_settled_and_not_collected_is_told_after_a_second_and_fetched() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    client = desk.client()
    task = client.submit(1)
    pi.finish(pi.assignments[0])
    assert not client.of(Settled)
    desk.advance(1_100)
    assert client.of(Settled)[0].rows == ((task, ((0, 1),)),)


def test_a_free_device_takes_work_back_from_a_busy_one() -> None:
    desk = Desk().begin()
    pi1 = desk.device("pi1")
    client = desk.client()
    client.submit(20)
    assert len(pi1.assignments) == 20
    pi2 = desk.device("pi2")
    desk.advance(50)
    trims = pi1.of(Trim)
    assert trims
    number, high = trims[0].rows[0]
    pi1.send(Trimmed(rows=((number, high),)))
    desk.run()
    assert pi2.assignments
    given_back = next(row for row in pi1.assignments if row.assignment == number)
    assert pi2.assignments[0].low == given_back.low
    assert pi2.assignments[0].assignment > number


def test_the_owners_cancel_ends_its_calls_and_tells_the_device() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    client = desk.client()
    task = client.submit(100)
    client.send(Cancel(task=task, ranges=((0, 100),), force=True))
    desk.advance(200)
    cancelled = pi.of(CancelAssigned)
    assert {message.assignment for message in cancelled} == {
        assignment.assignment for assignment in pi.assignments
    }
    assert desk.core.backlog.waiting == 0
    for assignment in list(pi.assignments):
        pi.finish(assignment, errors=((assignment.low, "cancelled", False),))
    assert client.of(Released)[0].tasks == (task,)


def test_a_non_final_error_runs_again_with_its_counter_moved() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    client = desk.client()
    client.submit(1, retries=1)
    pi.finish(pi.assignments[0], errors=((0, "error", False),))
    assert len(pi.assignments) == 2
    assert pi.assignments[1].tries == 1
    pi.finish(pi.assignments[1], errors=((0, "error", True),))
    assert len(pi.assignments) == 2
    assert desk.operations(SaveOutcomes)[0].settled == ((0, 1),)


def test_no_eligible_device_is_a_sentence_for_each_device_after_the_wait() -> None:
    desk = Desk().begin()
    desk.device("pi1", labels={"camera": "no"})
    client = desk.client()
    client.submit(2, requires=("camera=yes",), wait_ms=5_000)
    desk.advance(4_000)
    assert not client.of(Outcomes)
    desk.advance(2_000)
    (outcomes,) = client.of(Outcomes)
    (made,) = outcomes.sets
    assert made.ranges == ((0, 2),)
    item = cbor2.loads(made.data)[0]
    assert item["reason"] == "no-device"
    assert "pi1: its label camera is no, not yes" in item["message"]


def test_without_any_device_the_wait_is_over_in_time_too() -> None:
    desk = Desk().begin()
    client = desk.client()
    client.submit(2, wait_ms=5_000)
    desk.advance(4_000)
    assert not client.of(Outcomes)
    desk.advance(2_000)
    (made,) = client.of(Outcomes)[0].sets
    assert made.ranges == ((0, 2),)
    assert "no device is known" in cbor2.loads(made.data)[0]["message"]


def test_a_busy_fleet_does_not_hide_that_no_device_may_run_a_call() -> None:
    desk = Desk().begin()
    desk.device("pi1")
    client = desk.client()
    client.submit(200)
    assert desk.core.backlog.waiting, "the device is full"
    task = client.submit(1, requires=("camera",), wait_ms=5_000)
    desk.advance(6_000)
    (outcomes,) = client.of(Outcomes)
    assert [made.task for made in outcomes.sets] == [task]


def test_pickled_code_goes_only_to_devices_of_its_python() -> None:
    desk = Desk().begin()
    old = desk.device("old", python="3.11")
    new = desk.device("new", python="3.13")
    client = desk.client()
    task = client.next_task()
    client.send(Code(hash=CODE, form="pickle", data=b"code"))
    client.send(Submit(pages=(client.page(4, task=task, form="pickle"),)))
    desk.run()
    assert len(old.assignments) == 4
    assert not new.assignments


def test_the_wrong_tag_settles_nothing() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    other = desk.device("pi2")
    client = desk.client()
    client.submit(1)
    holder, stranger = (pi, other) if pi.assignments else (other, pi)
    stranger.finish(holder.assignments[0])
    assert desk.core.ledger.settled == 0
    assert any("tag" in note or "another" in note for note in desk.notes)


def test_figures_are_published_at_most_once_a_second() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    client = desk.client()
    for _round in range(20):
        client.submit(1)
        pi.finish(pi.assignments[-1])
        desk.advance(100)
    stats = desk.documents("controller-stats", ControllerStats)
    assert 1 <= len(stats) <= 4
    assert stats[-1].devices == 1


def test_garbage_on_every_topic_is_counted_and_nothing_stops() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    client = desk.client()
    name, user = client.name, client.user
    topics = [
        TOPICS.device_presence("x"),
        TOPICS.device_capabilities("x"),
        TOPICS.device_load("x"),
        TOPICS.controller_presence("x"),
        f"forage/1/client/{user}/{name}/presence",
        TOPICS.outbox("pi1"),
        TOPICS.task(user, name, "-", "pi1"),
        TOPICS.from_client(user, name),
        TOPICS.log(user, name, f"{name}-1", "pi1"),
        "forage/1/nothing/of/ours",
        "forage/1/device/UPPER/presence",
    ]
    before = desk.core.effects.dropped
    for topic in topics:
        for payload in (b"\xff\x00", b"{}", b"[1,2", b"\xa1\x61t\x64beat", b"\x80" * 50_000):
            desk.publish(topic, payload)
    desk.run()
    assert desk.core.effects.dropped >= before + 4 * (len(topics) - 1)
    client.submit(1)
    assert pi.assignments


def test_a_flood_of_garbage_is_counted_and_told_in_a_line_a_second_for_each_sender() -> None:
    desk = Desk().begin()
    desk.device("pi1")
    for _ in range(500):
        desk.publish(TOPICS.outbox("pi1"), b"\xff")
        desk.run()
    assert desk.core.effects.dropped == 500
    told = [note for note in desk.notes if note.startswith("dropped")]
    assert len(told) == 1
    assert told[0].startswith("dropped from=pi1 count=1 why=")
    desk.advance(1_000)
    told = [note for note in desk.notes if note.startswith("dropped")]
    assert len(told) == 2
    assert told[1].startswith("dropped from=pi1 count=499 why=")


def test_a_flood_from_many_names_is_told_in_a_few_lines() -> None:
    desk = Desk().begin()
    for number in range(500):
        desk.publish(TOPICS.outbox(f"nobody{number}"), b"\xff")
    desk.run()
    desk.advance(5_000)
    told = [note for note in desk.notes if note.startswith("dropped")]
    assert len(told) == 16
    assert told[-1].startswith("dropped from=others count=485 why=")
