"""The open assignments: numbered, sent, reported, trimmed, closed; each on its device's account."""

from collections.abc import Iterable

from forage_controller.core.backlog import Backlog, Pending, by_counters
from forage_controller.core.config import CoreConfig
from forage_controller.core.effects import Effects
from forage_controller.core.operations import (
    ClosedAssignment,
    SaveAssignment,
    TrimAssignment,
)
from forage_controller.core.state import Attempt, Checkpoint, Device, Open, Task
from forage_wire.limits import ENVELOPE_BYTES, RANGES_MAX
from forage_wire.messages import Assign, Assignment, CancelAssigned, Trim
from forage_wire.ranges import RangeSet
from forage_wire.tags import slice_tag

__all__ = ["Assignments"]

_KEPT_MS = 1_000
"""A device that has begun all of a slice may have some of it waiting again after this."""

_EPOCH_SHIFT = 40


class Assignments:
    """Every assignment that is not over, and what its device has on its plate by it."""

    __slots__ = (
        "_backlog",
        "_config",
        "_counter",
        "_effects",
        "_ready",
        "busy",
        "clones",
        "clones_first",
        "epoch",
        "freed",
        "newly_busy",
        "open",
        "touched",
    )

    def __init__(self, config: CoreConfig, effects: Effects, backlog: Backlog) -> None:
        self._config = config
        self._effects = effects
        self._backlog = backlog
        self._counter = 0
        self._ready: dict[str, tuple[Device, list[tuple[Open, Assignment]]]] = {}
        self.epoch = 0
        self.clones = 0
        """Second attempts made since start ..."""
        self.clones_first = 0
        """... and those of them whose outcome came first."""
        self.open: dict[int, Open] = {}
        self.busy: dict[str, Device] = {}
        """Devices with open assignments."""
        self.newly_busy: dict[str, Device] = {}
        """Those that had none when somebody looked."""
        self.touched: dict[str, Device] = {}
        """Devices whose room may have changed since the dispatcher looked."""
        self.freed: list[Open] = []
        """Of tasks with replicas: what ended or was cut since somebody looked."""

    @property
    def next_number(self) -> int:
        """The number of the next assignment: nobody can have it, or a higher one, from us."""
        return (self.epoch << _EPOCH_SHIFT) + self._counter + 1

    # -- making -----------------------------------------------------------------------------

    def assign(
        self,
        pending: Pending,
        n: int,
        calls: bytes,
        device: Device,
        beat_ms: int,
        now_ms: int,
        checkpoint: Checkpoint | None = None,
        *,
        is_clone: bool = False,
    ) -> Open:
        """Give the first `n` calls of `pending` to a device; it goes out with the batch.

        They are taken from the backlog, unless they are a clone of what runs elsewhere.

        Where a task must not run before its assignment is saved, it goes out after the commit.
        With a `checkpoint`, the first call goes alone, and on from there.
        """
        self._counter += 1
        queue = self._backlog.queue_of(pending.page)
        opened = Open(
            number=(self.epoch << _EPOCH_SHIFT) + self._counter,
            task=pending.task,
            page=pending.page,
            low=pending.low,
            high=pending.low + n,
            end=pending.low + n,
            device=device,
            session=device.session,
            counters=pending.counters,
            measure=queue.measure,
            announce=pending.announce,
            bytes=len(calls) if checkpoint is None else len(calls) + len(checkpoint.data),
            is_clone=is_clone,
        )
        self.register(opened, now_ms)
        if is_clone:
            self.clones += 1
        else:
            self._backlog.taken(queue, n)
        self._save(opened)
        wire = _wire(opened, calls, beat_ms, checkpoint)
        if checkpoint is not None and opened.attempt is not None:
            opened.attempt.resumed = checkpoint
        if pending.page.runs_once:
            # On every disk from which somebody may rule: another would run it a second time.
            self._effects.after_commit(
                lambda _at_ms: self._make_ready(opened, wire), urgent=True, everywhere=True
            )
        else:
            self._make_ready(opened, wire)
        return opened

    def register(self, opened: Open, now_ms: int) -> None:
        """Put an assignment on its device's and task's account (new, adopted or recovered)."""
        task, device = opened.task, opened.device
        queue = opened.queue = self._backlog.queue_of(opened.page)
        opened.left = opened.end - opened.low
        opened.assigned_ms = now_ms
        mean = opened.measure.mean_us
        each = self._config.limits.unmeasured_us if mean is None else mean
        opened.work_us = int(opened.left * each)
        opened.attempt = Attempt(
            assignment=opened.number,
            device=device.name,
            low=opened.low,
            high=opened.end,
            began_ms=now_ms,
        )
        task.attempts.append(opened.attempt)
        if len(task.attempts) > self._config.limits.attempts_kept:
            del task.attempts[0]
        task.assigned += 1
        task.open[opened.number] = opened
        opened.page.hold(opened)
        self.open[opened.number] = opened
        if not device.assignments:
            device.busy_since_ms = now_ms
            self.busy[device.name] = device
            self.newly_busy[device.name] = device
        device.assignments[opened.number] = opened
        device.work_us += opened.work_us
        device.work_bytes += opened.bytes
        self._backlog.opened(queue, 1)
        self.touched[device.name] = device

    def adopt(self, opened: Open, now_ms: int) -> None:
        """Take as open, and save, an assignment that its device reports and we did not know."""
        opened.sent = True
        self.register(opened, now_ms)
        self._save(opened)
        self.settled_before(opened, now_ms)

    def settled_before(self, opened: Open, now_ms: int) -> None:
        """Leave out, of an assignment made long ago, what will not be reported again."""
        task = opened.task
        for low, high in task.settled.common(opened.low, opened.end):
            opened.left -= opened.reported.add(low, high)
        # An error that was not final has moved the call's tries or deaths beyond the assignment's.
        for index, counters in list(task.counters.items()):
            if opened.low <= index < opened.end and counters[:2] != opened.counters[:2]:
                opened.left -= opened.reported.add(index, index + 1)
        if opened.left <= 0:
            self.close(opened, "done", now_ms)

    def _save(self, opened: Open) -> None:
        tries, deaths, losses = opened.counters
        self._effects.save(
            SaveAssignment(
                assignment=opened.number,
                task=opened.task.id,
                first=opened.page.first,
                low=opened.low,
                high=opened.high,
                device=opened.device.name,
                session=opened.session,
                tries=tries,
                deaths=deaths,
                losses=losses,
            )
        )

    # -- sending ----------------------------------------------------------------------------

    def _make_ready(self, opened: Open, wire: Assignment) -> None:
        if opened.number in self.open and opened.device.link is not None:
            device = opened.device
            self._ready.setdefault(device.name, (device, []))[1].append((opened, wire))

    def send(self) -> None:
        """Send what was assigned: one message a device, or as few as the packet limit allows."""
        if not self._ready:
            return
        ready, self._ready = self._ready, {}
        for device, rows in ready.values():
            if device.link is None:
                continue
            room = device.link.packet_bytes_max - ENVELOPE_BYTES
            batch: list[tuple[Open, Assignment]] = []
            size = 0
            for opened, wire in rows:
                if opened.number not in self.open or opened.session != device.session:
                    continue
                bytes_each = len(wire.calls) + len(wire.header) + 96
                if wire.checkpoint is not None:
                    bytes_each += len(wire.checkpoint[1])
                if batch and size + bytes_each > room:
                    _send(device, batch)
                    batch, size = [], 0
                batch.append((opened, wire))
                size += bytes_each
            if batch:
                _send(device, batch)

    # -- what devices say -------------------------------------------------------------------

    def reported(
        self, opened: Open, ranges: tuple[tuple[int, int], ...], now_ms: int, how: str = "done"
    ) -> None:
        """Outcomes of these calls are here; the assignment ends with its last (`how`)."""
        device = opened.device
        new = 0
        for low, high in ranges:
            low, high = max(low, opened.low), min(high, opened.end)
            if low < high:
                new += opened.reported.add(low, high)
        if not new:
            return
        before = opened.work_us
        opened.work_us = before * (opened.left - new) // max(1, opened.left)
        opened.left -= new
        opened.assigned_ms = now_ms
        opened.running = None
        device.work_us -= before - opened.work_us
        opened.task.devices[device.name] = opened.task.devices.get(device.name, 0) + new
        self.touched[device.name] = device
        if opened.left <= 0:
            self.close(opened, how, now_ms)

    def ask_trim(self, opened: Open, high: int) -> None:
        """Ask a device to give back the unstarted tail from `high` on."""
        link = opened.device.link
        if link is None or opened.trim_to is not None:
            return
        opened.trim_to = high
        link.send(Trim(rows=((opened.number, high),)))

    def trimmed(self, number: int, high: int, now_ms: int) -> list[Pending]:
        """A device keeps [low, high): what it gave back is to wait again."""
        opened = self.open.get(number)
        if opened is None:
            return []
        opened.trim_to = None
        high = max(opened.low, high)
        if high >= opened.end:
            opened.kept_until_ms = now_ms + _KEPT_MS
            return []
        back = self.unsettled(opened, high, opened.end)
        given = (
            opened.end
            - high
            - sum(
                found_high - found_low
                for found_low, found_high in opened.reported.common(high, opened.end)
            )
        )
        opened.end = high
        if opened.task.replicas > 1:
            self.freed.append(opened)
        before = opened.work_us
        opened.work_us = before * (opened.left - given) // max(1, opened.left)
        opened.left -= given
        opened.device.work_us -= before - opened.work_us
        self.touched[opened.device.name] = opened.device
        if opened.attempt is not None:
            opened.attempt.high = high
        if opened.left <= 0:
            self.close(opened, "taken back", now_ms)
        else:
            self._effects.save(TrimAssignment(assignment=number, high=high))
        return back

    def unsettled(self, opened: Open, low: int, high: int) -> list[Pending]:
        """What of [low, high) still has to be run, as it would wait."""
        done = RangeSet(opened.task.done.common(low, high))
        done.update(opened.reported.common(low, high))
        if opened.is_clone or opened.has_clone:
            # The other attempt is still at it.
            for other in opened.page.holding(low, high):
                if other is not opened:
                    done.update(other.reported.missing(other.low, other.end))
        pieces: list[Pending] = []
        for gap_low, gap_high in done.missing(low, high):
            pieces += by_counters(
                opened.task,
                opened.page,
                gap_low,
                gap_high,
                opened.counters,
                announce=opened.announce,
            )
        return pieces

    def call_off(
        self,
        task: Task,
        ranges: Iterable[tuple[int, int]],
        *,
        force: bool = False,
        but: int = 0,
    ) -> None:
        """Tell devices to skip calls that they have not reported (`force`: to kill them too).

        Args:
            task: Whose calls.
            ranges: Which, in order.
            force: Whether those that run are killed.
            but: An assignment that is left alone.
        """
        if len(task.open) <= (but in task.open) and not task.strays:
            return
        found: dict[int, tuple[Open, RangeSet]] = {}
        if force and task.strays:
            ranges = tuple(ranges)
            _kill_strays(task, RangeSet(ranges))
        for low, high in ranges:
            for page in task.pages_of(low, high):
                for opened in page.holding(low, high):
                    start, end = max(low, opened.low), min(high, opened.end)
                    if opened.number != but:
                        row = found.setdefault(opened.number, (opened, RangeSet()))
                        row[1].update(opened.reported.missing(start, end))
        for opened, calls in found.values():
            # Of two attempts on purpose, the one that is not needed is to make room.
            kill = force or opened.is_clone or opened.has_clone
            # What it is to kill it need not be told to skip.
            for told in (opened.killed, None if kill else opened.called_off):
                for low, high in told or ():
                    calls.remove(low, high)
            _note_told(opened, calls, kill)
            _call_off(opened, calls, force=kill)

    def remind(self, opened: Open) -> None:
        """A device has (again) what it holds of an assignment: tell it again what to skip.

        What its client has collected, or cancelled, is killed where it runs: nobody wants it, and
        whether it was cancelled with force is not known of an assignment that was closed since.
        """
        for low, high in opened.task.done.common(opened.low, opened.end):
            _note_told(opened, opened.reported.missing(low, high), False)
        for low, high in opened.task.collected.common(opened.low, opened.end):
            _note_told(opened, opened.reported.missing(low, high), True)
        killed, skipped = RangeSet(opened.killed or ()), RangeSet(opened.called_off or ())
        for low, high in opened.reported:
            killed.remove(low, high)
            skipped.remove(low, high)
        for low, high in killed:
            skipped.remove(low, high)
        _call_off(opened, skipped, force=False)
        _call_off(opened, killed, force=True)

    def close(self, opened: Open, how: str, now_ms: int, *, is_kept: bool = False) -> None:
        """An assignment is over.

        Args:
            opened: Which.
            how: What became of it.
            now_ms: The time.
            is_kept: The store keeps it as an open one, until its lease is over (`Leases.keep`).
        """
        if self.open.pop(opened.number, None) is None:
            return
        device, task = opened.device, opened.task
        if task.replicas > 1:
            self.freed.append(opened)
        del task.open[opened.number]
        opened.page.let_go(opened)
        device.assignments.pop(opened.number, None)
        device.work_us -= opened.work_us
        device.work_bytes -= opened.bytes
        if device.link is not None:
            device.link.numbers.pop(opened.number, None)
        if not device.assignments:
            self.busy.pop(device.name, None)
        if opened.attempt is not None:
            opened.attempt.how = how
            opened.attempt.ended_ms = now_ms
        self._backlog.opened(opened.queue, -1)
        self.touched[device.name] = device
        if not is_kept:
            self.forget(opened.number)

    def forget(self, number: int) -> None:
        """The store need not know of an assignment any more."""
        self._effects.save(ClosedAssignment(assignment=number))


def _send(device: Device, batch: list[tuple[Open, Assignment]]) -> None:
    assert device.link is not None
    for opened, _wire_form in batch:
        opened.link = device.link
        opened.sent = True
    device.link.send(
        Assign(assignments=tuple([wire for _opened, wire in batch])),
        tokens=tuple([opened.number for opened, _wire_form in batch]),
    )
    for opened, _wire_form in batch:
        if opened.called_off or opened.killed:
            # Cancelled before it left.
            _call_off(opened, opened.called_off, force=False)
            _call_off(opened, opened.killed, force=True)


def _kill_strays(task: Task, calls: RangeSet) -> None:
    """Of what was given up and runs on all the same, end what nobody wants."""
    for number, (device, low, high) in task.strays.items():
        unwanted = tuple(calls.common(low, high))
        if unwanted and device.link is not None:
            device.link.send(CancelAssigned(assignment=number, ranges=unwanted, force=True))


def _note_told(opened: Open, calls: Iterable[tuple[int, int]], kill: bool) -> None:
    """A device is told to skip calls, or to kill them."""
    if kill:
        opened.killed = opened.killed or RangeSet()
        opened.killed.update(calls)
    else:
        opened.called_off = opened.called_off or RangeSet()
        opened.called_off.update(calls)


def _call_off(opened: Open, calls: RangeSet | None, *, force: bool) -> None:
    link = opened.device.link
    if not calls or not opened.sent or link is None:
        return
    frozen = calls.freeze()
    for at in range(0, len(frozen), RANGES_MAX):
        link.send(
            CancelAssigned(
                assignment=opened.number, ranges=frozen[at : at + RANGES_MAX], force=force
            )
        )


def _wire(opened: Open, calls: bytes, beat_ms: int, checkpoint: Checkpoint | None) -> Assignment:
    tries, deaths, losses = opened.counters
    opened.tag = slice_tag(
        opened.task.key,
        opened.task.id,
        opened.number,
        opened.low,
        opened.high,
        opened.device.name,
    )
    return Assignment(
        assignment=opened.number,
        header=opened.page.header_bytes,
        low=opened.low,
        high=opened.high,
        tries=tries,
        deaths=deaths,
        losses=losses,
        beat_ms=beat_ms,
        tag=opened.tag,
        announce=opened.announce,
        checkpoint=None if checkpoint is None else (checkpoint.number, checkpoint.data),
        calls=calls,
    )
