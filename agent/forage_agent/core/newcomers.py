"""Streams that have come to wait while every worker has its hands full of others' calls.

A worker is given work for some time ahead, so that it need not wait for us. A call of another
stream is not to wait for all of that: a worker gives back what it has not begun, the newcomer
goes first, and the rest goes behind it. Newcomers whose calls are known to be long wait for their
turn: they would gain little. After each time the others have at least as long for themselves
as the newcomer takes, so that a stream of newcomers takes no more than half: whoever comes
before that waits for its turn as well.
"""

from collections.abc import Callable

from forage_agent.core.settings import MAKE_ROOM_EVERY_MS, NEWCOMER_WAIT_US, SHORT_US
from forage_agent.core.slices import Slice, Stream
from forage_agent.core.slots import Worker

__all__ = ["Newcomers"]


class Newcomers:
    """Who waits for room, and the worker that makes it."""

    def __init__(self) -> None:
        self.waiting: dict[Stream, Slice] = {}
        """By stream: the slice that came first."""
        self.giver: int | None = None
        """The slot whose worker has been asked to give back."""
        self._first: list[Slice] = []
        """For whom that is, in the order in which they came."""
        self._not_before_ms = 0

    def next_wakeup_ms(self) -> int | None:
        """When `choose` may name a worker."""
        return self._not_before_ms if self.waiting and self.giver is None else None

    def choose(
        self,
        workers: list[Worker],
        priority: int,
        mean_us: Callable[[bytes], int | None],
        expected_us: Callable[[Worker], int],
        now_ms: int,
    ) -> Worker | None:
        """The worker that is to give back what it has not begun; None where none is to.

        Args:
            workers: Of all slots.
            priority: The highest that waits.
            mean_us: How long calls of a function take; None while not measured.
            expected_us: The work that a worker has.
            now_ms: Now.
        """
        if self.giver is not None or now_ms < self._not_before_ms:
            return None
        work_us = 0
        short: list[Slice] = []
        for part in self.waiting.values():
            each_us = mean_us(part.function) or 0
            is_first = part.is_runnable and part.header.options.priority == priority
            if is_first and each_us <= SHORT_US:
                short.append(part)
                work_us += min(each_us * part.todo.count, SHORT_US * MAKE_ROOM_EVERY_MS)
        found = _fullest(workers, priority, expected_us) if short else None
        if found is None:
            # They have, or soon will have, room without that, or are to wait for their turn.
            self.waiting.clear()
            return None
        self.giver = found.slot
        self._first = short
        self._not_before_ms = now_ms + MAKE_ROOM_EVERY_MS + work_us // 1_000
        return found

    def returned(self, slot: int) -> list[Slice]:
        """A slot's worker has no more than the call that it is in; who is to go first by that."""
        if self.giver != slot:
            return []
        self.giver = None
        first, self._first = self._first, []
        return first


def _fullest(
    workers: list[Worker], priority: int, expected_us: Callable[[Worker], int]
) -> Worker | None:
    """The worker with most work, where each has more than is to be waited for."""
    found: Worker | None = None
    most_us = 0
    for worker in workers:
        if worker.state != "ready":
            continue
        work_us = expected_us(worker)
        if work_us <= NEWCOMER_WAIT_US or worker.is_returning:
            return None
        is_urgent = any(given.part.header.options.priority > priority for given in worker.given)
        if work_us > most_us and worker.has_more and not is_urgent:
            found, most_us = worker, work_us
    return found
