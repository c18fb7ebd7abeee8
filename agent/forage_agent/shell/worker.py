"""The worker process: runs users' calls, one at a time, and reports what became of them.

The main thread runs the calls. Outcomes of calls that took more than 3 ms leave at once, and those
that somebody may wait for; others are held for 15 ms while there is more to run, so that one send
carries many. Before each call its name is written to memory that the agent shares, so that there is no doubt which call a dead
worker was in.

A second thread exists only in workers that are given several calls at a time. It sends what is
held while a call turns out slow, and gives back what has not begun when the agent asks for it.
"""

import io
import mmap
import os
import random
import select
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any

from forage_agent.shell.chunks import Chunk, read_chunk
from forage_agent.shell.clock import now_ms
from forage_agent.shell.frames import (
    CHECKPOINT,
    CONTROL_BYTES,
    LOADED,
    OUTCOMES,
    READY,
    RETURNED,
    FrameReader,
    pack,
)
from forage_agent.shell.marks import END_MARK, mark
from forage_agent.shell.shared_page import PAGE_BYTES, POSITION, write_progress
from forage_agent.shell.states import CallStates
from forage_agent.shell.system import become_subreaper, die_with_parent
from forage_wire.errors import DecodeError, NotSerializable, VersionMismatch
from forage_wire.limits import CALL_BYTES_MAX
from forage_wire.running import set_checkpoints, set_reporter
from forage_wire.system_errors import NOT_SERIALIZABLE, REFUSED, VERSION_MISMATCH, system_error
from forage_wire.values import (
    decode_call,
    encode_error,
    encode_outcome_value,
    enter,
    load,
)

__all__ = ["run_worker"]

_QUICK_NS = 3_000_000
"""The outcome of a call that ran longer leaves at once."""
_HELD_NS_MAX = 15_000_000
"""Outcomes are held for so long while there is more to run: each frame wakes the agent, which
takes its processor from the calls."""
_HELD_BYTES_MAX = 48 * 1024
_TICK_MS = 5
_SWITCH_S = 0.001
"""What Python calls its switch interval: so long a call may keep the second thread from its turn."""
_OUT_OF_MEMORY_SCORE = b"500"
_KEPT_SIGNALS = {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ}
"""Those that nobody can change, and those that Python turns into exceptions."""
_Function = Callable[..., Any]


class _CallText(io.TextIOWrapper):
    """stdout or stderr: says whose text follows, once in each call that writes."""

    worker: "Worker | None" = None
    is_marked = False

    def write(self, text: str, /) -> int:
        if not self.is_marked and self.worker is not None:
            self.is_marked = self.worker.has_written = True
            super().write(mark(*self.worker.position))
        return super().write(text)

    def end_call(self) -> None:
        """What the call has written is its own; what comes is not."""
        self.is_marked = False
        try:
            super().write(END_MARK)
            self.flush()
        except (OSError, ValueError):
            pass  # The call closed it.


class Worker:
    """The loop of a worker, and what it has been given.

    Args:
        agent: Frames come and go here.
        control: Requests to give back come here.
        page: Shared with the agent: the call that is running, and what it says of itself.
    """

    def __init__(self, agent: socket.socket, control: socket.socket, page: mmap.mmap) -> None:
        self._agent = agent
        self._reader = FrameReader(agent, sys.maxsize)
        self._control = control
        self._page = page
        self._is_fork = False
        self.states = CallStates(self._send_checkpoint, lambda: self._is_fork)
        self.position = (0, 0)
        """(assignment, index) of the call that began last."""
        self._is_running = False
        self._code: dict[bytes, tuple[str, str, bytes]] = {}
        self._functions: dict[bytes, _Function] = {}
        self._entered = b""
        """The function whose modules are the visible ones."""
        self._streams: list[_CallText] = []
        self.has_written = False
        """The running call has said something to stdout or stderr."""
        # Shared by both threads, under `_lock`. Frames are read under `_reading`.
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._chunks: deque[Chunk] = deque()
        self._current: Chunk | None = None
        self._frames_read = 0
        self._held: list[bytes] = []
        self._held_errors: list[tuple[int, str]] = []
        self._held_assignment = 0
        self._held_low = 0
        """What is held are this assignment's calls from this one on."""
        self._packed: list[bytes] = []
        """Frames of what was held before that; never without something held behind them."""
        self._held_bytes = 0
        self._held_run_ns = 0
        self._held_since_ns = 0
        self._ticker_wake = -1
        self._is_ticking = False

    # -- main thread ----------------------------------------------------------------------------

    def run(self, streams: list[_CallText]) -> None:
        """Run what comes until the agent is gone."""
        self._streams = streams
        os.register_at_fork(after_in_child=self._on_fork)
        self._send(pack([READY, os.getpid()]))
        while True:
            with self._lock:
                chunk = self._next()
            if chunk is not None:
                self._run_chunk(chunk)
            elif not self._read_frame():
                return

    def _next(self) -> Chunk | None:
        """The next chunk, where there is one. Under the lock."""
        self._current = None
        if self._chunks:
            self._current = self._chunks.popleft()
        elif self._held and not _is_readable(self._agent):
            self._flush()
        return self._current

    def _run_chunk(self, chunk: Chunk) -> None:
        """Run its calls in turn: as many as are not given back meanwhile."""
        page, states = self._page, chunk.states
        assignment, low, key = chunk.assignment, chunk.low, chunk.function
        function = self._functions.get(key) if key == self._entered else None
        item, reason, began_ns, ended_ns = b"", "", 0, 0
        at = 0
        while True:
            with self._lock:
                if at:
                    self._hold(chunk, item, reason, began_ns, ended_ns)
                if at == chunk.count:
                    self._is_running = False
                    self.states.given = None
                    return
                index = low + at
                self.position = (assignment, index)
                POSITION.pack_into(page, 0, assignment, index)
                self.states.given = states.get(index) if states else None
                self._is_running = True
                at += 1
                chunk.begun = at
                if self._held and not self._is_ticking:
                    self._is_ticking = True
                    os.write(self._ticker_wake, b"\0")
            args = chunk.arguments[at - 1]
            began_ns = perf_counter_ns()
            if function is None or args is None:
                item, reason = self._run_unread(chunk, at - 1)
                function = self._functions.get(key) if key == self._entered else None
            else:
                item, reason = _outcome(function, args, {}, chunk.python)
            ended_ns = perf_counter_ns()
            if self._is_fork:
                # The call has forked, and this is the child: its return value is nobody's.
                os._exit(0)
            if self.has_written:
                self._end_texts()

    def _end_texts(self) -> None:
        self.has_written = False
        for stream in self._streams:
            if stream.is_marked:
                stream.end_call()

    def report_progress(self, permille: int, text: str) -> None:
        """The running call says how far it is; also in its threads and forked children."""
        write_progress(self._page, *self.position, permille, text)

    def _send_checkpoint(self, data: bytes) -> None:
        """The running call's state goes behind all that is reported of earlier calls."""
        frame = pack([CHECKPOINT, *self.position, data])
        with self._lock:
            self._flush()
            self._send(frame)

    def _on_fork(self) -> None:
        self._is_fork = True

    def _run_unread(self, chunk: Chunk, at: int) -> tuple[bytes, str]:
        """(outcome item, reason or empty) of a call whose function or arguments are to be read."""
        key, args = chunk.function, chunk.arguments[at]
        function = self._functions.get(key)
        try:
            if function is None:
                function = self._load(key)
            if key != self._entered:
                enter(function)
                self._entered = key
        except VersionMismatch as error:
            return system_error(VERSION_MISMATCH, str(error)), "version"
        except DecodeError as error:
            return _unreadable("The function cannot be read here", error)
        except BaseException as error:
            return _error_item(error), "error"
        kwargs: dict[str, Any] = {}
        if args is None:
            body = chunk.bodies[at]
            if type(body) is list:
                if body[1]:
                    text = "The call refers to data elsewhere, which this agent cannot fetch."
                    return system_error(REFUSED, text), "refused"
                body = body[0]
            try:
                args, kwargs = decode_call(body)
            except VersionMismatch as error:
                return system_error(VERSION_MISMATCH, str(error)), "version"
            except DecodeError as error:
                return _unreadable("The arguments cannot be read here", error)
        return _outcome(function, args, kwargs, chunk.python)

    def _load(self, key: bytes) -> _Function:
        form, python, data = self._code[key]
        if form == "named":
            module, _, attribute = data.decode().partition(":")
            __import__(module)
            found: Any = sys.modules[module]
            for name in attribute.split("."):
                found = getattr(found, name)
            function: _Function = found
        else:
            function = load(data, form, python)
        self._functions[key] = function
        with self._lock:
            self._flush()
            self._send(pack([LOADED]))
        return function

    # -- both threads ---------------------------------------------------------------------------

    def _send(self, data: bytes) -> None:
        try:
            self._agent.sendall(data)
        except OSError:
            # Without the agent there is nobody to work for.
            os._exit(0)

    def _hold(self, chunk: Chunk, item: bytes, reason: str, began_ns: int, ended_ns: int) -> None:
        """Keep the outcome of the call that began last, and send what is due. Under the lock."""
        held = self._held
        if chunk.begun == 1:
            if held and (self._held_assignment, self._held_low + len(held)) != (
                chunk.assignment,
                chunk.low,
            ):
                self._pack()
            if not held:
                self._held_assignment, self._held_low = chunk.assignment, chunk.low
        if not held and not self._packed:
            self._held_since_ns = ended_ns
        if reason:
            self._held_errors.append((self.position[1], reason))
        held.append(item)
        self._held_bytes += len(item)
        run_ns = ended_ns - began_ns
        self._held_run_ns += run_ns
        if (
            run_ns > _QUICK_NS
            or self._held_bytes > _HELD_BYTES_MAX
            or ended_ns - self._held_since_ns > _HELD_NS_MAX
            or (chunk.is_awaited and chunk.begun == len(chunk.bodies))
            or self._ticker_wake < 0
        ):
            self._flush()

    def _flush(self) -> None:
        """Send what is held. Under the lock."""
        if not self._held:
            return
        self._pack()
        frames = b"".join(self._packed)
        self._packed.clear()
        self._held_bytes = 0
        self._send(frames)

    def _pack(self) -> None:
        """One frame of what is held, to be sent with the next one. Under the lock."""
        count = len(self._held)
        errors = [list(error) for error in self._held_errors]
        run_us = self._held_run_ns // 1_000
        items = b"".join(self._held)
        self._held.clear()
        self._held_errors.clear()
        self._held_run_ns = 0
        frame = [OUTCOMES, self._held_assignment, self._held_low, count, run_us, errors, items]
        self._held_low += count
        self._packed.append(pack(frame))

    def _read_frame(self) -> bool:
        """Wait for a frame and take its calls; False where the agent is gone."""
        with self._reading:
            return self._take_frame()

    def _take_frame(self) -> bool:
        """As `_read_frame`, holding `_reading`."""
        reader = self._reader
        frames: list[Any] = []
        while not frames and not reader.is_over:
            frames = reader.read() or []
        for _drop, _code, _chunks, _may_follow, until_ms in frames:
            while until_ms and now_ms() >= until_ms:
                # The agent was held up: the zygote is about to kill us, nothing may begin here.
                signal.pause()
        with self._lock:
            self._frames_read += len(frames)
            for drop, code, chunks, may_follow, _until_ms in frames:
                for key in drop:
                    self._code.pop(key, None)
                    self._functions.pop(key, None)
                for key, form, python, blob in code:
                    self._code[key] = (form, python, blob)
                for chunk in chunks:
                    self._chunks.append(read_chunk(*chunk))
                if may_follow and self._ticker_wake < 0:
                    self._start_ticker()
        return not reader.is_over

    # -- second thread --------------------------------------------------------------------------

    def _start_ticker(self) -> None:
        # Somebody may wait for what it gives back while a call computes.
        sys.setswitchinterval(_SWITCH_S)
        wake_read, self._ticker_wake = os.pipe()
        threading.Thread(
            target=self._tick, args=(wake_read,), name="forage-worker", daemon=True
        ).start()

    def _tick(self, wake_read: int) -> None:
        poll = select.poll()
        poll.register(wake_read, select.POLLIN)
        poll.register(self._control, select.POLLIN)
        due_ns = 0
        while True:
            wait_ms = max(0, due_ns - perf_counter_ns()) / 1e6 if self._is_ticking else None
            ready = dict(poll.poll(wait_ms))
            if wake_read in ready:
                os.read(wake_read, 4_096)
            if self._control.fileno() in ready:
                asked = self._control.recv(CONTROL_BYTES, socket.MSG_WAITALL)
                if len(asked) < CONTROL_BYTES:
                    return
                self._give_back(int.from_bytes(asked, "big"))
            with self._lock:
                # The main thread looks after each call: this one is for a call that is slow.
                due_ns = self._held_since_ns + _HELD_NS_MAX + _TICK_MS * 1_000_000
                if self._held and perf_counter_ns() >= due_ns:
                    self._flush()
                if not self._held:
                    self._is_ticking = False

    def _give_back(self, frames_sent: int) -> None:
        """Report all that has ended, then that the rest is the agent's again."""
        while True:
            with self._lock:
                if self._frames_read >= frames_sent:
                    self._flush()
                    self._chunks.clear()
                    if self._current is not None:
                        self._current.count = self._current.begun
                    running = self.position if self._is_running else (0, 0)
                    self._send(pack([RETURNED, *running]))
                    return
            # What the agent has sent is on its way, and one of the two threads gets it. The main
            # one may keep `_reading` for ever, waiting for the frame after that: so this one asks
            # for it for a moment only, and looks again.
            if self._reading.acquire(timeout=_TICK_MS / 1_000):
                try:
                    if self._frames_read < frames_sent and not self._take_frame():
                        return
                finally:
                    self._reading.release()


def _is_readable(source: socket.socket) -> bool:
    return bool(select.select([source], [], [], 0)[0])


def _unreadable(what: str, error: Exception) -> tuple[bytes, str]:
    return system_error("unreadable", f"{what}: {error}"), "unreadable"


def _error_item(error: BaseException) -> bytes:
    """An exception as an outcome, without the worker's own frame at the top of its traceback."""
    traceback = error.__traceback__
    if traceback is not None:
        error.__traceback__ = traceback.tb_next
    return encode_error(error)


def _outcome(
    function: _Function, args: tuple[Any, ...], kwargs: dict[str, Any], client_python: str
) -> tuple[bytes, str]:
    """(outcome item, reason or empty) of a call; a result that cannot travel is an error too."""
    try:
        value = function(*args, **kwargs)
    # SystemExit and KeyboardInterrupt too: in a task they are this attempt's error.
    except BaseException as error:
        return _error_item(error), "error"
    try:
        item = encode_outcome_value(value, client_python=client_python)
    except VersionMismatch as error:
        return system_error(VERSION_MISMATCH, str(error)), "version"
    except NotSerializable as error:
        return system_error(NOT_SERIALIZABLE, str(error)), "unreadable"
    # Users' classes decide how they are pickled, and may fail in any way.
    except BaseException as error:
        return _error_item(error), "unreadable"
    if len(item) > CALL_BYTES_MAX:
        text = (
            f"The call's result has {len(item)} bytes, above the limit of {CALL_BYTES_MAX}; "
            "return less, or write it where the client can read it."
        )
        return system_error(NOT_SERIALIZABLE, text), "unreadable"
    return item, ""


def _reset_signals() -> None:
    for number in signal.valid_signals() - _KEPT_SIGNALS:
        try:
            if signal.getsignal(number) not in (signal.SIG_DFL, None):
                signal.signal(number, signal.SIG_DFL)
        except (OSError, ValueError):
            pass  # The C library keeps some to itself.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def run_worker(
    zygote_pid: int,
    folder: str,
    agent_descriptor: int,
    control_descriptor: int,
    output_descriptor: int,
    error_descriptor: int,
    page_descriptor: int,
) -> None:
    """Be a worker, in a process that was just forked; returns when the agent is gone.

    Args:
        zygote_pid: The parent: when it dies, so does the worker.
        folder: Where users' code runs.
        agent_descriptor: The socket for frames.
        control_descriptor: The socket for requests to give back.
        output_descriptor: What becomes of stdout.
        error_descriptor: What becomes of stderr.
        page_descriptor: A file of `PAGE_BYTES` that the agent maps too.
    """
    die_with_parent(zygote_pid)
    _reset_signals()
    os.setsid()
    become_subreaper()
    try:
        with open("/proc/self/oom_score_adj", "wb") as file:
            file.write(_OUT_OF_MEMORY_SCORE)
    except OSError:
        pass  # A hardened machine: then agent and worker are equals before the kernel.
    os.chdir(folder)
    os.environ["FORAGE_IN_TASK"] = "1"
    os.environ["TMPDIR"] = folder
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (output_descriptor, 1), (error_descriptor, 2)):
        os.dup2(source, target, inheritable=True)
        os.close(source)
    random.seed()
    page = mmap.mmap(page_descriptor, PAGE_BYTES)
    os.close(page_descriptor)
    worker = Worker(
        socket.socket(fileno=agent_descriptor), socket.socket(fileno=control_descriptor), page
    )
    set_reporter(worker.report_progress)
    set_checkpoints(worker.states)
    streams = [
        _CallText(
            io.BufferedWriter(io.FileIO(descriptor, "w", closefd=False)),
            encoding="utf-8",
            errors="backslashreplace",
            line_buffering=True,
        )
        for descriptor in (1, 2)
    ]
    for stream in streams:
        stream.worker = worker
    sys.stdout, sys.stderr = streams
    sys.__stdout__, sys.__stderr__ = streams  # type: ignore[misc]
    worker.run(streams)
    os._exit(0)
