"""A standby's link with the active controller, and the copy of its store that comes over it.

One link is one attempt: it begins with `Join`, then come signs of life, the pieces of a snapshot,
and the journal after it. Whatever goes wrong, the next link begins anew; the copy of before stands
until the next one is whole.
"""

from collections import deque
from collections.abc import Callable

from forage_controller.core.feed import (
    SCHEMA_VERSION,
    InstallSnapshot,
    SnapshotInstalled,
    WriteSnapshot,
    decode_operations,
)
from forage_controller.core.operations import Save, SaveEpoch
from forage_controller.core.orders import StandbyCommand
from forage_wire.errors import DecodeError
from forage_wire.io import Note, Publish
from forage_wire.limits import DEVICE_WINDOW
from forage_wire.link import Link, link_number
from forage_wire.messages import (
    Beat,
    Join,
    Journal,
    Linked,
    Replicated,
    Seen,
    Snapshot,
    StandbyRefused,
)

__all__ = ["Following"]

_GROUPS_BYTES_MAX = 512 * 1024 * 1024
"""Pieces of one message of groups; more is nothing that a controller sends."""


class Following:
    """The standby's end.

    Args:
        topic: Where it speaks to the active controller.
        beat_ms: Both ends give a sign of life at least this often.
        copies: Whether a copy is wanted, or signs of life alone.
        order: Takes a command, to be carried out in order.
    """

    def __init__(
        self,
        topic: str,
        *,
        beat_ms: int,
        copies: bool,
        order: Callable[[StandbyCommand], None],
    ) -> None:
        self._topic = topic
        self._beat_ms = beat_ms
        self._copies = copies
        self._order = order
        self.link: Link | None = None
        self.is_whole = False
        """Whether all that was committed there at one time is committed here, and more follows."""
        self.has_followed = False
        """Whether it ever was."""
        self.epoch: int | None = None
        """Of the copy, as far as it is committed here; None: nothing came yet."""
        self._beat_at_ms = 0
        self._offset = 0
        self._installing: int | None = None
        """The position of the snapshot whose last piece is here."""
        self._pieces: list[bytes] = []
        self._pieces_bytes = 0
        self._is_broken = False
        """Nothing more is taken on this link."""
        self._saves = 0
        self._saving: deque[tuple[int, int, int]] = deque()
        """(save, position, epoch or 0): on their way to the disk."""

    @property
    def controller(self) -> str:
        """The session at the other end; empty: none."""
        return "" if self.link is None else self.link.controller

    def begin(self, session: str, controller: str, now_ms: int) -> None:
        """A new link: ask to be fed, from the beginning."""
        number = 0
        if self.link is not None and self.link.controller == controller:
            number = self.link.number + 1
        self.end()
        self.link = Link(
            session=session,
            controller=controller,
            number=number,
            topic=self._topic,
            window=DEVICE_WINDOW,
        )
        self._beat_at_ms = now_ms + self._beat_ms
        self.link.send(Join(schema=SCHEMA_VERSION, beat_ms=self._beat_ms, copy=self._copies))

    def end(self) -> None:
        """The link is over; the copy stays as it is."""
        self.link = None
        self.is_whole = False
        self._offset = 0
        self._installing = None
        self._pieces.clear()
        self._pieces_bytes = 0
        self._is_broken = False
        self._saving.clear()

    # -- sending ----------------------------------------------------------------------------

    def poll(self, now_ms: int) -> None:
        """Send what is due."""
        if self.link is None:
            return
        if now_ms >= self._beat_at_ms:
            self._beat_at_ms = now_ms + self._beat_ms
            self._publish([self.link.unnumbered(Seen())])
        self._publish(self.link.poll(now_ms))

    def _publish(self, messages: list[Publish]) -> None:
        for message in messages:
            self._order(message)

    def next_wakeup_ms(self) -> int | None:
        """When `poll` has something to send without further events."""
        if self.link is None:
            return None
        due = self.link.next_wakeup_ms()
        return self._beat_at_ms if due is None else min(due, self._beat_at_ms)

    # -- receiving --------------------------------------------------------------------------

    def is_ours(self, message: Linked, session: str) -> bool:
        """Whether a message is of the present link."""
        link = self.link
        return (
            link is not None
            and message.session == session
            and message.controller == link.controller
            and link_number(message) == link.number
        )

    def is_behind(self, message: Linked, session: str) -> bool:
        """Whether the other end asks for a later link than the present one."""
        link = self.link
        return (
            link is not None
            and message.session == session
            and message.controller == link.controller
            and link_number(message) > link.number
        )

    def receive(self, message: Linked, now_ms: int) -> None:
        """Take in a message of the present link.

        Raises DecodeError for one that the active controller should not have sent.
        """
        assert self.link is not None
        for ready in self.link.receive(message, now_ms):
            if self._is_broken:
                continue
            match ready:
                case Beat():
                    pass
                case Snapshot():
                    self._on_snapshot(ready)
                case Journal():
                    self._on_journal(ready)
                case StandbyRefused():
                    self._is_broken = True
                    self._say("error", f"this standby cannot follow: {ready.reason}")
                case _:
                    raise DecodeError(f"{type(ready).__name__} to a standby")

    def _say(self, level: str, text: str) -> None:
        self._order(Note(level=level, text=text))

    def _break(self, why: str) -> None:
        """What comes makes no sense: nothing of it is taken any more, until the next link."""
        self._is_broken = True
        self.is_whole = False
        raise DecodeError(why)

    def _on_snapshot(self, piece: Snapshot) -> None:
        if piece.offset != self._offset or self._installing is not None or self.is_whole:
            self._break(f"a piece of a snapshot at {piece.offset}, not at {self._offset}")
        self._order(WriteSnapshot(offset=piece.offset, data=piece.data))
        self._offset += len(piece.data)
        if self._offset >= piece.size:
            self._installing = piece.position
            self._order(InstallSnapshot())

    def on_installed(self, event: SnapshotInstalled) -> None:
        """The copy is our store."""
        self.epoch = event.epoch
        self.has_followed = True
        if self._installing is None or self.link is None:
            return  # Of a link that is over: the next one begins anew.
        self.is_whole = True
        self.link.send(Replicated(position=self._installing))
        self._installing = None
        self._say("info", f"the copy is whole: epoch={event.epoch} bytes={self._offset}")

    def _on_journal(self, message: Journal) -> None:
        if not self.is_whole and self._installing is None:
            self._break("groups before the snapshot")
        self._pieces.append(message.data)
        self._pieces_bytes += len(message.data)
        if self._pieces_bytes > _GROUPS_BYTES_MAX:
            self._break("groups without an end")
        if message.more:
            return
        data = b"".join(self._pieces)
        self._pieces.clear()
        self._pieces_bytes = 0
        try:
            operations = decode_operations(data)
        except DecodeError as error:
            self._break(f"groups up to {message.position}: {error}")
        epochs = [one.epoch for one in operations if isinstance(one, SaveEpoch)]
        self._saves += 1
        self._saving.append((self._saves, message.position, max(epochs, default=0)))
        self._order(Save(number=self._saves, operations=tuple(operations), urgent=True))

    def on_committed(self, number: int) -> None:
        """Our store has committed all up to this save."""
        position = 0
        while self._saving and self._saving[0][0] <= number:
            _number, position, epoch = self._saving.popleft()
            self.epoch = max(self.epoch or 0, epoch)
        if position and self.link is not None:
            self.link.send(Replicated(position=position))
