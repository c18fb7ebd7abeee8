"""Replicas of a call: each on a device of its own, whatever is lost, taken back or restarted."""

import json
from typing import Any

import cbor2
import pytest

from core.desk import CODE, Desk, FakeClient, FakeDevice
from forage_controller.core.operations import (
    RecoveredAssignment,
    RecoveredPage,
    RecoveredState,
    RecoveredTask,
    SaveAssignment,
    SaveCheckpoint,
    SaveOutcomes,
    SavePage,
)
from forage_sim.disk import StoredState
from forage_wire.messages import (
    Answer,
    AssignmentRefused,
    Beat,
    Checkpoint,
    Code,
    Outcomes,
    OutcomeSet,
    Query,
    SubmissionRefused,
    Submit,
    Trim,
)
from forage_wire.replicas import ReplicaLayout


def submit(client: FakeClient, *blocks: int, replicas: int = 3, **options: Any) -> str:
    """One task whose pages come in blocks of so many calls."""
    task = client.next_task()
    if client.tasks == 1:
        client.send(Code(hash=CODE, form="source", data=b"code"))
    layout = ReplicaLayout(replicas)
    for at, n in enumerate(blocks):
        pages = tuple(
            client.page(
                n,
                task=task,
                first=first,
                last=at == len(blocks) - 1 and replica == replicas - 1,
                settle="controller",
                replicas=replicas,
                replica=replica,
                **options,
            )
            for replica, first in enumerate(layout.add(n))
        )
        client.send(Submit(pages=pages))
    client.desk.run()
    return task


def layout_of(*blocks: int, replicas: int = 3) -> ReplicaLayout:
    layout = ReplicaLayout(replicas)
    for n in blocks:
        layout.add(n)
    return layout


def runs_of(device: FakeDevice) -> list[int]:
    return [run for each in device.assignments for run in range(each.low, each.high)]


def finish(device: FakeDevice, assignment: Any, **more: Any) -> None:
    device.finish(assignment, topic=f"forage/1/outbox/{device.name}", **more)


def work_off(devices: list[FakeDevice]) -> dict[str, list[int]]:
    """Let devices do all that they are given; which runs each of them did."""
    did: dict[str, list[int]] = {device.name: [] for device in devices}
    while any(device.assignments for device in devices):
        for device in devices:
            given, device.assignments = device.assignments, []
            for assignment in given:
                did[device.name] += range(assignment.low, assignment.high)
                finish(device, assignment)
        devices[0].desk.advance(20)
    return did


def made_outcomes(client: FakeClient) -> list[OutcomeSet]:
    return [each for message in client.of(Outcomes) for each in message.sets if not each.assignment]


def reasons_of(outcomes: OutcomeSet) -> Any:
    return cbor2.loads(outcomes.data)[0]


def test_replicas_of_a_call_go_to_different_devices() -> None:
    desk = Desk().begin()
    devices = [desk.device(name) for name in ("a", "b", "c")]
    submit(desk.client(), 1)
    assert sorted(run for device in devices for run in runs_of(device)) == [0, 1, 2]
    assert [len(runs_of(device)) for device in devices] == [1, 1, 1]


@pytest.mark.parametrize("blocks", [(1,), (7,), (40, 1, 9), (300,)])
def test_no_device_gets_two_replicas_of_a_call_however_long_slices_become(
    blocks: tuple[int, ...],
) -> None:
    desk = Desk().begin()
    devices = [desk.device(name, slots=2) for name in ("a", "b", "c", "d")]
    client = desk.client()
    submit(client, *blocks)
    did = work_off(devices)
    layout = layout_of(*blocks)
    for name, runs in did.items():
        calls = [layout.call_of(run) for run in runs]
        assert len(calls) == len(set(calls)), name
    assert sorted(run for runs in did.values() for run in runs) == list(range(layout.runs))


def test_slices_of_several_calls_are_made() -> None:
    desk = Desk().begin()
    devices = [desk.device(name) for name in ("a", "b", "c")]
    submit(desk.client(), 400)
    work_off(devices)
    lengths = [saved.high - saved.low for saved in desk.operations(SaveAssignment)]
    assert max(lengths) > 10


def test_a_lost_replica_runs_again_on_a_device_that_has_none() -> None:
    desk = Desk(detect_ms=1_000).begin()
    a, b, c = (desk.device(name) for name in ("a", "b", "c"))
    submit(desk.client(), 1, replicas=2)
    holders = [device for device in (a, b, c) if device.assignments]
    (idle,) = [device for device in (a, b, c) if not device.assignments]
    assert len(holders) == 2
    holders[0].say("lost")
    assert runs_of(idle) == runs_of(holders[0])


def test_a_replica_without_a_further_device_waits_for_one() -> None:
    desk = Desk().begin()
    a, b = desk.device("a"), desk.device("b")
    client = desk.client()
    task = submit(client, 1)
    assert len(runs_of(a)) == len(runs_of(b)) == 1
    finish(a, a.assignments[0])
    finish(b, b.assignments[0])
    assert len(runs_of(a)) == len(runs_of(b)) == 1
    client.send(Query(id=1, what="explain", name=f"{task}.0"))
    desk.run()
    explained = client.of(Answer)[0].body.decode()
    assert "2 of 3 replicas have ended" in explained
    assert "each eligible device has another replica" in explained
    c = desk.device("c")
    assert len(runs_of(c)) == 1
    assert sorted(runs_of(a) + runs_of(b) + runs_of(c)) == [0, 1, 2]


def test_calls_behind_one_that_waits_for_a_device_go_on() -> None:
    desk = Desk().begin()
    a, b = desk.device("a"), desk.device("b")
    client = desk.client()
    submit(client, 1)
    submit(client, 1, replicas=2)
    did = work_off([a, b])
    assert sorted(len(runs) for runs in did.values()) == [2, 2]


def task_of(assignment: Any) -> str:
    task: str = cbor2.loads(assignment.header)["t"]
    return task


def test_runs_behind_one_whose_only_further_device_is_busy_go_on() -> None:
    """Else a call that hangs there waits for a vote that waits behind what waits for that device."""
    desk = Desk().begin()
    a, b, c = (desk.device(name) for name in ("a", "b", "c"))
    client = desk.client()
    submit(client, 200)
    for _ in range(400):
        for device in (a, b):
            given, device.assignments = device.assignments, []
            for assignment in given:
                finish(device, assignment, run_us=50_000 * (assignment.high - assignment.low))
        desk.advance(20)
    assert len(runs_of(c)) < 200, "some wait for it"
    for device in (a, b):
        device.say("draining")
    hangs = submit(client, 1)
    while hangs not in [task_of(each) for each in c.assignments]:
        finish(c, c.assignments.pop(0), run_us=50_000)
        desk.advance(20)
    for device in (a, b):
        device.say("online")
    desk.advance(100)
    assert [task_of(each) for each in a.assignments] == [hangs]
    assert [task_of(each) for each in b.assignments] == [hangs]
    while c.assignments:
        given, c.assignments = c.assignments, []
        for assignment in given:
            finish(c, assignment)
        desk.advance(20)
    assert not desk.core.backlog.waiting


def test_a_run_whose_only_further_device_is_busy_waits_for_as_long_as_that_is_there() -> None:
    desk = Desk().begin()
    a, b, c = (desk.device(name) for name in ("a", "b", "c"))
    client = desk.client()
    submit(client, 200, wait_ms=2_000)
    for _ in range(400):
        for device in (a, b):
            given, device.assignments = device.assignments, []
            for assignment in given:
                finish(device, assignment, run_us=50_000 * (assignment.high - assignment.low))
        c.send(Beat())
        desk.advance(50)
    open_runs = 200 - len(runs_of(c))
    assert open_runs
    assert not made_outcomes(client)
    c.say("draining")
    for _ in range(20):
        c.send(Beat())
        desk.advance(250)
    ended = sum(high - low for each in made_outcomes(client) for low, high in each.ranges)
    assert ended == open_runs


def test_a_replica_without_a_device_ends_with_the_reason_when_its_time_is_up() -> None:
    desk = Desk(detect_ms=60_000).begin()
    a, b = desk.device("a"), desk.device("b")
    client = desk.client()
    submit(client, 1, wait_ms=5_000)
    finish(a, a.assignments[0])
    desk.advance(4_900)
    assert not made_outcomes(client)
    desk.advance(200)
    (made,) = made_outcomes(client)
    (index,) = {0, 1, 2} - set(runs_of(a)) - set(runs_of(b))
    assert made.ranges == ((index, index + 1),)
    said = reasons_of(made)
    assert said["reason"] == "no-device"
    assert f"replica {index + 1} of 3" in said["message"]
    assert said["details"]["reasons"] == {
        "a": "it has another replica of this call",
        "b": "it has another replica of this call",
    }


def test_collecting_a_call_ends_the_wait_of_its_replicas() -> None:
    desk = Desk().begin()
    a, b = desk.device("a"), desk.device("b")
    client = desk.client()
    task = submit(client, 1, wait_ms=5_000)
    finish(a, a.assignments[0])
    finish(b, b.assignments[0])
    client.collect(task, (0, 3))
    desk.advance(6_000)
    assert not made_outcomes(client)
    assert task not in desk.core.ledger.tasks


def test_a_device_that_comes_back_may_take_what_it_lost_and_no_second_replica() -> None:
    desk = Desk().begin()
    a, b = desk.device("a"), desk.device("b")
    submit(desk.client(), 1)
    lost = runs_of(a)
    a.say("lost")
    a.assignments.clear()
    a.counter += 1
    a.link = None
    a.join()
    assert len(runs_of(a)) == 1
    assert len(set(runs_of(a) + runs_of(b))) == 2
    assert lost


def test_what_a_device_refuses_may_go_to_it_in_another_replicas_place() -> None:
    desk = Desk().begin()
    a = desk.device("a")
    submit(desk.client(), 1, replicas=2)
    a.send(AssignmentRefused(assignment=a.assignments[0].assignment, reason="full"))
    desk.run()
    desk.advance(3_000)
    assert len(a.assignments) == 2
    assert set(runs_of(a)) <= {0, 1}


def test_idle_devices_take_no_second_replica_from_others() -> None:
    desk = Desk().begin()
    a = desk.device("a")
    submit(desk.client(), 30, replicas=2)
    measured = a.assignments.pop(0)
    finish(a, measured, run_us=60_000_000)
    b = desk.device("b")
    desk.advance(2_000)
    while b.assignments:
        for assignment in [*b.assignments]:
            b.assignments.remove(assignment)
            finish(b, assignment, run_us=1_000)
        desk.advance(50)
    layout = layout_of(30, replicas=2)
    did = [
        layout.call_of(run)
        for saved in desk.operations(SaveOutcomes)
        if saved.device == "b"
        for low, high in saved.settled
        for run in range(low, high)
    ]
    assert len(did) == len(set(did))
    for trim in a.of(Trim):
        for number, high in trim.rows:
            held = next(each for each in a.assignments if each.assignment == number)
            assert not {layout.call_of(run) for run in range(high, held.high)} & set(did)


def recovered(
    desk: Desk, client: FakeClient, *, collected: tuple[tuple[int, int], ...] = ()
) -> Any:
    """What a store holds of all that a desk's core has saved, with nothing open."""
    pages = desk.operations(SavePage)
    outcomes = desk.operations(SaveOutcomes)
    settled = sorted(low for row in outcomes for low, _high in row.settled)
    return RecoveredState(
        epoch=1,
        tasks=(
            RecoveredTask(
                user=client.user,
                client=client.name,
                task=pages[0].task,
                key=pages[0].key,
                label="f",
                pages=tuple(
                    RecoveredPage(
                        first=page.first,
                        n=page.n,
                        last=page.last,
                        header=page.header,
                        calls_bytes=len(page.calls),
                    )
                    for page in pages
                ),
                settled=tuple((index, index + 1) for index in settled),
                failed=0,
                collected=collected,
                counters=(),
                archive_bytes=10,
                answered=tuple((row.device, row.settled) for row in outcomes),
            ),
        ),
        assignments=tuple(
            RecoveredAssignment(
                **{
                    name: getattr(row, name)
                    for name in RecoveredAssignment.__slots__  # type: ignore[attr-defined]
                }
            )
            for row in desk.operations(SaveAssignment)
            if not any(row.assignment == each.assignment for each in outcomes)
        ),
        codes={CODE: ("source", 4)},
    )


def test_who_answered_is_known_after_a_restart() -> None:
    before = Desk().begin()
    a = before.device("a")
    client = before.client()
    submit(client, 1, replicas=2)
    finish(a, a.assignments[0])
    desk = Desk(recovered=recovered(before, client), start="d" * 16).begin()
    again, other = desk.device("a"), desk.device("b")
    desk.saved = before.saved + desk.saved
    desk.answer_loads()
    desk.advance(100)
    assert not runs_of(again)
    assert len(runs_of(other)) == 1


@pytest.mark.parametrize(
    ("first", "replica", "settle", "words"),
    [
        (0, 0, "direct", "settled by the controller"),
        (1, 1, "controller", "does not begin"),
        (2, 3, "controller", "replica 3 of 3"),
    ],
)
def test_a_page_that_has_no_place_among_replicas_is_refused(
    first: int, replica: int, settle: str, words: str
) -> None:
    desk = Desk().begin()
    client = desk.client()
    page = client.page(2, first=first, replica=replica, settle=settle, replicas=3)
    client.send(Submit(pages=(page,)))
    desk.run()
    (refused,) = client.of(SubmissionRefused)
    assert refused.reason == "invalid"
    assert words in refused.text


def test_a_task_and_its_calls_are_told_of_by_their_users_numbers() -> None:
    desk = Desk().begin()
    devices = [desk.device(name) for name in ("a", "b", "c")]
    client = desk.client()
    task = submit(client, 2, 1, quorum=2)
    work_off(devices)
    for number, (what, name) in enumerate(
        [("task", task), ("history", f"{task}.2"), ("task", f"{task}.3")], 1
    ):
        client.send(Query(id=number, what=what, name=name))
    desk.run()
    row, history, beyond = (json.loads(each.body) for each in client.of(Answer))
    assert (row["calls"], row["replicas"], row["quorum"]) == (3, 3, 2)
    assert row["blocks"] == [0, 2]
    assert len({attempt["device"] for attempt in history["attempts"]}) == 3
    assert {(attempt["low"], attempt["high"]) for attempt in history["attempts"]} == {(2, 3)}
    assert "has 3 calls" in beyond["error"]


def keep(device: FakeDevice, assignment: Any, number: int, data: bytes) -> None:
    device.send(
        Checkpoint(
            task=cbor2.loads(assignment.header)["t"],
            index=assignment.low,
            assignment=assignment.assignment,
            number=number,
            data=data,
        )
    )
    device.desk.run()


def test_a_replica_begins_anew_on_another_device_and_keeps_a_chain_of_its_own() -> None:
    desk = Desk().begin()
    a = desk.device("a")
    submit(desk.client(), 1, replicas=2)
    keep(a, a.assignments[0], 7, b"poison")
    b, c = desk.device("b"), desk.device("c")
    a.say("lost")
    runs = {device.assignments[0].low: device for device in (b, c)}
    again = runs[a.assignments[0].low]
    assert again.assignments[0].checkpoint is None
    # Numbered below what the other device had.
    keep(again, again.assignments[0], 1, b"own")
    [stored] = [row for row in desk.operations(SaveCheckpoint) if row.device == again.name]
    assert (stored.number, stored.data) == (1, b"own")


@pytest.mark.parametrize(("name", "expected"), [("a", (7, b"own")), ("b", None)])
def test_whose_state_it_is_is_known_after_a_restart(
    name: str, expected: tuple[int, bytes] | None
) -> None:
    before = Desk().begin()
    a, other = before.device("a"), before.device("other")
    submit(before.client(), 1, replicas=2)
    keep(a, a.assignments[0], 7, b"own")
    a.say("lost")
    state = StoredState()
    for operation in before.saved:
        state.apply(operation)
    desk = Desk(recovered=state.recover(), start="d" * 16).begin()
    desk.saved = before.saved + desk.saved
    device = desk.device(name)
    desk.answer_loads()
    desk.advance(100)
    desk.answer_loads()
    assert other.assignments
    [given] = device.assignments
    assert (given.low, given.checkpoint) == (a.assignments[0].low, expected)
