"""Deadlines: calls that have not ended so long after their page came end then, wherever they are."""

import heapq

from forage_controller.core.ledger import Ledger
from forage_controller.core.running import RunningTime
from forage_controller.core.settlement import Settlement
from forage_controller.core.state import Page, Task

__all__ = ["Deadlines"]

_Entry = tuple[int, int, Task, Page]

_ENTRIES_MIN = 64


class Deadlines:
    """Ends calls that are too late: those that wait are dropped, those that run are killed.

    Time counts from when a page first came to a controller, in the store's own count (`running`),
    which is saved now and then for as long as any call has a deadline to come.
    """

    __slots__ = ("_count", "_due", "_ledger", "_prune_at", "_running", "_settlement")

    def __init__(self, ledger: Ledger, settlement: Settlement, running: RunningTime) -> None:
        self._ledger = ledger
        self._settlement = settlement
        self._running = running
        self._due: list[_Entry] = []
        self._count = 0
        self._prune_at = _ENTRIES_MIN

    def next_wakeup_ms(self) -> int | None:
        """When `check` has something to do."""
        if not self._due:
            return None
        due_ms = self._due[0][0]
        return due_ms if self._ledger.no_room else min(due_ms, self._running.save_due_ms())

    def check(self, now_ms: int) -> None:
        """End what is too late, and note until when new pages have time."""
        if self._ledger.with_deadline:
            news, self._ledger.with_deadline = self._ledger.with_deadline, []
            for task, page in news:
                if page.due_ms is None:  # A store of before kept none.
                    self._running.begin_deadline(task, page, now_ms)
                assert page.due_ms is not None
                self._count += 1
                heapq.heappush(self._due, (page.due_ms, self._count, task, page))
            if len(self._due) >= self._prune_at:
                self._prune()
        while self._due and self._due[0][0] <= now_ms:
            _due_ms, _count, task, page = heapq.heappop(self._due)
            if self._ledger.tasks.get(task.id) is task:
                self._settlement.end_late(task, page, now_ms)
        if self._due and now_ms >= self._running.save_due_ms() and not self._ledger.no_room:
            if any(map(self._is_open, self._due)):
                self._running.save(now_ms)
            else:
                self._due = []

    def _prune(self) -> None:
        """Forget what has ended in time, before it is most of what is kept."""
        self._due = [entry for entry in self._due if self._is_open(entry)]
        heapq.heapify(self._due)
        self._prune_at = 2 * len(self._due) + _ENTRIES_MIN

    def _is_open(self, entry: _Entry) -> bool:
        _due_ms, _count, task, page = entry
        known = self._ledger.tasks.get(task.id) is task
        return known and not task.done.covers(page.first, page.end)
