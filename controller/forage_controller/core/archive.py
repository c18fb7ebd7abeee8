"""Outcomes read back from the archive, for whoever lacks them: a little at a time for each client.

A client may want a million outcomes (it attached to a task, or was away). They are read as fast
as it takes them, and no faster: what it has not seen yet is in the store, not in memory.
"""

from collections.abc import Iterable

from forage_controller.core.effects import Effects
from forage_controller.core.ledger import Ledger
from forage_controller.core.operations import LoadOutcomes, OutcomesLoaded, StoredOutcomes
from forage_controller.core.state import Client, Task
from forage_wire.limits import RANGES_MAX
from forage_wire.messages import Outcomes, OutcomeSet
from forage_wire.ranges import RangeSet
from forage_wire.system_errors import DATA_LOST, system_error

__all__ = ["Archive", "in_messages"]

_READ_BYTES = 2 * 1024 * 1024
"""About as much is asked of the store at a time, going by what the task's outcomes take."""
_READ_CALLS = 65_536
_WAITING_MAX = 4
"""Messages that may wait for a client's window when more is read for it."""
_MESSAGE_BYTES = 1024 * 1024
"""Outcomes in one message, unless a single set is larger."""
_MESSAGE_SETS = 1_024
_LOST_AT_ONCE = 4_096


def in_messages(sets: Iterable[OutcomeSet]) -> Iterable[Outcomes]:
    """Sets in as few messages as their limits allow."""
    found: list[OutcomeSet] = []
    size = 0
    for each in sets:
        each_bytes = len(each.data) + 32 * len(each.errors) + 256
        if found and (size + each_bytes > _MESSAGE_BYTES or len(found) == _MESSAGE_SETS):
            yield Outcomes(sets=tuple(found))
            found, size = [], 0
        found.append(each)
        size += each_bytes
    if found:
        yield Outcomes(sets=tuple(found))


class Archive:
    """Who wants what of it, and what is being read."""

    __slots__ = ("_effects", "_ledger", "_request", "_requests")

    def __init__(self, effects: Effects, ledger: Ledger) -> None:
        self._effects = effects
        self._ledger = ledger
        self._requests: dict[int, tuple[Client, RangeSet]] = {}
        self._request = 0

    def want(self, client: Client, task: Task, ranges: Iterable[tuple[int, int]]) -> None:
        """A client lacks these outcomes: it gets those that are committed, bit by bit.

        What somebody else collected before it was committed here is in no archive: it is lost.
        """
        wanted, lost = RangeSet(), RangeSet()
        for low, high in ranges:
            wanted.update(task.committed.common(low, high))
            for start, end in task.collected.common(low, high):
                lost.update(task.settled.missing(start, end))
        if lost and client.link is not None:
            for message in in_messages(_lost(task.id, lost)):
                client.link.send(message)
        if wanted:
            client.wanted.setdefault(task.id, RangeSet()).update(wanted)
            self.go_on(client)

    def forget(self, client: Client) -> None:
        """A client's link is over: it says again what it lacks."""
        client.wanted = {}
        self._requests.pop(client.reading, None)
        client.reading = 0

    def go_on(self, client: Client) -> None:
        """Read more for a client that has room for it."""
        while client.wanted and not client.reading and client.link is not None:
            if client.link.waiting > _WAITING_MAX:
                return
            task_id = next(iter(client.wanted))
            task = self._ledger.tasks.get(task_id)
            wanted = client.wanted.pop(task_id)
            if task is None:
                # It was released meanwhile, which its clients are told.
                continue
            some = self._some(task, wanted)
            if wanted:
                client.wanted[task_id] = wanted
            self._request += 1
            client.reading = self._request
            self._requests[self._request] = (client, some)
            self._effects.command(
                LoadOutcomes(request=self._request, task=task_id, ranges=some.freeze())
            )

    def _some(self, task: Task, wanted: RangeSet) -> RangeSet:
        """Take as many calls out of `wanted` as are to be read at a time."""
        each = max(1, task.archive_bytes // max(1, task.archived))
        left = max(1, min(_READ_CALLS, _READ_BYTES // each))
        some = RangeSet()
        for low, high in wanted.freeze()[:RANGES_MAX]:
            high = min(high, low + left)
            some.add(low, high)
            left -= high - low
            if left <= 0:
                break
        for low, high in some:
            wanted.remove(low, high)
        return some

    def on_loaded(self, event: OutcomesLoaded) -> None:
        """Outcomes from the archive, for whoever asked."""
        request = self._requests.get(event.request)
        if request is None:
            return
        client, missing = request
        wanted = client.wanted.get(event.task)
        for row in event.rows:
            for low, high in row.settled:
                missing.remove(low, high)
                if wanted is not None:
                    wanted.remove(low, high)
        if wanted is not None and not wanted:
            del client.wanted[event.task]
        if not event.more:
            del self._requests[event.request]
            client.reading = 0
        if client.link is None:
            return
        sets = [_as_sent(event.task, row) for row in event.rows]
        if missing and not event.more and event.task in self._ledger.tasks:
            sets += _lost(event.task, missing)
        for message in in_messages(sets):
            client.link.send(message)
        self.go_on(client)


def _as_sent(task: str, row: StoredOutcomes) -> OutcomeSet:
    return OutcomeSet(
        task=task,
        assignment=row.assignment,
        low=row.low,
        high=row.high,
        tag=row.tag,
        device=row.device,
        ranges=row.ranges,
        errors=row.errors,
        run_us=row.run_us,
        data=row.data,
    )


def _lost(task: str, missing: RangeSet) -> list[OutcomeSet]:
    """Outcomes that say that the archive holds these calls' outcomes no longer."""
    data = b"\x81" + system_error(
        DATA_LOST,
        "the outcome was collected by another client and is no longer in the archive: "
        "submit the call again",
    )
    return [
        OutcomeSet(
            task=task,
            ranges=((first, min(first + _LOST_AT_ONCE, high)),),
            errors=tuple(
                [(index, "lost", True) for index in range(first, min(first + _LOST_AT_ONCE, high))]
            ),
            data=data,
        )
        for low, high in missing
        for first in range(low, high, _LOST_AT_ONCE)
    ]
