"""Taking back: a device that stands idle gets unstarted work that waits on another.

The other is asked to give up a tail; what it says it has not begun waits again, in front.
"""

import heapq
from collections.abc import Callable, Iterator
from itertools import islice

from forage_controller.core.assignments import Assignments
from forage_controller.core.config import Limits
from forage_controller.core.feasible import why_not
from forage_controller.core.siblings import Siblings
from forage_controller.core.state import Device, Open

__all__ = ["Stealing"]

_CANDIDATES = 64
"""Devices compared as those to take from."""
_SLICES_LOOKED_AT = 16
"""The newest slices of a device: those that would begin last."""
_THIEVES_AT_ONCE = 32
_WAIT_DOUBLINGS = 6
"""A device that finds nothing looks again after twice the time, up to this often."""


class Stealing:
    """Who has been free for a while, and who has work that has not begun."""

    __slots__ = (
        "_assignments",
        "_due",
        "_limits",
        "_looks",
        "_not_before_ms",
        "_siblings",
        "_thieves",
        "_victims",
        "_work_us",
    )

    def __init__(
        self,
        limits: Limits,
        assignments: Assignments,
        siblings: Siblings,
        work_us: Callable[[Device, int], int],
    ) -> None:
        self._limits = limits
        self._assignments = assignments
        self._siblings = siblings
        self._work_us = work_us
        self._thieves: dict[str, tuple[Device, int, int]] = {}
        """Free devices: (device, when each looks, how often it has found nothing)."""
        self._looks: list[tuple[int, str]] = []
        self._due: dict[str, int] = {}
        """The one entry that a device has in `_looks`."""
        self._not_before_ms = 0
        self._victims: dict[str, Device] = {}

    def room_changed(self, device: Device, free: bool, now_ms: int) -> None:
        """A device was given work or has less of it."""
        name = device.name
        if not free:
            self._thieves.pop(name, None)
        elif name not in self._thieves:
            self._look_later(device, 0, now_ms)
        if self._may_give(device):
            self._victims[name] = device
        else:
            self._victims.pop(name, None)

    @property
    def free(self) -> Iterator[Device]:
        """Devices with a slot that nothing is meant for."""
        return (device for device, _due_ms, _failed in self._thieves.values())

    def forget(self, device: Device) -> None:
        """A device is not known any more."""
        self._thieves.pop(device.name, None)
        self._victims.pop(device.name, None)

    def _look_later(self, device: Device, failed: int, now_ms: int) -> None:
        due = now_ms + (self._limits.steal_after_ms << min(failed, _WAIT_DOUBLINGS))
        self._thieves[device.name] = (device, due, failed)
        if device.name not in self._due:
            self._due[device.name] = due
            heapq.heappush(self._looks, (due, device.name))

    def next_wakeup_ms(self) -> int | None:
        """When a device that has been free for a while looks around; None: nothing is to be had."""
        if not self._looks or not self._victims:
            return None
        return max(self._looks[0][0], self._not_before_ms)

    def steal(self, now_ms: int) -> None:
        """Let free devices whose time has come take unstarted work from others."""
        if not self._victims or now_ms < self._not_before_ms:
            return
        for _ in range(_THIEVES_AT_ONCE):
            if not self._looks or self._looks[0][0] > now_ms:
                return
            name = heapq.heappop(self._looks)[1]
            del self._due[name]
            thief, due, failed = self._thieves.get(name, (None, 0, 0))
            if thief is None:
                continue
            if due > now_ms:
                self._due[name] = due
                heapq.heappush(self._looks, (due, name))
                continue
            found = self._victim(thief, now_ms)
            if found is not None:
                self._assignments.ask_trim(*found)
            self._look_later(thief, 0 if found else failed + 1, now_ms)
        # The others a little later: first what came in meanwhile.
        self._not_before_ms = now_ms + 1

    def _victim(self, thief: Device, now_ms: int) -> tuple[Open, int] | None:
        """The assignment to take back from the device with the most work, and from where on."""
        best: tuple[Open, int] | None = None
        most = 0.0
        for device in islice(self._victims.values(), _CANDIDATES):
            if device is thief:
                continue
            work = self._work_us(device, now_ms) / max(1, device.slots)
            if work <= most:
                continue
            found = self._unstarted(device, thief, now_ms)
            if found is not None:
                best, most = found, work
        return best

    def _may_give(self, device: Device) -> bool:
        """Whether anything of a device's work may wait there."""
        if device.link is None:
            return False
        return device.slices > device.slots or any(
            self._has_tail(opened) for opened in device.assignments.values()
        )

    def _has_tail(self, opened: Open) -> bool:
        """Whether a slice that may be running is worth being cut.

        One of which a call is known to run is, however little the others were thought to take:
        they may wait behind it for as long as it likes.
        """
        return (
            opened.trim_to is None
            and opened.left >= 2
            and (opened.work_us >= 1_000 * self._limits.steal_after_ms or opened.is_running)
        )

    def _unstarted(self, device: Device, thief: Device, now_ms: int) -> tuple[Open, int] | None:
        """What of a device's work surely waits: a slice of it, or half of a running tail.

        As many as there are more than slots. The newest are likely not to have begun, but a device
        lets clients and functions take turns: those that are known to run are passed over. Of a
        dangerous call (`announce`) that is not known: its start is said before it begins.
        """
        if device.link is None or not device.link.has_room:
            return None
        waiting = device.slices - device.slots
        for opened in islice(reversed(device.assignments.values()), _SLICES_LOOKED_AT):
            if waiting <= 0:
                break
            if opened.kept_until_ms > now_ms or (opened.is_running and not opened.announce):
                continue
            waiting -= 1
            if (
                opened.trim_to is None
                and opened.has_arrived
                and self._may_take(thief, opened, opened.low)
            ):
                return opened, opened.low
        for opened in islice(device.assignments.values(), device.slots):
            half = opened.end - opened.left // 2
            if (
                self._has_tail(opened)
                and opened.has_arrived
                and self._may_take(thief, opened, half)
            ):
                return opened, half
        return None

    def _may_take(self, thief: Device, opened: Open, low: int) -> bool:
        """Whether a device may run what another has."""
        if why_not(thief, opened.page.header):
            return False
        task = opened.task
        return task.replicas == 1 or thief.name not in self._siblings.holders(
            task, opened.page, low
        )
