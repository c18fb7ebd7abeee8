"""The smallest owner of MQTT connections: a loop that pumps them until something is true."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from forage_wire.address import BrokerAddress
from forage_wire.shell.loop import Loop
from forage_wire.shell.mqtt import (
    Disconnected,
    MessageReceived,
    MqttConnection,
    SubscribeDone,
    TransportEvent,
    Will,
)

__all__ = ["Owner", "Party", "now_ms"]

EventType = TypeVar("EventType", bound=TransportEvent)
_counter = itertools.count()


def now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class Party:
    """One connection and every event that it gave."""

    def __init__(self, connection: MqttConnection) -> None:
        self.connection = connection
        self.events: list[TransportEvent] = []

    def of(self, kind: type[EventType]) -> list[EventType]:
        return [event for event in self.events if isinstance(event, kind)]

    def summary(self) -> list[str]:
        """The last events, without payloads of megabytes."""
        return [repr(event)[:200] for event in self.events[-3:]]

    @property
    def messages(self) -> list[MessageReceived]:
        return self.of(MessageReceived)

    def read(self) -> None:
        self.events += self.connection.read(now_ms())
        self.connection.flush(now_ms())


class Owner:
    """Waits with a limit for what is to happen; every wait ends with a condition, not a time."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.parties: list[Party] = []

    def party(
        self,
        address: BrokerAddress,
        subscriptions: Sequence[tuple[str, int]] = (),
        **options: Any,
    ) -> Party:
        connection = MqttConnection(
            address,
            client_id=f"test-{next(_counter)}",
            subscriptions=subscriptions,
            **options,
        )
        party = Party(connection)
        self.parties.append(party)
        self.loop.register(connection, party.read)
        return party

    def online(
        self,
        address: BrokerAddress,
        subscriptions: Sequence[tuple[str, int]] = (),
        *,
        will: Will | None = None,
        **options: Any,
    ) -> Party:
        """A party that is connected and subscribed."""
        party = self.party(address, subscriptions, **options)
        party.connection.connect(now_ms(), will=will)
        self.until(lambda: bool(party.of(SubscribeDone) or party.of(Disconnected)))
        assert party.connection.connected, party.events
        return party

    def until(self, condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
        """Pump everything until `condition` holds."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, [party.summary() for party in self.parties]
            waits_ms = [50]
            for party in self.parties:
                party.connection.flush(now_ms())
                deadline_ms = party.connection.next_deadline_ms()
                if deadline_ms is not None:
                    waits_ms.append(deadline_ms - now_ms())
            self.loop.poll(max(0, min(waits_ms)) / 1000)
            for party in self.parties:
                deadline_ms = party.connection.next_deadline_ms()
                if deadline_ms is not None and deadline_ms <= now_ms():
                    party.read()

    def end_of(self, party: Party) -> Disconnected:
        """Wait for the end of the party's connection or attempt, and return it."""
        before = len(party.of(Disconnected))
        self.until(lambda: len(party.of(Disconnected)) > before)
        return party.of(Disconnected)[-1]

    def close(self) -> None:
        for party in self.parties:
            self.loop.unregister(party.connection)
            party.connection.close()
        self.loop.close()
