"""The assignments that a device holds, from their acceptance to the last acknowledgement."""

from collections.abc import Iterator

from forage_agent.core.settings import ACCEPTED_AFTER_MS, ENDED_ASSIGNMENTS_MAX
from forage_agent.core.slices import Slice
from forage_wire.limits import LIST_ITEMS_MAX

__all__ = ["Holdings"]


class Holdings:
    """Slices by assignment number; numbers that have ended are never started again."""

    def __init__(self, ended_max: int = ENDED_ASSIGNMENTS_MAX) -> None:
        self._slices: dict[int, Slice] = {}
        self._ended: dict[int, None] = {}
        self._ended_max = ended_max
        self._forgotten_below = 0
        """All numbers up to this one have ended or never will begin."""
        self.call_bytes = 0
        """Arguments, and the checkpoints that came with them, of all slices that are not through."""
        self.beat_ms: int | None = None
        """The shortest period between signs of life that any held slice asks for."""
        self._beats: dict[int, int] = {}
        self._accepted: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._slices)

    def __iter__(self) -> Iterator[Slice]:
        return iter(self._slices.values())

    def get(self, assignment: int) -> Slice | None:
        """The slice of an assignment that is held."""
        return self._slices.get(assignment)

    def has_ended(self, assignment: int) -> bool:
        """Whether this number was held before."""
        return assignment in self._ended

    def is_expired(self, assignment: int) -> bool:
        """Whether this number is so old that nobody knows any more whether it was held."""
        return assignment <= self._forgotten_below and assignment not in self._ended

    def add(self, part: Slice, now_ms: int) -> None:
        """Hold a slice; `accepted_due` will name it if it has not ended soon."""
        self._slices[part.assignment] = part
        self.call_bytes += part.given_bytes
        alike = self._beats.get(part.beat_ms, 0)
        self._beats[part.beat_ms] = alike + 1
        if not alike:
            self.beat_ms = min(self._beats)
        self._accepted[part.assignment] = now_ms + ACCEPTED_AFTER_MS

    def through(self, part: Slice) -> bool:
        """All calls of a slice have ended: its arguments are not needed. True the first time."""
        if part.is_through or part.assignment not in self._slices:
            return False
        part.is_through = True
        self.call_bytes -= part.given_bytes
        part.drop_calls()
        self._accepted.pop(part.assignment, None)
        return True

    def remove(self, part: Slice) -> None:
        """A slice has no outcome left to keep, or is not wanted any more."""
        if self._slices.pop(part.assignment, None) is None:
            return
        if not part.is_through:
            self.call_bytes -= part.given_bytes
            self._accepted.pop(part.assignment, None)
        left = self._beats[part.beat_ms] - 1
        if left:
            self._beats[part.beat_ms] = left
        else:
            del self._beats[part.beat_ms]
            self.beat_ms = min(self._beats, default=None)
        self._ended[part.assignment] = None
        if len(self._ended) > self._ended_max:
            oldest = next(iter(self._ended))
            del self._ended[oldest]
            self._forgotten_below = max(self._forgotten_below, oldest)

    def accepted_due(self, now_ms: int) -> tuple[int, ...]:
        """Assignments to be named as accepted now: held for a while, not through."""
        if not self._accepted:
            return ()
        due: list[int] = []
        for assignment, due_ms in self._accepted.items():
            if due_ms > now_ms or len(due) == LIST_ITEMS_MAX:
                break
            due.append(assignment)
        for assignment in due:
            del self._accepted[assignment]
        return tuple(due)

    def accepted_due_ms(self) -> int | None:
        """When `accepted_due` will name something."""
        return next(iter(self._accepted.values())) if self._accepted else None

    def accepted_by_inventory(self) -> None:
        """An inventory names all that is held."""
        self._accepted.clear()

    def rows(self) -> tuple[tuple[int, str, int, int, str], ...]:
        """What an inventory says."""
        return tuple(
            [
                (part.assignment, part.header.task, part.low, part.high, part.state)
                for part in self._slices.values()
            ]
        )
