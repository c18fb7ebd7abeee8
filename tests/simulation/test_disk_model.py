"""The disk's model keeps what it committed, whole groups at a time, and forgets the rest."""

import pytest

from forage_controller.core.operations import (
    ClosedAssignment,
    CodeLoaded,
    LoadCode,
    LoadOutcomes,
    LoadPage,
    OutcomesLoaded,
    PageLoaded,
    RecoveredAssignment,
    Save,
    SaveAssignment,
    SaveCode,
    SaveCollected,
    SaveCommitted,
    SaveCounters,
    SaveEpoch,
    SaveFailed,
    SaveOutcomes,
    SavePage,
    SaveReleased,
    TrimAssignment,
)
from forage_sim.clock import Clock
from forage_sim.disk import Disk

TASK = "0123456789abc-1"


def page(first: int = 0, n: int = 10, calls: bytes = b"calls") -> SavePage:
    return SavePage(
        user="user",
        client="0123456789abc",
        task=TASK,
        key=bytes(16),
        label="f",
        first=first,
        n=n,
        last=True,
        header=b"header",
        calls=calls,
    )


def assignment(number: int, low: int = 0, high: int = 10) -> SaveAssignment:
    return SaveAssignment(
        assignment=number,
        task=TASK,
        first=0,
        low=low,
        high=high,
        device="device",
        session="",
        tries=0,
        deaths=0,
        losses=0,
    )


def outcomes(low: int, high: int, settled: tuple[int, int] | None = None) -> SaveOutcomes:
    return SaveOutcomes(
        task=TASK,
        assignment=1,
        device="device",
        low=0,
        high=10,
        tag=bytes(16),
        ranges=((low, high),),
        settled=(settled or (low, high),),
        errors=((low, "error", True),),
        run_us=5,
        data=b"data",
    )


class Opened:
    """A disk with its answers."""

    def __init__(self, seed: int = 1) -> None:
        self.clock = Clock(seed)
        self.disk = Disk(self.clock)
        self.answers: list[object] = []
        self.disk.open(self.answers.append)
        self.number = 0

    def save(self, *operations: object) -> None:
        self.number += 1
        self.disk.request(Save(number=self.number, operations=operations))  # type: ignore[arg-type]

    def settle(self) -> None:
        self.clock.run_until(self.clock.now_ms + 1_000)


def test_saves_are_committed_in_order_and_in_groups() -> None:
    opened = Opened()
    opened.save(SaveEpoch(epoch=1))
    opened.save(SaveEpoch(epoch=2))
    opened.save(SaveEpoch(epoch=3))
    opened.settle()
    assert opened.answers == [SaveCommitted(number=1), SaveCommitted(number=3)]
    assert opened.disk.state.recover().epoch == 3


def test_loads_see_what_was_saved_before_them_committed_or_not() -> None:
    opened = Opened()
    opened.save(page(), SaveCode(hash=bytes(32), form="pickle", data=b"code"))
    opened.disk.request(LoadPage(task=TASK, first=0))
    opened.disk.request(LoadPage(task=TASK, first=4096))
    opened.disk.request(LoadCode(hash=bytes(32)))
    opened.settle()
    assert SaveCommitted(number=1) in opened.answers
    assert PageLoaded(task=TASK, first=0, calls=b"calls") in opened.answers
    assert PageLoaded(task=TASK, first=4096, calls=None) in opened.answers
    assert CodeLoaded(hash=bytes(32), form="pickle", data=b"code") in opened.answers


def test_a_crash_takes_what_was_not_committed_and_never_half_a_group() -> None:
    kept = 0
    for seed in range(40):
        opened = Opened(seed)
        opened.save(SaveEpoch(epoch=1), page())
        opened.save(assignment(1))
        opened.disk.crash()
        opened.settle()
        assert opened.answers == [], "nobody is there to be answered"
        found = opened.disk.open(opened.answers.append)
        assert (found.epoch, len(found.tasks)) in ((0, 0), (1, 1))
        assert found.assignments == (), "the second save was not under way yet"
        kept += found.epoch
    assert 0 < kept < 40, "a commit under way may or may not have been made"


def test_a_task_grows_settles_and_is_collected() -> None:
    opened = Opened()
    opened.save(page(), page(calls=b"a repeat changes nothing"), assignment(1), assignment(2))
    opened.save(outcomes(0, 4), outcomes(2, 6, settled=(4, 6)))
    opened.save(TrimAssignment(assignment=2, high=7), ClosedAssignment(assignment=1))
    opened.save(
        SaveCounters(task=TASK, low=6, high=9, tries=1, deaths=0, losses=0),
        SaveCounters(task=TASK, low=7, high=8, tries=2, deaths=0, losses=0),
    )
    opened.save(SaveCollected(task=TASK, ranges=((0, 4),)))
    opened.settle()
    found = opened.disk.state.recover()
    (task,) = found.tasks
    assert task.pages[0].calls_bytes == len(b"calls")
    assert task.settled == ((0, 6),)
    assert task.failed == 1, "the second row's error is of a call that was settled before"
    assert task.collected == ((0, 4),)
    assert task.counters == ((6, 7, 1, 0, 0), (7, 8, 2, 0, 0), (8, 9, 1, 0, 0))
    assert task.archive_bytes == 4, "what is collected whole has left the archive"
    assert [(row.assignment, row.high) for row in found.assignments] == [(2, 7)]
    assert isinstance(found.assignments[0], RecoveredAssignment)


def test_archived_rows_are_found_by_what_they_settle() -> None:
    opened = Opened()
    opened.save(page(), outcomes(0, 2), outcomes(4, 6))
    opened.disk.request(LoadOutcomes(request=9, task=TASK, ranges=((5, 10),)))
    opened.disk.request(LoadOutcomes(request=10, task=TASK, ranges=((8, 9),)))
    opened.settle()
    found = [answer for answer in opened.answers if isinstance(answer, OutcomesLoaded)]
    assert [(answer.request, [row.ranges for row in answer.rows]) for answer in found] == [
        (9, [((4, 6),)]),
        (10, []),
    ]


@pytest.mark.parametrize("forget", [False, True])
def test_a_released_task_leaves_its_name_until_that_is_forgotten_too(forget: bool) -> None:
    opened = Opened()
    opened.save(page(), assignment(1), outcomes(0, 10))
    opened.save(SaveReleased(task=TASK, forget=forget))
    opened.settle()
    found = opened.disk.state.recover()
    assert (found.tasks, found.assignments) == ((), ())
    assert found.released == (() if forget else (TASK,))


def test_a_failing_disk_says_so_and_commits_nothing() -> None:
    opened = Opened()
    opened.disk.fail()
    opened.save(SaveEpoch(epoch=1))
    opened.settle()
    assert opened.answers == [SaveFailed(reason="input/output error")]
    assert opened.disk.state.recover().epoch == 0
