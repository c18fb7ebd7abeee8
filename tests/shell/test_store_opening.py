"""Who may open a state directory, and what is said to who may not."""

import os
import pickle
import sqlite3
import stat
from pathlib import Path

import pytest

from forage_controller.core.operations import (
    RecoveredState,
    SaveCheckpoint,
    SaveDeadline,
    SaveReleased,
)
from forage_controller.shell.database import SCHEMA_VERSION
from forage_controller.shell.journal import JournalError, decode_operations, encode_operations
from forage_controller.shell.store import Store, StoreError
from shell.store_tools import CLIENT, WatchedStore, page_of, picture_of

TASK = f"{CLIENT}-1"


def open_store(directory: Path) -> Store:
    return Store(directory, lambda event: None)


def test_new_directory_is_made_and_empty(tmp_path: Path) -> None:
    watched = WatchedStore(tmp_path / "a" / "b")
    watched.close()
    assert picture_of(watched.recovered) == picture_of(RecoveredState())


def test_nobody_else_can_read_what_users_sent(tmp_path: Path) -> None:
    watched = WatchedStore(tmp_path / "state")
    watched.save(page_of(TASK))
    directory = tmp_path / "state"
    modes = {stat.S_IMODE(file.stat().st_mode) for file in directory.iterdir()}
    watched.close()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert modes == {0o600}


def test_second_opener_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    watched = WatchedStore(tmp_path)
    with pytest.raises(StoreError, match=rf"Another controller \(pid {os.getpid()}\) uses"):
        open_store(tmp_path)
    watched.save(page_of(TASK))
    watched.close()
    open_store(tmp_path).close()


def test_newer_schema_is_refused(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    with sqlite3.connect(tmp_path / "state.db") as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    with pytest.raises(StoreError, match=r"newer forage .* upgrade forage"):
        open_store(tmp_path)


def test_file_of_the_first_schema_gets_what_it_lacks(tmp_path: Path) -> None:
    watched = WatchedStore(tmp_path)
    watched.save(page_of(TASK))
    watched.close()
    with sqlite3.connect(tmp_path / "state.db") as connection:
        connection.execute("DROP TABLE checkpoint")
        connection.execute("DROP TABLE deadline")
        connection.execute("PRAGMA user_version = 1")
    connection.close()
    watched = WatchedStore(tmp_path)
    watched.save(SaveCheckpoint(task=TASK, index=1, number=2, data=b"state", device="pi1"))
    watched.save(SaveDeadline(task=TASK, first=0, due_ms=7))
    watched.close()
    watched = WatchedStore(tmp_path)
    watched.close()
    assert [page.due_ms for page in watched.recovered.tasks[0].pages] == [7]
    [kept] = watched.recovered.checkpoints
    assert (kept.task, kept.index, kept.number, kept.data) == (TASK, 1, 2, b"state")
    assert kept.device == "pi1"


def test_another_programs_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "state.db") as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    before = (tmp_path / "state.db").read_bytes()
    with pytest.raises(StoreError, match="another program's database"):
        open_store(tmp_path)
    assert (tmp_path / "state.db").read_bytes() == before


def test_garbage_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"garbage, and no database at all" * 100)
    with pytest.raises(StoreError, match="damaged or not a database"):
        open_store(tmp_path)
    # The lock was given back with the error.
    (tmp_path / "state.db").unlink()
    open_store(tmp_path).close()


def test_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot be used \(not a directory\)"):
        open_store(tmp_path / "file" / "state")


class Runs:
    """A pickle that would make a file when it is read by an ordinary reader."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (os.mkdir, (str(self.target),))


def test_foreign_pickle_in_the_journal_is_refused_and_never_run(tmp_path: Path) -> None:
    open_store(tmp_path / "state").close()
    evil = pickle.dumps([1, Runs(tmp_path / "made")])
    with sqlite3.connect(tmp_path / "state" / "state.db") as connection:
        connection.execute("INSERT INTO journal VALUES (NULL, ?)", (evil,))
    connection.close()
    with pytest.raises(StoreError, match=r"damaged .*the journal: it names posix\.mkdir"):
        open_store(tmp_path / "state")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("data", [b"", b"\x80\x05.", b"[]", pickle.dumps([99, ()]), b"\xff" * 40])
def test_damaged_journal_row_is_an_error_of_its_own(data: bytes) -> None:
    with pytest.raises(JournalError):
        decode_operations(data)


def test_truncated_journal_row_is_an_error_of_its_own() -> None:
    data = encode_operations([page_of(TASK), SaveReleased(task=TASK)])
    assert len(decode_operations(data)) == 2
    for size in range(len(data)):
        with pytest.raises(JournalError):
            decode_operations(data[:size])
