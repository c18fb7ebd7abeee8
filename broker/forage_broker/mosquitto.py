"""The system's mosquitto as a child process, configured as forage needs it.

Owns finding it, its configuration, its process and its log. The child dies with the thread that
started it: the kernel ends it (PDEATHSIG) even where we are killed, and `stop` ends it before.
"""

import collections
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import psutil

from forage_broker.limits import (
    PACKET_BYTES_MAX,
    QUEUED_MESSAGES_BYTES_MAX,
    QUEUED_MESSAGES_MAX,
    UNACKNOWLEDGED_MOSQUITTO_MAX,
)
from forage_broker.listener import bind_listener

__all__ = ["BrokerFailed", "MosquittoBroker", "find_mosquitto", "render_configuration"]

START_LIMIT_S = 10.0
STOP_LIMIT_S = 5.0

_SYSTEM_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")
_POLL_S = 0.005
_LOG_LINES = 40

# Runs between fork and exec of mosquitto, as a program of its own: what `preexec_fn` would run in
# the forked child can deadlock where this process has other threads.
_LAUNCHER = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):  # Else the parent died before the kernel knew of our wish.
    os.execv(sys.argv[2], sys.argv[2:])
"""

_PROBE = b"\x10\x12\x00\x04MQTT\x04\x02\x00\x0a\x00\x06forage"
_ACCEPTED = b"\x20\x02\x00\x00"
_GOODBYE = b"\xe0\x00"

logger = logging.getLogger(__name__)


class BrokerFailed(RuntimeError):
    """mosquitto did not start; the message says why, with the end of its log."""


def find_mosquitto() -> str | None:
    """The path of the mosquitto broker, or None. Debian keeps it outside of users' PATH."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *_SYSTEM_FOLDERS))
    return shutil.which("mosquitto", path=path)


def render_configuration(*, host: str, port: int, allow_anonymous: bool) -> str:
    """mosquitto's configuration, with the reason for each line.

    Args:
        host: The address to listen on.
        port: The port to listen on.
        allow_anonymous: Whether clients without credentials may come in. An open broker is for
            loopback, so this is True elsewhere only where the user asked for it.
    """
    settings = [
        ("listener", f"{port} {host}", "One listener, on one address."),
        (
            "allow_anonymous",
            "true" if allow_anonymous else "false",
            "An open broker is for loopback; elsewhere it is open only with --insecure.",
        ),
        (
            "user",
            "root",
            "Without effect unless started by root. Then mosquitto would change its user, and with"
            " that the kernel would forget to end it with its parent.",
        ),
        (
            "persistence",
            "false",
            "The ends recover what a broker loses; a file that is written every 30 minutes would"
            " bring back old presence and protect nothing.",
        ),
        (
            "set_tcp_nodelay",
            "true",
            "Without it, small messages wait for the peer's delayed acknowledgement: 44 ms a trip.",
        ),
        (
            "max_queued_messages",
            str(QUEUED_MESSAGES_MAX),
            "What exceeds the queue is dropped in silence, although it was acknowledged.",
        ),
        (
            "max_queued_bytes",
            str(QUEUED_MESSAGES_BYTES_MAX),
            "The same in bytes, so that one stalled client cannot take all memory.",
        ),
        (
            "max_inflight_messages",
            str(UNACKNOWLEDGED_MOSQUITTO_MAX),
            "With the default of 20, a client on a slow link waits for each handful's round trip.",
        ),
        (
            "max_packet_size",
            str(PACKET_BYTES_MAX),
            "The protocol allows 256 MiB, which a few clients could make the broker hold.",
        ),
        ("log_dest", "stderr", "Our parent reads it, and shows its end where something fails."),
        ("log_timestamp", "false", "The parent's log has the time."),
        ("log_type", "error", "What is wrong,"),
        ("log_type", "warning", "what may be,"),
        ("log_type", "notice", "and messages that are dropped for a client."),
        ("connection_messages", "false", "Else two lines for each client that comes and goes."),
    ]
    return "".join(f"# {reason}\n{key} {value}\n" for key, value, reason in settings)


class MosquittoBroker:
    """A mosquitto of our own on one port, as a child process.

    `start` and `stop` are called once each, or by the context manager. **Call `start` in a thread
    that lives as long as the broker shall**: the kernel ends the child with that thread.
    """

    name = "mosquitto"

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        allow_anonymous: bool = True,
        on_death: Callable[[str], None] | None = None,
    ) -> None:
        """Prepare; nothing is started yet.

        Args:
            host: The name or address to listen on. A name is resolved, to IPv4 where it has one.
            port: 0 takes a free one.
            allow_anonymous: Whether clients without credentials may come in.
            on_death: Called once, from another thread, with one sentence, if mosquitto ends
                without `stop`.
        """
        self.host = host
        self.port = port
        self.pid = 0
        """mosquitto's process; 0 before `start`."""
        self._allow_anonymous = allow_anonymous
        self._on_death = on_death
        self._process: subprocess.Popen[str] | None = None
        self._log_tail: collections.deque[str] = collections.deque(maxlen=_LOG_LINES)
        self._is_expected_to_run = False
        self._lock = threading.Lock()

    def start(self) -> int:
        """Run mosquitto, wait until it answers, and return the port.

        Raises:
            BrokerFailed: mosquitto is not installed, or ended or hung at its start.
            PortInUse: Another process listens there.
            OSError: The host is unknown or not this machine's.
        """
        program = find_mosquitto()
        if program is None:
            raise BrokerFailed("mosquitto is not installed (Debian: apt install mosquitto).")
        # The port is held until mosquitto listens, so that a free one stays ours: two sockets with
        # SO_REUSEADDR may be bound to one port while neither of them listens. The configuration is
        # gone as soon as it has been read, so nothing is left behind if we are killed.
        with (
            bind_listener(self.host, self.port) as reservation,
            tempfile.TemporaryDirectory(prefix="forage-mosquitto-") as folder,
        ):
            self.host, self.port = reservation.getsockname()[:2]
            configuration = Path(folder, "mosquitto.conf")
            configuration.write_text(
                render_configuration(
                    host=self.host, port=self.port, allow_anonymous=self._allow_anonymous
                )
            )
            launch = [sys.executable, "-ISc", _LAUNCHER, str(os.getpid())]
            command = [*launch, program, "-c", str(configuration)]
            process = self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
            self.pid = process.pid
            self._reader = threading.Thread(
                target=self._read_log, args=(process,), name="mosquitto-log", daemon=True
            )
            self._reader.start()
            try:
                self._wait_until_ready(process)
            except BaseException:
                self.stop()
                raise
        return self.port

    def stop(self) -> None:
        """End mosquitto; more than once is no error."""
        with self._lock:
            self._is_expected_to_run = False
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._reader.join()

    def __enter__(self) -> "MosquittoBroker":
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def log_tail(self) -> str:
        """The last lines of mosquitto's log."""
        return "\n".join(self._log_tail)

    def _wait_until_ready(self, process: "subprocess.Popen[str]") -> None:
        deadline_s = time.monotonic() + START_LIMIT_S
        while process.poll() is None and time.monotonic() < deadline_s:
            if _answers(self.host, self.port) and _listens(process.pid, self.port):
                break
            time.sleep(_POLL_S)
        else:
            if process.poll() is None:
                raise BrokerFailed(
                    f"mosquitto does not answer on {self.host} port {self.port} after "
                    f"{START_LIMIT_S:g} s. Its log:\n{self.log_tail()}"
                )
        with self._lock:
            # From here on, a death is told to `on_death`, and only there.
            self._is_expected_to_run = process.poll() is None
        if not self._is_expected_to_run:
            self._reader.join()
            raise BrokerFailed(f"mosquitto ended at its start. Its log:\n{self.log_tail()}")

    def _read_log(self, process: "subprocess.Popen[str]") -> None:
        assert process.stderr is not None
        with process.stderr as lines:
            for line in lines:
                self._log_tail.append(line.rstrip())
                logger.log(_level(line), "%s", line.rstrip())
        code = process.wait()
        with self._lock:
            died = self._is_expected_to_run
        if died and self._on_death is not None:
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            self._on_death(f"mosquitto (process {process.pid}) died with {how}.")


def _level(line: str) -> int:
    # Before it has read its configuration, mosquitto puts the time before the word.
    if "Error" in line:
        return logging.ERROR
    if "Warning" in line or "being dropped" in line:
        return logging.WARNING
    return logging.INFO


def _answers(host: str, port: int) -> bool:
    """Whether an MQTT broker accepts an anonymous client here; a refusal is an answer, too."""
    try:
        with socket.create_connection((host, port), timeout=1) as client:
            client.sendall(_PROBE)
            answer = client.recv(4, socket.MSG_WAITALL)
            if answer == _ACCEPTED:
                client.sendall(_GOODBYE)
            return answer[:1] == _ACCEPTED[:1]
    except OSError:
        return False


def _listens(pid: int, port: int) -> bool:
    """Whether it is this process that listens, and not a broker that was there before."""
    return any(
        entry.pid == pid and entry.status == psutil.CONN_LISTEN and entry.laddr[1:2] == (port,)
        for entry in psutil.net_connections(kind="tcp")
    )
