"""Outcomes on their way: kept until the controller has committed them, sent in few messages.

Outcomes leave at once while none is on its way to the broker and no short call is running. Else they
wait for that to change, a full packet or `OUTCOMES_AFTER_MS`, so that one message carries what has
come together meanwhile: several tasks' of one client too. A new link sends everything again.
"""

from collections.abc import Iterable

from forage_agent.core.settings import OUTCOMES_AFTER_MS
from forage_agent.core.slices import Piece, Slice
from forage_wire.limits import ENVELOPE_BYTES, PACKET_BYTES_MAX
from forage_wire.link import Link
from forage_wire.messages import Outcomes, OutcomeSet
from forage_wire.ranges import Ranges, RangeSet
from forage_wire.topics import Topics

__all__ = ["Outbox", "outcome_set"]

# What a set says beside its items, and each of its errors or ranges: an upper bound.
_SET_BYTES = 128
_ROW_BYTES = 32
_SETS_MAX = 1_024

_Waiting = dict[int, tuple[Slice, list[Piece]]]
"""Unsent pieces of one client, by assignment."""

_CONTROLLER = ("", "")
"""Instead of a client: outcomes that only the controller is to read, on the device's outbox."""


class Outbox:
    """All outcomes that no controller has acknowledged.

    Args:
        topics: Where they go.
        device: This device's name.
    """

    def __init__(self, topics: Topics, device: str) -> None:
        self._topics = topics
        self._device = device
        self.bytes = 0
        """Of all that is kept."""
        self.waiting: dict[tuple[str, str], _Waiting] = {}
        self._waiting_bytes = 0
        self._waiting_since_ms = 0
        self._on_their_way: dict[int, None] = {}

    def add(self, part: Slice, piece: Piece, now_ms: int) -> None:
        """Keep an outcome of a held slice, to be sent."""
        part.pieces[piece.first] = piece
        self.bytes += len(piece.items)
        self._wait(part, piece, now_ms)

    def release(self, part: Slice, piece: Piece, now_ms: int) -> None:
        """An outcome that was held may be sent."""
        piece.is_held = False
        if part.pieces.get(piece.first) is piece:
            self._wait(part, piece, now_ms)

    def _wait(self, part: Slice, piece: Piece, now_ms: int) -> None:
        if piece.is_held:
            return
        if not self.waiting:
            self._waiting_since_ms = now_ms
        client = self.waiting.setdefault(_reader(part), {})
        client.setdefault(part.assignment, (part, []))[1].append(piece)
        self._waiting_bytes += len(piece.items)

    def acknowledged(self, part: Slice, ranges: Ranges) -> None:
        """The controller has these; only whole pieces are forgotten."""
        if not part.pieces:
            return
        committed = RangeSet(ranges)
        for piece in list(part.pieces.values()):
            if committed.covers(piece.first, piece.first + piece.count):
                self._forget(part, piece)

    def drop(self, part: Slice) -> None:
        """Forget all outcomes of a slice, and send none of them any more."""
        for piece in list(part.pieces.values()):
            self._forget(part, piece)

    def _forget(self, part: Slice, piece: Piece) -> None:
        del part.pieces[piece.first]
        self.bytes -= len(piece.items)
        if not self.waiting:
            return
        key = _reader(part)
        client = self.waiting.get(key)
        if client is None or part.assignment not in client:
            return
        pieces = client[part.assignment][1]
        if piece in pieces:
            pieces.remove(piece)
            self._waiting_bytes -= len(piece.items)
        if not pieces:
            del client[part.assignment]
        if not client:
            del self.waiting[key]

    def send_again(self, slices: Iterable[Slice], now_ms: int) -> None:
        """A new link knows of nothing: everything kept waits to be sent."""
        self.waiting.clear()
        self._waiting_bytes = 0
        self._on_their_way.clear()
        for part in slices:
            for piece in part.pieces.values():
                self._wait(part, piece, now_ms)

    def say_again(self, part: Slice, now_ms: int) -> None:
        """The controller seems not to have a slice's outcomes: send them once more."""
        client = self.waiting.get(_reader(part), {})
        _part, waiting = client.get(part.assignment, (part, []))
        for piece in part.pieces.values():
            if piece not in waiting:
                self._wait(part, piece, now_ms)

    def left(self, receipt: int) -> None:
        """Outcomes went to the broker under this receipt."""
        self._on_their_way[receipt] = None

    def arrived(self, receipt: int) -> None:
        """The broker has what went under this receipt."""
        self._on_their_way.pop(receipt, None)

    def lost_connection(self) -> None:
        """No answer will come to what is on its way."""
        self._on_their_way.clear()

    def next_wakeup_ms(self) -> int | None:
        """When `send` has something to do that nothing else will bring about."""
        return self._waiting_since_ms + OUTCOMES_AFTER_MS if self.waiting else None

    def send(
        self, link: Link, now_ms: int, *, more_soon: bool = False, at_once: bool = False
    ) -> None:
        """Give the link what is to go now.

        Args:
            link: To the controller.
            now_ms: Now.
            more_soon: Short calls are running: other outcomes come within the next moment.
            at_once: Everything goes, whatever the window.
        """
        if not self.waiting:
            return
        is_full = self._waiting_bytes >= PACKET_BYTES_MAX - ENVELOPE_BYTES
        is_due = now_ms >= self._waiting_since_ms + OUTCOMES_AFTER_MS
        if (self._on_their_way or more_soon) and not (is_full or is_due or at_once):
            return
        room = link.window - link.unseen - link.waiting
        for key in list(self.waiting):
            client = self.waiting[key]
            while client and (room > 0 or at_once):
                self._send_one(link, key, client)
                room -= 1
            if not client:
                del self.waiting[key]

    def _send_one(self, link: Link, key: tuple[str, str], client: _Waiting) -> None:
        """One message with as many outcomes of one client as fit a packet, at least one."""
        limit = link.packet_bytes_max
        for part, _pieces in client.values():
            limit = min(limit, part.header.packet_bytes_max)
        left = limit - ENVELOPE_BYTES
        sets: list[OutcomeSet] = []
        tasks: dict[str, None] = {}
        for assignment in list(client):
            part, pieces = client[assignment]
            if len(pieces) > 1:
                pieces.sort(key=_first)
            taken: list[Piece] = []
            left -= _SET_BYTES
            for piece in pieces:
                cost = len(piece.items) + _ROW_BYTES * (1 + len(piece.errors))
                if (taken or sets) and cost > left:
                    break
                left -= cost
                taken.append(piece)
                self._waiting_bytes -= len(piece.items)
            if taken:
                sets.append(outcome_set(part, taken))
                tasks[part.header.task] = None
                del pieces[: len(taken)]
            if not pieces:
                del client[assignment]
            if pieces or left <= 0 or len(sets) == _SETS_MAX:
                break
        task = next(iter(tasks)) if len(tasks) == 1 else "-"
        link.send(
            Outcomes(sets=tuple(sets)),
            None if key == _CONTROLLER else self._topics.task(*key, task, self._device),
            packet_bytes_max=limit,
        )


def _reader(part: Slice) -> tuple[str, str]:
    """Whose outcomes a slice's are: its client's (user, name), unless its controller settles."""
    header = part.header
    return _CONTROLLER if header.settle == "controller" else (header.user, header.client)


def _first(piece: Piece) -> int:
    return piece.first


def outcome_set(part: Slice, pieces: list[Piece]) -> OutcomeSet:
    """What a slice's pieces, sorted, are on the wire."""
    ranges: list[tuple[int, int]] = []
    errors: list[tuple[int, str, bool]] = []
    items = [b""]
    count = run_us = 0
    for piece in pieces:
        low, high = piece.first, piece.first + piece.count
        if ranges and ranges[-1][1] == low:
            low = ranges.pop()[0]
        ranges.append((low, high))
        errors.extend(piece.errors)
        items.append(piece.items)
        count += piece.count
        run_us += piece.run_us
    items[0] = _array_head(count)
    return OutcomeSet(
        task=part.header.task,
        assignment=part.assignment,
        low=part.low,
        high=part.assigned_high,
        tag=part.tag,
        ranges=tuple(ranges),
        errors=tuple(errors),
        run_us=run_us,
        data=b"".join(items),
    )


def _array_head(count: int) -> bytes:
    """The first bytes of a CBOR array of `count` items."""
    if count < 24:
        return bytes((0x80 | count,))
    if count < 256:
        return bytes((0x98, count))
    return b"\x99" + count.to_bytes(2, "big")
