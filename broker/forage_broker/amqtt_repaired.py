"""amqtt with its defects repaired: a subclass of its broker and one of its connection handler.

Kept from amqtt 0.12.1: the listeners and TLS, the decoding of CONNECT, SUBSCRIBE and UNSUBSCRIBE,
authentication and topic plugins, the tables of sessions, subscriptions and retained messages.
Replaced: the life of a connection (one coroutine from CONNECT to its end, where amqtt has six
tasks that race each other) and the way of a message (written to its subscribers at once, where
amqtt has three queues and two tasks for each message). The version is pinned, because this relies
on names that amqtt does not promise.

What amqtt does wrong, and what happens here:

1.  It never enforces the keepalive. Here a peer that is silent for 1.5 keepalives is cut off, and
    its will is published.
2.  It sends a connecting client the retained messages of everybody's subscriptions. Here they go
    out on SUBSCRIBE alone, to the subscriber alone.
3.  A takeover with a clean session leaves the old connection open and its will armed. Here the old
    connection is closed and its will is out before the new one gets its CONNACK.
4.  A takeover of a kept session publishes the *new* client's will and leaves it dead. Here the
    same happens as in 3, and the new connection inherits the subscriptions.
5.  A CONNECT that is refused deletes the subscriptions of the client whose id it names. Here a
    client is authenticated before anything of its id is touched.
6.  Wills are not checked against the publishing rules. Here they are.
7.  A QoS 1 message that is not acknowledged within 5 s is dropped. Here it stays with TCP until
    the connection ends, and nothing is repeated within a connection, as the standard has it.
8.  Sessions of absent clients are purged within a second. Here this is the rule for all: a session
    ends with its connection, whatever CONNECT asked for. **Nothing is kept for absent clients.**
9.  Messages are delivered at the subscription's QoS, and overlapping subscriptions give copies.
    Here the lower QoS of publisher and subscriber holds, and a client gets one copy.
10. `$share` is granted and stays silent. Here it is refused (0x80). Messages published to topics
    that begin with `$` are acknowledged and dropped; in amqtt they break the publisher's loop.
11. Queues, tasks and packets are unbounded. Here a packet is limited (`PACKET_BYTES_MAX`), and
    publishers wait for a subscriber that lags (`QUEUED_BYTES_MAX`, `UNACKNOWLEDGED_MAX`); one that
    lags and stands still for `STALL_S` is cut off. Retained messages are limited in number
    (`RETAINED_MAX`), later ones are dropped. The number of connections is not limited.

What remains: MQTT 3.1.1 only, QoS 2 is granted as QoS 1 (and accepted from publishers), nothing
survives a restart, one thread. Topic plugins are asked for each SUBSCRIBE, PUBLISH and will, not
for each delivery; amqtt's packet and client events are not fired.
"""

import asyncio
import logging
import socket
from collections.abc import Mapping
from typing import Any, TypeAlias

from amqtt.adapters import BufferReader, StreamWriterAdapter
from amqtt.broker import Action, Broker
from amqtt.contexts import BrokerConfig, ListenerConfig
from amqtt.errors import AMQTTError, CodecError, MQTTError, NoDataError
from amqtt.mqtt.packet import CONNECT, MQTTFixedHeader
from amqtt.session import Session

from forage_broker.amqtt_connection import (
    REFUSED,
    Connection,
    PacketReader,
    check_topic,
    publish_head,
)
from forage_broker.limits import BACKLOG, CONNECT_TIMEOUT_S, RETAINED_MAX

__all__ = ["RepairedBroker"]

# Named, because amqtt else loads loggers of every packet and a publisher of $SYS topics.
_EVERYBODY = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}
_HANG_UP_S = 1.0
_ROUTES_MAX = 4_096
_ROUTE_TOPIC_LENGTH_MAX = 256

# How the other end, not this broker, ends a connection.
_PEER_ENDED = (
    OSError,
    TimeoutError,
    asyncio.IncompleteReadError,
    AMQTTError,
    MQTTError,
    NoDataError,
    CodecError,
)

_Recipients: TypeAlias = tuple[tuple[Connection, int], ...]

logger = logging.getLogger(__name__)


class RepairedBroker(Broker):  # type: ignore[misc]
    """amqtt's broker on a socket that already listens, with the repairs that the module names.

    Runs in one event loop: `await start()`, `await shutdown()`. Nothing here is thread-safe.
    """

    def __init__(
        self, listener: socket.socket, plugins: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        """Prepare to serve `listener`, which listens; closing it is the caller's.

        Args:
            plugins: amqtt's authentication and topic plugins: options by dotted path. None lets
                everybody in.
        """
        host, port = listener.getsockname()[:2]
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        super().__init__(
            BrokerConfig(
                listeners={"default": ListenerConfig(bind=place)},
                plugins=dict(plugins or _EVERYBODY),
            )
        )
        self._listener = listener
        self._serving: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}
        self._is_stopping = False
        self._has_rules = bool(self.plugins_manager._topic_plugins)
        self._routes: dict[str, _Recipients] = {}
        self._wildcard_filters: list[str] | None = None

    async def _create_server_instance(self, *_: object) -> asyncio.Server:
        """Listen on our own socket: amqtt cannot read an IPv6 address nor tell a free port."""
        # Accepted sockets inherit this. asyncio does it too, for transports of its own.
        self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return await asyncio.start_server(
            lambda reader, writer: self.stream_connected(reader, writer, "default"),
            sock=self._listener,
            backlog=BACKLOG,
        )

    async def stream_connected(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, listener_name: str
    ) -> None:
        """The whole life of one connection, from CONNECT to the will."""
        task = asyncio.current_task()
        assert task is not None
        self._serving[task] = writer
        try:
            await self._serve_peer(PacketReader(reader), writer, listener_name)
        except Exception:
            # What one peer sends must never end the broker for the others.
            logger.exception("a connection was ended by an error in the broker")
            writer.transport.abort()
        finally:
            del self._serving[task]

    async def _serve_peer(
        self, packets: PacketReader, writer: asyncio.StreamWriter, listener_name: str
    ) -> None:
        connection: Connection | None = None
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                connection = await self._accept(packets, writer, listener_name)
            if connection is not None:
                await connection.serve()
            await _hang_up(writer)
        except _PEER_ENDED as error:
            client = connection.session.client_id if connection else None
            logger.info("connection ended client=%s reason=%r", client, error)
        finally:
            writer.transport.abort()
            if connection is not None:
                await self._part(connection)

    async def _accept(
        self, packets: PacketReader, writer: asyncio.StreamWriter, listener_name: str
    ) -> Connection | None:
        """Answer CONNECT. None if the client may not come in."""
        first, body = await packets.next()
        if first >> 4 != CONNECT or writer.get_extra_info("peername") is None:
            raise MQTTError("the first packet is not a CONNECT")
        header = MQTTFixedHeader(CONNECT, 0, len(body))
        connection, session = await Connection.init_from_connect(
            BufferReader(header.to_bytes() + body),
            StreamWriterAdapter(writer),
            self.plugins_manager,
        )
        if session.will_flag:
            check_topic(session.will_topic)
        connection.begin(self, session, packets, writer)
        if not await self._authenticate(session, self.listeners_config[listener_name]):
            await connection.mqtt_connack_authorize(False)
            connection.flush()
            return None
        inherited = await self._take_over(session)
        self._sessions[session.client_id] = (session, connection)
        for topic_filter, qos in inherited.items():
            await self.add_subscription((topic_filter, qos), session)
        await connection.mqtt_connack_authorize(True)
        return connection  # type: ignore[no-any-return]

    async def _take_over(self, session: Session) -> dict[str, int]:
        """End the connection that has this client id, will and all; its subscriptions if kept."""
        inherited: dict[str, int] = {}
        # A loop: several connections with one id may wait for the same one to end.
        while (known := self._sessions.get(session.client_id)) is not None:
            old_session, old = known
            if not session.clean_session and not old_session.clean_session:
                inherited = dict(old.filters)
                session.parent = 1  # "session present"
            old.abort("another connection has taken over its client id")
            await old.ended.wait()
        return inherited

    async def _part(self, connection: Connection) -> None:
        """Forget a closed connection, and publish its will unless it said goodbye."""
        session = connection.session
        for topic_filter in list(connection.filters):
            self.remove_subscription(topic_filter, connection)
        try:
            if session.will_flag and not self._is_stopping:
                await self.publish(
                    session.will_topic,
                    bytes(session.will_message),
                    session.will_qos,
                    session.will_retain,
                    connection,
                )
        finally:
            del self._sessions[session.client_id]
            connection.ended.set()

    async def publish(
        self, topic: str, payload: bytes, qos: int, retain: bool, source: Connection | None
    ) -> None:
        """Write a message to all who subscribed to its topic, and wait for those that lag.

        Args:
            source: Who published; None for the broker itself.
        """
        if topic.startswith("$") or (self._has_rules and not await self._permits(topic, source)):
            logger.info("dropped a message that may not be published topic=%.80s", topic)
            return
        if retain:
            await self.retain_message(source and source.session, topic, payload, qos)
        heads: list[bytes | None] = [None, None]
        lagging = []
        for connection, granted in self._recipients(topic):
            level = min(qos, granted)
            head = heads[level]
            if head is None:
                head = heads[level] = publish_head(topic, len(payload), level, retain=False)
            if connection.deliver(head, payload, level) and connection is not source:
                lagging.append(connection)
        for connection in lagging:
            await connection.catch_up()

    async def _permits(self, topic: str, source: Connection | None) -> bool:
        return source is None or await self._topic_filtering(source.session, topic, Action.PUBLISH)

    async def _broadcast_message(
        self, _: object, topic: str, data: bytes, force_qos: int | None = None
    ) -> None:
        """What amqtt's plugins publish goes the same way."""
        await self.publish(topic, data, 1 if force_qos is None else force_qos, False, None)

    def _recipients(self, topic: str) -> _Recipients:
        """Who gets a topic's messages, each once, with the highest QoS of matching filters."""
        known = self._routes.get(topic)
        if known is not None:
            return known
        if self._wildcard_filters is None:
            self._wildcard_filters = [each for each in self._subscriptions if _is_wildcard(each)]
        matching = [each for each in self._wildcard_filters if self._matches(topic, each)]
        if topic in self._subscriptions:
            matching.append(topic)
        granted: dict[str, int] = {}
        for topic_filter in matching:
            for session, qos in self._subscriptions[topic_filter]:
                granted[session.client_id] = max(qos, granted.get(session.client_id, 0))
        recipients = tuple((self._sessions[client][1], qos) for client, qos in granted.items())
        if len(self._routes) >= _ROUTES_MAX:
            self._routes.clear()
        if len(topic) <= _ROUTE_TOPIC_LENGTH_MAX:
            self._routes[topic] = recipients
        return recipients

    async def add_subscription(self, subscription: tuple[str, int], session: Session) -> int:
        """Subscribe a session; a second time replaces the first.

        Returns:
            The granted QoS, 0 or 1, or 0x80 for a refusal.
        """
        topic_filter, qos = subscription
        connection: Connection = self._sessions[session.client_id][1]
        self.remove_subscription(topic_filter, connection)
        if not topic_filter or topic_filter.startswith("$share/"):
            return REFUSED
        granted: int = await super().add_subscription((topic_filter, min(qos, 1)), session)
        if granted != REFUSED:
            connection.filters[topic_filter] = granted
            self._forget_routes()
        return granted

    def remove_subscription(self, topic_filter: str, connection: Connection) -> None:
        """Unsubscribe; unknown filters are no error."""
        if connection.filters.pop(topic_filter, None) is None:
            return
        self._del_subscription(topic_filter, connection.session)
        if not self._subscriptions[topic_filter]:
            del self._subscriptions[topic_filter]
        self._forget_routes()

    def _forget_routes(self) -> None:
        self._routes.clear()
        self._wildcard_filters = None

    def send_retained(self, topic_filter: str, granted: int, connection: Connection) -> None:
        """What a new subscription begins with."""
        for topic, kept in self._retained_messages.items():
            if self._matches(topic, topic_filter):
                level = min(granted, kept.qos)
                head = publish_head(topic, len(kept.data), level, retain=True)
                connection.deliver(head, kept.data, level)

    async def retain_message(
        self, source_session: Session | None, topic_name: str, data: bytes, qos: int | None = None
    ) -> None:
        """Keep a topic's last message; an empty one forgets it."""
        if (
            topic_name not in self._retained_messages
            and len(self._retained_messages) >= RETAINED_MAX
        ):
            logger.warning("not retained, the limit is %d: topic=%.80s", RETAINED_MAX, topic_name)
            return
        await super().retain_message(source_session, topic_name, data, qos)

    async def shutdown(self) -> None:
        """Close the listener and every connection, without wills: nobody is left to read them."""
        self._is_stopping = True
        for server in self._servers.values():
            server.instance.close()
        while self._serving:
            for writer in self._serving.values():
                writer.transport.abort()
            await asyncio.wait(list(self._serving))
        await super().shutdown()


def _is_wildcard(topic_filter: str) -> bool:
    return "+" in topic_filter or "#" in topic_filter


async def _hang_up(writer: asyncio.StreamWriter) -> None:
    """Close in an orderly way, giving what is written a moment to leave."""
    writer.close()
    async with asyncio.timeout(_HANG_UP_S):
        await writer.wait_closed()
