"""What the controller's store alone takes, at given rates: JSON lines on stdout.

    python bench/store.py [--directory DIR] [--seconds 3] [--busy]

`merged`: tasks of 1,000 calls, each a page, an assignment, twenty outcome messages, a close, a
collected and a release. `single`: tasks of one call, each a page, an assignment, an outcome, a
close, and 200 ms later a collected and a release. `alone`: one save after another, each waiting
for its commit. Latencies are from the handing over to the answer; the processor's share is that of
the whole process, which also makes the operations here. `--busy` keeps another thread at full load,
as the controller's loop would at its limit.
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
from forage_controller.main import SWITCH_INTERVAL_S
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
        self.alive: deque[tuple[str, float]] = deque()

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


TICK_S = 0.002


def merged(driver: Driver, number: int) -> int:
    task = f"{CLIENT}-{base_32(number)}"
    driver.save(page_of(task, 1000, 20), assignment_of(task, number + 1, 0, 1000))
    for low in range(0, 1000, 50):
        driver.save(outcomes_of(task, number + 1, low, low + 50, 8))
    driver.save(ClosedAssignment(assignment=number + 1))
    driver.save(SaveCollected(task=task, ranges=((0, 1000),)), SaveReleased(task=task))
    return 1000


def single(driver: Driver, number: int) -> int:
    task = f"{CLIENT}-{base_32(number)}"
    driver.save(page_of(task, 1, 20), assignment_of(task, number + 1, 0, 1))
    driver.save(outcomes_of(task, number + 1, 0, 1, 8), ClosedAssignment(assignment=number + 1))
    driver.alive.append((task, time.monotonic() + 0.2))
    while driver.alive and driver.alive[0][1] < time.monotonic():
        old, _ = driver.alive.popleft()
        driver.save(SaveCollected(task=old, ranges=((0, 1),)), SaveReleased(task=old))
    return 1


def alone(driver: Driver, number: int) -> int:
    driver.save(page_of(f"{CLIENT}-{base_32(number)}", 1, 20))
    driver.drain()
    return 1


def drive(
    driver: Driver, work: Callable[[Driver, int], int], tasks_per_s: float, seconds: float
) -> int:
    """Offer tasks at a rate (0: one after another), in ticks as a loop's turns would."""
    calls = 0
    number = 0
    started = time.monotonic()
    while (elapsed := time.monotonic() - started) < seconds:
        due = int(elapsed * tasks_per_s) if tasks_per_s else number + 1
        while number < due and len(driver.sent_at) < 50_000:
            calls += work(driver, number)
            number += 1
        driver.flush()
        if tasks_per_s:
            time.sleep(TICK_S)
    return calls


def percentile(values: list[float], share: float) -> float:
    return round(sorted(values)[min(len(values) - 1, int(len(values) * share))], 2)


def measure(
    name: str,
    work: Callable[[Driver, int], int],
    tasks_per_s: float,
    directory: Path,
    seconds: float,
    busy: bool,
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
        calls = drive(driver, work, tasks_per_s, seconds)
        driver.drain()
        elapsed = time.monotonic() - started
        processor = time.process_time() - processor
        stop.set()
        if busy:
            burner.join()
        driver.store.close()
        began = time.monotonic()
        again = Store(Path(place), driver.events.put)
        again.recover()
        recover_s = time.monotonic() - began
        again.close()
        size = sum(file.stat().st_size for file in Path(place).iterdir())
    result = {
        "bench": "store",
        "case": name,
        "busy": busy,
        "offered_tasks_per_s": tasks_per_s,
        "calls_per_s": round(calls / elapsed),
        "saves_per_s": round(driver.number / elapsed),
        "commits_per_s": round(driver.commits / elapsed),
        "commit_ms_p50": percentile(driver.latencies_ms, 0.5),
        "commit_ms_p99": percentile(driver.latencies_ms, 0.99),
        "processor_percent": round(processor / elapsed * 100),
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
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    for name, work, rate in (
        ("alone", alone, 0.0),
        ("merged", merged, 100.0),
        ("merged", merged, 300.0),
        ("single", single, 1_000.0),
        ("single", single, 5_000.0),
        ("single", single, 10_000.0),
        ("single", single, 20_000.0),
    ):
        measure(name, work, rate, arguments.directory, arguments.seconds, arguments.busy)
    return 0


if __name__ == "__main__":
    sys.exit(main())
