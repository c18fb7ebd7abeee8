"""An active controller's core and a standby's, joined by a bus that delivers at once or not at all.

The active one is a `Desk` (its own devices and clients); its store answers snapshots with the
operations that it has committed, as a text that the standby's store reads back.
"""

from typing import Any

from core.desk import TOPICS, Desk
from forage_controller.core.commands import Command, Exit
from forage_controller.core.config import CoreConfig
from forage_controller.core.feed import (
    CloseSnapshot,
    InstallSnapshot,
    OpenSnapshot,
    ReadSnapshot,
    SnapshotFailed,
    SnapshotInstalled,
    SnapshotOpened,
    SnapshotRead,
    WriteSnapshot,
    decode_operations,
    encode_operations,
    to_plain,
)
from forage_controller.core.operations import Operation, Save, SaveCommitted, SaveEpoch
from forage_controller.core.orders import EndHolder, TakeOver
from forage_controller.core.standby import StandbyCore
from forage_wire.codec import encode_json
from forage_wire.io import BatchEnded, Connected, Disconnected, MessageReceived, Note, Publish
from forage_wire.messages import ControllerPresence

START = "e" * 16
ACTIVE_START = "c" * 16


def presence(
    state: str, *, epoch: int = 1, session: str = f"{ACTIVE_START}-1", name: str = "main"
) -> tuple[str, bytes]:
    document = ControllerPresence(state=state, epoch=epoch, session=session)
    return TOPICS.controller_presence(name), encode_json(document)


class ActiveDesk(Desk):
    """A desk whose store has snapshots, and whose words about standbys go to the pair."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.snapshots_fail = ""
        self.answers: list[Any] = []
        """What its store has to say."""
        self.committed = 0
        self.opened: dict[int, bytes] = {}
        self.to_bus: list[Publish] = []

    def _carry_out(self, commands: list[Command]) -> None:
        others: list[Command] = []
        for command in commands:
            match command:
                case OpenSnapshot():
                    self._open(command)
                case ReadSnapshot():
                    data = self.opened[command.request]
                    piece = data[command.offset : command.offset + command.length]
                    self.answers.append(
                        SnapshotRead(request=command.request, offset=command.offset, data=piece)
                    )
                case CloseSnapshot():
                    self.opened.pop(command.request, None)
                case _:
                    others.append(command)
        super()._carry_out(others)

    def _open(self, command: OpenSnapshot) -> None:
        if self.snapshots_fail:
            failed = SnapshotFailed(request=command.request, reason=self.snapshots_fail)
            self.answers.append(failed)
            return
        # Everything handed over before it is committed with it.
        position = self.uncommitted[-1].number if self.uncommitted else self.committed
        self.commit()
        data = encode_operations([to_plain(one) for one in self.saved])
        self.opened[command.request] = data
        self.answers.append(
            SnapshotOpened(request=command.request, position=position, size=len(data))
        )

    def commit(self) -> None:
        if self.uncommitted:
            self.committed = self.uncommitted[-1].number
        super().commit()

    def _deliver(self, message: Publish) -> None:
        parsed = TOPICS.parse(message.topic)
        assert parsed is not None
        if parsed.branch in ("standby", "controller-presence"):
            self.to_bus.append(message)
        super()._deliver(message)


class StandbyDesk:
    """A standby's core, and a store that keeps operations."""

    def __init__(self, name: str, *, detect_ms: int = 1_000, **options: Any) -> None:
        self.name = name
        self.core = StandbyCore(CoreConfig(name=name), START, detect_ms=detect_ms, **options)
        self.to_bus: list[Publish] = []
        self.notes: list[str] = []
        self.exits: list[Exit] = []
        self.taken: list[TakeOver] = []
        self.ended: list[EndHolder] = []
        self.incoming = b""
        self.operations: list[Operation] = []
        self.commits = True
        self.events: list[Any] = []

    def handle(self, event: Any, now_ms: int) -> None:
        for command in self.core.handle(event, now_ms):
            match command:
                case Publish():
                    self.to_bus.append(command)
                case Note():
                    self.notes.append(command.text)
                case Exit():
                    self.exits.append(command)
                case TakeOver():
                    self.taken.append(command)
                case EndHolder():
                    self.ended.append(command)
                case WriteSnapshot():
                    self.incoming = self.incoming[: command.offset] + command.data
                case InstallSnapshot():
                    self.operations = decode_operations(self.incoming)
                    self.events.append(SnapshotInstalled(epoch=self.epoch))
                case Save():
                    self.operations += command.operations
                    self.events.append(SaveCommitted(number=command.number))

    @property
    def epoch(self) -> int:
        return max([one.epoch for one in self.operations if isinstance(one, SaveEpoch)], default=0)

    def take_events(self, now_ms: int) -> bool:
        if not self.commits or not self.events:
            return False
        events, self.events = self.events, []
        for event in events:
            self.handle(event, now_ms)
        self.handle(BatchEnded(), now_ms)
        return True


class Pair:
    """Both, and the bus between them."""

    def __init__(self, name: str = "attic", *, active: Any = None, **options: Any) -> None:
        self.active = ActiveDesk(**(active or {}))
        self.standby = StandbyDesk(name, **options)
        self.up = True
        """Whether the active one's words arrive."""
        self.down = True
        """Whether the standby's do."""
        self.is_frozen = False
        """Whether the active one stands still."""

    @property
    def now_ms(self) -> int:
        return self.active.now_ms

    def begin(self) -> "Pair":
        self.active.begin()
        self.run()
        self.join()
        return self

    def join(self, counter: int = 1) -> None:
        """The standby connects; the broker tells it what it has retained."""
        self.standby.handle(Connected(session=f"{START}-{counter}"), self.now_ms)
        words = [
            one for one in self.active.published if one.topic == TOPICS.controller_presence("main")
        ]
        if words:
            self.hear(words[-1].topic, words[-1].payload, retain=True)
        self.standby.handle(BatchEnded(), self.now_ms)
        self.run()

    def part(self) -> None:
        """The standby's connection ends."""
        self.standby.handle(Disconnected(), self.now_ms)

    def hear(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """The standby gets a message."""
        event = MessageReceived(topic=topic, payload=payload, retain=retain)
        self.standby.handle(event, self.now_ms)

    def run(self) -> None:
        """Carry messages until nobody has anything to say."""
        for _round in range(2_000):
            busy = False
            if not self.is_frozen:
                answers, self.active.answers = self.active.answers, []
                for answer in answers:
                    self.active.handle(answer)
                    busy = True
                self.active.run()
            words, self.active.to_bus = self.active.to_bus, []
            for message in words if self.up else []:
                self.hear(message.topic, message.payload)
                busy = True
            if busy:
                self.standby.handle(BatchEnded(), self.now_ms)
            busy |= self.standby.take_events(self.now_ms)
            words, self.standby.to_bus = self.standby.to_bus, []
            for message in words if self.down else []:
                self.active.publish(message.topic, message.payload)
                busy = True
            if not busy and not self.active.answers:
                return
        raise AssertionError("messages go round for ever")

    def advance(self, ms: int) -> None:
        """Let time pass, with every wake-up of both on the way."""
        end = self.now_ms + ms
        while True:
            due = self.standby.core.next_wakeup_ms()
            step = end if due is None else min(end, max(due, self.now_ms))
            if self.is_frozen:
                self.active.now_ms = step
            else:
                self.active.advance(step - self.now_ms)
            self.run()
            if due is not None and due <= step:
                self.standby.handle(BatchEnded(), self.now_ms)
                self.run()
            again = self.standby.core.next_wakeup_ms()
            if step == end and (again is None or again > end):
                return
            assert again is None or again > step or due is None or again != due, again
