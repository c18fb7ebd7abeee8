"""How the replicas of calls are numbered: users' calls in blocks, each replica a page of its own.

A task with `replicas` = N has N runs for each call of its user. Its pages come in blocks of N
with the same calls: a block whose first call is number `c` and that has `n` calls takes the runs
[N·c, N·(c+n)), the page of replica `r` those from N·c + r·n on. So no slice, which lies within
one page, holds two runs of one call, and a run's block is known from its number divided by N.

    N = 3, blocks of 2 and 1 calls:   run   0 1 | 2 3 | 4 5 || 6 | 7 | 8
                                      call  0 1 | 0 1 | 0 1 || 2 | 2 | 2
"""

from bisect import bisect_right
from collections.abc import Iterable

from forage_wire.messages import Header
from forage_wire.ranges import Ranges, RangeSet

__all__ = ["ReplicaLayout", "replica_flaw"]


def replica_flaw(header: Header) -> str:
    """What is wrong with a page's place among its calls' replicas; "" if nothing."""
    replicas = header.options.replicas
    if header.replica >= replicas:
        return f"a page says it holds replica {header.replica} of {replicas}"
    if header.settle != "controller":
        return "calls with replicas are settled by the controller, and a page says otherwise"
    base = header.first - header.replica * header.n
    if base < 0 or base % replicas:
        return "a page with replicas does not begin where a block of them does"
    return ""


class ReplicaLayout:
    """Which runs are whose replicas, in one task.

    Args:
        replicas: Runs of each call.
        firsts: Of the blocks that are known, the first call of each, sorted.
        calls: Calls in those blocks.
    """

    __slots__ = ("_firsts", "calls", "replicas")

    def __init__(self, replicas: int, firsts: Iterable[int] = (), calls: int = 0) -> None:
        self.replicas = replicas
        self._firsts = list(firsts)
        self.calls = calls

    @property
    def firsts(self) -> tuple[int, ...]:
        """The first call of each block."""
        return tuple(self._firsts)

    @property
    def runs(self) -> int:
        """Runs in all blocks."""
        return self.replicas * self.calls

    def add(self, calls: int) -> list[int]:
        """One more block; the first run of each of its pages."""
        first = self.calls
        self._firsts.append(first)
        self.calls += calls
        return [self.replicas * first + replica * calls for replica in range(self.replicas)]

    def _block(self, call: int) -> tuple[int, int]:
        """The first call of a call's block, and how many it has."""
        at = bisect_right(self._firsts, call)
        end = self._firsts[at] if at < len(self._firsts) else self.calls
        first = self._firsts[at - 1]
        return first, end - first

    def call_of(self, run: int) -> int:
        """Whose replica a run is."""
        first, n = self._block(run // self.replicas)
        return first + (run - self.replicas * first) % n

    def runs_of(self, ranges: Iterable[tuple[int, int]]) -> Ranges:
        """All runs of these calls."""
        found = RangeSet()
        for low, high in ranges:
            high = min(high, self.calls)
            while low < high:
                first, n = self._block(low)
                end = min(high, first + n)
                for replica in range(self.replicas):
                    shift = self.replicas * first + replica * n - first
                    found.add(low + shift, end + shift)
                low = end
        return found.freeze()

    def calls_missing(self, runs: RangeSet) -> Ranges:
        """The calls whose first replica is not among these runs."""
        found = RangeSet()
        for at, first in enumerate(self._firsts):
            end = self._firsts[at + 1] if at + 1 < len(self._firsts) else self.calls
            shift = self.replicas * first - first
            for low, high in runs.missing(first + shift, end + shift):
                found.add(low - shift, high - shift)
        return found.freeze()
