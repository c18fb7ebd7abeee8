"""Calls that no device may run: they wait their time, then end with a reason for each device."""

import heapq
from itertools import islice

from forage_controller.core.backlog import Backlog, CallQueue
from forage_controller.core.effects import Effects
from forage_controller.core.feasible import why_not
from forage_controller.core.fleet import Fleet
from forage_controller.core.settlement import Settlement
from forage_controller.core.state import Task
from forage_wire.system_errors import NO_DEVICE

__all__ = ["Starvation"]

_DEVICES_NAMED = 16
_ENDED_AT_ONCE = 65_536
"""Calls ended before a commit: the others follow it, so that a million take little memory."""
_LOOK_EVERY_MS = 250
"""A queue that gets new calls all the time is gone through no more often."""


class Starvation:
    """Ends calls for which no eligible device has been alive for their `wait_ms`."""

    def __init__(
        self, backlog: Backlog, settlement: Settlement, fleet: Fleet, effects: Effects
    ) -> None:
        self._backlog = backlog
        self._settlement = settlement
        self._fleet = fleet
        self._effects = effects
        self._listening_since_ms = 0
        self._looks: list[tuple[int, int, CallQueue]] = []
        self._count = 0
        self._committing = False

    def listen_from(self, now_ms: int) -> None:
        """Before this we heard no device: waiting for one does not count."""
        self._listening_since_ms = now_ms

    def next_wakeup_ms(self) -> int | None:
        """When the first call's time may be up."""
        self._take_news()
        return self._looks[0][0] if self._looks and not self._committing else None

    def check(self, now_ms: int) -> None:
        """End what has waited its time."""
        self._take_news()
        left = _ENDED_AT_ONCE
        while not self._committing and self._looks and self._looks[0][0] <= now_ms:
            queue = heapq.heappop(self._looks)[2]
            queue.starve_check_ms = None
            since_ms = self._since_ms(queue)
            if since_ms is None:
                continue
            if since_ms + queue.header.options.wait_ms <= now_ms:
                left = self._end_overdue(queue, left, now_ms)
            self._look_later(queue, now_ms + _LOOK_EVERY_MS if left > 0 else now_ms)
            if left <= 0:
                self._committing = True
                self._effects.after_commit(self._go_on)

    def _go_on(self, _now_ms: int) -> None:
        self._committing = False

    def _since_ms(self, queue: CallQueue) -> int | None:
        """Since when a queue has been without a device; None: it is not, or has no calls."""
        since_ms = self._backlog.starving.get(queue.requirement)
        if since_ms is None or not queue.pending:
            return None
        return max(since_ms, self._listening_since_ms)

    def _take_news(self) -> None:
        news, self._backlog.starving_news = self._backlog.starving_news, []
        for queue in news:
            self._look_later(queue, 0)

    def _look_later(self, queue: CallQueue, at_least_ms: int) -> None:
        """Look at a queue when the time of its calls that waited longest is up."""
        since_ms = self._since_ms(queue)
        if since_ms is None or queue.starve_check_ms is not None:
            return
        waits_since_ms = min(pending.since_ms for pending in queue.pending)
        due_ms = max(since_ms, waits_since_ms) + queue.header.options.wait_ms
        queue.starve_check_ms = max(due_ms, at_least_ms)
        self._count += 1
        heapq.heappush(self._looks, (queue.starve_check_ms, self._count, queue))

    def _end_overdue(self, queue: CallQueue, left: int, now_ms: int) -> int:
        wait_ms = queue.header.options.wait_ms
        reasons = {
            device.name: why_not(device, queue.header) or "yes"
            for device in islice(self._fleet.devices.values(), _DEVICES_NAMED)
        }
        known = "; ".join(f"{name}: {why}" for name, why in reasons.items())
        text = f"no eligible device for {wait_ms / 1_000:g} s ({known or 'no device is known'})"
        overdue: dict[str, tuple[Task, list[tuple[int, int]]]] = {}
        for pending in list(queue.pending):
            if pending.low >= pending.high or pending.since_ms + wait_ms > now_ms:
                continue
            if left <= 0:
                break
            left -= pending.high - pending.low
            ranges = overdue.setdefault(pending.task.id, (pending.task, []))[1]
            ranges.append((pending.low, pending.high))
            self._backlog.discard(pending.page, pending.low, pending.high)
        for task, ranges in overdue.values():
            self._settlement.make_outcomes(
                task, ranges, "no-device", NO_DEVICE, text, now_ms, reasons=reasons
            )
        return left
