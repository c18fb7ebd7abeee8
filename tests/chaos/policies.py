"""Work whose calls have a policy that is seen in how they run, not only in what they return.

Each call writes down what it does, and where; that is held against what was promised.
"""

import os
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import forage
from chaos import work
from chaos.work import LINGER_S, Problem, Work, append, await_ends, linger
from forage import Client, Future

__all__ = ["KINDS", "Checkpointed", "Exclusive", "Replicated", "Step", "draw_work", "overlap"]

MOMENT_NS = 1_000_000_000
"""What a machine that wakes up is given until its watchdog has ended what must not run any more."""
SAMPLE_S = 0.2


# -- what the devices run; module-level functions travel whole ------------------------------------


def now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def device_name() -> str:
    """Of the agent that this process descends from; `-` where that is dead."""
    pid = os.getpid()
    while pid > 1:
        with open(f"/proc/{pid}/cmdline") as file:
            words = file.read().split("\0")
        if "--name" in words:
            return words[words.index("--name") + 1]
        with open(f"/proc/{pid}/stat") as file:
            pid = int(file.read().rpartition(") ")[2].split()[1])
    return "-"


def run_alone(token: str, index: int, path: str, seconds: float) -> str:
    run = f"{os.getpid()}-{time.monotonic_ns()}"
    device = device_name()
    end_s = time.monotonic() + seconds
    while True:
        append(path, f"{index} {run} {device} {now_ns()}")
        if time.monotonic() >= end_s:
            return f"{token} {index} {run}"
        time.sleep(0.01)


def count_on(token: str, index: int, path: str, steps: int, every: int, pause_s: float) -> str:
    """All steps, of which every so manyth leaves a checkpoint: how many of those there are, too."""
    owner = f"{token} {index}"
    run = f"{os.getpid()}-{time.monotonic_ns()}"
    at, total, known = forage.restore(default=(0, 0, owner))
    append(path, f"{index} {run} {now_ns()} begin {at}")
    if known != owner or total != sum(range(at + 1)):
        return f"{owner} went on from {at} steps with {total} of {known}"
    while at < steps:
        at += 1
        total += at
        if at % every == 0:
            append(path, f"{index} {run} {now_ns()} keep {at}")
            forage.checkpoint((at, total, owner))
        time.sleep(pause_s)
    append(path, f"{index} {run} {now_ns()} end {at}")
    return f"{owner} {total}"


def vote(token: str, index: int, path: str, odd: str, lies: bool, seconds: float) -> str:
    """The odd device lies, or goes on for as long as it is let."""
    if device_name() == odd:
        if lies:
            return f"{token} {index} is a lie"
        linger(path, index, LINGER_S)
    time.sleep(seconds)
    return f"{token} {index}"


# -- never two at a time ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """A moment in which a run was under way."""

    run: str
    device: str
    at_ns: int


def overlap(steps: Sequence[Step], thawed_ns: Mapping[str, Sequence[int]]) -> str:
    """Which two runs were under way at a time, in words; empty where none were.

    A device that was frozen and wakes up has a moment in which what it ran is not ended yet: what
    it does in that is not promised.
    """
    by_run: dict[str, list[Step]] = {}
    for step in sorted(steps, key=lambda step: step.at_ns):
        by_run.setdefault(step.run, []).append(step)
    for earlier, later in combinations(by_run.values(), 2):
        for step in earlier:
            woken = any(0 <= step.at_ns - at <= MOMENT_NS for at in thawed_ns.get(step.device, ()))
            if step.at_ns > later[0].at_ns and not woken:
                late_ms = (step.at_ns - later[0].at_ns) / 1e6
                return (
                    f"{step.run} on {step.device} went on {late_ms:.1f} ms after {later[0].run} "
                    f"on {later[0].device} had begun"
                )
    return ""


class Exclusive(Work):
    """The value of the run that began last, and never two at a time."""

    kind = "exclusive"

    def __init__(self, token: str, client: Client) -> None:
        super().__init__(token, client)
        self.thawed_ns: Mapping[str, Sequence[int]] = {}
        """Device → when it was thawed."""

    def submit(self, source: random.Random, folder: Path) -> None:
        self.path = folder / f"{self.token}.alone"
        count = source.choice([2, 6])
        seconds = [source.choice([0.02, 0.3, 1.5]) for _ in range(count)]
        rows = [[self.token] * count, range(count), [str(self.path)] * count, seconds]
        view = self.client.options(exclusive=True, lease_s=source.choice([1.0, 3.0]))
        self.take(list(view.submit_all(run_alone, *rows)))

    def judge(self, index: int, future: Future[Any]) -> Problem | None:
        error = future.exception()
        if error is not None:
            return self.failure(future, error)
        lines = [line.split() for line in self.path.read_text().splitlines()]
        steps = [Step(run, at, int(ns)) for number, run, at, ns in lines if number == str(index)]
        words = overlap(steps, self.thawed_ns)
        if words:
            return Problem("ran twice", f"{self.kind} {future.id}: {words}")
        began = list(dict.fromkeys(step.run for step in sorted(steps, key=lambda one: one.at_ns)))
        return self.compare(index, future, f"{self.token} {index} {began[-1]}")


# -- from the last checkpoint on --------------------------------------------------------------------


class Checkpointed(Work):
    """The right value, whoever died; and an attempt goes on from a state that this call has kept.

    From which is promised as far as the controller was known to have it. So that is asked for all
    the time: what it has saved while a single attempt was there and ran, every attempt that begins
    later goes on from, or from a later one.
    """

    kind = "checkpointed"

    def submit(self, source: random.Random, folder: Path) -> None:
        self.path = folder / f"{self.token}.steps"
        self.steps, self.every = source.choice([40, 120]), source.choice([5, 10])
        count = source.choice([1, 4])
        pauses = [source.choice([0.005, 0.02]) for _ in range(count)]
        rows = [[self.token] * count, range(count), [str(self.path)] * count]
        more: list[Any] = [[self.steps] * count, [self.every] * count, pauses]
        # A clone is given what there was when it was made.
        view = self.client.options(clones=False)
        self.take(list(view.submit_all(count_on, *rows, *more)))
        self.known: list[tuple[int, int, int]] = []
        """(index, when the controller had said so, steps in the state that it had saved)."""
        threading.Thread(target=self._ask, name="chaos-checkpoints", daemon=True).start()

    def _ask(self) -> None:
        while open_ones := [(i, each) for i, each in enumerate(self.futures) if not each.done()]:
            for index, future in open_ones:
                try:
                    found = self.client.explain(future.id)
                except Exception:
                    continue  # Nobody answers at the moment, or the call is over.
                kept = found.checkpoint
                is_alone = [each.state for each in found.attempts] == ["running"]
                if kept is not None and kept.saved and is_alone:
                    self.known.append((index, now_ns(), kept.number * self.every))
            time.sleep(SAMPLE_S)

    def expected(self, index: int) -> Any:
        return f"{self.token} {index} {sum(range(self.steps + 1))}"

    def judge(self, index: int, future: Future[Any]) -> Problem | None:
        problem = super().judge(index, future)
        if problem is not None:
            return problem
        kept = {0}
        known = [(at_ns, steps) for number, at_ns, steps in list(self.known) if number == index]
        for words in (line.split() for line in self.path.read_text().splitlines()):
            if words[0] != str(index):
                continue
            at_ns, what, at = int(words[2]), words[3], int(words[4])
            if what == "keep":
                kept.add(at)
            elif what == "begin" and at not in kept:
                return Problem("stale", f"{self.kind} {future.id} went on from {at}, never kept")
            elif what == "begin":
                owed = max((steps for since_ns, steps in known if since_ns < at_ns), default=0)
                if at < owed:
                    text = f"went on from {at} steps, and {owed} were saved before"
                    return Problem("redone", f"{self.kind} {future.id} {text}")
        return None


# -- by a quorum ------------------------------------------------------------------------------------


class Replicated(Work):
    """What two of three devices agree on, though the third lies or hangs; nothing runs on."""

    kind = "replicated"

    def submit(self, source: random.Random, folder: Path) -> None:
        self.path = folder / f"{self.token}.votes"
        count = source.choice([2, 12])
        lies = source.random() < 0.5
        # Who hangs is always the same: two works that fill two devices would wait for each other.
        odd = source.choice(["device-1", "device-2"]) if lies else "device-3"
        seconds = [source.choice([0.0, 0.05, 0.3]) for _ in range(count)]
        rows = [[self.token] * count, range(count), [str(self.path)] * count]
        view = self.client.options(replicas=3, quorum=2)
        self.batch = view.submit_all(vote, *rows, [odd] * count, [lies] * count, seconds)
        self.take(list(self.batch))

    def problems(self, deadline_s: float) -> Iterator[Problem]:
        yield from super().problems(deadline_s)
        left = await_ends(self.path, deadline_s)
        if left:
            text = f"{self.batch.id}: {left} run on though the others agreed"
            yield Problem("left running", text)


KINDS: tuple[type[Any], ...] = (*work.KINDS, Exclusive, Checkpointed, Replicated)


def draw_work(source: random.Random, token: str, clients: list[Client], folder: Path) -> Work:
    """Something to do, submitted."""
    drawn: Any = source.choice(KINDS)(token, source.choice(clients))
    drawn.submit(source, folder)
    assert isinstance(drawn, Work)
    return drawn
