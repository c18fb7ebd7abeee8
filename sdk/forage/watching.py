"""Waiting until a controller says that it knows certain devices.

Owns a short-lived connection of its own, which listens to the controller's verdicts and says
nothing; nobody is asked and nothing is polled.
"""

import secrets
import time
from collections.abc import Sequence
from types import TracebackType

from forage.errors import DecodeError, ForageError, NotConnected
from forage.processes import LocalProcess
from forage_wire.address import BrokerAddress
from forage_wire.codec import decode_json
from forage_wire.documents import DeviceVerdict
from forage_wire.shell.loop import Loop
from forage_wire.shell.mqtt import (
    Disconnected,
    MessageReceived,
    MqttConnection,
    SubscribeDone,
)
from forage_wire.topics import Topics

__all__ = ["DeviceWatch"]


class DeviceWatch:
    """Listens to one controller's verdicts on its devices, from the `with` on."""

    def __init__(
        self, address: BrokerAddress, topics: Topics, controller: str, *, believes_retained: bool
    ) -> None:
        """Nothing is opened towards the broker before the `with`.

        Args:
            address: The broker.
            topics: Under the fleet's root.
            controller: Whose verdicts count.
            believes_retained: Whether a retained verdict counts: not where the broker was there
                before the controller.
        """
        self._address = address
        self._topics = topics
        self._believes_retained = believes_retained
        self._alive: set[str] = set()
        self._is_subscribed = False
        self._end: Disconnected | None = None
        self._connection = MqttConnection(
            address,
            client_id=f"cluster-{secrets.token_hex(8)}",
            subscriptions=[(topics.verdict(controller, "+"), 1)],
        )
        self._loop = Loop()

    def wake(self) -> None:
        """Look again at the processes; from any thread."""
        self._loop.wake()

    def subscribe(self, deadline_s: float) -> None:
        """Return when the broker has taken the subscription.

        Raises:
            NotConnected: It has not when `time.monotonic()` is `deadline_s`, or says no, or is
                not there.
        """
        while not self._is_subscribed:
            self._check(deadline_s)
            self._turn(deadline_s)

    def wait_for(
        self, devices: Sequence[str], services: Sequence[LocalProcess], deadline_s: float
    ) -> None:
        """Return when the services are ready and all devices are alive by the controller's word.

        Raises:
            ForageError: One of the services has ended, or one is not ready or a device unknown
                when `time.monotonic()` is `deadline_s`; or, as NotConnected, the broker failed us.
        """
        while True:
            for service in services:
                service.check()
            late = [
                service
                for service in services
                if not service.ready_line
                or (service.name in devices and service.name not in self._alive)
            ]
            if not late:
                return
            if time.monotonic() >= deadline_s:
                raise ForageError(late[0].complaint("was not ready in time"))
            self._check(None)
            self._turn(deadline_s)

    def _check(self, deadline_s: float | None) -> None:
        if self._end is not None:
            raise NotConnected(f"The broker {self._address}: {self._end.reason}.")
        if deadline_s is not None and time.monotonic() >= deadline_s:
            raise NotConnected(f"The broker {self._address} does not answer.")

    def _turn(self, deadline_s: float) -> None:
        """Wait until something happens, and take it in."""
        due_ms = self._connection.next_deadline_ms()
        due_s = deadline_s if due_ms is None else min(deadline_s, (due_ms + 1) / 1000)
        self._loop.poll(max(0.0, due_s - time.monotonic()))
        now_ms = _now_ms()
        for event in self._connection.read(now_ms):
            match event:
                case MessageReceived():
                    if self._believes_retained or not event.retain:
                        self._take_verdict(event)
                case SubscribeDone(refused=refused):
                    if refused:
                        reason = f"it refuses the subscription to {refused[0]}"
                        self._end = Disconnected(reason=reason, kind="refused")
                    self._is_subscribed = True
                case Disconnected():
                    self._end = event
                case _:
                    pass
        self._connection.flush(now_ms)

    def _take_verdict(self, message: MessageReceived) -> None:
        topic = self._topics.parse(message.topic)
        if topic is None or topic.branch != "verdict":
            return
        try:
            verdict = decode_json(message.payload, DeviceVerdict)
        except DecodeError:
            return
        if verdict.verdict == "alive":
            self._alive.add(topic.device)
        else:
            self._alive.discard(topic.device)

    def __enter__(self) -> "DeviceWatch":
        self._loop.register(self._connection, lambda: None)
        self._connection.connect(_now_ms())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.unregister(self._connection)
        self._connection.disconnect()
        self._connection.close()
        self._loop.close()


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000
