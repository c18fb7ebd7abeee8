"""What each figure has to reach on two cores over mosquitto, and what it is to reach one day."""

from dataclasses import dataclass

__all__ = ["FLOORS", "Floor"]


@dataclass(frozen=True, slots=True)
class Floor:
    """The bounds of one figure."""

    floor: float
    aim: float | None
    more_is_better: bool

    def reached(self, value: float) -> bool:
        """Whether a figure is within the floor."""
        return value >= self.floor if self.more_is_better else value <= self.floor


def _more(floor: float, aim: float | None = None) -> Floor:
    return Floor(floor, aim, True)


def _less(floor: float, aim: float | None = None) -> Floor:
    return Floor(floor, aim, False)


FLOORS: dict[str, Floor] = {
    "one by one, 5,000: calls/s": _more(100_000, 400_000),
    "one by one, 50,000: calls/s": _more(150_000, 400_000),
    "submit_all, 100,000: calls/s": _more(250_000, 600_000),
    "submit_all, 1,000,000: calls/s": _more(250_000, 600_000),
    "own task for each call: calls/s": _more(10_000, 30_000),
    "single call: p50 ms": _less(1.0, 0.5),
    "single call: p99 ms": _less(2.5, 1.2),
    "single call, commits 20 ms slower: p50 ms": _less(1.5, 0.5),
    "one by one, commits 20 ms slower: calls/s": _more(80_000, 400_000),
    "one call beside a batch of 1 ms calls: p95 ms": _less(30, 12),
    "efficiency with 1 ms calls": _more(0.93, 0.97),
    "SIGKILL to its work started elsewhere: p95 ms": _less(100, 30),
    "frozen: its work elsewhere, beyond detect_s: p95 ms": _less(100, 30),
    "controller killed, 100,000 queued: start to assigning ms": _less(1_000, 500),
    "broker killed, empty: all working again: worst ms": _less(3_000, 1_000),
    "2,000 devices dropped and back: all known s": _less(30, 5),
    "controller, 1,000,000 queued calls: MiB": _less(64 + 20 * 1_000_000 / 2**20),
    "client, queued call, submit: bytes": _less(200),
    "client, queued call, submit_all: bytes": _less(60),
    "agent, zygote, idle worker: PSS MiB": _less(32),
    "agent: modules": _less(200),
    "agent, zygote, worker, idle: % of a core": _less(0.3),
    "idle device on the wire: bytes/s": _less(100),
    "cold connect to first result: ms": _less(150, 50),
}
