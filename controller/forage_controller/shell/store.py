"""The controller's store: groups of operations in, `SaveCommitted` out, and loads beside them.

One saver thread owns the connection that writes. It takes everything that has been handed over and
commits it together: one row of the journal and one fsync, whatever the number of operations. The
journal's content is also in memory (`recent.py`); when it has grown, or nothing has come for a
while, what is left of it is folded into the tables (`fold.py`) and it begins anew. Large pages and
outcomes go to their tables at once, so that their bytes are written once and held by nobody.

One reader thread answers loads from its own connection, so that they never wait for an fsync. It
sees everything that was handed over before the load, committed or not.

Neither thread touches anything of the loop's: both hand events to `post`.
"""

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue

from forage_controller.core.feed import CloseSnapshot, OpenSnapshot, ReadSnapshot
from forage_controller.core.operations import (
    CodeLoaded,
    ForgetCode,
    LoadCode,
    LoadOutcomes,
    LoadPage,
    Operation,
    OutcomesLoaded,
    PageLoaded,
    RecoveredState,
    Save,
    SaveCode,
    SaveCommitted,
    SaveEpoch,
    SaveFailed,
    SaveOutcomes,
    SavePage,
    SaveTime,
    StoredOutcomes,
    StoreFull,
    StoreHasRoom,
)
from forage_controller.shell.database import (
    StateDirectory,
    StoreError,
    damaged,
    is_full,
    open_database,
    reason_of,
    unusable,
)
from forage_controller.shell.fold import (
    fold,
    load_recent,
    read_state,
    remove_collected,
    remove_unused_codes,
    select_outcomes,
    write_straight,
)
from forage_controller.shell.journal import JournalError, encode_operations
from forage_controller.shell.snapshot import SnapshotEvent, Snapshots
from forage_wire.ranges import Ranges, RangeSet

__all__ = ["Load", "Store", "StoreError", "StoreEvent"]

logger = logging.getLogger(__name__)

Load = LoadPage | LoadCode | LoadOutcomes | ReadSnapshot | CloseSnapshot
StoreEvent = (
    SaveCommitted
    | SaveFailed
    | StoreFull
    | StoreHasRoom
    | PageLoaded
    | CodeLoaded
    | OutcomesLoaded
    | SnapshotEvent
)

# Payloads from this size on are written to their tables at once.
STRAIGHT_BYTES = 8 * 1024
# The journal is folded at this size: above what a busy fleet writes within the life of most of its
# tasks, below what makes a commit wait long for it (and a restart for reading it).
FOLD_BYTES = 8 << 20
# Rows that went straight may be over as well; they are deleted at the next fold.
FOLD_STRAIGHT_BYTES = 64 << 20
FOLD_IDLE_S = 15.0
_STRAIGHT = frozenset({SaveEpoch, SaveCode, ForgetCode, SaveTime})
# One fsync takes less than a millisecond on a good disk; beginning one at once for every message
# would spend the processor on commits, beside the very call that is being handled. So a commit
# gathers what comes in this time, unless somebody's work waits for it. At 5 ms, calls that were made
# one after another cost the controller a sixth more.
GATHER_S = 0.02
LOADED_BYTES_MAX = 1 << 20
# A full disk is tried again after this.
FULL_RETRY_S = 1.0


class Store:
    """Opens the state directory; `recover`, then `start`, then `execute` and `flush`, then `close`.

    All but the two threads' work is called from one thread.
    """

    def __init__(
        self,
        directory: Path,
        post: Callable[[StoreEvent], None],
        *,
        fold_bytes: int = FOLD_BYTES,
        fold_idle_s: float = FOLD_IDLE_S,
        gather_s: float = GATHER_S,
        start: str = "",
        held: StateDirectory | None = None,
    ) -> None:
        """Lock the directory, open the database, and fold what the last process left.

        Args:
            directory: Made where it is missing; ours alone until `close`.
            post: Takes an event in either thread of the store; must not block.
            fold_bytes: The journal is folded when it holds this much.
            fold_idle_s: The journal is folded when nothing has come for so long.
            gather_s: A commit of which nothing is urgent waits so long for more.
            start: The random part of our sessions, by which a standby that waits for the directory
                knows us.
            held: The directory, where the caller has locked it, and closes it.

        Raises:
            StoreError: One sentence; nothing is held then.
        """
        self._post = post
        self._fold_bytes = fold_bytes
        self._fold_idle_s = fold_idle_s
        self._gather_s = gather_s
        self._directory = StateDirectory(directory, start) if held is None else held
        self._file = self._directory.file

        self._corked: list[Save] = []
        self._loads: SimpleQueue[Load | None] = SimpleQueue()

        # Guards these four; held for moments, as the loop takes it.
        self._wake = threading.Condition(threading.Lock())
        self._arrived: list[Save] = []
        self._is_urgent = False
        self._commit_at_s = 0.0
        """When what has arrived is committed though nothing of it is urgent."""
        self._is_closing = False
        self._has_started = False
        self._end = threading.Event()
        self._to_copy: OpenSnapshot | None = None
        self._committed = 0

        # Guards `_recent` and `_straight`; taken before `_wake`, never by the loop.
        self._recent_lock = threading.Lock()
        self._straight: list[Operation] = []
        """Rows on their way to their tables, that are nowhere else."""
        self._journal_bytes = 0
        self._straight_bytes = 0

        with ExitStack() as opened:
            if held is None:
                opened.callback(self._directory.close)
            try:
                self._writer = open_database(self._file)
                opened.callback(self._writer.close)
                self._reader = open_database(self._file, reader=True)
                opened.callback(self._reader.close)
                self._recent = load_recent(self._writer)
                self._fold()
                self._write(self._tidy)
                self._snapshots = Snapshots(self._file, post)
                opened.callback(self._snapshots.end)
            except sqlite3.Error as error:
                raise unusable(error, self._file) from None
            except JournalError as error:
                raise StoreError(damaged(self._file, f"the journal: {error}")) from None
            self._opened = opened.pop_all()

        self._threads = [
            threading.Thread(target=self._run, args=(work,), name=name, daemon=True)
            for work, name in ((self._save, "forage-saver"), (self._read, "forage-reader"))
        ]

    # ------------------------------------------------------------------ what the loop calls

    def recover(self) -> RecoveredState:
        """All that the store holds; before `start`."""
        try:
            return read_state(self._writer, self._recent)
        except sqlite3.Error as error:
            raise unusable(error, self._file) from None

    def start(self) -> None:
        """Begin to commit and to answer."""
        self._has_started = True
        for thread in self._threads:
            thread.start()

    def execute(self, command: Save | Load | OpenSnapshot) -> None:
        """Take a command; it is carried out after the next `flush`."""
        if isinstance(command, Save):
            self._corked.append(command)
            return
        # What is corked has been handed over before it, and must be seen by it.
        self.flush()
        if isinstance(command, OpenSnapshot):
            with self._wake:
                self._to_copy = command
                self._wake.notify()
        else:
            self._loads.put(command)

    def flush(self) -> None:
        """Hand over what was taken since the last time, as one group."""
        if self._corked:
            with self._wake:
                is_first = not self._arrived
                self._arrived += self._corked
                is_urgent = any(save.urgent for save in self._corked)
                self._is_urgent |= is_urgent
                if is_first:
                    self._commit_at_s = time.monotonic() + self._gather_s
                if is_first or is_urgent:
                    self._wake.notify()
            self._corked = []

    def close(self) -> None:
        """Commit what was handed over, end the threads, and let the directory go."""
        self.flush()
        self._end.set()
        with self._wake:
            self._is_closing = True
            self._wake.notify()
        self._loads.put(None)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        self._opened.close()

    # ------------------------------------------------------------------ threads

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except sqlite3.Error as error:
            self._post(SaveFailed(reason=reason_of(error, self._file)))
        except BaseException as error:
            # A thread that ended without a word would leave a controller that never answers.
            logger.exception("the store's thread ended")
            self._post(SaveFailed(reason=f"The store ended ({type(error).__name__}: {error})."))

    def _save(self) -> None:
        while True:
            with self._wake:
                while not self._arrived and not self._is_closing and self._to_copy is None:
                    if not self._wake.wait(self._fold_idle_s if self._recent else None):
                        break
                if self._is_closing and not self._arrived:
                    return
                is_idle = not self._arrived
                if not is_idle:
                    self._gather()
                to_copy, self._to_copy = self._to_copy, None
            if not is_idle:
                self._commit()
            if to_copy is not None:
                self._snapshots.pin(to_copy, self._committed)
            elif is_idle:
                self._fold()

    def _gather(self) -> None:
        """Wait for more to commit; under `_wake`."""
        while not self._is_urgent and not self._is_closing:
            left_s = self._commit_at_s - time.monotonic()
            if left_s <= 0 or not self._wake.wait(left_s):
                return

    def _commit(self) -> None:
        """Commit everything that has arrived."""
        journaled: list[Operation] = []
        with self._recent_lock:
            with self._wake:
                saves, self._arrived = self._arrived, []
                self._is_urgent = False
            for save in saves:
                for operation in save.operations:
                    self._sort(operation, journaled)
        data = encode_operations(journaled) if journaled else b""
        self._journal_bytes += len(data)
        if self._journal_bytes >= self._fold_bytes or self._straight_bytes >= FOLD_STRAIGHT_BYTES:
            self._fold()
        else:
            self._write(lambda: self._append(data))
        with self._recent_lock:
            self._straight = []
        self._committed = saves[-1].number
        self._post(SaveCommitted(number=self._committed))

    def _sort(self, operation: Operation, journaled: list[Operation]) -> None:
        """To its table at once, or to the journal and the memory."""
        recent = self._recent
        size = 0
        # By exact type and without unions: this runs for every operation.
        kind = type(operation)
        if kind is SavePage:
            size = len(operation.calls)  # type: ignore[union-attr]
        elif kind is SaveOutcomes:
            size = len(operation.data)  # type: ignore[union-attr]
        elif kind in _STRAIGHT:
            self._straight.append(operation)
            return
        if (
            size >= STRAIGHT_BYTES
            and isinstance(operation, SavePage | SaveOutcomes)
            and recent.goes_straight(operation)
        ):
            recent.in_tables.add(operation.task)
            self._straight.append(operation)
            self._straight_bytes += size
        elif recent.apply(operation):
            journaled.append(operation)

    def _append(self, data: bytes) -> None:
        for operation in self._straight:
            write_straight(self._writer, operation)
        if data:
            self._writer.execute("INSERT INTO journal VALUES (NULL, ?)", (data,))

    def _fold(self) -> None:
        """Bring the tables up to date; what is on its way is in them too."""

        def write() -> None:
            self._append(b"")
            fold(self._writer, self._recent)

        self._write(write)
        with self._recent_lock:
            self._recent.settle()
        self._journal_bytes = 0
        self._straight_bytes = 0

    def _tidy(self) -> None:
        remove_collected(self._writer)
        remove_unused_codes(self._writer)

    def _write(self, work: Callable[[], None]) -> None:
        """One transaction. On a full disk it is tried until there is room, once we have started.

        Nothing is lost by that: what is not committed is not acknowledged. After any other error
        nobody knows what is on the disk; the process ends, and the next one reads what is there.
        """
        was_full = False
        while True:
            try:
                self._transact(work)
                break
            except sqlite3.Error as error:
                if not is_full(error) or not self._has_started or self._end.is_set():
                    raise
                if not was_full:
                    self._post(StoreFull(reason=reason_of(error, self._file)))
                was_full = True
            self._end.wait(FULL_RETRY_S)
        if was_full:
            self._post(StoreHasRoom())

    def _transact(self, work: Callable[[], None]) -> None:
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            work()
            self._writer.execute("COMMIT")
        except BaseException:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            raise

    # ------------------------------------------------------------------ loads

    def _read(self) -> None:
        while (load := self._loads.get()) is not None:
            match load:
                case LoadPage():
                    self._post(self._load_page(load))
                case LoadCode():
                    self._post(self._load_code(load))
                case LoadOutcomes():
                    for event in self._load_outcomes(load):
                        self._post(event)
                case ReadSnapshot():
                    self._snapshots.read(load)
                case CloseSnapshot():
                    self._snapshots.close(load)

    def _unwritten(self) -> Iterator[Operation]:
        """What is neither in `_recent` nor in the tables yet; under `_recent_lock`."""
        yield from self._straight
        with self._wake:
            saves = list(self._arrived)
        for save in saves:
            yield from save.operations

    def _load_page(self, load: LoadPage) -> PageLoaded:
        calls: bytes | None = None
        with self._recent_lock:
            changes = self._recent.tasks.get(load.task)
            page = changes.pages.get(load.first) if changes is not None else None
            if page is None:
                page = next(
                    (
                        one
                        for one in self._unwritten()
                        if isinstance(one, SavePage)
                        and (one.task, one.first) == (load.task, load.first)
                    ),
                    None,
                )
            is_over = changes is not None and changes.is_over
        if page is not None:
            calls = page.calls
        elif not is_over:
            # After the look into the memory: what left it in between is in the tables by now.
            row = self._reader.execute(
                "SELECT calls FROM page WHERE task = ? AND first = ?", (load.task, load.first)
            ).fetchone()
            calls = row[0] if row is not None else None
        return PageLoaded(task=load.task, first=load.first, calls=calls)

    def _load_code(self, load: LoadCode) -> CodeLoaded:
        with self._recent_lock:
            latest = None
            for one in self._unwritten():
                if isinstance(one, SaveCode | ForgetCode) and one.hash == load.hash:
                    latest = one
        if isinstance(latest, SaveCode):
            return CodeLoaded(hash=load.hash, form=latest.form, data=latest.data)
        if latest is not None:
            return CodeLoaded(hash=load.hash, form="", data=None)
        row = self._reader.execute(
            "SELECT form, data FROM code WHERE hash = ?", (load.hash,)
        ).fetchone()
        form, data = row if row is not None else ("", None)
        return CodeLoaded(hash=load.hash, form=form, data=data)

    def _load_outcomes(self, load: LoadOutcomes) -> Iterator[OutcomesLoaded]:
        """All matching rows, each once, in answers of about `LOADED_BYTES_MAX`."""
        found: list[StoredOutcomes] = []
        size = 0
        for row in self._matching(load):
            if size >= LOADED_BYTES_MAX:
                yield OutcomesLoaded(
                    request=load.request, task=load.task, rows=tuple(found), more=True
                )
                found = []
                size = 0
            found.append(row)
            size += len(row.data)
        yield OutcomesLoaded(request=load.request, task=load.task, rows=tuple(found))

    def _matching(self, load: LoadOutcomes) -> Iterator[StoredOutcomes]:
        if not load.ranges:
            return
        wanted = RangeSet(load.ranges)
        with self._recent_lock:
            changes = self._recent.tasks.get(load.task)
            held = list(changes.outcomes) if changes is not None else []
            held += [
                one
                for one in self._unwritten()
                if isinstance(one, SaveOutcomes) and one.task == load.task
            ]
            is_over = changes is not None and changes.is_over
        seen: dict[tuple[int, Ranges], None] = {}
        for outcomes in held:
            if _overlaps(outcomes.settled, wanted):
                seen[outcomes.assignment, outcomes.settled] = None
                yield _stored(outcomes)
        if is_over:
            return
        low, high = load.ranges[0][0], load.ranges[-1][1]
        for row in select_outcomes(self._reader, load.task, low, high):
            # What was on its way a moment ago may be in the tables as well by now.
            if (row.assignment, row.settled) not in seen and _overlaps(row.settled, wanted):
                yield row


def _overlaps(settled: Ranges, wanted: RangeSet) -> bool:
    return any(wanted.common(low, high) for low, high in settled)


def _stored(outcomes: SaveOutcomes) -> StoredOutcomes:
    return StoredOutcomes(
        assignment=outcomes.assignment,
        device=outcomes.device,
        low=outcomes.low,
        high=outcomes.high,
        tag=outcomes.tag,
        ranges=outcomes.ranges,
        settled=outcomes.settled,
        errors=outcomes.errors,
        run_us=outcomes.run_us,
        data=outcomes.data,
    )
