"""Calls that wait for a device: a queue for each function, clients and functions taking turns.

Only calls that are equal in all that decides where and how they run share a queue, so a slice
is cut with the whole backlog of its function in view, whatever task or page it belongs to.
Queues for which no device is eligible at all are kept aside until the fleet changes.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from forage_controller.core.state import Counters, Measure, Page, Task
from forage_wire.messages import Header

__all__ = ["Backlog", "CallQueue", "Pending", "queue_key", "requirement_key"]


@dataclass(slots=True, eq=False, repr=False)
class Pending:
    """Calls [low, high) of one page, with equal counters, that wait."""

    task: Task
    page: Page
    low: int
    high: int
    counters: Counters = (0, 0, 0)
    announce: bool = False
    """They may have been running on a device that was lost: one at a time, announced."""


@dataclass(slots=True, eq=False, repr=False)
class CallQueue:
    """The waiting calls of one function of one client, with equal options."""

    key: tuple[Any, ...]
    requirement: tuple[Any, ...]
    client: tuple[str, str]
    header: Header
    measure: Measure
    pending: deque[Pending] = field(default_factory=deque)
    waiting: int = 0
    """Calls in `pending` (those settled meanwhile included, until they come up)."""
    open: int = 0
    """Assignments out now."""
    starved_since_ms: int | None = None
    """Since when no eligible device is alive."""
    blocked_on_code: bool = False
    """Its code is being fetched."""


def queue_key(header: Header) -> tuple[Any, ...]:
    """What calls must agree in to share a queue."""
    return (
        header.user,
        header.client,
        header.function,
        header.form,
        header.python,
        header.python_min,
        header.options,
        header.settle,
        header.packet_bytes_max,
    )


def requirement_key(header: Header) -> tuple[Any, ...]:
    """What decides which devices are eligible."""
    return (
        header.form,
        header.python,
        header.python_min,
        header.function if header.form == "named" else None,
        header.options.requires,
        header.options.devices,
    )


class Backlog:
    """All queues; says whose turn it is."""

    __slots__ = ("_all", "_measures", "_turns", "starved", "waiting")

    def __init__(self) -> None:
        self._all: dict[tuple[Any, ...], CallQueue] = {}
        # priority -> client -> key -> queue; the first of each is next.
        self._turns: dict[int, dict[tuple[str, str], dict[tuple[Any, ...], CallQueue]]] = {}
        self._measures: dict[bytes | tuple[str, str], Measure] = {}
        self.starved: dict[tuple[Any, ...], CallQueue] = {}
        """Queues for which no eligible device is alive."""
        self.waiting = 0
        """Calls in all queues."""

    def queue_of(self, header: Header) -> CallQueue:
        """The queue for calls with this header, made if it is not there."""
        key = queue_key(header)
        queue = self._all.get(key)
        if queue is None:
            queue = CallQueue(
                key=key,
                requirement=requirement_key(header),
                client=(header.user, header.client),
                header=header,
                measure=self.measure_of(header.function),
            )
            self._all[key] = queue
        return queue

    def measure_of(self, function: bytes | tuple[str, str]) -> Measure:
        """What is known of a function's run time, of whichever client; the 16,384 latest."""
        measure = self._measures.pop(function, None) or Measure()
        self._measures[function] = measure
        if len(self._measures) > 16_384:
            del self._measures[next(iter(self._measures))]
        return measure

    def add(self, pending: Pending, *, front: bool = False) -> None:
        """Let calls wait, at the end or (lost work) at the front."""
        if pending.low >= pending.high:
            return
        queue = self.queue_of(pending.page.header)
        if front:
            queue.pending.appendleft(pending)
        else:
            queue.pending.append(pending)
        self._count(queue, pending.high - pending.low)
        if queue.starved_since_ms is None:
            self._turn(queue)

    def _turn(self, queue: CallQueue) -> None:
        clients = self._turns.setdefault(queue.header.options.priority, {})
        clients.setdefault(queue.client, {})[queue.key] = queue

    def _count(self, queue: CallQueue, calls: int) -> None:
        queue.waiting += calls
        self.waiting += calls

    def taken(self, queue: CallQueue, calls: int) -> None:
        """Note that `calls` left the front of a queue's first pending (assigned or settled)."""
        first = queue.pending[0]
        first.low += calls
        self._count(queue, -calls)
        if first.low >= first.high:
            queue.pending.popleft()

    def drop_first(self, queue: CallQueue) -> Pending:
        """Take a queue's first pending out whole."""
        first = queue.pending.popleft()
        self._count(queue, first.low - first.high)
        return first

    def remove(self, task: Task, low: int, high: int) -> list[Pending]:
        """Take out what waits of a task's [low, high); the pieces as they were."""
        taken: list[Pending] = []
        queues = {
            queue.key: queue
            for queue in [self.queue_of(page.header) for page in task.pages.values()]
        }
        for queue in queues.values():
            if not any(
                item.task is task and item.low < high and low < item.high for item in queue.pending
            ):
                self.rest(queue)
                continue
            kept: deque[Pending] = deque()
            for item in queue.pending:
                if item.task is not task or item.high <= low or item.low >= high:
                    kept.append(item)
                    continue
                for piece_low, piece_high, out in (
                    (item.low, max(item.low, low), False),
                    (max(item.low, low), min(item.high, high), True),
                    (min(item.high, high), item.high, False),
                ):
                    if piece_low >= piece_high:
                        continue
                    piece = Pending(
                        task=task,
                        page=item.page,
                        low=piece_low,
                        high=piece_high,
                        counters=item.counters,
                        announce=item.announce,
                    )
                    if out:
                        taken.append(piece)
                        self._count(queue, piece_low - piece_high)
                    else:
                        kept.append(piece)
            queue.pending = kept
            self.rest(queue)
        return taken

    def turns(self, limit: int) -> list[CallQueue]:
        """The queues whose turn it is, best priority first, clients in turn; at most `limit`."""
        found: list[CallQueue] = []
        for priority in sorted(self._turns, reverse=True):
            rows = [iter(queues.values()) for queues in self._turns[priority].values()]
            while rows and len(found) < limit:
                going = []
                for row in rows:
                    queue = next(row, None)
                    if queue is not None:
                        found.append(queue)
                        going.append(row)
                rows = going
            if len(found) >= limit:
                break
        return found

    def had_turn(self, queue: CallQueue) -> None:
        """Put a queue behind its client's others, and its client behind the other clients."""
        clients = self._turns.get(queue.header.options.priority, {})
        queues = clients.pop(queue.client, None)
        if queues is None:
            return
        if queues.pop(queue.key, None) is not None and queue.pending:
            queues[queue.key] = queue
        if queues:
            clients[queue.client] = queues
        self.rest(queue)

    def rest(self, queue: CallQueue) -> None:
        """Forget a queue with nothing waiting and nothing out; leave the turns without work."""
        if queue.pending:
            return
        self._leave_turns(queue)
        self.starved.pop(queue.key, None)
        queue.starved_since_ms = None
        if queue.open == 0:
            self._all.pop(queue.key, None)

    def starve(self, queue: CallQueue, now_ms: int) -> None:
        """Keep a queue aside: no eligible device is alive."""
        self._leave_turns(queue)
        queue.starved_since_ms = now_ms
        self.starved[queue.key] = queue

    def _leave_turns(self, queue: CallQueue) -> None:
        priority = queue.header.options.priority
        clients = self._turns.get(priority, {})
        queues = clients.get(queue.client, {})
        queues.pop(queue.key, None)
        if not queues:
            clients.pop(queue.client, None)
        if not clients:
            self._turns.pop(priority, None)

    def revive(self, queue: CallQueue) -> None:
        """Let a starved queue take its turn again."""
        self.starved.pop(queue.key, None)
        queue.starved_since_ms = None
        if queue.pending:
            self._turn(queue)
