"""The open bursts: calls that `submit` merges while earlier ones are under way, until they go.

Not thread-safe: whoever calls holds the network's lock. Which bursts go, and when, is decided
here; the network sends them.
"""

from forage.calls import Burst
from forage_wire.limits import ENVELOPE_BYTES, PACKET_BYTES_MAX

__all__ = ["BURST_BYTES_MAX", "BURST_MS", "Bursts"]

BURST_MS = 4
"""A burst that no incoming message flushes goes out after this."""
_FEW = 16
"""Calls of a burst that an incoming message flushes: somebody may be waiting for each of them. Of
more, somebody submits in a loop, and a task for every few of those would cost more than they do."""
BURST_BYTES_MAX = PACKET_BYTES_MAX - 4 * ENVELOPE_BYTES
"""A burst with more arguments than this goes out at once: a packet is full."""


class Bursts(dict[tuple[object, ...], Burst]):
    """By function and the `id` of options and comparison, which the burst keeps alive."""

    def take(self, now_ms: int, *, few: bool, many: bool) -> list[Burst]:
        """Take out the bursts of few calls, and of many; those that are due in any case."""
        found = []
        for key, burst in list(self.items()):
            if (few if burst.count <= _FEW else many) or burst.due_ms <= now_ms:
                del self[key]
                found.append(burst)
        return found

    def due_ms(self) -> int | None:
        """When the first of them is to go; None: there are none."""
        return min([burst.due_ms for burst in self.values()], default=None)
