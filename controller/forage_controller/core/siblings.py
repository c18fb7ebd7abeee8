"""Replicas of one call: each on a device of its own, so that no device is asked twice.

A device has a run's sibling while it holds it, and after that if the outcome came from there. Only
an open assignment settles such a task (`settle=controller`), so what holds when a run is assigned
holds for ever: no two outcomes of one call are of one device. A run that every eligible device with room
bars is set aside, out of the queue, so that others go on behind it: else a call that hangs on a
device would wait for the vote of one that waits behind what waits for that very device. It comes
back when a device comes, or gets room, or one gives a sibling back, and ends as `no-device` when
there has been no other device for its `wait_ms`.

Values are not compared here: the controller reads none (see `forage.voting`).
"""

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from forage_controller.core.assignments import Assignments
from forage_controller.core.backlog import Backlog, CallQueue, Pending
from forage_controller.core.feasible import why_not
from forage_controller.core.settlement import Settlement
from forage_controller.core.state import Counters, Device, Page, Task
from forage_wire.system_errors import NO_DEVICE

__all__ = ["HAS_ANOTHER", "Aside", "Siblings"]

HAS_ANOTHER = "it has another replica of this call"
_DEVICES_AWAITED = 16
"""Busy devices that a run waits for at most: the first of them that gets room takes it."""
_BACK_AT_ONCE = 32
"""Runs that come back at once when a device gets room."""
_DEVICES_NAMED = 16
_PURGE_FROM = 1_024
"""Runs set aside from which on those that have ended meanwhile are looked for."""


@dataclass(slots=True, eq=False, repr=False)
class Aside:
    """A run that waits for a device that is not there."""

    task: Task
    page: Page
    index: int
    counters: Counters
    announce: bool
    since_ms: int
    is_busy: bool
    """Whether there is such a device, and it has no room."""

    @property
    def waits(self) -> bool:
        """Whether it still does."""
        return self.task.aside.get(self.index) is self and self.index not in self.task.done


def _siblings(task: Task, page: Page) -> Iterator[tuple[Page, int]]:
    """The pages with other replicas of a page's calls, and how far their runs are from its own."""
    replica = page.header.replica
    for other in range(task.replicas):
        shift = (other - replica) * page.n
        sibling = task.pages.get(page.first + shift) if shift else None
        if sibling is not None:
            yield sibling, shift


class Siblings:
    """Says who may run what of calls with replicas, and keeps what nobody may."""

    __slots__ = (
        "_assignments",
        "_awaiting",
        "_backlog",
        "_count",
        "_devices",
        "_listening_since_ms",
        "_purge_at",
        "_settlement",
        "looks",
    )

    def __init__(
        self,
        backlog: Backlog,
        assignments: Assignments,
        settlement: Settlement,
        devices: dict[str, Device],
    ) -> None:
        self._backlog = backlog
        self._assignments = assignments
        self._settlement = settlement
        self._devices = devices
        self.looks: list[tuple[int, int, Aside]] = []
        """A heap of what is set aside, by when its time may be up: (milliseconds, count, run)."""
        self._awaiting: dict[str, dict[Aside, None]] = {}
        """Device -> runs that are set aside until it has room."""
        self._count = 0
        self._purge_at = _PURGE_FROM
        self._listening_since_ms = 0

    # -- who may ----------------------------------------------------------------------------

    def holders(self, task: Task, page: Page, index: int) -> dict[str, None]:
        """The devices that have, or answered, another replica of a run's call."""
        found: dict[str, None] = {}
        for sibling, shift in _siblings(task, page):
            run = index + shift
            answered = task.answered.get(run)
            if answered is not None:
                found[answered] = None
            elif run not in task.done:
                for opened in sibling.holding(run, run + 1):
                    if run not in opened.reported:
                        found[opened.device.name] = None
        return found

    def clear(self, pending: Pending, calls: int, device: Device) -> int:
        """How many of the next calls a device may take that may take the first."""
        task, low = pending.task, pending.low
        for sibling, shift in _siblings(task, pending.page):
            for opened in sibling.holding(low + shift, low + shift + calls):
                if opened.device is device:
                    calls = min(calls, max(1, opened.low - shift - low))
            for at in range(1, calls) if task.answered else ():
                if task.answered.get(low + shift + at) == device.name:
                    calls = at
                    break
        return calls

    # -- what nobody may --------------------------------------------------------------------

    def set_aside(
        self, queue: CallQueue, pending: Pending, busy: Iterable[str], now_ms: int
    ) -> None:
        """Every device with room bars the next run of a queue: the others go on without it.

        Args:
            queue: Whose first run it is.
            pending: The run, and what is behind it.
            busy: Devices that may take it, and have no room.
            now_ms: The time.
        """
        awaited = tuple(islice(busy, _DEVICES_AWAITED))
        aside = Aside(
            task=pending.task,
            page=pending.page,
            index=pending.low,
            counters=pending.counters,
            announce=pending.announce,
            since_ms=now_ms,
            is_busy=bool(awaited),
        )
        self._backlog.taken(queue, 1)
        aside.task.aside[aside.index] = aside
        for name in awaited:
            awaiting = self._awaiting.setdefault(name, {})
            if len(awaiting) >= _PURGE_FROM and len(awaiting).bit_count() == 1:
                # At every doubling, so that this costs each of them little.
                awaiting = self._awaiting[name] = {each: None for each in awaiting if each.waits}
            awaiting[aside] = None
        if len(self.looks) >= self._purge_at:
            self.looks = [look for look in self.looks if look[2].waits]
            heapq.heapify(self.looks)
            self._purge_at = max(_PURGE_FROM, 2 * len(self.looks))
        self._look_later(aside)

    def _look_later(self, aside: Aside) -> None:
        since_ms = max(aside.since_ms, self._listening_since_ms)
        self._count += 1
        due_ms = since_ms + aside.page.header.options.wait_ms
        heapq.heappush(self.looks, (due_ms, self._count, aside))

    def look_around(self, changed: Iterable[Device], now_ms: int) -> None:
        """Bring back what may go to devices that came or changed, or gave something back."""
        freed, self._assignments.freed = self._assignments.freed, []
        if not self.looks:
            return
        for opened in freed:
            task = opened.task
            for _sibling, shift in _siblings(task, opened.page) if task.aside else ():
                for run in range(opened.low + shift, opened.high + shift):
                    aside = task.aside.get(run)
                    if aside is not None:
                        self._offer(aside, opened.device, now_ms)
        for device in changed:
            refused: dict[bytes, str] = {}
            for _due_ms, _count, aside in list(self.looks):
                key = aside.page.queue_key
                if key not in refused:
                    refused[key] = why_not(device, aside.page.header)
                if not refused[key]:
                    self._offer(aside, device, now_ms)

    def has_room(self, device: Device, now_ms: int) -> None:
        """A device has room (again): what waits for that comes back, first what waits longest."""
        awaiting = self._awaiting.get(device.name)
        if not awaiting:
            return
        back: list[Aside] = []
        for aside in list(islice(awaiting, 4 * _BACK_AT_ONCE)):
            if len(back) >= _BACK_AT_ONCE:
                break
            del awaiting[aside]
            if aside.waits:
                back.append(aside)
        if not awaiting:
            del self._awaiting[device.name]
        # Each goes to the front.
        for aside in reversed(back):
            self._offer(aside, device, now_ms)

    def forget(self, device: Device) -> None:
        """A device is not known any more."""
        self._awaiting.pop(device.name, None)

    def _offer(self, aside: Aside, device: Device, now_ms: int) -> None:
        """Let a run wait for its turn again if this device may take it."""
        task, page, index = aside.task, aside.page, aside.index
        if (
            not aside.waits
            or why_not(device, page.header)
            or device.name in self.holders(task, page, index)
        ):
            return
        del task.aside[index]
        pending = Pending(
            task=task,
            page=page,
            low=index,
            high=index + 1,
            counters=aside.counters,
            announce=aside.announce,
        )
        self._backlog.add(pending, now_ms, front=True)

    # -- those whose time is up -------------------------------------------------------------

    def listen_from(self, now_ms: int) -> None:
        """Before this we heard no device: waiting for one does not count."""
        self._listening_since_ms = now_ms

    def check(self, now_ms: int) -> None:
        """End what has waited its time, as `looks` says."""
        while self.looks and self.looks[0][0] <= now_ms:
            aside = heapq.heappop(self.looks)[2]
            if not aside.waits:
                continue
            wait_ms = aside.page.header.options.wait_ms
            if max(aside.since_ms, self._listening_since_ms) + wait_ms > now_ms:
                self._look_later(aside)
                continue
            device = self._further(aside)
            if device is not None:
                self._offer(aside, device, now_ms)
                continue
            del aside.task.aside[aside.index]
            self._end(aside, wait_ms, now_ms)

    def _further(self, aside: Aside) -> Device | None:
        """A device for it, with room or without."""
        holders = self.holders(aside.task, aside.page, aside.index)
        for name, device in self._devices.items():
            if name not in holders and not why_not(device, aside.page.header):
                return device
        return None

    def _end(self, aside: Aside, wait_ms: int, now_ms: int) -> None:
        header = aside.page.header
        holders = self.holders(aside.task, aside.page, aside.index)
        reasons = {
            name: why_not(device, header) or (HAS_ANOTHER if name in holders else "yes")
            for name, device in islice(self._devices.items(), _DEVICES_NAMED)
        }
        known = "; ".join(f"{name}: {why}" for name, why in reasons.items())
        text = (
            f"no further device for {wait_ms / 1_000:g} s for replica {header.replica + 1} of "
            f"{header.options.replicas}, each of which runs on a device of its own ({known})"
        )
        ranges = ((aside.index, aside.index + 1),)
        self._settlement.make_outcomes(
            aside.task, ranges, "no-device", NO_DEVICE, text, now_ms, reasons=reasons
        )
