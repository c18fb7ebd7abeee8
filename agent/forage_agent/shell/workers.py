"""The agent's side of its workers: the zygote's socket, and sockets, pipes and a page for each.

Turns the core's orders into frames, and what comes back into events. There is one zygote at a
time; where there is none, or it has died, the next `StartWorker` makes one.
"""

import logging
import mmap
import os
import select
import selectors
import signal
import socket
from collections.abc import Callable
from typing import Any

import cbor2

from forage_agent.core.events import (
    Event,
    KillWorker,
    LeaseWorker,
    LogLines,
    RunCalls,
    StartWorker,
    TakeBack,
    WorkerCheckpoint,
    WorkerExited,
    WorkerLoaded,
    WorkerOutcomes,
    WorkerProgress,
    WorkerReady,
    WorkerReturned,
)
from forage_agent.shell.frames import (
    CHECKPOINT,
    CONTROL_BYTES,
    LOADED,
    OUTCOMES,
    READY,
    RETURNED,
    ZYGOTE_EXITED,
    ZYGOTE_KILL,
    ZYGOTE_LEASE,
    ZYGOTE_START,
    FrameError,
    FrameReader,
    FrameWriter,
    pack,
)
from forage_agent.shell.logs import LogReader
from forage_agent.shell.shared_page import PAGE_BYTES, POSITION, read_progress
from forage_agent.shell.zygote_process import ZygoteProcess, start_zygote, workers_environment
from forage_wire.shell.loop import Loop

__all__ = ["Workers"]

logger = logging.getLogger(__name__)

_READ_WRITE = selectors.EVENT_READ | selectors.EVENT_WRITE
_END_S_MAX = 5.0


class _Worker:
    """This end of one worker."""

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.socket, self.far_socket = socket.socketpair()
        self.control, self.far_control = socket.socketpair()
        self.socket.setblocking(False)
        self.control.setblocking(False)
        self.reader = FrameReader(self.socket)
        self.writer = FrameWriter(self.socket)
        self.frames_sent = 0
        self.waits_for_room = False
        output, self.far_output = os.pipe()
        error, self.far_error = os.pipe()
        os.set_blocking(output, False)
        os.set_blocking(error, False)
        self.logs = [LogReader(output, "out"), LogReader(error, "err")]
        self.texts = select.poll()
        """Both logs: has either anything to read?"""
        for log in self.logs:
            self.texts.register(log.descriptor, select.POLLIN)
        self.far_page = os.memfd_create("forage-worker")
        os.ftruncate(self.far_page, PAGE_BYTES)
        self.page = mmap.mmap(self.far_page, PAGE_BYTES)
        self.progress: tuple[int, int, int, str] | None = None
        """As read last."""

    @property
    def far_ends(self) -> list[int]:
        """What the worker gets, in the order in which it expects them."""
        return [
            self.far_socket.fileno(),
            self.far_control.fileno(),
            self.far_output,
            self.far_error,
            self.far_page,
        ]

    def close_far_ends(self) -> None:
        self.far_socket.close()
        self.far_control.close()
        for descriptor in (self.far_output, self.far_error, self.far_page):
            os.close(descriptor)

    def close(self) -> None:
        self.socket.close()
        self.control.close()
        self.page.close()
        for log in self.logs:
            os.close(log.descriptor)


class Workers:
    """All workers of this agent.

    Args:
        loop: Where their sockets are watched.
        emit: Gets every event.
        now_ms: The agent's clock.
        zygote: One that was started already, in `environment`.
        environment: What workers are to have in theirs; this process's own, less what is the
            agent's own business, where None.
    """

    def __init__(
        self,
        loop: Loop,
        emit: Callable[[Event], None],
        now_ms: Callable[[], int],
        zygote: ZygoteProcess | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self._loop = loop
        self._emit = emit
        self._now_ms = now_ms
        self._environment = workers_environment(
            dict(os.environ if environment is None else environment)
        )
        self._zygote: socket.socket | None = None
        self.zygote_pid = 0
        """The process from which workers are forked; 0: there is none now."""
        if zygote is not None:
            self._use(zygote)
        self._workers: dict[int, _Worker] = {}

    # -- orders ---------------------------------------------------------------------------------

    def carry_out(
        self, order: StartWorker | RunCalls | TakeBack | KillWorker | LeaseWorker
    ) -> None:
        """An order of the core."""
        match order:
            case StartWorker():
                self._start(order.slot)
            case RunCalls():
                self._run(order)
            case TakeBack():
                worker = self._workers.get(order.slot)
                if worker is not None:
                    asked = worker.frames_sent.to_bytes(CONTROL_BYTES, "big")
                    _send_if_possible(worker.control, asked)
            case KillWorker():
                self._tell_zygote([ZYGOTE_KILL, order.slot])
            case LeaseWorker():
                self._tell_zygote([ZYGOTE_LEASE, order.slot, order.until_ms])

    def _start(self, slot: int) -> None:
        if self._zygote is None:
            self._start_zygote()
        worker = _Worker(slot)
        self._workers[slot] = worker
        is_told = self._tell_zygote([ZYGOTE_START, slot], worker.far_ends)
        worker.close_far_ends()
        if not is_told:
            self._end(worker, WorkerExited(slot=slot))
            return
        self._loop.register(worker.socket, lambda: self._on_socket(worker))
        for log in worker.logs:
            self._watch_log(worker, log)

    def _watch_log(self, worker: _Worker, log: LogReader) -> None:
        self._loop.register(log.descriptor, lambda: self._on_log(worker, log))

    def _run(self, order: RunCalls) -> None:
        worker = self._workers.get(order.slot)
        if worker is None:
            return  # It has died; the core is about to hear of it.
        frame = [
            list(order.drop),
            [[code.key, code.form, code.python, code.data] for code in order.code],
            [
                [
                    one.assignment,
                    one.low,
                    one.high,
                    one.function,
                    one.client_python,
                    one.calls,
                    one.is_awaited,
                    one.checkpoints,
                ]
                for one in order.chunks
            ],
            order.may_follow,
            order.until_ms,
        ]
        worker.frames_sent += 1
        self._watch(worker, worker.writer.write(pack(frame)))

    def _watch(self, worker: _Worker, has_unsent: bool) -> None:
        """Be told of room in a worker's socket only while something is to be sent."""
        if has_unsent != worker.waits_for_room:
            worker.waits_for_room = has_unsent
            events = _READ_WRITE if has_unsent else selectors.EVENT_READ
            self._loop.register(worker.socket, lambda: self._on_socket(worker), events=events)

    # -- zygote ---------------------------------------------------------------------------------

    def _start_zygote(self) -> None:
        started = start_zygote(self._environment)
        if started is not None:
            self._use(started)

    def _use(self, zygote: ZygoteProcess) -> None:
        self._zygote = zygote.socket
        self.zygote_pid = zygote.pid
        self._loop.register(zygote.socket, self._on_zygote)

    def _tell_zygote(self, message: list[int], descriptors: list[int] | None = None) -> bool:
        if self._zygote is None:
            return False
        try:
            socket.send_fds(self._zygote, [cbor2.dumps(message)], descriptors or [])
        except OSError:
            return False  # It has died: its end of file is about to be read.
        return True

    def _on_zygote(self) -> None:
        while self._zygote is not None:
            try:
                message = self._zygote.recv(4_096)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            if not message:
                self._lost_zygote()
                return
            kind, slot, _pid, status, lease_over = cbor2.loads(message)
            worker = self._workers.get(slot)
            if kind == ZYGOTE_EXITED and worker is not None:
                self._end(worker, _exited(slot, status, lease_over))

    def _lost_zygote(self) -> None:
        """Its workers die with it: the kernel sees to that."""
        logger.error("the process that workers are forked from has died pid=%s", self.zygote_pid)
        self._forget_zygote()
        for worker in list(self._workers.values()):
            self._end(worker, WorkerExited(slot=worker.slot))

    def _forget_zygote(self) -> None:
        if self._zygote is None:
            return
        self._loop.unregister(self._zygote)
        self._zygote.close()
        self._zygote = None
        try:
            os.waitpid(self.zygote_pid, 0)
        except ChildProcessError:
            pass
        self.zygote_pid = 0

    # -- what workers say -----------------------------------------------------------------------

    def _on_socket(self, worker: _Worker) -> None:
        if worker.waits_for_room:
            self._watch(worker, worker.writer.flush())
        self._receive(worker)
        if worker.reader.is_over:
            # How it ended, the zygote will tell.
            self._loop.unregister(worker.socket)

    def _receive(self, worker: _Worker) -> bool:
        """Take what one receive brings; False where there was nothing."""
        try:
            frames = worker.reader.read()
            if frames is None:
                return False
            # What was written before an outcome comes before it.
            if frames and worker.texts.poll(0):
                for log in worker.logs:
                    self._emit_lines(worker, log.read(self._now_ms()))
            for frame in frames:
                self._emit(_event_of(worker.slot, frame))
        except (FrameError, ValueError, TypeError, IndexError) as error:
            logger.error("worker is not understood slot=%s: %s", worker.slot, error)
            self._loop.unregister(worker.socket)
            self._tell_zygote([ZYGOTE_KILL, worker.slot])
            return False
        return True

    def _on_log(self, worker: _Worker, log: LogReader) -> None:
        rows = log.read(self._now_ms())
        if rows is None:
            self._loop.unregister(log.descriptor)
        self._emit_lines(worker, rows)

    def _emit_lines(self, worker: _Worker, rows: list[tuple[int, int, str, str]] | None) -> None:
        if rows:
            self._emit(LogLines(slot=worker.slot, rows=tuple(rows)))

    def read_progress(self) -> None:
        """Emit what calls have newly said of how far they are."""
        for worker in self._workers.values():
            found = read_progress(worker.page)
            if found is None or found == worker.progress:
                continue
            worker.progress = found
            assignment, index, permille, text = found
            self._emit(
                WorkerProgress(
                    slot=worker.slot,
                    assignment=assignment,
                    index=index,
                    permille=permille,
                    text=text,
                )
            )

    def _end(self, worker: _Worker, event: WorkerExited) -> None:
        """A worker is gone: its last words, then its end."""
        while self._receive(worker):
            pass
        for log in worker.logs:
            self._emit_lines(worker, log.finish(self._now_ms()))
            self._loop.unregister(log.descriptor)
        assignment, index = POSITION.unpack_from(worker.page)
        self._loop.unregister(worker.socket)
        worker.close()
        del self._workers[worker.slot]
        self._emit(
            WorkerExited(
                slot=event.slot,
                exit_code=event.exit_code,
                signal=event.signal,
                assignment=assignment,
                index=index,
                lease_over=event.lease_over,
            )
        )

    # -- the end --------------------------------------------------------------------------------

    def close(self) -> None:
        """Kill all workers and wait until nothing is left of them, 5 s at most."""
        zygote, self._zygote = self._zygote, None
        if zygote is not None:
            self._loop.unregister(zygote)
            zygote.close()
            _wait_for(self.zygote_pid, _END_S_MAX)
            self.zygote_pid = 0
        for worker in self._workers.values():
            self._loop.unregister(worker.socket)
            for log in worker.logs:
                self._loop.unregister(log.descriptor)
            worker.close()
        self._workers.clear()


def _event_of(slot: int, frame: Any) -> Event:
    """The event in a worker's frame; raises ValueError or TypeError where there is none."""
    kind = frame[0]
    if kind == OUTCOMES:
        _kind, assignment, first, count, run_us, errors, items = frame
        return WorkerOutcomes(
            slot=slot,
            assignment=assignment,
            first=first,
            count=count,
            items=items,
            errors=tuple([(index, reason) for index, reason in errors]) if errors else (),
            run_us=run_us,
        )
    if kind == READY:
        return WorkerReady(slot=slot, pid=frame[1])
    if kind == RETURNED:
        return WorkerReturned(slot=slot, assignment=frame[1], index=frame[2])
    if kind == LOADED:
        return WorkerLoaded(slot=slot)
    if kind == CHECKPOINT:
        _kind, assignment, index, data = frame
        return WorkerCheckpoint(slot=slot, assignment=assignment, index=index, data=data)
    raise ValueError(f"a frame of the unknown kind {kind}")


def _exited(slot: int, status: int, lease_over: bool) -> WorkerExited:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"SIG{number}"
        return WorkerExited(slot=slot, signal=name, lease_over=lease_over)
    return WorkerExited(slot=slot, exit_code=os.WEXITSTATUS(status))


def _send_if_possible(target: socket.socket, data: bytes) -> None:
    try:
        target.send(data)
    except OSError:
        pass  # The worker is gone, or has been asked thousands of times without an answer.


def _wait_for(pid: int, limit_s: float) -> None:
    """Wait for a child of ours; kill it when it does not end in time."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        pass  # An old kernel: the child ends by itself within its own limit.
    else:
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            if not selector.select(limit_s):
                os.kill(pid, signal.SIGKILL)
        os.close(descriptor)
    os.waitpid(pid, 0)
