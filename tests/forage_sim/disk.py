"""A model of the controller's store: what is committed survives, the rest does not.

Saves wait in line and are committed in groups, each whole or not at all, after a random time.
Loads never wait for a commit: they see everything that was handed over before them, committed or
not. That the real store means the same by every operation is held by a differential test.
"""

import pickle
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from random import Random

from forage_controller.core.feed import (
    CloseSnapshot,
    OpenSnapshot,
    ReadSnapshot,
    SnapshotOpened,
    SnapshotRead,
)
from forage_controller.core.operations import (
    ClosedAssignment,
    CodeLoaded,
    ForgetCheckpoints,
    ForgetCode,
    LoadCode,
    LoadOutcomes,
    LoadPage,
    Operation,
    OutcomesLoaded,
    PageLoaded,
    RecoveredAssignment,
    RecoveredCheckpoint,
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
    SaveFailed,
    SaveOutcomes,
    SavePage,
    SaveReleased,
    SaveTime,
    StoredOutcomes,
    StoreFull,
    StoreHasRoom,
    TrimAssignment,
)
from forage_sim.clock import Clock
from forage_wire.ranges import Ranges, RangeSet

__all__ = ["Disk", "DiskAnswer", "StoredState", "StoredTask"]

DiskAnswer = (
    SaveCommitted
    | SaveFailed
    | StoreFull
    | StoreHasRoom
    | PageLoaded
    | CodeLoaded
    | OutcomesLoaded
    | SnapshotOpened
    | SnapshotRead
)
ANSWER_BYTES_MAX = 1024 * 1024
LOAD_MS_MAX = 5
FULL_RETRY_MS = 1_000
COPY_MS_MAX = 50


@dataclass(slots=True)
class StoredTask:
    """One task as it is on the disk."""

    user: str
    client: str
    key: bytes
    label: str
    pages: dict[int, SavePage] = field(default_factory=dict)
    settled: RangeSet = field(default_factory=RangeSet)
    failed: int = 0
    collected: RangeSet = field(default_factory=RangeSet)
    counters: list[SaveCounters] = field(default_factory=list)
    archive: list[SaveOutcomes] = field(default_factory=list)
    checkpoints: dict[int, SaveCheckpoint] = field(default_factory=dict)
    deadlines: dict[int, int] = field(default_factory=dict)


class StoredState:
    """The tables: what the committed operations have made."""

    def __init__(self) -> None:
        self.epoch = 0
        self.time: SaveTime | None = None
        self.codes: dict[bytes, tuple[str, bytes]] = {}
        self.tasks: dict[str, StoredTask] = {}
        self.assignments: dict[int, SaveAssignment] = {}
        self.assigned: dict[int, SaveAssignment] = {}
        """Every assignment ever committed (the oracles' view; a real store forgets closed ones)."""
        self.released: dict[str, None] = {}
        self.ever_released: dict[str, None] = {}
        self.codes_of: dict[str, bytes] = {}

    def apply(self, operation: Operation) -> None:
        """Make one operation true."""
        match operation:
            case SaveEpoch():
                self.epoch = operation.epoch
            case SaveTime():
                self.time = operation
            case SaveDeadline():
                if operation.task in self.tasks:
                    deadlines = self.tasks[operation.task].deadlines
                    deadlines.setdefault(operation.first, operation.due_ms)
            case SaveCode():
                self.codes.setdefault(operation.hash, (operation.form, operation.data))
            case ForgetCode():
                self.codes.pop(operation.hash, None)
            case SavePage():
                self._apply_page(operation)
            case SaveAssignment():
                self.assigned[operation.assignment] = operation
                if operation.task in self.tasks:
                    self.assignments[operation.assignment] = operation
            case TrimAssignment():
                self._apply_trim(operation)
            case ClosedAssignment():
                self.assignments.pop(operation.assignment, None)
            case SaveOutcomes():
                self._apply_outcomes(operation)
            case SaveCounters():
                task = self.tasks.get(operation.task)
                if task is not None:
                    task.counters.append(operation)
            case SaveCollected():
                self._apply_collected(operation)
            case SaveReleased():
                self._apply_released(operation)
            case SaveCheckpoint():
                if operation.task in self.tasks:
                    self.tasks[operation.task].checkpoints[operation.index] = operation
            case ForgetCheckpoints():
                if operation.task in self.tasks:
                    for index in operation.indices:
                        self.tasks[operation.task].checkpoints.pop(index, None)

    def _apply_page(self, page: SavePage) -> None:
        if page.task in self.released:
            return
        task = self.tasks.get(page.task)
        if task is None:
            task = StoredTask(page.user, page.client, page.key, page.label)
            self.tasks[page.task] = task
        task.pages.setdefault(page.first, page)

    def _apply_trim(self, trim: TrimAssignment) -> None:
        row = self.assignments.get(trim.assignment)
        if row is not None:
            self.assignments[trim.assignment] = SaveAssignment(
                assignment=row.assignment,
                task=row.task,
                first=row.first,
                low=row.low,
                high=trim.high,
                device=row.device,
                session=row.session,
                tries=row.tries,
                deaths=row.deaths,
                losses=row.losses,
            )

    def _apply_outcomes(self, outcomes: SaveOutcomes) -> None:
        task = self.tasks.get(outcomes.task)
        if task is None:
            return
        settled = RangeSet(outcomes.settled)
        task.settled.update(outcomes.settled)
        task.failed += sum(1 for index, _reason, _final in outcomes.errors if index in settled)
        if outcomes.settled:
            task.archive.append(outcomes)

    def _apply_collected(self, collected: SaveCollected) -> None:
        task = self.tasks.get(collected.task)
        if task is None:
            return
        task.collected.update(collected.ranges)
        task.archive = [
            row
            for row in task.archive
            if not all(task.collected.covers(low, high) for low, high in row.settled)
        ]

    def _apply_released(self, released: SaveReleased) -> None:
        self.tasks.pop(released.task, None)
        for number in [n for n, row in self.assignments.items() if row.task == released.task]:
            del self.assignments[number]
        self.ever_released[released.task] = None
        if released.forget:
            self.released.pop(released.task, None)
        else:
            self.released[released.task] = None

    def recover(self) -> RecoveredState:
        """What a controller finds at its start."""
        return RecoveredState(
            epoch=self.epoch,
            tasks=tuple(_recovered_task(name, task) for name, task in self.tasks.items()),
            assignments=tuple(
                RecoveredAssignment(
                    assignment=row.assignment,
                    task=row.task,
                    first=row.first,
                    low=row.low,
                    high=row.high,
                    device=row.device,
                    session=row.session,
                    tries=row.tries,
                    deaths=row.deaths,
                    losses=row.losses,
                )
                for row in self.assignments.values()
            ),
            checkpoints=tuple(
                RecoveredCheckpoint(
                    task=name,
                    index=index,
                    number=row.number,
                    data=row.data,
                    device=row.device,
                )
                for name, task in self.tasks.items()
                for index, row in task.checkpoints.items()
            ),
            released=tuple(self.released),
            codes={hash_: (form, len(data)) for hash_, (form, data) in self.codes.items()},
            time=self.time,
        )

    def outcomes_of(self, load: LoadOutcomes) -> list[StoredOutcomes]:
        """Every archived row that settles any of the wanted calls."""
        task = self.tasks.get(load.task)
        if task is None:
            return []
        wanted = RangeSet(load.ranges)
        return [
            StoredOutcomes(
                assignment=row.assignment,
                device=row.device,
                low=row.low,
                high=row.high,
                tag=row.tag,
                ranges=row.ranges,
                settled=row.settled,
                errors=row.errors,
                run_us=row.run_us,
                data=row.data,
            )
            for row in task.archive
            if any(wanted.common(low, high) for low, high in row.settled)
        ]


def _recovered_task(name: str, task: StoredTask) -> RecoveredTask:
    counters: list[tuple[int, int, int, int, int]] = []
    covered = RangeSet()
    for row in reversed(task.counters):
        for low, high in covered.missing(row.low, row.high):
            counters.append((low, high, row.tries, row.deaths, row.losses))
        covered.add(row.low, row.high)
    return RecoveredTask(
        user=task.user,
        client=task.client,
        task=name,
        key=task.key,
        label=task.label,
        pages=tuple(
            RecoveredPage(
                first=page.first,
                n=page.n,
                last=page.last,
                header=page.header,
                calls_bytes=len(page.calls),
                due_ms=task.deadlines.get(page.first),
            )
            for _first, page in sorted(task.pages.items())
        ),
        settled=task.settled.freeze(),
        failed=task.failed,
        collected=task.collected.freeze(),
        counters=tuple(sorted(counters)),
        archive_bytes=sum(len(row.data) for row in task.archive),
        answered=_answered(task),
    )


def _answered(task: StoredTask) -> tuple[tuple[str, Ranges], ...]:
    found: dict[str, RangeSet] = {}
    for row in task.archive:
        if row.device:
            found.setdefault(row.device, RangeSet()).update(row.settled)
    return tuple((device, ranges.freeze()) for device, ranges in sorted(found.items()))


Load = LoadPage | LoadCode | LoadOutcomes


class Disk:
    """The store of one controller's host; it outlives the controller's process.

    Args:
        clock: The world's time.
        commit_ms_max: A commit takes 1 to this long.
        watch: Told of each operation before it is applied, with what loads see then.
        name: Of its machine, where there are several whose states are compared.
    """

    def __init__(
        self,
        clock: Clock,
        commit_ms_max: int = 5,
        watch: Callable[[StoredState, Operation], None] | None = None,
        name: str = "",
    ) -> None:
        self._watch = watch
        self._clock = clock
        self._random: Random = clock.stream(f"disk/{name}" if name else "disk")
        self.fingerprints: dict[str, int] | None = {} if name else None
        """Of every committed state that it has been in: when it last was, counted in commits."""
        self.since: dict[int, int] = {}
        """The same for each save of the present start."""
        self._to_copy: tuple[int, int] | None = None
        """A snapshot that was asked for, and the save that it must hold."""
        self._copy = b""
        self._handed = 0
        self._committed = 0
        self._states = 0
        self.commit_ms_max = commit_ms_max
        self.is_full = False
        """Nothing can be committed now; what was handed over is kept and tried again."""
        self._said_full = False
        self.state = StoredState()
        """What is committed."""
        self._view = StoredState()
        """What loads see: the same, and everything handed over since."""
        self.commits = 0
        self.lost_operations = 0
        """Operations that a death took with it."""
        self._line: list[Save] = []
        self._group: list[Save] = []
        self._answer: Callable[[DiskAnswer], None] | None = None
        self._start = 0
        self._failing = False
        self._broken = False

    @property
    def view(self) -> StoredState:
        """What is committed and what has been handed over since."""
        return self._view

    def open(self, answer: Callable[[DiskAnswer], None]) -> RecoveredState:
        """A controller starts: what there is; `answer` gets what its requests come to."""
        self._answer = answer
        self._start += 1
        self._broken = False
        self._view = deepcopy(self.state)
        self._handed = self._committed = 0
        self._to_copy = None
        self.since = {}
        self._note_state()
        return self.state.recover()

    def fingerprint(self) -> str:
        """What is committed, as a text."""
        archives = [
            (name, [(row.assignment, row.settled) for row in task.archive])
            for name, task in self.state.tasks.items()
        ]
        return repr((self.state.recover(), archives))

    def _note_state(self) -> None:
        if self.fingerprints is not None:
            self._states += 1
            self.fingerprints[self.fingerprint()] = self.since[self._committed] = self._states

    def install(self, data: bytes) -> None:
        """Another machine's committed state takes the place of ours."""
        self.state = pickle.loads(data)
        self._view = deepcopy(self.state)
        self._group, self._line = [], []
        self._start += 1
        self._note_state()

    def request(self, request: Save | Load | OpenSnapshot | ReadSnapshot | CloseSnapshot) -> None:
        """Take an order; its answer comes later."""
        if self._broken:
            return
        if isinstance(request, OpenSnapshot):
            self._to_copy = (request.request, self._handed)
            self._later(1, self._make_copy)
            return
        if isinstance(request, ReadSnapshot):
            piece = self._copy[request.offset : request.offset + request.length]
            found = SnapshotRead(request=request.request, offset=request.offset, data=piece)
            self._later(1, lambda: self._tell(found))
            return
        if isinstance(request, CloseSnapshot):
            return
        if not isinstance(request, Save):
            self._load(request)
            return
        self._handed = request.number
        for operation in request.operations:
            if self._watch is not None:
                self._watch(self._view, operation)
            self._view.apply(operation)
        self._line.append(request)
        if not self._group:
            self._begin()

    def fail(self) -> None:
        """The next commit fails (an input/output error)."""
        self._failing = True

    def crash(self) -> None:
        """The controller died: its commit under way is made or not, what waited is lost."""
        if self._group and self._random.random() < 0.5:
            self._commit()
        self.lost_operations += sum(len(save.operations) for save in self._group + self._line)
        self._group, self._line = [], []
        self._answer = None
        self._said_full = False
        self._start += 1

    # -- saves ------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._group, self._line = self._line, []
        self._later(self._random.randint(1, max(1, self.commit_ms_max)), self._finish)

    def _commit(self) -> int:
        """Make the group durable; its last number."""
        for save in self._group:
            for operation in save.operations:
                self.state.apply(operation)
            self._committed = save.number
            # Of several that were committed together, a copy may hold the first ones.
            self._note_state()
        self.commits += 1
        self._group = []
        return self._committed

    def _make_copy(self) -> None:
        """The snapshot, once it holds all that was handed over before it was asked for."""
        if self._to_copy is None or self._to_copy[1] > self._committed:
            return
        (request, _save), self._to_copy = self._to_copy, None
        self._copy = pickle.dumps(self.state)
        opened = SnapshotOpened(request=request, position=self._committed, size=len(self._copy))
        self._later(self._random.randint(1, COPY_MS_MAX), lambda: self._tell(opened))

    def _finish(self) -> None:
        if self._failing:
            self._failing = False
            self._broken = True
            self._group, self._line = [], []
            self._tell(SaveFailed(reason="input/output error"))
            return
        if self.is_full:
            if not self._said_full:
                self._said_full = True
                self._tell(StoreFull(reason="no space left on the disk"))
            self._later(FULL_RETRY_MS, self._finish)
            return
        self._tell(SaveCommitted(number=self._commit()))
        if self._said_full:
            self._said_full = False
            self._tell(StoreHasRoom())
        self._make_copy()
        if self._line:
            self._begin()

    # -- loads ------------------------------------------------------------------------------

    def _load(self, load: Load) -> None:
        answers = self._read(load)

        def done() -> None:
            for found in answers:
                self._tell(found)

        self._later(self._random.randint(0, LOAD_MS_MAX), done)

    def _read(self, load: Load) -> list[DiskAnswer]:
        match load:
            case LoadPage():
                task = self._view.tasks.get(load.task)
                page = task.pages.get(load.first) if task is not None else None
                calls = None if page is None else page.calls
                return [PageLoaded(task=load.task, first=load.first, calls=calls)]
            case LoadCode():
                form, data = self._view.codes.get(load.hash, ("", None))
                return [CodeLoaded(hash=load.hash, form=form, data=data)]
            case LoadOutcomes():
                return list(_answers(load, self._view.outcomes_of(load)))

    # -- for both ---------------------------------------------------------------------------

    def _later(self, delay_ms: int, action: Callable[[], None]) -> None:
        """Do something for this start of the controller."""
        start = self._start

        def when_due() -> None:
            if start == self._start:
                action()

        self._clock.after(delay_ms, when_due)

    def _tell(self, answer: DiskAnswer) -> None:
        assert self._answer is not None
        self._answer(answer)


def _answers(load: LoadOutcomes, rows: list[StoredOutcomes]) -> list[OutcomesLoaded]:
    groups: list[list[StoredOutcomes]] = [[]]
    size = 0
    for row in rows:
        if groups[-1] and size + len(row.data) > ANSWER_BYTES_MAX:
            groups.append([])
            size = 0
        groups[-1].append(row)
        size += len(row.data)
    last = len(groups) - 1
    return [
        OutcomesLoaded(request=load.request, task=load.task, rows=tuple(group), more=number < last)
        for number, group in enumerate(groups)
    ]
