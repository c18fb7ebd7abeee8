"""What a controller's process does whatever its role: one thread between broker, store and core.

    wait → read everything → core → carry out its commands in order → one send

It owns the only clock, the connection's life (when to connect, with which session, what to say of
it) and the process's end. What anything means is the core's.
"""

import logging
import os
import select
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from random import Random
from typing import Any, Protocol

from forage_controller.config import PROGRAM, ControllerConfig
from forage_controller.core.commands import Exit
from forage_controller.core.operations import MachineTime
from forage_wire import io
from forage_wire.shell.loop import Loop
from forage_wire.shell.mqtt import (
    Connected,
    Disconnected,
    MessageReceived,
    MessageTooLong,
    MqttConnection,
    PublishAcknowledged,
    ReconnectDelay,
    SubscribeDone,
    TransportEvent,
    Will,
)
from forage_wire.shell.notify import Watchdog, sd_notify

__all__ = ["Core", "Identity", "Program", "machine_time", "now_ms"]

logger = logging.getLogger(__name__)

# The controller itself comes back soon: the fleet's first reconnects are spread over more.
RECONNECT_SPREAD_S = 0.2
# What is read before the core decides: enough that nothing readable stays behind a timer, an end
# where a flood never ends.
READS_MAX = 64
DISCONNECT_TIMEOUT_S = 2.0
# Another controller rules: the core has said, or left unsaid, what is right.
EXIT_OTHER_RULES = 2

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


# The core rebuilds what it recovers at time 0, so that is when we start, not when the machine did:
# else everything would be as old as the machine's uptime, and perhaps past its time.
_START_NS = time.monotonic_ns()


def now_ms() -> int:
    """Milliseconds since this process began."""
    return (time.monotonic_ns() - _START_NS) // 1_000_000


def machine_time() -> MachineTime:
    """This machine's clock: how long it has been awake since which boot."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # A container may have a clock of its own.
        boot += " " + os.readlink("/proc/self/ns/time")
    except OSError:
        boot = ""
    return MachineTime(boot=boot, boot_ms=time.monotonic_ns() // 1_000_000, now_ms=now_ms())


class Core(Protocol):
    """What the cores of both roles have in common."""

    def will(self, session: str) -> io.Publish:
        """What the broker is to say of us when our connection breaks."""

    def goodbye(self) -> Sequence[Any]:
        """What to publish before an orderly end."""

    def handle(self, event: Any, now_ms: int) -> Sequence[Any]:
        """Advance by one event; the commands, to be carried out in order."""

    def next_wakeup_ms(self) -> int | None:
        """When `BatchEnded` is due without any other event."""


@dataclass(slots=True)
class Identity:
    """One process start, whatever roles it has one after the other."""

    start: str
    """16 hexadecimal digits: the sessions' random part."""
    client_id_part: str
    """Another random text, for the MQTT client id, which nobody may guess."""
    connects: int = field(default=0)
    """How often it has connected."""


class Program:
    """`run` until `stop` (from a signal handler or another thread) or the core's own end."""

    def __init__(
        self,
        config: ControllerConfig,
        identity: Identity,
        core: Core,
        subscriptions: list[tuple[str, int]],
        random: Random,
    ) -> None:
        """Nothing is opened towards the broker yet."""
        self._config = config
        self._identity = identity
        self._loop = Loop()
        self._core = core
        self._arrivals: SimpleQueue[Any] = SimpleQueue()
        self._connection = MqttConnection(
            config.broker,
            client_id=f"{config.core.name}-{identity.client_id_part}",
            subscriptions=subscriptions,
            tls_ca_file=str(config.tls_ca_file) if config.tls_ca_file is not None else None,
        )
        self._readable = select.poll()
        self._readable.register(self._connection, select.POLLIN)
        self._delay = ReconnectDelay(RECONNECT_SPREAD_S, random)
        self._connect_at_ms: int | None = now_ms()
        self._session = ""
        self._has_heard = False
        """The core may have messages of this connection."""
        self._last_complaint = ""
        self._commands: list[Any] = []
        self._has_news = True
        """The core has had an event since its last batch ended."""
        self._core_due_ms: int | None = None
        self._receipts: dict[int, int] = {}
        """MQTT message id → the receipt that the core asked for."""
        self._watchdog = Watchdog()
        self._stop_code: int | None = None
        self._exit_code: int | None = None

    # ------------------------------------------------------------------ what a role adds

    def begin(self) -> None:
        """Start what runs beside the loop."""
        raise NotImplementedError

    def carry_out(self, command: Any) -> None:
        """Carry out a command that is of one role alone."""
        raise NotImplementedError

    def carried_out(self) -> None:
        """A batch's commands are carried out and sent."""
        raise NotImplementedError

    # ------------------------------------------------------------------ for everybody

    def stop(self, code: int) -> None:
        """Say goodbye and end with this code; from a signal handler or any thread."""
        self._stop_code = code
        self._loop.wake()

    def put(self, event: Any) -> None:
        """Hand the core an event, from any thread."""
        self._arrivals.put(event)
        self._loop.wake()

    def run(self) -> int:
        """Serve until the end; the answer is the exit code."""
        self.begin()
        self._loop.register(self._connection, lambda: None)
        logger.info(
            "controller=%s broker=%s state_dir=%s",
            self._config.core.name,
            self._config.broker,
            self._config.state_dir,
        )
        while self._exit_code is None:
            self._loop.poll(self._timeout_s())
            self._turn()
        return self._exit_code

    # ------------------------------------------------------------------ one turn

    def _timeout_s(self) -> float | None:
        due_ms = self._core_due_ms
        for other_ms in (
            self._connection.next_deadline_ms(),
            self._connect_at_ms,
            self._watchdog.due_ms(),
        ):
            if other_ms is not None and (due_ms is None or other_ms < due_ms):
                due_ms = other_ms
        # One millisecond of rounding, lest we come just before the time and turn in vain.
        return None if due_ms is None else max(0, due_ms - now_ms() + 1) / 1000

    def _turn(self) -> None:
        if self._stop_code is not None:
            self._end(self._stop_code)
            return
        time_ms = now_ms()
        self._watchdog.feed(time_ms)
        # Everything readable comes before any timer: after a pause of ours (a frozen process, a
        # suspended machine) the answers of those whose time is up may lie in the socket.
        for _ in range(READS_MAX):
            for event in self._connection.read(time_ms):
                self._on_transport(event)
            if not self._readable.poll(0):
                break
            time_ms = now_ms()
        self._take_arrivals()
        time_ms = now_ms()
        if self._has_news or (self._core_due_ms is not None and time_ms >= self._core_due_ms):
            # Most turns bring a PUBACK and nothing that the core wants to know.
            self._handle(io.BatchEnded())
            self._carry_out()
            self._has_news = False
            self._core_due_ms = self._core.next_wakeup_ms()
        if self._connect_at_ms is not None and time_ms >= self._connect_at_ms:
            self._connect(time_ms)

    def _handle(self, event: Any) -> None:
        self._has_news = True
        self._commands += self._core.handle(event, now_ms())

    def _carry_out(self) -> None:
        """The commands in order, then one handover to the store and one send."""
        commands, self._commands = self._commands, []
        self._execute(commands)
        # First what somebody waits for; the store's thread wants our interpreter lock.
        self._connection.flush(now_ms())
        self.carried_out()

    def _execute(self, commands: Iterable[Any]) -> None:
        publish = self._connection.publish
        for command in commands:
            match command:
                case io.Publish():
                    message_id = publish(
                        command.topic,
                        command.payload,
                        qos=command.qos,
                        retain=command.retain,
                        confirm=command.receipt != 0,
                    )
                    if command.receipt and message_id is not None:
                        self._receipts[message_id] = command.receipt
                case io.Note():
                    logger.log(LEVELS[command.level], "%s", command.text)
                case Exit():
                    self._on_exit(command)
                case _:
                    self.carry_out(command)

    def _take_arrivals(self) -> None:
        while not self._arrivals.empty():
            self._handle(self._arrivals.get_nowait())

    # ------------------------------------------------------------------ the connection

    def _connect(self, time_ms: int) -> None:
        self._connect_at_ms = None
        self._identity.connects += 1
        self._session = f"{self._identity.start}-{self._identity.connects}"
        will = self._core.will(self._session)
        self._connection.connect(
            time_ms,
            will=Will(topic=will.topic, payload=will.payload, qos=will.qos, retain=will.retain),
        )

    def _on_transport(self, event: TransportEvent) -> None:
        match event:
            case MessageReceived():
                self._handle(event)
            case PublishAcknowledged():
                receipt = self._receipts.pop(event.message_id, None)
                if receipt is not None:
                    self._handle(io.PublishAcknowledged(receipt=receipt))
            case Connected():
                # Nothing is said before every subscription is answered, but messages may come.
                self._has_heard = True
            case SubscribeDone():
                self._on_subscribed(event)
            case Disconnected():
                self._on_disconnected(event.reason)
            case MessageTooLong():
                logger.warning(
                    "dropped a message of %d bytes topic=%s", event.packet_bytes, event.topic
                )

    def _on_subscribed(self, event: SubscribeDone) -> None:
        if event.refused:
            # A controller that cannot hear its fleet must not rule it.
            self._connection.abort()
            self._on_disconnected(f"it refuses the subscription to {event.refused[0]}")
            return
        self._delay.reset()
        self._last_complaint = ""
        logger.info("connected broker=%s session=%s", self._config.broker, self._session)
        self._handle(io.Connected(session=self._session))

    def _on_disconnected(self, reason: str) -> None:
        self._receipts.clear()
        if self._has_heard:
            self._has_heard = False
            self._handle(io.Disconnected())
        if reason != self._last_complaint:
            # Once for each reason: a broker that is away for a night is one line.
            self._last_complaint = reason
            logger.warning(
                "broker %s: %s; trying again until it answers", self._config.broker, reason
            )
            sd_notify(f"STATUS=waiting for the broker {self._config.broker}: {reason}")
        self._connect_at_ms = now_ms() + round(self._delay.next_s() * 1000)

    # ------------------------------------------------------------------ the end

    def _on_exit(self, command: Exit) -> None:
        if self._exit_code is None:
            sys.stderr.write(f"{PROGRAM}: {command.reason}\n")
            if command.code != EXIT_OTHER_RULES:
                self._execute(self._core.goodbye())
            self._leave(command.code)

    def _end(self, code: int) -> None:
        """Told to stop: our last word, after what is still to be said."""
        logger.info("stopping")
        self._execute(self._core.goodbye())
        self._leave(code)

    def _leave(self, code: int) -> None:
        if code != EXIT_OTHER_RULES or not self._config.standby:
            sd_notify("STOPPING=1")
        self._end_role(code)

    def _end_role(self, code: int) -> None:
        # With a goodbye, so that the will does not overwrite whoever rules in our place.
        self._connection.disconnect(timeout_s=DISCONNECT_TIMEOUT_S)
        self._exit_code = code
