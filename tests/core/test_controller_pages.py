"""The controller's core: pages that are taken, pages that are refused, and functions' code."""

import hashlib
from typing import Any

import cbor2
import pytest

from core.desk import CODE, Desk, FakeClient
from core.test_controller_restart import TASK, _state
from forage_controller.core.backlog import queue_key
from forage_controller.core.config import Limits
from forage_controller.core.operations import ForgetCode, LoadPage, PageLoaded, SaveCode
from forage_wire.codec import decode_header
from forage_wire.limits import TASK_CALLS_MAX
from forage_wire.messages import (
    CancelAssigned,
    Code,
    NeedCode,
    Outcomes,
    Page,
    Released,
    SubmissionRefused,
    Submit,
)


def refused(client: FakeClient, *pages: Page) -> list[str]:
    """Submit pages; the reasons for which any is refused."""
    client.send(Submit(pages=pages))
    client.desk.run()
    return [message.reason for message in client.of(SubmissionRefused)]


def ready() -> tuple[Desk, FakeClient]:
    """A client whose code is here and who has one task of two pages, not the last."""
    desk = Desk().begin()
    client = desk.client()
    task = client.next_task()
    client.send(Code(hash=CODE, form="source", data=b"code"))
    client.send(Submit(pages=(client.page(10, task=task, last=False),)))
    client.send(Submit(pages=(client.page(10, task=task, first=10, last=False),)))
    desk.run()
    assert not client.of(SubmissionRefused)
    return desk, client


@pytest.mark.parametrize(
    ("n", "options"),
    [
        (10, {"first": 5, "last": False}),
        (10, {"first": 15, "last": True}),
        (5, {"first": 0, "last": False}),
        (1, {"first": 4, "last": True}),
        (5, {"first": 20, "retries": 1}),
        (5, {"first": 20, "settle": "controller"}),
        (5, {"first": 20, "function": b"\x01" * 32}),
    ],
    ids=["across", "over the end", "shorter", "last within", "options", "settle", "function"],
)
def test_pages_of_one_task_that_contradict_each_other_are_refused(
    n: int, options: dict[str, Any]
) -> None:
    desk, client = ready()
    task = next(iter(desk.core.ledger.tasks))
    assert refused(client, client.page(n, task=task, **options)) == ["invalid"]
    assert not desk.core.ledger.tasks, "the client has ended its calls, so nothing is kept"
    assert desk.core.backlog.waiting == 0


def test_nothing_comes_after_a_tasks_last_page() -> None:
    desk, client = ready()
    task = next(iter(desk.core.ledger.tasks))
    assert refused(client, client.page(10, task=task, first=20)) == []
    assert refused(client, client.page(10, task=task, first=30)) == ["invalid"]


def test_pages_may_come_in_any_order() -> None:
    desk, client = ready()
    task = next(iter(desk.core.ledger.tasks))
    assert refused(client, client.page(10, task=task, first=30)) == []
    assert refused(client, client.page(10, task=task, first=20, last=False)) == []
    known = desk.core.ledger.tasks[task]
    assert known.calls == known.total == 40
    assert [page.first for page in known.pages_of(5, 25)] == [0, 10, 20]
    assert known.page_of(40) is None


def test_a_page_beyond_the_largest_index_is_refused() -> None:
    _desk, client = ready()
    assert refused(client, client.page(2, first=TASK_CALLS_MAX)) == ["size"]


def test_another_key_is_another_task() -> None:
    desk, client = ready()
    task = next(iter(desk.core.ledger.tasks))
    page = client.page(10, task=task, first=20)
    forged = Page(header=page.header, calls=page.calls, key=b"x" * 16)
    assert refused(client, forged) == ["invalid"]


def test_a_user_cannot_add_to_anothers_task() -> None:
    desk, client = ready()
    task = next(iter(desk.core.ledger.tasks))
    eve = desk.client(user="eve", name=client.name)
    assert refused(eve, eve.page(10, task=task, first=20)) == ["invalid"]
    assert desk.core.ledger.tasks[task].calls == 20


def test_devices_stop_what_they_have_of_a_task_that_is_refused_midway() -> None:
    desk, client = ready()
    pi = desk.device("pi1")
    task = next(iter(desk.core.ledger.tasks))
    assert pi.assignments
    refused(client, client.page(10, task=task, first=5))
    desk.advance(100)
    assert {row.assignment for row in pi.of(CancelAssigned) if row.force} == {
        row.assignment for row in pi.assignments
    }
    for given in list(pi.assignments):
        pi.finish(given, errors=((given.low, "cancelled", False),))
    assert client.of(Released)[0].tasks == (task,)


@pytest.mark.parametrize(
    "header",
    [
        b"\xff",
        b"",
        cbor2.dumps({"t": 5}),
        cbor2.dumps({"t": cbor2.CBORTag(2, b"x")}),
        cbor2.dumps({"t": "x" * 200}),
        cbor2.dumps([]),
    ],
    ids=["garbage", "empty", "number", "tag", "no task id", "list"],
)
def test_a_header_that_names_no_task_is_dropped_and_others_go_on(header: bytes) -> None:
    desk, client = ready()
    dropped = desk.core.effects.dropped
    assert refused(client, Page(header=header, calls=b"", key=b"k" * 16)) == []
    assert desk.core.effects.dropped == dropped + 1
    client.submit(1)
    assert len(desk.core.ledger.tasks) == 2


def test_a_page_that_the_store_has_lost_ends_in_words() -> None:
    desk = Desk(recovered=_state(2)).begin()
    client = desk.client()
    client.hello()
    client.flush()
    desk.device("pi1")
    (load,) = [load for load in desk.loads if isinstance(load, LoadPage)]
    desk.handle(PageLoaded(task=load.task, first=load.first, calls=None))
    desk.run()
    (outcomes,) = client.of(Outcomes)
    assert [(row.task, row.ranges) for row in outcomes.sets] == [(TASK, ((0, 2),))]
    assert len([load for load in desk.loads if isinstance(load, LoadPage)]) == 1


def test_pages_beyond_the_cache_are_read_back_when_their_turn_comes() -> None:
    desk = Desk(limits=Limits(page_cache_bytes=2_000)).begin()
    client = desk.client()
    client.submit_pages(20, 50)
    kept = [page for task in desk.core.ledger.tasks.values() for page in task.pages.values()]
    assert sum(page.calls is not None for page in kept) < 10
    pi = desk.device("pi1", slots=4)
    for _ in range(2_000):
        desk.answer_loads()
        if not pi.assignments:
            break
        pi.finish(pi.assignments.pop(0), run_us=20)
    assert desk.core.ledger.settled == 1_000


def test_too_much_that_has_not_ended_is_refused_in_words() -> None:
    desk = Desk(limits=Limits(pages_bytes=2_000)).begin()
    client = desk.client()
    tasks = []
    while not client.of(SubmissionRefused):
        tasks.append(client.submit(50))
    (refusal,) = client.of(SubmissionRefused)
    assert (refusal.task, refusal.reason) == (tasks[-1], "full")
    client.collect(tasks[0], (0, 50))
    client.submit(1)
    assert len(client.of(SubmissionRefused)) == 1


def test_every_option_makes_a_queue_of_its_own() -> None:
    client = Desk().client()
    changed: dict[str, Any] = {
        "requires": ("x",),
        "devices": ("a",),
        "retries": 1,
        "timeout_ms": 1,
        "priority": 1,
        "at_most_once": True,
        "fresh": True,
        "wait_ms": 1,
        "backoff_ms": 1,
        "deadline_ms": 1,
        "clones": False,
        "exclusive": True,
        "lease_ms": 1_000,
        "replicas": 2,
        "quorum": 1,
    }
    plain = decode_header(client.page(1).header)
    assert set(changed) == set(type(plain.options).__slots__)
    keys = {queue_key(plain)}
    for name, value in changed.items():
        keys.add(queue_key(decode_header(client.page(1, **{name: value}).header)))
    keys.add(queue_key(decode_header(client.page(1, settle="controller").header)))
    keys.add(queue_key(decode_header(client.page(1, replica=1).header)))
    keys.add(queue_key(decode_header(client.page(1, function=b"\x01" * 32).header)))
    assert len(keys) == 4 + len(changed)


# -- code -------------------------------------------------------------------------------------------


def _function(number: int) -> tuple[bytes, bytes]:
    data = b"code %d" % number
    return hashlib.sha256(data).digest(), data


def test_code_that_is_not_what_its_hash_says_is_no_code() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    client = desk.client()
    client.send(Code(hash=CODE, form="source", data=b"something else"))
    client.send(Submit(pages=(client.page(1),)))
    desk.run()
    assert not desk.operations(SaveCode)
    assert not pi.assignments
    assert client.of(NeedCode)[0].hashes == (CODE,)
    client.send(Code(hash=CODE, form="source", data=b"code"))
    desk.run()
    assert pi.assignments


def test_code_is_asked_for_on_every_new_link_of_its_client_until_it_comes() -> None:
    desk = Desk().begin()
    pi = desk.device("pi1")
    client = desk.client()
    client.send(Submit(pages=(client.page(1),)))
    desk.run()
    assert len(client.of(NeedCode)) == 1
    desk.advance(10_000)
    assert len(client.of(NeedCode)) == 1
    client.hello(controller=f"{desk.start}-1")
    client.flush()
    desk.run()
    assert len(client.of(NeedCode)) == 2
    client.send(Code(hash=CODE, form="source", data=b"code"))
    desk.run()
    assert pi.assignments


def test_code_that_no_task_uses_makes_room_for_other_code() -> None:
    desk = Desk(limits=Limits(codes=4)).begin()
    pi = desk.device("pi1")
    client = desk.client()
    for number in range(6):
        function, data = _function(number)
        client.send(Code(hash=function, form="source", data=data))
        task = client.next_task()
        client.send(Submit(pages=(client.page(1, task=task, function=function),)))
        desk.run()
        pi.finish(pi.assignments[-1])
        client.collect(task, (0, 1))
    forgotten = [operation.hash for operation in desk.operations(ForgetCode)]
    assert forgotten == [_function(0)[0], _function(1)[0]]
    client.send(Submit(pages=(client.page(1, function=_function(0)[0]),)))
    desk.run()
    assert len(pi.assignments) == 7, "the device has it still"


def test_more_functions_than_are_kept_for_unended_tasks_are_refused_in_words() -> None:
    desk = Desk(limits=Limits(codes=2)).begin()
    client = desk.client()
    for number in range(3):
        function, data = _function(number)
        client.send(Code(hash=function, form="source", data=data))
        client.send(Submit(pages=(client.page(1, function=function),)))
        desk.run()
    assert [message.reason for message in client.of(SubmissionRefused)] == ["full"]
    assert len(desk.core.ledger.tasks) == 2


def test_code_is_not_asked_of_the_store_before_the_store_has_it() -> None:
    desk = Desk(limits=Limits(code_cache_bytes=10)).begin()
    pi = desk.device("pi1")
    client = desk.client()
    client.hello()
    desk.commits = False
    # The second one is larger than the whole cache.
    client.send(Code(hash=CODE, form="source", data=b"code"))
    other = b"other code"
    client.send(Code(hash=hashlib.sha256(other).digest(), form="source", data=other))
    client.send(Submit(pages=(client.page(1),)))
    desk.run()
    assert not desk.loads
    assert not client.of(NeedCode)
    assert [code.hash for code in pi.of(Code)] == [CODE]
    assert pi.assignments
