"""Work of devices that are gone: what may run again goes to others, in front, and what may not ends.

A call that was reported started when its device was lost may be what killed it, so it goes
out again alone and announced, and is given up after a number of losses on several devices.
"""

from collections.abc import Callable

from forage_controller.core.assignments import Assignments
from forage_controller.core.backlog import Backlog, Pending
from forage_controller.core.later import Later
from forage_controller.core.leases import Leases
from forage_controller.core.ledger import Ledger
from forage_controller.core.settlement import Settlement
from forage_controller.core.state import Counters, Device, Open
from forage_wire.limits import LOSS_DEVICES_MIN, LOSSES_MAX
from forage_wire.messages import Header
from forage_wire.system_errors import DEVICE_LOST

__all__ = ["Losses"]


class Losses:
    """Decides what becomes of assignments whose device is gone.

    `spared(header, names)` says whether any other device than those may run such calls.
    """

    def __init__(
        self,
        backlog: Backlog,
        later: Later,
        leases: Leases,
        assignments: Assignments,
        ledger: Ledger,
        settlement: Settlement,
        spared: Callable[[Header, list[str]], bool],
    ) -> None:
        self._backlog = backlog
        self._later = later
        self._leases = leases
        self._assignments = assignments
        self._ledger = ledger
        self._settlement = settlement
        self._spared = spared

    def lose_all(self, device: Device, why: str, now_ms: int) -> None:
        """A device is gone with all that it held."""
        # The newest first, so that the oldest ends in front of the queue.
        for opened in reversed(list(device.assignments.values())):
            self.lose(opened, why, now_ms)

    def lose(self, opened: Open, why: str, now_ms: int) -> None:
        """An assignment's device is gone: what it may not have done goes to others, in front."""
        task = opened.task
        rest = self._assignments.unsettled(opened, opened.low, opened.end)
        free_ms = Leases.over_ms(opened) if rest else 0
        if free_ms > now_ms:
            self._leases.keep(opened.number, free_ms)
        self._assignments.close(opened, why, now_ms, is_kept=free_ms > now_ms)
        if not rest:
            self._ledger.release_if_over(task, now_ms)
            return
        if opened.page.header.options.at_most_once and opened.sent:
            text = (
                f"device {opened.device.name} was lost ({why}) and the call may have run there: "
                "with at_most_once it is not run again"
            )
            ranges = [(pending.low, pending.high) for pending in rest]
            self._settlement.make_outcomes(
                task, ranges, "lost", DEVICE_LOST, text, now_ms, device=opened.device.name
            )
            return
        waiting: list[Pending] = []
        # The first of what has not been reported may have been running, if it was there at all.
        maybe = rest[0].low if opened.sent else -1
        for pending in rest:
            waiting.extend(self._lost_pieces(opened, pending, maybe, why, now_ms))
        for pending in reversed(waiting):
            if free_ms > now_ms:
                self._later.add(pending, free_ms)
            else:
                self._backlog.add(pending, now_ms, front=True)
        self._ledger.dirty[task.id] = task

    def _lost_pieces(
        self, opened: Open, pending: Pending, maybe: int, why: str, now_ms: int
    ) -> list[Pending]:
        """Split off calls that were running, or may have been: they go out one at a time."""
        task = opened.task
        started, calls = task.started, range(pending.low, pending.high)
        singles = sorted(
            index
            for index in (calls if len(calls) < len(started) else started)
            if index in calls and started.get(index) == opened.number
        )
        if pending.low <= maybe < pending.high and maybe not in singles:
            singles = sorted([maybe, *singles])
        pieces: list[Pending] = []
        low = pending.low
        for index in singles:
            if low < index:
                pieces.append(_piece(pending, low, index, pending.counters, announce=False))
            low = index + 1
            counters = pending.counters
            if started.get(index) == opened.number:
                del started[index]
                counters = (counters[0], counters[1], counters[2] + 1)
                self._settlement.count(task, index, counters)
                where = task.lost_on.setdefault(index, [])
                where.append(opened.device.name)
                distinct = list(dict.fromkeys(where))
                if counters[2] >= LOSSES_MAX and (
                    len(distinct) >= LOSS_DEVICES_MIN
                    or not self._spared(opened.page.header, distinct)
                ):
                    text = (
                        f"the call was running on {', '.join(dict.fromkeys(where))} when they were "
                        f"lost, {counters[2]} times in all (last: {why}): it is not run again"
                    )
                    self._settlement.make_outcomes(
                        task,
                        ((index, index + 1),),
                        "lost",
                        DEVICE_LOST,
                        text,
                        now_ms,
                        device=opened.device.name,
                    )
                    continue
            pieces.append(_piece(pending, index, index + 1, counters, announce=True))
        if low < pending.high:
            pieces.append(_piece(pending, low, pending.high, pending.counters, announce=False))
        return pieces


def _piece(pending: Pending, low: int, high: int, counters: Counters, *, announce: bool) -> Pending:
    return Pending(
        task=pending.task,
        page=pending.page,
        low=low,
        high=high,
        counters=counters,
        announce=announce,
    )
