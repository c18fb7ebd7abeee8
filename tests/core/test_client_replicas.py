"""Calls with replicas at a client's core: users count calls, the wire counts runs."""

from dataclasses import replace
from typing import Any

import pytest

from core.client_desk import CLIENT, CONTROLLER, Desk, pages_of, task_id
from forage.core.commands import NoteProgress, NoteStarted, RefuseTask, ReplicasEnded, ResolveCalls
from forage.core.events import AttachAsked, CallsCancelled, CallsDecided
from forage_wire.messages import (
    Attach,
    Cancel,
    ClientInventory,
    Collected,
    Fetch,
    Options,
    Outcomes,
    Progress,
    Released,
    Settled,
    Started,
    SubmissionRefused,
    Welcome,
)
from forage_wire.replicas import ReplicaLayout

THREE = Options(replicas=3, quorum=2)


def opened(calls: int = 2, **fields: Any) -> Desk:
    desk = Desk()
    desk.welcome()
    desk.open_and_submit(calls, options=THREE, settle="controller", **fields)
    return desk


def settle(desk: Desk, *rows: tuple[int, str]) -> list[ReplicasEnded]:
    """The controller sends committed outcomes of runs."""
    sets = tuple(
        replace(desk.outcomes(((run, run + 1),), tag=b""), device=device) for run, device in rows
    )
    desk.answer(Outcomes(sets=sets))
    return desk.take(ReplicasEnded)


def collected(desk: Desk) -> set[int]:
    desk.sleep(300)
    return {
        run
        for message in desk.read()
        if type(message) is Collected
        for _task, ranges in message.rows
        for low, high in ranges
        for run in range(low, high)
    }


def test_a_page_for_each_replica_with_the_same_calls() -> None:
    desk = opened(2)
    pages = pages_of(desk.read())
    assert [(header.first, header.n, header.replica) for header, _page in pages] == [
        (0, 2, 0),
        (2, 2, 1),
        (4, 2, 2),
    ]
    assert [header.last for header, _page in pages] == [False, False, True]
    assert len({page.calls for _header, page in pages}) == 1
    assert {header.settle for header, _page in pages} == {"controller"}


def test_outcomes_are_told_by_the_calls_of_their_runs() -> None:
    desk = opened(2)
    (ended,) = settle(desk, (3, "a"))
    assert (ended.task, ended.device, ended.rows) == (task_id(), "a", ((1, [3]),))
    assert not desk.take(ResolveCalls)


def test_a_runs_outcome_counts_once() -> None:
    desk = opened(1)
    assert settle(desk, (0, "a"))
    assert not settle(desk, (0, "a"))
    assert desk.core.repeated == 1


def test_nothing_is_collected_before_a_call_is_decided() -> None:
    desk = opened(2)
    desk.read()
    settle(desk, (0, "a"), (2, "b"))
    assert collected(desk) == set()
    desk.tell(CallsDecided(task=task_id(), ranges=((0, 1),)))
    assert collected(desk) == {0, 2, 4}


def test_what_is_held_is_neither_fetched_nor_said_to_have_ended() -> None:
    desk = opened(1)
    settle(desk, (0, "a"))
    desk.read()
    desk.answer(Settled(rows=((task_id(), ((0, 2),)),)))
    assert desk.read_one(Fetch).rows == ((task_id(), ((1, 2),)),)
    assert collected(desk) == set()


def test_runs_that_are_not_needed_are_called_off_with_force() -> None:
    desk = opened(2)
    desk.acknowledge((task_id(), 0), (task_id(), 2), (task_id(), 4))
    settle(desk, (1, "a"), (3, "b"))
    desk.read()
    desk.tell(CallsDecided(task=task_id(), ranges=((1, 2),)))
    cancel = desk.read_one(Cancel)
    assert (cancel.ranges, cancel.force) == (((5, 6),), True)


def test_cancelling_a_call_cancels_all_of_its_runs() -> None:
    desk = opened(2)
    desk.acknowledge((task_id(), 0), (task_id(), 2), (task_id(), 4))
    desk.read()
    desk.tell(CallsCancelled(task=task_id(), ranges=((0, 1),)))
    assert desk.read_one(Cancel).ranges == ((0, 1), (2, 3), (4, 5))
    assert collected(desk) == {0, 2, 4}
    assert not settle(desk, (2, "b"))


def test_a_device_that_tells_the_client_itself_is_not_heard() -> None:
    desk = opened(1)
    desk.resolve(((0, 1),))
    assert not desk.take(ReplicasEnded)
    assert desk.core.dropped == 1


def test_what_runs_say_of_themselves_is_said_of_their_calls() -> None:
    desk = opened(2)
    desk.device_says(Started(rows=((task_id(), 5, 7),)))
    desk.device_says(Progress(task=task_id(), index=5, permille=500, text="half"))
    (started,) = desk.take(NoteStarted)
    assert started.rows == ((task_id(), 1),)
    (progress,) = desk.take(NoteProgress)
    assert progress.said.index == 1


def test_a_refused_task_ends_its_calls_once_each() -> None:
    desk = opened(2)
    desk.answer(SubmissionRefused(task=task_id(), reason="full", text="no room"))
    (refused,) = desk.take(RefuseTask)
    assert refused.ranges == ((0, 2),)


def test_a_controller_that_let_go_too_early_costs_the_undecided_calls_alone() -> None:
    desk = opened(2)
    settle(desk, (0, "a"), (2, "b"), (1, "a"))
    desk.tell(CallsDecided(task=task_id(), ranges=((0, 1),)))
    desk.answer(Released(tasks=(task_id(),)))
    (refused,) = desk.take(RefuseTask)
    assert (refused.reason, refused.ranges) == ("data-lost", ((1, 2),))


def test_a_new_controller_hears_of_decided_calls_alone() -> None:
    desk = opened(2)
    desk.acknowledge((task_id(), 0), (task_id(), 2), (task_id(), 4))
    settle(desk, (0, "a"), (2, "b"), (1, "a"))
    desk.tell(CallsDecided(task=task_id(), ranges=((0, 1),)))
    desk.lose()
    other = f"{'e' * 16}-1"
    desk.presence(other, epoch=2)
    desk.link = desk.controller_link(other, number=1)
    inventory = desk.read_one(ClientInventory)
    assert inventory.rows == ((task_id(), 6, ((0, 1), (2, 3), (4, 5))),)
    assert other != CONTROLLER


def test_pages_of_one_block_have_the_same_calls_however_they_are_cut() -> None:
    desk = Desk(packet_bytes_max=4_096)
    desk.welcome()
    desk.open(options=THREE, settle="controller")
    desk.submit([bytes([number]) * 700 for number in range(9)], last=False)
    desk.submit([b"last"], first=9)
    desk.acknowledge((task_id(), 0))
    pages = {header.first: (header, page.calls) for header, page in pages_of(desk.read())}
    while len(pages) < len(desk.core.tasks[task_id()].pages) + 1:
        desk.answer(Welcome(minor=0))
        desk.sleep(50)
        pages.update((h.first, (h, page.calls)) for h, page in pages_of(desk.read()))
    layout = ReplicaLayout(3)
    firsts = [first for first, (header, _calls) in sorted(pages.items()) if not header.replica]
    for first in firsts:
        header, calls = pages[first]
        for replica, run in enumerate(layout.add(header.n)):
            other, others = pages[run]
            assert (other.replica, other.n, others) == (replica, header.n, calls)
    assert layout.calls == 10
    assert len(firsts) > 1


def test_whoever_attaches_knows_the_calls_by_what_the_controller_says() -> None:
    desk = Desk()
    desk.welcome()
    name = f"{CLIENT[::-1]}-1"
    desk.tell(AttachAsked(task=name, calls=3, replicas=2, blocks=(0, 2)))
    assert desk.read_one(Attach).task == name
    outcomes = desk.outcomes(((5, 6),), device="b", task=name, tag=b"")
    desk.answer(Outcomes(sets=(outcomes,)))
    (ended,) = desk.take(ReplicasEnded)
    assert ended.rows == ((2, [5]),)
    desk.read()
    desk.tell(CallsDecided(task=name, ranges=((2, 3),)))
    assert not [message for message in desk.read() if type(message) is Cancel]
    assert collected(desk) == {4, 5}


@pytest.mark.parametrize("replicas", [2, 3, 16])
def test_runs_and_calls_are_each_others_inverse(replicas: int) -> None:
    layout = ReplicaLayout(replicas)
    for n in (3, 1, 4_096, 2):
        layout.add(n)
    again = ReplicaLayout(replicas, layout.firsts, layout.calls)
    seen: dict[int, list[int]] = {}
    for run in range(layout.runs):
        seen.setdefault(again.call_of(run), []).append(run)
    assert sorted(seen) == list(range(layout.calls))
    for call in (0, 2, 3, 4, 4_099, layout.calls - 1):
        ranges = layout.runs_of(((call, call + 1),))
        assert [run for low, high in ranges for run in range(low, high)] == seen[call]
        assert len(seen[call]) == replicas
