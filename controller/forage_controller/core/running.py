"""The time that controllers have ruled with one store: what deadlines are counted in.

A wall clock would count across restarts, but it jumps by years on machines without a battery. So the
store keeps a count of its own, together with where this machine's clock stood then. A start on the
same boot of the same machine goes on by that clock, so the time between counts too; any other
(the machine was restarted, or a standby on another one took over) goes on from what was counted last.
"""

from forage_controller.core.effects import Effects
from forage_controller.core.operations import MachineTime, SaveDeadline, SaveTime
from forage_controller.core.state import Page, Task

__all__ = ["RunningTime"]

_STALE_MS = 1_000
"""A count this old is saved again with the next deadline."""
_SAVE_EVERY_MS = 5_000
"""... and without one: what another machine may count once more."""


class RunningTime:
    """Converts between that count and our own time.

    Args:
        effects: Where it is saved.
        saved: The last that was counted; None: nothing ever was.
        machine: This machine's clock at our start.
    """

    __slots__ = ("_ahead_ms", "_effects", "_machine", "_saved_ms")

    def __init__(self, effects: Effects, saved: SaveTime | None, machine: MachineTime) -> None:
        self._effects = effects
        self._machine = machine
        counted_ms = 0
        if saved is not None:
            counted_ms = saved.ran_ms
            if machine.boot and machine.boot == saved.boot:
                counted_ms += max(0, machine.boot_ms - saved.boot_ms)
        self._ahead_ms = counted_ms - machine.now_ms
        self._saved_ms: int | None = None

    def at(self, now_ms: int) -> int:
        """The count at a time of ours."""
        return now_ms + self._ahead_ms

    def now_of(self, ran_ms: int) -> int:
        """Our time at a count; before our start it may be below 0."""
        return ran_ms - self._ahead_ms

    def begin_deadline(self, task: Task, page: Page, now_ms: int) -> None:
        """A page's time runs from now on, whoever rules; the store gets that with the page."""
        page.due_ms = now_ms + page.header.options.deadline_ms
        self._effects.save(
            SaveDeadline(task=task.id, first=page.first, due_ms=self.at(page.due_ms))
        )
        if self._saved_ms is None or now_ms >= self._saved_ms + _STALE_MS:
            self.save(now_ms)

    def save_due_ms(self) -> int:
        """When the count is to be saved while anything is counted in it."""
        return 0 if self._saved_ms is None else self._saved_ms + _SAVE_EVERY_MS

    def save(self, now_ms: int) -> None:
        """Save the count, and where our machine's clock stands."""
        self._saved_ms = now_ms
        machine = self._machine
        self._effects.save(
            SaveTime(
                ran_ms=self.at(now_ms),
                boot=machine.boot,
                boot_ms=machine.boot_ms + now_ms - machine.now_ms,
            )
        )
