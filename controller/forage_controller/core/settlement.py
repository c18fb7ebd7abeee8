"""How calls are settled: outcomes of devices judged, errors made here, counters moved.

The first valid outcome of any assignment wins, once; of a task with `settle=controller` only an
open assignment's. A device may forget an outcome when it is committed; where there is no room to
keep it, the device keeps it, and is asked for it again when there is.
"""

from collections.abc import Iterable
from dataclasses import replace
from hmac import compare_digest
from random import Random

from forage_controller.core.assignments import Assignments
from forage_controller.core.backlog import Backlog, Pending
from forage_controller.core.config import CoreConfig
from forage_controller.core.effects import Effects
from forage_controller.core.later import Later
from forage_controller.core.ledger import Ledger
from forage_controller.core.operations import SaveCounters, SaveOutcomes
from forage_controller.core.state import Counters, Device, Open, Page, Task
from forage_wire.errors import DecodeError
from forage_wire.limits import BACKOFF_MS_MAX, DEATHS_MAX, RANGES_MAX, UNFINISHED_PART_BYTES_MAX
from forage_wire.messages import OutcomeSet
from forage_wire.ranges import Ranges, RangeSet, ranges_count
from forage_wire.system_errors import CANCELLED, TIMEOUT, system_error
from forage_wire.tags import slice_tag_valid

__all__ = ["Settlement"]

NO_FAULT = ("cancelled", "lost")
"""Reasons of errors that say nothing about the call: it was told to end, or its lease was over."""
_OUTCOMES_AT_ONCE = 4_096
"""Controller-made outcomes in one set."""
_DATA_BYTES_MAX = UNFINISHED_PART_BYTES_MAX - 128 * 1024
"""Of one set: with all around it, it must fit a message again."""


class Settlement:
    """Judges what devices send, and ends calls that no device will."""

    def __init__(
        self,
        config: CoreConfig,
        effects: Effects,
        backlog: Backlog,
        later: Later,
        assignments: Assignments,
        ledger: Ledger,
        random: Random,
    ) -> None:
        self._limits = config.limits
        self._later = later
        self._random = random
        self._effects = effects
        self._backlog = backlog
        self._assignments = assignments
        self._ledger = ledger
        self._acknowledge: dict[str, tuple[Device, dict[int, RangeSet]]] = {}
        self._acknowledge_ms: int | None = None
        """When that is told."""
        self._acknowledge_bytes: dict[str, int] = {}
        """Of outcomes in `_acknowledge`, by device."""
        self._left: dict[str, Device] = {}
        """Devices that keep outcomes for which there was no room."""
        self._in_doubt: dict[str, Device] = {}
        """Devices of which only they can tell what is left of their strays."""

    # -- outcomes of devices ----------------------------------------------------------------

    def on_outcomes(self, device: Device, outcomes: OutcomeSet, now_ms: int) -> bool:
        """Settle what a device sent; False where its task is not known (it may still come).

        Raises DecodeError where the set contradicts itself or its tag is not the slice's.
        """
        _check(outcomes)
        task = self._ledger.tasks.get(outcomes.task)
        if task is None:
            self._note_stray(device, None, outcomes)
            if outcomes.task not in self._ledger.released:
                return False
            # Only when that is saved: until then a crash would bring the task back.
            self._acknowledge_once_committed(device, outcomes, everywhere=True)
            return True
        opened = self._assignments.open.get(outcomes.assignment)
        if not _is_tag_right(task, device, opened, outcomes):
            raise DecodeError("outcomes with a tag that is not their assignment's")
        if device.strays:
            self._note_stray(device, task, outcomes)
        if opened is not None and (opened.task is not task or opened.device is not device):
            raise DecodeError("outcomes of an assignment that is another's")
        ended: list[int] = []
        if opened is not None and outcomes.errors:
            ended = self._ended(task, opened, outcomes)
        if ended:
            outcomes = _with_final(outcomes, ended)
        new = self._news(task, opened, outcomes)
        if new and not self._has_room(device):
            return True
        if opened is not None:
            opened.measure.add(ranges_count(outcomes.ranges), outcomes.run_us)
        again: list[Pending] = []
        if opened is not None and outcomes.errors:
            again = self._again(task, opened, outcomes)
        if new:
            self._settle(task, outcomes, device.name, new, now_ms, tell_owner=bool(ended))
        if opened is not None:
            device.refusals = 0
            self._assignments.clones_first += bool(new) and opened.is_clone
            self._assignments.reported(opened, outcomes.ranges, now_ms, _how(outcomes))
        for pending in again:
            wait_ms = self._back_off_ms(opened.counters, pending) if opened is not None else 0
            if wait_ms:
                self._later.add(pending, now_ms + wait_ms)
            else:
                self._backlog.add(pending, now_ms)
        page = task.page_of(outcomes.low) if opened is None else opened.page
        self._acknowledge_once_committed(
            device, outcomes, everywhere=page is not None and page.runs_once
        )
        self._ledger.release_if_over(task, now_ms)
        return True

    def _note_stray(self, device: Device, task: Task | None, outcomes: OutcomeSet) -> None:
        """Calls have ended of what a device runs though it is not open here."""
        if outcomes.assignment not in device.strays:
            return
        if outcomes.ranges == ((outcomes.low, outcomes.high),):
            del device.strays[outcomes.assignment]
            if task is not None:
                task.strays.pop(outcomes.assignment, None)
            self._assignments.touched[device.name] = device
        else:
            # Of the others some may have ended long ago.
            self._in_doubt[device.name] = device

    def _news(self, task: Task, opened: Open | None, outcomes: OutcomeSet) -> Ranges:
        """The calls that these outcomes settle."""
        if task.settle == "direct" and not outcomes.errors and len(outcomes.ranges) == 1:
            # Nearly all are.
            return tuple(task.done.missing(*outcomes.ranges[0]))
        settled = RangeSet(outcomes.ranges)
        for index, _reason, final in outcomes.errors:
            if not final:
                settled.remove(index, index + 1)
        new = RangeSet()
        for low, high in settled:
            if task.settle == "controller":
                # A closed assignment never wins, nor does what was taken back from an open one.
                if opened is None:
                    continue
                low, high = max(low, opened.low), min(high, opened.end)
            new.update(task.done.missing(low, high))
        return new.freeze()

    def _has_room(self, device: Device) -> bool:
        """Whether an outcome can be kept; else its device does, until it is asked to report."""
        limits = self._limits
        if self._ledger.archive_bytes <= limits.archive_bytes + limits.archive_reserve_bytes:
            return True
        if device.name not in self._left:
            self._left[device.name] = device
            self._effects.note(
                "warning",
                f"archive full, outcomes left on device={device.name} until there is room",
            )
        return False

    def take_left(self) -> list[Device]:
        """Devices whose outcomes were left with them, once there is room again."""
        if not self._left or self._ledger.archive_bytes > self._limits.archive_bytes:
            return []
        left, self._left = self._left, {}
        return list(left.values())

    def take_in_doubt(self) -> list[Device]:
        """Devices that are to be asked again what they run."""
        if not self._in_doubt:
            return []
        found, self._in_doubt = self._in_doubt, {}
        return list(found.values())

    def forget(self, device: Device) -> None:
        """A device is not known any more."""
        self._left.pop(device.name, None)
        self._in_doubt.pop(device.name, None)
        self._acknowledge.pop(device.name, None)
        self._acknowledge_bytes.pop(device.name, None)

    def _ended(self, task: Task, opened: Open, outcomes: OutcomeSet) -> list[int]:
        """The calls whose error is the last, though their device does not call it final.

        It may not know: of an adopted assignment, a call may have failed elsewhere since. And a
        device that never says final is not believed.
        """
        options = opened.page.header.options
        ended: list[int] = []
        for index, reason, final in outcomes.errors:
            if final or not self._counts(task, opened, index):
                continue
            tries, deaths, _losses = _moved(task, opened, index, reason)
            if deaths >= DEATHS_MAX or tries > options.retries or options.at_most_once:
                ended.append(index)
        return ended

    def _counts(self, task: Task, opened: Open, index: int) -> bool:
        """Whether an error moves a call's counters: only its latest assignment's does.

        That is an open one; what a closed one reports runs elsewhere already.
        """
        return (
            index not in task.done
            and index not in opened.reported
            and opened.low <= index < opened.end
        )

    def _again(self, task: Task, opened: Open, outcomes: OutcomeSet) -> list[Pending]:
        """Move the counters of calls that did not end, and say what is to run again."""
        again: list[Pending] = []
        for index, reason, final in outcomes.errors:
            if final or not self._counts(task, opened, index):
                continue
            counters = _moved(task, opened, index, reason)
            self.count(task, index, counters)
            if opened.page.has_other(opened, index):
                # Another attempt of it is under way.
                continue
            again.append(
                Pending(task=task, page=opened.page, low=index, high=index + 1, counters=counters)
            )
        return again

    def _back_off_ms(self, before: Counters, pending: Pending) -> int:
        """How long a call that raised waits: between half and all of what doubles each time.

        By chance, lest those that failed together because of one thing come back together.
        """
        tries = pending.counters[0]
        first_ms = pending.page.header.options.backoff_ms
        if not first_ms or tries == before[0]:
            return 0
        most_ms = min(BACKOFF_MS_MAX, first_ms << min(tries - 1, 16))
        return self._random.randint((most_ms + 1) // 2, most_ms)

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

    def _settle(
        self,
        task: Task,
        outcomes: OutcomeSet,
        device: str,
        ranges: Ranges,
        now_ms: int,
        *,
        tell_owner: bool,
    ) -> None:
        """Keep outcomes; `tell_owner`: its client does not take them from the device's word."""
        if outcomes.errors:
            new = RangeSet(ranges)
            task.failed += sum(final and index in new for index, _reason, final in outcomes.errors)
        self._mark_settled(task, ranges, len(outcomes.data), now_ms)
        if task.replicas > 1:
            task.note_answered(ranges, device)
        self._save(task, outcomes, device, ranges)
        # Calls that are with another device now are to be skipped there.
        self._assignments.call_off(task, ranges, but=outcomes.assignment)
        to_owner = tell_owner or task.settle == "controller"
        self._effects.after_commit(
            lambda at_ms: self._committed(task, ranges, outcomes, device, to_owner, at_ms),
            urgent=to_owner or bool(task.attached),
        )

    def _save(self, task: Task, outcomes: OutcomeSet, device: str, settled: Ranges) -> None:
        self._effects.save(
            SaveOutcomes(
                task=task.id,
                assignment=outcomes.assignment,
                device=device,
                low=outcomes.low,
                high=outcomes.high,
                tag=outcomes.tag,
                ranges=outcomes.ranges,
                settled=settled,
                errors=outcomes.errors,
                run_us=outcomes.run_us,
                data=outcomes.data,
            )
        )

    def _mark_settled(self, task: Task, ranges: Ranges, data_bytes: int, now_ms: int) -> None:
        calls = ranges_count(ranges)
        task.settled.update(ranges)
        task.done.update(ranges)
        for low, high in ranges:
            task.forget_states(low, high)
        if task.checkpoints:
            self._ledger.checkpoints.ended(task, ranges)
        task.settled_ms = now_ms
        task.archived += calls
        task.archive_bytes += data_bytes
        self._ledger.settled += calls
        self._ledger.archived += calls
        self._ledger.archive_bytes += data_bytes
        self._ledger.dirty[task.id] = task

    def _committed(
        self,
        task: Task,
        ranges: Ranges,
        outcomes: OutcomeSet,
        device: str,
        to_owner: bool,
        now_ms: int,
    ) -> None:
        task.committed.update(ranges)
        if to_owner or task.attached:
            told = replace(outcomes, task=task.id, device=device)
            if to_owner:
                self._ledger.to_clients.append((task.client, told))
            for client in task.attached.values():
                self._ledger.to_clients.append((client, told))
        self._ledger.tell_settled(task, now_ms)

    def _acknowledge_once_committed(
        self, device: Device, outcomes: OutcomeSet, *, everywhere: bool
    ) -> None:
        """Let a device forget outcomes.

        Args:
            device: Who sent them.
            outcomes: Which.
            everywhere: Only when every standby has them. One that took over without would find a
                call open that its device does not have, and take it for one that never arrived.
        """
        assignment, ranges, size = outcomes.assignment, outcomes.ranges, len(outcomes.data)
        device.uncommitted += 1
        capabilities = device.capabilities
        is_mcu = capabilities is not None and capabilities.profile == "mcu"

        def acknowledge(now_ms: int) -> None:
            device.uncommitted -= 1
            rows = self._acknowledge.setdefault(device.name, (device, {}))[1]
            if assignment in rows:
                rows[assignment].update(ranges)
            else:
                rows[assignment] = RangeSet(ranges)
            held = self._acknowledge_bytes.get(device.name, 0) + size
            self._acknowledge_bytes[device.name] = held
            if self._acknowledge_ms is None:
                self._acknowledge_ms = now_ms + self._limits.acknowledge_after_ms
            if is_mcu or held > self._limits.acknowledge_bytes:
                self._acknowledge_ms = now_ms
            # A microcontroller has room for the next call only now.
            self._assignments.touched[device.name] = device

        self._effects.after_commit(acknowledge, urgent=is_mcu, everywhere=everywhere)

    def acknowledge_now(self, now_ms: int) -> None:
        """A device has no room: it may be waiting for what is to be told."""
        if self._acknowledge:
            self._acknowledge_ms = now_ms

    def next_wakeup_ms(self) -> int | None:
        """When devices are to be told what is committed."""
        return self._acknowledge_ms

    def take_acknowledgements(self, now_ms: int) -> list[tuple[Device, list[tuple[int, Ranges]]]]:
        """What devices are to be told now is committed, cut to what a message may hold."""
        if self._acknowledge_ms is None or now_ms < self._acknowledge_ms:
            return []
        self._acknowledge_ms = None
        self._acknowledge_bytes = {}
        found: list[tuple[Device, list[tuple[int, Ranges]]]] = []
        for device, rows in self._acknowledge.values():
            cut: list[tuple[int, Ranges]] = []
            for number, ranges in rows.items():
                frozen = ranges.freeze()
                cut += [
                    (number, frozen[at : at + RANGES_MAX])
                    for at in range(0, len(frozen), RANGES_MAX)
                ]
            found.append((device, cut))
        self._acknowledge = {}
        return found

    # -- outcomes made here -----------------------------------------------------------------

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
        # One item for all of a set: a million calls may end for one reason.
        data = b"\x81" + system_error(system_reason, text, **details)
        for low, high in ranges:
            for gap_low, gap_high in task.done.missing(low, high):
                for first in range(gap_low, gap_high, _OUTCOMES_AT_ONCE):
                    end = min(first + _OUTCOMES_AT_ONCE, gap_high)
                    made = OutcomeSet(
                        task=task.id,
                        ranges=((first, end),),
                        errors=tuple([(index, reason, True) for index in range(first, end)]),
                        data=data,
                    )
                    self._make(task, made, now_ms)
        self._ledger.release_if_over(task, now_ms)

    def _make(self, task: Task, made: OutcomeSet, now_ms: int) -> None:
        calls = len(made.errors)
        task.failed += calls
        self._mark_settled(task, made.ranges, len(made.data) + 16 * calls, now_ms)
        self._save(task, made, "", made.ranges)
        self._assignments.call_off(task, made.ranges)
        self._effects.after_commit(
            lambda at_ms: self._committed(task, made.ranges, made, "", True, at_ms), urgent=True
        )

    # -- calls that nobody wants --------------------------------------------------------------

    def cancel(self, task: Task, ranges: Ranges, *, force: bool, owner: bool, now_ms: int) -> None:
        """Nobody wants these calls any more: they leave the queue, devices skip (or kill) them.

        The owner has decided already that they are cancelled, so for it they have ended; from
        another client of the same user the owner is told by an outcome.
        """
        known = [(low, min(high, task.end)) for low, high in ranges if low < task.end]
        wanted: list[tuple[int, int]] = []
        for low, high in known:
            wanted += task.done.missing(low, high)
            for page in task.pages_of(low, high):
                if page.pending:
                    self._backlog.discard(page, low, high)
        self._assignments.call_off(task, known if force else wanted, force=force)
        if owner:
            self._ledger.collect(task, wanted, now_ms)
        else:
            text = "cancelled by another client of the same user"
            self.make_outcomes(task, wanted, "cancelled", CANCELLED, text, now_ms)

    def end_late(self, task: Task, page: Page, now_ms: int) -> None:
        """The deadline of a page's calls is over: what has not ended of them ends now."""
        late = task.done.missing(page.first, page.end)
        if not late:
            return
        deadline_ms = page.header.options.deadline_ms
        text = (
            f"the call had not ended {deadline_ms / 1_000:g} s after it was submitted, which is "
            "its deadline"
        )
        self._backlog.discard(page, page.first, page.end)
        self._assignments.call_off(task, late, force=True)
        self.make_outcomes(task, late, "timeout", TIMEOUT, text, now_ms, timeout_ms=deadline_ms)

    def abandon(self, task: Task, now_ms: int) -> None:
        """Its client was told that a task is refused: whatever of it is here ends."""
        everything = ((0, task.end),)
        self.cancel(task, everything, force=True, owner=True, now_ms=now_ms)
        task.total = task.end
        self._ledger.collect(task, everything, now_ms)
        self._ledger.release_if_over(task, now_ms)


def _is_tag_right(task: Task, device: Device, opened: Open | None, outcomes: OutcomeSet) -> bool:
    """Whether outcomes carry the tag of the slice that they say they are of, and of their device."""
    if (
        opened is not None
        and opened.tag
        and opened.task is task
        and opened.device is device
        and (opened.low, opened.high) == (outcomes.low, outcomes.high)
    ):
        return compare_digest(outcomes.tag, opened.tag)
    return slice_tag_valid(
        outcomes.tag,
        task.key,
        task.id,
        outcomes.assignment,
        outcomes.low,
        outcomes.high,
        device.name,
    )


def _moved(task: Task, opened: Open, index: int, reason: str) -> Counters:
    """A call's counters after an error that did not end it."""
    # Of an adopted assignment's calls, one may have been lost more often than the others.
    tries, deaths, losses = task.counters.get(index, opened.counters)
    if reason == "died":
        deaths += 1
    elif reason not in NO_FAULT:
        tries += 1
    return (tries, deaths, losses)


def _how(outcomes: OutcomeSet) -> str:
    """How an attempt ended whose last outcomes these are."""
    if not outcomes.errors:
        return "done"
    reasons = [reason for _index, reason, _final in outcomes.errors]
    if "cancelled" in reasons:
        return "cancelled"
    return "its lease was over" if "lost" in reasons else "done"


def _with_final(outcomes: OutcomeSet, ended: list[int]) -> OutcomeSet:
    last = dict.fromkeys(ended)
    return replace(
        outcomes,
        errors=tuple(
            [(index, reason, final or index in last) for index, reason, final in outcomes.errors]
        ),
    )


def _check(outcomes: OutcomeSet) -> None:
    """What a set says must agree with itself."""
    for low, high in outcomes.ranges:
        if low < outcomes.low or high > outcomes.high:
            raise DecodeError("outcomes of calls outside their assignment")
    if len(outcomes.data) > _DATA_BYTES_MAX:
        raise DecodeError(f"outcomes of more than {_DATA_BYTES_MAX} bytes")
    if outcomes.errors:
        ranges = RangeSet(outcomes.ranges)
        seen: dict[int, None] = {}
        for index, _reason, _final in outcomes.errors:
            if index not in ranges or index in seen:
                raise DecodeError("errors of calls that are not among the outcomes")
            seen[index] = None
