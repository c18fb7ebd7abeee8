"""Deadlines: calls that have not ended so long after their page came end then, wherever they are."""

import heapq

from forage_controller.core.ledger import Ledger
from forage_controller.core.settlement import Settlement
from forage_controller.core.state import Page, Task

__all__ = ["Deadlines"]


class Deadlines:
    """Ends calls that are too late: those that wait are dropped, those that run are killed.

    Time counts from when a page came here, and anew from a restart: nobody's clock is believed.
    """

    __slots__ = ("_count", "_due", "_ledger", "_settlement")

    def __init__(self, ledger: Ledger, settlement: Settlement) -> None:
        self._ledger = ledger
        self._settlement = settlement
        self._due: list[tuple[int, int, Task, Page]] = []
        self._count = 0

    def next_wakeup_ms(self) -> int | None:
        """When `check` has something to do."""
        return self._due[0][0] if self._due else None

    def check(self, now_ms: int) -> None:
        """End what is too late, and note until when new pages have time."""
        if self._ledger.with_deadline:
            news, self._ledger.with_deadline = self._ledger.with_deadline, []
            for task, page in news:
                self._count += 1
                due_ms = now_ms + page.header.options.deadline_ms
                heapq.heappush(self._due, (due_ms, self._count, task, page))
        while self._due and self._due[0][0] <= now_ms:
            _due_ms, _count, task, page = heapq.heappop(self._due)
            if self._ledger.tasks.get(task.id) is task:
                self._settlement.end_late(task, page, now_ms)
