"""The socket as the MQTT library sees it: everything it reads and writes stays in our buffers.

One receive serves many packets, one send carries many, and what the kernel does not take is kept
without copying it again. The library reads only the packets that it is handed. The system calls
happen only in `receive`, `flush` and `finish`, when the owner says so.
"""

from __future__ import annotations

import socket
import time

__all__ = ["BufferedSocket", "EndOfStreamError", "buffered"]

RECEIVE_BYTES = 128 * 1024
# A TLS record; with this much room a receive never leaves decrypted bytes behind, where no
# selector would see them.
TLS_RECORD_BYTES = 16 * 1024


class EndOfStreamError(Exception):
    """The peer closed its end, and everything before that was read."""


class BufferedSocket:
    """A connected, non-blocking socket behind two buffers. Owns it. (`tls` has the other kind.)"""

    is_tls = False
    nothing_came: tuple[type[OSError], ...] = (BlockingIOError, InterruptedError)
    """A receive found nothing."""
    no_room: tuple[type[OSError], ...] = (BlockingIOError, InterruptedError)
    """A send found no room."""
    reads_first: tuple[type[OSError], ...] = ()
    """A send goes on after the next receive; waiting for room would only spin."""

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        self._socket = connected
        self._space = memoryview(bytearray(RECEIVE_BYTES))
        self._input = b""
        self._position = 0
        self._corked: list[bytes | bytearray] = []
        self._corked_bytes = 0
        self._sending = memoryview(b"")
        # The library let go of the connection: it met something that is not MQTT.
        self.given_up = False
        # The kernel (or TLS) wants us to wait for room before it goes on.
        self.wants_write = False
        self.sent_bytes = 0

    # What the MQTT library calls.

    def recv(self, size: int) -> bytes:
        """The next at most `size` bytes of what it was handed."""
        position = self._position
        data = self._input[position : position + size]
        if not data:
            raise BlockingIOError
        self._position = position + len(data)
        return data

    def send(self, data: bytes | bytearray) -> int:
        """Cork `data`, all of it, until `flush`."""
        self._corked.append(data)
        self._corked_bytes += len(data)
        return len(data)

    def close(self) -> None:
        """The library has finished with it; the socket itself is closed by `shut`."""
        self.given_up = True

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def own_address(self) -> str:
        """The address of this end; empty where there is none (any more)."""
        try:
            return str(self._socket.getsockname()[0])
        except OSError:
            return ""

    def setblocking(self, flag: bool) -> None:
        """It never blocks, whatever the library asks for."""

    # What the connection calls.

    def hand(self, packet: bytes) -> None:
        """Let the library read this next."""
        self._input = self._input[self._position :] + packet
        self._position = 0

    @property
    def unsent_bytes(self) -> int:
        return self._corked_bytes + len(self._sending)

    @property
    def is_cut_short(self) -> bool:
        """A send was begun and not finished: it goes on with `flush`."""
        return bool(self._sending)

    def receive(self) -> bytes:
        """One large receive; empty where there was nothing.

        Raises:
            EndOfStreamError: The peer has closed its end.
            OSError: The connection is broken.
        """
        count = self._receive_into(self._space)
        if count and self.is_tls:
            # TLS hands out one record a call.
            while len(self._space) - count >= TLS_RECORD_BYTES:
                try:
                    more = self._receive_into(self._space[count:])
                except (EndOfStreamError, OSError):
                    break  # It shows again at the next receive, after these bytes.
                if more == 0:
                    break
                count += more
        return bytes(self._space[:count])

    def _receive_into(self, space: memoryview) -> int:
        try:
            count = self._socket.recv_into(space)
        except self.nothing_came:
            return 0
        if count == 0:
            raise EndOfStreamError
        return count

    def flush(self) -> None:
        """One send of all that is corked; after a cut-short one, of what was left first.

        A broken connection is not reported here: the next `receive` reports it.
        """
        while True:
            if not self._sending:
                if not self._corked:
                    self.wants_write = False
                    return
                parts = self._corked
                whole = parts[0] if len(parts) == 1 else b"".join(parts)
                self._sending = memoryview(whole)
                self._corked = []
                self._corked_bytes = 0
            if not self._send_some():
                return

    def _send_some(self) -> bool:
        """One send; False where there is no point in another one now."""
        try:
            count = self._socket.send(self._sending)
        except self.no_room:
            self.wants_write = True
            return False
        except self.reads_first:
            self.wants_write = False
            return False
        except OSError:
            self._sending = memoryview(b"")
            self._corked.clear()
            self._corked_bytes = 0
            self.wants_write = False
            return False
        self.sent_bytes += count
        self._sending = self._sending[count:]
        if self._sending and not self.is_tls:
            self.wants_write = True
            return False
        return True

    def finish(self, timeout_s: float) -> None:
        """Send what is left, close our end, and wait until the peer has closed its own.

        Closing with unread input would reset the connection, and the peer might never see the
        end of what we sent. Blocks for at most `timeout_s`; does not fail.
        """
        deadline = time.monotonic() + timeout_s
        try:
            self._socket.settimeout(max(0.001, timeout_s))
            self._socket.sendall(b"".join([self._sending, *self._corked]))
            self._socket.shutdown(socket.SHUT_WR)
            while (left_s := deadline - time.monotonic()) > 0:
                self._socket.settimeout(left_s)
                if not self._socket.recv(RECEIVE_BYTES):
                    return
        except OSError:
            return

    def shut(self) -> None:
        """Close the socket."""
        self._socket.close()


def buffered(connected: socket.socket, *, tls: bool) -> BufferedSocket:
    """A connection behind buffers."""
    if not tls:
        return BufferedSocket(connected)
    from forage_wire.shell.tls import TlsSocket

    return TlsSocket(connected)
