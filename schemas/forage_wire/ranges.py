"""Sets of call indices as half-open ranges: cheap for millions of calls done mostly in order."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

__all__ = ["RangeSet", "Ranges", "ranges_count"]

Ranges = tuple[tuple[int, int], ...]
"""Sorted, disjoint, not touching: ((low, high), ...), high not included."""


def ranges_count(ranges: Iterable[tuple[int, int]]) -> int:
    """How many indices the ranges hold."""
    count = 0
    for low, high in ranges:
        count += high - low
    return count


class RangeSet:
    """A mutable set of non-negative integers kept as sorted, disjoint ranges.

    Adding at the end, which is the common case, costs O(1); elsewhere O(ranges).
    """

    __slots__ = ("_highs", "_lows", "count")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._lows: list[int] = []
        self._highs: list[int] = []
        self.count = 0
        for low, high in ranges:
            self.add(low, high)

    def __bool__(self) -> bool:
        return bool(self._lows)

    def __len__(self) -> int:
        """The number of ranges (not of indices: that is `count`)."""
        return len(self._lows)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._lows, self._highs, strict=True)

    def __contains__(self, index: int) -> bool:
        at = bisect_right(self._lows, index) - 1
        return at >= 0 and index < self._highs[at]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RangeSet):
            return NotImplemented
        return self._lows == other._lows and self._highs == other._highs

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"RangeSet({list(self)!r})"

    def freeze(self) -> Ranges:
        """The ranges as a tuple, for a message."""
        return tuple(zip(self._lows, self._highs, strict=True))

    def copy(self) -> "RangeSet":
        """An independent copy."""
        twin = RangeSet()
        twin._lows = self._lows.copy()
        twin._highs = self._highs.copy()
        twin.count = self.count
        return twin

    def covers(self, low: int, high: int) -> bool:
        """Whether every index of [low, high) is in the set."""
        if low >= high:
            return True
        at = bisect_right(self._lows, low) - 1
        return at >= 0 and high <= self._highs[at]

    def missing(self, low: int, high: int) -> list[tuple[int, int]]:
        """The ranges of [low, high) that are not in the set, in order."""
        gaps: list[tuple[int, int]] = []
        at = bisect_right(self._highs, low)
        while low < high:
            if at >= len(self._lows) or self._lows[at] >= high:
                gaps.append((low, high))
                break
            if self._lows[at] > low:
                gaps.append((low, self._lows[at]))
            low = self._highs[at]
            at += 1
        return gaps

    def common(self, low: int, high: int) -> list[tuple[int, int]]:
        """The ranges of [low, high) that are in the set, in order."""
        found: list[tuple[int, int]] = []
        if low >= high:
            return found
        at = bisect_right(self._highs, low)
        while at < len(self._lows) and self._lows[at] < high:
            found.append((max(low, self._lows[at]), min(high, self._highs[at])))
            at += 1
        return found

    def add(self, low: int, high: int) -> int:
        """Add [low, high); the answer is how many indices were new."""
        if low >= high:
            return 0
        lows, highs = self._lows, self._highs
        if not lows or low > highs[-1]:
            lows.append(low)
            highs.append(high)
            self.count += high - low
            return high - low
        if low >= lows[-1]:
            end = highs[-1]
            if high <= end:
                return 0
            highs[-1] = high
            self.count += high - end
            return high - end
        first = bisect_left(highs, low)
        last = bisect_right(lows, high)
        if first == last:
            lows.insert(first, low)
            highs.insert(first, high)
            self.count += high - low
            return high - low
        old = sum(highs[at] - lows[at] for at in range(first, last))
        new_low = min(low, lows[first])
        new_high = max(high, highs[last - 1])
        lows[first:last] = [new_low]
        highs[first:last] = [new_high]
        added = new_high - new_low - old
        self.count += added
        return added

    def update(self, ranges: Iterable[tuple[int, int]]) -> int:
        """Add every range; the answer is how many indices were new."""
        added = 0
        for low, high in ranges:
            added += self.add(low, high)
        return added

    def take_first(self, count: int) -> tuple[int, int]:
        """Take out the first `count` indices, or the first range where that is shorter.

        The set must not be empty.
        """
        low, high = self._lows[0], self._highs[0]
        if high - low > count:
            high = self._lows[0] = low + count
        else:
            del self._lows[0], self._highs[0]
        self.count -= high - low
        return low, high

    def remove(self, low: int, high: int) -> int:
        """Take [low, high) out; the answer is how many indices were in the set."""
        removed = 0
        for start, end in self.common(low, high):
            at = bisect_right(self._lows, start) - 1
            old_low, old_high = self._lows[at], self._highs[at]
            pieces = [(old_low, start), (end, old_high)]
            kept = [piece for piece in pieces if piece[0] < piece[1]]
            self._lows[at : at + 1] = [piece[0] for piece in kept]
            self._highs[at : at + 1] = [piece[1] for piece in kept]
            removed += end - start
        self.count -= removed
        return removed
