"""Writes what has outlived the journal to the tables, and reads the tables back at start.

Owns the rows: how a task, a page, an outcome and an assignment stand in their tables. Everything
here runs inside a transaction of the caller's.
"""

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import cbor2

from forage_controller.core.operations import (
    ForgetCode,
    Operation,
    RecoveredAssignment,
    RecoveredCheckpoint,
    RecoveredPage,
    RecoveredState,
    RecoveredTask,
    SaveCheckpoint,
    SaveCode,
    SaveEpoch,
    SaveOutcomes,
    SavePage,
    SaveTime,
    StoredOutcomes,
)
from forage_controller.shell.journal import decode_operations
from forage_controller.shell.recent import Recent, TaskChanges
from forage_wire.codec import decode_header
from forage_wire.errors import DecodeError
from forage_wire.ranges import Ranges, RangeSet

__all__ = [
    "fold",
    "load_recent",
    "read_state",
    "remove_collected",
    "remove_unused_codes",
    "select_outcomes",
    "write_straight",
]

Counters = list[tuple[int, int, int, int, int]]

# A freed page of 4 KiB is used again; only a large remainder is given back to the file system,
# some at each fold, so that no commit waits long for it.
FREE_PAGES_MAX = 16_384
FREE_PAGES_AT_ONCE = 1_024

_INSERT_TASK = "INSERT OR REPLACE INTO task VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_INSERT_NEW_TASK = "INSERT OR IGNORE INTO task VALUES (?, ?, ?, ?, ?, NULL, NULL, 0, NULL)"
_INSERT_PAGE = "INSERT OR IGNORE INTO page VALUES (NULL, ?, ?, ?, ?, ?, ?)"
_INSERT_OUTCOME = "INSERT INTO outcome VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_INSERT_CHECKPOINT = "INSERT OR REPLACE INTO checkpoint VALUES (?, ?, ?, ?, ?)"
_INSERT_DEADLINE = "INSERT OR IGNORE INTO deadline VALUES (?, ?, ?)"
_INSERT_ASSIGNMENT = "INSERT OR REPLACE INTO assignment VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


# ---------------------------------------------------------------------------- rows


def _pack(value: object) -> bytes | None:
    """CBOR; NULL for what is empty, which most are."""
    return cbor2.dumps(value) if value else None


def _unpack_ranges(data: bytes | None) -> Ranges:
    return tuple((low, high) for low, high in cbor2.loads(data)) if data is not None else ()


def _page_row(page: SavePage, calls: bytes | None) -> tuple[Any, ...]:
    return (page.task, page.first, page.n, page.last, page.header, calls)


def _failed_count(outcomes: SaveOutcomes) -> int:
    if not outcomes.errors:
        return 0
    settled = RangeSet(outcomes.settled)
    return sum(index in settled for index, _, _ in outcomes.errors)


def _outcome_row(row: SaveOutcomes) -> tuple[Any, ...]:
    return (
        row.task,
        row.settled[0][0],
        row.settled[-1][1],
        row.assignment,
        row.device,
        row.low,
        row.high,
        row.tag,
        cbor2.dumps(row.ranges),
        cbor2.dumps(row.settled),
        cbor2.dumps(row.errors),
        _failed_count(row),
        row.run_us,
        row.data,
    )


def select_outcomes(
    connection: sqlite3.Connection, task: str, low: int, high: int
) -> Iterable[StoredOutcomes]:
    """Rows of a task that settle something within [low, high), or in a gap that spans it."""
    query = (
        "SELECT assignment, device, low, high, tag, ranges, settled, errors, run_us, data "
        "FROM outcome WHERE task = ? AND settled_low < ? AND settled_high > ?"
    )
    for (
        assignment,
        device,
        row_low,
        row_high,
        tag,
        ranges,
        settled,
        errors,
        run_us,
        data,
    ) in connection.execute(query, (task, high, low)):
        yield StoredOutcomes(
            assignment=assignment,
            device=device,
            low=row_low,
            high=row_high,
            tag=tag,
            ranges=_unpack_ranges(ranges),
            settled=_unpack_ranges(settled),
            errors=tuple((index, reason, final) for index, reason, final in cbor2.loads(errors)),
            run_us=run_us,
            data=data,
        )


def write_straight(connection: sqlite3.Connection, operation: Operation) -> None:
    """Write one operation to its table at once: an epoch, the time, a code (or its end), or a
    large page or outcome."""
    match operation:
        case SaveEpoch():
            connection.execute(
                "INSERT OR REPLACE INTO setting VALUES ('epoch', ?)", (operation.epoch,)
            )
        case SaveTime():
            value = cbor2.dumps([operation.ran_ms, operation.boot, operation.boot_ms])
            connection.execute("INSERT OR REPLACE INTO setting VALUES ('time', ?)", (value,))
        case SaveCode():
            connection.execute(
                "INSERT OR IGNORE INTO code VALUES (?, ?, ?)",
                (operation.hash, operation.form, operation.data),
            )
        case ForgetCode():
            connection.execute("DELETE FROM code WHERE hash = ?", (operation.hash,))
        case SavePage():
            page = operation
            connection.execute(
                _INSERT_NEW_TASK, (page.task, page.user, page.client, page.key, page.label)
            )
            connection.execute(_INSERT_PAGE, _page_row(page, page.calls))
        case SaveOutcomes():
            if operation.settled:
                connection.execute(_INSERT_OUTCOME, _outcome_row(operation))
        case _:
            raise AssertionError(f"{type(operation).__name__} goes to the journal")


# ---------------------------------------------------------------------------- folding


@dataclass(slots=True)
class _TaskRow:
    """A task's own row, read, changed and written back."""

    user: str
    client: str
    key: bytes
    label: str
    collected: RangeSet = field(default_factory=RangeSet)
    settled: RangeSet = field(default_factory=RangeSet)
    failed: int = 0
    counters: Counters = field(default_factory=list)

    def columns(self, task: str) -> tuple[Any, ...]:
        return (
            task,
            self.user,
            self.client,
            self.key,
            self.label,
            _pack(self.collected.freeze()),
            _pack(self.settled.freeze()),
            self.failed,
            _pack(self.counters),
        )

    def drop(self, settled: Ranges, failed: int) -> None:
        """An outcome row goes, or never comes; what it settled is remembered."""
        self.settled.update(settled)
        self.failed += failed


def fold(connection: sqlite3.Connection, recent: Recent) -> None:
    """Bring the tables up to date with `recent` and empty the journal."""
    over = [task for task, changes in recent.tasks.items() if changes.wipe]
    if over:
        names = json.dumps(over)
        for table in ("task", "page", "outcome", "assignment", "checkpoint", "deadline"):
            connection.execute(
                f"DELETE FROM {table} WHERE task IN (SELECT value FROM json_each(?))", (names,)
            )
    _fold_assignments(connection, recent)
    living = {task: changes for task, changes in recent.tasks.items() if not changes.is_over}
    old = [task for task, changes in living.items() if not changes.wipe]
    rows = _read_task_rows(connection, [task for task in old if task in recent.in_tables])
    pages: list[tuple[Any, ...]] = []
    outcomes: list[tuple[Any, ...]] = []
    for task, changes in living.items():
        row = rows.get(task)
        if row is None:
            made = changes.made
            assert made is not None, f"task {task} has no page"
            row = rows[task] = _TaskRow(made.user, made.client, made.key, made.label)
        elif changes.collected:
            row.collected.update(changes.collected)
            _drop_collected(connection, task, row)
        _fold_task(changes, row, pages, outcomes)
    connection.executemany(_INSERT_TASK, [row.columns(task) for task, row in rows.items()])
    connection.executemany(_INSERT_PAGE, pages)
    connection.executemany(_INSERT_OUTCOME, outcomes)
    connection.executemany(
        _INSERT_DEADLINE,
        [
            (task, first, due_ms)
            for task, changes in living.items()
            for first, due_ms in (changes.deadlines or {}).items()
        ],
    )
    for task, changes in living.items():
        if changes.checkpoints:
            _fold_checkpoints(connection, task, changes.checkpoints)
    _fold_released(connection, recent)
    connection.execute("DELETE FROM journal")
    free = connection.execute("PRAGMA freelist_count").fetchone()[0]
    if free > FREE_PAGES_MAX:
        connection.execute(f"PRAGMA incremental_vacuum({FREE_PAGES_AT_ONCE})").fetchall()


def _fold_task(
    changes: TaskChanges,
    row: _TaskRow,
    pages: list[tuple[Any, ...]],
    outcomes: list[tuple[Any, ...]],
) -> None:
    collected = row.collected
    collected.update(changes.collected)
    for page in changes.pages.values():
        is_spent = collected.covers(page.first, page.first + page.n)
        pages.append(_page_row(page, None if is_spent else page.calls))
    for outcome in changes.outcomes:
        if all(collected.covers(low, high) for low, high in outcome.settled):
            row.drop(outcome.settled, _failed_count(outcome))
        else:
            outcomes.append(_outcome_row(outcome))
    if changes.counters:
        later = [
            (change.low, change.high, change.tries, change.deaths, change.losses)
            for change in changes.counters
        ]
        row.counters = _latest(row.counters + later)


def _latest(counters: Counters) -> Counters:
    """The last of overlapping ranges wins; in order and disjoint."""
    covered = RangeSet()
    found: Counters = []
    for low, high, tries, deaths, losses in reversed(counters):
        for gap_low, gap_high in covered.missing(low, high):
            found.append((gap_low, gap_high, tries, deaths, losses))
        covered.add(low, high)
    return sorted(found)


def _read_task_rows(connection: sqlite3.Connection, tasks: list[str]) -> dict[str, _TaskRow]:
    query = (
        "SELECT task, user, client, key, label, collected, settled, failed, counters FROM task "
        "WHERE task IN (SELECT value FROM json_each(?))"
    )
    return {
        task: _TaskRow(
            user=user,
            client=client,
            key=key,
            label=label,
            collected=RangeSet(_unpack_ranges(collected)),
            settled=RangeSet(_unpack_ranges(settled)),
            failed=failed,
            counters=[tuple(one) for one in cbor2.loads(counters)] if counters else [],
        )
        for task, user, client, key, label, collected, settled, failed, counters in (
            connection.execute(query, (json.dumps(tasks),))
        )
    }


def _drop_collected(connection: sqlite3.Connection, task: str, row: _TaskRow) -> None:
    """Delete the task's outcomes, and the calls of its pages, that are collected as a whole."""
    gone: list[tuple[int]] = []
    query = "SELECT id, settled, failed FROM outcome WHERE task = ?"
    for number, packed, failed in connection.execute(query, (task,)):
        settled = _unpack_ranges(packed)
        if all(row.collected.covers(low, high) for low, high in settled):
            row.drop(settled, failed)
            gone.append((number,))
    connection.executemany("DELETE FROM outcome WHERE id = ?", gone)
    query = "SELECT id, first, n FROM page WHERE task = ? AND calls IS NOT NULL"
    spent = [
        (number,)
        for number, first, n in connection.execute(query, (task,))
        if row.collected.covers(first, first + n)
    ]
    connection.executemany("UPDATE page SET calls = NULL WHERE id = ?", spent)


def _fold_checkpoints(
    connection: sqlite3.Connection, task: str, checkpoints: dict[int, SaveCheckpoint | None]
) -> None:
    connection.executemany(
        "DELETE FROM checkpoint WHERE task = ? AND call = ?",
        [(task, index) for index, checkpoint in checkpoints.items() if checkpoint is None],
    )
    connection.executemany(
        _INSERT_CHECKPOINT,
        [
            (task, index, checkpoint.number, checkpoint.data, checkpoint.device)
            for index, checkpoint in checkpoints.items()
            if checkpoint is not None
        ],
    )


def _fold_assignments(connection: sqlite3.Connection, recent: Recent) -> None:
    if recent.closed:
        connection.execute(
            "DELETE FROM assignment WHERE assignment IN (SELECT value FROM json_each(?))",
            (json.dumps(list(recent.closed)),),
        )
    connection.executemany(
        "UPDATE assignment SET high = ? WHERE assignment = ?",
        [(high, assignment) for assignment, high in recent.trimmed.items()],
    )
    connection.executemany(
        _INSERT_ASSIGNMENT,
        [
            (
                one.assignment,
                one.task,
                one.first,
                one.low,
                one.high,
                one.device,
                one.session,
                one.tries,
                one.deaths,
                one.losses,
            )
            for one in recent.opened.values()
        ],
    )


def _fold_released(connection: sqlite3.Connection, recent: Recent) -> None:
    for client in recent.released.changed:
        counters = recent.released.counters[client]
        if counters:
            connection.execute(
                "INSERT OR REPLACE INTO released VALUES (?, ?)",
                (client, cbor2.dumps(counters.freeze())),
            )
        else:
            connection.execute("DELETE FROM released WHERE client = ?", (client,))


# ---------------------------------------------------------------------------- at start


def load_recent(connection: sqlite3.Connection) -> Recent:
    """What the tables hold, as far as `Recent` keeps it, and the journal on top."""
    recent = Recent()
    for table in ("task", "page", "outcome"):
        recent.in_tables.update(
            task for (task,) in connection.execute(f"SELECT DISTINCT task FROM {table}")
        )
    highest = connection.execute("SELECT max(assignment) FROM assignment").fetchone()[0]
    recent.assignment_max = highest or 0
    for client, counters in connection.execute("SELECT client, counters FROM released"):
        recent.released.counters[client] = RangeSet(_unpack_ranges(counters))
    for (data,) in connection.execute("SELECT operations FROM journal ORDER BY number"):
        for operation in decode_operations(data):
            recent.apply(operation)
    return recent


def remove_collected(connection: sqlite3.Connection) -> None:
    """Drop what is collected of every task.

    A row that went straight to its table after its calls had been collected is still there.
    """
    names = [
        task for (task,) in connection.execute("SELECT task FROM task WHERE collected IS NOT NULL")
    ]
    rows = _read_task_rows(connection, names)
    for task, row in rows.items():
        _drop_collected(connection, task, row)
    connection.executemany(_INSERT_TASK, [row.columns(task) for task, row in rows.items()])


def remove_unused_codes(connection: sqlite3.Connection) -> None:
    """Delete every code that no page's header names."""
    used: dict[bytes, None] = {}
    for (header,) in connection.execute("SELECT header FROM page"):
        try:
            function = decode_header(header).function
        except DecodeError:
            continue  # A page that no device can run holds no code.
        if isinstance(function, bytes):
            used[function] = None
    stored = [code for (code,) in connection.execute("SELECT hash FROM code")]
    unused = [(code,) for code in stored if code not in used]
    connection.executemany("DELETE FROM code WHERE hash = ?", unused)


def _time_of(value: bytes) -> SaveTime:
    ran_ms, boot, boot_ms = cbor2.loads(value)
    return SaveTime(ran_ms=ran_ms, boot=boot, boot_ms=boot_ms)


def read_state(connection: sqlite3.Connection, recent: Recent) -> RecoveredState:
    """Everything, once the journal has been folded."""
    epoch = connection.execute("SELECT value FROM setting WHERE name = 'epoch'").fetchone()
    time = connection.execute("SELECT value FROM setting WHERE name = 'time'").fetchone()
    deadlines = {
        (task, first): due_ms
        for task, first, due_ms in connection.execute("SELECT task, first, due_ms FROM deadline")
    }
    pages: dict[str, list[RecoveredPage]] = {}
    query = "SELECT task, first, n, last, header, length(calls) FROM page ORDER BY task, first"
    for task, first, n, last, header, size in connection.execute(query):
        page = RecoveredPage(
            first=first,
            n=n,
            last=bool(last),
            header=header,
            calls_bytes=size or 0,
            due_ms=deadlines.get((task, first)),
        )
        pages.setdefault(task, []).append(page)
    settled: dict[str, RangeSet] = {}
    failed: dict[str, int] = {}
    archive: dict[str, int] = {}
    answered: dict[str, dict[str, RangeSet]] = {}
    query = "SELECT task, settled, failed, length(data), device FROM outcome"
    for task, packed, count, size, device in connection.execute(query):
        ranges = _unpack_ranges(packed)
        settled.setdefault(task, RangeSet()).update(ranges)
        if device:
            answered.setdefault(task, {}).setdefault(device, RangeSet()).update(ranges)
        failed[task] = failed.get(task, 0) + count
        archive[task] = archive.get(task, 0) + size
    names = [task for (task,) in connection.execute("SELECT task FROM task ORDER BY task")]
    rows = _read_task_rows(connection, names)
    tasks: list[RecoveredTask] = []
    for task in names:
        row = rows[task]
        row.settled.update(settled.get(task, RangeSet()))
        tasks.append(
            RecoveredTask(
                user=row.user,
                client=row.client,
                task=task,
                key=row.key,
                label=row.label,
                pages=tuple(pages.get(task, ())),
                settled=row.settled.freeze(),
                failed=row.failed + failed.get(task, 0),
                collected=row.collected.freeze(),
                counters=tuple(row.counters),
                archive_bytes=archive.get(task, 0),
                answered=tuple(
                    (device, ranges.freeze())
                    for device, ranges in sorted(answered.get(task, {}).items())
                ),
            )
        )
    query = (
        "SELECT assignment, task, first, low, high, device, session, tries, deaths, losses "
        "FROM assignment ORDER BY assignment"
    )
    columns = [part.strip() for part in query[7:].split(" FROM")[0].split(",")]
    return RecoveredState(
        epoch=epoch[0] if epoch else 0,
        tasks=tuple(tasks),
        assignments=tuple(
            RecoveredAssignment(**dict(zip(columns, values, strict=True)))
            for values in connection.execute(query)
        ),
        checkpoints=tuple(
            RecoveredCheckpoint(task=task, index=index, number=number, data=data, device=device)
            for task, index, number, data, device in connection.execute(
                "SELECT task, call, number, data, device FROM checkpoint ORDER BY task, call"
            )
        ),
        released=tuple(recent.released.names()),
        codes={
            code: (form, size)
            for code, form, size in connection.execute("SELECT hash, form, length(data) FROM code")
        },
        time=_time_of(time[0]) if time else None,
    )
