"""Exclusive calls: a device runs one only under a lease, and the controller waits until that is over."""

from core.agent_harness import Harness, assignment, number, session
from core.desk import TOPICS, Desk, FakeClient, FakeDevice
from forage_agent.core.events import KillWorker, LeaseWorker, RunCalls, WorkerExited
from forage_controller.core.leases import LEASE_GRACE_MS
from forage_controller.core.operations import (
    ClosedAssignment,
    RecoveredAssignment,
    RecoveredPage,
    RecoveredState,
    RecoveredTask,
    SaveAssignment,
)
from forage_wire.messages import (
    CancelAssigned,
    Lease,
    Options,
    Outcomes,
    Renew,
    SubmissionRefused,
)

LEASE_MS = 5_000
EXCLUSIVE = Options(exclusive=True, lease_ms=LEASE_MS)


def _submit(client: FakeClient, n: int = 1, **options: object) -> str:
    task: str = client.submit(n, exclusive=True, lease_ms=LEASE_MS, settle="controller", **options)
    return task


def _ask(device: FakeDevice, *numbers: int, serial: int = 1) -> Lease:
    """The answer to a question about these assignments."""
    before = len(device.of(Lease))
    assert device.link is not None
    asked = device.link.unnumbered(Renew(serial=serial, assignments=numbers))
    device.desk.publish(TOPICS.outbox(device.name), asked.payload)
    device.desk.run()
    (answer,) = device.of(Lease)[before:]
    assert isinstance(answer, Lease)
    return answer


# -- the controller -------------------------------------------------------------------------------


def test_a_device_is_leased_what_is_open_there_and_nothing_else() -> None:
    desk = Desk().begin()
    pi1, pi2 = desk.device("pi1"), desk.device("pi2")
    client = desk.client()
    _submit(client)
    _submit(client)
    (first,), (second,) = pi1.assignments, pi2.assignments
    answer = _ask(pi1, first.assignment, second.assignment, 77, serial=5)
    assert (answer.serial, answer.assignments) == (5, (first.assignment,))


def test_a_lost_devices_exclusive_call_waits_until_its_lease_is_over() -> None:
    desk = Desk().begin()
    pi1 = desk.device("pi1")
    _submit(desk.client())
    (given,) = pi1.assignments
    _ask(pi1, given.assignment)
    pi2 = desk.device("pi2")
    desk.advance(300)
    pi1.say("lost")
    assert desk.core.ledger.tasks
    desk.advance(LEASE_MS + LEASE_GRACE_MS - 300)
    assert pi2.assignments == []
    # One percent for clocks that do not go alike.
    desk.advance(LEASE_MS // 100)
    assert [each.low for each in pi2.assignments] == [0]


def test_the_store_has_what_was_given_up_as_open_until_its_lease_is_over() -> None:
    # Else who takes over, or is started anew, gives it to another while it runs here.
    desk = Desk().begin()
    pi1 = desk.device("pi1")
    _submit(desk.client())
    (given,) = pi1.assignments
    _ask(pi1, given.assignment)
    pi2 = desk.device("pi2")
    pi1.say("lost")
    desk.advance(LEASE_MS + LEASE_GRACE_MS)
    assert not desk.operations(ClosedAssignment)
    desk.advance(LEASE_MS // 100)
    (again,) = pi2.assignments
    about = [
        (type(each), each.assignment)
        for each in desk.saved
        if isinstance(each, ClosedAssignment | SaveAssignment)
    ]
    assert about == [
        (SaveAssignment, given.assignment),
        (ClosedAssignment, given.assignment),
        (SaveAssignment, again.assignment),
    ]


def test_a_call_that_never_had_a_lease_goes_elsewhere_at_once() -> None:
    desk = Desk().begin()
    pi1 = desk.device("pi1")
    _submit(desk.client())
    assert pi1.assignments
    pi2 = desk.device("pi2")
    pi1.say("lost")
    assert len(pi2.assignments) == 1


def test_a_device_that_is_back_is_not_leased_what_it_lost_and_its_outcome_does_not_count() -> None:
    desk = Desk().begin()
    pi1 = desk.device("pi1")
    client = desk.client()
    task = _submit(client)
    (given,) = pi1.assignments
    _ask(pi1, given.assignment)
    pi1.say("lost")
    pi1.answers = False
    pi1.say("online")
    pi1.inventory((given.assignment, task, 0, 1, "running"))
    desk.run()
    assert [(each.assignment, each.force) for each in pi1.of(CancelAssigned)] == [
        (given.assignment, True)
    ]
    assert _ask(pi1, given.assignment, serial=2).assignments == ()
    pi1.finish(given, topic=TOPICS.outbox("pi1"))
    assert not client.of(Outcomes)
    desk.advance(LEASE_MS + LEASE_GRACE_MS + LEASE_MS // 100)
    again = pi1.assignments[-1]
    assert again.assignment != given.assignment
    pi1.finish(again, topic=TOPICS.outbox("pi1"))
    assert len(client.of(Outcomes)) == 1


def test_after_a_restart_leases_of_the_start_before_are_waited_out() -> None:
    before = Desk()
    client = before.client()
    page = client.page(1, exclusive=True, lease_ms=LEASE_MS, settle="controller", wait_ms=600_000)
    task = f"{client.name}-1"
    given = (5 << 40) + 1
    state = RecoveredState(
        epoch=5,
        tasks=(
            RecoveredTask(
                user=client.user,
                client=client.name,
                task=task,
                key=page.key,
                label="f",
                pages=(
                    RecoveredPage(
                        first=0, n=1, last=True, header=page.header, calls_bytes=len(page.calls)
                    ),
                ),
                settled=(),
                failed=0,
                collected=(),
                counters=(),
                archive_bytes=0,
            ),
        ),
        assignments=(
            RecoveredAssignment(
                assignment=given,
                task=task,
                first=0,
                low=0,
                high=1,
                device="pi1",
                session=session(0xD1),
                tries=0,
                deaths=0,
                losses=0,
            ),
        ),
    )
    desk = Desk(recovered=state).begin()
    began_ms = desk.now_ms
    desk.device("pi2")
    # pi1 does not come back.
    desk.advance(4_000)
    due_ms = desk.core.later.next_wakeup_ms()
    assert due_ms is not None
    assert due_ms >= began_ms - 200 + LEASE_MS + LEASE_GRACE_MS
    assert not desk.core.backlog.waiting
    desk.advance(LEASE_MS)
    assert desk.core.backlog.waiting == 1


def test_exclusive_calls_are_settled_by_the_controller_or_not_taken() -> None:
    desk = Desk().begin()
    desk.device("pi1")
    client = desk.client()
    client.submit(1, exclusive=True)
    (refused,) = client.of(SubmissionRefused)
    assert refused.reason == "invalid"


def test_a_microcontroller_is_not_given_exclusive_calls() -> None:
    desk = Desk().begin()
    functions = {"org.example.blink": "1"}
    mcu = desk.device("mcu", more={"profile": "mcu", "functions": functions})
    _submit(desk.client(), form="named", function=("org.example.blink", "1"))
    assert mcu.assignments == []


# -- the device -----------------------------------------------------------------------------------


def _questions(bench: Harness) -> list[Renew]:
    return bench.messages(Renew)


def _grant(bench: Harness, serial: int, *counters: int) -> None:
    answer = Lease(serial=serial, assignments=tuple(number(counter) for counter in counters))
    bench.inbox(bench.link.unnumbered(answer).payload)


def test_an_exclusive_call_begins_when_its_lease_is_there_under_a_watchdog() -> None:
    bench = Harness()
    bench.start()
    bench.assign(assignment(1, options=EXCLUSIVE))
    assert not bench.taken(RunCalls)
    (question,) = _questions(bench)
    assert question.assignments == (number(1),)
    asked_ms = bench.now_ms
    bench.now_ms += 700
    _grant(bench, question.serial, 1)
    until_ms = asked_ms + LEASE_MS
    orders = [order for order in bench.orders if isinstance(order, LeaseWorker | RunCalls)]
    assert [type(order) for order in orders] == [LeaseWorker, RunCalls]
    assert [order.until_ms for order in orders] == [until_ms, until_ms]


def test_a_lease_is_renewed_from_when_each_question_was_sent() -> None:
    bench = Harness()
    bench.start()
    bench.assign(assignment(1, options=EXCLUSIVE))
    _grant(bench, _questions(bench)[0].serial, 1)
    began_ms = bench.now_ms
    bench.taken(LeaseWorker)
    bench.advance(1_000)
    last = _questions(bench)[-1]
    assert last.serial == 2
    bench.now_ms += 100
    _grant(bench, last.serial, 1)
    (order,) = bench.taken(LeaseWorker)
    assert order.until_ms == began_ms + 1_000 + LEASE_MS
    # An answer to an earlier question that comes late prolongs nothing.
    _grant(bench, 1, 1)
    assert not bench.taken(LeaseWorker)


def test_an_answer_that_comes_after_its_lease_would_be_over_starts_nothing() -> None:
    bench = Harness()
    bench.start()
    bench.assign(assignment(1, options=EXCLUSIVE))
    serial = _questions(bench)[0].serial
    bench.now_ms += LEASE_MS
    _grant(bench, serial, 1)
    assert not bench.taken(RunCalls)


def test_when_its_lease_is_over_a_call_is_killed_and_reported_to_run_again() -> None:
    bench = Harness()
    bench.start()
    bench.assign(assignment(1, 0, 2, options=EXCLUSIVE))
    _grant(bench, _questions(bench)[0].serial, 1)
    assert bench.given() == [(0, number(1), 0, 1)]
    bench.advance(LEASE_MS - 1)
    assert not bench.taken(KillWorker)
    bench.advance(1)
    assert [order.slot for order in bench.taken(KillWorker)] == [0]
    assert bench.errors() == [(1, "lost", False)]
    bench.die(counter=1, index=0, signal="SIGKILL")
    assert sorted(bench.errors()) == [(0, "lost", False), (1, "lost", False)]


def test_what_the_watchdog_killed_is_nobodys_fault() -> None:
    bench = Harness()
    bench.start()
    bench.assign(assignment(1, options=EXCLUSIVE))
    _grant(bench, _questions(bench)[0].serial, 1)
    bench.put(
        WorkerExited(slot=0, signal="SIGKILL", assignment=number(1), index=0, lease_over=True)
    )
    assert bench.errors() == [(0, "lost", False)]


def test_each_exclusive_call_has_a_worker_of_its_own() -> None:
    bench = Harness()
    bench.start()
    bench.assign(assignment(1, options=EXCLUSIVE))
    _grant(bench, _questions(bench)[0].serial, 1)
    bench.taken(RunCalls)
    bench.finish(1, 0)
    assert [order.why for order in bench.taken(KillWorker)] == ["fresh"]


def test_nobody_is_asked_without_exclusive_calls_and_no_more_once_they_have_ended() -> None:
    bench = Harness()
    bench.start()
    bench.assign(assignment(1, options=EXCLUSIVE))
    _grant(bench, _questions(bench)[0].serial, 1)
    bench.finish(1, 0)
    bench.assign(assignment(2))
    bench.advance(3 * LEASE_MS)
    assert len(_questions(bench)) == 1
