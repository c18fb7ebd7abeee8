"""A model of an agent's worker processes: they run calls in virtual time.

What a worker does is said by `forage_agent.core.events`: chunks strictly in order, one report
for consecutive calls of one chunk, kept for a millisecond at most, `WorkerExited` as the last
word. What it makes of a call is said by `forage_sim.workload`.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import TYPE_CHECKING

import cbor2

from forage_agent.core.events import (
    KillWorker,
    LeaseWorker,
    RunCalls,
    StartWorker,
    TakeBack,
    WorkerCheckpoint,
    WorkerExited,
    WorkerLoaded,
    WorkerOutcomes,
    WorkerReady,
    WorkerReturned,
)
from forage_sim.workload import read_call, state_of, step_of, worker_end
from forage_wire.codec import cut_calls

if TYPE_CHECKING:
    from forage_sim.nodes import DeviceProcess
    from forage_sim.watch import Run

__all__ = ["Workers"]

START_MS = (2, 30)
LOAD_MS = (0, 20)
KILL_MS = (0, 10)
SOCKET_MS_MAX = 1
REPORT_CALLS_MAX = 16


@dataclass(slots=True)
class Waiting:
    """A call that a worker has and has not begun."""

    assignment: int
    index: int
    body: bytes
    function: bytes
    checkpoint: bytes | None = None
    """The state that it is given to go on from."""


class Worker:
    """One worker process."""

    def __init__(self, workers: "Workers", slot: int) -> None:
        self._workers = workers
        self.slot = slot
        self.alive = True
        self.ready = False
        self._known: dict[bytes, None] = {}
        self._loaded: dict[bytes, None] = {}
        self._waiting: deque[Waiting] = deque()
        self._running: Waiting | None = None
        self._ended: list[tuple[Waiting, bytes, str, int]] = []
        self._unreported: dict[tuple[int, int], Run] = {}
        self._report_due = False
        self._begun: Run | None = None
        self._leased_until_ms = 0

    def lease(self, until_ms: int) -> None:
        """The zygote kills it then, whether the agent is frozen or not, unless it is prolonged."""
        self._leased_until_ms = until_ms
        machine = self._workers.process.machine
        self._workers.after(
            max(0, machine.world_ms(until_ms) - self._workers.process.world.clock.now_ms),
            self._end_lease,
        )

    def _end_lease(self) -> None:
        if self._leased_until_ms <= self._workers.process.machine.now_ms():
            self.end(signal="SIGKILL", lease_over=True)

    def become_ready(self) -> None:
        """It has started."""
        if not self.alive:
            return
        if self._workers.random.random() < self._workers.process.world.worker_death:
            self.end(exit_code=1)
        else:
            self.ready = True
            self._workers.tell(WorkerReady(slot=self.slot, pid=self._workers.next_pid()))
            self._next()

    def run(self, order: RunCalls) -> None:
        """Take chunks."""
        if not self.alive:
            return
        if order.until_ms and order.until_ms <= self._workers.process.machine.now_ms():
            # It begins nothing any more, and waits for its end.
            return
        for key in order.drop:
            self._known.pop(key, None)
            self._loaded.pop(key, None)
        for code in order.code:
            self._known[code.key] = None
        for chunk in order.chunks:
            if chunk.function not in self._known:
                raise AssertionError(
                    f"slot {self.slot} gets calls of assignment {chunk.assignment} "
                    "without their function"
                )
            bodies = cut_calls(chunk.calls)
            if len(bodies) != chunk.high - chunk.low:
                raise AssertionError(
                    f"chunk [{chunk.low}, {chunk.high}) of assignment {chunk.assignment} "
                    f"has {len(bodies)} calls"
                )
            given = dict(chunk.checkpoints)
            for index, body in enumerate(bodies, chunk.low):
                call = Waiting(chunk.assignment, index, body, chunk.function, given.get(index))
                self._waiting.append(call)
        self._next()

    def take_back(self) -> None:
        """Give back what has not begun."""
        if not self.alive:
            return
        self._waiting.clear()
        self._report()
        running = self._running
        self._workers.tell(
            WorkerReturned(
                slot=self.slot,
                assignment=running.assignment if running else 0,
                index=running.index if running else 0,
            )
        )

    def end(
        self, *, exit_code: int | None = None, signal: str = "", lease_over: bool = False
    ) -> None:
        """The process is gone; what it had sent is read first."""
        if not self.alive:
            return
        self.alive = False
        if self._workers.random.random() < 0.5:
            self._report()
        for run in self._unreported.values():
            run.lost = True
        if self._begun is not None:
            self._begun.ended = True
        running = self._running
        if running is not None:
            task = self._workers.task_of(running.assignment)
            watch = self._workers.process.world.watch
            call = watch.given_out[running.assignment].call_of(running.index)
            watch.killed[task, call] += 1
        self._workers.gone(self)
        self._workers.tell(
            WorkerExited(
                slot=self.slot,
                exit_code=exit_code,
                signal=signal,
                assignment=running.assignment if running else 0,
                index=running.index if running else 0,
                lease_over=lease_over,
            )
        )

    def _next(self) -> None:
        if self._running is not None or not self.ready or not self.alive:
            return
        if not self._waiting:
            self._report()
            return
        call = self._waiting.popleft()
        self._running = call
        if call.function in self._loaded:
            self._begin(call)
            return
        self._loaded[call.function] = None
        delay_ms = self._workers.random.randint(*LOAD_MS)

        def loaded() -> None:
            if self.alive:
                self._workers.tell(WorkerLoaded(slot=self.slot))
                self._begin(call)

        self._workers.after(delay_ms, loaded)

    def _begin(self, call: Waiting) -> None:
        workers = self._workers
        watch = workers.process.world.watch
        run = watch.started(
            workers.process, call.assignment, call.index, call.body, call.checkpoint
        )
        self._unreported[call.assignment, call.index] = run
        self._begun = run
        name = (run.task, call.index)
        # How often it went wrong before, anywhere: what a call does is in its bytes.
        end = worker_end(call.body, tries=watch.raised[name], deaths=watch.killed[name])
        hit = workers.random.random() < workers.process.world.worker_death
        if end.run_ms:
            # Nothing finished waits behind a slow call.
            self._report()

        def done() -> None:
            if not self.alive:
                return
            if end.died or hit:
                self.end(signal="SIGKILL")
                return
            run.ended = True
            self._running = None
            reason = ""
            if isinstance(end.item, dict):
                watch.raised[name] += 1
                reason = "error"
            self._ended.append((call, cbor2.dumps(end.item), reason, end.run_ms * 1_000 + 10))
            self._report_soon()
            self._next()

        spec, begun = read_call(call.body), step_of(call.body, call.checkpoint) or 0
        share_ms = end.run_ms / (spec.states + 1)
        for step in range(begun + 1, spec.states + 1):
            workers.after(int(share_ms * (step - begun)), partial(self._keep, call, step))
        workers.after(max(0, end.run_ms - int(share_ms * begun)), done)

    def _keep(self, call: Waiting, step: int) -> None:
        """The running call makes a checkpoint."""
        if self.alive and self._running is call:
            self._workers.tell(
                WorkerCheckpoint(
                    slot=self.slot,
                    assignment=call.assignment,
                    index=call.index,
                    data=state_of(call.body, step),
                )
            )

    def _report_soon(self) -> None:
        if len(self._ended) >= REPORT_CALLS_MAX:
            self._report()
        elif not self._report_due:
            self._report_due = True

            def due() -> None:
                self._report_due = False
                if self.alive:
                    self._report()

            self._workers.after(1, due)

    def _report(self) -> None:
        """Send what has ended: one report for consecutive calls of one assignment."""
        ended, self._ended = self._ended, []
        at = 0
        while at < len(ended):
            first = ended[at][0]
            end = at + 1
            while (
                end < len(ended)
                and ended[end][0].assignment == first.assignment
                and ended[end][0].index == first.index + end - at
            ):
                end += 1
            rows = ended[at:end]
            for call, _item, _reason, _run_us in rows:
                del self._unreported[call.assignment, call.index]
            self._workers.tell(
                WorkerOutcomes(
                    slot=self.slot,
                    assignment=first.assignment,
                    first=first.index,
                    count=len(rows),
                    items=b"".join(item for _call, item, _reason, _run_us in rows),
                    errors=tuple(
                        (call.index, reason) for call, _item, reason, _run_us in rows if reason
                    ),
                    run_us=sum(run_us for _call, _item, _reason, run_us in rows),
                )
            )
            at = end


class Workers:
    """The workers of one agent process; they die with it."""

    def __init__(self, process: "DeviceProcess") -> None:
        self.process = process
        self.random: Random = process.machine.random
        self._workers: dict[int, Worker] = {}
        self._last_told_ms = 0
        self._last_asked_ms = 0
        self._pid = 100

    # -- orders -----------------------------------------------------------------------------

    def order(self, command: StartWorker | RunCalls | TakeBack | KillWorker | LeaseWorker) -> None:
        """An order of the core; it reaches the worker a moment later, in order."""
        if isinstance(command, StartWorker):
            if command.slot in self._workers:
                raise AssertionError(f"slot {command.slot} has a worker already")
            worker = Worker(self, command.slot)
            self._workers[command.slot] = worker
            self.after(self.random.randint(*START_MS), worker.become_ready)
            return
        target = self._workers.get(command.slot)
        if target is None:
            # It died meanwhile: its last word is on its way to the core.
            return
        if isinstance(command, LeaseWorker):
            target.lease(command.until_ms)
            return
        if isinstance(command, KillWorker):
            self.after(self.random.randint(*KILL_MS), lambda: target.end(signal="SIGKILL"))
            return
        clock = self.process.world.clock
        at_ms = max(
            clock.now_ms + int(self.random.random() * (SOCKET_MS_MAX + 1)), self._last_asked_ms
        )
        self._last_asked_ms = at_ms
        if isinstance(command, RunCalls):
            order = command
            clock.at(at_ms, lambda: target.run(order))
        else:
            clock.at(at_ms, target.take_back)

    # -- for workers ------------------------------------------------------------------------

    def after(self, delay_ms: int, action: Callable[[], None]) -> None:
        """Do something later, if the process still lives then."""

        def when_due() -> None:
            if self.process.alive:
                action()

        self.process.world.clock.after(delay_ms, when_due)

    def tell(
        self,
        event: WorkerReady
        | WorkerLoaded
        | WorkerCheckpoint
        | WorkerOutcomes
        | WorkerReturned
        | WorkerExited,
    ) -> None:
        """Say something to the core; it arrives a moment later, in order."""
        clock = self.process.world.clock
        at_ms = max(
            clock.now_ms + int(self.random.random() * (SOCKET_MS_MAX + 1)), self._last_told_ms
        )
        self._last_told_ms = at_ms
        clock.at(at_ms, lambda: self.process.put(event))

    def next_pid(self) -> int:
        """A process id."""
        self._pid += 1
        return self._pid

    def gone(self, worker: Worker) -> None:
        """A worker has ended."""
        if self._workers.get(worker.slot) is worker:
            del self._workers[worker.slot]

    def task_of(self, assignment: int) -> str:
        """The task of an assignment."""
        return self.process.world.watch.given_out[assignment].task
