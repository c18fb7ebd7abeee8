"""The model of the store and the real one mean the same by every operation."""

import queue
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from forage_controller.core.operations import (
    ClosedAssignment,
    ForgetCheckpoints,
    LoadOutcomes,
    LoadPage,
    Operation,
    OutcomesLoaded,
    PageLoaded,
    RecoveredPage,
    RecoveredState,
    RecoveredTask,
    Save,
    SaveAssignment,
    SaveCheckpoint,
    SaveCode,
    SaveCollected,
    SaveCommitted,
    SaveCounters,
    SaveDeadline,
    SaveEpoch,
    SaveOutcomes,
    SavePage,
    SaveReleased,
    SaveTime,
    TrimAssignment,
)
from forage_controller.shell.store import Store, StoreEvent
from forage_sim.clock import Clock
from forage_sim.disk import Disk, DiskAnswer
from forage_wire.ranges import RangeSet

CLIENT = "0123456789abc"
TASKS = [f"{CLIENT}-{digit}" for digit in "123456789abcdef"]
PAGE_CALLS = 8


class Draw:
    """Random operations as a controller makes them: of tasks that have a page, settling once."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._made: dict[str, RangeSet] = {}
        """Task -> what is settled of it."""
        self._over: dict[str, None] = {}

    def operation(self) -> Operation:
        """The next one."""
        random = self._random
        task = random.choice([task for task in TASKS if task not in self._over][:3])
        if task not in self._made or random.random() < 0.2:
            return self._other(task)
        number = random.randint(1, 12)
        low = random.randrange(2 * PAGE_CALLS)
        high = random.randint(low + 1, 2 * PAGE_CALLS)
        match random.randrange(13):
            case 0 | 1:
                return SaveAssignment(
                    assignment=number,
                    task=task,
                    first=0,
                    low=low,
                    high=high,
                    device="device",
                    session="",
                    tries=random.randrange(3),
                    deaths=0,
                    losses=0,
                )
            case 2:
                return TrimAssignment(assignment=number, high=high)
            case 3:
                return ClosedAssignment(assignment=number)
            case 4 | 5:
                return self._outcomes(task, number, low, high)
            case 6:
                return SaveCounters(
                    task=task, low=low, high=high, tries=random.randrange(3), deaths=1, losses=0
                )
            case 7:
                return SaveCollected(task=task, ranges=((low, high),))
            case 8:
                size = random.choice((5, 20_000))
                return SaveCheckpoint(
                    task=task, index=low, number=number, data=random.randbytes(size), device="pi1"
                )
            case 9:
                return ForgetCheckpoints(task=task, indices=tuple(range(low, high)))
            case 10:
                first = random.choice((0, PAGE_CALLS))
                return SaveDeadline(task=task, first=first, due_ms=1_000 * number)
            case 11:
                return SaveTime(ran_ms=number, boot="boot", boot_ms=high)
            case _:
                if random.random() < 0.5:
                    return SaveEpoch(epoch=random.randint(1, 9))
                # No id is ever used again.
                self._over[task] = None
                return SaveReleased(task=task, forget=random.random() < 0.3)

    def _other(self, task: str) -> Operation:
        if self._random.random() < 0.3:
            data = b"code %d" % self._random.randrange(3)
            return SaveCode(hash=data.ljust(32), form="source", data=data)
        self._made.setdefault(task, RangeSet())
        first = self._random.choice((0, PAGE_CALLS))
        # Above 8 KiB the real store takes another way. A repeated page is the same page.
        calls = f"{task}.{first}".encode() * (1_500 if task == TASKS[2 * (first > 0)] else 1)
        return SavePage(
            user="user",
            client=CLIENT,
            task=task,
            key=bytes(16),
            label="f",
            first=first,
            n=PAGE_CALLS,
            last=first > 0,
            header=b"header",
            calls=calls,
        )

    def _outcomes(self, task: str, number: int, low: int, high: int) -> SaveOutcomes:
        settled = tuple(self._made[task].missing(low, high))
        self._made[task].add(low, high)
        size = self._random.choice((5, 20_000))
        error = ((low, "error", True),) if self._random.random() < 0.3 else ()
        return SaveOutcomes(
            task=task,
            assignment=number,
            device="device",
            low=0,
            high=2 * PAGE_CALLS,
            tag=bytes(16),
            ranges=((low, high),),
            settled=settled,
            errors=error,
            run_us=7,
            data=self._random.randbytes(size),
        )


def comparable(state: RecoveredState) -> object:
    """What must be equal: order, and archived rows that may go already, are left free."""
    return (
        state.epoch,
        state.time,
        sorted((task.task, pages_of(task), task.settled, task.collected) for task in state.tasks),
        sorted((task.task, task.user, task.client, task.key, task.failed) for task in state.tasks),
        sorted((task.task, spread(task.counters)) for task in state.tasks),
        sorted((row.assignment, row) for row in state.assignments),
        sorted(
            (row.task, row.index, row.number, row.data, row.device) for row in state.checkpoints
        ),
        sorted(state.released),
    )


def pages_of(task: RecoveredTask) -> list[RecoveredPage]:
    """Its pages; the calls of one that is collected may be gone or not."""
    collected = RangeSet(task.collected)
    return [
        replace(page, calls_bytes=0) if collected.covers(page.first, page.first + page.n) else page
        for page in task.pages
    ]


def spread(counters: tuple[tuple[int, int, int, int, int], ...]) -> list[tuple[int, ...]]:
    """Counters call by call: how they are cut into ranges is free."""
    return sorted((index, *row[2:]) for row in counters for index in range(row[0], row[1]))


class Both:
    """The two stores side by side."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.directory = directory
        self.clock = Clock(seed)
        self.disk = Disk(self.clock)
        self.number = 0
        self.open()

    def open(self) -> None:
        self.events: queue.SimpleQueue[StoreEvent] = queue.SimpleQueue()
        self.answers: list[DiskAnswer] = []
        self.number = 0
        self.store = Store(self.directory, self.events.put)
        found = self.store.recover()
        assert comparable(found) == comparable(self.disk.open(self.answers.append))
        self.store.start()

    def save(self, operations: list[Operation]) -> None:
        self.number += 1
        save = Save(number=self.number, operations=tuple(operations))
        self.store.execute(save)
        self.store.flush()
        self.disk.request(save)
        self.clock.run_until(self.clock.now_ms + 100)
        while self.events.get(timeout=30) != SaveCommitted(number=self.number):
            pass

    def load(self, load: LoadPage | LoadOutcomes) -> tuple[list[StoreEvent], list[DiskAnswer]]:
        self.store.execute(load)
        self.answers.clear()
        self.disk.request(load)
        self.clock.run_until(self.clock.now_ms + 100)
        found = [self.events.get(timeout=30)]
        while isinstance(found[-1], OutcomesLoaded) and found[-1].more:
            found.append(self.events.get(timeout=30))
        return found, list(self.answers)


def uncollected(answers: list[StoreEvent] | list[DiskAnswer], both: Both) -> object:
    """The archived rows that must be there: those that are collected may be gone or not."""
    rows = []
    for answer in answers:
        assert isinstance(answer, OutcomesLoaded)
        task = both.disk.state.tasks.get(answer.task)
        collected = RangeSet() if task is None else task.collected
        rows += [
            (row.assignment, row.settled, row.data, row.errors)
            for row in answer.rows
            if not all(collected.covers(low, high) for low, high in row.settled)
        ]
    # The same row saved twice may be kept once.
    return sorted(dict.fromkeys(rows))


@pytest.fixture
def both(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Both]:
    pair = Both(tmp_path / "state", request.param)
    yield pair
    pair.store.close()


@pytest.mark.parametrize("both", range(6), indirect=True)
def test_model_and_store_recover_and_load_the_same(both: Both) -> None:
    random = both.clock.stream("operations")
    draw = Draw(random)
    for _round in range(6):
        for _save in range(random.randint(1, 8)):
            both.save([draw.operation() for _ in range(random.randint(1, 6))])
        for task in TASKS:
            first = random.choice((0, PAGE_CALLS))
            real, modelled = both.load(LoadPage(task=task, first=first))
            assert isinstance(real[0], PageLoaded)
            stored = both.disk.state.tasks.get(task)
            if stored is None or not stored.collected.covers(first, first + PAGE_CALLS):
                assert real == modelled
            low = random.randrange(PAGE_CALLS)
            wanted = LoadOutcomes(request=1, task=task, ranges=((low, low + PAGE_CALLS),))
            real, modelled = both.load(wanted)
            assert uncollected(real, both) == uncollected(modelled, both)
        both.store.close()
        both.disk.crash()
        both.open()
