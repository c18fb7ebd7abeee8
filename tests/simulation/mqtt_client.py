"""A client of MQTT 3.1.1 in plain sight: blocking, one packet after the other, for comparisons."""

import socket
from collections.abc import Sequence

from forage_wire.io import Publish

__all__ = ["PlainClient"]

TIMEOUT_S = 10.0
CONNECT, PUBLISH, PUBACK, SUBSCRIBE, DISCONNECT = 0x10, 0x30, 0x40, 0x82, 0xE0


class PlainClient:
    """One connection; `received` holds (topic, payload, retain) in the order in which they came."""

    def __init__(
        self,
        port: int,
        client_id: str,
        subscriptions: Sequence[tuple[str, int]],
        will: Publish | None = None,
    ) -> None:
        self.received: list[tuple[str, bytes, bool]] = []
        self.client_id = client_id
        self._fence = f"fence/{client_id}"
        self._fences = 0
        self._packet_id = 0
        self._socket = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        flags, payload = 0x02, _text(client_id.encode())
        if will is not None:
            flags |= 0x04 | (will.qos << 3) | (0x20 if will.retain else 0)
            payload += _text(will.topic.encode()) + _text(will.payload)
        self._send(CONNECT, _text(b"MQTT") + bytes((4, flags, 0, 0)) + payload)
        self._wait_for(0x20)
        for topic_filter, qos in (*subscriptions, (self._fence, 0)):
            body = self._next_id() + _text(topic_filter.encode()) + bytes((qos,))
            self._send(SUBSCRIBE, body)
            self._wait_for(0x90)

    def publish(self, message: Publish) -> None:
        """Send it, and wait for the PUBACK where there is one."""
        head = PUBLISH | (message.qos << 1) | message.retain
        packet_id = self._next_id() if message.qos else b""
        self._send(head, _text(message.topic.encode()) + packet_id + message.payload)
        if message.qos:
            self._wait_for(PUBACK)

    def settle(self) -> None:
        """Read everything that the broker has sent: until a message to ourselves is back."""
        self._fences += 1
        mark = str(self._fences).encode()
        self._send(PUBLISH, _text(self._fence.encode()) + mark)
        while True:
            kind, body = self._read()
            message = self._note(kind, body)
            if message is not None and message[:2] == (self._fence, mark):
                return

    def wait_until(self, topic: str, payload: bytes) -> None:
        """Read until this message is here."""
        while not any(each[:2] == (topic, payload) for each in self.received):
            self._note(*self._read())

    def disconnect(self) -> None:
        """Say goodbye, and wait until the broker has closed the connection."""
        self._send(DISCONNECT, b"")
        self._drain()

    def kill(self) -> None:
        """End without a goodbye."""
        self._socket.close()

    def taken_over(self) -> None:
        """Wait until the broker has closed the connection."""
        self._drain()

    def _drain(self) -> None:
        try:
            while True:
                self._note(*self._read())
        except (EOFError, ConnectionError):
            self._socket.close()

    # -- packets ------------------------------------------------------------------------------

    def _note(self, kind: int, body: bytes) -> tuple[str, bytes, bool] | None:
        if kind & 0xF0 != PUBLISH:
            return None
        end = 2 + int.from_bytes(body[:2])
        topic = body[2:end].decode()
        if kind & 0x06:
            self._send(PUBACK, body[end : end + 2])
            end += 2
        message = (topic, body[end:], bool(kind & 0x01))
        if topic != self._fence:
            self.received.append(message)
        return message

    def _wait_for(self, wanted: int) -> None:
        while True:
            kind, body = self._read()
            if kind & 0xF0 == wanted:
                return
            self._note(kind, body)

    def _next_id(self) -> bytes:
        self._packet_id += 1
        return self._packet_id.to_bytes(2)

    def _send(self, head: int, body: bytes) -> None:
        length, size = bytearray(), len(body)
        while True:
            size, digit = divmod(size, 128)
            length.append(digit | (0x80 if size else 0))
            if not size:
                break
        self._socket.sendall(bytes((head,)) + bytes(length) + body)

    def _read(self) -> tuple[int, bytes]:
        kind = self._exactly(1)[0]
        size = shift = 0
        while True:
            digit = self._exactly(1)[0]
            size |= (digit & 0x7F) << shift
            shift += 7
            if not digit & 0x80:
                return kind, self._exactly(size)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self._socket.recv(size - len(data))
            if not piece:
                raise EOFError(f"{self.client_id}: the broker closed the connection")
            data += piece
        return data


def _text(data: bytes) -> bytes:
    return len(data).to_bytes(2) + data
