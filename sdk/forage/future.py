"""`Future`: one call's outcome; a `concurrent.futures.Future` that can also be awaited.

Made for hundreds of thousands at a time: what only some futures need (a condition, waiters,
callbacks) is made when it is first used, and all futures share one lock, so that a whole slice of
outcomes is taken in under it at once. The standard library's `wait` and `as_completed` use the
attributes `_condition`, `_state`, `_waiters` and find them here, also among futures of others.
"""

import concurrent.futures
import logging
import os
import threading
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Final, TypeVar

from forage.errors import TaskCancelled
from forage_wire.topics import call_name

if TYPE_CHECKING:
    from forage.agreement import Replicas
    from forage.calls import TaskCalls
    from forage.info import Attempt, CallProgress, Explanation

__all__ = [
    "CANCELLED",
    "FINISHED",
    "LOCK",
    "PENDING",
    "RUNNING",
    "Future",
    "run_callbacks",
]

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

PENDING: Final = "PENDING"
RUNNING: Final = "RUNNING"
FINISHED: Final = "FINISHED"
CANCELLED: Final = "CANCELLED_AND_NOTIFIED"
"""Cancelled, and everybody told. A cancellation is decided here and at once, so the standard
library's state in between (cancelled, and an executor has still to notice it) does not occur."""

_WORDS = {PENDING: "pending", RUNNING: "running", CANCELLED: "cancelled"}

LOCK = threading.RLock()
"""Guards every future's state; held for short times, never while anything else is waited for.

Reentrant, for `concurrent.futures.wait` holds it once for each of its futures.
"""

# A fork while another thread holds it would leave it locked in the child for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=LOCK.acquire, after_in_parent=LOCK.release, after_in_child=LOCK.release
    )


class _Extra:
    """What a future gets when somebody waits for it or wants to be told."""

    __slots__ = ("callbacks", "condition", "sleepers", "waiters")

    def __init__(self) -> None:
        self.sleepers: list[threading.Lock] = []
        """Of those who wait in `result` and `exception`: each opens with the outcome."""
        self.condition: threading.Condition | None = None
        """For the standard library. Each future has its own: a shared one would wake those who
        wait for others."""
        self.waiters: list[Any] = []
        self.callbacks: list[Callable[[Any], object]] = []


class Future(concurrent.futures.Future[_T]):
    """One call's outcome. Made by `Client`; safe for use by several threads; awaitable.

    `cancel`, `result`, `exception`, `add_done_callback` and the rest do what the standard library
    says. Callbacks run in a thread of their own, in the order in which they were added; on a
    future that is done, at once in the caller's thread. One that no client made is a standard
    future like any other.
    """

    __slots__ = ("_calls", "_device", "_exception", "_extra", "_index", "_result", "_state")

    def __init__(self, calls: "TaskCalls | None" = None, index: int = 0) -> None:
        # The base class's attributes are all replaced by slots and properties of ours.
        self._calls = calls
        self._index = index
        self._state: str = PENDING
        self._result: Any = None
        self._exception: BaseException | None = None
        self._device: str | None = None
        self._extra: _Extra | None = None

    # -- what the standard library's functions look for ---------------------------------------

    def _more(self) -> _Extra:
        extra = self._extra
        if extra is None:
            with LOCK:
                extra = self._extra
                if extra is None:
                    extra = self._extra = _Extra()
        return extra

    # For type checkers these stay the attributes that the base class declares.
    if not TYPE_CHECKING:

        @property
        def _condition(self) -> threading.Condition:
            extra = self._more()
            with LOCK:
                if extra.condition is None:
                    extra.condition = threading.Condition(LOCK)
            return extra.condition

        @property
        def _waiters(self) -> list[Any]:
            return self._more().waiters

        @property
        def _done_callbacks(self) -> list[Callable[[Any], object]]:
            return self._more().callbacks

    # -- what forage adds ---------------------------------------------------------------------

    @property
    def id(self) -> str:
        """The call's name, `{task}.{index}`: what `attach` and the terminal take."""
        return call_name(self._bound().id, self._index)

    @property
    def device(self) -> str | None:
        """The name of the device that runs or ran it; None until one reported its start."""
        return self._device

    @property
    def attempts(self) -> int:
        """How often it was run, as far as this client was told."""
        failed = 0 if self._calls is None else self._calls.failed_attempts(self._index)
        return failed + (self._device is not None)

    @property
    def state(self) -> str:
        """pending, running, done, failed or cancelled."""
        if self._state == FINISHED:
            return "done" if self._exception is None else "failed"
        return _WORDS.get(self._state, "cancelled")

    @property
    def progress(self) -> "CallProgress | None":
        """What the call said last with `forage.progress`; None where nothing has come.

        It goes from the device to the client that submitted the call, at most twice a second, and
        may be lost: for people, not for programs to count on.
        """
        return None if self._calls is None else self._calls.progress_of(self._index)

    @property
    def replicas(self) -> "Replicas | None":
        """What became of the call's replicas; None without any, and while it is not decided."""
        votes = None if self._calls is None else self._calls.votes
        return None if votes is None else votes.counted(self._index)

    def history(self) -> "list[Attempt]":
        """The call's attempts as the controller knows them, oldest first.

        Raises NotConnected where it does not answer.
        """
        return self._bound().network.queries.history(self.id)

    def logs(self) -> list[str]:
        """What the call wrote, as lines `17 out text` (index, stream, line).

        The controller keeps the last 64 KiB of each task's output, also of the last 500 tasks that
        ended; of an older one, `Refused` says that nothing is kept.
        """
        return self._bound().network.queries.logs(self.id)

    def explain(self) -> "Explanation":
        """Where the call is and why; `print` it."""
        return self._bound().network.queries.explain(self.id)

    def _bound(self) -> "TaskCalls":
        if self._calls is None:
            raise RuntimeError("This future belongs to no call: it was not made by a client.")
        return self._calls

    # -- the standard library's contract --------------------------------------------------------

    def cancel(self, force: bool = False) -> bool:
        """Cancel the call if it is pending; decided here, without asking anybody.

        Args:
            force: Also end a call that runs: its worker is killed with all its children. True
                once that is ordered.

        Returns:
            Whether the call is cancelled. A call that runs (without `force`) or has ended is not.
        """
        calls = self._calls
        if calls is None:
            return super().cancel()
        with LOCK:
            if self._state == FINISHED or (self._state == RUNNING and not force):
                return False
            if self._state not in (PENDING, RUNNING):
                return True
            self._finish(CANCELLED, None, None)
            calls.note_cancelled(self._index)
        run_callbacks(self, self._extra)
        calls.network.cancel(calls, ((self._index, self._index + 1),), force)
        return True

    def cancelled(self) -> bool:
        """Whether it was cancelled through this future (or its batch or client)."""
        return self._state not in (PENDING, RUNNING, FINISHED)

    def running(self) -> bool:
        """Whether its device reported that it runs (that takes 50 ms of running)."""
        return self._state == RUNNING

    def done(self) -> bool:
        """Whether it has ended: with a result, an error, or cancelled."""
        return self._state not in (PENDING, RUNNING)

    def result(self, timeout: float | None = None) -> _T:
        """The call's result.

        Args:
            timeout: Seconds to wait; None waits for as long as it takes.

        Raises:
            TimeoutError: It did not end in time; it goes on.
            TaskCancelled: It was cancelled (a `concurrent.futures.CancelledError`).
            Exception: What the call raised, with the device's traceback as its cause.
        """
        try:
            if self._state in (PENDING, RUNNING):
                self._wait(timeout)
            if self._state != FINISHED:
                raise self._cancelled_error()
            if self._exception is not None:
                raise self._exception
            return self._result  # type: ignore[no-any-return]
        finally:
            # The exception's traceback refers to this frame, which would refer to the future.
            del self

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The exception that the call raised, or None; `timeout` and raises as in `result`."""
        try:
            if self._state in (PENDING, RUNNING):
                self._wait(timeout)
            if self._state != FINISHED:
                raise self._cancelled_error()
            return self._exception
        finally:
            del self

    def _wait(self, timeout: float | None) -> None:
        if timeout is not None:
            timeout = max(0.0, min(timeout, threading.TIMEOUT_MAX))
        if self._calls is None:
            self._wait_for_anybody(timeout)
            return
        self._calls.network.check_may_wait()
        # Not a condition, which takes `LOCK` once more when it wakes.
        sleeper = threading.Lock()
        sleeper.acquire()
        with LOCK:
            if self._state not in (PENDING, RUNNING):
                return
            extra = self._extra
            if extra is None:
                extra = self._extra = _Extra()
            extra.sleepers.append(sleeper)
        if sleeper.acquire(timeout=-1 if timeout is None else timeout):
            return
        with LOCK:
            if self._state in (PENDING, RUNNING):
                extra.sleepers.remove(sleeper)
                raise TimeoutError

    def _wait_for_anybody(self, timeout: float | None) -> None:
        """Wait for whoever ends a future that no client made, as the standard library does it."""
        with LOCK:
            if self._state in (PENDING, RUNNING):
                self._condition.wait(timeout)
                if self._state in (PENDING, RUNNING):
                    raise TimeoutError

    def _cancelled_error(self) -> TaskCancelled:
        name = "The call" if self._calls is None else f"The call {self.id}"
        return TaskCancelled(f"{name} was cancelled.")

    def add_done_callback(self, fn: Callable[["Future[_T]"], object]) -> None:
        """Call `fn(future)` when the call has ended; at once, here, if it has.

        Callbacks run one after the other in a thread that serves all of this process's clients:
        one that takes long delays the others. What they raise is logged.
        """
        if self._state in (PENDING, RUNNING):
            with LOCK:
                if self._state in (PENDING, RUNNING):
                    self._more().callbacks.append(fn)
                    return
        try:
            fn(self)
        except Exception:
            logger.exception("exception calling callback for %r", self)

    def __await__(self) -> Generator[Any, None, _T]:
        """Wait without blocking the running asyncio loop; cancelling the wait cancels the call."""
        # Whoever awaits has it loaded; for all others it would be a tenth of the time to connect.
        import asyncio

        return asyncio.wrap_future(self).__await__()

    def __repr__(self) -> str:
        if self._calls is None:
            return super().__repr__()
        detail = ""
        if self._state == FINISHED:
            detail = (
                f" returned {type(self._result).__name__}"
                if self._exception is None
                else f" raised {type(self._exception).__name__}"
            )
        elif self._device is not None:
            detail = f" on {self._device}"
        return f"<{type(self).__name__} {self.id} state={self.state}{detail}>"

    # -- how it ends ----------------------------------------------------------------------------

    def _finish(self, state: str, value: Any, exception: BaseException | None) -> _Extra | None:
        """Set the outcome and wake who waits. Under `LOCK`; the caller sees to the callbacks."""
        self._result = value
        self._exception = exception
        self._state = state
        extra = self._extra
        if extra is not None:
            for waiter in extra.waiters:
                if state == CANCELLED:
                    waiter.add_cancelled(self)
                elif exception is not None:
                    waiter.add_exception(self)
                else:
                    waiter.add_result(self)
            for sleeper in extra.sleepers:
                sleeper.release()
            if extra.condition is not None:
                extra.condition.notify_all()
        return extra

    def set_running_or_notify_cancel(self) -> bool:
        """As in the standard library, where everybody was told of a cancellation when it was."""
        if self._calls is not None and self._state == CANCELLED:
            return False
        return super().set_running_or_notify_cancel()


def run_callbacks(future: Future[Any], extra: _Extra | None) -> None:
    """Run the callbacks of a future that is done, in their order; what they raise is logged."""
    if extra is None:
        return
    callbacks, extra.callbacks = extra.callbacks, []
    for callback in callbacks:
        try:
            callback(future)
        except Exception:
            logger.exception("exception calling callback for %r", future)
