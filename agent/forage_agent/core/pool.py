"""The workers: who has which calls, what becomes of them, and what waits before them.

A worker is given little at a time, about `WORKER_WORK_US` of measured work, so that nearly all
that has not begun is here, where it can be trimmed, cancelled and reordered without asking
anybody. What it was given and has not begun is taken back when the call before it is slow, and when
calls of another stream come (`newcomers`).

When a worker dies, exactly one call is to blame: the one it was in. All others go on in a fresh
worker, without the controller's help.
"""

from collections import deque
from collections.abc import Callable

from forage_agent.core.code import CodeStore
from forage_agent.core.endings import (
    CANCELLED_BEFORE,
    CANCELLED_RUNNING,
    LEASE_OVER,
    cause_of,
    death,
    timeout,
    too_large,
)
from forage_agent.core.events import (
    Chunk,
    Command,
    FunctionCode,
    KillWorker,
    LeaseWorker,
    RunCalls,
    StartWorker,
    TakeBack,
    WorkerExited,
    WorkerOutcomes,
    WorkerReturned,
)
from forage_agent.core.newcomers import Newcomers
from forage_agent.core.queue import SliceQueue
from forage_agent.core.settings import (
    RESTART_AFTER_MS,
    RESTART_AFTER_MS_MAX,
    SHORT_US,
    SPREAD_MIN_US,
    STARTED_AFTER_MS,
    WORKER_REFILL_US,
    WORKER_WORK_US,
    NamedFunction,
)
from forage_agent.core.slices import Piece, RunTimes, Slice, Stream
from forage_agent.core.slots import Given, Worker, is_cancelled, is_forgotten
from forage_wire.errors import DecodeError
from forage_wire.io import Note
from forage_wire.limits import CALL_BYTES_MAX
from forage_wire.ranges import Ranges, RangeSet
from forage_wire.system_errors import REFUSED, system_error

__all__ = ["Pool"]


class Pool:
    """The device's slots, the workers in them, and the calls before them.

    Args:
        slots: How many.
        code: Where functions' code is.
        functions: The device's own functions, by their key.
        ended: Called with a slice and outcomes of it.
        started: Called with a slice and the index of a call that has run `STARTED_AFTER_MS`.
    """

    def __init__(
        self,
        slots: int,
        code: CodeStore,
        functions: dict[bytes, NamedFunction],
        ended: Callable[[Slice, Piece], None],
        started: Callable[[Slice, int], None],
    ) -> None:
        self._workers = [Worker(slot=slot) for slot in range(slots)]
        self._code = code
        self._functions = functions
        self._ended = ended
        self._started = started
        self._queue = SliceQueue()
        self._times = RunTimes()
        self._newcomers = Newcomers()

    # -- what the core looks at -----------------------------------------------------------------

    @property
    def running(self) -> int:
        """Slots with calls."""
        return sum([1 for worker in self._workers if worker.given])

    @property
    def queued(self) -> int:
        """Calls that wait for a slot."""
        return self._queue.calls

    def current(self, slot: int) -> tuple[Slice, int] | None:
        """The call that a worker is in, or was in last: whose output this is."""
        worker = self._workers[slot]
        if worker.given:
            return worker.given[0].part, worker.given[0].low
        return worker.last

    def holder(self, slot: int, assignment: int, index: int) -> Slice | None:
        """The slice of a call that a worker has; None where that call has ended, or is another's."""
        for given in self._workers[slot].given:
            if given.part.assignment == assignment and given.low <= index < given.high:
                return given.part
        return None

    def next_wakeup_ms(self) -> int | None:
        """When `poll` has something to do without further events."""
        due = self._newcomers.next_wakeup_ms()
        for worker in self._workers:
            found = worker.wakeup_ms()
            if found is not None and (due is None or found < due):
                due = found
        return due

    def report_again(self) -> None:
        """Nobody knows what runs: `started` is called once more for each call that does."""
        for worker in self._workers:
            worker.is_reported = False

    # -- slices ---------------------------------------------------------------------------------

    def offer(self, part: Slice) -> None:
        """A slice is here, or something that it waited for is."""
        is_new = part.is_runnable and not self.has_more_of(part.stream)
        self._queue.update(part)
        if is_new:
            self._newcomers.waiting[part.stream] = part

    def trim(self, part: Slice, wished: int) -> int:
        """Take back an untouched tail; the answer is the real end."""
        real = part.trim(wished)
        self._queue.update(part)
        return real

    def cancel(self, part: Slice, ranges: Ranges, *, force: bool) -> list[Command]:
        """Skip calls that have not begun; with `force` kill those that have."""
        self._skip(part, ranges, CANCELLED_BEFORE, "cancelled")
        if not force:
            return []
        part.cancelled.update(ranges)
        return self._kill_all("cancelled", is_cancelled)

    def leased(self, part: Slice) -> list[Command]:
        """A slice's exclusive calls may be run for longer."""
        self._queue.update(part)
        return [
            LeaseWorker(slot=worker.slot, until_ms=part.leased_until_ms)
            for worker in self._workers
            if any(given.part is part for given in worker.given)
        ]

    def expire(self, part: Slice) -> list[Command]:
        """A slice's lease is over: nothing of it may run, or go on running, here."""
        part.is_expired = True
        everything = ((part.low, part.high),)
        self._skip(part, everything, LEASE_OVER, "lost")
        part.cancelled.update(everything)
        return self._kill_all("cancelled", is_cancelled)

    def _skip(self, part: Slice, ranges: Ranges, item: bytes, reason: str) -> None:
        """End calls that have not begun."""
        gone = RangeSet()
        for low, high in ranges:
            gone.update(part.todo.common(low, high))
        for low, high in gone:
            part.todo.remove(low, high)
        self._queue.update(part)
        for low, high in gone:
            self._report(part, low, high, item, reason)

    def forget(self, part: Slice) -> list[Command]:
        """Drop a slice and kill what runs of it. Nothing is reported of it any more."""
        part.is_forgotten = True
        part.todo = RangeSet()
        self._queue.update(part)
        return self._kill_all("forgotten", is_forgotten)

    def _kill_all(self, why: str, concerned: Callable[[Given], bool]) -> list[Command]:
        found: list[Command] = []
        for worker in self._workers:
            if any(map(concerned, worker.given)):
                found.extend(self._kill(worker, why))
        return found

    def _kill(self, worker: Worker, why: str) -> list[Command]:
        if worker.state != "ready":
            return []
        worker.state = "killed"
        worker.why = why
        return [KillWorker(slot=worker.slot, why=why)]

    # -- events of workers ----------------------------------------------------------------------

    def on_ready(self, slot: int) -> None:
        """A worker waits for calls."""
        worker = self._workers[slot]
        if worker.state == "starting":
            worker.state = "ready"
            worker.failures = 0

    def on_loaded(self, slot: int, now_ms: int) -> None:
        """The time of the call itself begins."""
        self._workers[slot].since_ms = now_ms

    def on_outcomes(self, event: WorkerOutcomes, now_ms: int) -> list[Command]:
        """Calls have ended."""
        worker = self._workers[event.slot]
        given = worker.given[0] if worker.given else None
        end = event.first + event.count
        if (
            given is None
            or event.count < 1
            or (given.part.assignment, given.low) != (event.assignment, event.first)
            or end > given.high
        ):
            note = f"worker reported calls it was not given slot={event.slot}"
            return [Note(level="error", text=note), *self._kill(worker, "broken")]
        part = given.part
        self._take_off(worker, event.count)
        worker.since_ms = now_ms
        worker.is_reported = False
        worker.last = (part, end - 1)
        if not event.errors:
            self._times.measured(part.function, event.count, event.run_us)
        if event.count == 1 and len(event.items) > CALL_BYTES_MAX:
            item = too_large(len(event.items))
            self._report(part, event.first, end, item, "unreadable")
        elif not part.is_forgotten:
            piece = Piece(
                first=event.first, count=event.count, items=event.items, run_us=event.run_us
            )
            if event.errors:
                piece.errors = tuple(
                    [(at, reason, part.is_final(reason)) for at, reason in event.errors]
                )
            self._ended(part, piece)
        if part.is_fresh:
            return self._kill(worker, "fresh")
        return []

    def _take_off(self, worker: Worker, count: int) -> None:
        """The first `count` calls of what a worker was given have ended."""
        given = worker.given[0]
        given.low += count
        given.part.given -= count
        if given.low == given.high:
            worker.given.popleft()
            given.part.workers -= 1

    def on_returned(self, event: WorkerReturned) -> None:
        """A worker has given back what it had not begun."""
        worker = self._workers[event.slot]
        worker.is_returning = False
        kept: Given | None = None
        if worker.given:
            first = worker.given[0]
            if (first.part.assignment, first.low) == (event.assignment, event.index):
                kept = Given(part=first.part, low=first.low, high=first.low + 1)
                first.low += 1
                first.part.workers += 1
        self._give_back(worker.given)
        worker.given = deque() if kept is None else deque([kept])
        self._let_newcomers_in(event.slot)

    def _give_back(self, lost: deque[Given]) -> None:
        """A worker does not have these any more; they are to run before others of their stream."""
        for given in reversed(lost):
            part = given.part
            part.workers -= 1
            part.given -= given.high - given.low
            if not part.is_forgotten:
                part.todo.add(given.low, given.high)
            self._queue.update(part, first=True)
            # It may have given them back while it was being killed because of them.
            unwanted = tuple(part.cancelled.common(given.low, given.high))
            if unwanted and part.is_expired:
                self._skip(part, unwanted, LEASE_OVER, "lost")
            elif unwanted:
                self._skip(part, unwanted, CANCELLED_BEFORE, "cancelled")

    def _let_newcomers_in(self, slot: int) -> None:
        """A slot's worker has no more than the call that it is in, if it was to make room."""
        for part in reversed(self._newcomers.returned(slot)):
            self._queue.goes_first(part)

    def on_exited(self, event: WorkerExited, now_ms: int) -> list[Command]:
        """A worker is gone: one call may be to blame, the others go on in the next one."""
        worker = self._workers[event.slot]
        failures = 0 if worker.state in ("ready", "killed") else worker.failures + 1
        after = Worker(slot=event.slot, failures=failures, last=worker.last)
        if failures:
            wait_ms = RESTART_AFTER_MS << min(failures - 1, 16)
            after.restart_ms = now_ms + min(RESTART_AFTER_MS_MAX, wait_ms)
        self._workers[event.slot] = after
        notes: list[Command] = []
        if event.lease_over and worker.why == "":
            # The watchdog was quicker than we were.
            worker.why = "cancelled"
            for given in worker.given:
                given.part.is_expired = True
                given.part.cancelled.add(given.low, given.high)
        victim = worker.victim(event)
        if victim is not None:
            after.last = victim
            self._blame(event, worker, *victim)
        if worker.why in ("", "broken"):
            where = "" if victim is None else f" call={victim[0].header.task}.{victim[1]}"
            text = f"worker ended: {cause_of(event)} slot={event.slot}{where}"
            notes.append(Note(level="warning", text=text))
        if worker.why == "cancelled":
            self._end_cancelled(worker)
        self._give_back(worker.given)
        self._let_newcomers_in(event.slot)
        return notes

    def _blame(self, event: WorkerExited, worker: Worker, part: Slice, index: int) -> None:
        """What becomes of the call that a worker was in when it ended, if that is its own doing."""
        match worker.why:
            case "" | "broken":
                reason, item = "died", death(event, part)
            case "timeout" if worker.timed_out == (part.assignment, index):
                reason, item = "timeout", timeout(part.header.options.timeout_ms)
            case _:
                return
        worker.cut_out(part, RangeSet([(index, index + 1)]))
        self._report(part, index, index + 1, item, reason)

    def _end_cancelled(self, worker: Worker) -> None:
        for part in list({given.part.assignment: given.part for given in worker.given}.values()):
            for given in list(worker.given):
                if given.part is part:
                    for low, high in part.cancelled.common(given.low, given.high):
                        worker.cut_out(part, RangeSet([(low, high)]))
                        if part.is_expired:
                            self._report(part, low, high, LEASE_OVER, "lost")
                        else:
                            self._report(part, low, high, CANCELLED_RUNNING, "cancelled")

    def _report(self, part: Slice, low: int, high: int, item: bytes, reason: str) -> None:
        """The calls [low, high) have ended with the same error."""
        if part.is_forgotten:
            return
        final = part.is_final(reason)
        piece = Piece(
            first=low,
            count=high - low,
            items=item * (high - low),
            errors=tuple([(index, reason, final) for index in range(low, high)]),
        )
        self._ended(part, piece)

    def has_more_of(self, stream: Stream) -> bool:
        """Whether calls of a stream wait or run here."""
        for worker in self._workers:
            for given in worker.given:
                if given.part.stream == stream:
                    return True
        return self._queue.calls > 0 and self._queue.has(stream)

    @property
    def runs_short_calls(self) -> bool:
        """Whether a worker has several calls that are expected to end within the next moment.

        One alone does not count: whoever waits for each of their calls is to wait for no other.
        """
        for worker in self._workers:
            if not worker.given or worker.is_reported:
                continue
            if worker.has_more:
                mean_us = self._times.mean_us(worker.given[0].part.function)
                if mean_us is not None and mean_us <= SHORT_US:
                    return True
        return False

    # -- time -----------------------------------------------------------------------------------

    def poll(self, now_ms: int) -> list[Command]:
        """Timeouts, starts, and calls for workers that have room."""
        commands: list[Command] = []
        for worker in self._workers:
            if worker.state == "none" and now_ms >= worker.restart_ms:
                worker.state = "starting"
                commands.append(StartWorker(slot=worker.slot))
            elif worker.given:
                self._watch(worker, now_ms, commands)
        if not self._queue.calls:
            self._newcomers.waiting.clear()
            return commands
        if self._newcomers.waiting:
            self._make_room(now_ms, commands)
        for worker in self._workers:
            if worker.state == "ready" and self._queue.calls:
                self._give(worker, now_ms, commands)
        return commands

    def _make_room(self, now_ms: int, commands: list[Command]) -> None:
        """See to it that calls of a stream with nothing running do not wait for all others."""
        giver = self._newcomers.choose(
            self._workers, self._queue.priority, self._times.mean_us, self._expected_us, now_ms
        )
        if giver is not None:
            giver.is_returning = True
            commands.append(TakeBack(slot=giver.slot))

    def _watch(self, worker: Worker, now_ms: int, commands: list[Command]) -> None:
        """What is due for the call that a worker is in."""
        first = worker.given[0]
        part = first.part
        run_ms = now_ms - worker.since_ms
        timeout_ms = worker.timeout_ms
        if timeout_ms and run_ms >= timeout_ms and worker.state == "ready":
            worker.timed_out = (part.assignment, first.low)
            commands.extend(self._kill(worker, "timeout"))
            return
        if run_ms < STARTED_AFTER_MS or worker.is_reported:
            return
        worker.is_reported = True
        self._times.at_least(part.function, run_ms * 1_000)
        if not part.is_forgotten:
            self._started(part, first.low)
        if worker.has_more and not worker.is_returning and worker.state == "ready":
            worker.is_returning = True
            commands.append(TakeBack(slot=worker.slot))

    def _give(self, worker: Worker, now_ms: int, commands: list[Command]) -> None:
        """Give a worker calls, if it has room for some."""
        was_empty = not worker.given
        if worker.is_returning or not (was_empty or worker.may_follow):
            return
        if not was_empty and worker.given[-1].part.runs_alone:
            return  # Who dies behind it would take its outcome along.
        if not was_empty and self._newcomers.giver is not None:
            return  # What waits first is for the worker that makes room.
        expected_us = self._expected_us(worker)
        if not was_empty and expected_us > WORKER_REFILL_US:
            return
        chunks: list[Chunk] = []
        code: list[FunctionCode] = []
        # Few long calls are for all slots, not for the first that has room.
        fair = -(-self._queue.calls // len(self._workers))
        while self._queue.calls and expected_us < WORKER_WORK_US:
            if worker.given:
                part = self._queue.pick(worker.given[-1].part, worker.given[0].part)
            else:
                part = self._queue.pick()
            short_us = self._short_us(part)
            if worker.given and short_us is None:
                break
            if part.is_fresh and worker.was_used:
                commands.extend(self._kill(worker, "fresh"))
                return
            count = 1
            if short_us is not None:
                count = max(1, (WORKER_WORK_US - expected_us) // short_us)
                if short_us >= SPREAD_MIN_US:
                    count = max(0, min(count, fair))
            if count == 0:
                break
            chunk = self._take(worker, part, count)
            if chunk is None:
                continue
            chunks.append(chunk)
            fair -= chunk.high - chunk.low
            if part.leased_until_ms:
                commands.append(LeaseWorker(slot=worker.slot, until_ms=part.leased_until_ms))
            if part.function not in worker.known:
                code.append(self._code_of(part))
            worker.known.pop(part.function, None)
            worker.known[part.function] = None
            worker.was_used = True
            if short_us is None:
                break
            worker.may_follow = True
            expected_us += short_us * (chunk.high - chunk.low)
        if chunks:
            if was_empty:
                worker.since_ms = now_ms
                worker.is_reported = False
            commands.append(
                RunCalls(
                    slot=worker.slot,
                    may_follow=worker.may_follow,
                    drop=worker.forget_functions(),
                    code=tuple(code),
                    chunks=tuple(chunks),
                    until_ms=worker.given[-1].part.leased_until_ms,
                )
            )

    def _expected_us(self, worker: Worker) -> int:
        """The work that a worker has, as far as measured."""
        expected_us = 0
        for given in worker.given:
            mean_us = self._times.mean_us(given.part.function) or WORKER_WORK_US
            expected_us += mean_us * (given.high - given.low)
        return expected_us

    def _short_us(self, part: Slice) -> int | None:
        """How long calls of a slice take; None where a worker is to have one at a time."""
        mean_us = self._times.mean_us(part.function)
        if mean_us is None or mean_us > SHORT_US or part.runs_alone:
            return None
        return mean_us

    def _take(self, worker: Worker, part: Slice, count: int) -> Chunk | None:
        """Calls of a slice for a worker; None where the slice's calls cannot be told apart."""
        low, high = part.take(count)
        try:
            calls = part.calls_of(low, high)
        except DecodeError as error:
            part.given -= high - low
            unreadable = [(low, high), *part.todo]
            part.todo = RangeSet()
            self._queue.update(part)
            item = system_error(REFUSED, f"The assignment's calls cannot be read: {error}.")
            for start, end in unreadable:
                self._report(part, start, end, item, "unreadable")
            return None
        self._queue.update(part)
        self._queue.had_turn(part)
        self._newcomers.waiting.pop(part.stream, None)
        last = worker.given[-1] if worker.given else None
        if last is not None and last.part is part and last.high == low:
            last.high = high
        else:
            worker.given.append(Given(part=part, low=low, high=high))
            part.workers += 1
        return Chunk(
            assignment=part.assignment,
            low=low,
            high=high,
            function=part.function,
            client_python=part.header.python,
            calls=calls,
            is_awaited=part.runs_alone or not self._queue.has(part.stream),
            checkpoints=part.checkpoints_of(low, high) if part.checkpoints else (),
        )

    def _code_of(self, part: Slice) -> FunctionCode:
        header = part.header
        named = self._functions.get(part.function)
        if named is not None:
            return FunctionCode(
                key=part.function, form="named", python="", data=named.target.encode()
            )
        code = self._code.get(part.function)
        return FunctionCode(
            key=part.function, form=header.form, python=header.python, data=code.data
        )
