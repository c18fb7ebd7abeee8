"""The worker of a slot: what it was given, and how it stands."""

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from forage_agent.core.events import WorkerExited
from forage_agent.core.settings import FUNCTIONS_PER_WORKER_MAX, STARTED_AFTER_MS, WORKER_HOLDS_MS
from forage_agent.core.slices import Slice
from forage_wire.ranges import RangeSet

__all__ = ["Given", "Worker", "is_cancelled", "is_forgotten"]


@dataclass(slots=True, kw_only=True)
class Given:
    """Calls [low, high) of a slice that a worker has and that have not ended."""

    part: Slice
    low: int
    high: int


def is_cancelled(given: Given) -> bool:
    """Whether any of these calls is."""
    return bool(given.part.cancelled.common(given.low, given.high))


def is_forgotten(given: Given) -> bool:
    """Whether nobody wants their outcomes."""
    return given.part.is_forgotten


@dataclass(slots=True, kw_only=True)
class Worker:
    """One slot's worker, and between two workers what is known for the next one."""

    slot: int
    state: Literal["none", "starting", "ready", "killed"] = "none"
    given: deque[Given] = field(default_factory=deque)
    since_ms: int = 0
    """The first of them is running since then, or has less time behind it."""
    is_reported: bool = False
    """That it runs, for `STARTED_AFTER_MS`, was seen to."""
    is_returning: bool = False
    may_follow: bool = False
    """Whether calls may be given behind others: this worker can give them back."""
    was_used: bool = False
    known: dict[bytes, None] = field(default_factory=dict)
    last: tuple[Slice, int] | None = None
    """The call that ended last."""
    why: str = ""
    timed_out: tuple[int, int] = (0, -1)
    failures: int = 0
    """Deaths in a row before it was ready."""
    restart_ms: int = 0

    @property
    def has_more(self) -> bool:
        """Whether it has more than the one call that it is in."""
        if not self.given:
            return False
        return len(self.given) > 1 or self.given[0].high - self.given[0].low > 1

    @property
    def timeout_ms(self) -> int:
        """After how long it is killed because of the call that it is in; 0: never.

        What ended before that call it may keep for a while, and until it says so it seems to be
        in a call for so much longer than it is.
        """
        timeout_ms = self.given[0].part.header.options.timeout_ms
        return timeout_ms + WORKER_HOLDS_MS if timeout_ms and self.may_follow else timeout_ms

    def victim(self, event: WorkerExited) -> tuple[Slice, int] | None:
        """The call that it was in when it ended; None where it was in none."""
        for given in self.given:
            if given.part.assignment == event.assignment and given.low <= event.index < given.high:
                return given.part, event.index
        if event.assignment == 0 and self.given:
            return self.given[0].part, self.given[0].low
        return None

    def cut_out(self, part: Slice, gone: RangeSet) -> None:
        """These calls have ended in another way than by running to their end."""
        left: deque[Given] = deque()
        for given in self.given:
            if given.part is not part:
                left.append(given)
                continue
            pieces = gone.missing(given.low, given.high)
            part.workers += len(pieces) - 1
            part.given -= given.high - given.low
            for low, high in pieces:
                part.given += high - low
                left.append(Given(part=part, low=low, high=high))
        self.given = left

    def forget_functions(self) -> tuple[bytes, ...]:
        """What it need not keep: the functions used longest ago, above the limit."""
        surplus = len(self.known) - FUNCTIONS_PER_WORKER_MAX
        if surplus <= 0:
            return ()
        needed = {given.part.function: None for given in self.given}
        dropped = tuple([key for key in self.known if key not in needed][:surplus])
        for key in dropped:
            del self.known[key]
        return dropped

    def wakeup_ms(self) -> int | None:
        """When the pool is to look at it."""
        if self.state == "none":
            return self.restart_ms
        if self.state != "ready" or not self.given:
            return None
        due = None if self.is_reported else self.since_ms + STARTED_AFTER_MS
        timeout_ms = self.timeout_ms
        if timeout_ms:
            timeout = self.since_ms + timeout_ms
            due = timeout if due is None else min(due, timeout)
        return due
