"""The client's network thread, and everything that it shares with the threads that submit.

One lock guards the core, the connection and the open bursts. A caller's thread serialises its
arguments without it, then appends under it; where nothing is under way it also sends, so that a
single call pays for no thread switch. The network thread reads everything there is, hands it to
the core, resolves futures, and only then lets acknowledgements leave. Values are decoded and
futures resolved outside of the lock: users' classes run there.

A task is in `_tasks` until its last call has ended. When there are none and nobody can submit any
more (`close`, or the client was dropped), the thread says goodbye and ends.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from forage.batch import BatchCalls
from forage.calls import Burst, TaskCalls
from forage.core.client import ClientCore
from forage.core.events import (
    AttachAsked,
    CallsCancelled,
    CallsDecided,
    CallsSubmitted,
    CloseAsked,
    Event,
    TaskOpened,
)
from forage.errors import ForageError, NotConnected
from forage.functions import Target
from forage.future import Future, run_callbacks
from forage.shell import callbacks
from forage.shell.bursts import BURST_BYTES_MAX, BURST_MS, Bursts
from forage.shell.delivery import Delivery
from forage.shell.line import Line, base32, now_ms
from forage.shell.queries import Queries
from forage_wire.address import BrokerAddress
from forage_wire.limits import CALLS_PER_SUBMIT_TASK_MAX
from forage_wire.messages import Options
from forage_wire.ranges import Ranges

if TYPE_CHECKING:
    from forage.agreement import Agree
    from forage.info import TaskInfo

__all__ = ["Network"]

logger = logging.getLogger(__name__)

UNACKNOWLEDGED_BYTES_MAX = 64 * 1024 * 1024
"""`submit` waits while more than this is not committed by the controller."""
GOODBYE_S = 1.0
"""How long the end of a connection waits for what is still to be seen."""


class Network:
    """One client's connection: its thread, its tasks, its core.

    Args:
        address: The broker's.
        core: A fresh core for this connection.
        welcome_s: How long broker and controller may take, each, when it is started.
        tls_ca_file: See `MqttConnection`.
    """

    def __init__(
        self,
        address: BrokerAddress,
        core: ClientCore,
        *,
        welcome_s: float,
        tls_ca_file: str | None = None,
    ) -> None:
        self.address = address
        self.client = core.client
        self.user = core.user
        self.is_forked = False
        """This is a child of the process that connected: nothing works here."""
        self.queries = Queries(self)
        self._core = core
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        """Notified when anything happened that somebody may wait for."""
        self._waiting_count = 0
        """How many do."""
        self._line = Line(address, core, welcome_s=welcome_s, tls_ca_file=tls_ca_file)
        self._tasks: dict[str, TaskCalls] = {}
        self._task_count = 0
        self._bursts = Bursts()
        self._unwanted: deque[TaskCalls] = deque()
        """Tasks that the garbage collector found; the network thread cancels them."""
        self._is_closed = False
        """No more submissions."""
        self._is_leaving = False
        """Do not wait for open calls."""
        self._is_over = False
        """The network thread has nothing left to do."""
        self._has_ended = False
        self._is_voting: Callable[[], bool] = bool
        """Whether this is the thread that votes on calls with replicas."""
        self._delivery = Delivery(self._tasks, self.queries, self._line, self._lock)
        self._thread = threading.Thread(target=self._run, name="forage-network", daemon=True)
        self._thread_id = 0

    # -- beginning and end --------------------------------------------------------------------

    def start(self) -> None:
        """Connect, and wait until a controller has welcomed us.

        Raises NotConnected, Refused or VersionMismatch, in words; nothing is left then.
        """
        try:
            with self._lock:
                self._line.dial(now_ms())
                self._thread.start()
                while not self._line.was_welcomed and self._line.error is None:
                    self._wait_for_change()
            if self._line.error is not None:
                raise self._line.error
        except BaseException:
            self.close(wait=True)
            raise

    def close(self, *, wait: bool) -> None:
        """Take no more calls; the connection ends when the last one has. Idempotent."""
        if self.is_forked:
            return
        with self._lock:
            self._is_closed = True
            if not self._has_ended:
                self._send_bursts(now_ms())
                self._line.finish_batch(now_ms())
                self._line.wake()
            self._changed.notify_all()
        is_own = threading.current_thread() is self._thread
        if wait and not is_own and self._thread.ident is not None:
            self._thread.join()
            callbacks.callback_thread.drain()

    def abandon(self) -> None:
        """Nobody can submit any more: the client was dropped. Takes no lock for long.

        Called by the garbage collector at any moment, also in a thread that holds the lock.
        """
        if self.is_forked or self._has_ended:
            return
        self._is_closed = True
        self._wake_unlocked()

    def _wake_unlocked(self) -> None:
        """Wake the network thread if that takes no waiting; else its keepalive does, in time."""
        if self._lock.acquire(blocking=False):
            try:
                if not self._has_ended:
                    self._line.wake()
            finally:
                self._lock.release()

    def leave(self, timeout_s: float) -> list[tuple[TaskCalls, bool]]:
        """The interpreter ends: hand over what was submitted, then go.

        Returns:
            The tasks with open calls, and whether the controller has all of each.
        """
        if self.is_forked:
            return []
        deadline = time.monotonic() + timeout_s
        with self._lock:
            if self._has_ended:
                return []
            self._is_closed = True
            self._send_bursts(now_ms())
            self._line.finish_batch(now_ms())
            while self._core.unacknowledged_pages and not self._has_ended:
                left_s = deadline - time.monotonic()
                if left_s <= 0 or not self._wait_for_change(left_s):
                    break
            found = [
                (calls, calls.is_sealed and self._core.is_handed_over(calls.id))
                for calls in self._tasks.values()
            ]
            self._is_leaving = True
            if not self._has_ended:
                self._line.wake()
        self._thread.join(2 * GOODBYE_S)
        return found

    def check_process(self) -> None:
        """Raises RuntimeError in a child of the process that connected."""
        if self.is_forked:
            raise RuntimeError(
                "This client belongs to the process that this one was forked from; call "
                "forage.connect() in the child, or start it with the spawn method."
            )

    def check_may_wait(self) -> None:
        """Raises RuntimeError where waiting for a call would last for ever."""
        if self.is_forked:
            self.check_process()
        if threading.get_ident() == self._thread_id:
            raise RuntimeError(
                "A result's class waits for a call while it is unpickled: it would wait for ever."
            )
        if self._is_voting():
            raise RuntimeError("A comparison given as agree= waits for a call: it cannot end.")

    def check_open(self) -> None:
        """Raises RuntimeError where nothing can be submitted any more."""
        self.check_process()
        if self._is_closed:
            raise RuntimeError("cannot schedule new futures after shutdown")

    # -- submitting ---------------------------------------------------------------------------

    def submit(
        self, target: Target, options: Options, body: bytes, agree: "Agree | None" = None
    ) -> Future[Any]:
        """One call, merged with others of the same function and options (one object)."""
        if self.is_forked or self._is_closed:
            self.check_open()
        # Options by identity: hashing them would cost as much as all the rest here.
        key: tuple[object, ...] = (target.function, id(options))
        if agree is not None:
            key = (target.function, id(options), id(agree))
        bursts = self._bursts
        with self._lock:
            burst = bursts.get(key)
            if burst is None and self._core.unacknowledged_bytes > UNACKNOWLEDGED_BYTES_MAX:
                self._wait_for_room()
                burst = bursts.get(key)
            if self._is_closed:
                self.check_open()
            if burst is None:
                now = now_ms()
                burst = self._open_burst(target, options, agree, now)
                if self._core.is_idle:
                    # Later it is the network thread that finds out that nothing is under way.
                    future = burst.add(body)
                    self._send_burst(burst, now)
                    self._line.finish_batch(now)
                    return future
                bursts[key] = burst
                self._line.wake_before(burst.due_ms)
            future = burst.add(body)
            if burst.count >= CALLS_PER_SUBMIT_TASK_MAX or burst.body_bytes > BURST_BYTES_MAX:
                del bursts[key]
                now = now_ms()
                self._send_burst(burst, now)
                self._line.finish_batch(now)
        return future

    def open_batch(
        self,
        target: Target,
        options: Options,
        agree: "Agree | None",
        bodies: list[bytes],
        *,
        last: bool,
    ) -> BatchCalls:
        """A task of many calls: these, and unless they are the last, more with `extend_batch`."""
        with self._lock:
            # First this: nobody but us could end a task that is open when the wait is interrupted.
            self._wait_for_room()
            if self.is_forked or self._is_closed:
                self.check_open()
            calls = BatchCalls(self, self._draw_task(), target.label)
            self._open_task(calls, target, options, agree)
            self._extend(calls, bodies, last)
        return calls

    def extend_batch(self, calls: BatchCalls, bodies: list[bytes], *, last: bool) -> None:
        """The next calls of a batch: at least one."""
        self.check_process()
        with self._lock:
            self._extend(calls, bodies, last)

    def _extend(self, calls: BatchCalls, bodies: list[bytes], last: bool) -> None:
        self._wait_for_room()
        if self._has_ended:
            raise RuntimeError("cannot schedule new futures after shutdown")
        now = now_ms()
        first = calls.count
        calls.extend(len(bodies))
        if bodies:
            event = CallsSubmitted(task=calls.id, first=first, calls=tuple(bodies), last=last)
            self._line.handle(event, now)
        calls.is_sealed = last
        self._line.finish_batch(now)
        if calls.is_complete:
            self._drop_complete(calls)

    def cancel(self, calls: TaskCalls, ranges: Ranges, force: bool) -> None:
        """Calls that were cancelled here: nobody is to run them."""
        if not ranges:
            return
        self.check_process()
        if calls.votes is not None:
            calls.votes.forget(ranges)
        self._say_ended(calls, CallsCancelled(task=calls.id, ranges=ranges, force=force))

    def _say_ended(self, calls: TaskCalls, event: Event) -> None:
        with self._lock:
            if self._has_ended:
                return
            now = now_ms()
            self._line.handle(event, now)
            self._line.finish_batch(now)
            if calls.is_complete:
                self._drop_complete(calls)

    def cancel_within(self, calls: TaskCalls, low: int, high: int, force: bool) -> Ranges:
        """Cancel what is pending of [low, high) of a task; with `force` also what runs."""
        ranges, finished = calls.cancel_within(low, high, force)
        for future in finished:
            run_callbacks(future, future._extra)
        self.cancel(calls, ranges, force)
        return ranges

    def cancel_all(self, *, force: bool = False) -> None:
        """Cancel what is pending of every task, with `force` also what runs; another client's
        goes on without us."""
        self.cancel_attached()
        for calls in self._open_tasks():
            if not calls.is_attached:
                self.cancel_within(calls, 0, calls.count, force)

    def cancel_attached(self) -> None:
        """End here the calls of other clients' tasks; there they go on."""
        for calls in self._open_tasks():
            if calls.is_attached:
                _ranges, finished = calls.cancel_within(0, calls.count, True)
                for future in finished:
                    run_callbacks(future, future._extra)
                with self._lock:
                    if calls.is_complete:
                        self._drop_complete(calls)

    def _open_tasks(self) -> list[TaskCalls]:
        with self._lock:
            return list(self._tasks.values())

    def cancel_later(self, calls: TaskCalls) -> None:
        """Cancel what is pending of a task that nobody looks at any more.

        Called by the garbage collector at any moment, also in a thread that holds the lock.
        """
        self._unwanted.append(calls)
        self._wake_unlocked()

    def give_up_batch(self, calls: BatchCalls, bodies: list[bytes]) -> None:
        """A batch whose arguments came to an early end by an error: nobody wants its calls."""
        with self._lock:
            first = calls.count
            calls.extend(len(bodies))
            calls.is_sealed = True
        ranges, _finished = calls.cancel_within(0, calls.count, False)
        with self._lock:
            if self._has_ended:
                return
            now = now_ms()
            if ranges:
                # First this: what has not been sent goes out as ended.
                self._line.handle(CallsCancelled(task=calls.id, ranges=ranges), now)
            if bodies:
                event = CallsSubmitted(task=calls.id, first=first, calls=tuple(bodies), last=True)
                self._line.handle(event, now)
            self._line.finish_batch(now)
            if calls.is_complete:
                self._drop_complete(calls)

    def attach(self, info: "TaskInfo") -> BatchCalls:
        """The outcomes of another client's task, or of one of ours that is open."""
        self.check_open()
        with self._lock:
            task, count = info.task, info.calls
            known = self._tasks.get(task)
            if isinstance(known, BatchCalls):
                return known
            if known is not None:
                raise ValueError(
                    f"The task {task} was submitted by this client and is open: use its futures."
                )
            calls = BatchCalls(self, task, info.label)
            calls.is_attached = True
            calls.extend(count)
            calls.is_sealed = True
            if info.replicas > 1:
                # How results are compared is known to their owner alone.
                self._hold_votes(calls, info, None)
            self._tasks[task] = calls
            now = now_ms()
            blocks = tuple(info.blocks)
            event = AttachAsked(task=task, calls=count, replicas=info.replicas, blocks=blocks)
            self._line.handle(event, now)
            self._line.finish_batch(now)
            if calls.is_complete:
                self._drop_complete(calls)
        return calls

    def find(self, task: str) -> TaskCalls | None:
        """A task of ours with open calls."""
        with self._lock:
            return self._tasks.get(task)

    def tell(self, event: Event) -> None:
        """Hand an event to the core, and send what comes of it."""
        self.check_process()
        with self._lock:
            if self._has_ended:
                raise NotConnected("This client is shut down; connect again.")
            now = now_ms()
            self._line.handle(event, now)
            self._line.finish_batch(now)

    def _open_burst(
        self, target: Target, options: Options, agree: "Agree | None", now: int
    ) -> Burst:
        burst = Burst(self, self._draw_task(), target.label, options, now + BURST_MS)
        self._open_task(burst, target, options, agree)
        return burst

    def _draw_task(self) -> str:
        self._task_count += 1
        return f"{self.client}-{base32(self._task_count)}"

    def _open_task(
        self, calls: TaskCalls, target: Target, options: Options, agree: "Agree | None"
    ) -> None:
        if options.replicas > 1:
            self._hold_votes(calls, options, agree)
        self._tasks[calls.id] = calls
        event = TaskOpened(
            task=calls.id,
            key=os.urandom(16),
            function=target.function,
            form=target.form,
            label=target.label,
            python_min=target.python_min,
            code=target.code,
            options=options,
        )
        # Nothing comes of it before its first calls.
        self._core.handle(event, 0)

    def _hold_votes(
        self, calls: TaskCalls, options: "Options | TaskInfo", agree: "Agree | None"
    ) -> None:
        # Few need it, and it takes its time to load.
        from forage import voting

        calls.votes = voting.Votes(calls, options.replicas, options.quorum, agree)
        self._is_voting = voting.is_voting

    def decided(self, calls: TaskCalls, ranges: Ranges) -> None:
        """Calls with replicas have ended: what else runs of them is unwanted."""
        self._say_ended(calls, CallsDecided(task=calls.id, ranges=ranges))

    def _send_burst(self, burst: Burst, now: int) -> None:
        bodies, burst.bodies = burst.bodies, []
        burst.is_sealed = True
        self._line.handle(
            CallsSubmitted(task=burst.id, first=0, calls=tuple(bodies), last=True), now
        )
        if burst.ended >= burst.count:
            # All of them were cancelled before they went.
            self._drop_complete(burst)

    def _send_bursts(self, now: int, *, few: bool = True, many: bool = True) -> bool:
        taken = self._bursts.take(now, few=few, many=many)
        for burst in taken:
            self._send_burst(burst, now)
        return bool(taken)

    def _wait_for_room(self) -> None:
        """Hold a caller back while too much is uncommitted; the network thread never waits."""
        while (
            self._core.unacknowledged_bytes > UNACKNOWLEDGED_BYTES_MAX
            and not self._has_ended
            and threading.current_thread() is not self._thread
        ):
            self._wait_for_change()

    def _wait_for_change(self, timeout_s: float | None = None) -> bool:
        """Wait for `_changed`, without the lock; whether it was in time."""
        self._waiting_count += 1
        try:
            return self._changed.wait(timeout_s)
        finally:
            self._waiting_count -= 1

    def _drop_complete(self, calls: TaskCalls) -> None:
        if self._tasks.pop(calls.id, None) is not None:
            if self._is_closed and not self._tasks:
                self._line.wake()
            if self._waiting_count:
                self._changed.notify_all()

    # -- the network thread -----------------------------------------------------------------------

    def _run(self) -> None:
        self._thread_id = threading.get_ident()
        try:
            with self._lock:
                due = self._end_turn(now_ms())
            while not self._is_over:
                due = self._turn(due)
            self._say_goodbye()
        except BaseException as error:
            logger.exception("the client's network thread fails")
            self._crash(error)
        finally:
            with self._lock:
                self._has_ended = True
                self._line.close()
                self._changed.notify_all()
            # The system may give it to another thread.
            self._thread_id = 0

    def _turn(self, due: int | None) -> int | None:
        """Wait for something, but not beyond `due`, and see to all of it; the next turn's `due`."""
        line = self._line
        line.sleep(due)
        while self._unwanted:
            calls = self._unwanted.popleft()
            self.cancel_within(calls, 0, calls.count, False)
        with self._lock:
            now = now_ms()
            has_news = line.read(now)
            has_sent = False
            if self._bursts:
                is_idle = self._core.is_idle
                has_sent = self._send_bursts(now, few=has_news or is_idle, many=is_idle)
            deferred = line.deferred
            if not deferred:
                return self._end_turn(now)
            line.deferred = []
            if has_sent:
                # The fleet is not to wait for new calls while futures resolve here.
                line.end_batch(now)
                line.flush(now)
        # First who waits, then the core's books and what is to be said.
        touched = self._delivery.carry_out(deferred)
        with self._lock:
            for calls in touched:
                if calls.is_complete:
                    self._drop_complete(calls)
            # (Users' classes may have taken their time.)
            return self._end_turn(now_ms())

    def _end_turn(self, now: int) -> int | None:
        """What is left to do when all is read and told; when the next turn is due."""
        line = self._line
        line.end_batch(now)
        line.flush(now)
        if self._waiting_count:
            self._changed.notify_all()
        self._is_over = self._is_closed and (not self._tasks or self._is_leaving)
        due = self._bursts.due_ms() if self._bursts else None
        return line.fall_asleep(0 if self._unwanted else due)

    def _say_goodbye(self) -> None:
        """Let the controller know what is collected, and that we are gone."""
        deadline = now_ms() + round(GOODBYE_S * 1000)
        line = self._line
        with self._lock:
            line.handle(CloseAsked(), now_ms())
            line.flush(now_ms())
        while True:
            with self._lock:
                now = now_ms()
                line.read(now)
                line.end_batch(now)
                line.flush(now)
                # What waits for room in the window is lost if we go before it is sent.
                if now >= deadline or not self._core.waiting_messages:
                    line.say_goodbye(GOODBYE_S)
                    return
                due = line.fall_asleep(deadline)
            line.sleep(due)

    def _crash(self, error: BaseException) -> None:
        """A fault of ours: nobody is left waiting for it."""
        with self._lock:
            self._is_closed = True
            tasks = list(self._tasks.values())
            self._tasks.clear()
            self._line.fail(NotConnected(f"The client failed: {error!r}"))
        failure = ForageError(f"The client's network thread failed: {error!r}")
        failure.__cause__ = error
        for calls in tasks:
            callbacks.callback_thread.run(calls.fail(((0, calls.count),), failure))
