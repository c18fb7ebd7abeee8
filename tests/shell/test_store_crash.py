"""SIGKILL in the middle of commits: everything that was acknowledged is there afterwards."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shell.store_tools import CLIENT, WatchedStore

# Saves as fast as it can, one task of 8 pages after another, every second task released; says each
# commit on stdout. Folds every few commits. Large pages go past the journal, small ones through it.
CHILD = f"""
import os, sys
from pathlib import Path
from shell.store_tools import WatchedStore, page_of
from forage_controller.core.operations import SaveCommitted, SaveReleased

watched = WatchedStore(Path(sys.argv[1]), fold_bytes=20_000)
task_number = int(sys.argv[2])
answered = 0
while True:
    task = f"{CLIENT}-{{task_number}}"
    for part in range(8):
        size = 10_000 if part == 3 else 100
        watched.hand_over(page_of(task, first=4 * part, calls=bytes([part]) * size))
    if task_number % 2:
        watched.hand_over(SaveReleased(task=task))
    task_number += 1
    while watched.number - answered > 30:
        answered = watched.next(SaveCommitted).number
        os.write(1, b"%d\\n" % answered)
"""


def expected_after(first_task: int, committed: int) -> tuple[dict[str, int], set[str]]:
    """Pages of each whole or begun task, and the released ones, after so many saves."""
    pages: dict[str, int] = {}
    released: set[str] = set()
    task_number = first_task
    while committed > 0:
        task = f"{CLIENT}-{task_number}"
        saves = 9 if task_number % 2 else 8
        if task_number % 2 and committed >= 9:
            released.add(task)
        else:
            pages[task] = min(committed, 8)
        committed -= saves
        task_number += 1
    return pages, released


@pytest.mark.parametrize("answers_before_kill", [1, 40])
def test_everything_acknowledged_survives_sigkill(tmp_path: Path, answers_before_kill: int) -> None:
    kept_pages: dict[str, int] = {}
    kept_released: set[str] = set()
    for first_task in (1, 300_001, 600_001):  # Three lives on one directory.
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path), str(first_task)],
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert child.stdout is not None
        said: list[bytes] = []
        try:
            while len(said) < answers_before_kill:
                said.append(child.stdout.readline())
                assert said[-1], "the child ended by itself"
        finally:
            child.kill()
        # All that it had said by then, up to the last whole line.
        said += child.stdout.read().rpartition(b"\n")[0].split(b"\n")
        child.wait()
        child.stdout.close()
        last = max(int(line) for line in said if line)
        pages, released = expected_after(first_task, last)
        kept_pages |= pages
        kept_released |= released
        again = WatchedStore(tmp_path)
        again.close()
        found_released = set(again.recovered.released)
        found = {task.task: task for task in again.recovered.tasks}
        assert found_released >= kept_released
        for task, count in kept_pages.items():
            if task in found_released:
                continue  # Its release was committed, but not said any more.
            assert [page.first for page in found[task].pages][:count] == [
                4 * part for part in range(count)
            ]
            assert all(
                page.calls_bytes == (10_000 if page.first == 12 else 100)
                for page in found[task].pages
            )
