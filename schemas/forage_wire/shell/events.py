"""What an MQTT connection tells its owner, and the will that it is given. Data only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from forage_wire.io import MessageReceived
from forage_wire.records import dataclass

__all__ = [
    "Connected",
    "Disconnected",
    "EndKind",
    "MessageReceived",
    "MessageTooLong",
    "PublishAcknowledged",
    "SubscribeDone",
    "TransportEvent",
    "Will",
]

EndKind = Literal["unreachable", "refused", "lost"]


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
    kind: EndKind


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
