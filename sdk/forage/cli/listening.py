"""A connection that only listens: what `watch`, `run` and `demo` read beside the SDK's own.

Owns one thread and one MQTT connection, and hands messages to a function, in their order. A
connection that is lost is made again; what went by meanwhile is not repeated.
"""

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from random import Random
from types import TracebackType

from forage.config import ClientConfig
from forage.errors import ForageError, NotConnected, Refused
from forage_wire.shell.loop import Loop
from forage_wire.shell.mqtt import (
    Disconnected,
    MessageReceived,
    MqttConnection,
    ReconnectDelay,
    SubscribeDone,
)

__all__ = ["Listener", "Received"]

Received = MessageReceived

START_LIMIT_S = 10.0
SPREAD_S = 0.5


class Listener:
    """Calls `on_message` for every message of some topics, in a thread of its own.

    Args:
        config: Which broker, and how.
        filters: MQTT topic filters.
        on_message: Called in the listener's thread; an exception ends the listening (`wait`).
        on_change: Told in words when the connection is lost and when it is back.
    """

    def __init__(
        self,
        config: ClientConfig,
        filters: Sequence[str],
        on_message: Callable[[MessageReceived], None],
        on_change: Callable[[str], None] | None = None,
    ) -> None:
        self._config = config
        self._on_message = on_message
        self._on_change = on_change
        self._lock = threading.Lock()
        self._started = threading.Event()
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._is_leaving = False
        self._was_subscribed = False
        self._reconnect = ReconnectDelay(SPREAD_S, Random(secrets.randbits(64)))
        self._due_ms: int | None = None
        self._loop = Loop()
        self._connection = MqttConnection(
            config.address,
            client_id=f"listener-{secrets.token_hex(7)}",
            # A monitor may miss what it is too slow for; a broker must not queue for it.
            subscriptions=[(topic_filter, 0) for topic_filter in filters],
            tls_ca_file=config.tls_ca_file,
        )
        self._loop.register(self._connection, lambda: None)
        self._thread = threading.Thread(target=self._run, name="forage-listener", daemon=True)

    def start(self) -> "Listener":
        """Connect; returns when the subscriptions are made.

        Raises:
            NotConnected: There is no broker.
            Refused: It does not let us connect, or not subscribe to any of it.
        """
        self._thread.start()
        if not self._started.wait(START_LIMIT_S):
            self.close()
            raise NotConnected(f"The broker {self._config.address} does not answer.")
        if self._error is not None:
            self.close()
            raise self._error
        return self

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the end of the listening; False after `timeout_s`. Raises what ended it."""
        if not self._ended.wait(timeout_s):
            return False
        if self._error is not None:
            raise self._error
        return True

    def close(self) -> None:
        """Disconnect; no call of `on_message` follows."""
        self._is_leaving = True
        with self._lock:
            if not self._ended.is_set():
                self._loop.wake()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> "Listener":
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- its thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._connection.connect(_now_ms())
            while not self._is_leaving and self._error is None:
                self._turn()
        # Whatever `on_message` raises is for whoever waits.
        except BaseException as error:
            self._error = error
        finally:
            self._connection.disconnect()
            self._connection.close()
            with self._lock:
                self._ended.set()
                self._loop.close()
            self._started.set()

    def _turn(self) -> None:
        due = [at for at in (self._connection.next_deadline_ms(), self._due_ms) if at is not None]
        wait_s = max(0.0, (min(due) + 1 - _now_ms()) / 1000) if due else None
        self._loop.poll(wait_s)
        now_ms = _now_ms()
        if self._due_ms is not None and now_ms >= self._due_ms:
            self._due_ms = None
            self._connection.connect(now_ms)
        for event in self._connection.read(now_ms):
            match event:
                case MessageReceived():
                    if not self._is_leaving:
                        self._on_message(event)
                case SubscribeDone():
                    self._on_subscribed(event)
                case Disconnected():
                    self._on_disconnected(event, now_ms)
                case _:
                    pass
        self._connection.flush(now_ms)

    def _on_subscribed(self, event: SubscribeDone) -> None:
        if event.refused and not event.granted:
            self._error = Refused(
                f"The broker {self._config.address} does not allow this login to read "
                f"{', '.join(event.refused)}."
            )
            return
        self._reconnect.reset()
        if self._was_subscribed:
            self._tell("The broker is back.")
        self._was_subscribed = True
        self._started.set()

    def _on_disconnected(self, event: Disconnected, now_ms: int) -> None:
        if not self._was_subscribed:
            kind: type[ForageError] = Refused if event.kind == "refused" else NotConnected
            self._error = kind(f"There is no broker at {self._config.address}: {event.reason}.")
            return
        self._tell(f"The broker is gone ({event.reason}); waiting for it.")
        self._due_ms = now_ms + round(1000 * self._reconnect.next_s())

    def _tell(self, text: str) -> None:
        if self._on_change is not None:
            self._on_change(text)


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000
