"""The services of a `LocalCluster` as processes: what can be done to them, and what they said.

Owns the orders to the keeper (see `forage.keeper`) and the picture of each service that its reports
give: its pid, its ready line, whether it has exited and whether anything is left of what it started.
"""

import marshal
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from forage.errors import ForageError

__all__ = ["Keeper", "LocalProcess"]

START_LIMIT_S = 30.0
STOP_LIMIT_S = 5.0
KILL_LIMIT_S = 10.0

_TAIL_BYTES = 4_096
_FRAME_HEAD_BYTES = 4
_KEEPER = Path(__file__).with_name("keeper.py")


class Keeper:
    """The parent's end of the keeper process. Safe for use by several threads."""

    def __init__(self, folder_to_remove: Path | None) -> None:
        """Start it; nothing is waited for.

        Args:
            folder_to_remove: Removed when everything has ended, also where that is because this
                process was killed.
        """
        self._owner = os.getpid()
        self._folder = folder_to_remove
        self._condition = threading.Condition()
        self._processes: dict[str, LocalProcess] = {}
        self._has_ended = False
        self.on_change: Callable[[], None] | None = None
        """Called from another thread after each report."""
        # `-I -S`: neither the environment nor site-packages have a say in it, and it starts in a
        # third of the time. A session of its own: a terminal's Ctrl-C is not for the services.
        command = [sys.executable, "-I", "-S", str(_KEEPER), str(self._owner)]
        if folder_to_remove is not None:
            command.append(str(folder_to_remove))
        self._popen = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        reader = threading.Thread(target=self._read, name="forage-keeper", daemon=True)
        reader.start()

    def add(self, process: "LocalProcess") -> None:
        """Take reports for this service."""
        self._processes[process.name] = process

    def order(self, **order: object) -> None:
        """Send an order; ForageError where the keeper is gone, and with it all services."""
        frame = marshal.dumps(order)
        assert self._popen.stdin is not None
        with self._condition:
            try:
                self._popen.stdin.write(len(frame).to_bytes(_FRAME_HEAD_BYTES, "big") + frame)
                self._popen.stdin.flush()
            except (OSError, ValueError):
                raise ForageError("The local cluster has ended; make a new LocalCluster.") from None

    def wait_for(self, is_true: Callable[[], bool], deadline_s: float) -> bool:
        """Wait until reports make it true, or until `time.monotonic()` is `deadline_s`."""
        with self._condition:
            limit_s = max(0.0, deadline_s - time.monotonic())
            return self._condition.wait_for(lambda: is_true() or self._has_ended, limit_s) and (
                is_true()
            )

    def close(self) -> None:
        """End all that is left, without asking it; again is no error, and a fork's is nothing."""
        if os.getpid() != self._owner:
            return
        assert self._popen.stdin is not None
        try:
            self._popen.stdin.close()
        except OSError:
            pass  # What was corked for it when it died.
        self._popen.wait()
        if self._folder is not None:
            # The keeper has done so, unless it was killed itself.
            shutil.rmtree(self._folder, ignore_errors=True)

    def _read(self) -> None:
        assert self._popen.stdout is not None
        with self._popen.stdout as stream:
            while True:
                head = stream.read(_FRAME_HEAD_BYTES)
                frame = stream.read(int.from_bytes(head, "big"))
                if len(head) < _FRAME_HEAD_BYTES or not frame:
                    break
                self._take(marshal.loads(frame))
        with self._condition:
            self._has_ended = True
            for process in self._processes.values():
                process.note_end()
            self._condition.notify_all()
        self._tell()

    def _take(self, report: dict[str, Any]) -> None:
        with self._condition:
            process = self._processes.get(report["name"])
            if process is not None:
                process.take_report(report)
            self._condition.notify_all()
        self._tell()

    def _tell(self) -> None:
        if self.on_change is not None:
            self.on_change()


class LocalProcess:
    """One service of a local cluster: its process, which leads a group, and all it has started.

    `kill`, `freeze` and `thaw` act on all of it at once: an agent's workers share its fate, as
    they would where a machine loses its power.
    """

    def __init__(
        self,
        name: str,
        keeper: Keeper,
        *,
        command: Callable[[], Sequence[str]],
        environment: Mapping[str, str],
        folder: Path,
    ) -> None:
        """Nothing is started yet.

        Args:
            name: How people call it.
            keeper: Who starts it.
            command: The whole command line, asked for at each start.
            environment: All of its environment.
            folder: Its working directory; made if missing. The log is beside it.
        """
        self.name = name
        self.pid = 0
        """Of the service itself; the last one it had where it is not running, 0 before."""
        self.exit_code: int | None = None
        """How it ended: its exit code, or the negated number of a signal; None while it runs."""
        self.log = folder.with_name(folder.name + ".log")
        """What it writes on stderr."""
        self.ready_line = ""
        """What it said when it was ready: `ready …`; empty before."""
        self._keeper = keeper
        self._command = command
        self._environment = dict(environment)
        self._folder = folder
        self._is_started = False
        self._is_frozen = False
        self._is_gone = True
        keeper.add(self)

    # -- what users do with it ------------------------------------------------------------------

    @property
    def is_running(self) -> bool:
        """Whether the service itself is alive, frozen or not."""
        return self._is_started and self.exit_code is None

    def kill(self) -> None:
        """SIGKILL to it and all it has started; returns when none of that is left."""
        self._signal(signal.SIGKILL)
        self._wait_until_gone()

    def freeze(self) -> None:
        """SIGSTOP to it and all it has started: nothing of it runs, no connection closes."""
        self._is_frozen = True
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT to it and all it has started: it goes on where it was frozen."""
        self._is_frozen = False
        self._signal(signal.SIGCONT)

    def start(self) -> None:
        """Start it again, with the same name, state and port; returns when it is ready.

        Raises:
            ForageError: It is running; or it ended or was not ready within 30 s, with the end of
                its log.
        """
        deadline_s = time.monotonic() + START_LIMIT_S
        self.begin()
        self.wait_until_ready(deadline_s)

    def stop(self) -> None:
        """SIGTERM to it, and SIGKILL to what is left of it when it has ended, or after 5 s."""
        self.begin_stop()
        self.finish_stop(time.monotonic() + STOP_LIMIT_S)

    def log_tail(self) -> str:
        """The end of what it wrote on stderr."""
        try:
            with self.log.open("rb") as stream:
                size = stream.seek(0, os.SEEK_END)
                stream.seek(max(0, size - _TAIL_BYTES))
                return stream.read().decode("utf-8", "replace").rstrip()
        except OSError:
            return ""

    def __repr__(self) -> str:
        state = "not started"
        if self._is_started:
            state = f"exit code {self.exit_code}"
        if self.is_running:
            state = f"pid {self.pid}" + (", frozen" if self._is_frozen else "")
        return f"<{type(self).__name__} {self.name}: {state}>"

    # -- in parts, for whoever starts or stops several at a time --------------------------------

    def begin(self) -> None:
        """Start it; returns at once."""
        if self.is_running:
            raise ForageError(
                f"{self.name} is running as process {self.pid}; kill() or stop() it before start()."
            )
        # What its last run left behind would answer in its name.
        self._signal(signal.SIGKILL)
        self._wait_until_gone()
        self._folder.mkdir(parents=True, exist_ok=True)
        self.exit_code = None
        self.ready_line = ""
        self._is_started = True
        self._is_frozen = self._is_gone = False
        try:
            self._keeper.order(
                do="start",
                name=self.name,
                argv=list(self._command()),
                environment=self._environment,
                directory=str(self._folder),
                log=str(self.log),
            )
        except BaseException:
            self.note_end()
            raise

    def wait_until_ready(self, deadline_s: float) -> None:
        """Wait for its ready line; the errors of `start`."""
        self._keeper.wait_for(
            lambda: bool(self.ready_line) or self.exit_code is not None, deadline_s
        )
        self.check()
        if not self.ready_line:
            raise ForageError(self.complaint("was not ready in time"))

    def begin_stop(self) -> None:
        """Ask it to end; what is frozen cannot be asked and is killed."""
        if self._is_frozen:
            self._signal(signal.SIGKILL)
        else:
            self._signal(signal.SIGTERM, to_all=False)

    def finish_stop(self, deadline_s: float) -> None:
        """Wait until it has ended; then kill what is left of it."""
        self._keeper.wait_for(lambda: not self.is_running, deadline_s)
        self.kill()

    def check(self) -> None:
        """ForageError where it has ended, which nobody asked for."""
        if self._is_started and self.exit_code is not None:
            raise ForageError(self.complaint(f"ended with {_words(self.exit_code)}"))

    def complaint(self, what: str) -> str:
        """A sentence, and the end of the log."""
        return f"{self.name} {what}. The end of its log ({self.log}):\n{self.log_tail()}"

    def _signal(self, number: int, *, to_all: bool = True) -> None:
        if not self._is_gone:
            self._keeper.order(do="signal", name=self.name, signal=int(number), to_all=to_all)

    def _wait_until_gone(self) -> None:
        deadline_s = time.monotonic() + KILL_LIMIT_S
        if not self._keeper.wait_for(lambda: self._is_gone, deadline_s):
            raise ForageError(
                f"{self.name} (process {self.pid}) is still there {KILL_LIMIT_S:g} s after SIGKILL; "
                "the kernel cannot end it, perhaps because of a dead disk or mount."
            )

    # -- what the keeper reports ------------------------------------------------------------------

    def take_report(self, report: Mapping[str, Any]) -> None:
        """Under the keeper's lock."""
        match report["report"]:
            case "started":
                self.pid = report["pid"]
            case "line" if report["text"].startswith("ready ") and not self.ready_line:
                self.ready_line = report["text"]
            case "exited":
                self.exit_code = report["code"]
            case "gone":
                self._is_gone = True

    def note_end(self) -> None:
        """The keeper has ended, and everything with it; under its lock."""
        if self.is_running:
            self.exit_code = -signal.SIGKILL
        self._is_gone = True


def _words(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
