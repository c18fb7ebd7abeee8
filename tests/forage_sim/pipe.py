"""One direction of a connection: first in, first out, with delays; bytes are never lost in it.

That is TCP: a lost segment is a delay, a cut network a longer one, and only the end of the
connection loses what was under way.
"""

from collections import deque
from collections.abc import Callable
from random import Random
from typing import Generic, TypeVar

from forage_sim.clock import Clock

__all__ = ["Pipe", "segment_delay_ms"]

_Item = TypeVar("_Item")

RETRANSMIT_MS = 200


def segment_delay_ms(random: Random, loss: float) -> int:
    """What TCP's repeats cost when each segment is lost with probability `loss`.

    k losses in a row cost 200 (2^k - 1) ms, as the retransmission timer doubles.
    """
    losses = 0
    while losses < 6 and random.random() < loss:
        losses += 1
    return int(RETRANSMIT_MS * (2**losses - 1))


class Pipe(Generic[_Item]):
    """Items under way to one end."""

    __slots__ = ("_blocked_until_ms", "_clock", "_deliver", "_due_ms", "_items", "_last_ms")

    def __init__(self, clock: Clock, deliver: Callable[[_Item], None]) -> None:
        self._clock = clock
        self._deliver = deliver
        self._items: deque[tuple[int, _Item]] = deque()
        self._last_ms = 0
        self._blocked_until_ms = 0
        self._due_ms: int | None = None

    def __len__(self) -> int:
        return len(self._items)

    def push(self, item: _Item, delay_ms: int, *, overtake: bool = False) -> None:
        """Send an item that arrives in `delay_ms`, or later if one before it does.

        Args:
            item: What the other end gets.
            delay_ms: Its own time under way.
            overtake: Whether it passes the item sent before it, if that has not arrived.
        """
        ready_ms = max(self._clock.now_ms + delay_ms, self._last_ms)
        self._last_ms = ready_ms
        if overtake and self._items:
            passed_ms, passed = self._items.pop()
            self._items.append((passed_ms, item))
            self._items.append((ready_ms, passed))
        else:
            self._items.append((ready_ms, item))
        self._schedule()

    def block(self, until_ms: int) -> None:
        """Deliver nothing before `until_ms` (a cut network); nothing is lost."""
        self._blocked_until_ms = max(self._blocked_until_ms, until_ms)
        self._schedule()

    def clear(self) -> None:
        """Lose everything that is under way."""
        self._items.clear()

    def _schedule(self) -> None:
        if not self._items:
            return
        due_ms = max(self._items[0][0], self._blocked_until_ms)
        if self._due_ms is None or due_ms < self._due_ms:
            self._due_ms = due_ms
            self._clock.at(due_ms, self._drain)

    def _drain(self) -> None:
        now_ms = self._clock.now_ms
        if self._due_ms is None or now_ms < self._due_ms:
            return
        self._due_ms = None
        while self._items and max(self._items[0][0], self._blocked_until_ms) <= now_ms:
            self._deliver(self._items.popleft()[1])
        self._schedule()
