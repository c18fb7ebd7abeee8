"""The agent's shell: one thread and one selector over the broker and the workers.

Reads everything there is, hands it to the core, carries out what the core orders, sends once.
Decides nothing but when to connect again and when to look at the machine.
"""

import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from types import FrameType
from typing import Any, assert_never

from forage_agent.config import Config
from forage_agent.core.agent import AgentCore
from forage_agent.core.events import (
    CapabilitiesMeasured,
    Command,
    DrainAsked,
    Event,
    ExitAsked,
    ExitProcess,
    InputDropped,
    KillWorker,
    LeaseWorker,
    RunCalls,
    StartWorker,
    TakeBack,
)
from forage_agent.core.settings import PROGRESS_EVERY_MS, Settings
from forage_agent.shell.clock import now_ms
from forage_agent.shell.host import (
    HostReader,
    core_strength,
    cores,
    memory_bytes,
    network_class,
    network_of,
    os_name,
    python_minor,
)
from forage_agent.shell.workers import Workers
from forage_agent.shell.zygote_process import ZygoteProcess
from forage_wire import io
from forage_wire.limits import CALL_BYTES_MAX
from forage_wire.messages import DeviceCapabilities
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
from forage_wire.topics import Topics

__all__ = ["Agent", "capabilities_of"]

logger = logging.getLogger(__name__)

_MEASURE_EVERY_MS = 1_000
"""While the device has work."""
_MEASURE_EVERY_MS_IDLE = 10_000
_Handler = Callable[[int, FrameType | None], Any] | int | None

_BATCH_ENDED = io.BatchEnded()
_GOODBYE_S = 1.0
_INTERRUPTED = 130


class _Entropy:
    """The kernel's randomness: two agents started at once must not draw alike."""

    def uniform(self, a: float, b: float, /) -> float:
        """A number between `a` and `b`."""
        return a + (b - a) * int.from_bytes(os.urandom(6), "big") / 2**48


def capabilities_of(config: Config) -> DeviceCapabilities:
    """What this device is and has, as far as it is known before it is connected."""
    memory = memory_bytes()
    # One call at its limit must always fit.
    queue_bytes_max = config.queue_bytes_max or max(memory // 16, CALL_BYTES_MAX + (1 << 20))
    return DeviceCapabilities(
        session="",
        slots=config.slots or cores(),
        cores=cores(),
        strength=core_strength(config.state_dir),
        memory_bytes=memory,
        queue_bytes_max=queue_bytes_max,
        packet_bytes_max=config.packet_bytes_max,
        arch=os.uname().machine,
        os=os_name(),
        python=python_minor(),
        broker=str(replace(config.broker, username=None, password=None)),
        labels=dict(config.labels),
        resources=dict(config.resources),
        functions={name: function.version for name, function in config.functions.items()},
    )


class Agent:
    """One agent process.

    Args:
        config: Everything that is configured.
        ready: Called once, when the device is online for the first time.
        zygote: Where workers come from, when it was started ahead of the agent.
    """

    def __init__(
        self, config: Config, ready: Callable[[], None], zygote: ZygoteProcess | None = None
    ) -> None:
        self._config = config
        self._ready = ready
        self._capabilities = capabilities_of(config)
        self._core = AgentCore(
            Settings(
                device=config.name,
                root=config.root,
                capabilities=self._capabilities,
                functions=dict(config.functions),
                software=config.software,
                packet_bytes_max=config.packet_bytes_max,
            )
        )
        self._events: list[Event] = []
        self._loop = Loop()
        self._workers = Workers(self._loop, self._events.append, now_ms, zygote)
        self._connection = MqttConnection(
            config.broker,
            client_id=f"{config.name}-{os.urandom(8).hex()}",
            subscriptions=Topics(config.root).device_subscriptions(config.name),
            tls_ca_file=config.tls_ca_file or None,
        )
        self._loop.register(self._connection, self._read_connection)
        self._delay = ReconnectDelay(0.5, _Entropy())
        # Sessions: drawn at start, counted up with every attempt to connect.
        self._start = os.urandom(8).hex()
        self._attempts = 0
        self._connect_ms: int | None = 0
        self._transport_ms: int | None = None
        """When the connection is to be read though it may be silent."""
        self._is_subscribed = False
        self._was_ready = False
        self._reason = ""
        self._receipts: dict[int, int] = {}
        self._early: list[Event] = []
        self._host = HostReader()
        self._measure_ms = 0
        self._progress_ms = 0
        self._watchdog = Watchdog()
        self._exit: ExitProcess | None = None

    def run(self) -> int:
        """Serve until told to end; the answer is the exit code."""
        previous = self._take_signals()
        try:
            while self._exit is None:
                now = now_ms()
                self._do_what_is_due(now)
                self._hand_over(now)
                self._loop.poll(self._wait_s())
            return self._end(self._exit)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            self._workers.close()
            self._connection.abort()
            self._loop.unregister(self._connection)
            self._loop.close()

    # -- one turn -------------------------------------------------------------------------------

    def _hand_over(self, now: int) -> None:
        """All events to the core, all its orders to where they belong, one send."""
        # Not by `clear`: a signal may add one at any moment.
        events = self._events[:]
        del self._events[: len(events)]
        if not events and not _is_due(self._core.next_wakeup_ms(), now):
            return
        events.append(_BATCH_ENDED)
        for event in events:
            for command in self._core.handle(event, now):
                self._carry_out(command)
        self._connection.flush(now)

    def _carry_out(self, command: Command) -> None:
        match command:
            case io.Publish():
                self._publish(command)
            case RunCalls() | StartWorker() | TakeBack() | KillWorker() | LeaseWorker():
                self._workers.carry_out(command)
            case io.Note():
                logger.log(logging.getLevelNamesMapping()[command.level.upper()], command.text)
            case ExitProcess():
                self._exit = command
            case _:
                assert_never(command)

    def _publish(self, command: io.Publish) -> None:
        message_id = self._connection.publish(
            command.topic,
            command.payload,
            qos=command.qos,
            retain=command.retain,
            confirm=command.receipt != 0,
        )
        if command.receipt and message_id is not None:
            self._receipts[message_id] = command.receipt

    def _do_what_is_due(self, now: int) -> None:
        if _is_due(self._transport_ms, now):
            self._read_connection()
        if self._connect_ms is not None and now >= self._connect_ms:
            self._connect(now)
        if now >= self._measure_ms:
            is_busy = self._core.is_busy
            self._measure_ms = now + (_MEASURE_EVERY_MS if is_busy else _MEASURE_EVERY_MS_IDLE)
            self._events.append(self._host.read())
        if now >= self._progress_ms and self._core.is_busy:
            self._progress_ms = now + PROGRESS_EVERY_MS
            self._workers.read_progress()
        self._watchdog.feed(now)

    def _wait_s(self) -> float | None:
        if self._events or self._exit is not None:
            return 0.0
        self._transport_ms = self._connection.next_deadline_ms()
        due_ms = self._measure_ms
        for moment in (
            self._core.next_wakeup_ms(),
            self._transport_ms,
            self._connect_ms,
            self._progress_ms if self._core.is_busy else None,
            self._watchdog.due_ms(),
        ):
            if moment is not None and moment < due_ms:
                due_ms = moment
        # Rounded up to the clock's next millisecond: a wake-up before its time does nothing.
        return max(0.0, due_ms / 1_000 - time.clock_gettime(time.CLOCK_BOOTTIME))

    # -- the connection -------------------------------------------------------------------------

    def _connect(self, now: int) -> None:
        self._connect_ms = None
        self._attempts += 1
        will = self._core.will(self._session)
        self._connection.connect(
            now, will=Will(topic=will.topic, payload=will.payload, qos=will.qos, retain=True)
        )

    @property
    def _session(self) -> str:
        return f"{self._start}-{self._attempts}"

    def _read_connection(self) -> None:
        for event in self._connection.read(now_ms()):
            self._on_transport(event)

    def _on_transport(self, event: TransportEvent) -> None:
        match event:
            case MessageReceived():
                # What the broker had kept may come before its answer to the last subscription.
                (self._events if self._is_subscribed else self._early).append(event)
            case PublishAcknowledged():
                receipt = self._receipts.pop(event.message_id, None)
                if receipt is not None:
                    self._events.append(io.PublishAcknowledged(receipt=receipt))
            case MessageTooLong():
                dropped = InputDropped(
                    topic=event.topic, reason=f"a message of {event.packet_bytes} bytes"
                )
                self._events.append(dropped)
            case Connected():
                self._early.clear()
            case SubscribeDone():
                self._on_subscribed(event)
            case Disconnected():
                self._on_disconnected(event)
            case _:
                assert_never(event)

    def _on_subscribed(self, event: SubscribeDone) -> None:
        for name in event.refused:
            logger.error(
                "The broker refuses our subscription to %s; give this login the right to it.", name
            )
        self._is_subscribed = True
        self._delay.reset()
        if self._reason:
            logger.info("broker=%s is back", self._config.broker)
            self._reason = ""
        self._look_at_network()
        self._events.append(io.Connected(session=self._session))
        self._events.extend(self._early)
        self._early.clear()
        if not self._was_ready:
            self._was_ready = True
            self._hand_over(now_ms())
            sd_notify("READY=1")
            self._ready()

    def _on_disconnected(self, event: Disconnected) -> None:
        self._early.clear()
        self._receipts.clear()
        if self._is_subscribed:
            self._is_subscribed = False
            self._events.append(io.Disconnected())
        self._delay.spread_s = self._core.reconnect_spread_ms / 1_000
        self._connect_ms = now_ms() + int(1_000 * self._delay.next_s())
        if event.reason != self._reason:
            self._reason = event.reason
            logger.warning(
                "No connection to the broker %s: %s; trying again for as long as it takes.",
                self._config.broker,
                event.reason,
            )

    def _look_at_network(self) -> None:
        """How we reach the broker, now that we do."""
        network = network_of(self._connection.own_address)
        if self._config.network != "auto":
            network = replace(network_class(self._config.network), address=network.address)
        found = replace(
            self._capabilities,
            address=network.address,
            network=network.name,
            network_bytes_s=network.bytes_s,
        )
        if found != self._capabilities:
            self._capabilities = found
            self._events.append(CapabilitiesMeasured(capabilities=found))

    # -- the end --------------------------------------------------------------------------------

    def _take_signals(self) -> dict[int, _Handler]:
        """Signals become events; the answer is who had them before."""

        def ask(event: Event) -> Callable[[int, FrameType | None], None]:
            def on_signal(_number: int, _frame: FrameType | None) -> None:
                self._events.append(event)
                self._loop.wake()

            return on_signal

        wanted: dict[int, Event] = {
            signal.SIGTERM: ExitAsked(code=0, reason="SIGTERM"),
            signal.SIGINT: ExitAsked(code=_INTERRUPTED, reason="interrupted"),
            signal.SIGUSR1: DrainAsked(on=True),
            signal.SIGUSR2: DrainAsked(on=False),
        }
        return {number: signal.signal(number, ask(event)) for number, event in wanted.items()}

    def _end(self, order: ExitProcess) -> int:
        """The goodbye is out; leave nothing behind."""
        logger.log(logging.ERROR if order.code == 2 else logging.INFO, "exit: %s", order.reason)
        sd_notify("STOPPING=1")
        self._connection.disconnect(timeout_s=_GOODBYE_S)
        return order.code


def _is_due(moment_ms: int | None, now: int) -> bool:
    return moment_ms is not None and now >= moment_ms
