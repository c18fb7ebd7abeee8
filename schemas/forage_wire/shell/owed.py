"""The PUBACKs that we owe the broker: alone they are worth no packet.

A send wakes the broker, and a lone call would pay for three of them. So they wait for what is sent
next, for a few more of them, or for a moment.
"""

__all__ = ["OWED_MAX", "OWED_MS", "Owed"]

OWED_MAX = 4
"""That many leave at once: brokers keep ten messages and more in flight before they wait for one."""
OWED_MS = 25
"""How long they wait: longer than the ends do before they acknowledge what came (`link`), so that
these leave together."""

_PUBACK_HEADER = b"\x40\x02"


class Owed:
    """Of one connection."""

    __slots__ = ("_packets", "due_ms")

    def __init__(self) -> None:
        self._packets: list[bytes] = []
        self.due_ms: int | None = None
        """When they have to leave even if nothing else does; None: there are none."""

    def is_due(self, now_ms: int) -> bool:
        """Whether they have to leave now."""
        return self.due_ms is not None and now_ms >= self.due_ms

    def add(self, message_id: int, now_ms: int) -> None:
        """One more message that came."""
        if not self._packets:
            self.due_ms = now_ms + OWED_MS
        self._packets.append(_PUBACK_HEADER + message_id.to_bytes(2, "big"))

    def take(self, now_ms: int, *, others_leave: bool) -> bytes:
        """The packets that are to leave now: all or, mostly, none."""
        packets = self._packets
        if packets and (others_leave or len(packets) >= OWED_MAX or self.is_due(now_ms)):
            self._packets = []
            self.due_ms = None
            return b"".join(packets)
        return b""
