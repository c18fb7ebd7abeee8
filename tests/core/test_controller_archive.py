"""The controller's core: outcomes that clients are offered, fetch, and share with others."""

from typing import Any

import cbor2

from core.desk import Desk, Disconnected, FakeClient
from core.test_controller_restart import TASK, _state
from forage_controller.core.config import Limits
from forage_controller.core.operations import LoadOutcomes, SaveOutcomes, SaveReleased
from forage_wire.codec import decode
from forage_wire.io import Connected
from forage_wire.limits import LIST_ITEMS_MAX
from forage_wire.messages import (
    Attach,
    ClientInventory,
    Code,
    Fetch,
    Outcomes,
    Released,
    Settled,
    SubmissionRefused,
    Submit,
    Unusable,
)

DAY_MS = 24 * 3_600 * 1_000


def other_client(desk: Desk) -> FakeClient:
    """Another client of the same user."""
    return desk.client(name="1" * 13)


def indices(client: FakeClient) -> list[int]:
    """The calls whose outcomes a client was sent, in order."""
    return [
        index
        for message in client.of(Outcomes)
        for outcomes in message.sets
        for low, high in outcomes.ranges
        for index in range(low, high)
    ]


def settled(calls: int, **options: Any) -> tuple[Desk, FakeClient, str]:
    """A task of which all is committed and nothing collected."""
    desk = Desk(**options).begin()
    pi = desk.device("pi1", slots=8)
    client = desk.client()
    task = client.submit(calls)
    while pi.assignments:
        pi.finish(pi.assignments.pop(0), run_us=10)
    assert desk.core.ledger.settled == calls
    return desk, client, task


def test_whoever_attaches_gets_all_that_is_committed_a_little_at_a_time() -> None:
    desk, _client, task = settled(600)
    for operation in desk.operations(SaveOutcomes):
        assert operation.task == task
    known = desk.core.ledger.tasks[task]
    known.archive_bytes = known.archived * 100_000
    other = other_client(desk)
    other.send(Attach(task=task))
    for _round in range(1_000):
        desk.run()
        assert len(desk.loads) <= 1, "one read at a time"
        for load in desk.loads:
            assert isinstance(load, LoadOutcomes)
            assert sum(high - low for low, high in load.ranges) <= 2 * 1024 * 1024 // 100_000
        desk.answer_loads()
        desk.advance(20)
        if sorted(set(indices(other))) == list(range(600)):
            break
    assert sorted(set(indices(other))) == list(range(600))


def test_a_client_that_takes_nothing_is_read_nothing_more() -> None:
    desk, _client, task = settled(3_000)
    known = desk.core.ledger.tasks[task]
    known.archive_bytes = known.archived * 100_000
    other = other_client(desk)
    other.send(Attach(task=task))
    desk.run()
    desk.clients.remove(other)
    for _round in range(100):
        desk.answer_loads()
        desk.run()
    in_core = desk.core.clients.clients[(other.user, other.name)]
    assert in_core.link is not None
    assert in_core.link.waiting < 20
    assert in_core.wanted


def test_outcomes_for_a_client_that_takes_none_stay_in_the_store() -> None:
    desk = Desk(limits=Limits(client_messages=3)).begin()
    pi = desk.device("pi1", slots=8)
    client = desk.client()
    client.submit(200, settle="controller")
    desk.clients.remove(client)
    while pi.assignments:
        pi.finish(pi.assignments.pop(0), run_us=10)
    in_core = desk.core.clients.clients[(client.user, client.name)]
    assert in_core.link is not None
    assert in_core.link.waiting <= 3
    desk.clients.append(client)
    for _round in range(40):
        desk.advance(500)
        for message in client.of(Settled):
            client.send(Fetch(rows=message.rows))
        client.received = [each for each in client.received if not isinstance(each, Settled)]
        desk.answer_loads()
    assert sorted(set(indices(client))) == list(range(200))


def test_many_tasks_are_offered_in_messages_that_keep_the_limits() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1", slots=64)
    client = desk.client()
    client.hello()
    client.flush()
    desk.run()
    count = LIST_ITEMS_MAX + 500
    client.send(Code(hash=desk_code(), form="source", data=b"code"))
    for start in range(0, count, 1_000):
        pages = tuple(client.page(1) for _ in range(min(1_000, count - start)))
        client.send(Submit(pages=pages))
        desk.run()
    while pi.assignments:
        pi.finish(pi.assignments.pop(0), run_us=10)
    desk.published.clear()
    desk.advance(3_000)
    assert sum(len(message.rows) for message in client.of(Settled)) == count
    for message in desk.published:
        if message.topic.startswith("forage/1/to/"):
            assert not isinstance(decode(message.payload), Unusable)


def desk_code() -> bytes:
    from core.desk import CODE

    return CODE


def test_what_another_collected_for_an_owner_who_was_gone_is_lost_to_it_in_words() -> None:
    desk, client, task = settled(2)
    other = other_client(desk)
    other.send(Attach(task=task))
    desk.run()
    desk.publish(f"forage/1/client/{client.user}/{client.name}/presence", b"")
    desk.run()
    other.collect(task, (0, 1))
    desk.advance(2 * 60_000)
    desk.saved = [row for row in desk.saved if getattr(row, "settled", None) != ((0, 1),)]
    client.counter = 2
    client.hello(controller=f"{desk.start}-1")
    client.send(ClientInventory(rows=((task, 2, ()),)))
    desk.run()
    offered = [row for message in client.of(Settled) for row in message.rows]
    assert (task, ((0, 1),)) in offered
    client.send(Fetch(rows=((task, ((0, 1),)),)))
    desk.run()
    desk.answer_loads()
    outcomes = client.of(Outcomes)[-1].sets[0]
    assert (outcomes.ranges, outcomes.errors) == (((0, 1),), ((0, "lost", True),))
    assert cbor2.loads(outcomes.data)[0]["reason"] == "data-lost"


def test_what_another_collects_counts_only_once_the_owner_is_gone() -> None:
    desk, client, task = settled(2)
    other = other_client(desk)
    other.send(Attach(task=task))
    other.collect(task, (0, 2))
    assert task in desk.core.ledger.tasks
    assert desk.core.ledger.tasks[task].collected.count == 0
    desk.clients.remove(client)
    desk.publish(f"forage/1/client/{client.user}/{client.name}/presence", b"")
    desk.advance(2 * 60_000)
    assert task not in desk.core.ledger.tasks
    assert other.of(Released)


def test_what_another_collects_while_the_owners_connection_is_broken_is_still_the_owners() -> None:
    desk, client, task = settled(2)
    other = other_client(desk)
    other.send(Attach(task=task))
    desk.publish(f"forage/1/client/{client.user}/{client.name}/presence", b"")
    other.collect(task, (0, 2))
    client.counter = 2
    client.hello(controller=f"{desk.start}-1")
    client.send(ClientInventory(rows=((task, 2, ()),)))
    desk.advance(3 * 60_000)
    assert client.of(Settled)[-1].rows == ((task, ((0, 2),)),)
    assert desk.core.ledger.tasks[task].collected.count == 0


def test_calls_collected_that_never_settled_here_are_told_as_lost_to_others() -> None:
    desk = Desk().begin()
    client = desk.client()
    task = client.submit(3)
    client.collect(task, (1, 2))
    other = other_client(desk)
    other.send(Attach(task=task))
    desk.run()
    (outcomes,) = other.of(Outcomes)
    assert outcomes.sets[0].errors == ((1, "lost", True),)


def test_outcomes_are_kept_a_day_from_when_they_came_not_from_when_the_task_did() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1", broker="mqtt://10.0.0.1")
    client = desk.client()
    task = client.submit(1)
    (given,) = pi.assignments
    desk.core.ledger.tasks[task].made_ms -= 2 * DAY_MS
    pi.finish(given)
    desk.advance(120_000)
    assert task in desk.core.ledger.tasks
    desk.core.ledger.tasks[task].settled_ms -= DAY_MS
    desk.advance(120_000)
    assert task not in desk.core.ledger.tasks
    assert desk.operations(SaveReleased)


def test_a_task_whose_client_never_finished_it_ends_a_day_after_it_was_heard() -> None:
    desk = Desk(recovered=_state(2, code=False)).begin()
    desk.device("pi1")
    assert TASK in desk.core.ledger.tasks
    desk.core.ledger.keep_ms = 100_000
    desk.advance(90_000)
    assert TASK in desk.core.ledger.tasks, "its code may still come"
    desk.advance(90_000)
    assert TASK not in desk.core.ledger.tasks


def test_an_archive_is_charged_for_what_is_there_and_not_collected() -> None:
    desk, client, task = settled(10)
    ledger = desk.core.ledger
    assert ledger.archive_bytes > 0
    client.collect(task, (0, 5))
    assert ledger.tasks[task].archived == 5
    before = ledger.archive_bytes
    client.collect(task, (0, 5))
    assert ledger.archive_bytes == before
    client.collect(task, (5, 10))
    assert ledger.archive_bytes == 0
    assert task not in ledger.tasks


def test_calls_collected_before_they_settle_free_nothing() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    client = desk.client()
    task = client.submit(4)
    client.collect(task, (0, 2))
    for given in list(pi.assignments):
        pi.finish(given)
    known = desk.core.ledger.tasks[task]
    assert known.archived == 2
    client.collect(task, (2, 3))
    assert known.archived == 1
    assert known.archive_bytes > 0


def test_reads_for_a_client_end_with_its_link() -> None:
    desk, client, task = settled(10)
    client.send(Fetch(rows=((task, ((0, 10),)),)))
    desk.run()
    assert len(desk.loads) == 1
    desk.handle(Disconnected())
    desk.handle(Connected(session=f"{desk.start}-2"))
    desk.run()
    desk.answer_loads()
    assert not client.of(Outcomes)
    assert not desk.core._archive._requests


def test_an_archive_of_too_many_outcomes_refuses_new_tasks_until_some_are_collected() -> None:
    desk = Desk(limits=Limits(archive_calls=3)).begin()
    pi = desk.device("pi1")
    client = desk.client()
    task = client.submit(3)
    for given in pi.assignments[:3]:
        pi.finish(given)
    assert desk.core.ledger.archived == 3
    client.submit(1)
    (refusal,) = client.of(SubmissionRefused)
    assert (refusal.reason, "3 outcomes" in refusal.text) == ("full", True)
    client.collect(task, (0, 3))
    assert desk.core.ledger.archived == 0
    client.submit(1)
    assert len(client.of(SubmissionRefused)) == 1
