"""The tasks that were released last: what became of them can still be asked for.

A task ends a moment after its result is in somebody's hands, which is when they ask for its output
or its attempts. Nothing here is saved: it is forgotten with the process.
"""

from collections.abc import Iterator

from forage_controller.core.state import Task

__all__ = ["Ended"]


class Ended:
    """Tasks without their calls' bytes; the oldest go first."""

    def __init__(self, tasks_max: int, pages_max: int) -> None:
        self._tasks_max = tasks_max
        self._pages_max = pages_max
        self._tasks: dict[str, Task] = {}
        self._pages = 0

    def __contains__(self, task_id: str) -> bool:
        return task_id in self._tasks

    def latest(self) -> Iterator[Task]:
        """All of them, the one that was released last first."""
        return reversed(self._tasks.values())

    def get(self, task_id: str) -> Task | None:
        """The task of this id, if it is remembered."""
        return self._tasks.get(task_id)

    def add(self, task: Task) -> list[Task]:
        """Remember a task that is released now; the answer is whom there is no room for any more."""
        tasks = self._tasks
        tasks[task.id] = task
        self._pages += len(task.pages)
        forgotten = []
        while len(tasks) > self._tasks_max or self._pages > self._pages_max:
            oldest = tasks.pop(next(iter(tasks)))
            self._pages -= len(oldest.pages)
            forgotten.append(oldest)
        return forgotten
