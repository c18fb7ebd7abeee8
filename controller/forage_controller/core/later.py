"""Calls that are to run again, but not before a certain time: they wait here, then in the backlog."""

import heapq

from forage_controller.core.backlog import Backlog, Pending
from forage_controller.core.state import Task

__all__ = ["Later"]


class Later:
    """What may not go out yet: retries that back off, exclusive calls under a lease that runs.

    Args:
        backlog: Where they go in the end.
        tasks: Those that are known; what belongs to no other is dropped.
    """

    __slots__ = ("_backlog", "_count", "_due", "_tasks")

    def __init__(self, backlog: Backlog, tasks: dict[str, Task]) -> None:
        self._backlog = backlog
        self._tasks = tasks
        self._due: list[tuple[int, int, Pending]] = []
        self._count = 0

    def add(self, pending: Pending, due_ms: int) -> None:
        """Let calls wait in the backlog from `due_ms` on."""
        self._count += 1
        heapq.heappush(self._due, (due_ms, self._count, pending))
        pending.task.waiting += pending.high - pending.low

    def next_wakeup_ms(self) -> int | None:
        """When `check` has something to do."""
        return self._due[0][0] if self._due else None

    def check(self, now_ms: int) -> None:
        """Those whose time has come wait for a device; not what ended or is held by one again."""
        while self._due and self._due[0][0] <= now_ms:
            _due_ms, _count, pending = heapq.heappop(self._due)
            task = pending.task
            task.waiting -= pending.high - pending.low
            if self._tasks.get(task.id) is not task:
                continue
            for low, high in pending.page.free(task.done, pending.low, pending.high):
                piece = Pending(
                    task=task,
                    page=pending.page,
                    low=low,
                    high=high,
                    counters=pending.counters,
                    announce=pending.announce,
                )
                self._backlog.add(piece, now_ms, front=True)
