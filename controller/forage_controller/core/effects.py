"""What handling an event leads to: commands, operations for the store, and what waits for them."""

from collections import deque
from collections.abc import Callable

from forage_controller.core.commands import Command, Exit
from forage_controller.core.operations import Operation, Save
from forage_wire.ignored import IgnoredKeys
from forage_wire.io import Note, Publish

__all__ = ["Effects"]

_TELL_EVERY_MS = 1_000
_SENDERS_TOLD = 16
"""Lines about messages that cannot be used in this time at most; a flood must not fill the log."""


class Effects:
    """Collects commands of one batch; what must not leave before a commit is held here."""

    __slots__ = (
        "_commands",
        "_everywhere",
        "_operations",
        "_save_number",
        "_synchronous",
        "_tell_ms",
        "_untold",
        "_urgent",
        "_waiting",
        "committed",
        "dropped",
        "floor",
        "ignored",
    )

    def __init__(self, *, synchronous: bool = False) -> None:
        """`synchronous`: whatever waits for a commit waits for the standbys' too."""
        self._synchronous = synchronous
        self._commands: list[Command] = []
        self._operations: list[Operation] = []
        self._save_number = 0
        self._urgent = False
        self._waiting: deque[tuple[int, Callable[[int], None]]] = deque()
        self._everywhere: deque[tuple[int, Callable[[int], None]]] = deque()
        self.committed = 0
        self.floor: int | None = None
        """The standbys that follow have committed up to here; None: there is none."""
        self.dropped = 0
        """Messages that could not be used, of all senders."""
        self.ignored = IgnoredKeys()
        self._untold: dict[str, tuple[int, str]] = {}
        """Of each sender, or of all others as one: how many since the last note, and the first."""
        self._tell_ms = 0

    def command(self, command: Command) -> None:
        """Order something."""
        self._commands.append(command)

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """Send a message now."""
        self._commands.append(Publish(topic=topic, payload=payload, qos=qos, retain=retain))

    def outgoing(self, messages: list[Publish]) -> None:
        """Send what a link has ready."""
        self._commands += messages

    def note(self, level: str, text: str) -> None:
        """Say something in the log."""
        self._commands.append(Note(level=level, text=text))

    def drop(self, sender: str, why: object) -> None:
        """Count a message that cannot be used, and tell of it within a second."""
        self.dropped += 1
        if sender not in self._untold and len(self._untold) >= _SENDERS_TOLD - 1:
            sender = "others"
        count, first = self._untold.get(sender, (0, str(why)))
        self._untold[sender] = (count + 1, first)

    def note_ignored(self, sender: str) -> None:
        """Count keys that nobody here knows; each kind of a sender is told of once."""
        text = self.ignored.take(sender)
        if text:
            self.note("warning", text)

    def tell_dropped(self, now_ms: int) -> None:
        """Say what was dropped; once a second, whatever comes in."""
        if self._untold and now_ms >= self._tell_ms:
            self._tell_ms = now_ms + _TELL_EVERY_MS
            for sender, (count, why) in self._untold.items():
                self.note("warning", f"dropped from={sender} count={count} why={why}")
            self._untold = {}

    def next_wakeup_ms(self) -> int | None:
        """When `tell_dropped` has something to say."""
        return self._tell_ms if self._untold else None

    def exit(self, code: int, reason: str) -> None:
        """End the process."""
        self._commands.append(Exit(code=code, reason=reason))

    def save(self, operation: Operation) -> None:
        """Write with this batch's group."""
        self._operations.append(operation)

    def after_commit(
        self, action: Callable[[int], None], *, urgent: bool = False, everywhere: bool = False
    ) -> None:
        """Do `action(now_ms)` once all that has been given to `save` so far is committed.

        Args:
            action: What waits.
            urgent: Somebody's work waits for it: the commit is not to gather more.
            everywhere: By every standby that follows, too: what must never be done twice.
        """
        self._urgent |= urgent
        number = self._save_number + 1 if self._operations else self._save_number
        waiting = self._everywhere if everywhere or self._synchronous else self._waiting
        waiting.append((number, action))

    def on_committed(self, number: int, now_ms: int) -> None:
        """Run what waited for saves up to `number`."""
        self.committed = max(self.committed, number)
        self.run_due(now_ms)

    def run_due(self, now_ms: int) -> None:
        """Run what waits for nothing (any more)."""
        while self._waiting and self._waiting[0][0] <= self.committed:
            self._waiting.popleft()[1](now_ms)
        while self._everywhere and self._everywhere[0][0] <= self._limit():
            self._everywhere.popleft()[1](now_ms)

    def _limit(self) -> int:
        return self.committed if self.floor is None else min(self.committed, self.floor)

    def take(self) -> list[Command]:
        """The commands collected so far, in order."""
        commands, self._commands = self._commands, []
        return commands

    def end_batch(self) -> Save | None:
        """Close the batch's group of operations: it is among the commands, and the answer."""
        save = None
        if self._operations:
            self._save_number += 1
            save = Save(
                number=self._save_number,
                operations=tuple(self._operations),
                urgent=self._urgent,
            )
            self._commands.append(save)
            self._operations = []
        self._urgent = False
        return save
