"""How long to wait before connecting again; whoever waits passes the randomness in."""

from __future__ import annotations

import os
from typing import Protocol

__all__ = ["RandomSource", "ReconnectDelay", "SystemRandom"]


class RandomSource(Protocol):
    """The part of `random.Random` that is used."""

    def uniform(self, a: float, b: float, /) -> float: ...


class SystemRandom:
    """Drawn from the system's, without the module `random` and the six that it imports."""

    def uniform(self, a: float, b: float, /) -> float:
        return a + (b - a) * int.from_bytes(os.urandom(6), "big") / 2**48


class ReconnectDelay:
    """How long to wait before each reconnect, so that a fleet does not come back as one.

    The first after uniform(0, spread); then full jitter: uniform(0, the time waited so far), which
    is taken for 1 s at least and 30 s at most. So the delays grow by half each time on average,
    and nobody stays away for longer than the broker did: where the bound doubled with each attempt,
    a few short draws in a row made it 30 s after an absence of five.
    """

    FIRST_S = 1.0
    LIMIT_S = 30.0

    def __init__(self, spread_s: float, random: RandomSource) -> None:
        """`spread_s` may be assigned later, when the controller announces another."""
        self.spread_s = spread_s
        self._random = random
        self._waited_s: float | None = None
        """All delays since the connection was lost; None: there was none yet."""

    def next_s(self) -> float:
        """Seconds to wait before the next attempt; each call is one attempt."""
        waited_s = self._waited_s
        if waited_s is None:
            delay_s = self._random.uniform(0, self.spread_s)
        else:
            bound_s = min(self.LIMIT_S, max(self.FIRST_S, waited_s))
            delay_s = self._random.uniform(0, bound_s)
        self._waited_s = (waited_s or 0.0) + delay_s
        return delay_s

    def reset(self) -> None:
        """A connection was accepted: the next delay is a first one."""
        self._waited_s = None
