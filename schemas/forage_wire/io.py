"""The events and commands that every core shares: what a connection tells, what it is told.

A shell reads everything there is, hands each event to its core, then `BatchEnded`, and carries
out the commands in order. `BatchEnded` also comes when `next_wakeup_ms` is reached.
"""

from forage_wire.records import dataclass

__all__ = [
    "BatchEnded",
    "Connected",
    "Disconnected",
    "MessageReceived",
    "Note",
    "Publish",
    "PublishAcknowledged",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Connected:
    """The broker took us and all subscriptions are made."""

    session: str
    """This connection's session: the process's random part and the connect counter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disconnected:
    """The connection is gone; what was published and not answered may be lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageReceived:
    """A message of one of our subscriptions."""

    topic: str
    payload: bytes
    retain: bool = False
    """Whether the broker had kept it (it may be old)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishAcknowledged:
    """The broker has a QoS 1 message whose `Publish` asked for a receipt."""

    receipt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchEnded:
    """Everything that was readable has been handed over, or a wake-up is due."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Publish:
    """Send a message; while disconnected it is dropped (the core repeats what must arrive)."""

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False
    receipt: int = 0
    """Not 0: answer with `PublishAcknowledged` when the broker has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Something for the log: cores do not log themselves."""

    level: str
    """debug, info, warning or error."""
    text: str
    """A sentence with `key=value` pairs."""
