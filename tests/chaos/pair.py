"""Two controllers in one fleet: what they and the devices said, and what was promised of it.

Everything is read where it passes: a proxy's watcher sees a message before any fault meets it, so
what is known here is what each program meant, whatever arrived.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from chaos.faults import DOWN, UP
from chaos.packets import PUBLISH, Packet
from chaos.proxy import Proxies
from forage_controller.core.standby import OLD_COPY
from forage_wire.codec import decode, decode_json
from forage_wire.errors import WireError
from forage_wire.messages import Accepted, Assign, ControllerPresence, Join, Linked, Replicated
from forage_wire.topics import Topics

__all__ = ["CONTROLLERS", "OWN_DISK", "SAME_DISK", "SYNCHRONOUS", "Obedience", "Pair", "TakeOver"]

SAME_DISK = "same disk"
"""The second controller waits for the first one's state directory."""
OWN_DISK = "own disk"
"""It is fed, and copies what was acknowledged a moment later."""
SYNCHRONOUS = "own disk, synchronous"
"""It is fed, and nothing is acknowledged that it has not."""
CONTROLLERS = {"controller": "main", "standby": "attic"}
"""Role on the ground → name on the bus."""
TOPICS = Topics()


def start_of(session: str) -> str:
    """What all sessions of one process have in common."""
    return session[:16]


@dataclass(frozen=True)
class TakeOver:
    """One began to rule where the other had."""

    role: str
    epoch: int
    loser: str
    """The process that ruled before, by the random part of its sessions."""
    follows: bool
    """Whether it had a copy of what that one ruled with, when they last spoke."""


class Obedience:
    """What one device obeys: it never goes back to a lower epoch, nor from one start to another."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.problems: list[str] = []
        self.accepted = 0
        """Messages in which it has said that it took assignments."""
        self._epochs: dict[str, int] = {}
        """A controller's start → the highest epoch that it assigned with here."""
        self._bound: dict[str, tuple[int, str]] = {}
        """This device's start → (epoch, the controller's start) that it obeyed last."""

    def note(self, direction: str, packet: Packet) -> None:
        """A packet that passes."""
        message = _linked(packet)
        if direction == DOWN and isinstance(message, Assign):
            start = start_of(message.controller)
            self._epochs[start] = max(message.epoch, self._epochs.get(start, 0))
        elif direction == UP and isinstance(message, Accepted):
            self._on_accepted(message)

    def _on_accepted(self, message: Accepted) -> None:
        ruler, own = start_of(message.controller), start_of(message.session)
        epoch = self._epochs.get(ruler)
        if epoch is None:
            self.problems.append(f"{self.name} took assignments of {ruler}, which made none")
            return
        self.accepted += 1
        bound, holder = self._bound.get(own, (0, ruler))
        if epoch < bound or (epoch == bound and ruler != holder):
            self.problems.append(
                f"{self.name} took assignments of {ruler} with epoch {epoch}, "
                f"and had obeyed {holder} with epoch {bound}"
            )
        self._bound[own] = (epoch, ruler)


def _linked(packet: Packet) -> Linked | None:
    if packet.kind != PUBLISH or not packet.topic.startswith(
        ("forage/1/inbox/", "forage/1/outbox/")
    ):
        return None
    try:
        return decode(packet.payload)
    except WireError:
        return None


class Pair:
    """The two, as heard at their proxies."""

    def __init__(self, proxies: Proxies, kind: str, devices: Sequence[str]) -> None:
        self.kind = kind
        self.take_overs: list[TakeOver] = []
        self.obedience = [Obedience(device) for device in devices]
        self._lock = threading.Lock()
        self._last: dict[str, ControllerPresence] = {}
        """Role → its last word of itself."""
        self._ruler = ""
        self._rules: ControllerPresence | None = None
        """Who has ruled with the highest epoch yet: role, and its word."""
        self._copied: dict[str, str] = {}
        """Role → the start whose state it has a copy of, as far as its last link got."""
        self._link: dict[str, tuple[str, bool]] = {}
        """Role → (the start that it asked to be fed by, whether that copy is whole)."""
        for role in CONTROLLERS:
            proxies.add(role).watch(self._watcher(role), lasts=True)
        for one in self.obedience:
            proxies.add(one.name).watch(one.note, lasts=True)

    def _watcher(self, role: str) -> Callable[[str, Packet], None]:
        return lambda direction, packet: self._note(role, direction, packet)

    # -- what passes --------------------------------------------------------------------------------

    def _note(self, role: str, direction: str, packet: Packet) -> None:
        if direction != UP or packet.kind != PUBLISH or not packet.payload:
            return
        name = CONTROLLERS[role]
        try:
            if packet.topic == TOPICS.controller_presence(name):
                presence = decode_json(packet.payload, ControllerPresence)
                with self._lock:
                    self._on_presence(role, presence)
            elif packet.topic == TOPICS.replica(name):
                message = decode(packet.payload)
                with self._lock:
                    self._on_replica(role, message)
        except WireError:
            return  # A piece of a packet that a cut left.

    def _on_presence(self, role: str, presence: ControllerPresence) -> None:
        self._last[role] = presence
        if presence.state != "active":
            return
        before = self._rules
        if before is not None and presence.epoch < before.epoch:
            return  # One that does not know yet that it rules no more.
        if before is not None and self._ruler != role:
            loser = start_of(before.session)
            follows = self.kind == SAME_DISK or self._copied.get(role) == loser
            self.take_overs.append(TakeOver(role, presence.epoch, loser, follows))
        self._ruler, self._rules = role, presence

    def _on_replica(self, role: str, message: Linked) -> None:
        start = start_of(message.controller)
        if isinstance(message, Join):
            self._link[role] = (start, False)
        elif isinstance(message, Replicated):
            self._link[role] = (start, True)
            self._copied[role] = start

    # -- what is known of it ------------------------------------------------------------------------

    def present(self) -> tuple[str, str]:
        """(the role that rules, why the pair is not whole): each empty where it is not so.

        Whole is: one rules, the other stands by and could take over without a loss.
        """
        with self._lock:
            ruler, rules = self._ruler, self._rules
            states = {role: word.state for role, word in self._last.items()}
            if rules is None or states.get(ruler) != "active":
                return "", f"nobody rules: {states}"
            [other] = [role for role in CONTROLLERS if role != ruler]
            if states.get(other) != "standby":
                return ruler, f"{ruler} rules, and {other} is {states.get(other, 'silent')}"
            if self._last[ruler].epoch != rules.epoch:
                return ruler, f"{ruler} rules with {self._last[ruler].epoch}, not {rules.epoch}"
            if self.kind != SAME_DISK and self._link.get(other) != (start_of(rules.session), True):
                return ruler, f"{ruler} rules, and {other} has no whole copy"
            return ruler, ""

    def alive_and_beaten(self, take_overs: Sequence[TakeOver]) -> Iterator[str]:
        """Roles whose process ruled, was taken over from, and lives still.

        Not who rules in the end: where both began with one epoch, having heard nothing of each
        other, either speaks after the other, and one of them gives way.
        """
        with self._lock:
            ruling = None if self._rules is None else start_of(self._rules.session)
            for role, word in self._last.items():
                if start_of(word.session) != ruling and any(
                    each.loser == start_of(word.session) for each in take_overs
                ):
                    yield role

    def disobedience(self) -> Iterator[str]:
        """Where devices obeyed two; told once."""
        for one in self.obedience:
            while one.problems:
                yield one.problems.pop(0)


class Log:
    """What a service has written since the last look began."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def begin(self) -> None:
        """From here on."""
        self._offset = self._path.stat().st_size if self._path.exists() else 0

    def text(self) -> str:
        """All that was written since."""
        if not self._path.exists():
            return ""
        with self._path.open("rb") as stream:
            stream.seek(self._offset)
            return stream.read().decode("utf-8", "replace")

    def has_old_copy(self) -> bool:
        """Whether it took over though others may know more."""
        return OLD_COPY in self.text()

    def let_its_standby_go(self) -> bool:
        """Whether it said that its acknowledgements waited for nobody any more."""
        return "no longer follows: " in self.text()

    def says_that_it_gave_way(self) -> bool:
        """Whether it said that another rules in its place, or may: one that has died since is asked
        for in vain, and then it rules again."""
        words = ("fenced: ", "is active on this broker", "asking whether another controller rules")
        return any(word in self.text() for word in words)
