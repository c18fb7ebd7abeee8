"""Calls that wait for a device: a queue for each function, clients and functions taking turns.

Only calls that are equal in all that decides where and how they run share a queue, so a slice
is cut with the whole backlog of its function in view, whatever task or page it belongs to.

Queues that need the same of a device form a group, since the same devices may run them: nobody
has to look at a thousand queues to see that none of them has a device with room. Within a group
clients take turns, and each client's queues do. A group for which no device is eligible starves;
a queue whose code or page is not here is parked until that has come.

    queue:  waiting its turn ⇄ parked (code or page is being fetched)
    group:  served ⇄ starving (no eligible device)
"""

from collections import deque
from dataclasses import dataclass, field
from functools import lru_cache
from operator import attrgetter
from typing import Any

import cbor2

from forage_controller.core.state import Counters, Measure, Page, Task
from forage_wire.messages import Header, Options
from forage_wire.records import columns_of

__all__ = [
    "Backlog",
    "CallQueue",
    "Group",
    "Pending",
    "QueueKey",
    "Requirement",
    "by_counters",
    "queue_key",
]

QueueKey = bytes
"""What calls agree in that share a queue."""
Requirement = bytes
"""What calls need of a device: those that need the same are eligible on the same devices."""

_CLIENTS_MAX = 16_384
"""Clients whose last turn is remembered."""
_IDLE_MAX = 64
"""Queues that hold nothing and have nothing out, kept for calls that may come."""
_KINDS_MAX = 256
"""Kinds of calls whose keys are remembered; each may take as much as the longest header."""
_MEASURES_MAX = 16_384
"""Functions whose run times are remembered; the one not asked for longest is forgotten."""


@dataclass(slots=True, eq=False, repr=False)
class Pending:
    """Calls [low, high) of one page, with equal counters, that wait.

    Those that ended meanwhile are left out when they come up.
    """

    task: Task
    page: Page
    low: int
    high: int
    counters: Counters = (0, 0, 0)
    announce: bool = False
    """They may have been running on a device that was lost: one at a time, announced."""
    since_ms: int = 0
    """Since when they wait."""


@dataclass(slots=True, eq=False, repr=False)
class CallQueue:
    """The waiting calls of one function of one client, with equal options."""

    key: QueueKey
    requirement: Requirement
    client: tuple[str, str]
    header: Header
    measure: Measure
    pending: deque[Pending] = field(default_factory=deque)
    """In order; what was taken back from within is left here empty."""
    empty: int = 0
    """How many of `pending` are."""
    waiting: int = 0
    """Calls in `pending` (those that ended meanwhile included, until they come up)."""
    open: int = 0
    """Assignments out now."""
    parked_for: object = None
    """What is being fetched for its first calls; None: nothing."""
    starve_check_ms: int | None = None
    """When somebody looks whether its calls have waited too long for a device."""


@dataclass(slots=True, eq=False, repr=False)
class Group:
    """The queues that need the same of a device."""

    header: Header
    """Of any of them."""
    clients: dict[tuple[str, str], dict[QueueKey, CallQueue]] = field(default_factory=dict)
    """Those that wait their turn; the first of each is next."""
    unserved: dict[QueueKey, CallQueue] = field(default_factory=dict)
    """Of those, what has nothing running."""
    served: int = 0
    """When it last had its turn."""
    queues: dict[QueueKey, CallQueue] = field(default_factory=dict)
    """All with calls waiting, parked ones too."""


def queue_key(header: Header) -> QueueKey:
    """What calls must agree in to share a queue.

    Bytes, as each keeps its hash: a tuple's is worked out anew at every look into a table.
    """
    return _packed(_agreeing(header))


def _requirement(header: Header) -> Requirement:
    """What decides which devices are eligible."""
    named = header.function if header.form == "named" else None
    return _packed((named, *_needs(header)))


_agreeing = attrgetter(
    *("user", "client", "function", "form", "python", "python_min", "settle"),
    *("packet_bytes_max", "replica"),
    *(f"options.{column.name}" for column in columns_of(Options)),
)
"""All that a header says but which task and page it is of, and how people call its function."""
_needs = attrgetter(
    *("form", "python", "python_min", "options.requires", "options.devices"),
    *("options.at_most_once", "options.exclusive"),
)


@lru_cache(_KINDS_MAX)
def _packed(values: tuple[Any, ...]) -> bytes:
    return cbor2.dumps(values)


class Backlog:
    """All queues; says whose turn it is."""

    __slots__ = (
        "_all",
        "_idle",
        "_measures",
        "_parked",
        "_priorities",
        "_served",
        "_turns",
        "fresh",
        "groups",
        "starving",
        "starving_news",
        "waiting",
    )

    def __init__(self) -> None:
        self._all: dict[QueueKey, CallQueue] = {}
        self._idle: dict[QueueKey, CallQueue] = {}
        self._measures: dict[bytes | tuple[str, str], Measure] = {}
        self._parked: dict[object, dict[QueueKey, CallQueue]] = {}
        self._priorities: list[int] = []
        self._served: dict[tuple[str, str], int] = {}
        self._turns = 0
        self.groups: dict[int, dict[Requirement, Group]] = {}
        """Priority -> requirement -> its queues."""
        self.fresh: dict[Requirement, Header] = {}
        """Requirements that calls came with since somebody looked."""
        self.starving: dict[Requirement, int] = {}
        """Requirements that no device meets, and since when."""
        self.starving_news: list[CallQueue] = []
        """Queues of those that got calls since somebody looked, or began to starve."""
        self.waiting = 0
        """Calls in all queues."""

    # -- queues -----------------------------------------------------------------------------

    def queue_of(self, page: Page) -> CallQueue:
        """The queue for a page's calls, made if it is not there."""
        queue = self._all.get(page.queue_key)
        if queue is None:
            header = page.header
            measure = self.measure_of(header.function)
            queue = self._idle.pop(page.queue_key, None)
            if queue is None or queue.measure is not measure:
                queue = CallQueue(
                    key=page.queue_key,
                    requirement=_requirement(header),
                    client=(header.user, header.client),
                    header=header,
                    measure=measure,
                )
            self._all[queue.key] = queue
        return queue

    def _lay_aside(self, queue: CallQueue) -> None:
        """A queue is used no more; it is kept a while, since the next call is often like the last."""
        del self._all[queue.key]
        self._idle[queue.key] = queue
        if len(self._idle) > _IDLE_MAX:
            del self._idle[next(iter(self._idle))]

    def measure_of(self, function: bytes | tuple[str, str]) -> Measure:
        """What is known of a function's run time, of whichever client."""
        measure = self._measures.pop(function, None) or Measure()
        self._measures[function] = measure
        if len(self._measures) > _MEASURES_MAX:
            del self._measures[next(iter(self._measures))]
        return measure

    def __len__(self) -> int:
        """The number of queues."""
        return len(self._all)

    def is_parked(self, page: Page) -> bool:
        """Whether a page's calls wait for their code or for the page itself."""
        queue = self._all.get(page.queue_key)
        return queue is not None and queue.parked_for is not None

    def opened(self, queue: CallQueue, assignments: int) -> None:
        """Assignments of a queue went out, or (below 0) ended."""
        was_served = queue.open > 0
        queue.open += assignments
        if was_served != (queue.open > 0):
            self._arrange(queue)

    def _arrange(self, queue: CallQueue) -> None:
        """Put a queue where its state says it belongs; forget it with nothing waiting or out."""
        priority = queue.header.options.priority
        requirements = self.groups.get(priority)
        group = None if requirements is None else requirements.get(queue.requirement)
        if queue.waiting == 0 and queue.pending:
            queue.pending.clear()
            queue.empty = 0
        if not queue.pending:
            if group is not None:
                self._leave(queue, group)
                group.queues.pop(queue.key, None)
                if not group.queues:
                    self._drop_group(priority, queue.requirement)
            if queue.parked_for is not None:
                self._forget_parked(queue)
            if queue.open == 0:
                self._lay_aside(queue)
            return
        if group is None:
            group = self._make_group(priority, queue)
        group.queues[queue.key] = queue
        if queue.parked_for is not None:
            self._leave(queue, group)
            return
        group.clients.setdefault(queue.client, {}).setdefault(queue.key, queue)
        if queue.open == 0:
            group.unserved[queue.key] = queue
        else:
            group.unserved.pop(queue.key, None)

    def _leave(self, queue: CallQueue, group: Group) -> None:
        queues = group.clients.get(queue.client)
        if queues is not None:
            queues.pop(queue.key, None)
            if not queues:
                del group.clients[queue.client]
        group.unserved.pop(queue.key, None)

    def _make_group(self, priority: int, queue: CallQueue) -> Group:
        if priority not in self.groups:
            self.groups[priority] = {}
            self._priorities = sorted(self.groups, reverse=True)
        group = self.groups[priority][queue.requirement] = Group(header=queue.header)
        self.fresh[queue.requirement] = queue.header
        return group

    def _drop_group(self, priority: int, requirement: Requirement) -> None:
        requirements = self.groups[priority]
        del requirements[requirement]
        if not requirements:
            del self.groups[priority]
            self._priorities = sorted(self.groups, reverse=True)
        if not any(requirement in others for others in self.groups.values()):
            self.starving.pop(requirement, None)
            self.fresh.pop(requirement, None)

    # -- calls ------------------------------------------------------------------------------

    def add(self, pending: Pending, now_ms: int, *, front: bool = False) -> None:
        """Let calls wait, at the end or (lost work) at the front."""
        if pending.low >= pending.high:
            return
        pending.since_ms = now_ms
        queue = self.queue_of(pending.page)
        if front:
            queue.pending.appendleft(pending)
        else:
            queue.pending.append(pending)
        pending.page.pending[pending] = None
        self._count(queue, pending, pending.high - pending.low)
        self._arrange(queue)
        if queue.requirement in self.starving and queue.starve_check_ms is None:
            self.starving_news.append(queue)

    def _count(self, queue: CallQueue, pending: Pending, calls: int) -> None:
        queue.waiting += calls
        self.waiting += calls
        pending.task.waiting += calls

    def first(self, queue: CallQueue) -> Pending | None:
        """The calls of a queue that come next, without those that ended while they waited."""
        while queue.pending:
            pending = queue.pending[0]
            if pending.low < pending.high:
                if pending.low not in pending.task.done:
                    return pending
                gaps = pending.task.done.missing(pending.low, pending.high)
                if gaps:
                    self.taken(queue, gaps[0][0] - pending.low)
                    return pending
            self.drop_first(queue)
        return None

    def taken(self, queue: CallQueue, calls: int) -> None:
        """Note that `calls` left the front of a queue's first pending (assigned or ended)."""
        first = queue.pending[0]
        first.low += calls
        self._count(queue, first, -calls)
        if first.low >= first.high:
            queue.pending.popleft()
            del first.page.pending[first]
            if not queue.pending:
                self._arrange(queue)

    def drop_first(self, queue: CallQueue) -> Pending:
        """Take a queue's first pending out whole."""
        first = queue.pending.popleft()
        if first.low < first.high:
            self._count(queue, first, first.low - first.high)
            del first.page.pending[first]
        else:
            queue.empty -= 1
        if not queue.pending:
            self._arrange(queue)
        return first

    def discard(self, page: Page, low: int, high: int) -> None:
        """Take out calls that have ended, as far as that is cheap: the rest goes as it comes up."""
        for pending in list(page.pending):
            if low <= pending.low and pending.high <= high:
                self._cut(pending, pending.low, pending.low)
            elif low <= pending.low < high:
                self._cut(pending, high, pending.high)
            elif low < pending.high <= high:
                self._cut(pending, pending.low, low)

    def remove(self, page: Page, low: int, high: int, now_ms: int) -> list[Pending]:
        """Take out all that waits of a page's [low, high); the pieces as they were."""
        taken: list[Pending] = []
        for pending in list(page.pending):
            start, end = max(low, pending.low), min(high, pending.high)
            if start >= end:
                continue
            taken.append(_piece(pending, start, end))
            behind = _piece(pending, end, pending.high)
            self._cut(pending, pending.low, start)
            self.add(behind, now_ms, front=True)
        return taken

    def _cut(self, pending: Pending, low: int, high: int) -> None:
        """Leave [low, high) of what waits, wherever it stands in its queue."""
        queue = self.queue_of(pending.page)
        self._count(queue, pending, (high - low) - (pending.high - pending.low))
        pending.low, pending.high = low, high
        if low < high:
            return
        del pending.page.pending[pending]
        queue.empty += 1
        if 2 * queue.empty > len(queue.pending) or queue.waiting == 0:
            queue.pending = deque([each for each in queue.pending if each.low < each.high])
            queue.empty = 0
            if not queue.pending:
                self._arrange(queue)

    # -- turns ------------------------------------------------------------------------------

    @property
    def priorities(self) -> list[int]:
        """Those that calls wait with, the highest first."""
        return self._priorities

    def next_of(self, group: Group) -> CallQueue | None:
        """The queue of a group whose turn it is."""
        for queues in group.clients.values():
            for queue in queues.values():
                return queue
        return None

    def last_turn(self, group: Group, *, unserved: bool = False) -> tuple[int, int]:
        """When the next client of a group, and then the group, last had a turn: the least is due.

        `unserved`: of those of its queues that have nothing running.
        """
        if unserved:
            client = next((queue.client for queue in group.unserved.values()), None)
        else:
            client = next(iter(group.clients), None)
        return (0 if client is None else self._served.get(client, 0)), group.served

    def had_turn(self, queue: CallQueue) -> None:
        """Put a queue behind its client's others, and its client behind the other clients."""
        group = self.groups.get(queue.header.options.priority, {}).get(queue.requirement)
        queues = None if group is None else group.clients.pop(queue.client, None)
        if group is None:
            return
        self._turns += 1
        group.served = self._turns
        self._served.pop(queue.client, None)
        self._served[queue.client] = self._turns
        if len(self._served) > _CLIENTS_MAX:
            del self._served[next(iter(self._served))]
        if queues is None:
            return
        group.clients[queue.client] = queues
        if queues.pop(queue.key, None) is not None:
            queues[queue.key] = queue
        if queue.key in group.unserved:
            group.unserved[queue.key] = group.unserved.pop(queue.key)

    def park(self, queue: CallQueue, why: object) -> None:
        """Leave a queue out until `unpark` is told the same: what it needs is being fetched."""
        queue.parked_for = why
        self._parked.setdefault(why, {})[queue.key] = queue
        self._arrange(queue)

    def _forget_parked(self, queue: CallQueue) -> None:
        others = self._parked[queue.parked_for]
        del others[queue.key]
        if not others:
            del self._parked[queue.parked_for]
        queue.parked_for = None

    def unpark(self, why: object) -> None:
        """What these queues waited for is here, or to be asked for again."""
        for queue in self._parked.pop(why, {}).values():
            queue.parked_for = None
            self._arrange(queue)

    def unpark_of(self, clients: dict[tuple[str, str], None]) -> None:
        """These clients may be asked (again) for what their queues wait for."""
        for why, queues in list(self._parked.items()):
            if any(queue.client in clients for queue in queues.values()):
                self.unpark(why)

    def starve(self, requirement: Requirement, now_ms: int) -> None:
        """No eligible device is alive for these calls: their time runs from now."""
        if requirement in self.starving:
            return
        self.starving[requirement] = now_ms
        for requirements in self.groups.values():
            group = requirements.get(requirement)
            if group is not None:
                self.starving_news.extend(group.queues.values())

    def revive(self, requirement: Requirement) -> None:
        """A device is there for these calls."""
        self.starving.pop(requirement, None)


def _piece(pending: Pending, low: int, high: int) -> Pending:
    return Pending(
        task=pending.task,
        page=pending.page,
        low=low,
        high=high,
        counters=pending.counters,
        announce=pending.announce,
    )


def by_counters(
    task: Task,
    page: Page,
    low: int,
    high: int,
    counters: Counters = (0, 0, 0),
    *,
    announce: bool = False,
) -> list[Pending]:
    """[low, high) as pieces of equal counters: few calls have any of their own.

    A call with a checkpoint is a piece by itself.

    Args:
        task: Whose calls.
        page: Their page.
        low: The first.
        high: The end.
        counters: Of calls that have none of their own.
        announce: Whether they are to be announced (those that were lost running are anyway).
    """
    if not task.counters and not task.checkpoints:
        return [
            Pending(task=task, page=page, low=low, high=high, counters=counters, announce=announce)
        ]
    if len(task.counters) <= high - low:
        special = sorted(index for index in task.counters if low <= index < high)
    else:
        special = [index for index in range(low, high) if index in task.counters]
    if task.checkpoints:
        own = {index: None for index in task.checkpoints if low <= index < high}
        special = sorted({**own, **dict.fromkeys(special)})
    rows: list[tuple[int, int, Counters]] = []
    for index in special:
        rows.append((low, index, counters))
        rows.append((index, index + 1, task.counters.get(index, counters)))
        low = index + 1
    rows.append((low, high, counters))
    return [
        Pending(
            task=task,
            page=page,
            low=start,
            high=end,
            counters=each,
            announce=announce or (each is not counters and each[2] > 0),
        )
        for start, end, each in rows
        if start < end
    ]
