"""What has changed since the tables were last written: the journal's content, in memory.

Most tasks live for less than a second. Their rows would be written, indexed and deleted again for
nothing, so an operation goes to the journal (one row a commit) and in here; `fold.py` writes what
has outlived the journal to the tables. What was made and ended in between costs the disk nothing.

`Recent` knows for each task whether it exists, so operations on tasks that never did, or that are
over, change nothing, whatever their order.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from forage_controller.core.operations import (
    ClosedAssignment,
    ForgetCheckpoints,
    Operation,
    SaveAssignment,
    SaveCheckpoint,
    SaveCollected,
    SaveCounters,
    SaveDeadline,
    SaveOutcomes,
    SavePage,
    SaveReleased,
    TrimAssignment,
)
from forage_wire.ranges import RangeSet

__all__ = ["Recent", "Released", "TaskChanges"]

_DIGITS = "0123456789abcdefghijklmnopqrstuv"


class Released:
    """Ids of tasks that ended. One client's are mostly without gaps, so they are kept as ranges."""

    def __init__(self) -> None:
        self.counters: dict[str, RangeSet] = {}
        """Key (see `_split`) → counters; one without any stays until that is written."""
        self.changed: dict[str, None] = {}
        """Keys whose row is not written yet."""

    def __contains__(self, task: str) -> bool:
        key, counter = _split(task)
        ranges = self.counters.get(key)
        return ranges is not None and counter in ranges

    def add(self, task: str) -> None:
        """The task is over."""
        key, counter = _split(task)
        self.counters.setdefault(key, RangeSet()).add(counter, counter + 1)
        self.changed[key] = None

    def remove(self, task: str) -> None:
        """The task is forgotten."""
        key, counter = _split(task)
        ranges = self.counters.get(key)
        if ranges is not None and ranges.remove(counter, counter + 1):
            self.changed[key] = None

    def names(self) -> list[str]:
        """Every id."""
        return [
            key[1:] if key.startswith(_LITERAL) else f"{key}-{_text(counter)}"
            for key, ranges in self.counters.items()
            for low, high in ranges
            for counter in range(low, high)
        ]


_LITERAL = "="


def _split(task: str) -> tuple[str, int]:
    """Client and counter; `=` with the whole id, and 0, where the counter is spelt otherwise."""
    client, _, text = task.rpartition("-")
    # Exactly the texts that `_text` makes: int() alone also takes signs, capitals, spaces and more.
    if (
        text.isascii()
        and text.isalnum()
        and text == text.lower()
        and (text[0] != "0" or text == "0")
    ):
        try:
            return client, int(text, 32)
        except ValueError:
            pass
    return _LITERAL + task, 0


def _text(counter: int) -> str:
    text = _DIGITS[counter & 31]
    while counter := counter >> 5:
        text = _DIGITS[counter & 31] + text
    return text


@dataclass(slots=True)
class TaskChanges:
    """One task's changes since the tables were written."""

    wipe: bool = False
    """What the tables hold of it goes; what is below came later."""
    made: SavePage | None = None
    """A page from here, for the task's own row."""
    pages: dict[int, SavePage] = field(default_factory=dict)
    outcomes: list[SaveOutcomes] = field(default_factory=list)
    collected: list[tuple[int, int]] = field(default_factory=list)
    """Ranges as they came: they may overlap."""
    counters: list[SaveCounters] = field(default_factory=list)
    checkpoints: dict[int, SaveCheckpoint | None] | None = None
    """Call -> its last checkpoint; None: that is gone, from the tables too. Most have none."""
    deadlines: dict[int, int] | None = None
    """Page -> when its calls are too late. Most have none."""
    opened: dict[int, None] = field(default_factory=dict)
    """Its assignments in `Recent.opened`."""

    @property
    def is_over(self) -> bool:
        """The task ended in here, and has not been made again."""
        return self.wipe and self.made is None


class Recent:
    """Changes that are in the journal, or on their way there, and not yet in the tables."""

    def __init__(self) -> None:
        self.in_tables: set[str] = set()
        """Tasks of which the tables hold anything."""
        self.assignment_max = 0
        """The highest number that the tables have ever held since we opened them."""
        self.released = Released()
        self.tasks: dict[str, TaskChanges] = {}
        self.opened: dict[int, SaveAssignment] = {}
        self.trimmed: dict[int, int] = {}
        """Assignments of the tables → their new end."""
        self.closed: dict[int, None] = {}
        """Assignments that are over and may still stand in the tables."""
        self.forgotten: dict[str, None] = {}
        """Tasks that were forgotten since the tables were written."""
        # A table of types: a chain of class patterns costs as much as the rest of an operation.
        self._appliers: dict[type, Callable[[Any], bool]] = {
            SavePage: self._page,
            SaveAssignment: self._assignment,
            TrimAssignment: self._trim,
            ClosedAssignment: self._close,
            SaveOutcomes: self._outcomes,
            SaveCounters: self._counters,
            SaveCollected: self._collected,
            SaveReleased: self._release,
            SaveCheckpoint: self._checkpoint,
            ForgetCheckpoints: self._forget_checkpoints,
            SaveDeadline: self._deadline,
        }

    def __bool__(self) -> bool:
        return bool(
            self.tasks or self.opened or self.trimmed or self.closed or self.released.changed
        )

    def settle(self) -> None:
        """The tables have it all: begin anew."""
        for task, changes in self.tasks.items():
            if changes.is_over:
                self.in_tables.discard(task)
            else:
                self.in_tables.add(task)
        self.assignment_max = max(self.assignment_max, max(self.opened, default=0))
        for key in self.released.changed:
            if not self.released.counters[key]:
                del self.released.counters[key]
        self.released.changed = {}
        self.tasks = {}
        self.opened = {}
        self.trimmed = {}
        self.closed = {}
        self.forgotten = {}

    def goes_straight(self, operation: SavePage | SaveOutcomes) -> bool:
        """Whether its table may take the row at once, ahead of what the journal holds.

        Not if the task was forgotten and begins anew: the journal's end of the first one would
        take the row too.
        """
        if operation.task in self.forgotten:
            return False
        if isinstance(operation, SavePage):
            return operation.task not in self.released
        return self.exists(operation.task)

    def exists(self, task: str) -> bool:
        """Whether a page made the task, and it is not over."""
        changes = self.tasks.get(task)
        return task in self.in_tables if changes is None else not changes.is_over

    def apply(self, operation: Operation) -> bool:
        """Take in one operation of the journal.

        Returns:
            False where it means nothing: its task is unknown or over. It must not be journaled
            then: read again, it might meet a task that went straight to the tables later.
        """
        return self._appliers[type(operation)](operation)

    def _living(self, task: str) -> TaskChanges | None:
        if not self.exists(task):
            return None
        changes = self.tasks.get(task)
        if changes is None:
            changes = self.tasks[task] = TaskChanges()
        return changes

    def _outcomes(self, operation: SaveOutcomes) -> bool:
        changes = self._living(operation.task)
        if changes is None or not operation.settled:
            return False
        changes.outcomes.append(operation)
        return True

    def _collected(self, operation: SaveCollected) -> bool:
        changes = self._living(operation.task)
        if changes is None:
            return False
        changes.collected += operation.ranges
        return True

    def _counters(self, operation: SaveCounters) -> bool:
        changes = self._living(operation.task)
        if changes is None:
            return False
        changes.counters.append(operation)
        return True

    def _checkpoint(self, operation: SaveCheckpoint) -> bool:
        changes = self._living(operation.task)
        if changes is None:
            return False
        if changes.checkpoints is None:
            changes.checkpoints = {}
        changes.checkpoints[operation.index] = operation
        return True

    def _forget_checkpoints(self, operation: ForgetCheckpoints) -> bool:
        changes = self._living(operation.task)
        if changes is None:
            return False
        gone: dict[int, SaveCheckpoint | None] = dict.fromkeys(operation.indices)
        changes.checkpoints = {**(changes.checkpoints or {}), **gone}
        return True

    def _deadline(self, operation: SaveDeadline) -> bool:
        changes = self._living(operation.task)
        if changes is None:
            return False
        if changes.deadlines is None:
            changes.deadlines = {}
        return changes.deadlines.setdefault(operation.first, operation.due_ms) == operation.due_ms

    def _page(self, operation: SavePage) -> bool:
        if operation.task in self.released:
            return False
        changes = self.tasks.get(operation.task)
        if changes is None:
            changes = self.tasks[operation.task] = TaskChanges()
        if changes.made is None:
            changes.made = operation
        return changes.pages.setdefault(operation.first, operation) is operation

    def _assignment(self, operation: SaveAssignment) -> bool:
        changes = self._living(operation.task)
        if changes is None:
            return False
        self._remove(operation.assignment)  # One that is adopted again begins anew.
        changes.opened[operation.assignment] = None
        self.opened[operation.assignment] = operation
        return True

    def _trim(self, operation: TrimAssignment) -> bool:
        opened = self.opened.get(operation.assignment)
        if opened is not None:
            self.opened[operation.assignment] = replace(opened, high=operation.high)
        elif (
            operation.assignment <= self.assignment_max and operation.assignment not in self.closed
        ):
            self.trimmed[operation.assignment] = operation.high
        return True

    def _close(self, operation: ClosedAssignment) -> bool:
        self._remove(operation.assignment)
        return True

    def _remove(self, assignment: int) -> None:
        self.trimmed.pop(assignment, None)
        opened = self.opened.pop(assignment, None)
        if opened is not None:
            del self.tasks[opened.task].opened[assignment]
        if assignment <= self.assignment_max:
            self.closed[assignment] = None

    def _release(self, operation: SaveReleased) -> bool:
        task = operation.task
        changes = self.tasks.pop(task, None)
        if changes is not None:
            for assignment in changes.opened:
                del self.opened[assignment]
        if task in self.in_tables:
            self.tasks[task] = TaskChanges(wipe=True)
        if operation.forget:
            self.released.remove(task)
            self.forgotten[task] = None
        else:
            self.released.add(task)
        return True
