"""Whose word counts: sessions, epochs, and the one link to the controller that has the device.

An epoch belongs to the first controller start that uses it here; any other start with it, and
every lower epoch, is refused. A start is the random part of a session; its higher connect counter
replaces the lower.
"""

from typing import Literal

from forage_wire.limits import DEVICE_WINDOW
from forage_wire.link import Link, link_number
from forage_wire.messages import ControllerPresence, Linked

__all__ = ["Controllers", "Verdict"]

Verdict = Literal["take", "new", "refuse", "stale"]
"""`take`: of the current link; `new`: of a new one; `refuse`: answered with a refusal; `stale`:
not for this session, or from an older connection: dropped."""


def _start(session: str) -> str:
    return session.partition("-")[0]


def _counter(session: str) -> int:
    return int(session.partition("-")[2] or 0)


class Controllers:
    """The binding of this device, and its link.

    Args:
        topic: The device's outbox.
        packet_bytes_max: What the device sends and takes in one message.
    """

    def __init__(self, topic: str, packet_bytes_max: int) -> None:
        self.outbox_topic = topic
        self._packet_bytes_max = packet_bytes_max
        self.session = ""
        """This device's; empty while there is no connection."""
        self.link: Link | None = None
        self.epoch = 0
        """The one that the device is bound to; 0: none yet."""
        self.holder = ""
        """The controller session that has used it last."""
        self._link_epoch = 0
        self.reconnect_spread_ms = 500

    def connected(self, session: str) -> None:
        """A new session: no link yet."""
        self.session = session
        self.link = None
        self._link_epoch = 0

    def disconnected(self) -> None:
        """Nobody hears us."""
        self.session = ""
        self.link = None

    def judge(self, message: Linked) -> Verdict:
        """What to do with an inbox message; binds the epoch and makes the link where it counts."""
        link = self.link
        if (
            link is not None
            and message.controller == link.controller == self.holder
            and message.epoch == self.epoch == self._link_epoch
            and message.session == self.session
            and link_number(message) == link.number
        ):
            # As nearly always: of the link that we have.
            return "take"
        if not self.session or message.session != self.session or not message.controller:
            return "stale"
        same_start = _start(message.controller) == _start(self.holder)
        if message.epoch < max(1, self.epoch):
            return "refuse"
        if message.epoch == self.epoch:
            if not same_start:
                return "refuse"
            if _counter(message.controller) < _counter(self.holder):
                return "stale"
        self.epoch = message.epoch
        self.holder = message.controller
        number = link_number(message)
        if self.link is not None and self.link.controller == message.controller:
            self._link_epoch = message.epoch
            if number == self.link.number:
                return "take"
            if number < self.link.number:
                return "stale"
        self._make_link(message.controller, message.epoch, number)
        return "new"

    def on_presence(self, presence: ControllerPresence) -> bool:
        """A controller's own word; True where a new link was made to answer it."""
        self.reconnect_spread_ms = presence.reconnect_spread_ms
        if presence.state != "active" or not self.session:
            return False
        if presence.epoch < max(self.epoch, self._link_epoch):
            return False
        if presence.epoch == self.epoch:
            if _start(presence.session) != _start(self.holder):
                return False
            if _counter(presence.session) < _counter(self.holder):
                return False
        if self.link is not None and self.link.controller == presence.session:
            return False
        if self.link is not None and presence.epoch == self._link_epoch:
            # Of two with one epoch, neither of which has spoken to us, the first is answered.
            same_start = _start(presence.session) == _start(self.link.controller)
            if not same_start or _counter(presence.session) < _counter(self.link.controller):
                return False
        self._make_link(presence.session, presence.epoch)
        return True

    def _make_link(self, controller: str, epoch: int, number: int = 0) -> None:
        self._link_epoch = epoch
        self.link = Link(
            session=self.session,
            controller=controller,
            number=number,
            topic=self.outbox_topic,
            window=DEVICE_WINDOW,
            packet_bytes_max=self._packet_bytes_max,
        )
