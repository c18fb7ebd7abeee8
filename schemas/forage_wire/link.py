"""Links: what two sessions have seen of each other (pure; used by all three cores).

Between a controller's session and a device's or client's, each direction numbers what must
arrive, n = 1, 2, ... The other end reports the highest n it has seen without a gap, in
whatever it sends, or in a bare `Seen` 20 ms later; at once where the sender's window may soon be
full (after four messages, or two parts). *Seen* frees the sender's window and ends
repeats; it does not mean committed. What must be committed is kept by the cores until an
acknowledgement of theirs, and sent again on a new link.

A link lives as long as its pair of sessions, or until one end has lost track of it: then the
next one of the same pair begins. Whoever begins it (a controller with its devices, a client with
its controller) counts it in the upper bits of every n, so that nothing of one link is ever taken
for the other's: link k numbers from k * 2**32 + 1, both ways. It speaks bytes: it stamps, encodes,
cuts what is above the packet limit into parts, and hands in-order messages to its core.
"""

from collections import deque

from forage_wire.codec import decode, encode
from forage_wire.errors import DecodeError
from forage_wire.io import Publish
from forage_wire.limits import (
    BARE_SEEN_AFTER_MS,
    ENVELOPE_BYTES,
    PACKET_BYTES_MAX,
    REORDER_MAX,
    REPEAT_AFTER_MS,
    REPEAT_AFTER_MS_MAX,
    SEEN_EVERY,
    UNFINISHED_PART_BYTES_MAX,
)
from forage_wire.messages import Checkpoint, Linked, Part, Seen, Unusable
from forage_wire.parts import PartAssembler, cut_parts
from forage_wire.records import replace

__all__ = ["Link", "Outgoing", "fits_packet", "link_number"]

_NUMBER_SHIFT = 32
_WEIGHTS = {Part: 2, Checkpoint: SEEN_EVERY}
"""Some count for so many messages. Half of the window is for parts, and they are large; a call's next
state waits until the one before it is seen, and what waits is lost with the device."""


Outgoing = Publish
"""What a link wants published."""


def link_number(message: Linked) -> int:
    """Which link of its pair of sessions a message belongs to.

    What says neither n nor seen, as a beat, reads as 0.
    """
    return max(message.n, message.seen) >> _NUMBER_SHIFT


class Link:
    """Both directions between this end and one session of a peer.

    Args:
        session: The device's or client's session (of either end of this link).
        controller: The controller's session ("" at a client that does not know it yet).
        number: Which link of this pair of sessions it is, from 0.
        epoch: The controller's epoch, at the controller; 0 elsewhere.
        topic: Where a bare `Seen` goes.
        window: Messages sent and not seen; more wait here.
        packet_bytes_max: The lower of both ends' limits.
        active: Where the link puts itself (by id, in order) when it may have something to do:
            one with thousands of links polls those.
    """

    __slots__ = (
        "_active",
        "_assembler",
        "_duplicate_gaps",
        "_early",
        "_gap",
        "_next_n",
        "_part_number",
        "_parts",
        "_parts_unseen",
        "_queue",
        "_received",
        "_recover_to",
        "_repeat_after_ms",
        "_repeat_at_ms",
        "_reported",
        "_seen_due_ms",
        "_unsaid",
        "_unseen",
        "closed",
        "controller",
        "dropped",
        "due_ms",
        "epoch",
        "is_forgotten",
        "number",
        "numbers",
        "packet_bytes_max",
        "session",
        "topic",
        "window",
    )

    def __init__(
        self,
        *,
        session: str,
        controller: str,
        topic: str,
        window: int,
        number: int = 0,
        epoch: int = 0,
        packet_bytes_max: int = PACKET_BYTES_MAX,
        active: "dict[int, Link] | None" = None,
    ) -> None:
        self._active: dict[int, Link] = {} if active is None else active
        self.session = session
        self.controller = controller
        self.number = number
        self.epoch = epoch
        self.topic = topic
        self.window = window
        self.packet_bytes_max = packet_bytes_max
        self.dropped = 0
        """Messages received on this link that could not be used."""
        self.closed = False
        """Set by its owner when the pair of sessions is over."""
        self.due_ms: int | None = None
        """For the owner's timers."""
        self.is_forgotten = False
        """The other end reports less than it did: it has lost this link, and so has begun anew."""
        base = number << _NUMBER_SHIFT
        # Sending.
        self._next_n = base + 1
        self._queue: deque[tuple[str, Linked, tuple[int, ...], int]] = deque()
        self._parts: deque[tuple[str, Part, tuple[int, ...]]] = deque()
        self.numbers: dict[int, int] = {}
        """Token -> number of the message sent with it (of its last part); whoever gives tokens
        removes them."""
        self._part_number = 0
        self._parts_unseen = 0
        self._unseen: dict[int, tuple[str, bytes, bool]] = {}
        self._repeat_at_ms: int | None = None
        self._repeat_after_ms = REPEAT_AFTER_MS
        self._duplicate_gaps = 0
        self._recover_to = 0
        self._reported = base
        # Receiving.
        self._received = base
        self._early: dict[int, Linked] = {}
        self._seen_due_ms: int | None = None
        self._unsaid = 0
        self._gap = False
        self._assembler = PartAssembler()

    # -- sending ----------------------------------------------------------------------------

    def send(
        self,
        message: Linked,
        topic: str | None = None,
        tokens: tuple[int, ...] = (),
        packet_bytes_max: int | None = None,
    ) -> None:
        """Queue a message that must arrive; `poll` says when it goes out.

        Args:
            message: What to send; the link stamps it.
            topic: Where, if not to the link's own topic.
            tokens: Names under which `numbers` tells the message's number once it has one.
            packet_bytes_max: A limit of this topic's readers, where it is below the link's.
        """
        limit = self.packet_bytes_max
        if packet_bytes_max is not None:
            limit = min(limit, packet_bytes_max)
        self._queue.append((self.topic if topic is None else topic, message, tokens, limit))
        self._active[id(self)] = self

    def unnumbered(self, message: Linked, topic: str | None = None, qos: int = 0) -> Outgoing:
        """A message that need not arrive (a beat, progress), ready to publish."""
        payload = encode(
            message,
            session=self.session,
            controller=self.controller,
            epoch=self.epoch,
            seen=self._received,
        )
        return Outgoing(topic=self.topic if topic is None else topic, payload=payload, qos=qos)

    @property
    def waiting(self) -> int:
        """Messages not sent yet because the window is full (parts not counted)."""
        return len(self._queue)

    @property
    def unseen(self) -> int:
        """Messages sent that the other end has not reported."""
        return len(self._unseen)

    @property
    def received(self) -> int:
        """The highest number received without a gap."""
        return self._received

    @property
    def reported(self) -> int:
        """The highest number that the other end has said to have seen."""
        return self._reported

    @property
    def is_heard(self) -> bool:
        """Whether the other end has said to have seen anything of this link."""
        return self._reported > self.number << _NUMBER_SHIFT

    @property
    def last_sent(self) -> int:
        """The highest number given to a message so far."""
        return self._next_n - 1

    @property
    def has_room(self) -> bool:
        """Whether a message queued now would go out with the next `poll`."""
        return len(self._unseen) + len(self._queue) < self.window

    def poll(self, now_ms: int) -> list[Outgoing]:
        """What is to be published now: new messages, repeats, or a bare `Seen`."""
        out: list[Outgoing] = []
        if self._unseen and self._repeat_at_ms is not None and now_ms >= self._repeat_at_ms:
            self._repeat(now_ms, out)
        repeats = len(out)
        if self._queue or self._parts:
            self._transmit_queued(now_ms, out)
        # A gap is said in a `Seen` alone; what was seen, by every new message (not by a repeat).
        if self._gap or (self._seen_due_ms is not None and now_ms >= self._seen_due_ms):
            if self._gap or len(out) == repeats:
                out.append(self.unnumbered(Seen(gap=self._gap), qos=1))
            self._said_seen()
        elif len(out) > repeats:
            self._said_seen()
        return out

    def _said_seen(self) -> None:
        self._seen_due_ms = None
        self._unsaid = 0
        self._gap = False

    def _transmit_queued(self, now_ms: int, out: list[Outgoing]) -> None:
        # While a parted message is under way, half of the window is its own and half is not:
        # small messages overtake it, and a stream of them does not keep it from arriving.
        part_window = max(1, self.window // 2)
        while self._queue and len(self._unseen) < self.window:
            small_unseen = len(self._unseen) - self._parts_unseen
            if self._parts and small_unseen >= max(1, self.window - part_window):
                break
            self._transmit(*self._queue.popleft(), now_ms, out)
        while self._parts and len(self._unseen) < self.window and self._parts_unseen < part_window:
            topic, part, tokens = self._parts.popleft()
            for token in tokens:
                self.numbers[token] = self._next_n
            self._number(topic, self._encode(part, self._next_n), now_ms, out, part=True)

    def next_wakeup_ms(self) -> int | None:
        """When `poll` has something to do without further events; None: never."""
        due = self._seen_due_ms
        if self._unseen and self._repeat_at_ms is not None:
            due = self._repeat_at_ms if due is None else min(due, self._repeat_at_ms)
        return due

    def _encode(self, message: Linked, n: int) -> bytes:
        return encode(
            message,
            session=self.session,
            controller=self.controller,
            epoch=self.epoch,
            n=n,
            seen=self._received,
        )

    def _transmit(
        self,
        topic: str,
        message: Linked,
        tokens: tuple[int, ...],
        packet_bytes_max: int,
        now_ms: int,
        out: list[Outgoing],
    ) -> None:
        payload = self._encode(message, self._next_n)
        if len(payload) <= packet_bytes_max:
            for token in tokens:
                self.numbers[token] = self._next_n
            self._number(topic, payload, now_ms, out, part=False)
            return
        whole = self._encode(message, 0)
        self._part_number += 1
        parts = cut_parts(whole, self._part_number, packet_bytes_max)
        for part in parts[:-1]:
            self._parts.append((topic, part, ()))
        self._parts.append((topic, parts[-1], tokens))

    def _number(
        self,
        topic: str,
        payload: bytes,
        now_ms: int,
        out: list[Outgoing],
        *,
        part: bool,
    ) -> None:
        if not self._unseen:
            self._repeat_after_ms = REPEAT_AFTER_MS
            self._repeat_at_ms = now_ms + REPEAT_AFTER_MS
        self._unseen[self._next_n] = (topic, payload, part)
        self._parts_unseen += part
        self._next_n += 1
        out.append(Outgoing(topic=topic, payload=payload))

    def _repeat(self, now_ms: int, out: list[Outgoing]) -> None:
        oldest = next(iter(self._unseen))
        topic, payload, _part = self._unseen[oldest]
        out.append(Outgoing(topic=topic, payload=payload))
        self._repeat_after_ms = min(2 * self._repeat_after_ms, REPEAT_AFTER_MS_MAX)
        self._repeat_at_ms = now_ms + self._repeat_after_ms
        self._recover_to = self._next_n - 1

    # -- receiving --------------------------------------------------------------------------

    def receive(self, message: Linked, now_ms: int) -> list[Linked]:
        """The messages that `message` makes available, in order, parts put together.

        A repeat or a `Seen` gives none; one that is ahead of a gap waits. An `Unusable` is
        given, for the core to count.
        """
        self.note_seen(message.seen, now_ms, type(message) is Seen and message.gap)
        if message.n == 0:
            if type(message) is Part:
                # Parts are numbered here: of one that is not, the rest may never come.
                self.dropped += 1
                return []
            return [] if type(message) is Seen else [message]
        if self._seen_due_ms is None:
            self._seen_due_ms = now_ms + BARE_SEEN_AFTER_MS
        if message.n <= self._received:
            return []
        self._unsaid += _WEIGHTS.get(type(message), 1)
        if self._unsaid >= SEEN_EVERY:
            # Its sender may be waiting for just that.
            self._seen_due_ms = now_ms
        if message.n > self._received + 1:
            if len(self._early) < REORDER_MAX:
                self._early[message.n] = message
            else:
                self.dropped += 1
            self._gap = True
            self._seen_due_ms = now_ms
            return []
        ready: list[Linked] = []
        current: Linked | None = message
        while current is not None:
            self._received += 1
            self._deliver(current, ready)
            current = self._early.pop(self._received + 1, None)
        return ready

    def _deliver(self, message: Linked, ready: list[Linked]) -> None:
        if type(message) is not Part:
            ready.append(message)
            return
        try:
            whole = self._assembler.add(message)
            if whole is not None:
                inner = decode(whole, UNFINISHED_PART_BYTES_MAX)
                if type(inner) is Part:
                    raise DecodeError("a part within parts")
                if type(inner) is Unusable:
                    raise DecodeError(inner.reason)
                # Whose it is and what it has seen is what its last part says: that was checked,
                # and is newer.
                ready.append(
                    replace(
                        inner,
                        session=message.session,
                        controller=message.controller,
                        epoch=message.epoch,
                        n=message.n,
                        seen=message.seen,
                    )
                )
        except DecodeError:
            self.dropped += 1

    def note_seen(self, seen: int, now_ms: int, has_gap: bool = False) -> None:
        """The other end has seen all up to this number (and says that it misses the next)."""
        self._active[id(self)] = self
        if seen > self._reported:
            self._reported = seen
        elif seen < self._reported and has_gap:
            self.is_forgotten = True
        progressed = False
        while self._unseen:
            oldest = next(iter(self._unseen))
            if oldest > seen:
                break
            self._parts_unseen -= self._unseen.pop(oldest)[2]
            progressed = True
        if progressed:
            self._duplicate_gaps = 0
            self._repeat_after_ms = REPEAT_AFTER_MS
            self._repeat_at_ms = now_ms + REPEAT_AFTER_MS if self._unseen else None
            # The repeat arrived, and what was sent between the original and it did not (a
            # connection keeps order): the next is missing too, there is nothing to wait for.
            if self._unseen and next(iter(self._unseen)) <= self._recover_to:
                self._repeat_at_ms = now_ms
        elif has_gap and self._unseen:
            self._duplicate_gaps += 1
            if self._duplicate_gaps == 2:
                self._duplicate_gaps = 0
                self._repeat_at_ms = now_ms


def fits_packet(data_bytes: int, packet_bytes_max: int) -> bool:
    """Whether data of this length and its envelope surely fit one packet."""
    return data_bytes + ENVELOPE_BYTES <= packet_bytes_max
