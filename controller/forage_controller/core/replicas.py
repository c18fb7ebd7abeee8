"""The active controller's standbys: what each has of our store, and what it is sent.

    join ──► waiting ──(the store's copy is there)──► copying ──(all of it sent)──► following

A standby that joins is given a snapshot of the store as it was at one position of the journal, then
every group after it, each once it is committed here. It answers with the position up to which it
has committed. One that cannot keep up, or falls silent, is let go: it joins again, and begins with
a snapshot. Until it has its first copy on its disk it holds nothing up.

One that had a complete copy and is gone may be taking over with it this very moment, whatever ended
its link. So what is not on its disk is held back a while longer (`_Held`): until it has heard on a
new link that its copy is old, or until it would rule.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from forage_controller.core.config import CoreConfig
from forage_controller.core.effects import Effects
from forage_controller.core.feed import (
    SCHEMA_VERSION,
    CloseSnapshot,
    OpenSnapshot,
    ReadSnapshot,
    SnapshotFailed,
    SnapshotOpened,
    SnapshotRead,
    encode_operations,
    size_of,
    to_plain,
)
from forage_controller.core.links import Links
from forage_controller.core.operations import Save
from forage_controller.core.sessions import is_newer, start_of
from forage_wire.limits import DEVICE_WINDOW, ENVELOPE_BYTES
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
from forage_wire.topics import Topics

__all__ = ["Replicas"]

_STANDBYS_MAX = 16
_BEAT_MS_MIN = 20
_GONE_BEATS = 8
"""A standby that says nothing for so many of its beats is let go ..."""
_GONE_MS_MIN = 2_000
"""... and no sooner than this."""
_STALLED_MS = 10_000
"""So is one that speaks and commits nothing of what it lacks."""
_CHANGE_MS = 1_000
"""A standby that is let go may rule so much later: its turn, and the change of roles."""
_STARTING_MS = 2_000
"""One that says that it starts rules by then, or has found that we do."""
_RETRY_MS = 30_000
"""When a snapshot failed, the next is tried after this."""


@dataclass(frozen=True, slots=True)
class _Group:
    """One committed group, ready for the wire."""

    position: int
    operations: list[list[Any]]
    size: int


@dataclass(slots=True)
class _Standby:
    name: str
    session: str
    link: Link
    heard_ms: int
    beat_ms: int = 0
    """0: it has not joined yet."""
    beat_at_ms: int = 0
    copies: bool = False
    state: str = "waiting"
    request: int = 0
    """Of its snapshot; 0: none is under way."""
    retry_ms: int = 0
    offset: int = 0
    """Read of the snapshot so far ..."""
    size: int = 0
    """... of so much."""
    reading: int = 0
    """Pieces asked of the store and not here yet."""
    since: int = 0
    """The snapshot's position: groups up to it are in it."""
    position: int | None = None
    """It has committed all up to here; None: it has no complete copy."""
    moved_ms: int = 0
    """When it last had everything, or got on."""
    groups: deque[_Group] = field(default_factory=deque)
    groups_bytes: int = 0

    @property
    def has_heard(self) -> bool:
        """Whether it has had anything on this link, and so knows that it needs a new copy."""
        return self.link.is_heard

    @property
    def gone_ms(self) -> int:
        """When it is let go, unless it speaks."""
        return self.heard_ms + max(_GONE_MS_MIN, _GONE_BEATS * self.beat_ms)


@dataclass(slots=True)
class _Held:
    """A standby that had a complete copy, up to a position, and is gone."""

    position: int
    until_ms: int
    why: str


class Replicas:
    """Feeds every standby that joins."""

    def __init__(self, config: CoreConfig, effects: Effects, links: Links, topics: Topics) -> None:
        self._config = config
        self._effects = effects
        self._links = links
        self._topics = topics
        self._session = ""
        self._epoch = 0
        self._standbys: dict[str, _Standby] = {}
        self._over: dict[str, tuple[str, int]] = {}
        """Those that were let go: (session, number) of the link that is over."""
        self._held: dict[str, _Held] = {}
        self._uncommitted: deque[_Group] = deque()
        self._committed = 0
        self._requests = 0
        self._copying: _Standby | None = None
        """Whose snapshot is open: one at a time, it takes as much disk as the store."""

    # -- what is asked of it ----------------------------------------------------------------

    def floor(self) -> int | None:
        """The position up to which every standby with a complete copy has committed, and every one
        that may be taking over with it; None: there is none."""
        found = [one.position for one in self._standbys.values() if one.position is not None]
        found += [one.position for one in self._held.values()]
        return min(found) if found else None

    def behind(self) -> dict[str, int]:
        """Each standby with a complete copy, and how many committed groups it lacks."""
        return {
            one.name: max(0, self._committed - one.position)
            for one in self._standbys.values()
            if one.position is not None
        }

    def copying(self) -> tuple[str, ...]:
        """Standbys that have no complete copy yet."""
        return tuple(
            [one.name for one in self._standbys.values() if one.copies and one.position is None]
        )

    def next_wakeup_ms(self) -> int | None:
        """When `poll` has something to do without further events."""
        dues = [held.until_ms for held in self._held.values()]
        for one in self._standbys.values():
            dues.append(one.gone_ms)
            if one.position is not None and one.position < self._committed:
                dues.append(one.moved_ms + _STALLED_MS)
            if one.beat_ms:
                dues.append(one.beat_at_ms)
            if one.copies and one.state == "waiting" and not one.request and not self._copying:
                dues.append(one.retry_ms)
        return min(dues) if dues else None

    # -- our connection ---------------------------------------------------------------------

    def connected(self, session: str, epoch: int) -> None:
        """We rule under a new session: whoever stands by joins anew."""
        self.disconnected()
        self._session, self._epoch = session, epoch

    def new_epoch(self, epoch: int) -> None:
        """We go on under a higher epoch."""
        self._epoch = epoch
        for one in self._standbys.values():
            one.link.epoch = epoch

    def disconnected(self) -> None:
        """Links end with our connection."""
        self._session = ""
        self._over.clear()
        for one in list(self._standbys.values()):
            self._drop(one, "our connection ended")

    def gone(self, name: str, session: str) -> None:
        """A controller's will or goodbye: it stands by no more."""
        one = self._standbys.get(name)
        if one is not None and one.session == session:
            self._let_go(one, "its connection ended")

    def starts(self, name: str, now_ms: int) -> None:
        """A controller says that it starts: one that stood by takes over."""
        held = self._held.get(name)
        if held is not None:
            held.until_ms = max(held.until_ms, now_ms + _STARTING_MS)

    def _drop(self, one: _Standby, why: str) -> None:
        one.link.closed = True
        if one.position is not None:
            self._hold(one, one.position, why)
        self._close_snapshot(one)
        del self._standbys[one.name]
        if not any(other.copies for other in self._standbys.values()):
            self._uncommitted.clear()

    def _hold(self, one: _Standby, position: int, why: str) -> None:
        held = self._held.get(one.name)
        if held is not None:
            position = min(position, held.position)
        elif len(self._held) >= _STANDBYS_MAX:
            del self._held[next(iter(self._held))]
        self._held[one.name] = _Held(position, one.gone_ms + _CHANGE_MS, why)

    def _free(self, name: str) -> None:
        """A standby that was gone does not take over with what it had."""
        held = self._held.pop(name)
        if self.floor() is None:
            self._effects.note(
                "warning",
                f"standby={name} no longer follows: {held.why}; what is acknowledged from now on is "
                "on this controller's disk alone, until one follows again",
            )

    def _let_go(self, one: _Standby, why: str) -> None:
        self._effects.note("warning", f"standby={one.name} is let go: {why}")
        self._drop(one, why)
        if len(self._over) >= _STANDBYS_MAX:
            del self._over[next(iter(self._over))]
        self._over[one.name] = (one.session, one.link.number)
        self._knock(one.name)

    def _knock(self, name: str) -> None:
        """Name the next link to one that was let go: if it lives, it begins anew."""
        session, number = self._over[name]
        link = self._links.make(
            session=session,
            controller=self._session,
            number=number + 1,
            epoch=self._epoch,
            topic=self._topics.standby(name),
            packet_bytes_max=self._config.packet_bytes_max,
        )
        self._effects.outgoing([link.unnumbered(Seen(gap=True), qos=1)])

    # -- messages ---------------------------------------------------------------------------

    def on_message(self, name: str, message: Linked, now_ms: int) -> None:
        """A message of a standby's `replica` topic."""
        one = self._standby_of(name, message, now_ms)
        if one is None:
            self._effects.drop(f"standby/{name}", "a message for another session")
            return
        one.heard_ms = now_ms
        for ready in one.link.receive(message, now_ms):
            match ready:
                case Join():
                    self._on_join(one, ready, now_ms)
                case Replicated():
                    self._on_replicated(one, ready, now_ms)
                case _:
                    self._effects.drop(f"standby/{name}", f"{type(ready).__name__} from a standby")
        if name in self._held and one.has_heard:
            self._free(name)

    def _standby_of(self, name: str, message: Linked, now_ms: int) -> _Standby | None:
        """Whose message it is; its link begins with the first message that names it."""
        if not self._session or message.controller != self._session or not message.session:
            return None
        number = link_number(message)
        one = self._standbys.get(name)
        if one is not None and one.session == message.session and one.link.number == number:
            return one
        if one is not None:
            is_later = one.session == message.session and one.link.number < number
            is_other = start_of(one.session) != start_of(message.session)
            if not (is_later or is_other or is_newer(message.session, one.session)):
                return None
        if message.n == 0 or (one is None and len(self._standbys) >= _STANDBYS_MAX):
            return None
        session, over = self._over.get(name, ("", 0))
        if session == message.session and number <= over:
            self._knock(name)
            return None
        if one is not None:
            self._drop(one, "it began a new link")
        link = self._links.make(
            session=message.session,
            controller=self._session,
            number=number,
            epoch=self._epoch,
            topic=self._topics.standby(name),
            packet_bytes_max=self._config.packet_bytes_max,
        )
        one = _Standby(name=name, session=message.session, link=link, heard_ms=now_ms)
        self._standbys[name] = one
        return one

    def _on_join(self, one: _Standby, join: Join, now_ms: int) -> None:
        one.beat_ms = max(_BEAT_MS_MIN, join.beat_ms)
        one.beat_at_ms = now_ms
        if not join.copy:
            return
        if join.schema != SCHEMA_VERSION:
            one.link.send(
                StandbyRefused(
                    reason=f"its store has schema {join.schema} and this controller's "
                    f"{SCHEMA_VERSION}: bring both to one version of forage"
                )
            )
            return
        one.copies = True

    def _on_replicated(self, one: _Standby, message: Replicated, now_ms: int) -> None:
        if one.state != "following" or message.position < one.since:
            return
        if one.position is None:
            self._effects.note("info", f"standby={one.name} follows at group {message.position}")
        one.position = max(one.position or 0, min(message.position, self._committed))
        one.moved_ms = now_ms

    # -- groups -----------------------------------------------------------------------------

    def saved(self, save: Save) -> None:
        """A group is on its way to the disk."""
        if self._standbys and any(one.copies for one in self._standbys.values()):
            operations = [to_plain(operation) for operation in save.operations]
            size = sum([size_of(operation) for operation in operations])
            self._uncommitted.append(_Group(save.number, operations, size))

    def committed(self, number: int) -> None:
        """Every group up to this one is on the disk."""
        self._committed = max(self._committed, number)
        while self._uncommitted and self._uncommitted[0].position <= number:
            group = self._uncommitted.popleft()
            for one in list(self._standbys.values()):
                is_fed = one.request or one.state == "following"
                if is_fed and group.position > one.since:
                    self._queue(one, group)

    def _queue(self, one: _Standby, group: _Group) -> None:
        one.groups.append(group)
        one.groups_bytes += group.size
        if one.groups_bytes > self._config.limits.standby_bytes:
            self._let_go(
                one, f"it is {one.groups_bytes} bytes behind, and must begin with a new copy"
            )

    # -- the snapshot -----------------------------------------------------------------------

    def on_opened(self, event: SnapshotOpened) -> None:
        """The copy of the store is there."""
        one = self._copying
        if one is None or one.request != event.request:
            self._effects.command(CloseSnapshot(request=event.request))
            return
        one.state = "copying"
        one.offset, one.size, one.reading = 0, event.size, 0
        one.since = event.position
        # What it holds already need not be sent once more.
        while one.groups and one.groups[0].position <= event.position:
            one.groups_bytes -= one.groups.popleft().size

    def on_failed(self, event: SnapshotFailed, now_ms: int) -> None:
        """There is none."""
        one = self._copying
        if one is None or one.request != event.request:
            return
        self._effects.note(
            "warning", f"standby={one.name} cannot be given a copy of the store: {event.reason}"
        )
        self._copying = None
        one.request = 0
        one.state = "waiting"
        one.retry_ms = now_ms + _RETRY_MS

    def on_read(self, event: SnapshotRead) -> None:
        """A piece of it."""
        one = self._copying
        if one is None or one.request != event.request:
            return
        one.reading -= 1
        one.link.send(
            Snapshot(position=one.since, offset=event.offset, size=one.size, data=event.data)
        )
        if event.offset + len(event.data) >= one.size:
            one.state = "following"
            self._close_snapshot(one)

    def _close_snapshot(self, one: _Standby) -> None:
        if self._copying is one:
            self._effects.command(CloseSnapshot(request=one.request))
            self._copying = None
            one.request = 0

    # -- sending ----------------------------------------------------------------------------

    def check(self, now_ms: int) -> int | None:
        """Let go of those that have fallen silent, or do not get on; the answer is `floor` then."""
        if not self._standbys and not self._held:
            return None
        for one in list(self._standbys.values()):
            if now_ms >= one.gone_ms:
                self._let_go(one, "it fell silent")
            elif one.position is None or one.position >= self._committed:
                one.moved_ms = now_ms
            elif now_ms >= one.moved_ms + _STALLED_MS:
                self._let_go(one, f"it has committed nothing for {_STALLED_MS // 1_000} s")
        for name, held in list(self._held.items()):
            if now_ms >= held.until_ms:
                self._free(name)
        return self.floor()

    def poll(self, now_ms: int) -> None:
        """Hand to each link what it has room for."""
        for one in self._standbys.values():
            if one.beat_ms and now_ms >= one.beat_at_ms:
                one.beat_at_ms = now_ms + one.beat_ms
                self._effects.outgoing([one.link.unnumbered(Beat())])
            if not one.copies:
                continue
            if one.state == "waiting" and self._copying is None and now_ms >= one.retry_ms:
                self._open(one)
            elif one.state == "copying":
                self._read(one)
            elif one.state == "following":
                self._send_groups(one)

    def _open(self, one: _Standby) -> None:
        self._requests += 1
        one.request = self._requests
        # The groups of this batch are on their way: all from here on are kept for it.
        one.since = 0
        one.groups.clear()
        one.groups_bytes = 0
        self._copying = one
        self._effects.command(OpenSnapshot(request=one.request))

    def _room(self, one: _Standby) -> int:
        return one.link.packet_bytes_max - ENVELOPE_BYTES

    def _read(self, one: _Standby) -> None:
        while (
            one.offset < one.size
            and one.link.unseen + one.link.waiting + one.reading < DEVICE_WINDOW
        ):
            length = min(self._room(one), one.size - one.offset)
            self._effects.command(
                ReadSnapshot(request=one.request, offset=one.offset, length=length)
            )
            one.offset += length
            one.reading += 1

    def _send_groups(self, one: _Standby) -> None:
        room = self._room(one)
        while one.groups and one.link.has_room:
            operations: list[list[Any]] = []
            size = position = 0
            while one.groups and (not operations or size + one.groups[0].size <= room):
                group = one.groups.popleft()
                one.groups_bytes -= group.size
                operations += group.operations
                size += group.size
                position = group.position
            data = encode_operations(operations)
            # Pieces, not the link's parts: those are overtaken by what is small, and order counts.
            for start in range(0, len(data), room):
                one.link.send(
                    Journal(
                        position=position,
                        more=start + room < len(data),
                        data=data[start : start + room],
                    )
                )
