"""The agent's clock: one for the agent, its zygote and its workers."""

import time

__all__ = ["now_ms"]


def now_ms() -> int:
    """Milliseconds that never go back, whatever is done to the wall clock.

    They count while the machine is suspended too: a lease that ran out meanwhile is over.
    """
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
