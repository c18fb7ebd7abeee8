"""One operating system process around one core: what the shells do, without their system calls.

A process reads everything there is, hands each event to its core, then `BatchEnded`, and carries
out the commands in order. It may die between any two commands, freeze at any time, and lose its
connection; a machine may be cut off or lose its power.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Any, Protocol

from forage_sim.broker import Connection
from forage_wire.io import (
    BatchEnded,
    Connected,
    Disconnected,
    MessageReceived,
    Note,
    Publish,
    PublishAcknowledged,
)

if TYPE_CHECKING:
    from forage_sim.world import World

__all__ = ["Core", "Machine", "Process"]

FIRST_RECONNECT_MS_MAX = 500
RECONNECT_MS_MAX = 30_000
DIAL_MS_MAX = 20
EMPTY_TURNS_MAX = 50
"""A core that wants to be woken this often without time passing is broken."""


class Core(Protocol):
    """What the three cores have in common. Their events and commands are their own unions."""

    def next_wakeup_ms(self) -> int | None:
        """When the core wants `BatchEnded`, in its process's time."""


class Machine:
    """Where processes run: its own time since boot, its own network cable."""

    def __init__(self, world: "World", name: str) -> None:
        self.world = world
        self.name = name
        self.random: Random = world.clock.stream(f"machine/{name}")
        self._offset_ms = self.random.randint(10_000, 10_000_000)
        self._boot = 1
        self.cut_until_ms = 0
        self.turn_ms_max = 1
        """A process acts 0 to this long after something arrived (a slow one: longer)."""

    def jump(self, by_ms: int) -> None:
        """Its clock goes on from a later time: it was suspended, or its host was."""
        self._offset_ms += by_ms

    def reboot(self) -> None:
        """It lost its power: its clock begins anew."""
        self._boot += 1
        self._offset_ms = -self.world.clock.now_ms

    @property
    def boot(self) -> str:
        """Which boot of which machine this is."""
        return f"{self.name}/{self._boot}"

    def now_ms(self) -> int:
        """Milliseconds since this machine's boot."""
        return self.world.clock.now_ms + self._offset_ms

    def world_ms(self, machine_ms: int) -> int:
        """The world's time at a time of this machine."""
        return machine_ms - self._offset_ms

    def draw_session_part(self) -> str:
        """16 hexadecimal digits, as a shell draws them at its start."""
        return f"{self.random.getrandbits(64):016x}"

    @property
    def reachable(self) -> bool:
        """Whether its network works."""
        return self.world.clock.now_ms >= self.cut_until_ms


class Process(ABC):
    """A running process; once dead it stays so (its owner starts another)."""

    def __init__(self, machine: Machine, name: str) -> None:
        self.machine = machine
        self.world = machine.world
        self.name = name
        self.start_part = machine.draw_session_part()
        self.client_id = f"{name}-{machine.random.getrandbits(64):016x}"
        self.alive = True
        self.frozen = False
        self.session = ""
        self.doomed_after: int | None = None
        """Dies after this many more commands."""
        self._connects = 0
        self._failed_connects = 0
        self._connection: Connection | None = None
        self._inbox: list[Any] = []
        self._turn_due = False
        self._wake_ms: int | None = None
        self._empty_turns = (0, 0)

    # -- what each kind of process adds -----------------------------------------------------

    @abstractmethod
    def core(self) -> Core:
        """The core it runs."""

    @abstractmethod
    def hand(self, event: Any, now_ms: int) -> list[Any]:
        """Hand an event to the core; its commands."""

    @abstractmethod
    def subscriptions(self) -> Sequence[tuple[str, int]]:
        """What it subscribes to at each connection."""

    @abstractmethod
    def will(self, session: str) -> Publish | None:
        """The will of a connection about to be made."""

    @abstractmethod
    def carry_out(self, command: Any) -> None:
        """Carry out a command that is the core's own (not `Publish`, not `Note`)."""

    def died(self) -> None:  # noqa: B027 - most kinds have nothing to undo
        """Undo what only lives with the process."""

    # -- life and death ---------------------------------------------------------------------

    def begin(self) -> None:
        """Start: connect."""
        self.world.trace.add("start", self.name, self.start_part)
        self._dial_after(self.machine.random.randint(0, DIAL_MS_MAX))

    def kill(self, *, power: bool = False) -> None:
        """SIGKILL; with `power` the machine is gone, and what it had sent with it."""
        if not self.alive:
            return
        self.alive = False
        self.world.trace.add("death", self.name, "power" if power else "kill")
        connection, self._connection = self._connection, None
        if connection is not None and connection.peer_open:
            if power:
                connection.vanish()
            else:
                connection.abandon()
        self.died()
        if power:
            self.machine.reboot()

    def leave(self) -> None:
        """End in good order: say goodbye to the broker."""
        if not self.alive:
            return
        self.alive = False
        self.world.trace.add("exit", self.name)
        connection, self._connection = self._connection, None
        if connection is not None and connection.peer_open:
            connection.disconnect()
        self.died()

    def freeze(self) -> None:
        """SIGSTOP: nothing is read, no ping is sent."""
        self.frozen = True
        if self._connection is not None:
            self._connection.fall_silent()

    def thaw(self) -> None:
        """SIGCONT: everything that has come is read at once."""
        if not self.alive or not self.frozen:
            return
        self.frozen = False
        if self._connection is not None and self.machine.reachable:
            self._connection.speak_again()
        self._ask_for_turn()

    def clock_jumped(self) -> None:
        """Its machine's clock is later than it was: what is due by it is due now."""
        self._wake_ms = None
        if self.alive and not self.frozen:
            self._wake_when_due()

    def cut_off(self, duration_ms: int) -> None:
        """The connection under way stands still."""
        if self._connection is not None:
            self._connection.cut(duration_ms)

    @property
    def connection(self) -> Connection | None:
        """The present connection."""
        return self._connection

    # -- connecting -------------------------------------------------------------------------

    def _dial_after(self, delay_ms: int) -> None:
        self.world.clock.after(delay_ms, self._dial)

    def _dial(self) -> None:
        if not self.alive or self._connection is not None:
            return
        if self.frozen:
            self._dial_after(1_000)
            return
        self._connects += 1
        session = f"{self.start_part}-{self._connects}"
        connection = None
        if self.machine.reachable:
            connection = self.world.broker.connect(
                self.client_id, self, self.subscriptions(), self.will(session)
            )
        if connection is None:
            self._dial_again()
            return
        self._connection = connection
        self.session = session

    def _dial_again(self) -> None:
        limit_ms = min(FIRST_RECONNECT_MS_MAX << self._failed_connects, RECONNECT_MS_MAX)
        self._failed_connects = min(self._failed_connects + 1, 10)
        self._dial_after(self.machine.random.randint(0, limit_ms))

    # -- the peer's side of a connection ----------------------------------------------------

    def on_connected(self) -> None:
        """From the broker."""
        self._failed_connects = 0
        self.put(Connected(session=self.session))

    def on_message(self, topic: str, payload: bytes, retain: bool) -> None:
        """From the broker."""
        self.put(MessageReceived(topic=topic, payload=payload, retain=retain))

    def on_receipt(self, receipt: int) -> None:
        """From the broker."""
        self.put(PublishAcknowledged(receipt=receipt))

    def on_disconnected(self) -> None:
        """From the connection."""
        self._connection = None
        self.put(Disconnected())

    # -- turns ------------------------------------------------------------------------------

    def put(self, event: Any) -> None:
        """Something happened; the process sees it when its turn comes."""
        if self.alive:
            self._inbox.append(event)
            self._ask_for_turn()

    def _ask_for_turn(self) -> None:
        if not self._turn_due:
            self._turn_due = True
            delay_ms = int(self.machine.random.random() * (self.machine.turn_ms_max + 1))
            self.world.clock.after(delay_ms, self._turn)

    def _turn(self) -> None:
        self._turn_due = False
        if not self.alive or self.frozen:
            return
        events, self._inbox = self._inbox, []
        now_ms = self.machine.now_ms()
        if not events:
            self._watch_for_spinning(now_ms)
        commands: list[Any] = []
        for event in events:
            if isinstance(event, Disconnected):
                self._dial_again()
            commands += self._hand(event, now_ms)
        commands += self._hand(BatchEnded(), now_ms)
        for command in commands:
            if self.doomed_after is not None:
                if self.doomed_after == 0:
                    self.kill()
                self.doomed_after -= 1
            if not self.alive:
                return
            self._carry_out(command)
        if self.alive:
            self._wake_when_due()

    def _hand(self, event: Any, now_ms: int) -> list[Any]:
        self.world.watch.event(self, event)
        return self.hand(event, now_ms)

    def _carry_out(self, command: Any) -> None:
        if isinstance(command, Publish):
            self.world.trace.add("publish", self.name, command.topic, command.payload)
            self.world.watch.published(self, command)
            if self._connection is not None:
                self._connection.publish(command)
        elif isinstance(command, Note):
            self.world.trace.add(f"note-{command.level}", self.name, command.text)
        else:
            self.carry_out(command)

    def _wake_when_due(self) -> None:
        due_ms = self.core().next_wakeup_ms()
        if due_ms is None:
            self._wake_ms = None
            return
        wake_ms = max(self.machine.world_ms(due_ms), self.world.clock.now_ms)
        if self._wake_ms is not None and self._wake_ms <= wake_ms:
            # The earlier wake-up looks again.
            return
        self._wake_ms = wake_ms

        def wake() -> None:
            if self._wake_ms != wake_ms or not self.alive:
                return
            self._wake_ms = None
            due_ms = self.core().next_wakeup_ms()
            if due_ms is not None and due_ms <= self.machine.now_ms():
                self._ask_for_turn()
            elif not self._turn_due:
                self._wake_when_due()

        self.world.clock.at(wake_ms, wake)

    def _watch_for_spinning(self, now_ms: int) -> None:
        before_ms, turns = self._empty_turns
        turns = turns + 1 if before_ms == now_ms else 0
        self._empty_turns = (now_ms, turns)
        if turns > EMPTY_TURNS_MAX:
            raise AssertionError(
                f"{self.name}: its core asks to be woken at a time that is over, for ever: "
                f"now {now_ms}, next {self.core().next_wakeup_ms()}"
            )
