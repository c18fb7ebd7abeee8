"""What clients say that they have: all of it counts at once, though many rows are taken in later."""

import pytest

from core.desk import TOPICS, Desk, FakeClient, FakeDevice
from forage_controller.core.config import Limits
from forage_controller.core.operations import SaveReleased
from forage_wire.codec import encode_json
from forage_wire.io import BatchEnded, Disconnected, MessageReceived
from forage_wire.messages import (
    Attach,
    Cancel,
    Collected,
    DevicePresence,
    Outcomes,
    SubmissionRefused,
    Submit,
)

MANY = 100
"""Rows in one message, of which most wait."""


def finished(desk: Desk, client: FakeClient, pi: FakeDevice, tasks: int = MANY) -> list[str]:
    """Tasks of one call whose outcomes are here."""
    made = []
    for _ in range(tasks):
        made.append(client.submit(1))
        pi.finish(pi.assignments.pop())
    return made


def rows(tasks: list[str]) -> Collected:
    """That all of these tasks' only calls are collected."""
    return Collected(rows=tuple([(task, ((0, 1),)) for task in tasks]))


def hand_over(desk: Desk) -> None:
    """One batch and no more."""
    for client in desk.clients:
        client.flush()
    inbound, desk.inbound = desk.inbound, []
    for topic, payload, retain in inbound:
        desk.handle(MessageReceived(topic=topic, payload=payload, retain=retain))
    desk.handle(BatchEnded())


def test_calls_that_a_client_has_are_taken_in_a_few_at_a_time() -> None:
    desk = Desk().begin()
    pi, client = desk.device("pi1"), desk.client()
    tasks = finished(desk, client, pi)
    assert len(desk.core.ledger.tasks) == MANY
    desk.commits = False
    client.send(rows(tasks))
    desk.run()
    # Whoever waits for something else waits for a few of them, and nobody for all.
    left = len(desk.core.ledger.tasks)
    assert 50 < left < MANY
    due_ms = desk.core.next_wakeup_ms()
    assert due_ms is not None
    assert due_ms <= desk.now_ms
    desk.commits = True
    desk.advance(1)
    assert not desk.core.ledger.tasks


@pytest.mark.parametrize("others", [0, MANY])
def test_a_call_that_its_client_has_goes_to_nobody_when_its_device_is_lost(others: int) -> None:
    desk = Desk().begin()
    pi1, client = desk.device("pi1"), desk.client()
    before = finished(desk, client, pi1, others)
    task = client.submit(1)
    pi2 = desk.device("pi2")
    client.send(rows([*before, task]))
    word = DevicePresence(state="lost", session=pi1.session)
    desk.publish(TOPICS.device_presence("pi1"), encode_json(word))
    desk.run()
    desk.advance(10_000)
    assert pi2.assignments == []
    assert not desk.core.ledger.tasks


def test_room_that_a_client_has_made_counts_for_its_next_task() -> None:
    desk = Desk(limits=Limits(archive_calls=MANY)).begin()
    pi, client = desk.device("pi1"), desk.client()
    tasks = finished(desk, client, pi)
    client.send(rows(tasks))
    client.send(Submit(pages=(client.page(1),)))
    hand_over(desk)
    desk.run()
    assert client.of(SubmissionRefused) == []
    assert len(pi.assignments) == 1


def test_nobody_cancels_a_call_that_its_owner_has() -> None:
    desk = Desk().begin()
    pi, owner = desk.device("pi1"), desk.client()
    other = desk.client(name="1" * 13)
    before = finished(desk, owner, pi)
    task = owner.submit(1)
    other.send(Attach(task=task))
    desk.run()
    owner.send(rows([*before, task]))
    other.send(Cancel(task=task, ranges=((0, 1),)))
    hand_over(desk)
    desk.advance(10_000)
    assert other.of(Outcomes) == []
    assert owner.of(Outcomes) == []


@pytest.mark.parametrize("end", ["stop", "disconnect"])
def test_what_waits_is_taken_in_when_the_controller_ends_or_hears_no_more(end: str) -> None:
    desk = Desk().begin()
    pi, client = desk.device("pi1"), desk.client()
    tasks = finished(desk, client, pi)
    desk.advance(3_000)
    client.send(rows(tasks))
    hand_over(desk)
    assert 0 < len(desk.core.ledger.tasks) < MANY
    if end == "stop":
        desk._carry_out(desk.core.goodbye())
    else:
        desk.handle(Disconnected())
        desk.handle(BatchEnded())
    desk.commit()
    assert len(desk.operations(SaveReleased)) == MANY
    assert not desk.core.ledger.tasks


def test_rows_of_many_ranges_wait_only_as_far_as_there_is_room() -> None:
    desk = Desk().begin()
    pi, client = desk.device("pi1"), desk.client()
    task = client.submit(8_000)
    del pi
    even = tuple([(index, index + 1) for index in range(0, 3_000, 2)])
    beyond = tuple([(index, index + 1) for index in range(10_000, 13_000, 2)])
    for ranges in (even, beyond):
        for _ in range(4):
            client.send(Collected(rows=((task, ranges),) * 17))
            hand_over(desk)
            held = sum(1 + len(each[2]) for each in desk.core.clients.waiting_collected)
            assert held <= 8_192 + 1 + len(even)
            client.link = None
            client.counter += 1
