"""The one MQTT connection that the shells of agent, controller and client share.

Owns everything between a broker's address and a list of events: name resolution and TCP and TLS
connect (in a helper thread, so that a dead address never freezes the owner's loop), the MQTT 3.1.1
session, subscriptions, keepalive, read buffering and write corking. It has no loop of its own and
calls nobody back: the owner waits for `fileno()` to become readable (or for `next_deadline_ms()`),
then calls `read()` and gets what happened, in order.

The MQTT library (paho) is an implementation detail: none of its types appear here.

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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

__all__ = [
    "Address",
    "Connected",
    "Disconnected",
    "MessageReceived",
    "MessageTooLong",
    "MqttConnection",
    "PublishAcknowledged",
    "ReconnectDelay",
    "SubscribeDone",
    "TransportEvent",
    "Will",
]


class Address(Protocol):
    """What is needed of a broker's address; `forage_wire.address.BrokerAddress` has it."""

    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def tls(self) -> bool: ...
    @property
    def username(self) -> str | None: ...
    @property
    def password(self) -> str | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Will:
    """What the broker publishes for us if the connection ends without a goodbye."""

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Connected:
    """The broker accepted us, and the subscriptions were sent. `publish` works from here on."""

    session_present: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscribeDone:
    """Every subscription was answered, after retries.

    `granted` maps topic filters to the QoS granted; `refused` are those that the broker refused
    four times (three times as asked, then at QoS 0).
    """

    granted: Mapping[str, int]
    refused: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Disconnected:
    """The connection, or the attempt at one, is over; the next step is `connect`.

    `kind`: "unreachable" (no TCP, TLS or MQTT answer; worth a retry), "refused" (the broker
    answered and does not want us: credentials, rights, client id, protocol version; a retry
    changes nothing by itself) or "lost" (it had been accepted before). `reason` is one clear
    phrase that names what happened and fits after "broker host:port: ".
    """

    reason: str
    kind: Literal["unreachable", "refused", "lost"]


@dataclass(frozen=True, slots=True)
class MessageReceived:
    """One message. Positional: it is made for each message on the hot path."""

    topic: str
    payload: bytes
    qos: int
    retain: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageTooLong:
    """A message above `packet_bytes_limit` was skipped, and acknowledged, without being kept."""

    topic: str
    packet_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishAcknowledged:
    """The broker has the QoS 1 message that was published with `confirm=True`; no more than that."""

    message_id: int


TransportEvent = (
    Connected
    | SubscribeDone
    | Disconnected
    | MessageReceived
    | MessageTooLong
    | PublishAcknowledged
)


class MqttConnection:
    """One connection at a time to one broker; reconnecting is the owner's policy.

    Not thread-safe: the owner calls from one thread, or under one lock. Another thread may wait
    for `fileno()` meanwhile; a `flush` elsewhere wakes it if it has to.

    All times are the owner's monotonic milliseconds.
    """

    def __init__(
        self,
        address: Address,
        *,
        client_id: str,
        subscriptions: Sequence[tuple[str, int]] = (),
        keepalive_s: int = 10,
        connect_timeout_ms: int = 10_000,
        packet_bytes_limit: int = 4 << 20,
        unsent_bytes_max: int = 64 << 20,
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
            unsent_bytes_max: `publish` refuses while more than this waits for the kernel.
            tls_ca_file: PEM file of the authority that signs the broker's certificate, in place
                of the system's.
        """
        raise NotImplementedError

    @property
    def connected(self) -> bool:
        """The broker has accepted us and we know of no end: `publish` works."""
        raise NotImplementedError

    @property
    def unsent_bytes(self) -> int:
        """Bytes published or corked that the kernel has not taken."""
        raise NotImplementedError

    @property
    def unacknowledged(self) -> int:
        """QoS 1 messages of this connection whose PUBACK is missing."""
        raise NotImplementedError

    def fileno(self) -> int:
        """The same descriptor for life: readable when `read` has something to do.

        That includes room in the kernel for a send that was cut short, and the end of a connect.
        """
        raise NotImplementedError

    def connect(self, now_ms: int, *, will: Will | None = None) -> None:
        """Begin to connect; returns at once. `Connected` or `Disconnected` will come from `read`.

        Any connection or attempt before is aborted without an event.
        """
        raise NotImplementedError

    def read(self, now_ms: int) -> list[TransportEvent]:
        """All that happened: one large receive, timers, continued sends. Never blocks.

        Call it when `fileno()` is readable and when `next_deadline_ms()` has come; calling it at
        any other time is harmless. PUBACKs for what it returns leave with the next `flush`.
        """
        raise NotImplementedError

    def next_deadline_ms(self) -> int | None:
        """When `read` has to be called even if `fileno()` is silent; None: never."""
        raise NotImplementedError

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
            The message id; or None, and nothing is kept, where there is no connection, or more
            than `unsent_bytes_max` bytes or 65,535 messages are outstanding: the ends send again.

        Raises:
            ValueError: A wildcard in the topic, or QoS 2.
        """
        raise NotImplementedError

    def flush(self, now_ms: int) -> None:
        """Send all that is corked with one system call; what the kernel refuses goes on later.

        Never blocks and never fails: a broken connection shows at the next `read`.
        """
        raise NotImplementedError

    def disconnect(self, *, timeout_s: float = 1.0) -> None:
        """Say goodbye (the broker drops the will), after all that was published. No event follows.

        Blocks until the broker has closed its end, at most `timeout_s`.
        """
        raise NotImplementedError

    def abort(self) -> None:
        """Close without goodbye: the broker publishes the will. No event follows."""
        raise NotImplementedError

    def close(self) -> None:
        """Abort, and give `fileno()` back. The object is of no use afterwards."""
        raise NotImplementedError


class ReconnectDelay:
    """How long to wait before each reconnect, so that a fleet does not come back as one.

    The first after uniform(0, spread); then full jitter: uniform(0, min(30 s, 1 s, 2 s, 4 s, …)).
    """

    LIMIT_S = 30.0

    def __init__(self, spread_s: float, random: RandomSource) -> None:
        """`spread_s` may be assigned later, when the controller announces another."""
        self.spread_s = spread_s
        self._random = random
        self._attempts = 0

    def next_s(self) -> float:
        """Seconds to wait before the next attempt; each call counts as one attempt."""
        raise NotImplementedError

    def reset(self) -> None:
        """A connection was accepted: the next delay is a first one."""
        self._attempts = 0


class RandomSource(Protocol):
    """The part of `random.Random` that is used."""

    def uniform(self, a: float, b: float, /) -> float: ...
