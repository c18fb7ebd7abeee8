"""What running calls say of how far they are: to client and controller, not too often."""

from forage_agent.core.settings import PROGRESS_EVERY_MS
from forage_agent.core.slices import Slice
from forage_wire.link import Link, Outgoing
from forage_wire.messages import Progress
from forage_wire.topics import Topics

__all__ = ["ProgressReports"]


class ProgressReports:
    """The latest word of each slot's call, until it is sent.

    Args:
        topics: Where it goes.
        device: This device's name.
    """

    def __init__(self, topics: Topics, device: str) -> None:
        self._topics = topics
        self._device = device
        self.waiting: dict[int, tuple[Slice, int, int, str]] = {}
        """By slot."""
        self._sent_ms: dict[int, int] = {}

    def note(self, slot: int, part: Slice, index: int, permille: int, text: str) -> None:
        """The call in a slot says how far it is; only its latest word counts."""
        self.waiting[slot] = (part, index, permille, text)

    def due_ms(self) -> int | None:
        """When there is something to send."""
        return min(map(self._slot_due_ms, self.waiting)) if self.waiting else None

    def _slot_due_ms(self, slot: int) -> int:
        return self._sent_ms.get(slot, -PROGRESS_EVERY_MS) + PROGRESS_EVERY_MS

    def send(self, link: Link, now_ms: int) -> list[Outgoing]:
        """What is to be published now. Words on calls that have ended are kept to ourselves."""
        found: list[Outgoing] = []
        for slot in [slot for slot in self.waiting if self._slot_due_ms(slot) <= now_ms]:
            part, index, permille, text = self.waiting.pop(slot)
            if part.has_ended or part.is_forgotten:
                continue
            self._sent_ms[slot] = now_ms
            header = part.header
            topic = self._topics.task(header.user, header.client, header.task, self._device)
            message = Progress(task=header.task, index=index, permille=permille, text=text)
            found.append(link.unnumbered(message, topic))
        return found
