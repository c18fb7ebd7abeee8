"""Leases: what makes sure that an exclusive call never runs twice at a time.

A device may run an exclusive call for `lease_ms` from when it last *asked* whether it may, if it
was answered; its watchdog kills the call when that is over. We answer only while the assignment
is open here, and note when. A device's question is sent before it is answered, so its lease is
over before ours, as long as the two clocks run at the same rate but for one percent. After an
assignment is closed without the device's word, nobody else is given its calls until then.

(Gray and Cheriton, "Leases: an efficient fault-tolerant mechanism for distributed file cache
consistency", 1989; the asymmetric count is theirs.)
"""

import heapq

from forage_controller.core.assignments import Assignments
from forage_controller.core.effects import Effects
from forage_controller.core.sessions import start_of
from forage_controller.core.state import Device, Open
from forage_wire.io import Publish
from forage_wire.messages import Lease, Renew

__all__ = ["LEASE_GRACE_MS", "Leases"]

LEASE_GRACE_MS = 500
"""A device's watchdog looks four times a second, and what it kills takes a moment to die."""


class Leases:
    """Answers devices that ask, and says when nobody can be running a call any more."""

    __slots__ = ("_assignments", "_effects", "_kept")

    def __init__(self, assignments: Assignments, effects: Effects) -> None:
        self._assignments = assignments
        self._effects = effects
        self._kept: list[tuple[int, int]] = []
        """When the lease of an assignment that was given up is over, and its number."""

    def listen_from(self, now_ms: int) -> None:
        """An earlier start of ours gave leases, until now at the latest."""
        for opened in self._assignments.open.values():
            if opened.page.header.options.exclusive and opened.leased_ms is None and opened.sent:
                opened.leased_ms = now_ms

    def on_renew(self, device: Device, message: Renew, now_ms: int) -> None:
        """A device asks whether it may run what it holds."""
        link = device.link
        if link is None or device.verdict == "dead":
            return
        granted: list[int] = []
        for number in message.assignments:
            opened = self._assignments.open.get(number)
            if (
                opened is not None
                and opened.device is device
                and start_of(opened.session) == start_of(device.session)
            ):
                opened.leased_ms = now_ms
                granted.append(number)
        answer = link.unnumbered(Lease(serial=message.serial, assignments=tuple(granted)), qos=1)
        self._effects.command(Publish(topic=answer.topic, payload=answer.payload, qos=answer.qos))

    def keep(self, number: int, over_ms: int) -> None:
        """An assignment was given up, and its calls may be running until its lease is over.

        The store has it as an open one until then: a controller that is started anew, or a standby
        that takes over, is not to give its calls to others either.
        """
        heapq.heappush(self._kept, (over_ms, number))

    def next_wakeup_ms(self) -> int | None:
        """When `check` has something to do."""
        return self._kept[0][0] if self._kept else None

    def check(self, now_ms: int) -> None:
        """Close what was kept, before its calls go out again."""
        while self._kept and self._kept[0][0] <= now_ms:
            _over_ms, number = heapq.heappop(self._kept)
            self._assignments.forget(number)

    @staticmethod
    def over_ms(opened: Open) -> int:
        """When no device can be running calls of an assignment that was given up; 0: it never could."""
        options = opened.page.header.options
        if not options.exclusive or opened.leased_ms is None:
            return 0
        return opened.leased_ms + -(-options.lease_ms * 101 // 100) + LEASE_GRACE_MS
