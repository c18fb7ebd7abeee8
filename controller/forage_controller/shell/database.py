"""The controller's database file: who may open it, its schema, and its failures in words.

One directory holds `lock` and `state.db`. The lock is a `flock`: it ends with the process however
that dies, and a second controller on the same directory is refused in words, or waits for it
(`holder.py`).

The schema, which `fold.py` fills: a commit is one row of `journal`; the other tables hold what has
outlived the journal (see `store.py` for why).
"""

import fcntl
import os
import sqlite3
from pathlib import Path

from forage_controller.core.feed import SCHEMA_VERSION

__all__ = [
    "APPLICATION_ID",
    "SCHEMA_VERSION",
    "StateDirectory",
    "StateInUse",
    "StoreError",
    "began",
    "damaged",
    "open_database",
    "is_full",
    "reason_of",
    "unusable",
]

APPLICATION_ID = 0x666F7261  # "fora": `file state.db` and we ourselves tell our files from others.

FILE = "state.db"
LOCK_FILE = "lock"

# Pages of 4 KiB in the write-ahead log before SQLite copies them back: above what one fold writes,
# so that most journal rows are gone again before they are ever copied.
CHECKPOINT_PAGES = 4_096
WRITER_CACHE_KIB = 8_192
READER_CACHE_KIB = 1_024
# A reader meets a lock only for the moment of a checkpoint's restart.
BUSY_TIMEOUT_S = 10.0

_CHECKPOINT = """
CREATE TABLE checkpoint (
    task TEXT NOT NULL, call INTEGER NOT NULL, number INTEGER NOT NULL, data BLOB NOT NULL
);
CREATE UNIQUE INDEX checkpoint_of_call ON checkpoint (task, call);
"""

_DEADLINE = """
CREATE TABLE deadline (task TEXT NOT NULL, first INTEGER NOT NULL, due_ms INTEGER NOT NULL);
CREATE UNIQUE INDEX deadline_of_page ON deadline (task, first);
"""

_MAKER = "ALTER TABLE checkpoint ADD COLUMN device TEXT NOT NULL DEFAULT '';"

_UPGRADES = {1: _CHECKPOINT, 2: _DEADLINE + _MAKER}
"""What a file of an older schema lacks that the next one has."""

_SCHEMA = (
    """
CREATE TABLE setting (name TEXT PRIMARY KEY, value ANY) WITHOUT ROWID;
CREATE TABLE journal (number INTEGER PRIMARY KEY, operations BLOB NOT NULL);
CREATE TABLE code (hash BLOB PRIMARY KEY, form TEXT NOT NULL, data BLOB NOT NULL);
-- `settled` and `failed` count only what is not in `outcome` any more.
CREATE TABLE task (
    task TEXT PRIMARY KEY, user TEXT NOT NULL, client TEXT NOT NULL, key BLOB NOT NULL,
    label TEXT NOT NULL, collected BLOB, settled BLOB, failed INTEGER NOT NULL, counters BLOB
) WITHOUT ROWID;
-- `calls` is NULL once all of them are collected.
CREATE TABLE page (
    id INTEGER PRIMARY KEY, task TEXT NOT NULL, first INTEGER NOT NULL, n INTEGER NOT NULL,
    last INTEGER NOT NULL, header BLOB NOT NULL, calls BLOB
);
CREATE UNIQUE INDEX page_of_task ON page (task, first);
CREATE TABLE outcome (
    id INTEGER PRIMARY KEY, task TEXT NOT NULL, settled_low INTEGER NOT NULL,
    settled_high INTEGER NOT NULL, assignment INTEGER NOT NULL, device TEXT NOT NULL,
    low INTEGER NOT NULL, high INTEGER NOT NULL, tag BLOB NOT NULL, ranges BLOB NOT NULL,
    settled BLOB NOT NULL, errors BLOB NOT NULL, failed INTEGER NOT NULL,
    run_us INTEGER NOT NULL, data BLOB NOT NULL
);
CREATE INDEX outcome_of_task ON outcome (task, settled_low);
CREATE TABLE assignment (
    assignment INTEGER PRIMARY KEY, task TEXT NOT NULL, first INTEGER NOT NULL,
    low INTEGER NOT NULL, high INTEGER NOT NULL, device TEXT NOT NULL, session TEXT NOT NULL,
    tries INTEGER NOT NULL, deaths INTEGER NOT NULL, losses INTEGER NOT NULL
);
CREATE TABLE released (client TEXT PRIMARY KEY, counters BLOB NOT NULL) WITHOUT ROWID;
"""
    + _CHECKPOINT
    + _DEADLINE
    + _MAKER
)


class StoreError(Exception):
    """The state cannot be used; the text is one sentence.

    Where it `may_pass` (a full disk, one that fails) whoever starts us may try again: exit code 1;
    else 2.
    """

    def __init__(self, text: str, *, may_pass: bool = False) -> None:
        super().__init__(text)
        self.may_pass = may_pass


class StateInUse(StoreError):
    """Another process holds the directory."""


class StateDirectory:
    """The directory, created where it is missing, and locked until `close` or our death."""

    def __init__(self, path: Path, start: str = "") -> None:
        """Raises StoreError where it cannot be made, StateInUse where another controller has it.

        `start` is the random part of our sessions, for whoever waits for the directory.
        """
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            words = (error.strerror or str(error)).lower()
            raise StoreError(
                f"The state directory {path} cannot be used ({words}); give another --state-dir."
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._lock, 128, 0).decode(errors="replace").split()
            os.close(self._lock)
            raise StateInUse(
                f"Another controller (pid {holder[0] if holder else 'unknown'}) uses the state "
                f"directory {path}; stop it, give this one another --state-dir, or let it wait for "
                "this one with --standby."
            ) from None
        try:
            os.ftruncate(self._lock, 0)
            who = f"{os.getpid()} {began(os.getpid())} {start}"
            os.pwrite(self._lock, f"{who.strip()}\n".encode(), 0)
        except OSError:
            pass  # A full disk: the number is for people alone.

    @property
    def file(self) -> Path:
        """The database."""
        return self.path / FILE

    def close(self) -> None:
        """Let another controller have it."""
        os.close(self._lock)


def began(pid: int) -> int:
    """When a process began, in ticks since the machine did: with its id, nobody else's.

    Raises OSError where there is no such process.
    """
    stat = Path(f"/proc/{pid}/stat").read_text()
    # The second field is the program's name, in brackets, and may hold anything.
    return int(stat.rpartition(")")[2].split()[19])


def open_database(file: Path, *, reader: bool = False) -> sqlite3.Connection:
    """A connection in autocommit mode; the writer's makes or checks the schema.

    Raises:
        StoreError: Not a database of ours, one of a newer forage, or one that cannot be read.
    """
    try:
        connection = sqlite3.connect(
            file, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        try:
            if reader:
                connection.execute(f"PRAGMA cache_size = -{READER_CACHE_KIB}")
                connection.execute("PRAGMA query_only = ON")
            else:
                _prepare(connection, file)
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as error:
        raise unusable(error, file) from None
    return connection


def _prepare(connection: sqlite3.Connection, file: Path) -> None:
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    is_new = not connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
    if not is_new and application != APPLICATION_ID:
        raise StoreError(f"{file} is another program's database; give another --state-dir.")
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"{file} was written by a newer forage (schema {version}, this one knows "
            f"{SCHEMA_VERSION}); upgrade forage, or give another --state-dir."
        )
    # Readable by us alone: it holds users' arguments and tasks' keys.
    os.chmod(file, 0o600)
    if is_new:
        # Without it a file never shrinks; it can only be chosen before the first table.
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL")
    # A commit is on the disk when it returns: NORMAL loses acknowledged ones with the power.
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    connection.execute(f"PRAGMA journal_size_limit = {CHECKPOINT_PAGES * 4096}")
    connection.execute(f"PRAGMA cache_size = -{WRITER_CACHE_KIB}")
    connection.execute("PRAGMA temp_store = MEMORY")
    if is_new:
        connection.executescript(
            f"BEGIN; PRAGMA application_id = {APPLICATION_ID}; "
            f"PRAGMA user_version = {SCHEMA_VERSION}; {_SCHEMA} COMMIT;"
        )
    elif version < SCHEMA_VERSION:
        missing = "".join([_UPGRADES[older] for older in range(version, SCHEMA_VERSION)])
        connection.executescript(
            f"BEGIN; PRAGMA user_version = {SCHEMA_VERSION}; {missing} COMMIT;"
        )


_FULL = {sqlite3.SQLITE_FULL}
_IO = {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}
_BROKEN = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def damaged(file: Path, detail: str) -> str:
    """One sentence for a file that is not what we wrote."""
    return (
        f"{file} is damaged or not a database ({detail}); put a backup in its place, or move it "
        "away to begin anew."
    )


def _code_of(error: sqlite3.Error) -> int:
    # Extended codes carry the primary one in their low byte.
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def is_full(error: sqlite3.Error) -> bool:
    """Whether there was no room, and nothing else is wrong."""
    return _code_of(error) in _FULL


def unusable(error: sqlite3.Error, file: Path) -> StoreError:
    """The error for a file that cannot be opened, or not be made ready."""
    return StoreError(reason_of(error, file), may_pass=_code_of(error) in _FULL | _IO)


def reason_of(error: sqlite3.Error, file: Path) -> str:
    """One sentence for people: what happened to the file, and what to do."""
    code = _code_of(error)
    detail = getattr(error, "sqlite_errorname", "") or type(error).__name__
    if code in _FULL:
        return f"The disk of {file} is full ({detail}); free some space, or move --state-dir."
    if code in _BROKEN:
        return damaged(file, detail)
    if code in _IO:
        return (
            f"{file} cannot be written or read ({detail}); check the disk, its limits and the "
            "rights on it."
        )
    return f"{file}: {error} ({detail})."
