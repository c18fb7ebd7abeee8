"""The one MQTT connection that the shells of agent, controller and client share.

Owns everything between a broker's address and a list of events: name resolution and TCP and TLS
connect (in a helper thread, so that a dead address never freezes the owner's loop), the MQTT 3.1.1
session, subscriptions, keepalive, read buffering and write corking. It has no loop of its own and
calls nobody back: the owner waits for `fileno()` to become readable (or for `next_deadline_ms()`),
then calls `read()` and gets what happened, in order.

The MQTT library (paho) begins the session and makes the subscriptions; what is sent all day,
PUBLISH and PUBACK, is read and written by `framing`. None of the library's types appear here.

The owner's loop, in full::

    connection = MqttConnection(address, client_id=..., subscriptions=[("forage/1/inbox/x", 1)])
    loop.register(connection, ...)                  # once: fileno() never changes
    connection.connect(now_ms, will=Will(topic=..., payload=...))
    while running:
        loop.poll(seconds until the earlier of its own deadline and connection.next_deadline_ms())
        for event in connection.read(now_ms): ...   # handle, collect what to send
        connection.publish(...)                     # corked
        connection.flush(now_ms)                    # one send for all of it, PUBACKs included
"""

from __future__ import annotations

import logging
import selectors
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from forage_wire.address import BrokerAddress
from forage_wire.shell.dial import Dial, DialFailure, words_for
from forage_wire.shell.events import (
    Connected,
    Disconnected,
    EndKind,
    MessageReceived,
    MessageTooLong,
    PublishAcknowledged,
    SubscribeDone,
    TransportEvent,
    Will,
)
from forage_wire.shell.framing import (
    MalformedError,
    Packet,
    PacketReader,
    Skipped,
    length_bytes,
    parse_publish,
    publish_packet,
)
from forage_wire.shell.lean_paho import Client
from forage_wire.shell.nesting import inner_selector
from forage_wire.shell.owed import Owed
from forage_wire.shell.reconnect import RandomSource, ReconnectDelay, SystemRandom
from forage_wire.shell.sockets import BufferedSocket, EndOfStreamError, buffered
from forage_wire.shell.subscribing import Subscribing
from forage_wire.shell.unacknowledged import Unacknowledged

if TYPE_CHECKING:
    from paho.mqtt.client import SocketLike
    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode

__all__ = [
    "Connected",
    "Disconnected",
    "EndKind",
    "MessageReceived",
    "MessageTooLong",
    "MqttConnection",
    "PublishAcknowledged",
    "RandomSource",
    "ReconnectDelay",
    "SubscribeDone",
    "SystemRandom",
    "TransportEvent",
    "Will",
]

logger = logging.getLogger(__name__)

# What we say ourselves, in place of the library; each is a whole packet.
PINGREQ = b"\xc0\x00"
DISCONNECT = b"\xe0\x00"

PUBACK = 0x40
PUBLISH = 0x30
TYPE_MASK = 0xF0

CONNACK_BYTES = 4
CONNACK_HEADER = b"\x20\x02"
# By the return codes of MQTT 3.1.1; some brokers say "not authorised" of a wrong password too.
REFUSALS = {
    1: "it does not speak MQTT 3.1.1",
    2: "it refuses the client id",
    3: "it is there, but its MQTT service is not available",
    4: "it refuses the user name or password",
    5: "not authorised: wrong user name or password, or no right to connect",
}
RETRY_LATER_CODE = 3

SUBSCRIBE_TIMEOUT_MS = 30_000
QOS_MAX = 2

TOPICS_MAX = 1_024
"""Whose checked and encoded form is kept."""


class _Client(Client):
    """The library, given a socket of ours in place of one that it opens."""

    def __init__(self, client_id: str, wire: BufferedSocket) -> None:
        # A client object serves one connection only: a second one would send the first one's
        # unacknowledged messages again, and resending is for the ends to decide.
        super().__init__(
            CallbackAPIVersion.VERSION2,
            client_id,
            clean_session=True,
            protocol=MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        self._wire = wire

    def _create_socket(self) -> SocketLike:
        return self._wire


class MqttConnection:
    """One connection at a time to one broker; reconnecting is the owner's policy.

    Not thread-safe: the owner calls from one thread, or under one lock. Another thread may wait
    for `fileno()` meanwhile; a `flush` elsewhere wakes it if it has to.

    All times are the owner's monotonic milliseconds.
    """

    def __init__(
        self,
        address: BrokerAddress,
        *,
        client_id: str,
        subscriptions: Sequence[tuple[str, int]] = (),
        keepalive_s: int = 10,
        connect_timeout_ms: int = 10_000,
        packet_bytes_limit: int = 4 << 20,
        outstanding_bytes_max: int = 64 << 20,
        tls_ca_file: str | None = None,
    ) -> None:
        """Nothing is opened towards the broker before `connect`.

        Args:
            address: Where the broker is, and our credentials.
            client_id: The MQTT client id: a name, "-" and a random part of this process's start.
            subscriptions: `(topic filter, QoS)`, subscribed to on every connection before
                anything else is sent.
            keepalive_s: The broker's silence is broken by a ping after this time; no answer for
                as long again is `Disconnected`.
            connect_timeout_ms: For name, TCP, TLS and the broker's answer together.
            packet_bytes_limit: A longer inbound message is skipped (`MessageTooLong`).
            outstanding_bytes_max: `publish` refuses while more than this waits for the kernel,
                or for its PUBACK.
            tls_ca_file: PEM file of the authority that signs the broker's certificate, in place
                of the system's.
        """
        self._address = address
        self._client_id = client_id
        self._subscriptions = dict(subscriptions)
        self._keepalive_ms = keepalive_s * 1000
        self._connect_timeout_ms = connect_timeout_ms
        self._packet_bytes_limit = packet_bytes_limit
        self._outstanding_bytes_max = outstanding_bytes_max
        self._tls_ca_file = tls_ca_file

        # A selector inside the owner's selector: its descriptor stays the same while what it
        # watches comes and goes, also when another thread than the waiting one changes it.
        self.selector = self._selector = inner_selector()
        self._waits_for_room = False
        self._events: list[TransportEvent] = []
        self._will: Will | None = None

        # An attempt is a dial, then a wire and a client; `_connected` once the broker said yes.
        self._dial: Dial | None = None
        self._wire: BufferedSocket | None = None
        self._client: _Client | None = None
        self._reader = PacketReader(packet_bytes_limit)
        self._greeting = b""
        self._connected = False
        self._connect_deadline_ms = 0

        self._subscribing = Subscribing({})
        self._subscribe_answers: list[tuple[int, list[int]]] = []
        self._subscribe_deadline_ms = 0

        self._unacknowledged = Unacknowledged()
        self._owed = Owed()
        self._topics: dict[str, bytes] = {}

        self._last_received_ms = 0
        self._last_sent_ms = 0
        # While a ping waits for its answer: when the last byte up to it went to the kernel (or it
        # was corked), and where in the stream it ends.
        self._ping_ms: int | None = None
        self._ping_end = 0

    # ------------------------------------------------------------------ what the owner looks at

    @property
    def connected(self) -> bool:
        """The broker has accepted us and we know of no end: `publish` works."""
        return self._connected

    @property
    def own_address(self) -> str:
        """This machine's own address on the way to the broker; empty while not connected."""
        return self._wire.own_address if self._wire is not None else ""

    @property
    def unsent_bytes(self) -> int:
        """Bytes published or corked that the kernel has not taken."""
        return self._wire.unsent_bytes if self._wire is not None else 0

    def fileno(self) -> int:
        """The same descriptor for life: readable when `read` has something to do.

        That includes room in the kernel for a send that was cut short, and the end of a connect.
        """
        return self._selector.fileno()

    def next_deadline_ms(self) -> int | None:
        """When `read` has to be called even if `fileno()` is silent; None: never."""
        if self._events:
            return 0
        if not self._connected:
            is_idle = self._dial is None and self._wire is None
            return None if is_idle else self._connect_deadline_ms
        if self._ping_ms is not None:
            deadline_ms = self._ping_ms + self._keepalive_ms
        else:
            deadline_ms = min(self._last_sent_ms, self._last_received_ms) + self._keepalive_ms
        if not self._subscribing.is_done:
            deadline_ms = min(deadline_ms, self._subscribe_deadline_ms)
        owed_due_ms = self._owed.due_ms
        return deadline_ms if owed_due_ms is None else min(deadline_ms, owed_due_ms)

    # ------------------------------------------------------------------ what the owner does

    def connect(self, now_ms: int, *, will: Will | None = None) -> None:
        """Begin to connect; returns at once. `Connected` or `Disconnected` will come from `read`.

        Any connection or attempt before is aborted without an event.
        """
        self.abort()
        self._will = will
        self._connect_deadline_ms = now_ms + self._connect_timeout_ms
        try:
            self._dial = Dial(
                self._address.host,
                self._address.port,
                tls=self._address.tls,
                tls_ca_file=self._tls_ca_file,
                timeout_s=self._connect_timeout_ms / 1000,
            )
        except OSError as error:  # No descriptor left.
            self._end(words_for(error), "unreachable")
        else:
            self._selector.register(self._dial, selectors.EVENT_READ)

    def read(self, now_ms: int) -> list[TransportEvent]:
        """All that happened: one large receive, timers, continued sends. Never blocks.

        Call it when `fileno()` is readable and when `next_deadline_ms()` has come; calling it at
        any other time is harmless. PUBACKs for what it returns leave with what is sent next.
        """
        if self._dial is not None:
            self._continue_dial(self._dial, now_ms)
        if self._wire is not None:
            self._receive(self._wire, now_ms)
            if self._wire is not None and self._wire.is_cut_short:
                self.flush(now_ms)
        # After everything readable was read: a gap of our own loop is not the broker's silence.
        self._check_deadlines(now_ms)
        events = self._events
        self._events = []
        return events

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 1,
        retain: bool = False,
        confirm: bool = False,
    ) -> int | None:
        """Cork one message; `flush` sends it.

        Args:
            confirm: Ask for a `PublishAcknowledged` with the returned id (QoS 1 only).

        Returns:
            The message id (0: QoS 0); or None, and nothing is kept, where there is no connection,
            or where more than `outstanding_bytes_max` bytes or 65,000 messages wait for the kernel
            or for their PUBACKs: the ends send again.

        Raises:
            ValueError: A topic or size that MQTT cannot carry, or QoS 2.
        """
        if not 0 <= qos < QOS_MAX:
            raise ValueError(f"QoS {qos} is not used here")
        wire = self._wire
        if not self._connected or wire is None:
            return None
        outstanding = self._unacknowledged
        waiting_bytes = max(wire.unsent_bytes, outstanding.payload_bytes)
        if waiting_bytes > self._outstanding_bytes_max or outstanding.is_full:
            return None
        encoded = self._topics.get(topic) or self._encode_topic(topic)
        message_id = outstanding.add(len(payload), confirm=confirm) if qos else 0
        wire.send(publish_packet(encoded, payload, qos=qos, retain=retain, message_id=message_id))
        return message_id

    def _encode_topic(self, topic: str) -> bytes:
        if not topic or "+" in topic or "#" in topic or "\0" in topic:
            raise ValueError(
                f"nothing can be published to {topic!r}: a topic has a name and no wildcards"
            )
        if len(self._topics) >= TOPICS_MAX:
            self._topics.clear()
        encoded = self._topics[topic] = topic.encode()
        return encoded

    def flush(self, now_ms: int) -> None:
        """Send all that is corked with one system call; what the kernel refuses goes on later.

        Never blocks and never fails: a broken connection shows at the next `read`.
        """
        wire = self._wire
        if wire is None:
            return
        owed = self._owed.take(now_ms, others_leave=wire.unsent_bytes > 0)
        if owed:
            wire.send(owed)
        sent_before = wire.sent_bytes
        wire.flush()
        if wire.sent_bytes != sent_before:
            self._last_sent_ms = now_ms
            if self._ping_ms is not None and sent_before < self._ping_end:
                self._ping_ms = now_ms
        if wire.wants_write != self._waits_for_room:
            self._watch_room(wire)

    def disconnect(self, *, timeout_s: float = 1.0) -> None:
        """Say goodbye (the broker drops the will), after all that was published. No event follows.

        Blocks until the broker has closed its end, at most `timeout_s`.
        """
        if self._connected and self._wire is not None:
            self._wire.send(DISCONNECT)
            self._wire.finish(timeout_s)
        self.abort()

    def abort(self) -> None:
        """Close without goodbye: the broker publishes the will. No event follows."""
        if self._dial is not None:
            self._selector.unregister(self._dial)
            self._dial.close()
            self._dial = None
        if self._wire is not None:
            self._selector.unregister(self._wire)
            self._wire.shut()
            self._wire = None
        self._client = None
        self._connected = False
        self._events = []
        self._waits_for_room = False
        self._subscribe_answers.clear()
        self._unacknowledged = Unacknowledged()
        self._owed = Owed()
        self._ping_ms = None

    def close(self) -> None:
        """Abort, and give `fileno()` back. The object is of no use afterwards."""
        self.abort()
        self._selector.close()

    # ------------------------------------------------------------------ connecting

    def _continue_dial(self, dial: Dial, now_ms: int) -> None:
        outcome = dial.take()
        if outcome is None:
            return
        self._selector.unregister(dial)
        dial.close()
        self._dial = None
        if isinstance(outcome, DialFailure):
            self._end(outcome.reason, outcome.kind)
        else:
            self._begin_session(outcome, now_ms)

    def _begin_session(self, connected: socket.socket, now_ms: int) -> None:
        wire = buffered(connected, tls=self._address.tls)
        client = _Client(self._client_id, wire)
        client.on_subscribe = self._on_subscribe
        if self._address.username is not None:
            client.username_pw_set(self._address.username, self._address.password)
        if self._will is not None:
            client.will_set(self._will.topic, self._will.payload, self._will.qos, self._will.retain)
        self._wire = wire
        self._client = client
        self._reader = PacketReader(self._packet_bytes_limit)
        self._greeting = b""
        self._selector.register(wire, selectors.EVENT_READ)
        client.connect(self._address.host, self._address.port, self._keepalive_ms // 1000)
        self.flush(now_ms)

    def _is_accepted(self) -> bool:
        """Judge the broker's first bytes; True once they say that we are connected."""
        answer = self._greeting[:CONNACK_BYTES]
        if answer[:2] != CONNACK_HEADER[: len(answer)]:
            self._end("what answers there is not an MQTT broker", "unreachable")
        elif len(answer) == CONNACK_BYTES:
            code = answer[3]
            if code == 0:
                return True
            reason = REFUSALS.get(code, f"it refuses the connection (code {code})")
            if self._address.username is None and code in (4, 5):
                reason += " (no user name was given)"
            self._end(reason, "unreachable" if code == RETRY_LATER_CODE else "refused")
        return False

    # ------------------------------------------------------------------ subscriptions

    def _begin_subscribing(self, now_ms: int) -> None:
        """Before anything else of ours, and before the owner knows that it is connected."""
        self._subscribing = Subscribing(self._subscriptions)
        self._subscribe_deadline_ms = now_ms + SUBSCRIBE_TIMEOUT_MS
        self._subscribe()

    def _take_subscribe_answers(self) -> None:
        if self._subscribing.is_done:
            self._subscribe_answers.clear()  # Nobody asked.
            return
        for message_id, codes in self._subscribe_answers:
            self._subscribing.answered(message_id, codes)
        self._subscribe_answers.clear()
        self._subscribe()

    def _subscribe(self) -> None:
        """Ask for what is to be asked for, in one SUBSCRIBE; tell the owner at the end."""
        subscribing = self._subscribing
        request = subscribing.next_request()
        if request and self._client is not None:
            _, message_id = self._client.subscribe(request)
            if message_id is not None:
                subscribing.sent(message_id, request)
        if subscribing.is_done:
            self._events.append(
                SubscribeDone(granted=dict(subscribing.granted), refused=tuple(subscribing.refused))
            )

    # ------------------------------------------------------------------ reading

    def _receive(self, wire: BufferedSocket, now_ms: int) -> None:
        try:
            chunk = wire.receive()
        except EndOfStreamError:
            if self._connected:
                self._end("the broker closed the connection", "lost")
            else:
                self._end("it closed the connection without an MQTT answer", "unreachable")
            return
        except OSError as error:
            self._end(words_for(error), "lost" if self._connected else "unreachable")
            return
        if not chunk:
            return
        self._last_received_ms = now_ms
        self._ping_ms = None
        if not self._connected:
            self._greeting = chunk = self._greeting + chunk
            if not self._is_accepted():
                return
            self._connected = True
            self._last_sent_ms = now_ms
            self._events.append(Connected(session_present=bool(chunk[2] & 1)))
            self._begin_subscribing(now_ms)
        self._digest(wire, chunk, now_ms)
        if not self._subscribing.is_done:
            self.flush(now_ms)  # What was asked for waits for no owner.

    def _digest(self, wire: BufferedSocket, chunk: bytes, now_ms: int) -> None:
        """Take apart all that was received."""
        reader = self._reader
        try:
            for packet in reader.feed(chunk):
                self._on_packet(wire, packet, now_ms)
                if wire.given_up:
                    break
        except MalformedError as error:
            reader.malformed = str(error)
        if self._subscribe_answers:
            self._take_subscribe_answers()
        if wire.given_up or reader.malformed:
            details = f": {reader.malformed}" if reader.malformed else ""
            self._end(f"the broker sent what is not MQTT{details}", "lost")

    def _on_packet(self, wire: BufferedSocket, packet: Packet | Skipped, now_ms: int) -> None:
        if isinstance(packet, Skipped):
            self._events.append(
                MessageTooLong(topic=packet.topic, packet_bytes=packet.packet_bytes)
            )
            if packet.message_id is not None:
                self._owed.add(packet.message_id, now_ms)
            return
        first, body = packet
        kind = first & TYPE_MASK
        if kind == PUBLISH:
            topic, payload, message_id = parse_publish(first, body)
            retain = bool(first & 1)
            self._events.append(MessageReceived(topic=topic, payload=payload, retain=retain))
            if message_id is not None:
                self._owed.add(message_id, now_ms)
        elif kind == PUBACK:
            if len(body) != 2:
                raise MalformedError(f"a PUBACK of {len(body)} bytes")
            message_id = int.from_bytes(body, "big")
            if self._unacknowledged.acknowledged(message_id):
                self._events.append(PublishAcknowledged(message_id=message_id))
        else:
            self._hand_to_library(wire, first, body)

    def _hand_to_library(self, wire: BufferedSocket, first: int, body: bytes) -> None:
        client = self._client
        if client is None:
            return
        wire.hand(bytes((first, *length_bytes(len(body)))) + body)
        try:
            client.loop_read()
        except Exception:
            # The library's decoders raise all kinds of errors on malformed packets. Whatever it
            # was, this connection ends, and the owner hears of it.
            logger.warning("mqtt packet not understood", exc_info=True)
            wire.given_up = True

    # Called by the library within `_hand_to_library`; it only takes down what happened.

    def _on_subscribe(
        self,
        _client: Client,
        _userdata: Any,
        message_id: int,
        codes: list[ReasonCode],
        _properties: Properties | None,
    ) -> None:
        self._subscribe_answers.append((message_id, [code.value for code in codes]))

    # ------------------------------------------------------------------ time and the end

    def _check_deadlines(self, now_ms: int) -> None:
        if not self._connected:
            if now_ms < self._connect_deadline_ms:
                return
            seconds = f"{self._connect_timeout_ms / 1000:g} s"
            if self._dial is not None:
                self._end(f"timed out: no connection within {seconds}", "unreachable")
            elif self._wire is not None:
                self._end(f"no MQTT answer within {seconds}; is it a broker?", "unreachable")
            return
        if self._owed.is_due(now_ms):
            self.flush(now_ms)
        if not self._subscribing.is_done and now_ms >= self._subscribe_deadline_ms:
            self._end("the broker does not answer our subscriptions", "lost")
        elif self._ping_ms is not None:
            if now_ms - self._ping_ms >= self._keepalive_ms:
                silence_s = (now_ms - self._last_received_ms) / 1000
                self._end(f"no sign of life from the broker for {silence_s:.0f} s", "lost")
        elif now_ms - min(self._last_sent_ms, self._last_received_ms) >= self._keepalive_ms:
            self._ping(now_ms)

    def _ping(self, now_ms: int) -> None:
        if self._wire is None:
            return
        self._wire.send(PINGREQ)
        self._ping_ms = now_ms
        # A backlog of ours ahead of the ping is no silence of the broker: as long as the kernel
        # still takes some of it, the wait for the answer begins anew.
        self._ping_end = self._wire.sent_bytes + self._wire.unsent_bytes
        self.flush(now_ms)

    def _watch_room(self, wire: BufferedSocket) -> None:
        self._waits_for_room = wire.wants_write
        mask = selectors.EVENT_READ | (selectors.EVENT_WRITE if wire.wants_write else 0)
        self._selector.modify(wire, mask)

    def _end(self, reason: str, kind: EndKind) -> None:
        """The one way in which a connection ends by itself: what came before it stays first."""
        events = self._events
        self.abort()
        self._events = [*events, Disconnected(reason=reason, kind=kind)]
