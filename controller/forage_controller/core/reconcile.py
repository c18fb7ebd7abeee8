"""What a device holds against what we think it holds: keep, adopt, cancel, forget, or lost."""

from dataclasses import dataclass

from forage_controller.core.assignments import Assignments
from forage_controller.core.backlog import Backlog, Pending
from forage_controller.core.config import CoreConfig
from forage_controller.core.effects import Effects
from forage_controller.core.ledger import Ledger
from forage_controller.core.losses import Losses
from forage_controller.core.sessions import start_of
from forage_controller.core.settlement import Settlement
from forage_controller.core.state import Device, Open, Page, Task
from forage_wire.errors import DecodeError
from forage_wire.messages import CancelAssigned, DeviceInventory, Forget, OutcomeSet

__all__ = ["Reconciler"]

_ORPHANS_MAX = 10_000
_ORPHAN_BYTES_MAX = 16 * 1024 * 1024

Row = tuple[int, str, int, int, str]
"""(assignment, task, low, high, state) of an inventory."""


@dataclass(slots=True, eq=False, repr=False)
class _Orphan:
    """Something of a task that we do not know: its client may still repeat the page."""

    device: Device
    session: str
    row: Row | None
    outcomes: OutcomeSet | None
    until_ms: int


class Reconciler:
    """Applies inventories; keeps what belongs to tasks not known (yet)."""

    def __init__(
        self,
        config: CoreConfig,
        effects: Effects,
        backlog: Backlog,
        assignments: Assignments,
        ledger: Ledger,
        settlement: Settlement,
        losses: Losses,
    ) -> None:
        self._limits = config.limits
        self._effects = effects
        self._backlog = backlog
        self._assignments = assignments
        self._ledger = ledger
        self._settlement = settlement
        self._losses = losses
        self._orphans: dict[str, dict[object, _Orphan]] = {}
        """By task, and there by what was sent: what comes again replaces itself."""
        self._orphan_count = 0
        self._orphan_bytes = 0

    def listen_from(self, now_ms: int) -> None:
        """We are back: clients have the whole time again to claim what is held for them."""
        for kept in self._orphans.values():
            for orphan in kept.values():
                orphan.until_ms = now_ms + self._limits.orphan_ms

    def on_inventory(self, device: Device, inventory: DeviceInventory, now_ms: int) -> None:
        """Make our book of a device true to what it says it holds."""
        held: dict[int, None] = {}
        for row in inventory.rows:
            number, high = row[0], row[3]
            held[number] = None
            opened = self._assignments.open.get(number)
            if opened is None or opened.device is not device:
                self._unknown(device, row, now_ms)
                continue
            opened.session = device.session
            if high < opened.end:
                # It gave back a tail, and its word of that was lost with an earlier link.
                self.give_back(opened, high, now_ms)
            if opened.number in self._assignments.open:
                self._assignments.remind(opened)
        self._note_strays(device, inventory)
        # The newest first, so that the oldest ends in front of the queue.
        for opened in reversed(list(device.assignments.values())):
            if opened.number in held:
                continue
            if start_of(opened.session) != start_of(device.session):
                self._losses.lose(opened, "it was started anew", now_ms)
            elif self._never_started(device, opened, inventory.received):
                self.take_back(opened, "never arrived", now_ms)

    def _note_strays(self, device: Device, inventory: DeviceInventory) -> None:
        """What a device runs though it is not open here."""
        tasks = self._ledger.tasks
        for number, task_id in device.strays.items():
            if task_id in tasks:
                tasks[task_id].strays.pop(number, None)
        device.strays = {
            number: task_id
            for number, task_id, _low, _high, state in inventory.rows
            if state == "running"
            and number not in self._assignments.open
            # (Told to forget it, the device ends it at once, and says no word of it.)
            and task_id not in self._ledger.released
        }
        for number, task_id, low, high, _state in inventory.rows:
            if number in device.strays and task_id in tasks:
                tasks[task_id].strays[number] = (device, low, high)
        self._assignments.touched[device.name] = device

    def _never_started(self, device: Device, opened: Open, received: int) -> bool:
        """Whether an assignment missing from an inventory can never start there.

        It can while its message may still be on the way: on this link, with a number that the
        device had not read (or that it has not got yet) when it wrote the inventory. On an
        earlier link it cannot: what names an earlier session of either end is dropped there.
        """
        link = device.link
        if link is None:
            return False
        if opened.link is not link:
            return True
        number = link.numbers.get(opened.number)
        return number is not None and number <= received

    def take_back(self, opened: Open, why: str, now_ms: int) -> None:
        """A device does not have an assignment, or does not take it: its calls wait again."""
        rest = self._assignments.unsettled(opened, opened.low, opened.end)
        self._assignments.close(opened, why, now_ms)
        self._wait_again(opened.task, rest, now_ms)

    def give_back(self, opened: Open, high: int, now_ms: int) -> None:
        """A device keeps [low, high) of an assignment: the rest waits again."""
        self._wait_again(
            opened.task, self._assignments.trimmed(opened.number, high, now_ms), now_ms
        )

    def _wait_again(self, task: Task, rest: list[Pending], now_ms: int) -> None:
        for pending in reversed(rest):
            self._backlog.add(pending, now_ms, front=True)
        self._ledger.release_if_over(task, now_ms)

    def _unknown(self, device: Device, row: Row, now_ms: int) -> None:
        number, task_id, low, high, _state = row
        task = self._ledger.tasks.get(task_id)
        if task is None and task_id in self._ledger.released:
            if device.link is not None:
                device.link.send(Forget(assignments=(number,)))
        elif low >= high:
            self._effects.drop(device.name, "an assignment without calls")
        elif task is None or task.page_of(low) is None:
            self._keep(device, task_id, row, None, now_ms + self._limits.orphan_ms)
        else:
            self._closed_here(device, task, row, now_ms)

    def _closed_here(self, device: Device, task: Task, row: Row, now_ms: int) -> None:
        """An assignment of a known page that is not open here: adopt it, or call it off."""
        number, _task, low, high, state = row
        if state == "unacknowledged":
            return
        page = task.page_of(low)
        assert page is not None
        free = (
            high <= page.end
            and number < self._assignments.next_number
            and number not in self._assignments.open
            and not self._open_elsewhere(page, low, high)
        )
        if free and not page.runs_once:
            self._adopt(device, task, page, row, now_ms)
        elif device.link is not None:
            # What runs may run on, unless only an open assignment's outcome counts, or nobody's.
            force = task.settle == "controller"
            device.link.send(CancelAssigned(assignment=number, ranges=((low, high),), force=force))
            unwanted = () if force else tuple(task.collected.common(low, high))
            if unwanted:
                device.link.send(CancelAssigned(assignment=number, ranges=unwanted, force=True))

    def _open_elsewhere(self, page: Page, low: int, high: int) -> bool:
        return bool(page.holding(low, high))

    def _adopt(self, device: Device, task: Task, page: Page, row: Row, now_ms: int) -> None:
        number, _task, low, high, _state = row
        taken = self._backlog.remove(page, low, high, now_ms)
        # All had equal counters when they were assigned. Since then a failure that it reported
        # has moved one's tries or deaths: that call waits. A loss has not ended it there.
        counters = min((each.counters for each in taken), default=(0, 0, 0))
        for pending in reversed(taken):
            if pending.counters[:2] != counters[:2]:
                self._backlog.add(pending, now_ms, front=True)
        opened = Open(
            number=number,
            task=task,
            page=page,
            low=low,
            high=high,
            end=high,
            device=device,
            session=device.session,
            counters=counters,
            measure=self._backlog.measure_of(page.header.function),
        )
        device.strays.pop(number, None)
        task.strays.pop(number, None)
        self._assignments.adopt(opened, now_ms)
        if opened.number in self._assignments.open:
            self._assignments.remind(opened)
        self._effects.note(
            "info", f"adopted assignment={number} task={task.id} device={device.name}"
        )

    # -- tasks not known --------------------------------------------------------------------

    def keep_outcomes(self, device: Device, outcomes: OutcomeSet, now_ms: int) -> None:
        """Hold outcomes of a task that is not known: its page may be on the way."""
        self._keep(device, outcomes.task, None, outcomes, now_ms + self._limits.orphan_ms)

    def _keep(
        self,
        device: Device,
        task: str,
        row: Row | None,
        outcomes: OutcomeSet | None,
        until_ms: int,
    ) -> None:
        size = len(outcomes.data) if outcomes else 0
        if self._orphan_count >= _ORPHANS_MAX or self._orphan_bytes + size > _ORPHAN_BYTES_MAX:
            self._effects.drop(device.name, "too many assignments of unknown tasks")
            return
        kept = self._orphans.setdefault(task, {})
        key: object = (device.name, row)
        if outcomes is not None:
            key = (device.name, outcomes.assignment, outcomes.ranges)
        if key in kept:
            return
        kept[key] = _Orphan(
            device=device, session=device.session, row=row, outcomes=outcomes, until_ms=until_ms
        )
        self._orphan_count += 1
        self._orphan_bytes += size

    def _take(self, task: str) -> list[_Orphan]:
        kept = list(self._orphans.pop(task, {}).values())
        self._orphan_count -= len(kept)
        self._orphan_bytes -= sum(len(orphan.outcomes.data) for orphan in kept if orphan.outcomes)
        return kept

    def page_came(self, task: Task, now_ms: int) -> None:
        """A page of a task is known now: take what was held of it."""
        if task.id not in self._orphans:
            return
        for orphan in self._take(task.id):
            device, row = orphan.device, orphan.row
            if orphan.outcomes is not None:
                try:
                    self._settlement.on_outcomes(device, orphan.outcomes, now_ms)
                except DecodeError as error:
                    self._effects.drop(device.name, error)
            elif row is not None and device.session == orphan.session:
                if row[0] in self._assignments.open:
                    continue
                if task.page_of(row[2]) is None:
                    self._keep(device, task.id, row, None, orphan.until_ms)
                else:
                    self._closed_here(device, task, row, now_ms)

    def forget(self, task: str) -> None:
        """A task will never be known: its devices drop it."""
        for orphan in self._take(task):
            device = orphan.device
            number = orphan.row[0] if orphan.row else 0
            if orphan.outcomes is not None:
                number = orphan.outcomes.assignment
            if device.link is not None and number:
                device.link.send(Forget(assignments=(number,)))

    def client_gone(self, client: str) -> None:
        """A client that will repeat nothing: forget what was held of its tasks."""
        for task in [task for task in self._orphans if task.startswith(client + "-")]:
            self.forget(task)

    def expire(self, now_ms: int) -> None:
        """Forget what nobody claimed in time."""
        while self._orphans:
            # The first of the first is the oldest but for a page that came without its own.
            task, kept = next(iter(self._orphans.items()))
            if next(iter(kept.values())).until_ms > now_ms:
                return
            self.forget(task)

    def next_wakeup_ms(self) -> int | None:
        """When `expire` has something to do."""
        for kept in self._orphans.values():
            return next(iter(kept.values())).until_ms
        return None
