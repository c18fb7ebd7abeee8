"""Who gets what, and how much of it: slices from the backlog to devices with room.

Windows are of measured work: a slot has about 40 ms outstanding, in slices that start at one
call and double to about 10 ms, a share of the function's backlog so that all slots are busy
to the end. A device that stands idle takes unstarted work back from another.
"""

from collections.abc import Callable

from forage_controller.core.assignments import Assignments
from forage_controller.core.backlog import Backlog, CallQueue, Pending
from forage_controller.core.codes import CodeShelf
from forage_controller.core.config import CoreConfig
from forage_controller.core.feasible import why_not
from forage_controller.core.pages import PageCache
from forage_controller.core.state import Device, Open
from forage_wire.codec import join_calls
from forage_wire.errors import DecodeError
from forage_wire.limits import ENVELOPE_BYTES

__all__ = ["Dispatcher", "slice_calls"]

_CANDIDATES = 64
"""Devices compared for one slice at most: the cost of a call must not grow with the fleet."""
_TURNS = 512
"""Queues looked at in one batch."""


def slice_calls(
    *,
    growth: int,
    mean_us: float | None,
    backlog: int,
    slots: int,
    slice_us: int,
    slice_us_min: int,
) -> int:
    """How many calls the next slice of a function has, before page and packet cut it.

    Args:
        growth: The doubling limit (1, 2, 4, ...).
        mean_us: Measured time of a call; None: one call.
        backlog: Calls of the function that wait.
        slots: Slots that share them.
        slice_us: Work in a slice at most.
        slice_us_min: Work in a slice at least.
    """
    if mean_us is None:
        return 1
    mean_us = max(mean_us, 0.05)
    share = -(-backlog // max(1, 2 * slots))
    least = int(slice_us_min / mean_us)
    return max(1, min(growth, int(slice_us / mean_us), max(share, least)))


class Dispatcher:
    """Hands out slices to the devices with the least work for each slot."""

    def __init__(
        self,
        config: CoreConfig,
        backlog: Backlog,
        assignments: Assignments,
        codes: CodeShelf,
        pages: PageCache,
        devices: dict[str, Device],
        detect_ms: Callable[[Device], int],
        unreadable: Callable[[Pending, str, int], None],
    ) -> None:
        self._config = config
        self._limits = config.limits
        self._backlog = backlog
        self._assignments = assignments
        self._codes = codes
        self._pages = pages
        self._devices = devices
        self._detect_ms = detect_ms
        self._unreadable = unreadable
        self._roomy: dict[str, Device] = {}
        self._free: dict[str, Device] = {}
        self._refusing: dict[str, Device] = {}
        """Those that said they are full: looked at again when their time is over."""
        self._version = 0
        self._eligible: dict[tuple[object, ...], tuple[int, list[Device]]] = {}
        self._again_ms: int | None = None

    def fleet_changed(self, device: Device) -> None:
        """What a device may run has changed: look again at what could run nowhere."""
        self._version += 1
        self._assignments.touched[device.name] = device
        for queue in list(self._backlog.starved.values()):
            if not why_not(device, queue.header):
                self._backlog.revive(queue)

    def eligible(self, queue: CallQueue) -> list[Device]:
        """The devices that may run a queue's calls, busy or not."""
        known = self._eligible.get(queue.requirement)
        if known is not None and known[0] == self._version:
            return known[1]
        found = [device for device in self._devices.values() if not why_not(device, queue.header)]
        if len(self._eligible) >= 1_024:
            self._eligible.clear()
        self._eligible[queue.requirement] = (self._version, found)
        return found

    def next_wakeup_ms(self) -> int | None:
        """When `schedule` has something to do without an event."""
        due = self._again_ms
        for device in self._refusing.values():
            due = device.refusing_until_ms if due is None else min(due, device.refusing_until_ms)
        if self._free and self._assignments.busy:
            steal = min(
                (device.free_since_ms or 0) + self._limits.steal_after_ms
                for device in self._free.values()
            )
            due = steal if due is None else min(due, steal)
        return due

    # -- room -------------------------------------------------------------------------------

    def _work_us(self, device: Device, now_ms: int) -> int:
        """Estimated work outstanding; a call that runs longer than expected counts as its age."""
        work = device.work_us
        heads = device.slots
        for opened in device.assignments.values():
            if heads <= 0:
                break
            heads -= 1
            work += max(0, (now_ms - opened.assigned_ms) * 1_000 - opened.work_us)
        return work

    def _has_room(self, device: Device, now_ms: int, *, windows: int = 1) -> bool:
        capabilities = device.capabilities
        if (
            capabilities is None
            or device.link is None
            or not device.verified
            or device.state != "online"
            or device.verdict == "dead"
            or not device.link.has_room
            or now_ms < device.refusing_until_ms
        ):
            return False
        if capabilities.profile == "mcu":
            return not device.assignments and not device.uncommitted
        if capabilities.queue_bytes_max and device.work_bytes >= capabilities.queue_bytes_max:
            return False
        limits = self._limits
        slots = capabilities.slots * windows
        return (
            len(device.assignments) < slots * limits.slot_slices
            and self._work_us(device, now_ms) < slots * limits.slot_work_us
        )

    def _look_at_touched(self, now_ms: int) -> None:
        touched, self._assignments.touched = self._assignments.touched, {}
        for name, device in list(self._refusing.items()):
            if now_ms >= device.refusing_until_ms:
                del self._refusing[name]
                touched[name] = device
        for name, device in touched.items():
            if now_ms < device.refusing_until_ms:
                self._refusing[name] = device
            if self._has_room(device, now_ms):
                self._roomy[name] = device
            else:
                self._roomy.pop(name, None)
            free = name in self._roomy and len(device.assignments) < device.slots
            if free and device.free_since_ms is None:
                device.free_since_ms = now_ms
                self._free[name] = device
            elif not free:
                device.free_since_ms = None
                self._free.pop(name, None)

    # -- scheduling -------------------------------------------------------------------------

    def schedule(self, now_ms: int) -> None:
        """Give out what can be given out now."""
        self._again_ms = None
        self._look_at_touched(now_ms)
        turns = self._backlog.turns(_TURNS)
        if len(turns) == _TURNS and self._roomy:
            self._again_ms = now_ms + 1
        while turns and self._roomy:
            going: list[CallQueue] = []
            for queue in turns:
                if self._place(queue, now_ms):
                    going.append(queue)
                if not self._roomy:
                    break
            turns = going
        if not self._roomy:
            self._set_aside_starved(turns, now_ms)
            self._beyond_the_window(now_ms)
        self._assignments.send()
        self._look_at_touched(now_ms)
        self._steal(now_ms)

    def _place(self, queue: CallQueue, now_ms: int) -> bool:
        """Give one slice of a queue to the best device with room; whether it has more to place."""
        if not self._skip_done(queue):
            self._backlog.rest(queue)
            return False
        eligible = self.eligible(queue)
        if not eligible:
            self._backlog.starve(queue, now_ms)
            return False
        device = self._best(queue, eligible, now_ms)
        placed = device is not None and self._assign(queue, device, now_ms)
        self._backlog.had_turn(queue)
        return placed and bool(queue.pending)

    def _set_aside_starved(self, turns: list[CallQueue], now_ms: int) -> None:
        """No device has room; for some queues none ever will have, and their time runs from now."""
        for queue in turns:
            if not self._skip_done(queue):
                self._backlog.rest(queue)
            elif not self.eligible(queue):
                self._backlog.starve(queue, now_ms)

    def _best(self, queue: CallQueue, eligible: list[Device], now_ms: int) -> Device | None:
        """The device with the least work for each slot; the stronger one where that is equal."""
        best: Device | None = None
        best_rank: tuple[float, float] | None = None
        compared = 0
        once = queue.header.options.at_most_once
        by_eligibility = len(eligible) <= len(self._roomy)
        for device in eligible if by_eligibility else self._roomy.values():
            if by_eligibility and device.name not in self._roomy:
                continue
            if not by_eligibility and why_not(device, queue.header):
                continue
            if once and len(device.assignments) >= device.slots:
                continue
            strength = device.capabilities.strength if device.capabilities else 0
            rank = (self._work_us(device, now_ms) / max(1, device.slots), -strength)
            if best_rank is None or rank < best_rank:
                best, best_rank = device, rank
            compared += 1
            if compared >= _CANDIDATES:
                break
        return best

    def _beyond_the_window(self, now_ms: int) -> None:
        """One slice for each function with nothing running, though every window is full.

        Else a single call behind another's million waits for all of them.
        """
        for queue in self._backlog.turns(_CANDIDATES):
            if queue.open or queue.header.options.at_most_once or not self._skip_done(queue):
                continue
            best: Device | None = None
            least = 0.0
            for device in self.eligible(queue)[:_CANDIDATES]:
                if device.capabilities is None or device.capabilities.profile == "mcu":
                    continue
                if not self._has_room(device, now_ms, windows=2):
                    continue
                work = self._work_us(device, now_ms) / max(1, device.slots)
                if best is None or work < least:
                    best, least = device, work
            if best is not None and self._assign(queue, best, now_ms):
                self._backlog.had_turn(queue)

    def _skip_done(self, queue: CallQueue) -> bool:
        """Leave out calls that ended while they waited; whether anything is left."""
        while queue.pending:
            first = queue.pending[0]
            done = first.task.done
            if not done.count:
                return True
            gaps = done.missing(first.low, first.high)
            if not gaps:
                self._backlog.drop_first(queue)
                continue
            if gaps[0][0] > first.low:
                self._backlog.taken(queue, gaps[0][0] - first.low)
            return True
        return False

    def _assign(self, queue: CallQueue, device: Device, now_ms: int) -> bool:
        """Give a slice of a queue's first calls to a device; False where code or calls lack."""
        pending = queue.pending[0]
        function = queue.header.function
        if isinstance(function, bytes) and function not in device.codes:
            code = self._codes.get(function, pending.task.client, now_ms)
            if code is None:
                return False
            self._codes.hand_to(device, code)
        try:
            items = self._pages.items(pending.task, pending.page)
        except DecodeError as error:
            self._unreadable(self._backlog.drop_first(queue), str(error), now_ms)
            return True
        if items is None:
            return False
        calls, n = self._cut(queue, pending, items, device)
        beat_ms = max(10, self._detect_ms(device) // 4)
        self._assignments.assign(pending, n, calls, device, beat_ms, now_ms)
        if not self._has_room(device, now_ms):
            self._roomy.pop(device.name, None)
        return True

    def _cut(
        self, queue: CallQueue, pending: Pending, items: list[object], device: Device
    ) -> tuple[bytes, int]:
        capabilities = device.capabilities
        assert capabilities is not None
        once = queue.header.options.at_most_once
        n = 1
        if not (pending.announce or once or capabilities.profile == "mcu"):
            n = slice_calls(
                growth=queue.measure.growth,
                mean_us=queue.measure.mean_us,
                backlog=queue.waiting,
                slots=sum(peer.slots for peer in self.eligible(queue)[:_CANDIDATES]),
                slice_us=self._limits.slice_us,
                slice_us_min=self._limits.slice_us_min,
            )
        n = min(n, pending.high - pending.low)
        done = pending.task.done
        if n > 1 and done.count:
            n = done.missing(pending.low, pending.low + n)[0][1] - pending.low
        at = pending.low - pending.page.first
        packet = min(capabilities.packet_bytes_max, self._config.packet_bytes_max)
        room = packet - ENVELOPE_BYTES - len(pending.page.header_bytes)
        calls = join_calls(items[at : at + n])
        while len(calls) > room and n > 1:
            n = max(1, min(n - 1, n * room // len(calls)))
            calls = join_calls(items[at : at + n])
        return calls, n

    # -- taking back ------------------------------------------------------------------------

    def _steal(self, now_ms: int) -> None:
        """Let devices that have had a free slot for a while take unstarted work from others."""
        if not self._free or not self._assignments.busy:
            return
        for thief in list(self._free.values()):
            if now_ms - (thief.free_since_ms or 0) < self._limits.steal_after_ms:
                continue
            thief.free_since_ms = now_ms
            found = self._victim(thief, now_ms)
            if found is not None:
                opened, high = found
                self._assignments.ask_trim(opened, high)

    def _victim(self, thief: Device, now_ms: int) -> tuple[Open, int] | None:
        """The assignment to take back from the device with the most work, and from where on."""
        best: tuple[Open, int] | None = None
        most = 0.0
        compared = 0
        for device in self._assignments.busy.values():
            if device is thief:
                continue
            compared += 1
            if compared > _CANDIDATES:
                break
            work = self._work_us(device, now_ms) / max(1, device.slots)
            if work <= most:
                continue
            found = self._unstarted(device, thief)
            if found is not None:
                best, most = found, work
        return best

    def _unstarted(self, device: Device, thief: Device) -> tuple[Open, int] | None:
        """What of a device's work surely waits: its newest slice, or half of a running tail."""
        if device.link is None or not device.link.has_room:
            return None
        rows = list(device.assignments.values())
        for opened in reversed(rows[device.slots :]):
            if opened.trim_to is None and not why_not(thief, opened.page.header):
                return opened, opened.low
        for opened in rows[: device.slots]:
            if opened.trim_to is not None or opened.left < 2:
                continue
            if opened.work_us < 1_000 * self._limits.steal_after_ms:
                continue
            if not why_not(thief, opened.page.header):
                return opened, opened.end - opened.left // 2
        return None
