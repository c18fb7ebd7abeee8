"""The work of a round: what is submitted, and what must have become of it.

Each kind makes futures and judges them when all is over. Every value names its round and its call,
so that an outcome that belongs elsewhere is seen.
"""

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forage import Client, DataLost, DeviceLost, Future

__all__ = ["KINDS", "Problem", "Work", "append", "await_ends", "bulk", "linger"]

LINGER_S = 600.0


@dataclass(frozen=True)
class Problem:
    """A promise that was not kept."""

    kind: str
    """lost, duplicated, stale, ran twice, left running, two rule, kept or trouble."""
    text: str
    is_data_loss: bool = False
    """Whether it was said in words that forage has lost it."""


# -- what the devices run; module-level functions travel whole ------------------------------------


def bulk(token: str, index: int, spin_us: int) -> str:
    end_s = time.perf_counter() + spin_us / 1e6
    while time.perf_counter() < end_s:
        pass
    return f"{token} {index}"


def echo(token: str, index: int, data: bytes) -> tuple[str, bytes]:
    return f"{token} {index}", data[::-1]


def sleep_long(token: str, index: int, seconds: float) -> str:
    time.sleep(seconds)
    return f"{token} {index}"


def append(path: str, line: str) -> None:
    """One line, whole or not at all, also beside other processes."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(handle, f"{line}\n".encode())
    finally:
        os.close(handle)


def run_once(token: str, index: int, path: str, seconds: float) -> str:
    run = f"{os.getpid()}-{time.monotonic_ns()}"
    append(path, f"{index} {run}")
    time.sleep(seconds)
    return f"{token} {index} {run}"


def fail_at_first(token: str, index: int, path: str) -> str:
    append(path, f"{index}")
    with open(path) as lines:
        runs = [line.strip() for line in lines].count(f"{index}")
    if runs < 2:
        raise ValueError("not yet")
    return f"{token} {index}"


def fail_always(token: str, index: int) -> None:
    raise KeyError(f"{token} {index}")


def linger(path: str, index: int, seconds: float) -> None:
    with open("/proc/self/stat") as stat:
        started = stat.read().rpartition(") ")[2].split()[19]
    append(path, f"{os.getpid()} {started}")
    time.sleep(seconds)


# -- what the round keeps of it --------------------------------------------------------------------


class Work:
    """Some calls, with what is known of them."""

    kind = ""

    def __init__(self, token: str, client: Client) -> None:
        self.token = token
        self.client = client
        self.futures: list[Future[Any]] = []
        self._told: Counter[int] = Counter()
        self._lock = threading.Lock()

    def take(self, futures: Iterator[Future[Any]] | list[Future[Any]]) -> None:
        """Watch these calls; their index is their place."""
        for future in futures:
            index = len(self.futures)
            self.futures.append(future)
            future.add_done_callback(lambda _, index=index: self._tell(index))

    def _tell(self, index: int) -> None:
        with self._lock:
            self._told[index] += 1

    def go_on(self) -> None:
        """Between two blows."""

    def finish(self) -> None:
        """After the last blow, before all is healed."""

    def problems(self, deadline_s: float) -> Iterator[Problem]:
        """What is wrong with it, once all is healed; waits until then at most."""
        _, still_open = wait(self.futures, max(0.0, deadline_s - time.monotonic()))
        for future in list(still_open)[:3]:
            yield Problem("lost", f"{self.kind} {future.id} has no outcome: {self.why(future)}")
        yield from self.judgements()

    def judgements(self) -> Iterator[Problem]:
        """What is wrong with the calls that have ended."""
        for index, future in enumerate(self.futures):
            problem = self.judge(index, future) if future.done() else None
            if problem is not None:
                yield problem

    def told_problems(self) -> Iterator[Problem]:
        """Once all callbacks have run: each once."""
        with self._lock:
            told = dict(self._told)
        for index, future in enumerate(self.futures):
            if future.done() and told.get(index, 0) != 1:
                times = told.get(index, 0)
                kind = "duplicated" if times else "lost"
                yield Problem(kind, f"{self.kind} {future.id}: its callback ran {times} times")

    def judge(self, index: int, future: Future[Any]) -> Problem | None:
        """What is wrong with a call that has ended."""
        error = future.exception()
        if error is not None:
            return self.failure(future, error)
        return self.compare(index, future, self.expected(index))

    def failure(self, future: Future[Any], error: BaseException) -> Problem:
        """It ended with an error that is not its own."""
        text = f"{self.kind} {future.id} failed: {error!r}"
        return Problem("lost", text, is_data_loss=isinstance(error, DataLost))

    def compare(self, index: int, future: Future[Any], expected: Any) -> Problem | None:
        """Whether it is this call's own outcome."""
        value = future.result()
        if value != expected:
            text = f"{self.kind} {future.id}: {str(value)[:80]!r}, not {str(expected)[:80]!r}"
            return Problem("stale", text)
        return None

    def expected(self, index: int) -> Any:
        """The value of a call."""
        return f"{self.token} {index}"

    def why(self, future: Future[Any]) -> str:
        """Where a call is and why, as far as anybody knows."""
        try:
            return str(self.client.explain(future.id))
        except Exception as error:
            return f"(and nobody can say why: {error!r})"


class Bulk(Work):
    kind = "bulk"

    def submit(self, source: random.Random, folder: Path) -> None:
        count = source.choice([30, 200, 800])
        spins = [source.choice([10, 200, 2_000]) for _ in range(count)]
        self.take(list(self.client.submit_all(bulk, [self.token] * count, range(count), spins)))


class Singles(Work):
    kind = "single"

    def submit(self, source: random.Random, folder: Path) -> None:
        sizes = [source.choice([0, 10, 3_000, 60_000]) for _ in range(source.choice([1, 20]))]
        if source.random() < 0.2:
            sizes.append(400_000)
        self.rows = [source.randbytes(size) for size in sizes]
        for index, row in enumerate(self.rows):
            self.take([self.client.submit(echo, self.token, index, row)])

    def expected(self, index: int) -> Any:
        return f"{self.token} {index}", self.rows[index][::-1]


class Long(Work):
    kind = "long"

    def submit(self, source: random.Random, folder: Path) -> None:
        for index in range(4):
            seconds = source.uniform(0.2, 0.8)
            self.take([self.client.submit(sleep_long, self.token, index, seconds)])


class AtMostOnce(Work):
    """The value of the only run, or DeviceLost."""

    kind = "at_most_once"

    def submit(self, source: random.Random, folder: Path) -> None:
        self.path = folder / f"{self.token}.once"
        count = source.choice([6, 40])
        seconds = [source.choice([0.0, 0.01, 0.1]) for _ in range(count)]
        rows = [[self.token] * count, range(count), [str(self.path)] * count, seconds]
        view = self.client.options(at_most_once=True)
        self.take(list(view.submit_all(run_once, *rows)))

    def runs(self, index: int) -> list[str]:
        """Every run of a call, oldest first."""
        if not self.path.exists():
            return []
        lines = [line.split() for line in self.path.read_text().splitlines()]
        return [run for number, run in lines if number == str(index)]

    def judge(self, index: int, future: Future[Any]) -> Problem | None:
        runs = self.runs(index)
        if len(runs) > 1:
            return Problem("ran twice", f"{self.kind} {future.id} ran {len(runs)} times")
        error = future.exception()
        if isinstance(error, DeviceLost):
            return None
        if error is not None:
            return self.failure(future, error)
        if not runs:
            return Problem("stale", f"{self.kind} {future.id} has a value and never ran")
        return self.compare(index, future, f"{self.token} {index} {runs[0]}")


class Retried(Work):
    kind = "retried"

    def submit(self, source: random.Random, folder: Path) -> None:
        path = str(folder / f"{self.token}.retried")
        view = self.client.options(retries=3)
        count = source.choice([2, 20])
        self.take(
            list(view.submit_all(fail_at_first, [self.token] * count, range(count), [path] * count))
        )


class Failing(Work):
    kind = "failing"

    def submit(self, source: random.Random, folder: Path) -> None:
        self.take(list(self.client.submit_all(fail_always, [self.token] * 10, range(10))))

    def judge(self, index: int, future: Future[Any]) -> Problem | None:
        error = future.exception()
        if isinstance(error, KeyError) and error.args == (self.expected(index),):
            return None
        if isinstance(error, DataLost):
            return self.failure(future, error)
        return Problem("stale", f"{self.kind} {future.id} ended with {error!r}")


class Cancelled(Work):
    """Calls that would last long, and are cancelled by force between two blows."""

    kind = "cancelled"

    def submit(self, source: random.Random, folder: Path) -> None:
        self.path = folder / f"{self.token}.pids"
        self._passes = source.choice([0, 1, 2])
        rows = [[str(self.path)] * 4, range(4), [LINGER_S] * 4]
        self.batch = self.client.submit_all(linger, *rows)
        self.take(list(self.batch))
        self.go_on()

    def go_on(self) -> None:
        if self._passes == 0:
            self.batch.cancel(force=True)
        self._passes -= 1

    def finish(self) -> None:
        self.batch.cancel(force=True)

    def problems(self, deadline_s: float) -> Iterator[Problem]:
        yield from super().problems(deadline_s)
        left = await_ends(self.path, deadline_s)
        if left:
            yield Problem("left running", f"{self.batch.id}: {left} run on after their cancel")

    def judge(self, index: int, future: Future[Any]) -> Problem | None:
        if future.cancelled():
            return None
        if future.done() and isinstance(error := future.exception(), DataLost):
            return self.failure(future, error)
        return Problem("stale", f"{self.kind} {future.id} is {future.state} after its cancel")


def await_ends(path: Path, deadline_s: float) -> list[str]:
    """The processes that `linger` noted there and that live when the time is up, or none before.

    They are their device's to kill, once it and the controller have met again.
    """
    while True:
        lines = path.read_text().splitlines() if path.exists() else []
        runs = [line.split() for line in lines]
        left = [pid for pid, started in runs if started_at(pid) == started]
        if not left or time.monotonic() > deadline_s:
            return left
        time.sleep(0.05)


def started_at(pid: str) -> str:
    """When a process was started, in the kernel's ticks; empty where there is none."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return ""
    return "" if state == "Z" else fields[18]


KINDS: tuple[type[Any], ...] = (*(Bulk, Singles, Long, AtMostOnce, Retried, Failing, Cancelled),)
