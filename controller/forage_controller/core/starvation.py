"""Calls that no device may run: they wait their time, then end with a reason for each device."""

from forage_controller.core.backlog import Backlog, CallQueue
from forage_controller.core.feasible import why_not
from forage_controller.core.fleet import Fleet
from forage_controller.core.ledger import Ledger
from forage_wire.system_errors import NO_DEVICE

__all__ = ["Starvation"]

_DEVICES_NAMED = 16


class Starvation:
    """Ends the calls of queues for which no eligible device has been alive for `wait_ms`."""

    def __init__(self, backlog: Backlog, ledger: Ledger, fleet: Fleet) -> None:
        self._backlog = backlog
        self._ledger = ledger
        self._fleet = fleet
        self._listening_since_ms = 0

    def listen_from(self, now_ms: int) -> None:
        """Before this we heard no device: waiting for one does not count."""
        self._listening_since_ms = now_ms

    def next_wakeup_ms(self) -> int | None:
        """When the first starved queue's time is up."""
        return min(map(self._until, self._backlog.starved.values()), default=None)

    def check(self, now_ms: int) -> None:
        """End what has waited its time."""
        for queue in list(self._backlog.starved.values()):
            if self._until(queue) <= now_ms:
                self._end(queue, now_ms)

    def _end(self, queue: CallQueue, now_ms: int) -> None:
        waited_s = queue.header.options.wait_ms / 1_000
        reasons = {
            device.name: why_not(device, queue.header) or "yes"
            for device in list(self._fleet.devices.values())[:_DEVICES_NAMED]
        }
        known = "; ".join(f"{name}: {why}" for name, why in reasons.items())
        text = f"no eligible device for {waited_s:g} s ({known or 'no device is known'})"
        while queue.pending:
            pending = self._backlog.drop_first(queue)
            self._ledger.make_outcomes(
                pending.task,
                ((pending.low, pending.high),),
                "no-device",
                NO_DEVICE,
                text,
                now_ms,
                reasons=reasons,
            )
        self._backlog.rest(queue)

    def _until(self, queue: CallQueue) -> int:
        since_ms = max(queue.starved_since_ms or 0, self._listening_since_ms)
        return since_ms + queue.header.options.wait_ms
