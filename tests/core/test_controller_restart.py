"""The controller's core after a restart: what was saved goes on, what was not comes again."""

import itertools
from dataclasses import replace
from typing import Any

from core.desk import CODE, KEY, TOPICS, Desk
from forage_controller.core.operations import (
    CodeLoaded,
    LoadCode,
    LoadPage,
    PageLoaded,
    RecoveredAssignment,
    RecoveredPage,
    RecoveredState,
    RecoveredTask,
)
from forage_wire.codec import encode, encode_header, join_calls
from forage_wire.messages import (
    Acknowledge,
    Beat,
    ClientInventory,
    Header,
    Hello,
    NeedCode,
    Options,
    Released,
    SubmissionRefused,
    Welcome,
)

TASK = "0" * 13 + "-1"


def _header(n: int, **options: Any) -> bytes:
    return encode_header(
        Header(
            user="bob",
            client="0" * 13,
            task=TASK,
            function=CODE,
            form="source",
            python="3.11",
            options=Options(**options),
            first=0,
            n=n,
            last=True,
        )
    )


def _calls(n: int) -> bytes:
    return join_calls([b"\x82\x00\x81" + bytes([index]) for index in range(n)])


def _state(
    n: int,
    *,
    settled: tuple[tuple[int, int], ...] = (),
    collected: tuple[tuple[int, int], ...] = (),
    assignments: tuple[RecoveredAssignment, ...] = (),
    counters: tuple[tuple[int, int, int, int, int], ...] = (),
    code: bool = True,
    **options: Any,
) -> RecoveredState:
    header = _header(n, **options)
    return RecoveredState(
        epoch=5,
        tasks=(
            RecoveredTask(
                user="bob",
                client="0" * 13,
                task=TASK,
                key=KEY,
                label="f",
                pages=(RecoveredPage(first=0, n=n, last=True, header=header, calls_bytes=4 * n),),
                settled=settled,
                failed=0,
                collected=collected,
                counters=counters,
                archive_bytes=0,
            ),
        ),
        assignments=assignments,
        codes={CODE: ("source", 4)} if code else {},
    )


def _assignment(low: int, high: int, session: str, device: str = "pi1") -> RecoveredAssignment:
    return RecoveredAssignment(
        assignment=(5 << 40) + 1 + low,
        task=TASK,
        first=0,
        low=low,
        high=high,
        device=device,
        session=session,
        tries=0,
        deaths=0,
        losses=0,
    )


def _answer_loads(desk: Desk, n: int) -> None:
    """Play the store: give the page and the code that the core asks for."""
    while desk.loads:
        load = desk.loads.pop(0)
        if isinstance(load, LoadPage):
            desk.handle(PageLoaded(task=load.task, first=load.first, calls=_calls(n)))
        elif isinstance(load, LoadCode):
            desk.handle(CodeLoaded(hash=load.hash, form="source", data=b"code"))
        desk.run()


def test_what_was_neither_settled_nor_assigned_is_given_out_at_once() -> None:
    desk = Desk(recovered=_state(6, settled=((0, 2),), collected=((0, 1),))).begin()
    assert desk.core.epoch == 6
    pi = desk.device("pi1")
    _answer_loads(desk, 6)
    assert [row.low for row in pi.assignments] == [2, 3, 4, 5]
    assert all(row.assignment >> 40 == 6 for row in pi.assignments)


def test_a_saved_assignment_waits_for_its_device_and_is_kept_when_it_shows_it() -> None:
    saved = _assignment(0, 2, "0" * 15 + "1-1")
    desk = Desk(recovered=_state(2, assignments=(saved,))).begin()
    pi = desk.device("pi1", answers=False)
    assert pi.session == saved.session
    pi.inventory((saved.assignment, TASK, 0, 2, "running"))
    other = desk.device("other")
    for _round in range(30):
        desk.publish(TOPICS.outbox("pi1"), encode(Beat(), session=pi.session))
        desk.run()
        desk.advance(200)
    assert not other.assignments
    assert desk.core.assignments.open[saved.assignment].device.name == "pi1"


def test_a_saved_assignment_of_a_device_that_does_not_come_goes_to_another() -> None:
    saved = _assignment(0, 2, "0" * 15 + "1-1")
    desk = Desk(recovered=_state(2, assignments=(saved,))).begin()
    other = desk.device("other")
    desk.advance(3_000)
    assert not other.assignments
    desk.advance(1_000)
    _answer_loads(desk, 2)
    assert [row.low for row in other.assignments] == [0, 1]
    assert other.assignments[0].announce


def test_a_saved_assignment_that_its_device_does_not_have_never_started() -> None:
    saved = _assignment(0, 2, "0" * 15 + "1-1")
    desk = Desk(recovered=_state(2, assignments=(saved,))).begin()
    pi = desk.device("pi1")
    # The session that it was saved with was asked before it was there; that is repeated.
    desk.advance(1_100)
    _answer_loads(desk, 2)
    assert [(row.low, row.high) for row in pi.assignments] == [(0, 1), (1, 2)]
    assert not any(row.announce for row in pi.assignments)


def test_counters_survive() -> None:
    desk = Desk(recovered=_state(3, counters=((1, 2, 1, 0, 0),), retries=3)).begin()
    pi = desk.device("pi1")
    _answer_loads(desk, 3)
    assert {row.low: row.tries for row in pi.assignments} == {0: 0, 1: 1, 2: 0}


def test_an_assignment_that_was_not_saved_is_adopted_from_the_inventory() -> None:
    desk = Desk(recovered=_state(4)).begin()
    number = (5 << 40) + 77
    pi = desk.device("pi1", answers=False)
    pi.inventory((number, TASK, 0, 4, "running"))
    desk.run()
    _answer_loads(desk, 4)
    assert number in desk.core.assignments.open
    assert desk.core.backlog.waiting == 0


def test_code_that_no_store_has_is_asked_of_the_client() -> None:
    desk = Desk(recovered=_state(1, code=False)).begin()
    pi = desk.device("pi1")
    client = desk.client()
    client.hello(controller=f"{desk.start}-1")
    client.flush()
    desk.run()
    assert client.of(NeedCode)[0].hashes == (CODE,)
    assert not pi.assignments


def test_a_client_inventory_collects_and_is_told_what_is_over_or_unknown() -> None:
    state = _state(2, settled=((0, 2),))
    desk = Desk(recovered=state).begin()
    client = desk.client()
    client.hello(controller=f"{desk.start}-1")
    unknown = "0" * 13 + "-9"
    client.send(ClientInventory(rows=((TASK, 2, ((0, 2),)), (unknown, 3, ()))))
    desk.run()
    assert client.of(Welcome)
    assert client.of(Released)[0].tasks == (TASK,)
    assert [message.task for message in client.of(SubmissionRefused)] == [unknown]


def test_a_client_that_greeted_nobody_begins_anew_when_it_knows_the_controller() -> None:
    desk = Desk().begin()
    client = desk.client()
    client.hello()
    client.flush()
    desk.run()
    assert len(client.of(Welcome)) == 1
    client.hello(controller=f"{desk.start}-1")
    client.flush()
    desk.run()
    assert len(client.of(Welcome)) == 2
    hello = client.of(Hello)
    assert not hello


def test_an_outcome_of_a_task_not_yet_known_is_kept_for_its_page() -> None:
    first = Desk().begin()
    pi = first.device("pi1")
    client = first.client()
    client.submit(1)
    given = pi.assignments[0]
    # A controller that never committed the page, and a client that repeats it later.
    second = Desk(recovered=RecoveredState(epoch=1), start="d" * 16).begin()
    again = second.device("pi1")
    again.finish(given)
    assert not again.of(Acknowledge)
    late = second.client()
    late.submit(1)
    assert again.of(Acknowledge)
    assert second.core.ledger.settled == 1
    assert not again.assignments


def test_two_attempts_of_a_call_are_known_as_such_after_a_restart() -> None:
    first = _assignment(0, 4, f"{'1'.zfill(16)}-1")
    clone = replace(_assignment(3, 4, f"{'2'.zfill(16)}-1", "pi2"), assignment=(5 << 40) + 99)
    desk = Desk(recovered=_state(4, assignments=(first, clone))).begin()
    pi1 = desk.device("pi1", answers=False)
    pi2 = desk.device("pi2", answers=False)
    pi1.inventory((first.assignment, TASK, 0, 4, "running"))
    pi2.inventory((clone.assignment, TASK, 3, 4, "running"))
    desk.run()
    # The loss of one attempt sends out what nobody else has, and no third of the call.
    pi2.say("lost")
    assert desk.core.backlog.waiting == 0
    assert first.assignment in desk.core.assignments.open


def test_a_client_that_has_not_come_is_told_again_that_we_rule_every_few_seconds_for_a_while() -> (
    None
):
    desk = Desk(recovered=_state(2)).begin()
    said_ms = [desk.now_ms]
    while desk.now_ms < said_ms[0] + 200_000:
        before = desk.presence.count("active")
        desk.advance(100)
        said_ms += [desk.now_ms] * (desk.presence.count("active") - before)
    gaps = [round(after - before, -3) for before, after in itertools.pairwise(said_ms)]
    assert gaps == [1_000, 2_000, 4_000, *[8_000] * 14]


def test_clients_that_have_come_are_not_told_again_that_we_rule() -> None:
    desk = Desk(recovered=_state(2)).begin()
    desk.client().hello()
    desk.run()
    desk.advance(600_000)
    assert desk.presence.count("active") == 1
