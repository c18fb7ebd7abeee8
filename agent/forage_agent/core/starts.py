"""Saying that calls run: after they have for a while, or, where one is dangerous, before."""

from collections.abc import Iterable

from forage_agent.core.settings import ANNOUNCE_AGAIN_AFTER_MS
from forage_agent.core.slices import Slice
from forage_wire.limits import LIST_ITEMS_MAX
from forage_wire.link import Link, Outgoing
from forage_wire.messages import Started
from forage_wire.topics import Topics

__all__ = ["Starts"]


class Starts:
    """Calls to be reported as started, and assignments that wait until they were announced.

    What is announced counts as running, at the controller too: it is charged for the death of the
    device and is not taken back. So only as many are announced as could begin: one for each slot.

    Args:
        topics: Where reports go.
        device: This device's name.
        slots: How many calls run at a time.
    """

    def __init__(self, topics: Topics, device: str, slots: int) -> None:
        self._topics = topics
        self._device = device
        self.rows: dict[tuple[str, str], list[tuple[str, int, int]]] = {}
        """What `send` is to report, by (user, client)."""
        self._slots = slots
        self.announcing: dict[int, Slice] = {}
        """What must be announced, until that is confirmed."""
        self._next: dict[int, Slice] = {}
        """Announced, and not begun yet."""
        self._receipts: dict[int, int] = {}

    def clear(self) -> None:
        """A new link: what was to be said to the old one is not said, but announced again."""
        self.rows.clear()
        self._receipts.clear()
        for part in self.announcing.values():
            part.announced = "no"

    # -- calls that run -------------------------------------------------------------------------

    def started(self, part: Slice, index: int) -> None:
        """A call has run for a while."""
        rows = self.rows.setdefault((part.header.user, part.header.client), [])
        rows.append((part.header.task, index, part.assignment))

    def send(self, link: Link) -> None:
        """Report what has started: one message a client."""
        for (user, client), rows in self.rows.items():
            tasks = dict.fromkeys([row[0] for row in rows])
            task = next(iter(tasks)) if len(tasks) == 1 else "-"
            topic = self._topics.task(user, client, task, self._device)
            link.send(Started(rows=tuple(rows[:LIST_ITEMS_MAX])), topic)
        self.rows.clear()

    # -- announcements --------------------------------------------------------------------------

    def wait(self, part: Slice) -> None:
        """Nothing of this slice may begin before the broker has its announcement."""
        self.announcing[part.assignment] = part

    def drop(self, part: Slice) -> None:
        """Nothing of this slice is to be run any more."""
        self.announcing.pop(part.assignment, None)
        self._next.pop(part.assignment, None)

    def due_ms(self) -> int | None:
        """When something is to be announced (again)."""
        return min(map(_due_ms, self._in_turn()), default=None)

    def _in_turn(self) -> list[Slice]:
        """Those whose turn it is to be announced, or that were and are not confirmed."""
        for number, part in list(self._next.items()):
            if not part.todo:
                del self._next[number]
        room = self._slots - len(self._next)
        found: list[Slice] = []
        for number, part in self.announcing.items():
            if number in self._next:
                found.append(part)
            elif room > 0:
                found.append(part)
                room -= 1
        return found

    def announcements(self, link: Link, now_ms: int) -> Iterable[tuple[Slice, Outgoing]]:
        """What is to be published now, each with a receipt that `sent` is told."""
        for part in self._in_turn():
            if _due_ms(part) <= now_ms:
                header = part.header
                rows = [
                    (header.task, index, part.assignment) for index in range(part.low, part.high)
                ]
                topic = self._topics.task(header.user, header.client, header.task, self._device)
                yield part, link.unnumbered(Started(rows=tuple(rows)), topic, qos=1)

    def sent(self, part: Slice, receipt: int, now_ms: int) -> None:
        """A slice's announcement went out under this receipt."""
        part.announced = "sent"
        part.announced_ms = now_ms
        self._next[part.assignment] = part
        self._receipts[receipt] = part.assignment

    def confirmed(self, receipt: int) -> Slice | None:
        """The slice that may begin now that the broker has what went under this receipt."""
        number = self._receipts.pop(receipt, None)
        part = None if number is None else self.announcing.pop(number, None)
        if part is not None:
            part.announced = "yes"
        return part


def _due_ms(part: Slice) -> int:
    return part.announced_ms + ANNOUNCE_AGAIN_AFTER_MS if part.announced == "sent" else 0
