"""A model of an MQTT 3.1.1 broker and of the network to it, with all that is allowed to go wrong.

What it keeps of MQTT: clean sessions, subscriptions with wildcards, QoS 0 and 1, PUBACKs,
retained messages, wills, takeover by the same client id, order within one connection. What real
brokers were seen to do besides: acknowledge a QoS 1 message and drop it, send one twice, publish
a will late, never, or of a session that has come back, close a connection that its client
believes in, come up again with nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

from forage_sim.clock import Clock
from forage_sim.pipe import Pipe, segment_delay_ms
from forage_sim.topic_index import Retained, Subscriptions
from forage_wire.io import Publish

__all__ = ["Broker", "BrokerTrace", "Conditions", "Connection", "Peer"]

WILL_PROMPT_MS = 15
WILL_LATE_MS = (1_000, 30_000)
KEEPALIVE_LIMIT_MS = (15_000, 30_000)
"""After which silence a broker ends a connection: 1.5 to 3 keepalives of 10 s."""
PING_LIMIT_MS = 20_000
"""After which silence of the broker a client ends it."""


@dataclass(slots=True)
class Conditions:
    """How the network and the broker behave now; faults change it for a while."""

    delay_ms_max: int = 3
    """A message takes 0 to this long each way."""
    segment_loss: float = 0.0
    """Of TCP segments: they arrive later."""
    drop_qos_0: float = 0.0
    """Of QoS 0 messages, for each subscriber."""
    drop_qos_1: float = 0.0
    """Of QoS 1 messages, for each subscriber; the publisher gets its PUBACK all the same."""
    duplicate: float = 0.0
    """Of QoS 1 messages, for each subscriber: comes again within `duplicate_ms_max`."""
    duplicate_ms_max: int = 2_000
    overtake: float = 0.0
    """Of messages: passes the one before it."""
    wills: str = "prompt"
    """prompt, late, never or mixed."""
    queue_messages_max: int = 1_000
    """Waiting for one subscriber; more are dropped, silently."""


class Peer(Protocol):
    """A client's end of a connection. Nothing is called after `on_disconnected`."""

    def on_connected(self) -> None:
        """The broker accepted us and our subscriptions."""

    def on_message(self, topic: str, payload: bytes, retain: bool) -> None:
        """A message of a subscription."""

    def on_receipt(self, receipt: int) -> None:
        """The PUBACK of a message that asked for a receipt."""

    def on_disconnected(self) -> None:
        """The connection has ended, as far as the client can see."""


BrokerTrace = Callable[[str, str, str, bytes], None]
"""Told of what happens: (what, client id, topic, payload)."""

Incoming = Callable[[], None]


class Connection:
    """One client's connection: two pipes, and what each end believes.

    The two ends may disagree for a while: `broker_open` and `peer_open`.
    """

    __slots__ = (
        "_broker",
        "_silent_since_ms",
        "broker_open",
        "client_id",
        "downlink",
        "graceful",
        "peer",
        "peer_open",
        "subscriptions",
        "uplink",
        "will",
    )

    def __init__(
        self,
        broker: "Broker",
        client_id: str,
        will: Publish | None,
        subscriptions: Sequence[tuple[str, int]],
        peer: Peer,
    ) -> None:
        self._broker = broker
        self.client_id = client_id
        self.will = will
        self.subscriptions = tuple(subscriptions)
        self.peer = peer
        self.broker_open = True
        self.peer_open = True
        self._silent_since_ms: int | None = None
        self.uplink: Pipe[Incoming] = Pipe(broker.clock, self._at_broker)
        self.downlink: Pipe[Incoming] = Pipe(broker.clock, self._at_peer)

    # -- what the client does ---------------------------------------------------------------

    def publish(self, message: Publish) -> None:
        """Send a message to the broker."""
        if self.peer_open:
            self.uplink.push(lambda: self._broker.receive(self, message), self._broker.delay_ms())

    def disconnect(self) -> None:
        """Say goodbye: what was sent before arrives, and the will is not published."""
        self.peer_open = False
        self.uplink.push(
            lambda: self._broker.end(self, "goodbye", will=False), self._broker.delay_ms()
        )

    def abandon(self) -> None:
        """The process died: its kernel sends what it has and closes."""
        self.peer_open = False
        self.uplink.push(lambda: self._broker.end(self, "closed"), self._broker.delay_ms())

    def vanish(self) -> None:
        """The machine died: what was under way is lost, and the broker finds out by silence."""
        self.peer_open = False
        self.uplink.clear()
        self.fall_silent()

    # -- what the network does --------------------------------------------------------------

    def cut(self, duration_ms: int) -> None:
        """Nothing passes for a while; an end that waits too long gives the connection up."""
        clock = self._broker.clock
        until_ms = clock.now_ms + duration_ms
        self.uplink.block(until_ms)
        self.downlink.block(until_ms)
        self.fall_silent()
        clock.at(until_ms, self.speak_again)
        if duration_ms > PING_LIMIT_MS:
            clock.after(PING_LIMIT_MS, self.close_at_peer)

    def lose_at_peer(self) -> None:
        """The client's end is gone (its address changed), and the broker does not know."""
        if not self.peer_open:
            return
        self.peer_open = False
        self.uplink.clear()
        self.fall_silent()
        self.peer.on_disconnected()

    def fall_silent(self) -> None:
        """The broker hears nothing more, not even pings (frozen, cut or gone)."""
        clock = self._broker.clock
        since_ms = clock.now_ms
        self._silent_since_ms = since_ms
        limit_ms = self._broker.random.randint(*KEEPALIVE_LIMIT_MS)

        def look() -> None:
            if self._silent_since_ms == since_ms:
                self._broker.end(self, "keepalive")

        clock.after(limit_ms, look)

    def speak_again(self) -> None:
        """The client is heard again."""
        self._silent_since_ms = None

    def close_at_peer(self) -> None:
        """The client finds that the connection has ended."""
        if not self.peer_open:
            return
        self.peer_open = False
        self.peer.on_disconnected()
        if self.broker_open:
            self.uplink.push(lambda: self._broker.end(self, "closed"), self._broker.delay_ms())

    # -- the ends of the pipes --------------------------------------------------------------

    def _at_broker(self, incoming: Incoming) -> None:
        if self.broker_open:
            incoming()

    def _at_peer(self, incoming: Incoming) -> None:
        if self.peer_open:
            incoming()


class Broker:
    """The broker; `conditions` may be changed at any time."""

    def __init__(self, clock: Clock, conditions: Conditions, trace: BrokerTrace) -> None:
        self.clock = clock
        self.conditions = conditions
        self.random: Random = clock.stream("broker")
        self.up = True
        self.dropped_over_limit = 0
        self.longest_queue = 0
        self._trace = trace
        self._connections: dict[str, Connection] = {}
        self._retained = Retained()
        self._subscriptions: Subscriptions[Connection] = Subscriptions()
        self._routes: dict[str, list[tuple[Connection, int]]] = {}

    # -- connections ------------------------------------------------------------------------

    def connect(
        self,
        client_id: str,
        peer: Peer,
        subscriptions: Sequence[tuple[str, int]],
        will: Publish | None,
    ) -> Connection | None:
        """Accept a client with a clean session, or None while the broker is down."""
        if not self.up:
            return None
        old = self._connections.get(client_id)
        if old is not None:
            self._take_over(old)
        connection = Connection(self, client_id, will, subscriptions, peer)
        self._connections[client_id] = connection
        for topic_filter, qos in connection.subscriptions:
            self._subscriptions.add(connection, topic_filter, qos)
        self._routes.clear()
        self._trace("connect", client_id, "", b"")
        self._down(connection, connection.peer.on_connected)
        for topic_filter, _qos in connection.subscriptions:
            for topic, payload in self._retained.of(topic_filter):
                self._send(connection, topic, payload, retain=True)
        return connection

    def connection_of(self, client_id: str) -> Connection | None:
        """The connection that the broker has of a client."""
        return self._connections.get(client_id)

    def _take_over(self, old: Connection) -> None:
        # Seen on real ones: the old will before anything of the new connection, or no will, or
        # a stale one later.
        kind = self._will_kind()
        self.end(old, "takeover", will=False)
        if old.will is not None:
            if kind == "prompt":
                self._publish_will(old.will)
            elif kind == "late":
                self._will_later(old.will)

    def end(self, connection: Connection, why: str, *, will: bool = True) -> None:
        """The broker ends a connection; its client hears of it, if it still listens."""
        if not connection.broker_open:
            return
        connection.broker_open = False
        connection.uplink.clear()
        if self._connections.get(connection.client_id) is connection:
            del self._connections[connection.client_id]
        for topic_filter, _qos in connection.subscriptions:
            self._subscriptions.remove(connection, topic_filter)
        self._routes.clear()
        self._trace("end", connection.client_id, why, b"")
        if connection.peer_open:
            connection.downlink.push(connection.close_at_peer, self.delay_ms())
        if not will or connection.will is None:
            return
        kind = self._will_kind()
        message = connection.will
        if kind == "prompt":
            delay_ms = self.random.randint(0, WILL_PROMPT_MS)
            self.clock.after(delay_ms, lambda: self._publish_will(message))
        elif kind == "late":
            self._will_later(message)

    def half_open(self, connection: Connection, unaware_ms: int) -> None:
        """The broker gives a connection up (an early will), its client believes in it longer."""
        connection.downlink.block(self.clock.now_ms + unaware_ms)
        self.end(connection, "half-open")

    def restart_empty(self, downtime_ms: int) -> None:
        """Die, and come up again with no retained message, no session and no will."""
        self.restart_with({}, downtime_ms)

    def restart_with(self, retained: dict[str, bytes], downtime_ms: int) -> None:
        """Die, and come up again with these retained messages: what it had saved, long ago."""
        self.up = False
        self._trace("down", "", "", b"")
        for connection in list(self._connections.values()):
            connection.broker_open = False
            connection.uplink.clear()
            connection.downlink.clear()
            connection.downlink.push(connection.close_at_peer, self.delay_ms())
        self._connections.clear()
        self._subscriptions.clear()
        self._routes.clear()
        self._retained = Retained(retained)

        def come_up() -> None:
            self.up = True
            self._trace("up", "", "", b"")

        self.clock.after(downtime_ms, come_up)

    # -- wills ------------------------------------------------------------------------------

    def _will_kind(self) -> str:
        kind = self.conditions.wills
        if kind != "mixed":
            return kind
        return self.random.choice(("prompt", "late", "never"))

    def _will_later(self, will: Publish) -> None:
        self.clock.after(self.random.randint(*WILL_LATE_MS), lambda: self._publish_will(will))

    def _publish_will(self, will: Publish) -> None:
        if self.up:
            self._trace("will", "", will.topic, will.payload)
            self._accept(will)

    # -- messages ---------------------------------------------------------------------------

    def receive(self, connection: Connection, message: Publish) -> None:
        """A client's message has arrived."""
        self._accept(message)
        if message.qos and message.receipt:
            receipt = message.receipt
            self._down(connection, lambda: connection.peer.on_receipt(receipt))

    def publish(self, message: Publish) -> None:
        """A message from a client that is not modelled (a test's, an attacker's)."""
        self._accept(message)

    def retained(self) -> dict[str, bytes]:
        """The retained messages by topic."""
        return self._retained.all()

    def queued(self) -> int:
        """Messages under way to subscribers."""
        return sum(len(connection.downlink) for connection in self._connections.values())

    def _accept(self, message: Publish) -> None:
        if message.retain:
            self._retained.put(message.topic, message.payload)
        for connection, qos in self._route(message.topic):
            self._offer(connection, min(qos, message.qos), message.topic, message.payload)

    def _route(self, topic: str) -> list[tuple[Connection, int]]:
        route = self._routes.get(topic)
        if route is None:
            route = self._routes[topic] = self._subscriptions.of(topic)
        return route

    def _offer(self, connection: Connection, qos: int, topic: str, payload: bytes) -> None:
        conditions, random = self.conditions, self.random
        loss = conditions.drop_qos_1 if qos else conditions.drop_qos_0
        if loss and random.random() < loss:
            self._trace("lost", connection.client_id, topic, payload)
            return
        if len(connection.downlink) >= conditions.queue_messages_max:
            self.dropped_over_limit += 1
            self._trace("overflow", connection.client_id, topic, payload)
            return
        self._send(connection, topic, payload, retain=False)
        if qos and conditions.duplicate and random.random() < conditions.duplicate:
            delay_ms = random.randint(0, conditions.duplicate_ms_max)

            def again() -> None:
                if connection.broker_open:
                    self._trace("duplicate", connection.client_id, topic, payload)
                    self._send(connection, topic, payload, retain=False)

            self.clock.after(delay_ms, again)

    def _send(self, connection: Connection, topic: str, payload: bytes, *, retain: bool) -> None:
        self._down(connection, lambda: connection.peer.on_message(topic, payload, retain))
        self.longest_queue = max(self.longest_queue, len(connection.downlink))

    def _down(self, connection: Connection, incoming: Incoming) -> None:
        overtake = self.conditions.overtake
        passes = bool(overtake) and self.random.random() < overtake
        connection.downlink.push(incoming, self.delay_ms(), overtake=passes)

    def delay_ms(self) -> int:
        """How long the next message takes one way."""
        conditions = self.conditions
        delay_ms = int(self.random.random() * (conditions.delay_ms_max + 1))
        if conditions.segment_loss:
            delay_ms += segment_delay_ms(self.random, conditions.segment_loss)
        return delay_ms
