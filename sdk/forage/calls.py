"""The calls of one task at this end: who waits for what, and how outcomes reach them.

`TaskCalls` is what the network thread knows of a task. `Burst` holds the calls that `submit`
merged, each with its future; `forage.batch` has the other kind, for many calls and few futures.
State changes happen under `forage.future.LOCK`, values are decoded before it is taken.
"""

from collections.abc import Iterable
from itertools import chain
from typing import TYPE_CHECKING, Any

from forage.core.commands import NoteAttempts, RefuseTask, ResolveCalls
from forage.errors import DataLost, ForageError, Refused, VersionMismatch
from forage.future import CANCELLED, FINISHED, LOCK, PENDING, RUNNING, Future
from forage.info import CallProgress
from forage_wire.limits import CALLS_PER_SUBMIT_TASK_MAX
from forage_wire.messages import Options, Progress
from forage_wire.ranges import Ranges
from forage_wire.values import decode_outcome_item, rebuild_error
from forage_wire.values.exact import SCALARS

if TYPE_CHECKING:
    from forage.shell.network import Network
    from forage.voting import Votes

__all__ = ["Burst", "Finished", "TaskCalls", "indices_of", "outcome_of", "refusal"]

Finished = list[Future[Any]]
"""Futures that ended and have callbacks to run."""

_INDICES = tuple(range(CALLS_PER_SUBMIT_TASK_MAX))
"""One integer object for each index that a burst can have, shared by all futures."""
CALL_OVERHEAD_BYTES = 9
"""Of a call in a page, besides its body."""
PROGRESS_MAX = 4_096
"""Calls of a task whose last word on their progress is kept."""


def outcome_of(item: Any, device: str, attempt: int) -> tuple[Any, BaseException | None]:
    """(result, None) or (None, error) for an outcome item; never raises.

    Runs code of the result's classes where it is a pickle; hold no lock.
    """
    try:
        outcome = decode_outcome_item(item)
        if outcome.ok:
            return outcome.value, None
        return None, rebuild_error(outcome.value, device, attempt)
    except BaseException as error:
        # Whatever a result's class does while it is rebuilt, it is that call's failure alone.
        return None, error


def refusal(command: RefuseTask) -> ForageError:
    """The error for calls of a task that the controller does not take."""
    if command.reason == "data-lost":
        return DataLost(command.text)
    if command.reason == "version":
        return VersionMismatch(command.text)
    return Refused(command.text)


def indices_of(ranges: Ranges) -> Iterable[int]:
    """The indices that ranges hold, in order."""
    if len(ranges) == 1:
        return range(*ranges[0])
    return chain.from_iterable([range(low, high) for low, high in ranges])


class TaskCalls:
    """The calls of one task.

    Attributes:
        id: The task's id.
        label: The function's name, for people.
        network: The connection that it was submitted on.
        count: Calls so far.
        ended: How many of them have ended. Under `LOCK`.
        is_sealed: No more calls come.
        is_attached: Another client submitted it.
    """

    __slots__ = (
        "__weakref__",
        "_failed",
        "_progress",
        "count",
        "ended",
        "id",
        "is_attached",
        "is_sealed",
        "label",
        "network",
        "votes",
    )

    def __init__(self, network: "Network", task: str, label: str) -> None:
        self.votes: Votes | None = None
        """With replicas: how their outcomes become one."""
        self.network = network
        self.id = task
        self.label = label
        self.count = 0
        self.ended = 0
        self.is_sealed = False
        self.is_attached = False
        self._failed: dict[int, int] | None = None
        self._progress: dict[int, CallProgress] | None = None

    @property
    def is_complete(self) -> bool:
        """Whether every call of it has ended and none will come."""
        return self.is_sealed and self.ended >= self.count

    def failed_attempts(self, index: int) -> int:
        """How many attempts of a call failed and led to another one."""
        return 0 if self._failed is None else self._failed.get(index, 0)

    def note_attempts(self, command: NoteAttempts) -> None:
        """Attempts failed; their calls run again."""
        with LOCK:
            if self._failed is None:
                self._failed = {}
            for index, _reason in command.rows:
                self._failed[index] = self._failed.get(index, 0) + 1

    def note_progress(self, said: Progress) -> None:
        """A call says how far it is."""
        with LOCK:
            if self._progress is None:
                self._progress = {}
            elif len(self._progress) >= PROGRESS_MAX:
                del self._progress[next(iter(self._progress))]
            # The newest last: the one heard of longest ago goes first.
            self._progress.pop(said.index, None)
            fraction = said.permille / 1_000
            self._progress[said.index] = CallProgress(fraction=fraction, text=said.text)

    def progress_of(self, index: int) -> CallProgress | None:
        """The last that a call has said of how far it is."""
        return None if self._progress is None else self._progress.get(index)

    def note_cancelled(self, index: int) -> None:
        """A future of it was cancelled. Under `LOCK`."""
        raise NotImplementedError

    def note_started(self, index: int, device: str) -> None:
        """A call runs. Under `LOCK`."""
        raise NotImplementedError

    def is_open(self, index: int) -> bool:
        """Whether a call has not ended."""
        raise NotImplementedError

    def resolve(self, command: ResolveCalls) -> Finished:
        """Take in outcomes."""
        raise NotImplementedError

    def end(
        self, index: int, value: Any, error: BaseException | None, device: str | None
    ) -> Finished:
        """End one call."""
        raise NotImplementedError

    def fail(self, ranges: Ranges, error: BaseException) -> Finished:
        """End calls with an error of ours."""
        raise NotImplementedError

    def cancel_within(self, low: int, high: int, force: bool) -> tuple[Ranges, Finished]:
        """Cancel what is pending of [low, high) (with `force` also what runs).

        Returns:
            Which calls that was, and the futures that have callbacks to run.
        """
        raise NotImplementedError

    def _decode(self, command: ResolveCalls) -> tuple[list[Any], dict[int, BaseException]]:
        """The results of a command's calls, in order, and the errors in place of some, by index."""
        items = command.items
        # The commonest form, a plain scalar, needs no decoder.
        values = [
            item[0]
            for item in items
            if type(item) is list and len(item) == 1 and type(item[0]) in SCALARS
        ]
        errors: dict[int, BaseException] = {}
        if len(values) < len(items):
            values = []
            for index, item in zip(indices_of(command.ranges), items, strict=True):
                attempt = self.failed_attempts(index) + 1
                value, error = outcome_of(item, command.device, attempt)
                values.append(value)
                if error is not None:
                    errors[index] = error
        return values, errors


class Burst(TaskCalls):
    """Calls of one function that `submit` merged into one task of one page."""

    __slots__ = ("_futures", "bodies", "body_bytes", "due_ms", "options")

    def __init__(
        self, network: "Network", task: str, label: str, options: Options, due_ms: int
    ) -> None:
        super().__init__(network, task, label)
        self.options = options
        self._futures: list[Future[Any] | None] = []
        self.bodies: list[bytes] = []
        """Serialised calls until the burst is sent."""
        self.body_bytes = 0
        """What they take in a page."""
        self.due_ms = due_ms
        """When it is sent at the latest."""

    def add(self, body: bytes) -> Future[Any]:
        """One more call. Under the network's lock, before the burst is sealed."""
        future: Future[Any] = Future(self, _INDICES[self.count])
        self._futures.append(future)
        self.bodies.append(body)
        self.body_bytes += len(body) + CALL_OVERHEAD_BYTES
        self.count += 1
        return future

    def note_cancelled(self, index: int) -> None:
        self._futures[index] = None
        self.ended += 1

    def note_started(self, index: int, device: str) -> None:
        future = self._futures[index] if index < len(self._futures) else None
        if future is not None and future._state in (PENDING, RUNNING):
            future._state = RUNNING
            future._device = device

    def resolve(self, command: ResolveCalls) -> Finished:
        values, errors = self._decode(command)
        return self._end(indices_of(command.ranges), values, errors, command.device or None)

    def is_open(self, index: int) -> bool:
        # The list goes when the last one has ended.
        return index < len(self._futures) and self._futures[index] is not None

    def end(
        self, index: int, value: Any, error: BaseException | None, device: str | None
    ) -> Finished:
        return self._end([index], [value], {} if error is None else {index: error}, device)

    def fail(self, ranges: Ranges, error: BaseException) -> Finished:
        errors = dict.fromkeys(indices_of(ranges), error)
        return self._end(errors, [None] * len(errors), errors, None)

    def _end(
        self,
        indices: Iterable[int],
        values: list[Any],
        errors: dict[int, BaseException],
        device: str | None,
    ) -> Finished:
        finished: Finished = []
        futures = self._futures
        count = len(futures)
        ended = 0
        with LOCK:
            for index, value in zip(indices, values, strict=True):
                future = futures[index] if index < count else None
                if future is None:
                    continue
                futures[index] = None
                ended += 1
                if device is not None:
                    future._device = device
                error = errors.get(index) if errors else None
                if future._extra is None:
                    # As `_finish` does it where nobody waits: most futures, and most of the time.
                    future._result = value
                    future._exception = error
                    future._state = FINISHED
                    continue
                extra = future._finish(FINISHED, value, error)
                if extra is not None and extra.callbacks:
                    finished.append(future)
            self.ended += ended
            if self.is_complete:
                self._futures = []
        return finished

    def cancel_within(self, low: int, high: int, force: bool) -> tuple[Ranges, Finished]:
        cancelled: list[tuple[int, int]] = []
        finished: Finished = []
        with LOCK:
            for index in range(low, min(high, len(self._futures))):
                future = self._futures[index]
                if future is None or (future._state == RUNNING and not force):
                    continue
                self._futures[index] = None
                self.ended += 1
                extra = future._finish(CANCELLED, None, None)
                if extra is not None and extra.callbacks:
                    finished.append(future)
                if cancelled and cancelled[-1][1] == index:
                    cancelled[-1] = (cancelled[-1][0], index + 1)
                else:
                    cancelled.append((index, index + 1))
        return tuple(cancelled), finished
