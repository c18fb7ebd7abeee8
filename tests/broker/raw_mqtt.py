"""A bare MQTT 3.1.1 client over a blocking socket, for tests of brokers.

It does only what it is told: no pings, no reconnects, no acknowledgements of its own. So a test can
be silent, vanish, take over a client id or break the protocol, which a client library prevents.
"""

import socket
import struct
from dataclasses import dataclass
from typing import Self

import psutil

__all__ = ["Closed", "Message", "RawMqtt", "listening_pids", "utf8"]

LIMIT_S = 10.0
"""Every wait of a test ends after this."""


class Closed(Exception):
    """The broker closed the connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    topic: str
    payload: bytes
    qos: int
    retain: bool
    packet_id: int | None


def utf8(text: str) -> bytes:
    data = text.encode()
    return struct.pack("!H", len(data)) + data


def packet(first: int, body: bytes) -> bytes:
    length, digits = len(body), bytearray()
    while True:
        length, digit = divmod(length, 128)
        digits.append(digit | (0x80 if length else 0))
        if not length:
            return bytes([first]) + bytes(digits) + body


class RawMqtt:
    """One connection. Use it as a context manager; leaving it closes the socket, no goodbye."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.socket = socket.create_connection((host, port), timeout=LIMIT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.session_present = False
        self._buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @classmethod
    def connected(cls, port: int, client_id: str, **options: object) -> Self:
        client = cls(port)
        code = client.connect(client_id, **options)
        assert code == 0, f"CONNACK {code}"
        return client

    def connect(self, client_id: str, **options: object) -> int:
        """Send CONNECT (`send_connect` has the options); the return code of the CONNACK."""
        self.send_connect(client_id, **options)  # type: ignore[arg-type]
        body = self.expect(0x20)
        self.session_present = bool(body[0] & 1)
        return body[1]

    def send_connect(
        self,
        client_id: str,
        *,
        clean: bool = True,
        keepalive_s: int = 0,
        will: tuple[str, bytes] | None = None,
        will_qos: int = 1,
        will_retain: bool = True,
        level: int = 4,
    ) -> None:
        flags = 0x02 if clean else 0
        payload = utf8(client_id)
        if will is not None:
            flags |= 0x04 | will_qos << 3 | (0x20 if will_retain else 0)
            payload += utf8(will[0]) + struct.pack("!H", len(will[1])) + will[1]
        self.send(0x10, utf8("MQTT") + struct.pack("!BBH", level, flags, keepalive_s) + payload)

    def send(self, first: int, body: bytes = b"") -> None:
        self.socket.sendall(packet(first, body))

    def receive(self) -> tuple[int, bytes]:
        """The next packet: first byte and body.

        Raises:
            Closed: The broker closed the connection first.
            TimeoutError: Nothing came.
        """
        first, length, shift = self._take(1)[0], 0, 0
        while True:
            (digit,) = self._take(1)
            length |= (digit & 0x7F) << shift
            shift += 7
            if not digit & 0x80:
                return first, self._take(length)

    def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            try:
                data = self.socket.recv(1 << 16)
            except ConnectionResetError:
                data = b""
            if not data:
                raise Closed
            self._buffer += data
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    def expect(self, first: int) -> bytes:
        """The body of the next packet, which must begin with this byte."""
        got, body = self.receive()
        assert got == first, f"packet {got:#x} with {body!r} in place of {first:#x}"
        return body

    def expect_end(self) -> None:
        """Read until the broker closes the connection."""
        try:
            while True:
                self.receive()
        except Closed:
            return

    def subscribe(self, topic_filter: str, qos: int = 1, packet_id: int = 1) -> int:
        """The granted QoS, or 0x80."""
        self.send(0x82, struct.pack("!H", packet_id) + utf8(topic_filter) + bytes([qos]))
        body = self.expect(0x90)
        assert body[:2] == struct.pack("!H", packet_id)
        return body[2]

    def unsubscribe(self, topic_filter: str, packet_id: int = 2) -> None:
        self.send(0xA2, struct.pack("!H", packet_id) + utf8(topic_filter))
        assert self.expect(0xB0) == struct.pack("!H", packet_id)

    def publish(
        self, topic: str, payload: bytes, qos: int = 1, *, retain: bool = False, packet_id: int = 3
    ) -> None:
        """Publish, and wait for the acknowledgement of QoS 1."""
        identity = struct.pack("!H", packet_id) if qos else b""
        self.send(0x30 | qos << 1 | retain, utf8(topic) + identity + payload)
        if qos == 1:
            assert self.expect(0x40) == identity

    def message(self) -> Message:
        """The next packet, which must be a PUBLISH. It is not acknowledged."""
        first, body = self.receive()
        assert first >> 4 == 3, f"packet {first:#x} with {body!r}"
        qos, length = first >> 1 & 3, struct.unpack("!H", body[:2])[0]
        start = 2 + length + (2 if qos else 0)
        return Message(
            topic=body[2 : 2 + length].decode(),
            payload=body[start:],
            qos=qos,
            retain=bool(first & 1),
            packet_id=struct.unpack("!H", body[start - 2 : start])[0] if qos else None,
        )

    def acknowledge(self, message: Message) -> None:
        assert message.packet_id is not None
        self.send(0x40, struct.pack("!H", message.packet_id))

    def ping(self) -> None:
        """A round trip: all that the broker had for us before it has arrived."""
        self.send(0xC0)
        self.expect(0xD0)

    def goodbye(self) -> None:
        self.send(0xE0)

    def close(self) -> None:
        self.socket.close()


def listening_pids(port: int) -> set[int | None]:
    """Who listens on a TCP port of this machine: proof that a test talks to its own broker."""
    return {
        entry.pid
        for entry in psutil.net_connections(kind="tcp")
        if entry.status == psutil.CONN_LISTEN and entry.laddr.port == port
    }
