"""Opens the TCP or TLS connection to a broker without ever blocking the owner's loop.

Name resolution cannot be made non-blocking or be cancelled, so one short-lived thread does it, the
TCP connect and the TLS handshake, and hands the socket back through a descriptor that the owner
waits for. An owner that gives up first abandons the attempt; the thread then closes what it got.
"""

from __future__ import annotations

import errno
import socket
import threading
import time
from typing import Literal

from forage_wire.records import dataclass

__all__ = ["Dial", "DialFailure", "words_for"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DialFailure:
    """Why there is no connection, as one phrase."""

    reason: str
    kind: Literal["unreachable", "refused"]


class Dial:
    """One attempt. `fileno` becomes readable when `result` is there."""

    def __init__(
        self, host: str, port: int, *, tls: bool, tls_ca_file: str | None, timeout_s: float
    ) -> None:
        self._host = host
        self._port = port
        self._tls = tls
        self._tls_ca_file = tls_ca_file
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._outcome: socket.socket | DialFailure | None = None
        self._is_abandoned = False
        # Not a pipe: on Windows only sockets can be waited for.
        self._done_read, done_write = socket.socketpair()
        try:
            threading.Thread(
                target=self._run, args=(done_write,), name="forage-dial", daemon=True
            ).start()
        except RuntimeError as error:
            self._outcome = DialFailure(reason=str(error), kind="unreachable")
            done_write.send(b"\0")
            done_write.close()

    def fileno(self) -> int:
        return self._done_read.fileno()

    def take(self) -> socket.socket | DialFailure | None:
        """The outcome, once; None while the attempt goes on. A socket is the caller's to close."""
        with self._lock:
            outcome, self._outcome = self._outcome, None
            return outcome

    def close(self) -> None:
        """Abandon what is not taken, and give the descriptor back."""
        with self._lock:
            self._is_abandoned = True
            outcome, self._outcome = self._outcome, None
        if isinstance(outcome, socket.socket):
            outcome.close()
        self._done_read.close()

    def _run(self, done_write: socket.socket) -> None:
        outcome: socket.socket | DialFailure | None = self._attempt()
        with self._lock:
            if not self._is_abandoned:
                self._outcome = outcome
                outcome = None
        if isinstance(outcome, socket.socket):
            outcome.close()
        try:
            done_write.send(b"\0")
        except OSError:
            pass  # Abandoned: the read end is gone.
        done_write.close()

    def _attempt(self) -> socket.socket | DialFailure:
        deadline = time.monotonic() + self._timeout_s
        try:
            connected = self._connect(deadline)
        except socket.gaierror as error:
            is_unknown = error.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", None))
            reason = (
                f"the name {self._host} is not known"
                if is_unknown
                else f"the name {self._host} cannot be looked up now ({error.strerror})"
            )
            return DialFailure(reason=reason, kind="unreachable")
        except UnicodeError:
            return DialFailure(reason=f"{self._host!r} is not a host name", kind="refused")
        except OSError as error:
            return DialFailure(reason=words_for(error), kind="unreachable")
        if not self._tls:
            return connected
        from forage_wire.shell import tls

        try:
            connected.settimeout(max(0.001, deadline - time.monotonic()))
            return tls.begin(connected, self._host, self._tls_ca_file)
        except OSError as error:
            connected.close()
            reason, is_final = tls.failure_of(error) or (f"no TLS: {words_for(error)}", False)
            return DialFailure(reason=reason, kind="refused" if is_final else "unreachable")

    def _connect(self, deadline: float) -> socket.socket:
        """TCP to the first of the name's addresses that answers; each gets its share of the time."""
        # Bytes are taken as they are; a text loads a codec for names of other alphabets.
        host = self._host.encode() if self._host.isascii() else self._host
        candidates = socket.getaddrinfo(host, self._port, type=socket.SOCK_STREAM)
        failure = OSError(errno.EADDRNOTAVAIL, "the name has no address")
        for index, (family, kind, protocol, _, address) in enumerate(candidates):
            share_s = (deadline - time.monotonic()) / (len(candidates) - index)
            if share_s <= 0:
                raise TimeoutError
            candidate = socket.socket(family, kind, protocol)
            try:
                candidate.settimeout(share_s)
                candidate.connect(address)
                candidate.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:
                candidate.close()
                failure = error
                continue
            return candidate
        raise failure


_WORDS = {
    errno.ECONNREFUSED: "connection refused: nothing listens there",
    errno.ECONNRESET: "the broker reset the connection",
    errno.EPIPE: "the broker closed the connection",
    errno.ETIMEDOUT: "timed out: no answer from there",
    errno.EHOSTUNREACH: "no route to the host",
    errno.ENETUNREACH: "no network leads there",
}


def words_for(error: OSError) -> str:
    """One phrase for a failed connect or a broken connection."""
    if isinstance(error, TimeoutError):
        return _WORDS[errno.ETIMEDOUT]
    if error.errno in _WORDS:
        return _WORDS[error.errno]
    return (error.strerror or str(error) or type(error).__name__).lower()
