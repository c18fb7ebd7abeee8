"""An exclusive call never runs twice at a time, also when its device hangs and cannot be asked."""

import fcntl
import os
import signal
import time
from pathlib import Path

from forage import LocalCluster

LEASE_S = 1.0


def hold(folder: str) -> str:
    """Hold a lock until told to end; says who it was, or that somebody else had it."""
    with open(os.path.join(folder, "lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return "another attempt was running"
        with open(os.path.join(folder, "begun"), "a") as begun:
            begun.write(f"{os.getpid()}\n")
        while not os.path.exists(os.path.join(folder, "end")):
            time.sleep(0.01)
    return str(os.getpid())


def begun(folder: Path) -> list[int]:
    """The processes that have begun the call, in order."""
    path = folder / "begun"
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for_attempts(folder: Path, count: int) -> None:
    deadline_s = time.monotonic() + 30
    while len(begun(folder)) < count:
        assert time.monotonic() < deadline_s, f"{begun(folder)}: not {count} attempts in 30 s"
        time.sleep(0.01)


def test_the_watchdog_ends_an_exclusive_call_whose_agent_hangs(tmp_path: Path) -> None:
    with LocalCluster(devices=2, detect_s=0.5) as cluster, cluster.client() as client:
        future = client.options(exclusive=True, lease_s=LEASE_S).submit(hold, str(tmp_path))
        wait_for_attempts(tmp_path, 1)
        [holder] = [row.device for row in client.history(future.id) if row.state == "open"]
        # The agent alone: its zygote and worker could go on for ever.
        hung = cluster.device(holder).pid
        os.kill(hung, signal.SIGSTOP)
        try:
            wait_for_attempts(tmp_path, 2)
            first, second = begun(tmp_path)
            assert not os.path.exists(f"/proc/{first}")
            (tmp_path / "end").touch()
            assert future.result(30) == str(second)
        finally:
            os.kill(hung, signal.SIGCONT)
        assert begun(tmp_path) == [first, second]


def test_an_exclusive_call_longer_than_its_lease_runs_to_its_end(tmp_path: Path) -> None:
    with LocalCluster(devices=2, detect_s=0.5) as cluster, cluster.client() as client:
        future = client.options(exclusive=True, lease_s=LEASE_S).submit(hold, str(tmp_path))
        wait_for_attempts(tmp_path, 1)
        time.sleep(3 * LEASE_S)  # What is tested is that time passes and nothing else does.
        (tmp_path / "end").touch()
        assert future.result(30) == str(begun(tmp_path)[0])
        assert len(begun(tmp_path)) == 1
        assert future.attempts == 1
