"""A copy of the store's file for a standby, one at a time, beside the store that goes on.

The saver pins the moment: between two commits it opens a read transaction, whose view of the
database stays as it is. A thread copies that view to a file of its own (it may take a while, and
as much disk as the store), the reader hands out pieces, and the file goes when nobody needs it.
"""

import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

from forage_controller.core.feed import (
    CloseSnapshot,
    OpenSnapshot,
    ReadSnapshot,
    SnapshotFailed,
    SnapshotOpened,
    SnapshotRead,
)
from forage_controller.shell.database import reason_of

__all__ = ["SnapshotEvent", "Snapshots"]

SnapshotEvent = SnapshotOpened | SnapshotFailed | SnapshotRead

FILE = "copy.db"
# Pages copied at a time: some milliseconds of work, between which others get the processor.
PAGES_AT_ONCE = 1_024


class Snapshots:
    """The open copy, if there is one. Its methods are called from the store's threads alone."""

    def __init__(self, store_file: Path, post: Callable[[SnapshotEvent], None]) -> None:
        self._store_file = store_file
        self._file = store_file.with_name(FILE)
        self._post = post
        self._lock = threading.Lock()
        self._request = 0
        """Of the copy that is made or open; 0: none."""
        self._descriptor: int | None = None
        self._thread: threading.Thread | None = None
        # One that a killed process left.
        self._file.unlink(missing_ok=True)

    def pin(self, command: OpenSnapshot, position: int) -> None:
        """Begin a copy of what is committed now: everything up to `position`."""
        self._end()
        try:
            source = sqlite3.connect(
                self._store_file, isolation_level=None, check_same_thread=False
            )
            try:
                source.execute("BEGIN")
                # The view begins with the first read.
                source.execute("SELECT count(*) FROM sqlite_master").fetchone()
            except BaseException:
                source.close()
                raise
        except sqlite3.Error as error:
            self._fail(command.request, error)
            return
        self._request = command.request
        self._thread = threading.Thread(
            target=self._copy,
            args=(source, command.request, position),
            name="forage-copier",
            daemon=True,
        )
        self._thread.start()

    def _fail(self, request: int, error: sqlite3.Error | OSError) -> None:
        if isinstance(error, sqlite3.Error):
            reason = reason_of(error, self._file)
        else:
            reason = f"{self._file} cannot be written ({(error.strerror or str(error)).lower()})."
        self._post(SnapshotFailed(request=request, reason=reason))

    def _copy(self, source: sqlite3.Connection, request: int, position: int) -> None:
        try:
            try:
                target = sqlite3.connect(self._file, isolation_level=None)
                try:
                    os.chmod(self._file, 0o600)
                    # Nobody needs the copy after a crash.
                    target.execute("PRAGMA synchronous = OFF")
                    source.backup(target, pages=PAGES_AT_ONCE)
                finally:
                    target.close()
            finally:
                source.close()
            descriptor = os.open(self._file, os.O_RDONLY | os.O_CLOEXEC)
            size = os.fstat(descriptor).st_size
        except (sqlite3.Error, OSError) as error:
            self._file.unlink(missing_ok=True)
            self._fail(request, error)
            return
        with self._lock:
            if self._request != request:
                os.close(descriptor)
                return
            self._descriptor = descriptor
        self._post(SnapshotOpened(request=request, position=position, size=size))

    def read(self, command: ReadSnapshot) -> None:
        """Hand out a piece."""
        with self._lock:
            if self._descriptor is None or self._request != command.request:
                return
            try:
                data = os.pread(self._descriptor, command.length, command.offset)
                if len(data) < command.length:
                    raise OSError(0, "it is shorter than it was")
            except OSError as error:
                self._fail(command.request, error)
                return
        self._post(SnapshotRead(request=command.request, offset=command.offset, data=data))

    def close(self, command: CloseSnapshot) -> None:
        """The copy is of no more use."""
        if self._request == command.request:
            self._end()

    def _end(self) -> None:
        with self._lock:
            self._request = 0
            descriptor, self._descriptor = self._descriptor, None
        if self._thread is not None and self._thread is not threading.current_thread():
            # One that was making the copy ends with it.
            self._thread.join()
            self._thread = None
        if descriptor is not None:
            os.close(descriptor)
        self._file.unlink(missing_ok=True)

    def end(self) -> None:
        """The store is closed."""
        self._end()
