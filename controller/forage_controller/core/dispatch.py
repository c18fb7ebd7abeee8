"""Who gets what, and how much of it: slices from the backlog to devices with room.

Windows are of measured work: a slot has about 80 ms outstanding, in slices that start at one
call and double to about 40 ms, a share of the function's backlog so that all slots are busy
to the end. Nobody waits for all of that: a device lets a call of another client or function go first.
"""

import heapq
from collections.abc import Callable
from itertools import islice

from forage_controller.core.assignments import Assignments
from forage_controller.core.backlog import Backlog, CallQueue, Group, Pending, Requirement
from forage_controller.core.codes import CodeShelf
from forage_controller.core.config import CoreConfig
from forage_controller.core.eligibility import FREE, FULL, ROOMY, SPARE, Eligibility, Eligible
from forage_controller.core.pages import PageCache
from forage_controller.core.siblings import Siblings
from forage_controller.core.state import Checkpoint, Device, Open, Task
from forage_controller.core.stealing import Stealing
from forage_controller.core.stragglers import Stragglers
from forage_wire.codec import join_calls
from forage_wire.errors import DecodeError
from forage_wire.limits import ENVELOPE_BYTES, LIST_ITEMS_MAX

__all__ = ["Dispatcher", "slice_calls"]

_CANDIDATES = 64
"""Devices compared for one slice at most: the cost of a call must not grow with the fleet."""
_SLICES_AT_ONCE = 1_024
"""Slices given out in one batch: what comes in meanwhile is heard in between."""
_BLOCKED_AT_ONCE = 16
"""Queues of one group found to fit no device's room in one batch: the others come up later."""
_ASSIGNMENTS_MAX = LIST_ITEMS_MAX // 2
"""Outstanding on one device: its inventory names them all, and what is not acknowledged."""
_NOBODY: dict[str, None] = {}


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
    """Hands out slices to the devices with the least work for each slot.

    `unfit(pending, why, now_ms)` ends calls that can be cut into no slice, or whose arguments no
    eligible device can take. `drop_checkpoint(task, index, level, why)` makes a call begin anew.
    """

    def __init__(
        self,
        config: CoreConfig,
        backlog: Backlog,
        assignments: Assignments,
        codes: CodeShelf,
        pages: PageCache,
        siblings: Siblings,
        devices: dict[str, Device],
        beat_ms: Callable[[Device], int],
        unfit: Callable[[Pending, str, str, int], None],
        drop_checkpoint: Callable[[Task, int, str, str], None],
    ) -> None:
        self._config = config
        self._limits = config.limits
        self._backlog = backlog
        self._assignments = assignments
        self._codes = codes
        self._pages = pages
        self._siblings = siblings
        self._devices = devices
        self._beat_ms = beat_ms
        self._unfit = unfit
        self._drop_checkpoint = drop_checkpoint
        self._index = Eligibility()
        self._stealing = Stealing(config.limits, assignments, siblings, self.work_us)
        self._stragglers = Stragglers(assignments, backlog, devices, self._clone)
        self._changed: dict[str, Device] = {}
        self._beyond_us: dict[str, int] = {}
        """By how much what a device runs exceeds its estimate, in this batch."""
        self._given: Device | None = None
        """Who was given the last slice: what room is left there is not looked at yet."""
        self._resting: list[tuple[int, str]] = []
        self._again_ms: int | None = None

    def fleet_changed(self, device: Device) -> None:
        """What a device may run has changed: it is looked at with the next `schedule`."""
        self._changed[device.name] = device

    def forget(self, device: Device) -> None:
        """A device is not known any more; nothing was open on it."""
        self._changed.pop(device.name, None)
        self._index.changed(device)
        self._index.forget(device)
        self._stealing.forget(device)
        self._siblings.forget(device)

    def next_wakeup_ms(self) -> int | None:
        """When `schedule` has something to do without an event."""
        dues = [
            self._again_ms,
            self._stealing.next_wakeup_ms(),
            self._stragglers.next_wakeup_ms(),
        ]
        if self._resting:
            dues.append(self._resting[0][0])
        return min((due for due in dues if due is not None), default=None)

    # -- room -------------------------------------------------------------------------------

    def work_us(self, device: Device, now_ms: int) -> int:
        """Estimated work outstanding; a call that runs longer than expected counts as its age."""
        work = device.work_us
        for opened in islice(device.assignments.values(), device.slots):
            work += max(0, (now_ms - opened.assigned_ms) * 1_000 - opened.work_us)
        return work

    def _load_us(self, device: Device, now_ms: int) -> int:
        """The same, where what runs fills no more than the window of the slot that runs it.

        A call of an hour keeps one slot busy; the others are to have their work all the same.
        """
        beyond_us = self._beyond_us.get(device.name)
        if beyond_us is None:
            beyond_us, most = 0, self._limits.slot_work_us
            slots = device.slots
            for opened in islice(device.assignments.values(), slots):
                known = max(opened.work_us, (now_ms - opened.assigned_ms) * 1_000)
                beyond_us += min(known, most) - opened.work_us
            if len(device.assignments) >= slots:
                # What is given out now runs behind those.
                self._beyond_us[device.name] = beyond_us
        return device.work_us + beyond_us

    def _room(self, device: Device, now_ms: int) -> int:
        capabilities = device.capabilities
        if (
            capabilities is None
            or device.link is None
            or not device.verified
            or device.state != "online"
            or device.verdict == "dead"
            or not device.link.has_room
        ):
            return FULL
        if now_ms < device.refusing_until_ms:
            heapq.heappush(self._resting, (device.refusing_until_ms, device.name))
            return FULL
        if capabilities.profile == "mcu":
            # One call at a time, and the next only after the acknowledgement.
            return FREE if not device.assignments and not device.uncommitted else FULL
        if capabilities.queue_bytes_max and device.work_bytes >= capabilities.queue_bytes_max:
            return FULL
        slots, slices = capabilities.slots, device.slices
        if slices < slots:
            return FREE
        if slices >= _ASSIGNMENTS_MAX:
            return FULL
        load_us = self._load_us(device, now_ms)
        most, most_us = slots * self._limits.slot_slices, slots * self._limits.slot_work_us
        if slices < most and load_us < most_us:
            return ROOMY
        return SPARE if slices < 2 * most and load_us < 2 * most_us else FULL

    def _look_at_room(self, device: Device, now_ms: int) -> int:
        room = self._room(device, now_ms)
        self._index.set_room(device, room)
        self._stealing.room_changed(device, room == FREE, now_ms)
        return room

    def _look_at_given(self, now_ms: int) -> None:
        """The window of whoever was given the last slice may be full: the next one is to know."""
        device, self._given = self._given, None
        if device is not None:
            self._index.set_room(device, self._room(device, now_ms))

    def _look_around(self, now_ms: int) -> None:
        """Take in what has changed since the last time."""
        if self._assignments.freed or self._changed:
            self._siblings.look_around(self._changed.values(), now_ms)
        while self._resting and self._resting[0][0] <= now_ms:
            device = self._devices.get(heapq.heappop(self._resting)[1])
            if device is not None:
                self._assignments.touched[device.name] = device
        if self._changed:
            changed, self._changed = self._changed, {}
            for device in changed.values():
                self._assignments.touched[device.name] = device
                for requirement in self._index.changed(device):
                    self._feed_or_starve(requirement, now_ms)
        if self._backlog.fresh:
            fresh, self._backlog.fresh = self._backlog.fresh, {}
            for requirement, header in fresh.items():
                self._index.add(requirement, header, self._devices)
                self._feed_or_starve(requirement, now_ms)
            self._index.forget_unused(
                {each: None for groups in self._backlog.groups.values() for each in groups}
            )
        touched, self._assignments.touched = self._assignments.touched, {}
        for device in touched.values():
            if self._look_at_room(device, now_ms) != FULL:
                self._siblings.has_room(device, now_ms)

    def _feed_or_starve(self, requirement: Requirement, now_ms: int) -> None:
        if self._index[requirement].devices:
            self._backlog.revive(requirement)
        elif any(requirement in groups for groups in self._backlog.groups.values()):
            self._backlog.starve(requirement, now_ms)

    # -- scheduling -------------------------------------------------------------------------

    def schedule(self, now_ms: int) -> None:
        """Give out what can be given out now."""
        self._again_ms = None
        self._beyond_us.clear()
        self._look_around(now_ms)
        left = _SLICES_AT_ONCE
        for priority in list(self._backlog.priorities):
            if self._index.roomy:
                left = self._take_turns(priority, left, now_ms)
            if self._index.spare:
                left = self._beyond_the_window(priority, left, now_ms)
        if left <= 0:
            self._again_ms = now_ms
        self._assignments.send()
        # (With it at whoever was given the last slice.)
        self._given = None
        self._look_around(now_ms)
        self._stealing.steal(now_ms)
        self._stragglers.look(self._stealing.free, now_ms)

    def _clone(self, opened: Open, index: int, device: Device, now_ms: int) -> Open | None:
        """Let a device make a second attempt at a call; None where it cannot now."""
        task, page = opened.task, opened.page
        items = self._pages.items(task, page)
        if items is None:
            # Being read: another time.
            return None
        calls = join_calls(items[index - page.first : index - page.first + 1])
        pending = Pending(
            task=task,
            page=page,
            low=index,
            high=index + 1,
            counters=task.counters.get(index, opened.counters),
        )
        queue = self._backlog.queue_of(page)
        if self._why_unfit(device, pending, len(calls), device.work_bytes):
            return None
        if not self._hand_code(queue, pending, device):
            return None
        beat_ms = self._beat_ms(device)
        checkpoint = _checkpoint_for(device, pending)
        made = self._assignments.assign(
            pending, 1, calls, device, beat_ms, now_ms, checkpoint, is_clone=True
        )
        opened.has_clone = True
        self._assignments.send()
        self._look_at_room(device, now_ms)
        return made

    def _take_turns(self, priority: int, left: int, now_ms: int) -> int:
        """Clients and functions take turns while a device has room; how many slices are left."""
        groups, roomy = self._backlog.groups.get(priority), self._index.roomy
        if not groups:
            return left
        ready = [
            (self._backlog.last_turn(groups[requirement]), at, requirement)
            for at, requirement in enumerate(_in_both(groups, roomy))
        ]
        heapq.heapify(ready)
        blocked: dict[Requirement, int] = {}
        while ready and left > 0:
            self._look_at_given(now_ms)
            _last, at, requirement = heapq.heappop(ready)
            group, entry = groups.get(requirement), roomy.get(requirement)
            queue = None if group is None else self._backlog.next_of(group)
            if group is None or entry is None or queue is None:
                continue
            if self._place(queue, entry, entry.roomy, now_ms):
                left -= 1
            else:
                blocked[requirement] = blocked.get(requirement, 0) + 1
                if blocked[requirement] > _BLOCKED_AT_ONCE:
                    continue
            if requirement in groups:
                self._backlog.had_turn(queue)
                heapq.heappush(ready, (self._backlog.last_turn(group), at, requirement))
        return left

    def _beyond_the_window(self, priority: int, left: int, now_ms: int) -> int:
        """One slice for each function with nothing running, though every window is full.

        Else a single call behind another's million waits for all of them.
        """
        groups, spare = self._backlog.groups.get(priority), self._index.spare
        if not groups:
            return left
        ready = [
            (self._backlog.last_turn(groups[requirement], unserved=True), at, requirement)
            for at, requirement in enumerate(_in_both(groups, spare))
            if groups[requirement].unserved
        ]
        heapq.heapify(ready)
        while ready and left > 0:
            self._look_at_given(now_ms)
            _last, at, requirement = heapq.heappop(ready)
            group, entry = groups.get(requirement), spare.get(requirement)
            if group is None or entry is None or not group.unserved:
                continue
            queue = next(iter(group.unserved.values()))
            if self._place(queue, entry, entry.spare, now_ms):
                left -= 1
                self._backlog.had_turn(queue)
                last = self._backlog.last_turn(group, unserved=True)
                heapq.heappush(ready, (last, at, requirement))
        return left

    def _place(
        self, queue: CallQueue, entry: Eligible, devices: dict[str, Device], now_ms: int
    ) -> bool:
        """Get on with a queue: give one slice of it to a device, or find that it has to wait.

        Returns False where none of the devices has room for its next call.
        """
        pending = self._backlog.first(queue)
        if pending is None:
            return True
        try:
            items = self._pages.items(pending.task, pending.page)
        except DecodeError as error:
            self._unfit(self._backlog.drop_first(queue), "unreadable", str(error), now_ms)
            return True
        if items is None:
            if isinstance(queue.header.function, bytes):
                # Fetched meanwhile, if it is not here either.
                self._codes.get(queue.header.function, pending.task.client)
            self._backlog.park(queue, (pending.task.id, pending.page.first))
            return True
        at = pending.low - pending.page.first
        # (A page of one call is that call as it goes out.)
        whole = pending.page.calls if pending.page.n == 1 else None
        first = join_calls(items[at : at + 1]) if whole is None else whole
        barred = _NOBODY
        if pending.task.replicas > 1:
            barred = self._siblings.holders(pending.task, pending.page, pending.low)
        device = self._best(pending, len(first), devices, barred, now_ms)
        if device is None and barred:
            busy = self._not_barred(pending, len(first), entry, barred)
            if not busy or any(name in barred for name in islice(devices, _CANDIDATES)):
                self._siblings.set_aside(queue, pending, busy, now_ms)
                return True
        if device is None:
            return self._fits_nowhere(queue, pending, len(first), entry, now_ms)
        if not self._hand_code(queue, pending, device):
            return True
        checkpoint: Checkpoint | None = None
        if pending.task.checkpoints:
            checkpoint = _checkpoint_for(device, pending)
            if checkpoint is None:
                self._begin_own_chain(device, pending)
        if checkpoint is None:
            calls, n = self._cut(queue, pending, items, first, device, entry)
        else:
            calls, n = first, 1
        beat_ms = self._beat_ms(device)
        self._assignments.assign(pending, n, calls, device, beat_ms, now_ms, checkpoint)
        self._given = device
        return True

    def _begin_own_chain(self, device: Device, pending: Pending) -> None:
        """A replica leaves another device's state behind: its own would be thought the older ones."""
        task, index = pending.task, pending.low
        former = (task.checkpoints or {}).get(index)
        if task.replicas > 1 and former is not None and former.device != device.name:
            why = f"replicas go on from no other device's state, and this is {former.device}'s"
            self._drop_checkpoint(task, index, "info", why)

    def _hand_code(self, queue: CallQueue, pending: Pending, device: Device) -> bool:
        """See to it that a device has a function's code before its calls."""
        function = queue.header.function
        if isinstance(function, bytes) and function not in device.codes:
            code = self._codes.get(function, pending.task.client)
            if code is None:
                self._backlog.park(queue, function)
                return False
            self._codes.hand_to(device, code)
        return True

    def _not_barred(
        self, pending: Pending, call_bytes: int, entry: Eligible, barred: dict[str, None]
    ) -> list[str]:
        """The first eligible devices that may take a call when they have room for it."""
        found = (
            name
            for name, device in entry.devices.items()
            if name not in barred and not self._why_unfit(device, pending, call_bytes, 0)
        )
        return list(islice(found, _CANDIDATES))

    def _best(
        self,
        pending: Pending,
        call_bytes: int,
        devices: dict[str, Device],
        barred: dict[str, None],
        now_ms: int,
    ) -> Device | None:
        """The device with the least work for each slot.

        Where that is equal, one with a free slot: what keeps the others' busy may be unknown. Then
        the stronger one.
        """
        best: Device | None = None
        best_rank: tuple[float, bool, float] | None = None
        for device in islice(devices.values(), _CANDIDATES):
            capabilities = device.capabilities
            assert capabilities is not None
            if device.name in barred:
                continue
            if self._why_unfit(device, pending, call_bytes, device.work_bytes):
                continue
            rank = (
                self._load_us(device, now_ms) / max(1, device.slots),
                device.slices >= device.slots,
                -float(capabilities.strength),
            )
            if best_rank is None or rank < best_rank:
                best, best_rank = device, rank
        return best

    def _why_unfit(self, device: Device, pending: Pending, call_bytes: int, held_bytes: int) -> str:
        """Why a device cannot take a call of this size beside what it holds; "" if it can."""
        capabilities = device.capabilities
        assert capabilities is not None
        if capabilities.profile == "mcu":
            needed = call_bytes + len(pending.page.header_bytes) + ENVELOPE_BYTES
            if needed > capabilities.packet_bytes_max:
                return f"its packets hold {capabilities.packet_bytes_max} bytes, not {needed}"
        holds = capabilities.queue_bytes_max
        if pending.task.checkpoints:
            checkpoint = _checkpoint_for(device, pending)
            call_bytes += 0 if checkpoint is None else len(checkpoint.data)
        if holds and held_bytes + call_bytes > holds:
            return f"it holds {holds} bytes of arguments at a time, and the call has {call_bytes}"
        return ""

    def _fits_nowhere(
        self, queue: CallQueue, pending: Pending, call_bytes: int, entry: Eligible, now_ms: int
    ) -> bool:
        """No device with room can take a call: does it wait for one, or is there none at all?"""
        reasons: dict[str, str] = {}
        for device in entry.devices.values():
            why = self._why_unfit(device, pending, call_bytes, 0)
            if not why:
                return False
            if len(reasons) < _CANDIDATES:
                reasons[device.name] = why
        if pending.task.checkpoints and pending.low in pending.task.checkpoints:
            # Only its state may be too large for all of them: then it begins anew.
            why = "no device has room for its checkpoint"
            self._drop_checkpoint(pending.task, pending.low, "warning", why)
            return True
        first = Pending(task=pending.task, page=pending.page, low=pending.low, high=pending.low + 1)
        self._backlog.taken(queue, 1)
        why = "; ".join(f"{name}: {why}" for name, why in reasons.items())
        self._unfit(first, "no-device", why, now_ms)
        return True

    def _cut(
        self,
        queue: CallQueue,
        pending: Pending,
        items: list[object],
        first: bytes,
        device: Device,
        entry: Eligible,
    ) -> tuple[bytes, int]:
        """The calls of the next slice for a device, and how many they are."""
        capabilities = device.capabilities
        assert capabilities is not None
        once = queue.header.options.at_most_once
        if (
            pending.high - pending.low == 1
            or pending.announce
            or once
            or capabilities.profile == "mcu"
        ):
            return first, 1
        n = slice_calls(
            growth=queue.measure.growth,
            mean_us=queue.measure.mean_us,
            backlog=queue.waiting,
            slots=entry.slots,
            slice_us=self._limits.slice_us,
            slice_us_min=self._limits.slice_us_min,
        )
        n = min(n, pending.high - pending.low)
        if pending.task.replicas > 1:
            n = self._siblings.clear(pending, n, device)
        if n == 1:
            return first, 1
        n = pending.task.done.missing(pending.low, pending.low + n)[0][1] - pending.low
        at = pending.low - pending.page.first
        packet = min(capabilities.packet_bytes_max, self._config.packet_bytes_max)
        room = packet - ENVELOPE_BYTES - len(pending.page.header_bytes)
        if capabilities.queue_bytes_max:
            room = min(room, capabilities.queue_bytes_max - device.work_bytes)
        calls = join_calls(items[at : at + n])
        while len(calls) > room and n > 1:
            n = max(1, min(n - 1, n * room // len(calls)))
            calls = join_calls(items[at : at + n])
        return calls, n


def _checkpoint_for(device: Device, pending: Pending) -> Checkpoint | None:
    """What a device would be given for the first call to go on from.

    A microcontroller has no use for it, and begins anew. So does a replica on another device: a state
    can be wrong as well as an outcome, and one device is to have one say.
    """
    task, capabilities = pending.task, device.capabilities
    if task.checkpoints is None or (capabilities is not None and capabilities.profile == "mcu"):
        return None
    kept = task.checkpoints.get(pending.low)
    if kept is not None and task.replicas > 1 and kept.device != device.name:
        return None
    return kept


def _in_both(
    groups: dict[Requirement, Group], entries: dict[Requirement, Eligible]
) -> list[Requirement]:
    """The requirements that calls wait with and that a device with room meets."""
    if len(groups) <= len(entries):
        return [requirement for requirement in groups if requirement in entries]
    return [requirement for requirement in entries if requirement in groups]
