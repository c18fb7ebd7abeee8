"""Group commits, folds and loads of the real store, and its failures."""

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from queue import Empty

import pytest

from forage_controller.core.operations import (
    ClosedAssignment,
    LoadCode,
    LoadOutcomes,
    LoadPage,
    Save,
    SaveCode,
    SaveCollected,
    SaveCommitted,
    SaveEpoch,
    SaveFailed,
    SaveOutcomes,
    SaveReleased,
    StoreFull,
    StoreHasRoom,
    TrimAssignment,
)
from forage_controller.shell.store import Store, StoreError
from shell.store_tools import (
    CLIENT,
    WatchedStore,
    assignment_of,
    outcomes_of,
    page_of,
    picture_of,
)

TASK = f"{CLIENT}-1"
OTHER = f"{CLIENT}-2"
LARGE = b"x" * 20_000


LIMIT_S = 30.0


def rows_in(directory: Path, table: str) -> int:
    connection = sqlite3.connect(directory / "state.db")
    count: int = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    connection.close()
    return count


def test_what_is_handed_over_together_is_one_commit(tmp_path: Path) -> None:
    watched = WatchedStore(tmp_path)
    for number in range(1, 201):
        watched.store.execute(
            Save(number=number, operations=(page_of(f"{CLIENT}-{number % 10}", first=number),))
        )
    watched.store.flush()
    assert watched.next(SaveCommitted).number == 200
    watched.close()
    assert watched.events.empty()
    assert rows_in(tmp_path, "journal") == 1


def test_nothing_is_handed_over_before_the_flush(tmp_path: Path) -> None:
    watched = WatchedStore(tmp_path)
    watched.store.execute(Save(number=1, operations=(page_of(TASK),)))
    with pytest.raises(Empty):
        watched.events.get_nowait()
    watched.close()
    assert watched.next(SaveCommitted).number == 1, "close commits what was handed over"


def test_commits_are_answered_in_order(tmp_path: Path) -> None:
    watched = WatchedStore(tmp_path)
    last = 0
    for first in range(50):
        last = watched.hand_over(page_of(TASK, first=first * 4))
    answered: list[int] = []
    while not answered or answered[-1] < last:
        answered.append(watched.next(SaveCommitted).number)
    watched.close()
    assert answered == sorted(set(answered))


def test_what_nobody_waits_for_is_committed_with_what_somebody_does(tmp_path: Path) -> None:
    watched = WatchedStore(tmp_path, gather_s=3_600)
    for first in range(3):
        watched.hand_over(page_of(TASK, first=first * 4))
    last = watched.hand_over(page_of(OTHER), urgent=True)
    assert watched.next(SaveCommitted).number == last
    assert rows_in(tmp_path, "journal") == 1, "in one commit"
    watched.hand_over(page_of(OTHER, first=4))
    watched.close()
    assert watched.next(SaveCommitted).number == last + 1, "the end waits for nobody"


def test_an_empty_save_is_answered(tmp_path: Path) -> None:
    watched = WatchedStore(tmp_path)
    watched.save()
    watched.close()


def test_loads_see_what_waits_for_the_disk_and_do_not_wait_for_it(tmp_path: Path) -> None:
    watched = WatchedStore(tmp_path)
    watched.save(page_of(OTHER, calls=LARGE), outcomes_of(OTHER, 1, ((0, 2),), data=LARGE))
    # Another connection holds the database's one write lock: the saver cannot commit.
    blocker = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    code = SaveCode(hash=b"h" * 32, form="pickle", data=b"code")
    number = watched.hand_over(
        page_of(TASK, calls=b"small"), page_of(TASK, first=4, calls=LARGE), code
    )
    number = watched.hand_over(
        outcomes_of(TASK, 1, ((0, 1),), data=b"small"),
        outcomes_of(TASK, 2, ((1, 2),), data=LARGE),
        outcomes_of(OTHER, 3, ((2, 3),), data=b"later"),
    )
    [page] = watched.load(LoadPage(task=TASK, first=0))
    assert page.calls == b"small"
    [page] = watched.load(LoadPage(task=TASK, first=4))
    assert page.calls == LARGE
    [answer] = watched.load(LoadCode(hash=b"h" * 32))
    assert (answer.form, answer.data) == ("pickle", b"code")
    [answer] = watched.load(LoadOutcomes(request=7, task=TASK, ranges=((0, 4),)))
    assert (answer.request, answer.task) == (7, TASK)
    assert sorted(row.data for row in answer.rows) == [b"small", LARGE]
    [answer] = watched.load(LoadOutcomes(request=8, task=OTHER, ranges=((0, 4),)))
    assert sorted(row.data for row in answer.rows) == [b"later", LARGE]
    assert watched.events.empty(), "nothing was committed meanwhile"
    blocker.execute("ROLLBACK")
    blocker.close()
    watched.wait_for_commit(number)
    watched.close()


def test_loads_answer_none_for_what_is_not_there(tmp_path: Path) -> None:
    watched = WatchedStore(tmp_path)
    watched.save(page_of(TASK))
    [page] = watched.load(LoadPage(task=TASK, first=4))
    assert page.calls is None
    [page] = watched.load(LoadPage(task=OTHER, first=0))
    assert page.calls is None
    [code] = watched.load(LoadCode(hash=b"?" * 32))
    assert code.data is None
    [answer] = watched.load(LoadOutcomes(request=1, task=TASK, ranges=((0, 4),)))
    assert answer.rows == ()
    [answer] = watched.load(LoadOutcomes(request=1, task=TASK, ranges=()))
    assert answer.rows == ()
    watched.close()


def test_an_archived_row_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    saved = SaveOutcomes(
        task=TASK,
        assignment=2**41 + 3,
        device="pi-7",
        low=0,
        high=9,
        tag=b"0123456789abcdef",
        ranges=((0, 3), (5, 9)),
        settled=((1, 3), (6, 7)),
        errors=((2, "error", True), (8, "timeout", False)),
        run_us=1234,
        data=b"\x83\x01\x02\x03",
    )
    watched = WatchedStore(tmp_path)
    watched.save(page_of(TASK, n=9), saved)
    for _ in range(2):  # From memory, then from the tables.
        [answer] = watched.load(LoadOutcomes(request=1, task=TASK, ranges=((6, 7),)))
        [row] = answer.rows
        for name in row.__slots__:
            assert getattr(row, name) == getattr(saved, name)
        [answer] = watched.load(LoadOutcomes(request=1, task=TASK, ranges=((0, 1), (3, 6))))
        assert answer.rows == (), "it holds those calls, but others had settled them"
        watched.close()
        watched = WatchedStore(tmp_path)
    [task] = watched.recovered.tasks
    assert (task.settled, task.failed) == (((1, 3), (6, 7)), 1)
    watched.close()


def test_many_outcomes_come_in_several_answers(tmp_path: Path) -> None:
    watched = WatchedStore(tmp_path)
    block = 300_000
    watched.save(page_of(TASK, n=10))
    for index in range(10):
        data = bytes([index]) * block
        watched.save(outcomes_of(TASK, index + 1, ((index, index + 1),), data=data))
    answers = watched.load(LoadOutcomes(request=1, task=TASK, ranges=((0, 10),)))
    watched.close()
    assert [answer.more for answer in answers] == [True] * (len(answers) - 1) + [False]
    assert len(answers) == 3, "four rows pass one MiB"
    rows = [row for answer in answers for row in answer.rows]
    assert sorted(row.data[0] for row in rows) == list(range(10))


def test_a_quiet_store_folds_its_journal(tmp_path: Path) -> None:
    watched = WatchedStore(tmp_path, fold_idle_s=0.01)
    watched.save(page_of(TASK), assignment_of(TASK, 1))
    # Left alone: whoever saves meanwhile keeps it from being quiet.
    deadline = time.monotonic() + LIMIT_S
    while rows_in(tmp_path, "page") == 0:
        assert time.monotonic() < deadline, "it is not folded"
        time.sleep(0.005)
    assert rows_in(tmp_path, "journal") == 0
    assert rows_in(tmp_path, "assignment") == 1
    watched.close()


def test_a_full_journal_is_folded(tmp_path: Path) -> None:
    watched = WatchedStore(tmp_path, fold_bytes=2_000)
    for first in range(20):
        watched.save(page_of(TASK, first=first * 4, calls=b"c" * 500))
    watched.close()
    assert 0 < rows_in(tmp_path, "page") <= 20
    assert rows_in(tmp_path, "journal") < 5


def test_a_task_that_lived_between_two_folds_leaves_only_its_id(tmp_path: Path) -> None:
    watched = WatchedStore(tmp_path)
    watched.save(page_of(TASK), assignment_of(TASK, 1), page_of(TASK, first=4, calls=LARGE))
    watched.save(outcomes_of(TASK, 1, ((0, 4),)), outcomes_of(TASK, 2, ((4, 8),), data=LARGE))
    watched.save(ClosedAssignment(assignment=1), SaveCollected(task=TASK, ranges=((0, 8),)))
    watched.save(SaveReleased(task=TASK))
    watched.close()
    again = WatchedStore(tmp_path)
    assert again.recovered.released == (TASK,)
    assert again.recovered.tasks == ()
    for table in ("journal", "task", "page", "outcome", "assignment"):
        assert rows_in(tmp_path, table) == 0, table
    again.save(SaveReleased(task=TASK, forget=True))
    again.close()
    last = WatchedStore(tmp_path)
    assert picture_of(last.recovered)["released"] == set()
    last.close()
    assert rows_in(tmp_path, "released") == 0


def test_operations_on_a_task_that_is_over_change_nothing(tmp_path: Path) -> None:
    watched = WatchedStore(tmp_path)
    watched.save(page_of(TASK), SaveReleased(task=TASK))
    watched.save(
        page_of(TASK, calls=LARGE),
        assignment_of(TASK, 1),
        outcomes_of(TASK, 1, ((0, 4),)),
        outcomes_of(TASK, 1, ((0, 4),), data=LARGE),
        SaveCollected(task=TASK, ranges=((0, 4),)),
        outcomes_of(OTHER, 2, ((0, 4),), data=LARGE),
    )
    watched.close()
    again = WatchedStore(tmp_path)
    again.close()
    assert again.recovered.released == (TASK,)
    assert again.recovered.tasks == ()
    assert again.recovered.assignments == ()
    assert rows_in(tmp_path, "outcome") == 0


def test_collected_outcomes_and_calls_leave_the_disk(tmp_path: Path) -> None:
    watched = WatchedStore(tmp_path)
    watched.save(page_of(TASK, calls=LARGE), page_of(TASK, first=4, calls=b"later"))
    watched.save(
        outcomes_of(TASK, 1, ((0, 2),), data=LARGE, errors=((1, "error", True),)),
        outcomes_of(TASK, 2, ((2, 5),), data=b"half"),
    )
    watched.save(SaveCollected(task=TASK, ranges=((0, 4),)))
    watched.close()
    again = WatchedStore(tmp_path)
    [task] = again.recovered.tasks
    assert [page.calls_bytes for page in task.pages] == [0, len(b"later")]
    assert (task.archive_bytes, task.settled, task.failed) == (len(b"half"), ((0, 5),), 1)
    [page] = again.load(LoadPage(task=TASK, first=0))
    assert page.calls is None
    [answer] = again.load(LoadOutcomes(request=1, task=TASK, ranges=((0, 8),)))
    assert [row.data for row in answer.rows] == [b"half"]
    again.close()


def test_a_trimmed_assignment_keeps_its_new_end(tmp_path: Path) -> None:
    watched = WatchedStore(tmp_path)
    watched.save(page_of(TASK), assignment_of(TASK, 1), assignment_of(TASK, 2))
    watched.save(TrimAssignment(assignment=1, high=2))
    watched.close()
    again = WatchedStore(tmp_path)
    assert [one.high for one in again.recovered.assignments] == [2, 4]
    again.save(TrimAssignment(assignment=2, high=3), ClosedAssignment(assignment=1))
    again.close()
    last = WatchedStore(tmp_path)
    last.close()
    assert [(one.assignment, one.high) for one in last.recovered.assignments] == [(2, 3)]


def test_codes_that_no_task_needs_go_at_the_next_start(tmp_path: Path) -> None:
    used, unused = b"u" * 32, b"n" * 32
    watched = WatchedStore(tmp_path)
    watched.save(
        SaveEpoch(epoch=3),
        SaveCode(hash=used, form="pickle", data=b"12345"),
        SaveCode(hash=unused, form="source", data=b"1"),
        page_of(TASK, code=used),
        page_of(OTHER, code=unused),
    )
    watched.save(SaveReleased(task=OTHER))
    watched.close()
    again = WatchedStore(tmp_path)
    again.close()
    assert again.recovered.codes == {used: ("pickle", 5)}
    assert again.recovered.epoch == 3


def test_a_failed_write_is_said_once_in_words(tmp_path: Path) -> None:
    """A file size limit in a process of its own: the disk takes no more."""
    child = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert child.returncode == 0, child.stderr
    said = json.loads(child.stdout)
    assert f"{tmp_path / 'state.db'} cannot be written or read" in said["reason"]
    assert said["events_after"] == 0
    # What had been acknowledged before is there; a page of the failed commit is not half there.
    again = WatchedStore(tmp_path)
    again.close()
    found = {page.first: page.calls_bytes for task in again.recovered.tasks for page in task.pages}
    assert found.keys() >= set(range(0, 4 * said["acknowledged"], 4))
    assert set(found.values()) == {50_000}


FULL_DISK = f"""
import json, resource, sys
from pathlib import Path
from shell.store_tools import WatchedStore, page_of
from forage_controller.core.operations import SaveCommitted, SaveFailed

watched = WatchedStore(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
acknowledged = 0
while True:
    watched.hand_over(page_of("{TASK}", first=4 * acknowledged, calls=b"x" * 50_000))
    event = watched.events.get(timeout=30)
    if isinstance(event, SaveFailed):
        break
    acknowledged += 1
watched.hand_over(page_of("{TASK}", first=0))
watched.close()
print(json.dumps(dict(reason=event.reason, acknowledged=acknowledged,
                      events_after=watched.events.qsize())))
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """A file system of 3 MiB; needs the right to mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("this machine does not let us mount a small file system")
    return disk


def test_a_full_disk_is_said_in_words_and_goes_on_when_there_is_room(
    small_disk: Path, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(lambda: subprocess.run(["umount", "-l", str(small_disk)], check=False))
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1_000_000))
    watched = WatchedStore(small_disk)
    acknowledged = 0
    while True:
        watched.hand_over(page_of(TASK, first=4 * acknowledged, calls=b"x" * 50_000))
        event = watched.events.get(timeout=30)
        if not isinstance(event, SaveCommitted):
            break
        acknowledged += 1
    assert isinstance(event, StoreFull)
    assert f"The disk of {small_disk / 'state.db'} is full" in event.reason
    assert acknowledged > 3
    ballast.unlink()
    watched.next(StoreHasRoom)
    watched.wait_for_commit(watched.number)
    acknowledged += 1
    watched.close()
    connection = sqlite3.connect(small_disk / "state.db")
    stored = connection.execute("SELECT first FROM page").fetchall()
    connection.close()
    assert {first for (first,) in stored} >= set(range(0, 4 * acknowledged, 4))


def test_a_store_that_waits_for_room_can_be_closed_and_one_without_any_says_that_it_may_pass(
    small_disk: Path, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(lambda: subprocess.run(["umount", "-l", str(small_disk)], check=False))
    watched = WatchedStore(small_disk)
    watched.hand_over(page_of(TASK, first=0, calls=b"x" * 4_000_000))
    watched.next(StoreFull)
    watched.close()
    watched.next(SaveFailed)
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(4_096))
    with pytest.raises(StoreError, match="is full") as raised:
        WatchedStore(small_disk / "another")
    assert raised.value.may_pass


def test_store_threads_end_with_close(tmp_path: Path) -> None:
    before = threading.active_count()
    store = Store(tmp_path, lambda event: None)
    store.start()
    assert threading.active_count() == before + 2
    store.close()
    assert threading.active_count() == before
