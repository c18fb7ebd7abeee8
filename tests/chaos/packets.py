"""MQTT 3.1.1 packets as a proxy sees them: cut out of a stream, with their bytes as they came."""

from collections.abc import Iterator
from dataclasses import dataclass

from broker.raw_mqtt import packet as encode_packet

__all__ = ["CONNACK", "CONNECT", "PUBACK", "PUBLISH", "SUBACK", "SUBSCRIBE", "Cutter", "Packet"]

CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK = 1, 2, 3, 4, 8, 9
LENGTH_BYTES_MAX = 4


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet; topic, payload and message id are those of a PUBLISH, else empty and 0."""

    raw: bytes
    kind: int
    """MQTT's packet type; 0 for bytes that are no packet, which a proxy passes on."""
    topic: str = ""
    qos: int = 0
    message_id: int = 0
    lead: bytes = b""
    """A PUBLISH's body up to the message id: topic with its length."""
    payload: bytes = b""

    def with_payload(self, payload: bytes) -> bytes:
        """This PUBLISH, with something else to say."""
        identity = self.message_id.to_bytes(2, "big") if self.qos else b""
        return encode_packet(self.raw[0], self.lead + identity + payload)

    def copy_without_id(self) -> bytes:
        """This PUBLISH as QoS 0: a copy that needs no acknowledgement of its own."""
        return encode_packet(self.raw[0] & 0xF1, self.lead + self.payload)

    def acknowledgement(self) -> bytes:
        """The PUBACK for it; empty where none is due."""
        return b"\x40\x02" + self.message_id.to_bytes(2, "big") if self.qos else b""


class Cutter:
    """Cuts one direction of a connection into packets; feed it every chunk in order."""

    def __init__(self) -> None:
        self._held = b""
        self._is_lost = False

    def feed(self, chunk: bytes) -> Iterator[Packet]:
        """The packets that are complete. Where the stream is not MQTT, it comes as it is."""
        data = self._held + chunk
        self._held = b""
        position = 0
        while position < len(data):
            end = -1 if self._is_lost else _end_of(data, position)
            if end < 0:
                self._is_lost = True
                yield Packet(data[position:], 0)
                return
            if end == 0 or end > len(data):
                self._held = data[position:]
                return
            yield _parsed(data[position:end])
            position = end

    def rest(self) -> bytes:
        """What has come of a packet that is not complete."""
        return self._held


def _body_start(raw: bytes) -> int:
    start = 2
    while raw[start - 1] & 0x80:
        start += 1
    return start


def _end_of(data: bytes, position: int) -> int:
    """Where the packet at `position` ends; 0 where its length is not there yet, -1 if malformed."""
    length = 0
    for count in range(LENGTH_BYTES_MAX):
        at = position + 1 + count
        if at >= len(data):
            return 0
        length |= (data[at] & 0x7F) << (7 * count)
        if data[at] < 0x80:
            return at + 1 + length
    return -1


def _parsed(raw: bytes) -> Packet:
    kind = raw[0] >> 4
    if kind != PUBLISH:
        return Packet(raw, kind)
    start = _body_start(raw)
    topic_end = start + 2 + int.from_bytes(raw[start : start + 2], "big")
    qos = raw[0] >> 1 & 3
    payload_start = topic_end + (2 if qos else 0)
    return Packet(
        raw,
        kind,
        topic=raw[start + 2 : topic_end].decode("utf-8", "replace"),
        qos=qos,
        message_id=int.from_bytes(raw[topic_end:payload_start], "big"),
        lead=raw[start:topic_end],
        payload=raw[payload_start:],
    )
