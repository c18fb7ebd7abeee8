"""Which calls have ended without the controller knowing it, and when it is told."""

from forage.core.tasks import TaskRecord
from forage_wire.limits import COLLECTED_EVERY_CALLS, COLLECTED_EVERY_MS
from forage_wire.ranges import Ranges, RangeSet

__all__ = ["Collecting"]


class Collecting:
    """Every 200 ms, or 4,096 calls if those are sooner."""

    __slots__ = ("_count", "_tasks", "due_ms")

    def __init__(self) -> None:
        self._tasks: dict[str, TaskRecord] = {}
        self._count = 0
        self.due_ms: int | None = None
        """When `take` is due; None: there is nothing to tell."""

    def note_ended(
        self, task: TaskRecord, ranges: Ranges | list[tuple[int, int]], now_ms: int
    ) -> None:
        """These calls have ended: with an outcome, or cancelled."""
        if not ranges:
            return
        task.uncollected += ranges
        for low, high in ranges:
            task.resolved.add(low, high)
            self._count += high - low
        self._tasks[task.task] = task
        if self._count >= COLLECTED_EVERY_CALLS:
            self.due_ms = now_ms
        elif self.due_ms is None:
            self.due_ms = now_ms + COLLECTED_EVERY_MS

    def take(self) -> list[tuple[str, Ranges]]:
        """What is to be told, now."""
        rows = []
        for name, task in self._tasks.items():
            rows.append((name, RangeSet(task.uncollected).freeze()))
            task.uncollected = []
        self._tasks.clear()
        self._count = 0
        self.due_ms = None
        return rows

    def inventory_sent(self) -> None:
        """An inventory told all of our own tasks; those that we are attached to are left."""
        for task in self._tasks.values():
            if not task.attached:
                task.uncollected = []
        self._tasks = {name: task for name, task in self._tasks.items() if task.attached}

    def forget(self, task: str) -> None:
        """The controller keeps nothing of this task: there is nothing to tell."""
        self._tasks.pop(task, None)
