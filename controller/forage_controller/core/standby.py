"""A controller that stands by: it watches the one that rules, keeps its copy, and takes over.

    watching ──(an active controller is heard)──► joined ──(its copy is whole)──► following
        └──────────(nobody is active: a will, a goodbye, or silence)──────► take-over

It takes over where it may: where it has followed, or where nobody has ruled after what its own
store holds. Taking over is a restart with that store: the new start takes a higher epoch, and asks
on the bus whether anybody rules before it does. So a take-over in error is called off, and of two
that rule, devices obey one.

Where it waits for the very disk of the other (`copies=False`) it watches alone: the lock of that
disk comes to it when the other dies. A frozen process keeps its lock; then the order is to end it.
"""

from dataclasses import dataclass
from typing import assert_never

from forage_controller.core.commands import Exit
from forage_controller.core.config import CoreConfig
from forage_controller.core.feed import SnapshotInstalled
from forage_controller.core.following import Following
from forage_controller.core.operations import (
    SaveCommitted,
    SaveFailed,
    StoreFull,
    StoreHasRoom,
)
from forage_controller.core.orders import EndHolder, StandbyCommand, StandbyEvent, TakeOver
from forage_controller.core.our_word import our_presence
from forage_controller.core.sessions import counter_of, start_of
from forage_wire.codec import decode, decode_json
from forage_wire.errors import DecodeError
from forage_wire.io import (
    BatchEnded,
    Connected,
    Disconnected,
    MessageReceived,
    Note,
    Publish,
    PublishAcknowledged,
)
from forage_wire.limits import EPOCH_BELIEVED_MAX, EPOCH_CREDIBLE_MAX
from forage_wire.messages import ControllerPresence
from forage_wire.topics import Topics

__all__ = ["OLD_COPY", "StandbyCore"]

OLD_COPY = "this one's copy may be old"
"""In the reason of a take-over: what was accepted or done last may be unknown."""
_BEATS = 4
"""Signs of life in one detection time."""
_TURN_MS = 500
"""Of several that stand by, each waits this much longer than the one before it."""
_PATIENCE_MS = 30_000
"""One whose copy may be old waits this much longer for the controller that has all."""
_OTHERS_MAX = 64
"""Controllers of one fleet that are remembered."""


@dataclass(slots=True)
class _Other:
    """Another controller, as far as it has been heard on this connection."""

    name: str
    presence: ControllerPresence
    heard_ms: int | None = None
    """Its last sign of life; None: the broker alone speaks of it."""


class StandbyCore:
    """Events in, commands out; the shell's duties are those of `ControllerCore`.

    Args:
        config: Name, root topic, limits.
        start: This process start's random part of its sessions.
        detect_ms: Silence of the active controller after which this one takes over.
        copies: Whether it keeps a copy of the active one's store in its own.
        epoch: The epoch that its store holds; 0: its store is empty.
        is_copy: Whether that store is a copy from before we started, and perhaps old.
    """

    def __init__(
        self,
        config: CoreConfig,
        start: str,
        *,
        detect_ms: int,
        copies: bool = True,
        epoch: int = 0,
        is_copy: bool = False,
    ) -> None:
        self._config = config
        self._start = start
        self._detect_ms = detect_ms
        self._copies = copies
        self._epoch = epoch
        self.topics = Topics(config.root)
        self._out: list[StandbyCommand] = []
        self.following = Following(
            self.topics.replica(config.name),
            beat_ms=max(1, detect_ms // _BEATS),
            copies=copies,
            order=self._out.append,
        )
        self._is_current = not is_copy
        """Whether nothing that we know of was committed elsewhere and did not come here."""
        self.dropped = 0
        """Messages that could not be used."""
        self._session = ""
        self._others: dict[str, _Other] = {}
        self._epoch_seen = epoch
        self._listening_ms = 0
        """Silence of one that was not heard on this connection counts from here on ..."""
        self._paused_ms = 0
        """... and anybody's from here."""
        self._vacant_ms = 0
        """While nobody is active: it counts from here on."""
        self._joined_ms = 0
        self._ruled = ""
        """The start that was last heard to rule, live: whose lock it must be."""
        self._why = "no controller is active"
        self._end_again_ms = 0
        self._wanted_ms: int | None = None
        self._told = ""
        self._over = False

    # -- the interface ----------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """Of our store: whoever ruled with it last, we have what that one had, or most of it."""
        return self._epoch if self.following.epoch is None else self.following.epoch

    @property
    def is_connected(self) -> bool:
        """Whether it stands by on the bus."""
        return bool(self._session)

    def will(self, session: str) -> Publish:
        """What the broker is to say of us when our connection breaks."""
        return self._presence("lost", session)

    def goodbye(self) -> list[StandbyCommand]:
        """What to publish before an orderly end."""
        self._over = True
        return [self._presence("offline", self._session)] if self._session else []

    def handle(self, event: StandbyEvent, now_ms: int) -> list[StandbyCommand]:
        """Advance by one event.

        Args:
            event: What happened.
            now_ms: Monotonic milliseconds; never less than in the call before.

        Returns:
            Commands to carry out in order.
        """
        match event:
            case MessageReceived():
                self._on_message(event, now_ms)
            case BatchEnded():
                self._on_batch_end(now_ms)
            case SaveCommitted():
                self.following.on_committed(event.number)
            case SnapshotInstalled():
                self.following.on_installed(event)
                self._is_current = self.following.is_whole
            case Connected():
                self._on_connected(event, now_ms)
            case Disconnected():
                self._on_disconnected()
            case SaveFailed():
                self._exit(1, f"the store cannot be written: {event.reason}")
            case StoreFull():
                # What is not committed is not reported, so the active one knows where we are.
                self._say("error", f"the copy falls behind: {event.reason}")
            case StoreHasRoom():
                self._say("info", "the disk has room again: the copy goes on")
            case PublishAcknowledged():
                pass
            case _:
                assert_never(event)
        commands = list(self._out)
        self._out.clear()
        return commands

    def next_wakeup_ms(self) -> int | None:
        """When `BatchEnded` is due without any other event; None: never."""
        self._wanted_ms = None
        if self._session and not self._over:
            dues = [self.following.next_wakeup_ms(), self._rejoin_ms(), self._due_ms()]
            known = [due for due in dues if due is not None]
            self._wanted_ms = min(known) if known else None
        return self._wanted_ms

    # -- our connection ---------------------------------------------------------------------

    def _presence(self, state: str, session: str) -> Publish:
        return our_presence(
            self._config,
            self.topics,
            state,
            session,
            epoch=self.epoch,
            spread_ms=self._config.reconnect_spread_ms,
        )

    def _on_connected(self, event: Connected, now_ms: int) -> None:
        self._session = event.session
        # Whoever lost its connection when we lost ours has this long to come back.
        limits = self._config.limits
        self._listening_ms = now_ms + self._config.reconnect_spread_ms + limits.first_suspicion_ms
        self._vacant_ms = self._listening_ms + self._detect_ms
        self._out.append(self._presence("standby", self._session))

    def _on_disconnected(self) -> None:
        self._session = ""
        self._others.clear()
        self._ruled = ""
        self._is_current &= not self.following.has_followed
        self.following.end()

    def _say(self, level: str, text: str) -> None:
        self._out.append(Note(level=level, text=text))

    def _exit(self, code: int, reason: str) -> None:
        if not self._over:
            self._over = True
            self._out.append(Exit(code=code, reason=reason))

    # -- messages ---------------------------------------------------------------------------

    def _on_message(self, event: MessageReceived, now_ms: int) -> None:
        parsed = self.topics.parse(event.topic)
        try:
            if parsed is None:
                raise DecodeError(f"unknown topic {event.topic[:80]!r}")
            if parsed.branch == "controller-presence":
                if event.payload:
                    presence = decode_json(event.payload, ControllerPresence)
                    self._on_presence(parsed.controller, presence, event.retain, now_ms)
                else:
                    self._others.pop(parsed.controller, None)
            elif parsed.branch == "standby" and self._session:
                self._on_fed(event.payload, now_ms)
        except DecodeError as error:
            self.dropped += 1
            if self.dropped & (self.dropped - 1) == 0:
                self._say("warning", f"message dropped reason={error} dropped={self.dropped}")

    def _on_fed(self, payload: bytes, now_ms: int) -> None:
        message = decode(payload)
        if self.following.is_behind(message, self._session):
            # The other end has let our link go, and asks for the next.
            self._is_current = False
            self._join(now_ms)
            return
        if not self.following.is_ours(message, self._session):
            raise DecodeError("of another link")
        for other in self._others.values():
            if other.presence.session == message.controller:
                other.heard_ms = now_ms
                self._ruled = start_of(message.controller)
        self.following.receive(message, now_ms)
        # Who rules has spoken: from now on it may commit what we lack.
        self._is_current = self.following.is_whole

    def _on_presence(
        self, name: str, presence: ControllerPresence, retain: bool, now_ms: int
    ) -> None:
        if presence.epoch > EPOCH_BELIEVED_MAX:
            raise DecodeError(f"no controller has come to epoch {presence.epoch}")
        if presence.epoch <= EPOCH_CREDIBLE_MAX:
            self._epoch_seen = max(self._epoch_seen, presence.epoch)
        if name == self._config.name:
            self._on_own_name(presence, retain)
            return
        known = self._others.get(name)
        if known is None and len(self._others) >= _OTHERS_MAX:
            raise DecodeError("too many controllers")
        if known is not None and _is_older(presence.session, known.presence.session):
            return  # The will of an earlier connection, say: that one is over.
        other = self._others[name] = _Other(name, presence)
        if retain:
            return
        if presence.state == "active":
            other.heard_ms = now_ms
            self._ruled = start_of(presence.session)
        elif presence.state == "starting":
            # It takes over, or comes back: it has one detection time to be active.
            self._vacant_ms = max(self._vacant_ms, now_ms + self._detect_ms)
        elif known is not None and known.presence.state in ("active", "starting"):
            gone = "ended" if presence.state == "offline" else "lost its connection"
            self._why = f"controller {name} {gone}"
            self._vacant_ms = now_ms
            # Who comes back from a broken connection does so at once.
            self._end_again_ms = now_ms + self._detect_ms

    def _on_own_name(self, presence: ControllerPresence, retain: bool) -> None:
        if retain:
            return  # What was said under our name before we came; ours follows.
        if presence.state in ("lost", "offline"):
            if presence.session != self._session or presence.state == "lost":
                self._out.append(self._presence("standby", self._session))
        elif start_of(presence.session) != self._start:
            self._exit(
                2,
                f"another controller ({presence.state}) on this broker is called "
                f"{self._config.name}: give one of them another --name",
            )

    # -- whether somebody rules -------------------------------------------------------------

    def _ruler(self) -> _Other | None:
        active = [one for one in self._others.values() if one.presence.state == "active"]
        if not active:
            return None
        return max(active, key=lambda one: (one.presence.epoch, one.presence.session))

    def _silent_from_ms(self, ruler: _Other) -> int:
        heard_ms = self._listening_ms if ruler.heard_ms is None else ruler.heard_ms
        return max(heard_ms, self._paused_ms)

    def _turn_ms(self) -> int:
        """How much longer than others this one waits."""
        before = [
            one
            for one in self._others.values()
            if one.presence.state == "standby" and one.name < self._config.name
        ]
        return _TURN_MS * len(before)

    def _due_ms(self) -> int | None:
        """When nobody has ruled for long enough; None: that is told already, and nothing new."""
        ruler = self._ruler()
        if ruler is not None:
            due = self._silent_from_ms(ruler) + self._detect_ms
        else:
            due = self._vacant_ms
        if not self._copies:
            return max(due, self._end_again_ms) if self._ruled else None
        if self._told == self._obstacle() != "":
            return None
        return due + self._turn_ms() + (0 if self._is_current else _PATIENCE_MS)

    def _rejoin_ms(self) -> int | None:
        """When the link is begun anew, as nothing comes over it."""
        ruler = self._ruler()
        if ruler is None:
            return None
        if self.following.controller != ruler.presence.session:
            return 0
        heard_ms = max(ruler.heard_ms or 0, self._joined_ms)
        return heard_ms + max(1, self._detect_ms // 2)

    def _obstacle(self) -> str:
        """Why this one must not take over by itself; empty: it may."""
        if self.following.has_followed or self.epoch >= self._epoch_seen:
            return ""
        return (
            f"no controller is active, and this one has no copy of what was ruled with epoch "
            f"{self._epoch_seen} (its own store has {self.epoch}): start the controller that "
            "has, or this one without --standby to go on without what that one held"
        )

    # -- the end of a batch -----------------------------------------------------------------

    def _on_batch_end(self, now_ms: int) -> None:
        if not self._session or self._over:
            return
        if self._wanted_ms is not None and now_ms > self._wanted_ms + self._detect_ms // 4:
            # We were held up: what was said meanwhile has been read, silence begins now.
            self._paused_ms = now_ms
            if now_ms > self._wanted_ms + self._detect_ms:
                # Long enough to have been let go.
                self._is_current &= not self.following.has_followed
        rejoin_ms = self._rejoin_ms()
        if rejoin_ms is not None and now_ms >= rejoin_ms:
            self._join(now_ms)
        if self._ruler() is None and self.following.link is not None:
            self.following.end()
        due_ms = self._due_ms()
        if due_ms is not None and now_ms >= due_ms:
            self._on_vacant(now_ms)
        if not self._over:
            self.following.poll(now_ms)

    def _join(self, now_ms: int) -> None:
        ruler = self._ruler()
        assert ruler is not None
        if self.following.controller != ruler.presence.session:
            self._told = ""
            self._say(
                "info",
                f"standing by for controller {ruler.name} "
                f"(session {ruler.presence.session}, epoch {ruler.presence.epoch})",
            )
        self._joined_ms = now_ms
        self.following.begin(self._session, ruler.presence.session, now_ms)

    def _on_vacant(self, now_ms: int) -> None:
        ruler = self._ruler()
        why = self._why
        if ruler is not None:
            silent_ms = now_ms - self._silent_from_ms(ruler)
            why = f"controller {ruler.name} has said nothing for {silent_ms / 1000:g} s"
        if not self._copies:
            self._end_again_ms = now_ms + self._detect_ms
            self._out.append(EndHolder(start=self._ruled, reason=why))
            return
        obstacle = self._obstacle()
        if obstacle:
            self._told = obstacle
            self._say("error", obstacle)
            return
        if not self._is_current:
            why += f"; nobody who has all came back, and {OLD_COPY}"
        self._over = True
        epoch = max(self.epoch, self._epoch_seen)
        self._out.append(TakeOver(epoch=epoch, is_current=self._is_current, reason=why))


def _is_older(session: str, than: str) -> bool:
    """Whether a session is an earlier connection of the same start."""
    return start_of(session) == start_of(than) and counter_of(session) < counter_of(than)
