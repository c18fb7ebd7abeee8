"""What a proxy does to the packets that a rule picks: one class for each fault.

An action gets the pipe (one direction of one connection), the packet, and the proxy's seeded
randomness. It says what goes on; a packet that it does not forward is lost.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from chaos.packets import PUBLISH, Packet

__all__ = [
    "DOWN",
    "UP",
    "Action",
    "Corrupt",
    "Cut",
    "CutAfterBytes",
    "Delay",
    "Drop",
    "Duplicate",
    "HalfOpen",
    "Pipe",
    "Point",
    "Reorder",
    "Rule",
]

UP = "up"
"""From the program to the broker."""
DOWN = "down"
"""From the broker to the program."""


class Pipe(Protocol):
    """What an action may do with the direction that its packet goes."""

    direction: str

    def forward(self, data: bytes) -> None:
        """Send this on."""

    def answer(self, data: bytes) -> None:
        """Send this back to the packet's sender."""

    def stall(self, pause_s: float, packet: Packet) -> None:
        """Send the packet on after a pause, with all that comes behind it."""

    def put_back(self, packet: Packet, passing: int, limit_s: float) -> None:
        """Send the packet on when so many others have passed, or after a time."""

    def cut(self) -> None:
        """Close both ends, with what was forwarded delivered."""

    def silence(self) -> None:
        """From here on nothing passes, and nobody is told."""


class Action(Protocol):
    """One fault."""

    def apply(self, pipe: Pipe, packet: Packet, source: random.Random) -> None:
        """Do it to this packet."""


@dataclass
class Rule:
    """Which packets a fault meets. The first rule that matches a packet decides alone."""

    name: str
    """Under which it is counted."""
    action: Action
    direction: str = ""
    """UP, DOWN, or both."""
    kind: int = 0
    """MQTT's packet type; 0: all of them."""
    topic: str = ""
    """A regular expression that is looked for in a PUBLISH's topic; empty: any packet."""
    probability: float = 1.0
    skip: int = 0
    """So many matches pass first."""
    limit: int = 0
    """It happens so often at most; 0: no limit."""
    met: int = field(default=0, init=False)
    """How often it has happened."""

    def matches(self, direction: str, packet: Packet, source: random.Random) -> bool:
        """Whether it is to happen now; counts."""
        if self.limit and self.met >= self.limit:
            return False
        if self.direction not in ("", direction) or self.kind not in (0, packet.kind):
            return False
        if self.topic and (packet.kind != PUBLISH or not re.search(self.topic, packet.topic)):
            return False
        if self.probability < 1.0 and source.random() >= self.probability:
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.met += 1
        return True


@dataclass
class Delay:
    """The packet and all behind it wait, as on a link that stalls."""

    low_s: float
    high_s: float

    def apply(self, pipe: Pipe, packet: Packet, source: random.Random) -> None:
        """See the class."""
        pipe.stall(source.uniform(self.low_s, self.high_s), packet)


@dataclass
class Drop:
    """A message is taken, acknowledged, and lost: what brokers do when a queue is full."""

    def apply(self, pipe: Pipe, packet: Packet, source: random.Random) -> None:
        """See the class. Only messages: TCP loses nothing of a stream that goes on."""
        if packet.kind != PUBLISH:
            pipe.forward(packet.raw)
        elif packet.qos:
            pipe.answer(packet.acknowledgement())


@dataclass
class Duplicate:
    """A message comes again; the copy has QoS 0, as from a broker with overlapping paths."""

    copies: int = 1

    def apply(self, pipe: Pipe, packet: Packet, source: random.Random) -> None:
        """See the class."""
        pipe.forward(packet.raw)
        if packet.kind == PUBLISH:
            for _ in range(self.copies):
                pipe.forward(packet.copy_without_id())


@dataclass
class Reorder:
    """A message is overtaken by those behind it."""

    passing: int = 3
    limit_s: float = 0.3

    def apply(self, pipe: Pipe, packet: Packet, source: random.Random) -> None:
        """See the class. Only messages: an order of packets is MQTT's own."""
        if packet.kind != PUBLISH:
            pipe.forward(packet.raw)
        else:
            pipe.put_back(packet, source.randint(1, self.passing), self.limit_s)


@dataclass
class Corrupt:
    """A message's payload arrives broken: cut short, replaced by noise, or with noise behind."""

    def apply(self, pipe: Pipe, packet: Packet, source: random.Random) -> None:
        """See the class. Never a payload that is whole but says something else: TCP and TLS
        have checksums against that, and forage promises nothing beyond them."""
        if packet.kind != PUBLISH or not packet.payload:
            pipe.forward(packet.raw)
            return
        length = len(packet.payload)
        broken = source.choice(
            [
                packet.payload[: source.randrange(length)],
                b"\xff" + source.randbytes(min(length, 4_096)),
                packet.payload + b"\xff" + source.randbytes(8),
            ]
        )
        pipe.forward(packet.with_payload(broken))


@dataclass
class Cut:
    """The connection ends at this packet, of which a share arrives."""

    share: float = 0.0

    def apply(self, pipe: Pipe, packet: Packet, source: random.Random) -> None:
        """See the class."""
        pipe.forward(packet.raw[: int(len(packet.raw) * self.share)])
        pipe.cut()


@dataclass
class CutAfterBytes:
    """The connection ends when so many more bytes have passed, wherever in a packet that is."""

    count: int

    def apply(self, pipe: Pipe, packet: Packet, source: random.Random) -> None:
        """See the class."""
        pipe.forward(packet.raw[: self.count])
        self.count -= len(packet.raw)
        if self.count <= 0:
            self.count = 1 << 62
            pipe.cut()


@dataclass
class HalfOpen:
    """From this packet on the connection is dead, and neither end is told."""

    def apply(self, pipe: Pipe, packet: Packet, source: random.Random) -> None:
        """See the class."""
        pipe.silence()


@dataclass
class Point:
    """A point of the protocol at which something is done; the packet goes on after it."""

    act: Callable[[], None]

    def apply(self, pipe: Pipe, packet: Packet, source: random.Random) -> None:
        """See the class."""
        self.act()
        pipe.forward(packet.raw)
