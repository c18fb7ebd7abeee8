"""`Batch`: the calls of one task, with futures made only where somebody asks for one.

Owns the outcomes of large tasks: one list of values, one of devices, and a future for those calls
alone that somebody looks at, so that a million calls fit.
"""

import queue
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar
from weakref import WeakValueDictionary

from forage.calls import Finished, TaskCalls, indices_of
from forage.core.commands import ResolveCalls
from forage.errors import TaskCancelled
from forage.future import CANCELLED, FINISHED, LOCK, PENDING, RUNNING, Future
from forage_wire.ranges import Ranges
from forage_wire.records import guarded_dataclass
from forage_wire.topics import call_name

if TYPE_CHECKING:
    from forage.agreement import Replicas
    from forage.shell.network import Network

__all__ = ["Batch", "BatchCalls", "Progress"]

_T = TypeVar("_T")


class _Mark:
    """What stands in place of a value; identity tells."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


_OPEN: Final = _Mark("open")
_CANCELLED: Final = _Mark("cancelled")
_TAKEN: Final = _Mark("taken")
"""Given away once, by an iterator that keeps nothing."""


class _Failed:
    """An error in place of a value."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Watch:
    """Somebody waits for a call, or for all of them (index None); its lock opens then."""

    __slots__ = ("index", "lock")

    def __init__(self, index: int | None) -> None:
        self.index = index
        self.lock = threading.Lock()
        self.lock.acquire()


class BatchCalls(TaskCalls):
    """The calls of a task made by `submit_all`, `map` or `attach`."""

    __slots__ = (
        "_devices",
        "_ended_futures",
        "_failures",
        "_feeds",
        "_open_futures",
        "_running",
        "_values",
        "_watches",
    )

    def __init__(self, network: "Network", task: str, label: str) -> None:
        super().__init__(network, task, label)
        self._values: list[Any] = []
        self._devices: list[str | None] = []
        self._running: dict[int, None] = {}
        self._failures = 0
        self._open_futures: dict[int, Future[Any]] = {}
        self._ended_futures: WeakValueDictionary[int, Future[Any]] | None = None
        self._watches: list[_Watch] = []
        self._feeds: list[queue.SimpleQueue[Ranges]] = []

    def extend(self, count: int) -> None:
        """So many more calls; before they are submitted."""
        with LOCK:
            self._values += [_OPEN] * count
            self._devices += [None] * count
            self.count += count

    # -- outcomes -----------------------------------------------------------------------------

    def note_started(self, index: int, device: str) -> None:
        if index >= self.count or self._values[index] is not _OPEN:
            return
        self._running[index] = None
        self._devices[index] = device
        future = self._open_futures.get(index)
        if future is not None:
            future._state = RUNNING
            future._device = device

    def resolve(self, command: ResolveCalls) -> Finished:
        values, errors = self._decode(command)
        return self._end(command.ranges, values, errors, command.device or None)

    def end(
        self, index: int, value: Any, error: BaseException | None, device: str | None
    ) -> Finished:
        errors = {} if error is None else {index: error}
        return self._end(((index, index + 1),), [value], errors, device)

    def fail(self, ranges: Ranges, error: BaseException) -> Finished:
        errors = dict.fromkeys(indices_of(ranges), error)
        return self._end(ranges, [None] * len(errors), errors, None)

    def _end(
        self,
        ranges: Ranges,
        found: list[Any],
        errors: dict[int, BaseException],
        device: str | None,
    ) -> Finished:
        """End the calls in `ranges` with what was found, in order, or with their errors."""
        with LOCK:
            if errors or self._failures or self._running or self._open_futures:
                return self._end_each(ranges, found, errors, device)
            # Nothing but results, none cancelled, and nobody looks at single calls: most batches,
            # most of the time.
            position = 0
            for low, high in ranges:
                count = high - low
                self._values[low:high] = found[position : position + count]
                self._devices[low:high] = [device] * count
                position += count
            self.ended += position
            self._tell(ranges)
        return []

    def _end_each(
        self,
        ranges: Ranges,
        found: list[Any],
        errors: dict[int, BaseException],
        device: str | None,
    ) -> Finished:
        finished: Finished = []
        values, devices, futures = self._values, self._devices, self._open_futures
        ended: list[tuple[int, int]] = []
        for index, value in zip(indices_of(ranges), found, strict=True):
            if values[index] is not _OPEN:
                # It was cancelled here while its outcome was on its way through our hands.
                continue
            error = errors.get(index)
            if error is not None:
                self._failures += 1
                value = _Failed(error)
            values[index] = value
            if device is not None:
                devices[index] = device
            ended.append((index, index + 1))
            self._running.pop(index, None)
            future = futures.get(index)
            if future is not None and self._end_future(future, index):
                finished.append(future)
        self.ended += len(ended)
        self._tell(ranges if len(ended) == len(found) else tuple(ended))
        return finished

    def _end_future(self, future: Future[Any], index: int) -> bool:
        """Give a future its outcome; whether it has callbacks. Under `LOCK`."""
        value = self._values[index]
        future._device = self._devices[index]
        if value is _CANCELLED:
            extra = future._finish(CANCELLED, None, None)
        elif type(value) is _Failed:
            extra = future._finish(FINISHED, None, value.error)
        else:
            extra = future._finish(FINISHED, value, None)
        self._keep_ended(index, future)
        return extra is not None and bool(extra.callbacks)

    def _keep_ended(self, index: int, future: Future[Any]) -> None:
        """From now on only those who use the future keep it. Under `LOCK`."""
        self._open_futures.pop(index, None)
        if self._ended_futures is None:
            self._ended_futures = WeakValueDictionary()
        self._ended_futures[index] = future

    def _tell(self, ranges: Ranges) -> None:
        """Wake those who wait for one of these calls. Under `LOCK`."""
        for feed in self._feeds:
            feed.put(ranges)
        for watch in tuple(self._watches):
            index = watch.index
            if index is None:
                is_due = self.ended >= self.count
            else:
                is_due = self._values[index] is not _OPEN
            if is_due:
                self._watches.remove(watch)
                watch.lock.release()

    # -- cancelling ---------------------------------------------------------------------------

    def note_cancelled(self, index: int) -> None:
        # The future ends itself; this is for everything around it.
        future = self._open_futures.get(index)
        self._mark_cancelled(index)
        if future is not None:
            self._keep_ended(index, future)
        self._tell(((index, index + 1),))

    def _mark_cancelled(self, index: int) -> None:
        self._values[index] = _CANCELLED
        self._failures += 1
        self._running.pop(index, None)
        self.ended += 1

    def cancel_within(self, low: int, high: int, force: bool) -> tuple[Ranges, Finished]:
        cancelled: list[tuple[int, int]] = []
        finished: Finished = []
        with LOCK:
            for index in range(low, min(high, self.count)):
                if self._values[index] is not _OPEN or (index in self._running and not force):
                    continue
                self._mark_cancelled(index)
                future = self._open_futures.get(index)
                if future is not None and self._end_future(future, index):
                    finished.append(future)
                if cancelled and cancelled[-1][1] == index:
                    cancelled[-1] = (cancelled[-1][0], index + 1)
                else:
                    cancelled.append((index, index + 1))
            if cancelled:
                self._tell(tuple(cancelled))
        return tuple(cancelled), finished

    # -- looking and waiting --------------------------------------------------------------------

    def future(self, index: int) -> Future[Any]:
        """The future of a call: always the same one for as long as somebody keeps it."""
        with LOCK:
            future = self._open_futures.get(index)
            if future is None and self._ended_futures is not None:
                future = self._ended_futures.get(index)
            if future is not None:
                return future
            future = Future(self, index)
            future._device = self._devices[index]
            if self._values[index] is _OPEN:
                future._state = RUNNING if index in self._running else PENDING
                self._open_futures[index] = future
            else:
                self._end_future(future, index)
            return future

    def is_open(self, index: int) -> bool:
        """Whether a call has not ended."""
        return self._values[index] is _OPEN

    def wait_for(self, index: int | None, deadline: float | None) -> None:
        """Wait for one call, or (None) for all; TimeoutError once monotonic time is `deadline`."""
        self.network.check_may_wait()
        watch = _Watch(index)
        with LOCK:
            if self.ended >= self.count if index is None else self._values[index] is not _OPEN:
                return
            self._watches.append(watch)
        timeout = -1.0
        if deadline is not None:
            timeout = min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)
        try:
            if not watch.lock.acquire(timeout=timeout):
                raise TimeoutError
        finally:
            with LOCK:
                if watch in self._watches:
                    self._watches.remove(watch)

    def value(self, index: int) -> Any:
        """The result of a call that has ended; raises its error."""
        value = self._values[index]
        if type(value) is _Failed:
            try:
                raise value.error
            finally:
                del value
        if value is _CANCELLED:
            raise TaskCancelled(f"The call {call_name(self.id, index)} was cancelled.")
        return value

    def values(self, low: int, high: int) -> list[Any]:
        """The results of calls that have ended, all of them; raises the first one's error."""
        if not self._failures:
            return self._values[low:high]
        return [self.value(index) for index in range(low, high)]

    def take(self, index: int) -> Any:
        """As `value`, and keep nothing of it."""
        try:
            return self.value(index)
        finally:
            self._values[index] = _TAKEN

    def partial(self, low: int, high: int) -> list[Any]:
        """The results there are; None in place of the others."""
        found = self._values[low:high]
        return [None if type(value) in (_Mark, _Failed) else value for value in found]

    def feed(self, low: int, high: int) -> "queue.SimpleQueue[Ranges]":
        """A queue of the ranges that have ended and those that will, each call once."""
        feed: queue.SimpleQueue[Ranges] = queue.SimpleQueue()
        with LOCK:
            ended = [index for index in range(low, high) if self._values[index] is not _OPEN]
            for index in ended:
                feed.put(((index, index + 1),))
            self._feeds.append(feed)
        return feed

    def end_feed(self, feed: "queue.SimpleQueue[Ranges]") -> None:
        """Nobody reads this queue any more."""
        with LOCK:
            self._feeds.remove(feed)

    def progress(self, low: int, high: int) -> "Progress":
        """How far the calls [low, high) are."""
        with LOCK:
            if (low, high) == (0, self.count):
                return Progress(
                    total=self.count,
                    done=self.ended,
                    failed=self._failures,
                    running=len(self._running),
                )
            values = self._values[low:high]
            return Progress(
                total=high - low,
                done=sum(value is not _OPEN for value in values),
                failed=sum(value is _CANCELLED or type(value) is _Failed for value in values),
                running=sum(low <= index < high for index in self._running),
            )


@guarded_dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a batch is, in calls."""

    total: int
    done: int
    """Ended in any way."""
    failed: int
    """Of those done: ended with an error, or cancelled."""
    running: int
    """Reported as started and not done."""


class Batch(Generic[_T]):
    """The calls of one task, in order; made by `Client.submit_all` and `Client.attach`.

    `len(batch)`, `batch[i]` and iteration give futures, made when they are asked for. The results
    are kept for as long as the batch is.
    """

    __slots__ = ("_calls", "_high", "_low")

    def __init__(self, calls: BatchCalls, low: int = 0, high: int | None = None) -> None:
        self._calls = calls
        self._low = low
        self._high = calls.count if high is None else high

    @property
    def id(self) -> str:
        """The task's id: what `attach` and the terminal take."""
        return self._calls.id

    def __len__(self) -> int:
        return self._high - self._low

    def __iter__(self) -> Iterator[Future[_T]]:
        return (self._calls.future(index) for index in range(self._low, self._high))

    def __getitem__(self, index: int) -> Future[_T]:
        """The future of a call; a negative index counts from the end."""
        if not isinstance(index, int):
            raise TypeError(f"a batch is indexed by integers, not {type(index).__name__}")
        count = self._high - self._low
        if not -count <= index < count:
            raise IndexError(f"the batch has {count} calls")
        return self._calls.future(self._low + index % count)

    def __repr__(self) -> str:
        now = self.progress()
        return f"<Batch {self.id} {now.done} of {now.total} done, {now.failed} failed>"

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until every call has ended; False where `timeout` (seconds) was over before."""
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            self._wait(deadline)
        except TimeoutError:
            return False
        return True

    def _wait(self, deadline: float | None) -> None:
        if (self._low, self._high) == (0, self._calls.count):
            self._calls.wait_for(None, deadline)
            return
        for index in range(self._low, self._high):
            self._calls.wait_for(index, deadline)

    def results(self, *, partial: bool = False, timeout: float | None = None) -> list[_T]:
        """The results, in the order of the calls.

        Args:
            partial: Do not wait and do not raise: what is there now, with None for every call
                that is open, failed or cancelled.
            timeout: Seconds to wait for all calls; None waits for as long as it takes.

        Raises:
            TimeoutError: Not all ended in time; they go on.
            Exception: The error of the first call, in order, that failed. All have ended by then.
        """
        calls = self._calls
        if partial:
            return calls.partial(self._low, self._high)
        self._wait(None if timeout is None else time.monotonic() + timeout)
        return calls.values(self._low, self._high)

    def as_completed(self, timeout: float | None = None) -> Iterator[Future[_T]]:
        """The futures in the order in which their calls end, those that have first.

        Raises TimeoutError where a next one is not there `timeout` seconds after this call.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        return self._completed(deadline)

    def _completed(self, deadline: float | None) -> Iterator[Future[_T]]:
        calls = self._calls
        left = self._high - self._low
        total = left
        calls.network.check_may_wait()
        feed = calls.feed(self._low, self._high)
        try:
            while left:
                wait_s = None if deadline is None else max(0.0, deadline - time.monotonic())
                try:
                    ranges = feed.get(timeout=wait_s)
                except queue.Empty:
                    raise TimeoutError(f"{left} (of {total}) futures unfinished") from None
                for low, high in ranges:
                    for index in range(max(low, self._low), min(high, self._high)):
                        left -= 1
                        yield calls.future(index)
        finally:
            calls.end_feed(feed)

    def progress(self) -> Progress:
        """How far it is now, without asking anybody."""
        return self._calls.progress(self._low, self._high)

    @property
    def replicas(self) -> "Replicas | None":
        """What became of its calls' replicas so far, all together; None without replicas."""
        votes = self._calls.votes
        return None if votes is None else votes.total(self._low, self._high)

    def cancel(self, *, force: bool = False) -> int:
        """Cancel every call that is pending; with `force` also those that run.

        Returns:
            How many calls that were.
        """
        ranges = self._calls.network.cancel_within(self._calls, self._low, self._high, force)
        return sum(high - low for low, high in ranges)
