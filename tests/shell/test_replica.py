"""A standby's store on a real disk: a snapshot of a store that goes on, in the place of another."""

import os
import subprocess
import sys
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from forage_controller.core.feed import (
    CloseSnapshot,
    InstallSnapshot,
    OpenSnapshot,
    ReadSnapshot,
    SnapshotInstalled,
    SnapshotOpened,
    SnapshotRead,
    WriteSnapshot,
)
from forage_controller.core.operations import SaveCommitted, SaveEpoch, SavePage
from forage_controller.shell.database import StateDirectory, began
from forage_controller.shell.holder import end_holder
from forage_controller.shell.replica import Replica
from shell.store_tools import WAIT_S, WatchedStore

START = "a" * 16
PIECE = 40_000


def page(number: int, size: int = 100) -> SavePage:
    return SavePage(
        user="bob",
        client="0" * 13,
        task=f"{'0' * 13}-{number:d}",
        key=b"k" * 16,
        label="f",
        first=0,
        n=1,
        last=True,
        header=b"",
        calls=os.urandom(size),
    )


def until(watched: WatchedStore, kind: type[Any]) -> Any:
    while True:
        event = watched.events.get(timeout=WAIT_S)
        if isinstance(event, kind):
            return event
        assert isinstance(event, SaveCommitted)


def copy_of(watched: WatchedStore) -> tuple[int, bytes]:
    """A snapshot, taken while the store goes on: its position, and all of its pieces."""
    watched.store.execute(OpenSnapshot(request=1))
    watched.hand_over(page(8), urgent=True)
    opened: SnapshotOpened = until(watched, SnapshotOpened)
    data = b""
    while len(data) < opened.size:
        length = min(PIECE, opened.size - len(data))
        watched.store.execute(ReadSnapshot(request=1, offset=len(data), length=length))
        watched.hand_over(page(9))
        piece: SnapshotRead = until(watched, SnapshotRead)
        assert piece.offset == len(data)
        data += piece.data
    watched.store.execute(CloseSnapshot(request=1))
    return opened.position, data


def install(replica: Replica, data: bytes) -> None:
    for offset in range(0, len(data), PIECE):
        replica.execute(WriteSnapshot(offset=offset, data=data[offset : offset + PIECE]))
    replica.execute(InstallSnapshot())


def test_a_snapshot_holds_what_was_committed_at_its_position(tmp_path: Path) -> None:
    active = WatchedStore(tmp_path / "active")
    active.save(SaveEpoch(epoch=4), page(1), page(2, 300_000))
    position, data = copy_of(active)
    active.close()
    assert not (tmp_path / "active" / "copy.db").exists()
    events: SimpleQueue[Any] = SimpleQueue()
    replica = Replica(tmp_path / "standby", START, events.put)
    replica.start()
    install(replica, data)
    assert events.get(timeout=WAIT_S) == SnapshotInstalled(epoch=4)
    assert replica.is_copy
    replica.close(rules=True)
    found = WatchedStore(tmp_path / "standby")
    tasks = {task.task[-1] for task in found.recovered.tasks}
    assert tasks == ({"1", "2"} if position == 1 else {"1", "2", "8"})
    assert found.recovered.epoch == 4
    found.close()


def test_a_store_that_ruled_here_is_kept_when_a_copy_takes_its_place(tmp_path: Path) -> None:
    active = WatchedStore(tmp_path / "active")
    active.save(SaveEpoch(epoch=7), page(1))
    _position, data = copy_of(active)
    active.close()
    own = WatchedStore(tmp_path / "own")
    own.save(SaveEpoch(epoch=5), page(3))
    own.close()
    events: SimpleQueue[Any] = SimpleQueue()
    replica = Replica(tmp_path / "own", START, events.put)
    assert not replica.is_copy
    replica.start()
    install(replica, data)
    install(replica, data)
    replica.close(rules=False)
    kept = tmp_path / "kept"
    kept.mkdir()
    os.replace(tmp_path / "own" / "replaced.db", kept / "state.db")
    before = WatchedStore(kept)
    assert before.recovered.epoch == 5
    assert [task.task[-1] for task in before.recovered.tasks] == ["3"]
    before.close()


def test_a_holder_is_ended_only_where_it_is_the_one_that_is_meant(tmp_path: Path) -> None:
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from forage_controller.shell.database import StateDirectory\n"
        "held = StateDirectory(Path(sys.argv[1]), sys.argv[2])\n"
        "print('held', flush=True)\n"
        "time.sleep(600)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path), START], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert "another process" in end_holder(tmp_path, "b" * 16)
        assert holder.poll() is None
        assert f"pid {holder.pid} was killed" in end_holder(tmp_path, START)
        assert holder.wait(WAIT_S) == -9
        # The pid in the file is nobody's, or another's, by now.
        lock = tmp_path / "lock"
        lock.write_text(f"{os.getpid()} {began(os.getpid()) + 1} {START}\n")
        assert "another program's" in end_holder(tmp_path, START)
        StateDirectory(tmp_path).close()
    finally:
        holder.kill()
        holder.wait()
