"""What the controller's store alone can do: JSON lines on stdout.

    python bench/store.py [--directory DIR] [--seconds 3] [--busy]

`merged`: pages of 1,000 calls at full speed, each with its assignment, twenty outcome messages and
its end. `single`: tasks of one call, each a page, an assignment, an outcome, a close, a collected
and a release, with 200 ms of them alive at a time. `alone`: one save after another, each waiting
for its commit. `--busy` keeps another thread of the process at full load, as the controller's loop
would at its limit.
"""

import argparse
import json
import os
import queue
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forage_controller.core.operations import (
    ClosedAssignment,
    Operation,
    Save,
    SaveAssignment,
    SaveCollected,
    SaveCommitted,
    SaveOutcomes,
    SavePage,
    SaveReleased,
)
from forage_controller.shell.store import Store

CLIENT = "0123456789abc"
DIGITS = "0123456789abcdefghijklmnopqrstuv"


def base_32(number: int) -> str:
    text = DIGITS[number & 31]
    while number := number >> 5:
        text = DIGITS[number & 31] + text
    return text


def page_of(task: str, n: int, call_bytes: int) -> SavePage:
    return SavePage(
        user="u",
        client=CLIENT,
        task=task,
        key=b"k" * 16,
        label="fn",
        first=0,
        n=n,
        last=True,
        header=b"h" * 200,
        calls=b"c" * (n * call_bytes),
    )


def assignment_of(task: str, number: int, low: int, high: int) -> SaveAssignment:
    return SaveAssignment(
        assignment=number,
        task=task,
        first=0,
        low=low,
        high=high,
        device="pi-1",
        session="0123456789abcdef-1",
        tries=0,
        deaths=0,
        losses=0,
    )


def outcomes_of(task: str, number: int, low: int, high: int, bytes_each: int) -> SaveOutcomes:
    return SaveOutcomes(
        task=task,
        assignment=number,
        device="pi-1",
        low=low,
        high=high,
        tag=b"t" * 16,
        ranges=((low, high),),
        settled=((low, high),),
        errors=(),
        run_us=100,
        data=b"o" * ((high - low) * bytes_each),
    )


class Driver:
    """Hands saves over and measures when their commits are answered."""

    def __init__(self, directory: Path) -> None:
        self.events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.store = Store(directory, self.events.put)
        self.store.start()
        self.number = 0
        self.sent_at: deque[tuple[int, float]] = deque()
        self.latencies_ms: list[float] = []
        self.commits = 0

    def save(self, *operations: Operation) -> None:
        self.number += 1
        self.sent_at.append((self.number, time.monotonic()))
        self.store.execute(Save(number=self.number, operations=operations))

    def flush(self) -> None:
        self.store.flush()
        while not self.events.empty():
            self.take()

    def take(self) -> None:
        event = self.events.get()
        if not isinstance(event, SaveCommitted):
            sys.exit(f"unexpected: {event}")
        now = time.monotonic()
        self.commits += 1
        while self.sent_at and self.sent_at[0][0] <= event.number:
            self.latencies_ms.append((now - self.sent_at.popleft()[1]) * 1000)

    def drain(self) -> None:
        self.store.flush()
        while self.sent_at:
            self.take()


def merged(driver: Driver, until: float) -> int:
    calls = 0
    task_number = 0
    while time.monotonic() < until:
        task = f"{CLIENT}-{base_32(task_number)}"
        task_number += 1
        driver.save(page_of(task, 1000, 20))
        driver.save(assignment_of(task, task_number, 0, 1000))
        for low in range(0, 1000, 50):
            driver.save(outcomes_of(task, task_number, low, low + 50, 8))
        driver.save(ClosedAssignment(assignment=task_number))
        driver.save(SaveCollected(task=task, ranges=((0, 1000),)), SaveReleased(task=task))
        calls += 1000
        driver.flush()
        while len(driver.sent_at) > 20_000:
            driver.take()
    return calls


def single(driver: Driver, until: float) -> int:
    alive: deque[tuple[str, float]] = deque()
    calls = 0
    while time.monotonic() < until:
        for _ in range(50):
            task = f"{CLIENT}-{base_32(calls)}"
            calls += 1
            driver.save(page_of(task, 1, 20))
            driver.save(assignment_of(task, calls, 0, 1))
            driver.save(outcomes_of(task, calls, 0, 1, 8))
            driver.save(ClosedAssignment(assignment=calls))
            alive.append((task, time.monotonic() + 0.2))
        while alive and alive[0][1] < time.monotonic():
            task, _ = alive.popleft()
            driver.save(SaveCollected(task=task, ranges=((0, 1),)), SaveReleased(task=task))
        driver.flush()
        while len(driver.sent_at) > 20_000:
            driver.take()
    return calls


def alone(driver: Driver, until: float) -> int:
    calls = 0
    while time.monotonic() < until:
        driver.save(page_of(f"{CLIENT}-{base_32(calls)}", 1, 20))
        driver.drain()
        calls += 1
    return calls


def percentile(values: list[float], share: float) -> float:
    return round(sorted(values)[min(len(values) - 1, int(len(values) * share))], 2)


def measure(
    name: str, work: Callable[[Driver, float], int], directory: Path, seconds: float, busy: bool
) -> None:
    stop = threading.Event()

    def burn() -> None:
        while not stop.is_set():
            sum(range(1000))

    burner = threading.Thread(target=burn, daemon=True)
    with tempfile.TemporaryDirectory(dir=directory) as place:
        driver = Driver(Path(place))
        if busy:
            burner.start()
        started = time.monotonic()
        processor = time.process_time()
        calls = work(driver, started + seconds)
        driver.drain()
        elapsed = time.monotonic() - started
        processor = time.process_time() - processor
        stop.set()
        if busy:
            burner.join()
        driver.store.close()
        began = time.monotonic()
        again = Store(Path(place), lambda event: None)
        again.recover()
        recover_s = time.monotonic() - began
        again.close()
        size = sum(file.stat().st_size for file in Path(place).iterdir())
    result = {
        "bench": "store",
        "case": name,
        "busy": busy,
        "calls_per_s": round(calls / elapsed),
        "saves_per_s": round(driver.number / elapsed),
        "commits_per_s": round(driver.commits / elapsed),
        "commit_ms_p50": percentile(driver.latencies_ms, 0.5),
        "commit_ms_p99": percentile(driver.latencies_ms, 0.99),
        "processor_us_per_save": round(processor / driver.number * 1e6, 2),
        "recover_s": round(recover_s, 3),
        "files_mib": round(size / 2**20, 1),
    }
    print(json.dumps(result), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--busy", action="store_true")
    arguments = parser.parse_args()
    os.makedirs(arguments.directory, exist_ok=True)
    for name, work in (("merged", merged), ("single", single), ("alone", alone)):
        measure(name, work, arguments.directory, arguments.seconds, arguments.busy)
    return 0


if __name__ == "__main__":
    sys.exit(main())
