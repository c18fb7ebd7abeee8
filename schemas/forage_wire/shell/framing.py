"""Takes an inbound MQTT stream apart, and puts together what is sent most.

What a connection carries all day is PUBLISH and PUBACK; they are read and written here, in one
pass over each received chunk. The library asks for one byte at a time and keeps a dozen objects a
packet; its way costs more than all that is done with the message. Everything else (CONNACK, SUBACK,
PINGRESP) goes to the library as it came.

A packet of any announced size (256 MiB at most) could fill our memory: a PUBLISH above a limit is
skipped as it arrives and never collected, so that neither a broker nor anybody who may publish can
end our connection, nor a retained message of absurd size every connection to come.

No sockets, no clock: bytes in, packets out.
"""

from __future__ import annotations

from forage_wire.records import dataclass

__all__ = [
    "MalformedError",
    "Packet",
    "PacketReader",
    "Skipped",
    "length_bytes",
    "parse_publish",
    "publish_packet",
]

PUBLISH = 3
QOS_MASK = 0b0110
LENGTH_BYTES_MAX = 4
# Topic length, the longest topic, message id: what is kept of a skipped packet to answer for it.
LEAD_BYTES_MAX = 2 + 65_535 + 2


class MalformedError(Exception):
    """What came is not MQTT; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A PUBLISH packet that was taken out; `message_id` is what to acknowledge (None: QoS 0)."""

    topic: str
    packet_bytes: int
    message_id: int | None


Packet = tuple[int, bytes]
"""First byte (type and flags), and all that follows the packet's length."""


def publish_packet(
    topic: bytes, payload: bytes, *, qos: int, retain: bool, message_id: int
) -> bytes:
    """A whole PUBLISH packet; `message_id` counts for QoS 1 only.

    Raises:
        ValueError: MQTT can carry no such topic or size.
    """
    if len(topic) > 0xFFFF:
        raise ValueError(f"a topic of {len(topic)} bytes; MQTT's are at most 65,535")
    length = 2 + len(topic) + 2 * qos + len(payload)
    if length < 0x80:
        head = bytes((0x30 | qos << 1 | retain, length))
    else:
        head = bytes((0x30 | qos << 1 | retain, *length_bytes(length)))
    if qos:
        lead = (head, len(topic).to_bytes(2, "big"), topic, message_id.to_bytes(2, "big"), payload)
        return b"".join(lead)
    return b"".join((head, len(topic).to_bytes(2, "big"), topic, payload))


def length_bytes(length: int) -> list[int]:
    """A packet's length as MQTT writes it: 7 bits a byte, the lowest first."""
    digits = []
    rest = length
    while rest >= 0x80:
        digits.append(rest & 0x7F | 0x80)
        rest >>= 7
    digits.append(rest)
    if len(digits) > LENGTH_BYTES_MAX:
        raise ValueError(f"a packet of {length} bytes; MQTT's are below 256 MiB")
    return digits


def parse_publish(first: int, body: bytes) -> tuple[str, bytes, int | None]:
    """Topic, payload and message id (None: QoS 0) of a PUBLISH packet.

    A topic that is no UTF-8 becomes U+FFFD: nobody's, so that its receiver counts and drops it.

    Raises MalformedError.
    """
    topic_end = 2 + int.from_bytes(body[:2], "big")
    qos = first & QOS_MASK
    start = topic_end + 2 if qos else topic_end
    if len(body) < start:
        raise MalformedError("a message shorter than its topic")
    try:
        topic = body[2:topic_end].decode()
    except UnicodeDecodeError:
        topic = "\ufffd"
    if not qos:
        return topic, body[start:], None
    if qos != 2:
        # Nothing is subscribed to with more.
        raise MalformedError("a message with more than QoS 1")
    return topic, body[start:], int.from_bytes(body[topic_end:start], "big")


class PacketReader:
    """Feed it every received chunk, in order, for one connection."""

    def __init__(self, packet_bytes_limit: int) -> None:
        self.malformed: str | None = None
        """Why the stream is not MQTT, once it is known not to be; nothing is read from there on."""
        self._packet_bytes_limit = packet_bytes_limit
        # At most one of these is in use between two chunks: the beginning of a packet (in pieces,
        # for a long one comes in many) and how many bytes it has to have before it is looked at
        # again; or body bytes still to be skipped.
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._needed_bytes = 0
        self._skip_left = 0
        self._skip_flags = 0
        self._skip_bytes = 0
        self._lead = bytearray()

    def feed(self, chunk: bytes) -> list[Packet | Skipped]:
        """The packets that `chunk` completes, in order.

        The stream is `malformed` from a length of more than four bytes on, a packet other than
        PUBLISH above the limit, or a skipped packet shorter than its own topic.
        """
        packets: list[Packet | Skipped] = []
        if self.malformed is not None:
            return packets
        if self._held:
            self._held.append(chunk)
            self._held_bytes += len(chunk)
            if self._held_bytes < self._needed_bytes:
                return packets
            chunk = b"".join(self._held)
            self._held.clear()
        position, end = 0, len(chunk)
        while position < end:
            if self._skip_left:
                position = self._skip(chunk, position, packets)
                if self.malformed is not None:
                    break
                continue
            body = position + 2
            length = chunk[position + 1] if body <= end else -1
            if length & 0x80:
                body, length = self._long_length(chunk, position)
                if self.malformed is not None:
                    break
            body_end = body + length
            if length >= 0 and length > self._packet_bytes_limit:
                first = chunk[position]
                if first >> 4 != PUBLISH:
                    self.malformed = f"a packet of type {first >> 4} with {length} bytes"
                    break
                self._skip_left = self._skip_bytes = length
                self._skip_flags = first & 0x0F
                position = body
            elif length < 0 or body_end > end:
                self._held.append(chunk[position:])
                self._held_bytes = end - position
                # A header that is not whole yet is looked at with each byte.
                self._needed_bytes = self._held_bytes + 1 if length < 0 else body_end - position
                break
            else:
                packets.append((chunk[position], chunk[body:body_end]))
                position = body_end
        return packets

    def _long_length(self, chunk: bytes, position: int) -> tuple[int, int]:
        """Where the body begins and its length; length -1 where that is not here yet."""
        length = 0
        digits = chunk[position + 1 : position + 1 + LENGTH_BYTES_MAX]
        for count, digit in enumerate(digits):
            length |= (digit & 0x7F) << (7 * count)
            if digit < 0x80:
                return position + 2 + count, length
        if len(digits) == LENGTH_BYTES_MAX:
            self.malformed = "a packet length of more than four bytes"
        return position, -1

    def _skip(self, chunk: bytes, position: int, packets: list[Packet | Skipped]) -> int:
        """Drop body bytes from `position` on; returns where the rest begins."""
        end = min(len(chunk), position + self._skip_left)
        if len(self._lead) < LEAD_BYTES_MAX:
            self._lead += chunk[position : min(end, position + LEAD_BYTES_MAX - len(self._lead))]
        self._skip_left -= end - position
        if self._skip_left == 0:
            self._finish_skip(packets)
        return end

    def _finish_skip(self, packets: list[Packet | Skipped]) -> None:
        try:
            # The lead holds all that comes before the payload.
            topic, _payload, message_id = parse_publish(self._skip_flags, bytes(self._lead))
        except MalformedError as error:
            self.malformed = str(error)
            return
        packets.append(Skipped(topic=topic, packet_bytes=self._skip_bytes, message_id=message_id))
        self._lead = bytearray()
