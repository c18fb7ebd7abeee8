"""Polls the links that have something to do: of thousands, few do at a time."""

import heapq

from forage_controller.core.effects import Effects
from forage_wire.limits import DEVICE_WINDOW
from forage_wire.link import Link

__all__ = ["Links"]


class Links:
    """Makes our links, and sends what they have ready."""

    __slots__ = ("_count", "_effects", "_timers", "active")

    def __init__(self, effects: Effects) -> None:
        self._effects = effects
        self.active: dict[int, Link] = {}
        self._timers: list[tuple[int, int, Link]] = []
        self._count = 0

    def make(
        self,
        *,
        session: str,
        controller: str,
        number: int,
        epoch: int,
        topic: str,
        packet_bytes_max: int,
    ) -> Link:
        """A link to a device's or client's session."""
        return Link(
            session=session,
            controller=controller,
            number=number,
            epoch=epoch,
            topic=topic,
            window=DEVICE_WINDOW,
            packet_bytes_max=packet_bytes_max,
            active=self.active,
        )

    def poll(self, now_ms: int) -> None:
        """Publish what links have to send now; a link that was dropped says nothing more."""
        while self._timers and self._timers[0][0] <= now_ms:
            link = heapq.heappop(self._timers)[2]
            self.active[id(link)] = link
        while self.active:
            active = list(self.active.values())
            self.active.clear()
            for link in active:
                if link.closed:
                    continue
                self._effects.outgoing(link.poll(now_ms))
                due = link.next_wakeup_ms()
                if due is not None and (
                    link.due_ms is None or due < link.due_ms or link.due_ms <= now_ms
                ):
                    link.due_ms = due
                    self._count += 1
                    heapq.heappush(self._timers, (due, self._count, link))

    def next_wakeup_ms(self) -> int | None:
        """When a link has a repeat or a bare `Seen` to send."""
        return self._timers[0][0] if self._timers else None
