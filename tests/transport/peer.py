"""A scripted TCP peer for what no real broker does on demand: odd answers, silence, slow reading.

It parses just enough of MQTT to see whole packets.
"""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable

from forage_wire.address import BrokerAddress

__all__ = ["CONNACK", "PINGRESP", "Peer", "Session", "publish_packet", "suback"]

CONNACK = b"\x20\x02\x00\x00"
PINGRESP = b"\xd0\x00"
TIMEOUT_S = 30.0


def with_length(first_byte: int, body: bytes) -> bytes:
    length, encoded = len(body), bytearray()
    while True:
        length, low = divmod(length, 128)
        encoded.append(low | (0x80 if length else 0))
        if not length:
            return bytes([first_byte]) + bytes(encoded) + body


def publish_packet(
    topic: str, payload: bytes, *, qos: int = 0, message_id: int = 0, retain: bool = False
) -> bytes:
    name = topic.encode()
    body = len(name).to_bytes(2, "big") + name
    if qos:
        body += message_id.to_bytes(2, "big")
    return with_length(0x30 | qos << 1 | retain, body + payload)


def suback(subscribe: bytes, codes: list[int]) -> bytes:
    """The answer to a SUBSCRIBE packet (shorter than 128 bytes)."""
    return with_length(0x90, subscribe[2:4] + bytes(codes))


class Session:
    """One accepted connection, seen from the peer."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        connected.settimeout(TIMEOUT_S)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def receive(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            if not more:
                raise EOFError
            data += more
        return bytes(data)

    def packet(self) -> bytes:
        """The next whole packet."""
        head = self.receive(2)
        length, shift = head[-1] & 0x7F, 7
        while head[-1] & 0x80:
            head += self.receive(1)
            length |= (head[-1] & 0x7F) << shift
            shift += 7
        return head + self.receive(length)

    def accept(self) -> bytes:
        """Take the CONNECT and say yes; returns the CONNECT."""
        connect = self.packet()
        assert connect[0] == 0x10
        self.send(CONNACK)
        return connect


class Peer:
    """Listens, and runs `script` with each connection in a thread; re-raises what it raised."""

    def __init__(self, script: Callable[[Session], None]) -> None:
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = BrokerAddress(host="127.0.0.1", port=self._listener.getsockname()[1])
        self._failures: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
        self._sessions: list[Session] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                connected, _ = self._listener.accept()
            except OSError:
                return  # Closed.
            session = Session(connected)
            self._sessions.append(session)
            try:
                self._script(session)
            except (EOFError, ConnectionError):
                pass  # The other side left: what it should have seen is the test's to judge.
            except BaseException as error:
                self._failures.put(error)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for session in self._sessions:
            try:
                session.socket.shutdown(socket.SHUT_RDWR)  # Wakes a script that waits for bytes.
            except OSError:
                pass  # The other side was first.
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive()
        for session in self._sessions:
            session.socket.close()
        if not self._failures.empty():
            raise self._failures.get()
