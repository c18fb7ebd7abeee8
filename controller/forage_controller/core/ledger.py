"""The tasks: pages taken in, outcomes settled, counters moved, calls ended, tasks released.

A call is *settled* when its outcome is here, *committed* when that is saved, *collected* when
its client says it has it; collected ends a call, whatever else is known of it.
"""

from collections import deque
from collections.abc import Iterable

import cbor2

from forage_controller.core.assignments import Assignments
from forage_controller.core.backlog import Backlog, Pending
from forage_controller.core.config import CoreConfig
from forage_controller.core.effects import Effects
from forage_controller.core.operations import (
    SaveCollected,
    SaveCounters,
    SaveOutcomes,
    SavePage,
    SaveReleased,
)
from forage_controller.core.pages import PageCache
from forage_controller.core.state import Client, Counters, Device, Open, Page, Task
from forage_wire.codec import decode_header
from forage_wire.errors import DecodeError
from forage_wire.limits import DEATHS_MAX, RANGES_MAX
from forage_wire.messages import CancelAssigned, Header, Outcomes, OutcomeSet
from forage_wire.messages import Page as PageMessage
from forage_wire.ranges import Ranges, RangeSet
from forage_wire.system_errors import CANCELLED, REFUSED, system_error
from forage_wire.tags import slice_tag_valid

__all__ = ["Ledger", "PageRefused"]

_OUTCOMES_AT_ONCE = 1_024
"""Controller-made outcomes in one set."""


class PageRefused(Exception):
    """A page is not taken: (reason, sentence)."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason
        self.text = text


class Ledger:
    """Every task that is not released, and what becomes of its calls."""

    def __init__(
        self,
        config: CoreConfig,
        effects: Effects,
        backlog: Backlog,
        assignments: Assignments,
        pages: PageCache,
    ) -> None:
        self._limits = config.limits
        self._effects = effects
        self._backlog = backlog
        self._assignments = assignments
        self._pages = pages
        self.keep_ms = config.limits.keep_ms
        self.tasks: dict[str, Task] = {}
        self.released: dict[str, int] = {}
        """Ids of tasks that ended -> when they are forgotten."""
        self.archive_bytes = 0
        self.settled = 0
        """Calls settled since start."""
        self.acknowledge: dict[str, tuple[Device, dict[int, RangeSet]]] = {}
        """What devices are to be told with this batch."""
        self.due: deque[tuple[int, Task]] = deque()
        """Tasks with committed outcomes: when to look whether they are collected."""
        self.to_clients: list[tuple[Client, OutcomeSet]] = []
        """Outcomes that clients are to be sent with this batch."""
        self.news: dict[Client, None] = {}
        """Clients with pages acknowledged or tasks released in this batch."""
        self.dirty: dict[str, Task] = {}
        """Tasks whose status changed."""

    # -- pages ------------------------------------------------------------------------------

    def on_page(self, client: Client, message: PageMessage, now_ms: int) -> Task | None:
        """Take a page in (again); None where its task is released.

        Raises:
            PageRefused: It contradicts itself or its client, or the archive is full.
        """
        try:
            header = decode_header(message.header)
        except DecodeError as error:
            raise PageRefused("invalid", f"a page's header cannot be read: {error}") from None
        if (
            header.user != client.user
            or header.client != client.name
            or not header.task.startswith(client.name + "-")
        ):
            raise PageRefused("invalid", "a page names another client than the one that sent it")
        if header.task in self.released:
            return None
        task = self.tasks.get(header.task)
        if task is None:
            self._check_room(client)
            task = Task(
                id=header.task,
                client=client,
                key=message.key,
                label=header.label,
                made_ms=now_ms,
            )
            self.tasks[task.id] = client.tasks[task.id] = task
        page = task.pages.get(header.first)
        if page is None:
            page = self._new_page(task, header, message)
        if message.collected:
            self.collect(task, message.collected, now_ms)
        return task

    def _check_room(self, client: Client) -> None:
        if self.archive_bytes >= self._limits.archive_bytes:
            raise PageRefused(
                "full",
                f"the controller's archive is full ({self.archive_bytes} bytes of outcomes nobody "
                "has collected): collect or cancel earlier tasks, then submit again",
            )
        if len(client.tasks) >= self._limits.client_tasks:
            raise PageRefused(
                "full",
                f"this client has {len(client.tasks)} tasks that have not ended: wait for some, "
                "or use submit_all, which makes one task of many calls",
            )

    def _new_page(self, task: Task, header: Header, message: PageMessage) -> Page:
        page = Page(
            first=header.first,
            n=header.n,
            last=header.last,
            header_bytes=message.header,
            header=header,
            calls=message.calls,
            calls_bytes=len(message.calls),
        )
        self.add_page(task, page)
        self._pages.put(page)
        self._effects.save(
            SavePage(
                user=task.client.user,
                client=task.client.name,
                task=task.id,
                key=task.key,
                label=task.label,
                first=page.first,
                n=page.n,
                last=page.last,
                header=page.header_bytes,
                calls=message.calls,
            )
        )
        task.done.update(message.collected)
        waits = header.options.at_most_once or header.settle == "controller"
        if not waits:
            self.queue(task, page)
        self._effects.after_commit(lambda at_ms: self._page_committed(task, page, waits, at_ms))
        self.dirty[task.id] = task
        return page

    def add_page(self, task: Task, page: Page) -> None:
        """Put a page (new or recovered) into its task."""
        task.pages[page.first] = page
        task.calls += page.n
        if page.last:
            task.total = page.end

    def queue(self, task: Task, page: Page, *, front: bool = False) -> None:
        """Let wait what of a page is neither done nor assigned."""
        taken = RangeSet(task.done.common(page.first, page.end))
        for opened in task.open.values():
            if opened.page is page:
                taken.add(opened.low, opened.end)
        for low, high in taken.missing(page.first, page.end):
            for pending in _by_counters(task, page, low, high):
                self._backlog.add(pending, front=front)

    def _page_committed(self, task: Task, page: Page, waits: bool, now_ms: int) -> None:
        page.committed = True
        self.tell_acknowledged(task.client, (task.id, page.first))
        if waits and task.id in self.tasks:
            self.queue(task, page)
        self.release_if_over(task, now_ms)

    # -- outcomes ---------------------------------------------------------------------------

    def on_outcomes(self, device: Device, outcomes: OutcomeSet, now_ms: int) -> bool:
        """Settle what a device sent; False where its task is not known (it may still come).

        Raises DecodeError where the set contradicts itself or its tag is not the slice's.
        """
        task = self.tasks.get(outcomes.task)
        if task is None:
            if outcomes.task not in self.released:
                return False
            # Only when that is saved: until then a crash would bring the task back.
            self._acknowledge_once_committed(device, outcomes)
            return True
        for low, high in outcomes.ranges:
            if low < outcomes.low or high > outcomes.high:
                raise DecodeError("outcomes of calls outside their assignment")
        if not slice_tag_valid(
            outcomes.tag,
            task.key,
            task.id,
            outcomes.assignment,
            outcomes.low,
            outcomes.high,
            device.name,
        ):
            raise DecodeError("outcomes with a tag that is not their assignment's")
        if self.archive_bytes > self._limits.archive_bytes + self._limits.archive_reserve_bytes:
            # Not acknowledged: the device keeps them, and sends them when asked to report.
            self._effects.note("warning", f"archive full, outcomes left on device={device.name}")
            return True
        opened = self._assignments.open.get(outcomes.assignment)
        if opened is not None and (opened.task is not task or opened.device is not device):
            raise DecodeError("outcomes of an assignment that is another's")
        self._learn(opened, outcomes)
        again = self._again(task, opened, outcomes, now_ms)
        settled = RangeSet(outcomes.ranges)
        for index, _reason, final in outcomes.errors:
            if not final:
                settled.remove(index, index + 1)
        new = RangeSet()
        for low, high in settled:
            new.update(task.done.missing(low, high))
        if new:
            self._settle(task, outcomes, device.name, new)
        if opened is not None:
            self._assignments.reported(opened, outcomes.ranges, now_ms)
        for pending in again:
            self._backlog.add(pending)
        self._acknowledge_once_committed(device, outcomes)
        self.release_if_over(task, now_ms)
        return True

    def _learn(self, opened: Open | None, outcomes: OutcomeSet) -> None:
        if opened is not None:
            count = sum(high - low for low, high in outcomes.ranges)
            opened.measure.add(count, outcomes.run_us)

    def _again(
        self, task: Task, opened: Open | None, outcomes: OutcomeSet, now_ms: int
    ) -> list[Pending]:
        """Move the counters of calls that did not end, and say what is to run again.

        Only the latest assignment of a call does that: an open one. What a closed one reports
        runs elsewhere already.
        """
        if opened is None:
            return []
        again: list[Pending] = []
        for index, reason, final in outcomes.errors:
            if final or index in task.done or index in opened.reported:
                continue
            if not opened.low <= index < opened.end:
                continue
            tries, deaths, losses = opened.counters
            if reason == "died":
                deaths += 1
            elif reason != "cancelled":
                tries += 1
            counters = (tries, deaths, losses)
            self.count(task, index, counters)
            if deaths >= DEATHS_MAX:
                text = f"call {index} of {task.label or task.id} killed {deaths} workers"
                self.make_outcomes(task, ((index, index + 1),), "died", REFUSED, text, now_ms)
                continue
            again.append(
                Pending(task=task, page=opened.page, low=index, high=index + 1, counters=counters)
            )
        return again

    def count(self, task: Task, index: int, counters: Counters) -> None:
        """Move a call's counters."""
        task.counters[index] = counters
        tries, deaths, losses = counters
        self._effects.save(
            SaveCounters(
                task=task.id,
                low=index,
                high=index + 1,
                tries=tries,
                deaths=deaths,
                losses=losses,
            )
        )

    def _settle(self, task: Task, outcomes: OutcomeSet, device: str, new: RangeSet) -> None:
        ranges = new.freeze()
        errors = [index for index, _reason, final in outcomes.errors if final and index in new]
        task.failed += len(errors)
        self._mark_settled(task, ranges, len(outcomes.data))
        self._effects.save(
            SaveOutcomes(
                task=task.id,
                assignment=outcomes.assignment,
                device=device,
                low=outcomes.low,
                high=outcomes.high,
                tag=outcomes.tag,
                ranges=outcomes.ranges,
                settled=ranges,
                errors=outcomes.errors,
                run_us=outcomes.run_us,
                data=outcomes.data,
            )
        )
        self._cancel_elsewhere(task, outcomes.assignment, ranges)
        direct = next(iter(task.pages.values())).header.settle == "direct"
        stored = OutcomeSet(
            task=task.id,
            assignment=outcomes.assignment,
            low=outcomes.low,
            high=outcomes.high,
            tag=outcomes.tag,
            device=device,
            ranges=outcomes.ranges,
            errors=outcomes.errors,
            run_us=outcomes.run_us,
            data=outcomes.data,
        )
        self._effects.after_commit(
            lambda at_ms: self._committed(task, ranges, None if direct else stored, stored, at_ms)
        )

    def _mark_settled(self, task: Task, ranges: Ranges, data_bytes: int) -> None:
        task.settled.update(ranges)
        task.done.update(ranges)
        for low, high in ranges:
            self.settled += high - low
            if task.started or task.counters:
                for index in [index for index in task.started if low <= index < high]:
                    del task.started[index]
                for index in [index for index in task.counters if low <= index < high]:
                    del task.counters[index]
        task.archive_bytes += data_bytes
        self.archive_bytes += data_bytes
        self.dirty[task.id] = task

    def _committed(
        self,
        task: Task,
        ranges: Ranges,
        to_owner: OutcomeSet | None,
        to_others: OutcomeSet,
        now_ms: int,
    ) -> None:
        task.committed.update(ranges)
        if to_owner is not None:
            self.to_clients.append((task.client, to_owner))
        for client in task.attached.values():
            self.to_clients.append((client, to_others))
        self.tell_settled(task, now_ms)

    def tell_settled(self, task: Task, now_ms: int) -> None:
        """A second from now, tell the client what it has not collected by then."""
        if task.settled_due_ms is None and task.id in self.tasks:
            task.settled_due_ms = now_ms + self._limits.settled_after_ms
            self.due.append((task.settled_due_ms, task))

    def tell_acknowledged(self, client: Client, row: tuple[str, int]) -> None:
        """A page is committed: its client is told with this batch."""
        client.acknowledged.append(row)
        self.news[client] = None

    def tell_released(self, client: Client, task: str) -> None:
        """A task is released: a client is told when that is saved.

        It forgets the task then, and could not tell a controller that comes back with it that
        everything is collected.
        """

        def tell(_at_ms: int) -> None:
            client.released.append(task)
            self.news[client] = None

        self._effects.after_commit(tell)

    def _cancel_elsewhere(self, task: Task, assignment: int, ranges: Ranges) -> None:
        """Tell devices that hold calls settled by another attempt to skip them."""
        for opened in task.open.values():
            if opened.number == assignment or opened.device.link is None:
                continue
            common = [
                (max(low, opened.low), min(high, opened.end))
                for low, high in ranges
                if low < opened.end and opened.low < high
            ]
            if common:
                opened.device.link.send(
                    CancelAssigned(assignment=opened.number, ranges=tuple(common))
                )

    def _acknowledge_once_committed(self, device: Device, outcomes: OutcomeSet) -> None:
        assignment, ranges = outcomes.assignment, outcomes.ranges
        device.uncommitted += 1

        def acknowledge(_now_ms: int) -> None:
            device.uncommitted -= 1
            rows = self.acknowledge.setdefault(device.name, (device, {}))[1]
            rows.setdefault(assignment, RangeSet()).update(ranges)
            # A microcontroller has room for the next call only now.
            self._assignments.touched[device.name] = device

        self._effects.after_commit(acknowledge)

    def make_outcomes(
        self,
        task: Task,
        ranges: Iterable[tuple[int, int]],
        reason: str,
        system_reason: str,
        text: str,
        now_ms: int,
        **details: object,
    ) -> None:
        """End calls with an error that the controller makes; told once it is saved.

        Args:
            task: Whose calls.
            ranges: Which; those already done are left out.
            reason: For the wire's `errors` rows.
            system_reason: One of `forage_wire.system_errors`.
            text: The sentence a person reads.
            now_ms: Now.
            details: Of the system error.
        """
        item = cbor2.loads(system_error(system_reason, text, **details))
        for low, high in ranges:
            for gap_low, gap_high in task.done.missing(low, high):
                for first in range(gap_low, gap_high, _OUTCOMES_AT_ONCE):
                    end = min(first + _OUTCOMES_AT_ONCE, gap_high)
                    made = OutcomeSet(
                        task=task.id,
                        ranges=((first, end),),
                        errors=tuple([(index, reason, True) for index in range(first, end)]),
                        data=cbor2.dumps([item] * (end - first)),
                    )
                    self._make(task, made)
        self.release_if_over(task, now_ms)

    def _make(self, task: Task, made: OutcomeSet) -> None:
        task.failed += len(made.errors)
        self._mark_settled(task, made.ranges, len(made.data))
        self._effects.save(
            SaveOutcomes(
                task=task.id,
                assignment=0,
                device="",
                low=0,
                high=0,
                tag=b"",
                ranges=made.ranges,
                settled=made.ranges,
                errors=made.errors,
                run_us=0,
                data=made.data,
            )
        )
        self._cancel_elsewhere(task, 0, made.ranges)
        self._effects.after_commit(
            lambda at_ms: self._committed(task, made.ranges, made, made, at_ms)
        )

    # -- ends -------------------------------------------------------------------------------

    def cancel(self, task: Task, ranges: Ranges, *, force: bool, owner: bool, now_ms: int) -> None:
        """Nobody wants these calls any more: they leave the queue, devices skip (or kill) them.

        The owner has decided already that they are cancelled, so for it they have ended; from
        another client of the same user the owner is told by an outcome.
        """
        for low, high in ranges:
            high = min(high, max(task.total or 0, task.calls))
            wanted = task.done.missing(low, high)
            for gap_low, gap_high in wanted:
                self._backlog.remove(task, gap_low, gap_high)
            for opened in list(task.open.values()):
                common = [
                    (max(gap_low, opened.low), min(gap_high, opened.end))
                    for gap_low, gap_high in wanted
                    if gap_low < opened.end and opened.low < gap_high
                ]
                if common and opened.device.link is not None:
                    opened.device.link.send(
                        CancelAssigned(assignment=opened.number, ranges=tuple(common), force=force)
                    )
            if owner:
                self.collect(task, tuple(wanted), now_ms)
            else:
                text = "cancelled by another client of the same user"
                self.make_outcomes(task, wanted, "cancelled", CANCELLED, text, now_ms)

    def collect(self, task: Task, ranges: Ranges, now_ms: int) -> None:
        """The client has these: they have ended."""
        before = task.collected.count
        task.collected.update(ranges)
        added = task.collected.count - before
        if not added:
            return
        task.done.update(ranges)
        self._effects.save(SaveCollected(task=task.id, ranges=ranges))
        uncollected = max(0, task.settled.count - before)
        if uncollected:
            freed = task.archive_bytes * min(added, uncollected) // uncollected
            task.archive_bytes -= freed
            self.archive_bytes -= freed
        self.dirty[task.id] = task
        self.release_if_over(task, now_ms)

    def release_if_over(self, task: Task, now_ms: int) -> None:
        """Let a task go when its client has everything and no device holds any of it."""
        if not task.complete or task.open or task.id not in self.tasks:
            return
        if not all(page.committed for page in task.pages.values()):
            return
        self.release(task, now_ms)

    def release(self, task: Task, now_ms: int) -> None:
        """Keep nothing of a task but its id."""
        self._effects.save(SaveReleased(task=task.id))
        del self.tasks[task.id]
        task.client.tasks.pop(task.id, None)
        for client in task.attached.values():
            client.attached.pop(task.id, None)
            self.tell_released(client, task.id)
        for opened in list(task.open.values()):
            self._assignments.close(opened, "released", now_ms)
        for page in task.pages.values():
            self._backlog.remove(task, page.first, page.end)
            self._pages.drop(page)
        self.archive_bytes -= task.archive_bytes
        self.tell_released(task.client, task.id)
        self.released[task.id] = now_ms + self._limits.keep_ms
        while len(self.released) > self._limits.released_ids:
            self._forget(next(iter(self.released)))
        self.dirty[task.id] = task

    def _forget(self, task: str) -> None:
        del self.released[task]
        self._effects.save(SaveReleased(task=task, forget=True))

    def expire(self, now_ms: int) -> None:
        """Forget ids, and release tasks nobody collected, when their time is up."""
        while self.released:
            oldest = next(iter(self.released))
            if self.released[oldest] > now_ms:
                break
            self._forget(oldest)
        for task in list(self.tasks.values()):
            if task.made_ms + self._limits.keep_ms > now_ms:
                break
            if task.total is not None and task.done.count >= task.total and not task.open:
                self.release(task, now_ms)

    def take_acknowledgements(self) -> list[tuple[Device, list[tuple[int, Ranges]]]]:
        """What devices are to be told is committed, cut to what a message may hold."""
        found: list[tuple[Device, list[tuple[int, Ranges]]]] = []
        for device, rows in self.acknowledge.values():
            cut: list[tuple[int, Ranges]] = []
            for number, ranges in rows.items():
                frozen = ranges.freeze()
                cut.extend(
                    (number, frozen[at : at + RANGES_MAX])
                    for at in range(0, len(frozen), RANGES_MAX)
                )
            found.append((device, cut))
        self.acknowledge = {}
        return found

    def take_outcomes(self) -> dict[Client, Outcomes]:
        """What clients are to be sent, merged for each."""
        merged: dict[Client, list[OutcomeSet]] = {}
        for client, outcomes in self.to_clients:
            merged.setdefault(client, []).append(outcomes)
        self.to_clients = []
        return {client: Outcomes(sets=tuple(sets)) for client, sets in merged.items()}


def _by_counters(task: Task, page: Page, low: int, high: int) -> list[Pending]:
    """[low, high) as pieces of equal counters (few calls have any)."""
    special = sorted(index for index in task.counters if low <= index < high)
    pieces: list[Pending] = []
    for index in special:
        if low < index:
            pieces.append(Pending(task=task, page=page, low=low, high=index))
        counters = task.counters[index]
        pieces.append(
            Pending(
                task=task,
                page=page,
                low=index,
                high=index + 1,
                counters=counters,
                announce=counters[2] > 0,
            )
        )
        low = index + 1
    if low < high:
        pieces.append(Pending(task=task, page=page, low=low, high=high))
    return pieces
