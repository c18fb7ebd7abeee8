"""What the store's tests share: operations, a store that is watched, and a naive model of it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from forage_controller.core.operations import (
    ClosedAssignment,
    ForgetCheckpoints,
    ForgetCode,
    Operation,
    RecoveredState,
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
from forage_controller.shell.store import Load, Store, StoreEvent
from forage_wire.codec import encode_header
from forage_wire.messages import Header

CLIENT = "0123456789abc"
WAIT_S = 30.0

E = TypeVar("E")


def header_of(task: str, first: int, n: int, code: bytes | None = None) -> bytes:
    """A real header: the store reads the function out of it at start."""
    return encode_header(
        Header(
            user="u",
            client=CLIENT,
            task=task,
            function=code if code is not None else ("org.app.task", "1"),
            form="pickle" if code is not None else "named",
            first=first,
            n=n,
            last=False,
        )
    )


def page_of(
    task: str, first: int = 0, n: int = 4, calls: bytes = b"c", code: bytes | None = None
) -> SavePage:
    return SavePage(
        user="u",
        client=CLIENT,
        task=task,
        key=task.encode()[-1:] * 16,
        label="fn",
        first=first,
        n=n,
        last=False,
        header=header_of(task, first, n, code),
        calls=calls,
    )


def assignment_of(task: str, number: int, low: int = 0, high: int = 4) -> SaveAssignment:
    return SaveAssignment(
        assignment=number,
        task=task,
        first=0,
        low=low,
        high=high,
        device="pi-1",
        session="0123456789abcdef-1",
        tries=1,
        deaths=0,
        losses=2,
    )


def outcomes_of(
    task: str,
    number: int,
    settled: tuple[tuple[int, int], ...],
    data: bytes = b"o",
    errors: tuple[tuple[int, str, bool], ...] = (),
) -> SaveOutcomes:
    low, high = settled[0][0] if settled else 0, settled[-1][1] if settled else 1
    return SaveOutcomes(
        task=task,
        assignment=number,
        device="pi-1",
        low=low,
        high=high,
        tag=b"t" * 16,
        ranges=((low, high),),
        settled=settled,
        errors=errors,
        run_us=7,
        data=data,
    )


class WatchedStore:
    """A real store, and the events it posts."""

    def __init__(self, directory: Path, **limits: Any) -> None:
        self.events: SimpleQueue[StoreEvent] = SimpleQueue()
        self.store = Store(directory, self.events.put, **limits)
        self.recovered = self.store.recover()
        self.store.start()
        self.number = 0

    def hand_over(self, *operations: Operation, urgent: bool = False) -> int:
        """One save, without waiting for it; its number."""
        self.number += 1
        self.store.execute(Save(number=self.number, operations=operations, urgent=urgent))
        self.store.flush()
        return self.number

    def save(self, *operations: Operation) -> None:
        """One save, committed."""
        self.wait_for_commit(self.hand_over(*operations))

    def wait_for_commit(self, number: int) -> None:
        while self.next(SaveCommitted).number < number:
            pass

    def next(self, kind: type[E]) -> E:
        """The next event, which has to be of this kind."""
        event = self.events.get(timeout=WAIT_S)
        assert isinstance(event, kind), event
        return event

    def load(self, command: Load) -> list[Any]:
        """Everything that answers a load, in order."""
        self.store.execute(command)
        answers: list[Any] = []
        while not answers or getattr(answers[-1], "more", False):
            event = self.events.get(timeout=WAIT_S)
            if not isinstance(event, SaveCommitted):
                answers.append(event)
        return answers

    def close(self) -> None:
        self.store.close()


def indices(ranges: Iterable[tuple[int, int]]) -> set[int]:
    return {index for low, high in ranges for index in range(low, high)}


@dataclass
class ModelTask:
    made: SavePage
    pages: dict[int, SavePage] = field(default_factory=dict)
    outcomes: list[SaveOutcomes] = field(default_factory=list)
    collected: set[int] = field(default_factory=set)
    counters: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    checkpoints: dict[int, tuple[int, bytes, str]] = field(default_factory=dict)
    deadlines: dict[int, int] = field(default_factory=dict)

    def is_spent(self, page: SavePage) -> bool:
        return set(range(page.first, page.first + page.n)) <= self.collected

    def archive(self) -> list[SaveOutcomes]:
        return [row for row in self.outcomes if not indices(row.settled) <= self.collected]


class Model:
    """The meaning of the operations, told as simply as can be."""

    def __init__(self) -> None:
        self.epoch = 0
        self.time: SaveTime | None = None
        self.codes: dict[bytes, SaveCode] = {}
        self.tasks: dict[str, ModelTask] = {}
        self.assignments: dict[int, SaveAssignment] = {}
        self.released: set[str] = set()

    def admit(self, operation: Operation) -> bool:
        """Apply an operation; False for one that the core never makes.

        No call settles twice, and none of a task that is unknown or over.
        """
        if isinstance(operation, SaveOutcomes):
            task = self.tasks.get(operation.task)
            rows = task.outcomes if task is not None else []
            if task is None or any(
                indices(row.settled) & indices(operation.settled) for row in rows
            ):
                return False
        self.apply(operation)
        return True

    def apply(self, operation: Operation) -> None:
        match operation:
            case SaveEpoch():
                self.epoch = operation.epoch
            case SaveTime():
                self.time = operation
            case SaveCode():
                self.codes.setdefault(operation.hash, operation)
            case ForgetCode():
                self.codes.pop(operation.hash, None)
            case SavePage():
                if operation.task not in self.released:
                    task = self.tasks.setdefault(operation.task, ModelTask(operation))
                    task.pages.setdefault(operation.first, operation)
            case SaveReleased():
                self.tasks.pop(operation.task, None)
                for number in [
                    number for number, one in self.assignments.items() if one.task == operation.task
                ]:
                    del self.assignments[number]
                if operation.forget:
                    self.released.discard(operation.task)
                else:
                    self.released.add(operation.task)
            case ClosedAssignment():
                self.assignments.pop(operation.assignment, None)
            case TrimAssignment():
                self._trim(operation)
            case _ if operation.task in self.tasks:
                self._apply_to_task(operation, self.tasks[operation.task])

    def _trim(self, operation: TrimAssignment) -> None:
        one = self.assignments.get(operation.assignment)
        if one is not None:
            self.assignments[one.assignment] = SaveAssignment(
                **{name: getattr(one, name) for name in one.__slots__} | {"high": operation.high}
            )

    def _apply_to_task(self, operation: Operation, task: ModelTask) -> None:
        match operation:
            case SaveAssignment():
                self.assignments[operation.assignment] = operation
            case SaveOutcomes():
                task.outcomes.append(operation)
            case SaveCollected():
                task.collected |= indices(operation.ranges)
            case SaveCheckpoint():
                task.checkpoints[operation.index] = (
                    operation.number,
                    operation.data,
                    operation.device,
                )
            case ForgetCheckpoints():
                for index in operation.indices:
                    task.checkpoints.pop(index, None)
            case SaveDeadline():
                task.deadlines.setdefault(operation.first, operation.due_ms)
            case SaveCounters():
                for index in range(operation.low, operation.high):
                    task.counters[index] = (operation.tries, operation.deaths, operation.losses)

    def used_codes(self) -> set[bytes]:
        used = set()
        for task in self.tasks.values():
            for page in task.pages.values():
                used |= {code for code in self.codes if code in page.header}
        return used

    def picture(self) -> dict[str, Any]:
        """What `recover` must say, in a form without ranges."""
        return {
            "epoch": self.epoch,
            "time": self.time,
            "tasks": {
                name: {
                    "made": (task.made.user, task.made.client, task.made.key, task.made.label),
                    "pages": {
                        page.first: (
                            page.n,
                            page.last,
                            page.header,
                            0 if task.is_spent(page) else len(page.calls),
                            task.deadlines.get(page.first),
                        )
                        for page in task.pages.values()
                    },
                    "settled": set().union(*(indices(row.settled) for row in task.outcomes)),
                    "failed": sum(
                        index in indices(row.settled)
                        for row in task.outcomes
                        for index, _, _ in row.errors
                    ),
                    "collected": task.collected,
                    "counters": task.counters,
                    "archive_bytes": sum(len(row.data) for row in task.archive()),
                }
                for name, task in self.tasks.items()
            },
            "assignments": {
                number: {name: getattr(one, name) for name in one.__slots__}
                for number, one in self.assignments.items()
            },
            "checkpoints": {
                (name, index): checkpoint
                for name, task in self.tasks.items()
                for index, checkpoint in task.checkpoints.items()
            },
            "released": self.released,
            "codes": {
                code: (self.codes[code].form, len(self.codes[code].data))
                for code in self.used_codes()
            },
        }


def picture_of(state: RecoveredState) -> dict[str, Any]:
    """A recovered state in the model's form."""
    assert len(state.released) == len(set(state.released))
    for task in state.tasks:
        spans = [(low, high) for low, high, *_ in task.counters]
        assert spans == sorted(spans)
        assert len(indices(spans)) == sum(high - low for low, high in spans)
    return {
        "epoch": state.epoch,
        "tasks": {
            task.task: {
                "made": (task.user, task.client, task.key, task.label),
                "pages": {
                    page.first: (page.n, page.last, page.header, page.calls_bytes, page.due_ms)
                    for page in task.pages
                },
                "settled": indices(task.settled),
                "failed": task.failed,
                "collected": indices(task.collected),
                "counters": {
                    index: (tries, deaths, losses)
                    for low, high, tries, deaths, losses in task.counters
                    for index in range(low, high)
                },
                "archive_bytes": task.archive_bytes,
            }
            for task in state.tasks
        },
        "assignments": {
            one.assignment: {name: getattr(one, name) for name in one.__slots__}
            for one in state.assignments
        },
        "checkpoints": {
            (row.task, row.index): (row.number, row.data, row.device) for row in state.checkpoints
        },
        "released": set(state.released),
        "codes": dict(state.codes),
        "time": state.time,
    }
