"""What a device holds against what we think it holds: keep, adopt, cancel, forget, or lost."""

from dataclasses import dataclass

from forage_controller.core.assignments import Assignments
from forage_controller.core.backlog import Backlog
from forage_controller.core.config import CoreConfig
from forage_controller.core.effects import Effects
from forage_controller.core.ledger import Ledger
from forage_controller.core.losses import Losses
from forage_controller.core.sessions import start_of
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
        losses: Losses,
    ) -> None:
        self._limits = config.limits
        self._effects = effects
        self._backlog = backlog
        self._assignments = assignments
        self._ledger = ledger
        self._losses = losses
        self._orphans: dict[str, list[_Orphan]] = {}
        self._orphan_count = 0
        self._orphan_bytes = 0

    def listen_from(self, now_ms: int) -> None:
        """We are back: clients have the whole time again to claim what is held for them."""
        for kept in self._orphans.values():
            for orphan in kept:
                orphan.until_ms = now_ms + self._limits.orphan_ms

    def on_inventory(self, device: Device, inventory: DeviceInventory, now_ms: int) -> None:
        """Make our book of a device true to what it says it holds."""
        held: dict[int, None] = {}
        for row in inventory.rows:
            held[row[0]] = None
            opened = self._assignments.open.get(row[0])
            if opened is not None and opened.device is device:
                opened.session = device.session
                continue
            self._unknown(device, row, now_ms)
        # The newest first, so that the oldest ends in front of the queue.
        for opened in reversed(list(device.assignments.values())):
            if opened.number in held:
                continue
            if start_of(opened.session) != start_of(device.session):
                self._losses.lose(opened, "it was started anew", now_ms)
            elif self._never_started(device, opened, inventory.received):
                self._take_back(opened, now_ms)

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

    def _take_back(self, opened: Open, now_ms: int) -> None:
        rest = self._assignments.unsettled(opened, opened.low, opened.end)
        self._assignments.close(opened, "never arrived", now_ms)
        for pending in reversed(rest):
            self._backlog.add(pending, front=True)
        self._ledger.release_if_over(opened.task, now_ms)

    def _unknown(self, device: Device, row: Row, now_ms: int) -> None:
        number, task_id = row[:2]
        task = self._ledger.tasks.get(task_id)
        if task is not None:
            self._closed_here(device, task, row, now_ms)
        elif task_id in self._ledger.released:
            if device.link is not None:
                device.link.send(Forget(assignments=(number,)))
        else:
            self._keep(device, task_id, row, None, now_ms)

    def _closed_here(self, device: Device, task: Task, row: Row, now_ms: int) -> None:
        """An assignment of a known task that is not open here: adopt it, or call it off."""
        number, _task, low, high, state = row
        if state == "unacknowledged":
            return
        page = task.page_of(low)
        free = page is not None and high <= page.end and not self._open_elsewhere(task, low, high)
        strict = page is not None and (
            page.header.settle == "controller" or page.header.options.at_most_once
        )
        if page is not None and free and not strict:
            self._adopt(device, task, page, row, now_ms)
        elif device.link is not None:
            device.link.send(CancelAssigned(assignment=number, ranges=((low, high),), force=strict))

    def _open_elsewhere(self, task: Task, low: int, high: int) -> bool:
        return any(opened.low < high and low < opened.end for opened in task.open.values())

    def _adopt(self, device: Device, task: Task, page: Page, row: Row, now_ms: int) -> None:
        number, _task, low, high, _state = row
        taken = self._backlog.remove(task, low, high)
        counters = taken[0].counters if taken else (0, 0, 0)
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
        self._assignments.adopt(opened, now_ms)
        self._effects.note(
            "info", f"adopted assignment={number} task={task.id} device={device.name}"
        )

    # -- tasks not known --------------------------------------------------------------------

    def keep_outcomes(self, device: Device, outcomes: OutcomeSet, now_ms: int) -> None:
        """Hold outcomes of a task that is not known: its page may be on the way."""
        self._keep(device, outcomes.task, None, outcomes, now_ms)

    def _keep(
        self,
        device: Device,
        task: str,
        row: Row | None,
        outcomes: OutcomeSet | None,
        now_ms: int,
    ) -> None:
        size = len(outcomes.data) if outcomes else 0
        if self._orphan_count >= _ORPHANS_MAX or self._orphan_bytes + size > _ORPHAN_BYTES_MAX:
            self._effects.drop(device.name, "too many assignments of unknown tasks")
            return
        kept = self._orphans.setdefault(task, [])
        if row is not None and any(orphan.row == row for orphan in kept):
            return
        kept.append(
            _Orphan(
                device=device,
                session=device.session,
                row=row,
                outcomes=outcomes,
                until_ms=now_ms + self._limits.orphan_ms,
            )
        )
        self._orphan_count += 1
        self._orphan_bytes += size

    def _take(self, task: str) -> list[_Orphan]:
        kept = self._orphans.pop(task, [])
        self._orphan_count -= len(kept)
        self._orphan_bytes -= sum(len(orphan.outcomes.data) for orphan in kept if orphan.outcomes)
        return kept

    def page_came(self, task: Task, now_ms: int) -> None:
        """A task is known now: take what was held of it."""
        if task.id not in self._orphans:
            return
        for orphan in self._take(task.id):
            device = orphan.device
            if orphan.outcomes is not None:
                try:
                    self._ledger.on_outcomes(device, orphan.outcomes, now_ms)
                except DecodeError as error:
                    self._effects.drop(device.name, error)
            elif orphan.row is not None and device.session == orphan.session:
                known = self._assignments.open.get(orphan.row[0])
                if known is None:
                    self._closed_here(device, task, orphan.row, now_ms)

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
        for task in [
            task
            for task, orphans in self._orphans.items()
            if orphans and orphans[0].until_ms <= now_ms
        ]:
            self.forget(task)

    def next_wakeup_ms(self) -> int | None:
        """When `expire` has something to do."""
        if not self._orphans:
            return None
        return min(orphans[0].until_ms for orphans in self._orphans.values() if orphans)
