"""Virtual time: a heap of actions, and the random streams of one seed."""

import heapq
from collections.abc import Callable
from random import Random

__all__ = ["Clock"]

Action = Callable[[], None]


class Clock:
    """Time in whole milliseconds that passes only when `step` takes the next action.

    Actions due at the same time run in the order in which they were asked for.
    """

    __slots__ = ("_heap", "_seed", "_sequence", "now_ms", "steps")

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._heap: list[tuple[int, int, Action]] = []
        self._sequence = 0
        self.now_ms = 0
        self.steps = 0
        """Actions taken so far."""

    def stream(self, name: str) -> Random:
        """A random stream of its own: what one part draws does not move what another does.

        That keeps the rest of a run as it was when a fault is taken out of its schedule.
        """
        return Random(f"{self._seed}/{name}")

    def after(self, delay_ms: int, action: Action) -> None:
        """Take `action` when `delay_ms` have passed."""
        self.at(self.now_ms + delay_ms, action)

    def at(self, time_ms: int, action: Action) -> None:
        """Take `action` at `time_ms`, or now if that is over."""
        self._sequence += 1
        heapq.heappush(self._heap, (max(time_ms, self.now_ms), self._sequence, action))

    def step(self) -> bool:
        """Take the next action; False if there is none."""
        if not self._heap:
            return False
        self.now_ms, _sequence, action = heapq.heappop(self._heap)
        self.steps += 1
        action()
        return True

    def run_until(self, time_ms: int) -> None:
        """Take every action due up to `time_ms`, which is now afterwards."""
        while self._heap and self._heap[0][0] <= time_ms:
            self.step()
        self.now_ms = max(self.now_ms, time_ms)
