"""The client's core on its MQTT connection: events in, messages out, and connecting again.

Not thread-safe: whoever calls holds the network's lock. What the core orders besides messages is
kept in `deferred` for the network thread, which carries it out without the lock.
"""

import logging
import os
import time

from forage.core.client import ClientCore
from forage.core.commands import Command
from forage.core.events import Event
from forage.errors import ForageError, NotConnected, Refused
from forage_wire.address import BrokerAddress
from forage_wire.io import BatchEnded, Connected, Disconnected, Publish
from forage_wire.shell import mqtt
from forage_wire.shell.loop import Loop

__all__ = ["Line", "base32", "now_ms", "random_digits"]

logger = logging.getLogger(__name__)

_BATCH_ENDED = BatchEnded()
_DIGITS = "0123456789abcdefghijklmnopqrstuv"


def base32(number: int) -> str:
    """A number with the digits 0-9 and a-v, as task ids have it."""
    text = ""
    while True:
        number, digit = divmod(number, 32)
        text = _DIGITS[digit] + text
        if not number:
            return text


def random_digits(count: int) -> str:
    """Digits as of `base32` that nobody can guess."""
    # A byte for each: 256 is a multiple of 32. (`secrets` takes its time to import.)
    return "".join([_DIGITS[byte % 32] for byte in os.urandom(count)])


def now_ms() -> int:
    """Monotonic milliseconds."""
    return time.monotonic_ns() // 1_000_000


class Line:
    """Core, connection and loop of one client.

    Args:
        address: The broker's.
        core: A fresh core for this connection.
        welcome_s: How long the broker may take to answer.
        tls_ca_file: See `MqttConnection`.

    Attributes:
        deferred: What the core ordered and the network thread is to carry out.
        error: Why the first connection failed; None while it may still come about.
        was_welcomed: A controller has answered once: from now on everything is waited for.
    """

    def __init__(
        self,
        address: BrokerAddress,
        core: ClientCore,
        *,
        welcome_s: float,
        tls_ca_file: str | None,
    ) -> None:
        self.address = address
        self.core = core
        self.deferred: list[Command] = []
        self.error: ForageError | None = None
        self.was_welcomed = False
        self._loop = Loop()
        # A client id that nobody else can guess; 23 characters are what every broker takes.
        self._connection = mqtt.MqttConnection(
            address,
            client_id=f"{core.client}-{random_digits(9)}",
            subscriptions=core.subscriptions(),
            connect_timeout_ms=max(1, round(welcome_s * 1000)),
            tls_ca_file=tls_ca_file,
        )
        self._loop.register(self._connection, _nothing)
        self._start = os.urandom(8).hex()
        self._connect_count = 0
        self._reconnect = mqtt.ReconnectDelay(0.5, mqtt.SystemRandom())
        self._reconnect_due_ms: int | None = None
        self._complaint = ""
        """What is wrong with the connection, as it was last logged."""
        self._has_events = False
        """The core was told something since its last batch ended."""
        self._has_corked = False
        """There is something to send, or to acknowledge to the broker."""
        self._core_due_ms: int | None = None
        self._sleeping_until_ms: int | None = 0
        """When the network thread wakes by itself; 0: it is awake, None: never."""

    # -- the core -------------------------------------------------------------------------------

    def handle(self, event: Event, now: int) -> None:
        """Hand an event to the core; messages that come of it are corked."""
        self._has_events = True
        for command in self.core.handle(event, now):
            if type(command) is Publish:
                self._has_corked = True
                self._connection.publish(
                    command.topic, command.payload, qos=command.qos, retain=command.retain
                )
            else:
                self.deferred.append(command)

    def end_batch(self, now: int) -> None:
        """Let the core see to all that it was told, if there was anything, or if its time is up."""
        if self._has_events or (self._core_due_ms is not None and now >= self._core_due_ms):
            self.handle(_BATCH_ENDED, now)
            self._has_events = False
            self._core_due_ms = self.core.next_wakeup_ms()

    def finish_batch(self, now: int) -> None:
        """Send what came of a caller's events; the network thread does what is left of it."""
        self.end_batch(now)
        self.flush(now)
        if self.deferred:
            self.wake()
        elif self._core_due_ms is not None:
            self.wake_before(self._core_due_ms)

    def flush(self, now: int) -> None:
        """Send what is corked."""
        if self._has_corked:
            self._has_corked = False
            self._connection.flush(now)

    # -- sleeping and waking ----------------------------------------------------------------------

    def wake(self) -> None:
        """Make the network thread take its next turn now."""
        self._loop.wake()

    def wake_before(self, due_ms: int) -> None:
        """Make sure that the network thread does not sleep beyond `due_ms`."""
        if self._sleeping_until_ms is None or self._sleeping_until_ms > due_ms:
            self._loop.wake()

    def fall_asleep(self, due_ms: int | None) -> int | None:
        """The network thread is about to `sleep`: until when, at the latest (None: for ever)."""
        if self.deferred or self._has_events:
            due_ms = 0
        else:
            connection_due_ms = self._connection.next_deadline_ms()
            for each in (self._core_due_ms, connection_due_ms, self._reconnect_due_ms):
                if each is not None and (due_ms is None or each < due_ms):
                    due_ms = each
        self._sleeping_until_ms = due_ms
        return due_ms

    def sleep(self, until_ms: int | None) -> None:
        """Wait for the connection, a wake-up, or the time. Without the lock."""
        self._loop.poll(None if until_ms is None else max(0.0, (until_ms - now_ms()) / 1000))

    # -- the connection -----------------------------------------------------------------------------

    def dial(self, now: int) -> None:
        """Begin to connect."""
        self._reconnect_due_ms = None
        will = self.core.will("")
        self._connection.connect(
            now,
            will=mqtt.Will(topic=will.topic, payload=will.payload, qos=will.qos, retain=True),
        )

    def read(self, now: int) -> bool:
        """Hand over all that happened on the connection; whether messages came."""
        self._sleeping_until_ms = 0
        if self._reconnect_due_ms is not None and now >= self._reconnect_due_ms:
            self.dial(now)
        has_news = False
        for event in self._connection.read(now):
            match event:
                case mqtt.MessageReceived():
                    self._has_corked = has_news = True
                    self.handle(event, now)
                case mqtt.SubscribeDone():
                    self._on_subscribed(event, now)
                case mqtt.Disconnected():
                    self._on_disconnected(event, now)
                case mqtt.MessageTooLong():
                    logger.warning(
                        "message dropped topic=%s bytes=%d", event.topic, event.packet_bytes
                    )
                case _:
                    pass
        return has_news

    def _on_subscribed(self, event: mqtt.SubscribeDone, now: int) -> None:
        if event.refused:
            self.fail(
                Refused(
                    f"The broker {self.address} does not let this login read "
                    f"{', '.join(event.refused)}; it needs the rights of a client for the user "
                    f"{self.core.user!r}."
                )
            )
        self._reconnect.reset()
        if self._complaint:
            self._complaint = ""
            logger.warning("the broker %s is back", self.address)
        self._connect_count += 1
        self.handle(Connected(session=f"{self._start}-{self._connect_count}"), now)

    def _on_disconnected(self, event: mqtt.Disconnected, now: int) -> None:
        self.handle(Disconnected(), now)
        if not self.was_welcomed:
            if event.kind == "refused":
                what = Refused(f"The broker {self.address} does not take us: {event.reason}.")
                self.fail(what)
            else:
                stop = "" if event.reason.endswith("?") else "."
                self.fail(
                    NotConnected(
                        f"There is no broker at {self.address}: {event.reason}{stop} Start one with "
                        "`forage broker` (or a whole fleet with `forage up`), or give the right "
                        "address to connect() or in FORAGE_BROKER."
                    )
                )
            return
        self._reconnect.spread_s = self.core.reconnect_spread_ms / 1000
        wait_s = self._reconnect.next_s()
        self._reconnect_due_ms = now + round(wait_s * 1000)
        if event.reason != self._complaint:
            # Once for each reason: a broker that is away for a night is one line or two.
            self._complaint = event.reason
            logger.warning(
                "no connection to the broker %s: %s; trying again for as long as it takes",
                self.address,
                event.reason,
            )

    def fail(self, error: ForageError) -> None:
        """What prevents the first welcome; afterwards the connection heals itself."""
        if not self.was_welcomed and self.error is None:
            self.error = error

    def say_goodbye(self, timeout_s: float) -> None:
        """Publish our absence, and end the connection in order."""
        goodbye = self.core.will("")
        self._connection.publish(goodbye.topic, goodbye.payload, retain=goodbye.retain)
        self._connection.disconnect(timeout_s=timeout_s)

    def close(self) -> None:
        """Give the descriptors back."""
        self._connection.close()
        self._loop.close()


def _nothing() -> None:
    """The loop wakes for the connection; the turn itself reads it."""
