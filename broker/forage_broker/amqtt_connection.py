"""One client's connection to the embedded broker: packets in, obeyed in order; messages out.

Owns the framing, the keepalive, packet ids, and the limits of what one client may cost.
"""

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from amqtt.adapters import BufferReader
from amqtt.errors import MQTTError
from amqtt.mqtt.packet import (
    DISCONNECT,
    PINGREQ,
    PUBACK,
    PUBLISH,
    PUBREL,
    SUBSCRIBE,
    UNSUBSCRIBE,
    MQTTFixedHeader,
)
from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler
from amqtt.mqtt.suback import SubackPacket
from amqtt.mqtt.subscribe import SubscribePacket
from amqtt.mqtt.unsubscribe import UnsubscribePacket
from amqtt.session import Session

from forage_broker.limits import (
    PACKET_BYTES_MAX,
    QUEUED_BYTES_MAX,
    STALL_S,
    UNACKNOWLEDGED_MAX,
)

if TYPE_CHECKING:
    from forage_broker.amqtt_repaired import RepairedBroker

__all__ = [
    "REFUSED",
    "Connection",
    "PacketReader",
    "check_topic",
    "publish_head",
]

REFUSED = 0x80
"""The answer to a subscription that is not granted."""

_KEEPALIVE_GRACE = 1.5  # MQTT 3.1.1, section 3.1.2.10
_READ_BYTES = 64 * 1024
_PACKET_IDS = 65_535

logger = logging.getLogger(__name__)


class PacketReader:
    """Cuts a stream into whole packets, so that a malformed one cannot shift the next."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._clock = asyncio.get_running_loop().time
        self.waiting_since_s: float | None = None
        """Since when the peer has been silent; None while its last packet is being obeyed. Each
        block of a long packet counts: on a slow link it is a sign of life."""

    async def next(self) -> tuple[int, bytes]:
        """The next packet: its first byte, and all behind its length."""
        self.waiting_since_s = self._clock()
        first, length = await self._reader.readexactly(2)
        if length & 0x80:
            length = await self._long_length(length & 0x7F)
        body = await (
            self._long_body(length) if length > _READ_BYTES else self._reader.readexactly(length)
        )
        self.waiting_since_s = None
        return first, body

    async def _long_length(self, length: int) -> int:
        for shift in (7, 14, 21):
            (digit,) = await self._reader.readexactly(1)
            length |= (digit & 0x7F) << shift
            if not digit & 0x80:
                break
        else:
            raise MQTTError("a packet's length has more than four bytes")
        if length > PACKET_BYTES_MAX:
            raise MQTTError(f"a packet of {length} bytes exceeds the limit of {PACKET_BYTES_MAX}")
        return length

    async def _long_body(self, length: int) -> bytes:
        body = bytearray()
        while len(body) < length:
            block = await self._reader.read(min(_READ_BYTES, length - len(body)))
            if not block:
                raise asyncio.IncompleteReadError(bytes(body), length)
            self.waiting_since_s = self._clock()
            body += block
        return bytes(body)


class Connection(BrokerProtocolHandler):  # type: ignore[misc]
    """One accepted client: reads and obeys its packets, and writes what is published to it."""

    def begin(
        self,
        broker: "RepairedBroker",
        session: Session,
        packets: PacketReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """Take over from CONNECT. `init_from_connect` builds the handler with a fixed signature."""
        self.session = session
        self.filters: dict[str, int] = {}
        """Granted subscriptions: QoS by topic filter."""
        self.ended = asyncio.Event()
        """Set once the connection is closed, its subscriptions gone and its will published."""
        self._broker = broker
        self._packets = packets
        self._writer = writer
        self._transport = writer.transport
        # `drain` waits above the upper mark until 64 KiB are gone: a slow reader is no dead one.
        self._transport.set_write_buffer_limits(QUEUED_BYTES_MAX, QUEUED_BYTES_MAX - _READ_BYTES)
        self._outbox: list[bytes] = []
        self._bytes_lag = False
        self._unacknowledged: set[int] = set()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._last_packet_id = 0
        self._received: set[int] = set()  # QoS 2 packet ids between PUBLISH and PUBREL

    async def serve(self) -> None:
        """Obey packets until the goodbye; anything else that ends the connection is raised."""
        watch = asyncio.create_task(self._watch_silence())
        try:
            while await self._obey(*await self._packets.next()):
                pass
        finally:
            watch.cancel()
            self.flush()
            self._has_room.set()

    def abort(self, reason: str) -> None:
        """Cut the connection; `serve` then ends as if the peer had vanished."""
        logger.info("cutting off client=%s reason=%s", self.session.client_id, reason)
        self._transport.abort()

    async def _watch_silence(self) -> None:
        limit_s = self.session.keep_alive * _KEEPALIVE_GRACE
        clock = asyncio.get_running_loop().time
        silent_s = 0.0
        while silent_s < limit_s:
            await asyncio.sleep(limit_s - silent_s)
            since_s = self._packets.waiting_since_s
            silent_s = 0.0 if since_s is None else clock() - since_s
        if limit_s:
            self.abort(f"silent for {limit_s:g} s")

    async def _obey(self, first: int, body: bytes) -> bool:
        """Carry out one packet; False after the goodbye."""
        kind = first >> 4
        if kind == PUBLISH:
            await self._receive(first, body)
        elif kind == PUBACK:
            self._unacknowledged.discard(_packet_id(body))
            if len(self._unacknowledged) < UNACKNOWLEDGED_MAX:
                self._has_room.set()
        elif kind == PINGREQ:
            self.send(b"\xd0\x00")
        elif kind == SUBSCRIBE:
            await self._subscribe(first, body)
        elif kind == UNSUBSCRIBE:
            await self._unsubscribe(first, body)
        elif kind == PUBREL:
            self._received.discard(_packet_id(body))
            self.send(b"\x70\x02" + body)
        elif kind == DISCONNECT:
            self.session.will_flag = False
            return False
        else:
            raise MQTTError(f"packet type {kind} is not for a broker, or not at this time")
        return True

    async def _receive(self, first: int, body: bytes) -> None:
        """A PUBLISH: route it, then acknowledge."""
        qos = first >> 1 & 3
        topic_end = 2 + int.from_bytes(body[:2], "big")
        start = topic_end + 2 if qos else topic_end
        if qos > 2 or len(body) < start:
            raise MQTTError("malformed PUBLISH")
        try:
            topic = body[2:topic_end].decode()
        except UnicodeDecodeError:
            raise MQTTError("a topic is not UTF-8") from None
        check_topic(topic)
        packet_id = body[topic_end:start]
        if qos < 2 or _packet_id(packet_id) not in self._received:
            await self._broker.publish(topic, body[start:], qos, bool(first & 1), self)
        if qos == 1:
            self.send(b"\x40\x02" + packet_id)
        elif qos == 2:
            self._received.add(_packet_id(packet_id))
            self.send(b"\x50\x02" + packet_id)

    async def _subscribe(self, first: int, body: bytes) -> None:
        header = MQTTFixedHeader(SUBSCRIBE, first & 0x0F, len(body))
        packet = await SubscribePacket.from_stream(BufferReader(body), fixed_header=header)
        wanted = packet.payload.topics
        if not wanted:
            raise MQTTError("a SUBSCRIBE names no topic")
        granted = [await self._broker.add_subscription(each, self.session) for each in wanted]
        await self._send_packet(SubackPacket.build(packet.variable_header.packet_id, granted))
        for (topic_filter, _), qos in zip(wanted, granted, strict=True):
            if qos != REFUSED:
                self._broker.send_retained(topic_filter, qos, self)

    async def _unsubscribe(self, first: int, body: bytes) -> None:
        header = MQTTFixedHeader(UNSUBSCRIBE, first & 0x0F, len(body))
        packet = await UnsubscribePacket.from_stream(BufferReader(body), fixed_header=header)
        for topic_filter in packet.payload.topics:
            self._broker.remove_subscription(topic_filter, self)
        await self.mqtt_acknowledge_unsubscription(packet.variable_header.packet_id)

    def deliver(self, head: bytes, payload: bytes, qos: int) -> bool:
        """Write one message.

        Args:
            head: The PUBLISH packet up to its packet id, see `publish_head`.
            qos: 0 or 1, as the head says.

        Returns:
            Whether the client lags, so that the publisher should wait for it (`catch_up`).
        """
        if self._transport.is_closing():
            return False
        if qos:
            if len(self._unacknowledged) == _PACKET_IDS:
                self.abort(f"has not acknowledged {_PACKET_IDS} messages")
                return False
            packet_id = self._last_packet_id % _PACKET_IDS + 1
            while packet_id in self._unacknowledged:
                packet_id = packet_id % _PACKET_IDS + 1
            self._last_packet_id = packet_id
            self._unacknowledged.add(packet_id)
            if len(self._unacknowledged) == UNACKNOWLEDGED_MAX:
                self._has_room.clear()
            head += packet_id.to_bytes(2, "big")
        self.send(head)
        self.send(payload)
        return self._bytes_lag or not self._has_room.is_set()

    async def catch_up(self) -> None:
        """Wait until the client has taken something of what it lags behind, or cut it off."""
        try:
            async with asyncio.timeout(STALL_S):
                await self._writer.drain()
                self._bytes_lag = False
                await self._has_room.wait()
        except TimeoutError:
            self.abort(f"lags and has taken nothing for {STALL_S:g} s")
        except OSError:
            pass  # It is gone; its own coroutine says so.

    def send(self, data: bytes) -> None:
        """Write with all else that this turn of the loop has for the client: one system call."""
        if not self._outbox:
            asyncio.get_running_loop().call_soon(self.flush)
        self._outbox.append(data)

    def flush(self) -> None:
        """Hand over to the transport what `send` collected."""
        if self._outbox and not self._transport.is_closing():
            self._transport.write(b"".join(self._outbox))
            self._bytes_lag = self._transport.get_write_buffer_size() > QUEUED_BYTES_MAX
        self._outbox.clear()

    async def _send_packet(self, packet: Any) -> None:
        """amqtt's own packets (CONNACK, SUBACK, UNSUBACK) keep their place among ours."""
        self.send(packet.to_bytes())


def check_topic(topic: str) -> None:
    """Refuse what nobody may publish to, in a PUBLISH or a will.

    Raises:
        MQTTError: It is empty or holds a wildcard or a NUL, so the connection must end.
    """
    if not topic or "+" in topic or "#" in topic or "\0" in topic:
        raise MQTTError(f"{topic[:80]!r} is not a topic to publish to")


def _packet_id(data: bytes) -> int:
    packet_id = int.from_bytes(data, "big")
    if len(data) != 2 or not packet_id:
        raise MQTTError("a packet id is missing or zero")
    return packet_id


def publish_head(topic: str, payload_bytes: int, qos: int, *, retain: bool) -> bytes:
    """A PUBLISH packet up to where the packet id (QoS 1) or the payload (QoS 0) begins."""
    name = topic.encode()
    length = 2 + len(name) + (2 if qos else 0) + payload_bytes
    header: bytes = MQTTFixedHeader(PUBLISH, qos << 1 | retain, length).to_bytes()
    return header + len(name).to_bytes(2, "big") + name
