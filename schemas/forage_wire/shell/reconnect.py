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

    The first after uniform(0, spread); then full jitter: uniform(0, min(30 s, 1 s, 2 s, 4 s, …)).
    """

    LIMIT_S = 30.0

    def __init__(self, spread_s: float, random: RandomSource) -> None:
        """`spread_s` may be assigned later, when the controller announces another."""
        self.spread_s = spread_s
        self._random = random
        self._attempts = 0

    def next_s(self) -> float:
        """Seconds to wait before the next attempt; each call counts as one attempt."""
        attempt = self._attempts
        self._attempts += 1
        if attempt == 0:
            return self._random.uniform(0, self.spread_s)
        # Beyond 2**5 s the limit holds; a larger exponent would only make larger numbers.
        return self._random.uniform(0, min(self.LIMIT_S, 2.0 ** min(attempt - 1, 5)))

    def reset(self) -> None:
        """A connection was accepted: the next delay is a first one."""
        self._attempts = 0
