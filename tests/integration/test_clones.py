"""A call that hangs on one device is answered by another, and the attempt that hangs is killed."""

import os
import time
from pathlib import Path

from forage import LocalCluster

CALLS = 20
HANGS = 13


def work(folder: str, index: int) -> tuple[int, int]:
    """Takes 20 ms, but the first attempt of one call hangs; says who did it."""
    if index == HANGS:
        try:
            attempt = os.open(os.path.join(folder, "first"), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return index, os.getpid()
        os.write(attempt, str(os.getpid()).encode())
        os.close(attempt)
        time.sleep(600)
    time.sleep(0.02)
    return index, os.getpid()


def test_a_call_that_hangs_is_answered_by_a_second_attempt(tmp_path: Path) -> None:
    with LocalCluster(devices=2) as cluster, cluster.client() as client:
        batch = client.submit_all(work, [str(tmp_path)] * CALLS, range(CALLS))
        results = batch.results(timeout=60)
        assert [index for index, _pid in results] == list(range(CALLS))
        hung = int((tmp_path / "first").read_text())
        assert hung != results[HANGS][1]
        deadline_s = time.monotonic() + 30
        while os.path.exists(f"/proc/{hung}"):
            assert time.monotonic() < deadline_s, "the attempt that hangs was not killed"
            time.sleep(0.01)
